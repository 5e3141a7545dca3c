"""The recipe of ``examples/paper`` from data to table on two processes: only the size is not that of the real one."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoConfig, Mamba2Config, Mamba2Model

from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.runs import read_qrels, read_run, write_run
from rerank_trainer.models.adapters import default_lora
from rerank_trainer.models.reranker import Reranker
from tests.tiny_language_models import saved_language_model
from tests.tiny_models import tiny_recurrent_model
from tests.trainers.conftest import WORDS
from tests.trainers.launch import launch

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "examples" / "paper"
MODELS = ["qwen", "mamba", "teacher"]
RUNS = ["teacher-contrastive", *(f"{m}-{how}" for m in MODELS[:2] for how in ("contrastive", "distilled"))]
RUNS += ["teacher-distilled"]
SETS = ["words", "other"]
PROMPT = "Query: {query}\nPassage: {passage}"
RECIPE: dict[str, Any] = {
    "seed": 3,
    "launch": "accelerate/two_cpu_processes.yaml",
    "train": {"source": "train.jsonl", "num_negatives": 3},
    "evaluate": {
        "depth": 5,
        "metrics": ["nDCG@10", "RR@10"],
        "depths": [2, 5],
        "sets": {"words": {"beir": "words", "in_domain": True}, "other": {"beir": "other", "run": "other.trec"}},
    },
    "teacher": "teacher",
    "students": MODELS,
    "arguments": {
        "groups_per_step": 4,
        "passages_per_query": 4,
        "max_length": 64,
        "num_train_epochs": 1,
        "learning_rate": 0.005,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [],
        "contrastive": {"objective": "infonce"},
        "distilled": {"objective": "kl", "teacher_temperature": 2.0, "verify_checkpoints": "never"},  # takes seconds
    },
}


@pytest.fixture(scope="module")
def paper():
    """The modules of the example by name, as its scripts import each other."""
    sys.path.insert(0, str(PAPER))
    names = [path.stem for path in PAPER.glob("*.py")]
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(PAPER))
    for name in names:
        sys.modules.pop(name, None)


# --- the tiny world ---------------------------------------------------------------------------------------------------


def tevatron_rows(num_rows: int) -> list[dict[str, Any]]:
    """Rows in the layout of Tevatron's sets: the positive holds the word that is asked; the last has one negative."""
    chance, rows = random.Random(0), []
    for number in range(num_rows):
        word = chance.choice(WORDS)
        others = [other for other in WORDS if other != word]
        texts = [" ".join(chance.choices(others, k=3)) for _ in range(5)]
        negatives = [{"docid": f"n{number}-{i}", "title": "", "text": text} for i, text in enumerate(texts)]
        positive = {"docid": f"p{number}", "title": word, "text": chance.choice(others)}
        rows.append({"query_id": str(number), "query": word, "positive_passages": [positive]})
        rows[-1]["negative_passages"] = negatives if number < num_rows - 1 else negatives[:1]
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_beir(folder: Path, seed: int) -> None:
    """A BEIR folder of six queries, with two relevant passages each of thirty."""
    chance = random.Random(seed)
    texts = [" ".join(chance.sample(WORDS, 3)) for _ in range(30)]
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": word} for i, word in enumerate(WORDS[:6])])
    judged = [f"q{i}\td{d}\t1" for i, word in enumerate(WORDS[:6]) for d in range(30) if word in texts[d].split()][::2]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")


def write_world(folder: Path) -> Path:
    """Models, rows, collections and the recipe, as the Hub would have them."""
    write_lines(folder / "train.jsonl", tevatron_rows(17))
    for seed, name in enumerate(SETS):
        write_beir(folder / name, seed)
    run = {f"q{i}": [(f"d{(7 * i + d) % 30}", 9.0 - d) for d in range(8)] for i in range(6)}
    write_run(folder / "other.trec", run, tag="first")
    saved_language_model("qwen2", folder / "qwen-base")
    saved_language_model("qwen2", folder / "teacher-base", num_hidden_layers=3, seed=1)
    for part in tiny_recurrent_model("mamba2"):
        part.save_pretrained(folder / "mamba-base")
    more = {"teacher": {"lora": True, "learning_rate": 0.05}, "qwen": {"prompt": PROMPT}}
    (folder / "configs").mkdir()
    for name in MODELS:
        (folder / "configs" / f"{name}.yaml").write_text(
            yaml.safe_dump({"model": f"{name}-base", **more.get(name, {})})
        )
    for name in ("accelerate", "sharding"):
        shutil.copytree(PAPER / name, folder / name)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "work_dir": str(folder / "out")}, sort_keys=False))
    return folder / "recipe.yaml"


