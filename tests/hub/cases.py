"""Cases on the Hub on loopback: each is a test of ``test_hub.py``, and its name the sentence; ``start.py`` runs them."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from rerank_trainer.models.families import FAMILIES
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.hub.server import CUT, HUB, OTHER, READER, WRITER
from tests.tiny_language_models import tiny_language_model
from tests.tiny_models import PAIRS, tiny_recurrent_model
from tests.trainers.conftest import SILENT, small_reranker, word_groups

MARK = "zirconquail"  # a word that only the training texts hold
SHORT = PAIRS[:6]
LOADER_FILES = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer.json"}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}

CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Count a function among the cases, under its name."""
    CASES[function.__name__] = function
    return function


def arguments(folder: Path, name: str, **options: Any) -> RerankTrainingArguments:
    """Two steps, each saved and pushed to ``me/<name>``, unless the options say otherwise."""
    ours = {"push_to_hub": True, "hub_model_id": f"me/{name}", "hub_always_push": True, "verify_checkpoints": "never"}
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "passages_per_query": 4}
    return RerankTrainingArguments(
        str(folder / name), **{**SILENT, "logging_strategy": "no", **steps, **ours, **options}
    )


def train_set() -> Any:
    return word_groups(16).map(lambda row: {"passages": [f"{text} {MARK}" for text in row["passages"]]})


def trained(
    folder: Path, name: str, reranker: Any = None, *, callbacks: Any = None, lora: bool = False, **options: Any
) -> RerankTrainer:
    """A trainer after ``train()``."""
    reranker = reranker or small_reranker(spread=0.3)
    args = arguments(folder, name, **options)
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=train_set(), callbacks=callbacks, lora=lora)
    trainer.train()
    return trainer


def pushed(name: str) -> list[tuple[str, set[str]]]:
    """Message of each commit, and the files that stood at the root after it."""
    return [
        (commit.message, {path for path in commit.files if "/" not in path})
        for commit in HUB.repositories[f"me/{name}"].commits
    ]


def by_sentence_transformers(name: str, **options: Any) -> torch.Tensor:
    return CrossEncoder(name, device="cpu", **options).predict(SHORT, convert_to_tensor=True, show_progress_bar=False)


def by_transformers(name: str, **options: Any) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(name, **options).eval()
    texts = AutoTokenizer.from_pretrained(name)(
        *map(list, zip(*SHORT)), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**texts).logits[:, 0]


def by_us(name: str, **options: Any) -> torch.Tensor:
    return Reranker.from_pretrained(name, **options).predict(SHORT)


