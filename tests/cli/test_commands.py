"""The commands: each does what the function behind it does, and a dry run does nothing."""

from __future__ import annotations

import io
import json
import re

import datasets
import pytest

from rerank_trainer import Reranker, evaluate_groups, load_groups
from tests.teachers.endpoints.service import Service

TEXTS = ["fire ship", "water map", "the rain on the hills"]


def files(folder):
    return sorted((str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_train_trains_saves_and_judges(call, world):
    code, printed, told = call("train", "train.yaml", "--eval_dataset", "{dev: dev.jsonl}", "--max_steps", "2")

    assert code == 0 and "saved in out" in printed and "eval_dev_ndcg@10" in printed
    assert "10 rows of the layout 'groups'" in told
    before, after = (Reranker.from_pretrained(world / name).predict([("water", "map")]) for name in ("student", "out"))
    assert before != after
    figures = json.loads((world / "out" / "eval_results.json").read_text())
    reranker = Reranker.from_pretrained(world / "out")
    expected = evaluate_groups(load_groups(str(world / "dev.jsonl")), reranker, metrics=["ndcg@10"])
    assert figures["eval_dev_ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=1e-6)


def test_train_distils_from_a_service_that_the_file_describes(call, world):
    teacher = Reranker.from_pretrained(world / "teacher")
    with Service(lambda pairs: teacher.predict(pairs).tolist()) as service, (world / "train.yaml").open("a") as config:
        config.write(f"teacher:\n  url: {service.url('/tei')}\n  api: tei\n  journal_dir: answers\n")
        config.write("  budget: {max_requests: 10}\nteacher_cache_dir: scores\n")
        config.flush()
        code, printed, _ = call("train", "train.yaml", "--max_steps", "1")

        assert code == 0 and "saved in out" in printed
        rows = map(json.loads, (world / "rows.jsonl").read_text().splitlines())
        assert len(service.bodies) == len({row["query"] for row in rows})


def test_train_takes_several_sets_with_settings_of_their_own(call, world):
    with (world / "train.yaml").open("a") as config:
        config.write("max_steps: 1\n")
    text = (world / "train.yaml").read_text().replace("train_dataset: rows.jsonl\n", "")
    text += "train_dataset:\n  web: {rows: rows.jsonl, weight: 1}\n"
    (world / "train.yaml").write_text(text + "  code: {rows: {source: dev.jsonl, split: 'train[:4]'}, weight: 2}\n")

    code, printed, _ = call("train", "train.yaml", "--dry_run")
    assert code == 0 and "web: 10 groups, 60 passages; code: 4 groups, 24 passages" in printed
    assert call("train", "train.yaml")[0] == 0


def test_a_training_that_fails_is_no_bad_input(call, world, monkeypatch):
    def fail(self, **options):
        raise ValueError("diverged")

    monkeypatch.setattr("rerank_trainer.trainers.contrastive.ContrastiveRerankTrainer.train", fail)
    code, _, told = call("train", "train.yaml")

    assert code == 1 and "Traceback" in told
    assert told.splitlines()[-1] == "rerank-trainer train: training failed: diverged"


def test_a_dry_run_of_training_says_what_would_be_done_and_does_nothing(call, world, monkeypatch):
    monkeypatch.setattr("rerank_trainer.models.reranker.Reranker.from_pretrained", None)  # no weights
    before = files(world)
    line = ["--teacher", "teacher", "--eval_dataset", "dev.jsonl", "--gradient_accumulation_steps", "2"]
    code, printed, told = call(
        "train", "train.yaml", *line, "--num_train_epochs", "2.5", "--label_weight", "0.25", "--dry-run"
    )
    plan = dict(part.split(maxsplit=1) for part in printed.splitlines())
    assert code == 0 and files(world) == before
    assert plan["model"].startswith("student: BertForSequenceClassification, 0.0")
    assert plan["train_dataset"] == "10 groups, 60 passages" and plan["eval_dataset"] == "6 groups, 36 passages"
    assert plan["trainer"] == "DistillRerankTrainer"
    assert plan["objective"] == "kl, label_infonce" and plan["teacher"].startswith("teacher: Bert")
    # 10 groups in batches of 4 are 3, two batches a step are 2 steps an epoch
    assert plan["steps"] == "5 of 8 groups with up to 4 passages, 2.5 epochs"
    assert plan["learning_rate"] == "0.001" and plan["output_dir"] == "out"
    assert "10 rows of the layout 'groups': query as query" in told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--model", "nowhere"], "couldn't find them in the cached files"),
        (["--teacher", "bare"], "its scores would be random"),
        (["--method", "distill"], "compares with teacher_scores"),
        (["--objective", "infonec"], "'infonec' is not known"),
        (["--train_dataset", "{x: rows.jsonl, y: {rows: rows.jsonl, weight: 2}}"], "give each of them"),
        (["--optim", "lomo"], "optim='lomo' is not supported"),
        (["--model", "empty"], "empty has no weights"),
        (["--lora", "--peft_config", "{r: 4}"], "give one of them"),
        (["--load_in_4bit"], "cannot be trained themselves"),
        (["--teacher", "teacher", "--train_dataset", "scored.jsonl"], "leave one of them out"),
        (["--teacher", "teacher", "--train_dataset", "{source: rows.jsonl, streaming: true}"], "these are a stream"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(call, world, line, message):
    reranker = Reranker.from_pretrained(world / "student")
    reranker.model.base_model.save_pretrained(world / "bare")
    reranker.tokenizer.save_pretrained(world / "bare")
    reranker.model.config.save_pretrained(world / "empty")
    rows = datasets.Dataset.from_json(str(world / "rows.jsonl"))
    rows.add_column("teacher_scores", [[0.0] * len(passages) for passages in rows["passages"]]).to_json("scored.jsonl")
    reranker.tokenizer.save_pretrained(world / "empty")
    code, printed, told = call("train", "train.yaml", "--dry-run", *line)

    assert code == 2 and printed == "" and message in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "meaning"), [("--method=distill", "teacher_scores"), ("--teacher=teacher", "labels")]
)
def test_a_dry_run_takes_a_column_scores_as_the_trainer_would(call, world, given, meaning):
    rows = datasets.Dataset.from_json(str(world / "rows.jsonl"))
    rows.rename_column("labels", "scores").to_json("scores.jsonl")
    code, printed, told = call("train", "train.yaml", "--dry-run", "--train_dataset", "scores.jsonl", given)

    assert code == 0 and "10 groups" in printed and f"scores as {meaning}" in told


def test_annotate_writes_the_teachers_scores(call, world):
    line = ["annotate", "--dataset", "rows.jsonl", "--teacher", "teacher", "--output_dir", "scored"]
    code, printed, _ = call(*line, "--dry-run")
    assert code == 0 and "10 groups, 60 passages" in printed and not (world / "scored").exists()

    assert call(*line)[0] == 0
    groups = load_groups(str(world / "scored"))
    pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
    scores = Reranker.from_pretrained(world / "teacher").predict(pairs).tolist()
    assert [s for row in groups["teacher_scores"] for s in row] == pytest.approx(scores, abs=1e-5)


def test_annotate_takes_groups_without_labels_and_keeps_their_columns(call, world):
    rows = [{"query": "water", "passages": ["map", "fire ship"], "clicks": 3}]
    datasets.Dataset.from_list(rows).to_json(world / "bare.jsonl")
    line = ["annotate", "--dataset", "bare.jsonl", "--teacher", "teacher", "--output_dir", "scored"]
    code, printed, _ = call(*line, "--dry-run")
    assert code == 0 and "1 groups, 2 passages" in printed

    assert call(*line)[0] == 0
    (row,) = datasets.Dataset.from_parquet(str(world / "scored" / "train-00000.parquet"))
    assert row["clicks"] == 3 and len(row["teacher_scores"]) == 2


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_mine_writes_groups_with_negatives(call, world, ending):
    pairs = [{"question": f"{word} question", "answer": f"about {word} and map"} for word in ("water", "fire", "ship")]
    pairs += [{"question": "water question", "answer": "more about water"}]  # of the first query, too
    datasets.Dataset.from_list(pairs).to_json(world / "pairs.jsonl")
    line = [
        "mine",
        "--dataset",
        "pairs.jsonl",
        "--output",
        f"mined.{ending}",
        "--num_negatives",
        "1",
        "--range_min",
        "0",
    ]
    line += ["--corpus", "corpus.jsonl"]
    texts = ["a question of water", "a question of fire", "a question of ship"]
    datasets.Dataset.from_list([{"_id": f"p{i}", "text": text} for i, text in enumerate(texts)]).to_json(
        world / "corpus.jsonl"
    )
    code, printed, _ = call(*line, "--dry-run")
    assert code == 0 and "3 passages" in printed and not (world / f"mined.{ending}").exists()

    code, printed, told = call(*line, "--sampling_strategy", "top")
    assert code == 0 and "3 groups are in mined" in printed and "negatives chosen" in told
    mined = load_groups(str(world / f"mined.{ending}"))
    assert [group["passages"][-1] for group in mined] == texts
    assert mined["labels"][:] == [[1.0, 1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]


def test_mine_filters_by_the_first_stage_and_by_a_reranker(call, world):
    line = ["mine", "--dataset", "rows.jsonl", "--output", "m.jsonl", "--num_negatives", "1", "--range_min", "0"]
    code, printed, _ = call(
        *line, "--relative_margin", "0.1", "--reranker", "teacher", "--reranker_margin", "0", "--dry-run"
    )
    assert code == 0 and "RelativeMargin(0.1)" in printed and "teacher: BertFor" in printed

    _, _, told = call(*line, "--absolute_margin", "0.5", "--reranker", "teacher", "--reranker_margin", "0")
    assert "dropped by AbsoluteMargin(0.5)" in told and "dropped by RerankerVerdict(margin=0)" in told


def test_evaluate_prints_and_writes_the_figures(call, world):
    line = ["evaluate", "--dataset", "{dev: dev.jsonl, rows: rows.jsonl}", "--model", "student", "--metrics", "nDCG@10"]
    code, printed, _ = call(*line, "--dry-run")
    assert code == 0 and "dev: 6 groups, 36 passages; rows: 10 groups, 60 passages" in printed

    code, printed, _ = call(*line, "--depths", "3", "6", "--output_dir", "judged", "--json")
    rows = json.loads(printed)
    assert code == 0 and (world / "judged" / "dev" / "candidates.trec").exists()
    assert (world / "judged" / "rows" / "by_query.parquet").exists()
    found = {(row["dataset"], row["depth"], row["ranking"]): row["nDCG@10"] for row in rows}
    reranker = Reranker.from_pretrained(world / "student")
    for name in ("dev", "rows"):
        expected = evaluate_groups(load_groups(str(world / f"{name}.jsonl")), reranker, metrics=["nDCG@10"])
        assert found[name, 6, "reranked"] == pytest.approx(expected["nDCG@10"], abs=1e-6)
        assert found[name, 3, "ceiling"] <= found[name, 6, "ceiling"] == 1.0

    code, printed, _ = call("evaluate", "--dataset", "dev.jsonl", "--metrics", "RR@10")
    assert code == 0 and printed.splitlines()[0].split() == ["first_stage", "depth", "found_share", "ranking", "RR@10"]


def test_export_writes_a_folder_and_says_how_it_is_served(call, world):
    line = ["export", "--model", "student", "--output_dir", "served"]
    code, printed, _ = call(*line, "--dry-run")
    assert code == 0 and "a classifier with one logit" in printed and not (world / "served").exists()

    code, printed, _ = call(*line)
    assert code == 0 and "vllm serve served" in printed and "text-embeddings-inference" in printed
    ours, theirs = (
        Reranker.from_pretrained(world / name).predict([("water", "map")]) for name in ("student", "served")
    )
    assert ours == pytest.approx(theirs)


PASSAGES = {
    "plain lines": "\n".join([TEXTS[0], "", *TEXTS[1:], ""]),
    "JSON texts": "\n".join(map(json.dumps, TEXTS)),
    "JSON objects": "\n".join(json.dumps({"passage": text, "id": f"p{i}"}) for i, text in enumerate(TEXTS)),
}


@pytest.mark.parametrize("kind", PASSAGES)
@pytest.mark.parametrize("source", ["file", "standard input"])
def test_rank_orders_passages_as_the_reranker_does(call, world, monkeypatch, kind, source):
    (world / "passages").write_text(PASSAGES[kind])
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSAGES[kind]))
    line = ["rank", "--model", "student", "--query", "water", "--top_k", "2"]
    line += ["--passages", "passages"] if source == "file" else []
    scores = Reranker.from_pretrained(world / "student").predict([("water", text) for text in TEXTS]).tolist()
    order = sorted(range(3), key=lambda place: -scores[place])[:2]

    code, printed, _ = call(*line, "--json")
    rows = [json.loads(row) for row in printed.splitlines()]
    assert code == 0 and [row["place"] for row in rows] == order and [row["rank"] for row in rows] == [1, 2]
    assert [row["text"] for row in rows] == [TEXTS[place] for place in order]
    assert [row["score"] for row in rows] == pytest.approx([scores[place] for place in order], abs=1e-5)
    if kind == "JSON objects":
        assert [row["id"] for row in rows] == [f"p{place}" for place in order]


def test_rank_prints_a_table_that_fits_the_terminal(call, world, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    (world / "passages").write_text("water " * 20)
    code, printed, _ = call("rank", "--model", "student", "--query", "fire", "--passages", "passages")

    assert code == 0 and len(printed.rstrip("\n")) == 40 and printed.rstrip().endswith("…")
    assert printed.split()[0] == "1" and printed.split()[2] == "water"


@pytest.mark.parametrize(
    ("text", "message"), [("\n \n", "found none"), ('{"id": 1}', r"line 1: expected one of \('text', 'passage'\)")]
)
def test_rank_refuses_a_file_without_passages(call, world, text, message):
    (world / "passages").write_text(text)
    code, _, told = call("rank", "--model", "student", "--query", "fire", "--passages", "passages")

    assert code == 2 and re.search(message, told)


COMPARE = """\
students: [student, {model: student, name: other, arguments: {learning_rate: 1e-4}}]
teacher: teacher
train: rows.jsonl
eval_sets: {dev: dev.jsonl, far: {bm25: dev.jsonl}}
out_of_domain: [far]
recipes: [cl, {name: soft, stages: [{method: distill, arguments: {teacher_temperature: 2.0}}]}]
seeds: 1
budget: {steps: 2}
args: {use_cpu: true, dataloader_pin_memory: false, per_device_train_batch_size: 4, passages_per_query: 4}
output_dir: compared
"""


@pytest.mark.slow
def test_compare_plans_compares_and_goes_on(call, world):
    (world / "compare.yaml").write_text(COMPARE)
    code, printed, _ = call("compare", "compare.yaml", "--dry-run")
    assert code == 0 and not (world / "compared").exists()
    assert "cells       7, seeds 0" in printed and "budget      2 steps of each recipe" in printed

    code, printed, _ = call("compare", "compare.yaml")
    assert code == 0 and "| other   | soft" in printed
    assert (world / "compared" / "report.html").exists()
    code, _, told = call("compare", "compare.yaml", "--budget", "{steps: 3}")
    assert code == 2 and "budget.steps: 2 in the folder, 3 asked" in told


@pytest.mark.slow
def test_compare_ends_with_1_where_cells_failed(call, world):
    broken = COMPARE.replace("{teacher_temperature: 2.0}", "{objective: kl, loss_options: {colour: 1}}")
    (world / "compare.yaml").write_text(broken.replace("student, {model", "{model").replace("name: other", "name: one"))
    code, printed, told = call("compare", "compare.yaml")

    assert code == 1 and "Traceback" not in told
    assert told.splitlines()[-1].startswith("rerank-trainer compare: 1 cell failed")
    assert "failed: one soft seed 0: ValueError" in printed and "| one     | cl" in printed