def drive(*arguments: str | Path, launcher: tuple[str | Path, ...] = ()) -> str:
    """What the driver printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, launcher), str(PAPER / "run.py"), *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
    return run.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a recipe that two processes went through, with what they printed."""
    folder = tmp_path_factory.mktemp("paper")
    recipe = write_world(folder)
    config = folder / "accelerate" / "two_cpu_processes.yaml"
    printed = drive(recipe, "--here", launcher=("-m", "accelerate.commands.launch", "--config_file", config))
    return folder, printed


# --- the whole recipe -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_stage_leaves_what_it_writes(ran):
    folder, printed = ran
    out = folder / "out"

    assert "begins:   prepare" in printed and "begins:   report" in printed and "finished:" not in printed
    assert sorted(path.name for path in (out / "models").iterdir()) == sorted(RUNS)
    for run in RUNS:
        weights = "adapter_model" if run.startswith("teacher") else "model"
        assert (out / "models" / run / f"{weights}.safetensors").is_file()
        assert json.loads((out / "models" / run / "finished.json").read_text())["steps"] == 4
        for name in SETS:
            by_query = pq.read_table(out / "results" / run / f"{name}.parquet")
            assert by_query.num_rows == 6 * 2 and "first_stage_nDCG@10" in by_query.column_names  # queries, depths


@pytest.mark.slow
def test_figures_are_there_for_every_model_and_set_and_the_first_stage_has_those_of_ir_measures(ran):
    folder, _ = ran
    report = json.loads((folder / "out" / "report.json").read_text())

    assert list(report["figures"]) == ["first stage", *RUNS]
    for figures in report["figures"].values():
        assert list(figures) == SETS and all(0 <= value <= 1 for value in figures.values())
    run = {query_id: dict(entries[:5]) for query_id, entries in read_run(folder / "other.trec").items()}
    qrels = read_qrels(folder / "other" / "qrels" / "test.tsv")
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]
    assert report["figures"]["first stage"]["other"] == pytest.approx(expected)
    assert [(row["model"], row["set"]) for row in report["distilled_minus_contrastive"]] == [
        (model, name) for model in MODELS for name in SETS
    ]
    for row in report["distilled_minus_contrastive"]:
        by_method = [
            report["figures"][f"{row['model']}-{method}"][row["set"]] for method in ("distilled", "contrastive")
        ]
        assert row["difference"] == pytest.approx(by_method[0] - by_method[1])
        assert row["num_queries"] == 6 and row["p_value"] <= row["corrected_p_value"]


@pytest.mark.slow
def test_both_methods_see_the_same_groups_of_one_positive_and_the_scores_are_those_of_the_teacher(ran):
    folder, _ = ran
    rows = pq.read_table(folder / "out" / "data" / "train.parquet").to_pylist()
    scored = load_groups(folder / "out" / "teacher_scores")
    teacher = Reranker.from_pretrained(folder / "out" / "models" / "teacher-contrastive")

    assert len(rows) == 16  # the last row has too few negatives
    assert all(sorted(row["labels"]) == [0.0, 0.0, 0.0, 1.0] for row in rows)
    assert [row["passages"] for row in rows] == scored["passages"][:]
    scores = teacher.predict([(rows[5]["query"], passage) for passage in rows[5]["passages"]]).tolist()
    assert scored[5]["teacher_scores"] == pytest.approx(scores, abs=1e-5)