def assert_same(scores: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


class Keeper(logging.Handler):
    """Keeps the warnings of our own loggers."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
    keeper, logger = Keeper(), logging.getLogger("rerank_trainer")
    logger.addHandler(keeper)
    try:
        yield keeper.lines
    finally:
        logger.removeHandler(keeper)


class StopAt(TrainerCallback):
    """Ends the training after a step, as if the machine were taken away then."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


# --- what is pushed --------------------------------------------------------------------------------------------------


@case
def test_each_strategy_pushes_what_transformers_says_and_every_file_each_time(folder: Path) -> None:
    one, two = "Training in progress, step 1", "Training in progress, step 2"
    expected = {
        "end": [],
        "every_save": [one, two],
        "checkpoint": [one, f"{one}, checkpoint", two, f"{two}, checkpoint"],
        "all_checkpoints": [one, f"{one}, checkpoint", two, f"{two}, checkpoint"],
    }
    for strategy, messages in expected.items():
        trainer = trained(folder, strategy, hub_strategy=strategy)
        assert [message for message, _ in pushed(strategy)] == messages
        trainer.push_to_hub()
        commits = pushed(strategy)
        assert [message for message, _ in commits] == [*messages, "End of training"]
        for _, names in commits:
            assert LOADER_FILES | {"config.json", "model.safetensors", "training_args.bin"} <= names
            assert not names & STATE
        folders = {path.rpartition("/")[0] for path in HUB.files(f"me/{strategy}")} - {""}
        kept = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
        assert folders == kept.get(strategy, set())
        for path in folders:
            assert {f"{path}/{name}" for name in STATE | LOADER_FILES} <= set(HUB.files(f"me/{strategy}"))


@case
def test_every_kind_of_model_is_whole_at_the_root_after_each_push(folder: Path) -> None:
    family = FAMILIES["qwen3-reranker"]
    language_model = Reranker(
        *tiny_language_model("qwen3", spread=0.1), head=family.head, prompt=family.prompt, max_length=160
    )
    backbone, tokenizer = tiny_recurrent_model("mamba", spread=0.1)
    backbone.save_pretrained(folder / "mamba")
    tokenizer.save_pretrained(folder / "mamba")
    kinds = {
        "prompted": (language_model, {"1_LogitScore/config.json", "chat_template.jinja"}),
        "chain": (Reranker.from_pretrained(folder / "mamba", max_length=48), {"2_Dense/model.safetensors"}),
    }
    for name, (reranker, files) in kinds.items():
        trained(folder, name, reranker, max_steps=1)
        checkpoint = folder / name / "checkpoint-1"
        written = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
        (commit,) = HUB.repositories[f"me/{name}"].commits
        assert files <= written and written - STATE <= set(commit.files)
        assert_same(by_sentence_transformers(f"me/{name}"), reranker.predict(SHORT))
        assert_same(by_us(f"me/{name}"), reranker.predict(SHORT))


@case
def test_a_pushed_model_scores_the_same_in_every_loader(folder: Path) -> None:
    trainer = trained(folder, "same")
    expected = trainer.reranker.predict(SHORT)

    for scores in (by_us, by_sentence_transformers, by_transformers):
        assert_same(scores("me/same"), expected)
    first = Reranker.from_pretrained(folder / "same" / "checkpoint-1").predict(SHORT)
    (commit, _) = HUB.repositories["me/same"].commits
    for scores in (by_us, by_sentence_transformers):
        assert_same(scores("me/same", revision=commit.oid), first)
    assert (first - expected).abs().max() > 1e-3


@case
def test_a_private_repository_and_a_branch_are_made_and_opened_with_a_token(folder: Path) -> None:
    options = {"hub_private_repo": True, "hub_revision": "v2/small", "hub_token": WRITER}
    trainer = trained(folder, "private", **options)
    trainer.push_to_hub()

    repository = HUB.repositories["me/private"]
    assert repository.private and set(repository.branches["main"].files) == {".gitattributes"}
    assert [commit.branch for commit in repository.commits] == ["v2/small"] * 3
    expected = trainer.reranker.predict(SHORT)
    for scores in (by_us, by_sentence_transformers):
        assert_same(scores("me/private", revision="v2/small"), expected)  # with HF_TOKEN
    assert_same(by_us("me/private", revision="v2/small", token=WRITER), expected)
    with pytest.raises(OSError, match="me/private"):
        by_us("me/private", revision="v2/small", token=OTHER, force_download=True)


@case
def test_no_token_and_no_training_text_is_pushed(folder: Path) -> None:
    trained(folder, "secrets", hub_strategy="all_checkpoints", hub_token=WRITER).push_to_hub()

    commits = HUB.repositories["me/secrets"].commits
    contents = [content for commit in commits for content in commit.files.values()]
    assert any(b"push_to_hub" in content for content in contents)  # the arguments are there
    for secret in (WRITER, MARK):
        assert not [content for content in contents if secret.encode() in content]


@case
def test_a_push_that_has_not_ended_lets_the_next_save_pass_or_makes_it_wait(folder: Path) -> None:
    class Release(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            HUB.released.set()

    HUB.released.clear()
    trained(folder, "passes", hub_always_push=False, callbacks=[Release()], max_steps=3)
    assert [message for message, _ in pushed("passes")] == ["Training in progress, step 1"]

    for name, options in {"waits": {}, "limited": {"hub_always_push": False, "save_total_limit": 1}}.items():
        HUB.released.clear()
        threading.Timer(0.5, HUB.released.set).start()
        trained(folder, name, hub_strategy="all_checkpoints", **options)
        states = [f"checkpoint-{step}/trainer_state.json" for step in (1, 2)]
        assert set(states) <= set(HUB.files(f"me/{name}"))
        for step, commit in zip((1, 2), HUB.repositories[f"me/{name}"].commits[::2], strict=True):
            weights = HUB.files(f"me/{name}")[f"checkpoint-{step}/model.safetensors"]
            assert commit.files["model.safetensors"] == weights


# --- rerankers, adapters, students and teachers by their names -----------------------------------------------------------


@case
def test_a_reranker_is_pushed_without_a_trainer(folder: Path) -> None:
    reranker = small_reranker(spread=0.3)
    address = reranker.push_to_hub("me/alone", private=True, revision="dev", commit_message="First", token=WRITER)

    repository = HUB.repositories["me/alone"]
    (commit,) = repository.commits
    assert repository.private and address.endswith(commit.oid)
    assert (commit.branch, commit.message) == ("dev", "First")
    assert LOADER_FILES | {"config.json", "model.safetensors"} <= set(commit.files)
    assert_same(by_us("me/alone", revision="dev"), reranker.predict(SHORT))


@case
def test_an_adapter_is_pushed_alone_and_opens_on_its_base_from_the_hub(folder: Path) -> None:
    small_reranker(spread=0.3).push_to_hub("me/base")
    with warnings_kept() as lines:
        trainer = trained(folder, "adapter", "me/base", lora=True, learning_rate=0.05)
    assert lines == []
    expected = trainer.reranker.predict(SHORT)

    for _, names in pushed("adapter"):
        assert {"adapter_config.json", "adapter_model.safetensors"} | LOADER_FILES <= names
        assert not names & {"model.safetensors", "config.json"}
    files = HUB.files("me/adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert "base_digest" in json.loads(files["config_sentence_transformers.json"])["rerank_trainer"]
    assert (by_us("me/base") - expected).abs().max() > 1e-3
    for scores in (by_us, by_sentence_transformers):
        assert_same(scores("me/adapter"), expected)
    assert_same(by_transformers("me/adapter", num_labels=1), expected)


@case
def test_an_adapter_on_a_folder_of_this_machine_is_pushed_with_a_warning(folder: Path) -> None:
    small_reranker().save_pretrained(folder / "base")
    reranker = Reranker.from_pretrained(folder / "base").with_adapter(lora_config())
    with warnings_kept() as lines:
        reranker.push_to_hub("me/homesick")

    (line,) = lines
    assert str(folder / "base") in line and "Push the base first" in line


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4)


@case
def test_student_and_teacher_are_opened_by_their_names(folder: Path) -> None:
    small_reranker(spread=0.3).push_to_hub("me/student")
    teacher = small_reranker(seed=1, spread=0.3)
    teacher.push_to_hub("me/teacher", private=True)
    args = arguments(folder, "taught", push_to_hub=False, check_teacher=False, teacher_cache_dir=str(folder / "scores"))
    trainer = DistillRerankTrainer("me/student", args, teacher="me/teacher", train_dataset=train_set())
    trainer.train()

    row = trainer.train_dataset.groups[0]
    expected = teacher.predict([(row["query"], passage) for passage in row["passages"]])
    torch.testing.assert_close(torch.tensor(row["teacher_scores"]), expected, atol=1e-5, rtol=0)


# --- resuming --------------------------------------------------------------------------------------------------------


def restless_reranker() -> Reranker:
    reranker = small_reranker(spread=0.3)
    for module in reranker.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return reranker


@case
def test_a_run_resumed_from_the_hub_ends_with_the_weights_of_the_whole_run(folder: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "hub_strategy": "checkpoint", "hub_revision": "runs"}
    whole = trained(folder, "whole", restless_reranker(), **options)
    trained(folder, "half", restless_reranker(), callbacks=[StopAt(2)], **options)
    again = ContrastiveRerankTrainer(
        restless_reranker(), arguments(folder / "fresh", "half", **options), train_dataset=train_set()
    )
    again.train(resume_from_checkpoint="hf://me/half@runs")

    assert again.state.global_step == 4
    expected, found = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    stored = load(HUB.files("me/half", "runs")["last-checkpoint/model.safetensors"])
    assert all(torch.equal(expected[name], value) for name, value in stored.items())


@case
def test_an_address_without_a_checkpoint_is_refused_with_the_form_of_one(folder: Path) -> None:
    small_reranker().push_to_hub("me/empty")
    trainer = ContrastiveRerankTrainer(
        small_reranker(), arguments(folder, "empty", push_to_hub=False), train_dataset=train_set()
    )
    for address, text in {
        "hf://me/empty": "me/empty has no folder 'last-checkpoint'",
        "hf://me": "Write the folder of a repository as hf://namespace/name/last-checkpoint",
    }.items():
        with pytest.raises(ValueError, match=text):
            trainer.train(resume_from_checkpoint=address)
    with pytest.raises(OSError, match=r"download of hf://me/nothing failed: \(404.*there is no such repository"):
        trainer.train(resume_from_checkpoint="hf://me/nothing")


# --- failures --------------------------------------------------------------------------------------------------------

FAULTS = {
    ("preupload", 401): r"\(401.*hf auth login.*HF_TOKEN.*write access",
    ("preupload", 403): r"\(403.*write access to that name, or choose a repository under a name of your own",
    ("batch", 503): r"the Hub itself is in trouble \(503.*Try again later",
    ("put", CUT): r"the connection to the Hub broke \(RemoteProtocolError.*Try again",
    ("put", 500): r"in trouble \(500",
    ("verify", 500): r"in trouble \(500",
    ("commit", 409): r"\(409.*at the same time. Try again",
    ("commit", 502): r"in trouble \(502",
    ("commit", CUT): r"the connection to the Hub broke",
}


@case
def test_a_push_that_fails_leaves_the_folder_whole_and_says_what_to_do(folder: Path) -> None:
    trainer = trained(folder, "unlucky", hub_strategy="end")
    expected = trainer.reranker.predict(SHORT)
    for number, ((step, fault), reason) in enumerate(FAULTS.items()):
        with torch.no_grad():  # so that the storage lacks the weights each time
            trainer.model.bert.embeddings.word_embeddings.weight[-1] += 1 + number
        with (
            HUB.failing(step, fault),
            pytest.raises(OSError, match=rf"the push to 'me/unlucky' failed: .*{reason}") as caught,
        ):
            trainer.push_to_hub()
        for remedy in (f"is whole in {folder / 'unlucky'}", "trainer.push_to_hub()", f"hf upload me/unlucky {folder}"):
            assert remedy in str(caught.value)
        assert WRITER not in "".join(traceback.format_exception(caught.value))
        assert_same(by_us(str(folder / "unlucky")), expected)
    assert pushed("unlucky") == []
    trainer.push_to_hub()
    assert_same(by_us("me/unlucky"), expected)


@case
def test_a_push_that_fails_in_training_is_warned_of_and_training_goes_on(folder: Path) -> None:
    for step, fault in {"preupload": 403, "commit": CUT}.items():
        with HUB.failing(step, fault), warnings_kept() as lines:
            trainer = trained(folder, f"warned-{step}", hub_strategy="checkpoint")
        assert trainer.state.global_step == 2 and (folder / f"warned-{step}" / "checkpoint-2").is_dir()
        assert len(lines) == 4  # two pushes of two steps
        assert all(
            f"a push to 'me/warned-{step}' failed: " in line and "trainer.push_to_hub()" in line for line in lines
        )
        trainer.push_to_hub()
        assert_same(by_us(f"me/warned-{step}"), trainer.reranker.predict(SHORT))


@case
def test_a_repository_that_cannot_be_made_ends_the_run_before_training(folder: Path) -> None:
    def start(token: str | None, owner: str = "me") -> None:
        args = arguments(folder, "nowhere", hub_model_id=f"{owner}/nowhere", hub_token=token)
        ContrastiveRerankTrainer(small_reranker(), args, train_dataset=train_set())

    with pytest.raises(OSError, match=r"making the repository 'me/nowhere' failed: \(401.*hf auth login"):
        start("hf_unknown")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=r"\(401.*was given none"):
        patch.delenv("HF_TOKEN")
        start(None)
    for token, owner in ((READER, "me"), (WRITER, "you")):
        with pytest.raises(OSError, match=rf"making the repository '{owner}/nowhere' failed: \(403.*name of your own"):
            start(token, owner)
    for fault, reason in {503: "in trouble", CUT: "connection"}.items():
        with HUB.failing("create", fault), pytest.raises(OSError, match=f"'me/nowhere' failed: .*{reason}"):
            start(WRITER)
    assert not {"me/nowhere", "you/nowhere"} & set(HUB.repositories)
    with pytest.raises(OSError, match=r"the push to 'you/nowhere' failed: \(403"):
        small_reranker().push_to_hub("you/nowhere")


@case
def test_a_repository_that_is_there_is_pushed_to_although_none_may_be_made(folder: Path) -> None:
    small_reranker().push_to_hub("me/there")
    with HUB.failing("create", 403):
        trainer = trained(folder, "there")
    assert_same(by_us("me/there"), trainer.reranker.predict(SHORT))


def run_all(folder: Path) -> None:
    """Run every case in a folder of its own; ``outcomes.json`` has the traceback of each that failed."""
    outcomes, seconds = {}, {}
    for name, run in CASES.items():
        (folder / name).mkdir()
        start = time.perf_counter()
        try:
            run(folder / name)
            outcomes[name] = ""
        except BaseException:
            outcomes[name] = traceback.format_exc()
        seconds[name] = round(time.perf_counter() - start, 2)
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
    (folder / "seconds.json").write_text(json.dumps(seconds, indent=1))
