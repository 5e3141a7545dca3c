"""Pushes: what stands on the Hub after each, who opens it, and how a run goes on from there."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from rerank_trainer.models.families import FAMILIES
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.hub.cases import (
    LOADER_FILES,
    MARK,
    SHORT,
    STATE,
    arguments,
    assert_same,
    by_sentence_transformers,
    by_transformers,
    by_us,
    case,
    pushed,
    train_set,
    trained,
    warnings_kept,
)
from tests.hub.server import HUB, OTHER, WRITER
from tests.tiny_language_models import tiny_language_model
from tests.tiny_models import tiny_recurrent_model
from tests.trainers.conftest import small_reranker


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
    reranker = Reranker.from_pretrained(folder / "base").with_adapter(LoraConfig(r=4))
    with warnings_kept() as lines:
        reranker.push_to_hub("me/homesick")

    (line,) = lines
    assert str(folder / "base") in line and "Push the base first" in line


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


class StopAt(TrainerCallback):
    """Ends the training after a step, as if the machine were taken away then."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


@case
def test_a_run_resumed_from_the_hub_ends_with_the_weights_of_the_whole_run(folder: Path) -> None:
    start = small_reranker(spread=0.3)
    start.model.config.hidden_dropout_prob = 0.2  # so that the state of chance matters
    start.push_to_hub("me/restless")
    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "hub_strategy": "checkpoint", "hub_revision": "runs"}

    def begun(place: str, name: str, *, lora: bool) -> ContrastiveRerankTrainer:
        args = arguments(folder / place, name, **options)
        return ContrastiveRerankTrainer("me/restless", args, train_dataset=train_set(), lora=lora)

    for name, lora in {"half": False, "half-adapter": True}.items():
        whole = begun("whole", f"{name}-whole", lora=lora)
        whole.train()
        half = begun("first", name, lora=lora)
        half.add_callback(StopAt(2))
        half.train()
        again = begun("second", name, lora=lora)
        again.train(resume_from_checkpoint=f"hf://me/{name}@runs")

        assert half.state.global_step == 2 and again.state.global_step == 4
        expected, found = whole.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert not all(torch.equal(expected[key], value) for key, value in half.model.state_dict().items())


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


# --- the page --------------------------------------------------------------------------------------------------------


@case
def test_the_code_of_the_page_runs_as_printed(folder: Path) -> None:
    name = "cross-encoder/ms-marco-MiniLM-L6-v2"
    small_reranker(spread=0.3).push_to_hub("me/their-model")
    HUB.repositories[name] = HUB.repositories.pop("me/their-model")
    train_set().to_json(folder / "train.jsonl")
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    space: dict[str, Any] = {}
    with contextlib.chdir(folder):
        for block in blocks:
            exec(block, space)

    assert len(blocks) == 5
    repository = HUB.repositories["me/my-reranker"]
    assert repository.private and set(repository.branches) == {"main", "v2"}
    pairs = {"convert_to_tensor": True, "show_progress_bar": False}
    assert_same(space["cross_encoder"].predict(SHORT, **pairs).cpu(), space["reranker"].predict(SHORT))
    assert "adapter_model.safetensors" in HUB.files("me/my-adapter")