@pytest.mark.slow
def test_a_second_call_repeats_nothing(ran):
    folder, _ = ran
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    printed = drive(folder / "recipe.yaml").splitlines()

    assert printed[0] == "finished: prepare" and len(printed) == 3 + 2 * len(RUNS)
    assert all(line.startswith("finished: ") for line in printed)
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()} == before


# --- parts of it ------------------------------------------------------------------------------------------------------


def train_one(folder: Path, *, recipe: Path, model: str, method: str, on: str = "") -> None:
    """One training in this process, or in this group of processes, which is made to shard if that is asked for."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    sys.path.insert(0, str(PAPER))
    import train
    from plan import Recipe, Run

    from tests.trainers.runs import _pretend_gpus

    if on == "deepspeed":
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    parsed = train.parsed

    def parsed_and_pretending(*arguments: Any) -> Any:
        found = parsed(*arguments)
        if on == "fsdp":
            _pretend_gpus()
        return found

    train.parsed = parsed_and_pretending
    trainer = train.train(Recipe.read(recipe), Run(model, method))
    assert (trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled) == (on == "fsdp", on == "deepspeed")


@pytest.mark.slow
def test_a_training_that_was_cut_off_goes_on_from_its_last_whole_checkpoint(ran, tmp_path):
    folder, _ = ran
    model = folder / "out" / "models" / "qwen-distilled"
    kept = tmp_path / "whole"
    shutil.copytree(model, kept)
    for name in ("finished.json", "model.safetensors", "checkpoint-4/trainer_state.json"):
        (model / name).unlink()
    before = model / "checkpoint-2" / "trainer_state.json"
    before.write_text(before.read_text().replace('"epoch": 0.25', '"epoch": 0.25, "marked": 1'))
    launch(train_one, tmp_path / "again", recipe=folder / "recipe.yaml", model="qwen", method="distilled")

    one, other = (load_file(path / "model.safetensors") for path in (kept, model))
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5
    log = json.loads((model / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4] and log[0][
        "marked"
    ] == 1  # the first steps are those of then


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("fsdp", {"fsdp": True, "fsdp_config": "sharding/fsdp.json", "recompute_activations": True}),
        ("deepspeed", {"deepspeed": "sharding/zero2.json", "recompute_activations": True}),
    ],
)
def test_sharded_trainings_end_as_the_plain_one_does(ran, tmp_path, kind, options):
    if kind == "deepspeed":
        pytest.importorskip("deepspeed")
    folder, _ = ran
    world = tmp_path / "world"
    shutil.copytree(folder, world, ignore=shutil.ignore_patterns("out"))
    shutil.copytree(folder / "out" / "data", world / "out" / "data")
    (world / "configs" / "qwen.yaml").write_text(
        yaml.safe_dump({"model": "qwen-base", "prompt": PROMPT, "verify_checkpoints": "never", **options})
    )
    recipe = {**RECIPE, "work_dir": str(world / "out"), "students": ["qwen"]}
    (world / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = {"recipe": world / "recipe.yaml", "model": "qwen", "method": "contrastive", "on": kind}
    launch(train_one, tmp_path / "ranks", num_processes=2, **run)

    files = (each / "out" / "models" / "qwen-contrastive" / "model.safetensors" for each in (folder, world))
    one, other = map(load_file, files)
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4


@pytest.mark.parametrize(
    ("name", "kind", "num_processes"),
    [
        ("one_gpu", DistributedType.NO, 1),
        ("multi_gpu", DistributedType.MULTI_GPU, 8),
        ("two_cpu_processes", DistributedType.MULTI_GPU, 2),
    ],
)
def test_accelerate_reads_the_files_for_its_launcher(name, kind, num_processes):
    config = load_config_from_file(str(PAPER / "accelerate" / f"{name}.yaml"))

    assert (config.distributed_type, config.num_processes) == (kind, num_processes)
    assert config.mixed_precision == "no"  # a precision of the launcher's would come on top of the arguments'


def test_the_real_recipe_prints_all_its_commands_and_every_model_has_arguments(paper, tmp_path, monkeypatch):
    printed = drive(PAPER / "recipe.yaml", "--dry_run").splitlines()
    recipe = paper["plan"].Recipe.read(PAPER / "recipe.yaml")

    # one each of prepare, annotate and report; twelve trainings (six models, two methods), each judged
    assert len(printed) == 3 + 12 + 12
    assert "--model qwen2.5-7b --method contrastive" in printed[1] and "annotate.py" in printed[2]
    assert sum("multi_gpu.yaml" in line for line in printed) == 25
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)  # as on a GPU
    for run in recipe.runs:
        settings, args = paper["train"].parsed(recipe, run)
        assert args.passages_per_query == recipe.train["num_negatives"] + 1
        assert args.per_device_train_batch_size == settings.groups_per_step == 64
        assert args.learning_rate == (1e-4 if settings.lora else 1e-5)
        assert args.teacher_temperature == (2.0 if run.method == "distilled" else 1.0)


def test_a_group_keeps_one_positive_and_draws_its_negatives_by_seed_and_place(paper):
    draw = paper["prepare"].draw
    labels = [0.0, 1.0, 0.0, 2.0, 0.0, 0.0]
    group = {"query": "q", "labels": labels, "passages": list("abcdef"), "passage_ids": list("ABCDEF")}
    drawn = [draw(group, index, num_negatives=2, seed=0) for index in range(40)]

    for each in drawn:
        assert sum(label > 0 for label in each["labels"]) == 1 and len(set(each["passages"])) == 3
        assert [labels["abcdef".index(passage)] for passage in each["passages"]] == each["labels"]
        assert "".join(each["passage_ids"]).lower() == "".join(each["passages"])
    assert {passage for each in drawn for passage in each["passages"]} == set("abcdef")
    assert draw(group, 7, num_negatives=2, seed=0) == drawn[7]
    assert any(draw(group, index, num_negatives=2, seed=1) != drawn[index] for index in range(40))


def test_a_set_of_ir_datasets_brings_its_own_run(paper, monkeypatch):
    asked = []
    monkeypatch.setattr(paper["prepare"], "load_ir_dataset", lambda *name, **options: asked.append((name, options)))
    recipe = paper["plan"].Recipe.read(PAPER / "recipe.yaml")
    paper["prepare"].eval_groups(recipe, **recipe.evaluate["sets"]["dl19"])

    options = {"depth": 100, "num_queries": None, "run": "scoreddocs"}
    assert asked == [(("msmarco-passage/trec-dl-2019/judged",), options)]


def test_a_work_folder_that_was_begun_otherwise_is_refused_with_the_difference(paper, tmp_path):
    recipe_file = write_world(tmp_path)
    read = paper["plan"].Recipe.read
    read(recipe_file).refuse_other_settings()
    read(recipe_file).refuse_other_settings()
    content = yaml.safe_load(recipe_file.read_text())
    content["evaluate"]["sets"]["third"] = {"beir": "words"}
    content["students"] = ["qwen"]
    recipe_file.write_text(yaml.safe_dump(content))
    read(recipe_file).refuse_other_settings()  # a set joins, students stay away
    recipe_file.write_text(yaml.safe_dump({**content, "seed": 4}))

    with pytest.raises(ValueError, match=r"was begun with seed: 3, and the recipe says 4\. Give another work_dir"):
        read(recipe_file).refuse_other_settings()


def test_models_in_shards_are_refused_where_all_steps_share_their_processes(paper, tmp_path):
    recipe_file = write_world(tmp_path)
    (tmp_path / "configs" / "qwen.yaml").write_text(yaml.safe_dump({"model": "qwen-base", "fsdp": True}))

    with pytest.raises(ValueError, match=r"--here: \['qwen', 'qwen'\] are trained in shards"):
        paper["run"].main([str(recipe_file), "--here"])


def test_a_report_older_than_a_result_is_not_finished(paper, tmp_path):
    result, report = tmp_path / "words.json", tmp_path / "report.json"
    step = paper["run"].Step("report", (), writes=(report,), reads=(result,))
    report.write_text("{}")
    assert not step.is_finished  # the result of a student that has joined is not there yet
    result.write_text("{}")
    os.utime(report, ns=(0, result.stat().st_mtime_ns - 1))
    assert not step.is_finished
    os.utime(report, ns=(0, result.stat().st_mtime_ns))
    assert step.is_finished


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"studnets": []}, r"not known \['studnets'\], missing \[\]"),
        ({"teacher": "qwen3"}, r"model 'qwen3': .*qwen3.yaml is not there; the folder has \['mamba"),
    ],
)
def test_a_recipe_that_says_something_unknown_is_refused(paper, tmp_path, change, message):
    shutil.copytree(PAPER / "configs", tmp_path / "configs")
    content = {**yaml.safe_load((PAPER / "recipe.yaml").read_text()), **change}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))

    with pytest.raises(ValueError, match=message):
        paper["plan"].Recipe.read(tmp_path / "recipe.yaml")


def test_runs_that_are_not_there_are_named_before_any_work(paper):
    recipe = paper["plan"].Recipe.read(PAPER / "recipe.yaml")

    with pytest.raises(ValueError, match=r"these TREC runs are not beside the recipe: \['runs/nq.trec'"):
        paper["prepare"].refuse_missing_runs(recipe)


# --- the estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "in_all", "body"),
    [  # in billions as the models' cards give them; that of the 7B counts an output layer, which a reranker lacks
        ("qwen2.5-0.5b", 0, 0.49, 0.36),
        ("qwen2.5-1.5b", 0, 1.54, 1.31),
        ("qwen2.5-3b", 0, 3.09, 2.77),
        ("qwen2.5-7b", 152064 * 3584, 7.61, 6.53),
    ],
)
def test_the_shapes_have_the_published_numbers_of_parameters(paper, name, head, in_all, body):
    shape = paper["estimate"].SHAPES[name]

    assert (shape.all + head) / 1e9 == pytest.approx(in_all, abs=0.01)
    assert shape.body / 1e9 == pytest.approx(body, abs=0.01)


@pytest.mark.parametrize("kind", ["qwen2", "mamba2"])
def test_the_counts_are_those_of_a_model_and_its_adapter(paper, tmp_path, kind):
    estimate = paper["estimate"]
    if kind == "qwen2":
        saved_language_model("qwen2", tmp_path)
        vocabulary = AutoConfig.from_pretrained(tmp_path).vocab_size
        shape = estimate.Transformer(width=32, num_layers=2, key_width=16, mlp_width=48, vocabulary=vocabulary)
    else:  # its heads have 64 in the models of the recipe
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 400, "state_size": 16}
        Mamba2Model(Mamba2Config(num_heads=2, head_dim=64, n_groups=1, **sizes)).save_pretrained(tmp_path)
        tiny_recurrent_model("mamba2")[1].save_pretrained(tmp_path)
        shape = estimate.Mamba2(width=64, num_layers=2, state=16, vocabulary=400)
    reranker = Reranker.from_pretrained(tmp_path)

    assert sum(p.numel() for p in reranker.model.parameters()) == shape.all
    adapted = reranker.with_adapter(default_lora(reranker.model)).model
    assert sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name) == shape.adapter


def test_an_hour_is_counted_by_hand(paper):
    estimate = paper["estimate"]
    assumed = estimate.Assumptions(groups=1000, passages=10, tokens_per_pair=36, peak=1e12, mfu=0.5)
    shape = estimate.Mamba2(width=64, num_layers=1, state=16, vocabulary=1)

    # 360,000 tokens of 8 operations a parameter, on 0.5e12 a second
    expected = 360_000 * 8 * shape.body / 0.5e12 / 3600
    assert estimate.hours(shape, assumed)["all weights"] == pytest.approx(expected)
    assert estimate.hours(shape, assumed)["teaching"] == pytest.approx(expected / 4)


def test_the_readme_shows_the_table_that_the_script_prints(paper):
    estimate, readme = paper["estimate"], (PAPER / "README.md").read_text(encoding="utf-8")

    assert estimate.table(estimate.Assumptions()) in readme
    (total,) = re.findall(r"about (\d+) GPU\s+hours", readme)
    assert float(total) == round(estimate.whole_recipe(estimate.Assumptions()))
