"""Security: no code of others runs, no pickle of a checkpoint either, no secret and no training text gets into a file.

Pickled weights have a file of their own, ``tests/models/test_weight_files.py``.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from rerank_trainer.cli import main
from rerank_trainer.comparison.compare import compare
from rerank_trainer.data.formats import load_groups
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.models.test_weight_files import Trap
from tests.tiny_models import tiny_model
from tests.trainers.conftest import small_reranker, word_groups

MARK = "zirconquail"  # a word that only the training texts hold
SECRETS = {
    "hub_token": "hf_given1234",
    "HF_TOKEN": "hf_environment5678",
    "HUGGING_FACE_HUB_TOKEN": "hf_elder9012",
    "WANDB_API_KEY": "wandb3456",
}


def arguments(folder: Path, **options) -> RerankTrainingArguments:
    return RerankTrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        logging_steps=1,
        passages_per_query=2,
        per_device_train_batch_size=2,
        teacher_cache_dir=str(folder / "teacher_scores"),
        **options,
    )


class Keeper(logging.Handler):
    """Keeps every log line, of any library and level."""

    def __init__(self) -> None:
        super().__init__(level=logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder and the log lines of a run with secrets around it and marked texts in it."""
    folder = tmp_path_factory.mktemp("secrets")
    groups = word_groups(4).map(lambda row: {"passages": [f"{MARK} {text}" for text in row["passages"]]})
    keeper, root = Keeper(), logging.getLogger()
    transformers = logging.getLogger("transformers")
    levels = root.level, transformers.level
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            if name.isupper():
                patch.setenv(name, SECRETS[name])
        for logger in (root, transformers):
            logger.addHandler(keeper)
            logger.setLevel(logging.DEBUG)
        try:
            args = arguments(folder, hub_token=SECRETS["hub_token"], eval_strategy="steps", eval_steps=1)
            trainer = DistillRerankTrainer(
                small_reranker(), args, teacher=small_reranker(seed=1), train_dataset=groups, eval_dataset=groups
            )
            trainer.train()
            trainer.save_model()
            trainer.save_state()
            trainer.create_model_card(dataset="some/words")
            logging.getLogger("tests").info("%s %r", trainer.args, trainer.args)
        finally:
            for logger, level in zip((root, transformers), levels, strict=True):
                logger.removeHandler(keeper)
                logger.setLevel(level)
    return folder, keeper.lines


def files_holding(folder: Path, text: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"training_args.bin", "trainer_state.json", "README.md", "optimizer.pt"} <= {path.name for path in files}
    return [str(path.relative_to(folder)) for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_file_and_no_log_line_of_a_training_holds_a_secret(trained, secret):
    folder, lines = trained

    assert files_holding(folder, secret) == []
    assert len(lines) > 10 and not [line for line in lines if secret in line]


def test_no_training_text_stands_in_the_card_or_any_other_file(trained):
    folder, _ = trained

    assert files_holding(folder, MARK) == []
    assert files_holding(folder, "some/words") == ["out/README.md"]  # what was asked for does


@pytest.mark.slow
def test_a_comparison_writes_no_text_and_no_token(tmp_path):
    marked = word_groups(6).map(lambda row: {"query": f"{MARK} {row['query']}"})
    args = {"use_cpu": True, "dataloader_pin_memory": False, "per_device_train_batch_size": 2, "passages_per_query": 2}
    args["hub_token"] = SECRETS["hub_token"]
    given = {"recipes": ["cl", "kd"], "seeds": 1, "budget": {"steps": 1}, "args": args, "output_dir": tmp_path}
    comparison = compare({"a": small_reranker()}, small_reranker(1), marked, {"dev": marked}, **given)

    assert not comparison.results.failures
    written = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"report.html", "compare.json", "dev.parquet", "table.csv"} <= written.keys()
    for secret in (MARK, SECRETS["hub_token"]):
        assert [name for name, content in written.items() if secret.encode() in content] == []


def test_a_comparison_refuses_a_token_before_it_writes_anything(tmp_path):
    student = {"model": "some/model", "arguments": {"model_init_kwargs": {"token": "hf_given1234"}}}
    groups, given = word_groups(4), {"recipes": ["cl"], "budget": {"steps": 1}, "output_dir": tmp_path / "out"}

    with pytest.raises(ValueError, match="'token'") as refused:
        compare(student, None, groups, {"dev": groups}, **given)
    assert "hf_given1234" not in str(refused.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [str, repr, "to_dict", "to_json_string", "to_sanitized_dict"], ids=str)
def test_arguments_show_no_token(tmp_path, form):
    args = arguments(tmp_path, hub_token="hf_given1234")

    shown = str(getattr(args, form)()) if isinstance(form, str) else form(args)
    assert "hf_given1234" not in shown and "HUB_TOKEN" in shown


@pytest.mark.parametrize("options", [{"token": "hf_given1234"}, '{"use_auth_token": "hf_given1234"}'], ids=type)
def test_a_token_among_the_models_options_is_refused_and_not_shown(tmp_path, options):
    with pytest.raises(ValueError, match="model_init_kwargs hold '(token|use_auth_token)'.*HF_TOKEN") as caught:
        arguments(tmp_path, model_init_kwargs=options)
    assert "hf_given1234" not in str(caught.value)


def test_a_token_given_for_loading_is_kept_nowhere(tmp_path):
    Reranker(*tiny_model("bert")).save_pretrained(tmp_path / "first")
    Reranker.from_pretrained(tmp_path / "first", token="hf_given1234").save_pretrained(tmp_path / "second")

    assert not [path for path in (tmp_path / "second").iterdir() if b"hf_given1234" in path.read_bytes()]


@pytest.mark.parametrize("load", [Reranker.from_pretrained, load_groups])
def test_errors_of_loading_show_no_token(load, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises((OSError, ValueError)) as caught:  # the hub is not there
        load("nobody/nothing", token="hf_given1234")

    texts, error = caplog.messages, caught.value
    while error is not None:
        texts = [*texts, repr(error), str(error)]
        error = error.__cause__ or error.__context__
    assert not [text for text in texts if "hf_given1234" in text]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    ContrastiveRerankTrainer(small_reranker(), arguments(folder), train_dataset=word_groups(4)).train()
    return folder / "out" / "checkpoint-1"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "write",
    [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))],
    ids=["by torch", "bare"],
)
def test_resuming_runs_no_code_of_a_checkpoints_pickles(checkpoint, tmp_path, name, write):
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    if name == "pytorch_model.bin":
        (copy / "model.safetensors").unlink()
    write({"state": Trap(tmp_path / "ran")}, copy / name)
    trainer = ContrastiveRerankTrainer(small_reranker(), arguments(tmp_path), train_dataset=word_groups(4))

    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        trainer.train(resume_from_checkpoint=str(copy))
    assert not (tmp_path / "ran").exists()


def test_resuming_does_not_open_the_checkpoints_arguments(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    torch.save(Trap(tmp_path / "ran"), copy / "training_args.bin")
    trainer = ContrastiveRerankTrainer(small_reranker(), arguments(tmp_path), train_dataset=word_groups(4))
    trainer.train(resume_from_checkpoint=str(copy))

    assert trainer.state.global_step == 2
    assert not (tmp_path / "ran").exists()


def plant_code(folder: Path, file: str) -> Path:
    """A reranker's folder of which ``file`` asks for code beside it; returns what that code would create."""
    Reranker(*tiny_model("bert")).save_pretrained(folder)
    ran = folder / "ran"
    content = json.loads((folder / file).read_text())
    if file == "config.json":
        content.update(model_type="strange", auto_map={"AutoConfig": "strange.Strange"})
    else:
        content.update(tokenizer_class="Strange", auto_map={"AutoTokenizer": ["strange.Strange", "strange.Strange"]})
    (folder / file).write_text(json.dumps(content))
    (folder / "strange.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Strange: ...\n")
    return ran


def load_as_model(folder: Path) -> None:
    Reranker.from_pretrained(folder)


def load_as_teacher(folder: Path) -> None:
    DistillRerankTrainer(small_reranker(), arguments(folder), teacher=folder, train_dataset=word_groups(4))


@pytest.mark.parametrize("load", [load_as_model, load_as_teacher])
def test_code_of_a_model_or_a_teacher_does_not_run_unless_asked(tmp_path, load):
    ran = plant_code(tmp_path, "config.json")

    with pytest.raises(ValueError, match="trust_remote_code"):
        load(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_as_model, load_as_teacher])
def test_code_of_a_tokenizer_does_not_run_unless_asked(tmp_path, load):
    ran = plant_code(tmp_path, "tokenizer_config.json")
    load(tmp_path)  # Transformers has a tokenizer of its own for this kind of model, and takes it

    assert not ran.exists()


def test_the_planted_code_runs_when_asked_so_that_the_test_above_can_fail(tmp_path):
    ran = plant_code(tmp_path, "tokenizer_config.json")
    with pytest.raises(AttributeError):  # it is no tokenizer
        Reranker.from_pretrained(tmp_path, trust_remote_code=True)

    assert ran.exists()


@pytest.mark.parametrize("source", ["rows", "rows/rows.py"])
def test_a_loading_script_beside_the_data_does_not_run(tmp_path, source):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "rows" / "rows.csv").write_text("query,positive\na,b\n")

    with pytest.raises(Exception, match="cripts are no longer supported|found the ending '.py'"):
        load_groups(os.path.join(tmp_path, source))
    assert not (tmp_path / "ran").exists()


def test_a_tag_in_a_file_of_the_command_line_runs_no_code(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: !!python/object/apply:builtins.open ['{tmp_path / 'ran'}', w]")

    assert main(["rank", str(config)]) == 2
    assert "could not determine a constructor for the tag" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "hf_given1234",
        "train_dataset: {source: x, token: hf_given1234, slpit: y}",
        "train_dataset: {token: hf_given1234}",
        "train_dataset: [hf_given1234]",
        "train_dataset: {token: hf_given1234",
        "token: hf_given1234",
        "hub_token: hf_given1234\npassages_per_query: 1",
        "model_init_kwargs: {token: hf_given1234}",
    ],
)
def test_what_the_command_line_refuses_shows_no_token(tmp_path, text, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: nowhere\noutput_dir: {tmp_path}\n{text}" if ":" in text else text)

    assert main(["train", str(config), "--train_dataset", "rows.jsonl"][: 2 if "train_dataset" in text else 4]) == 2
    assert "hf_given1234" not in "".join(capsys.readouterr())
