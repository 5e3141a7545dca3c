"""Failures: refused, broken off and forbidden pushes leave the model whole and say what to do."""

from __future__ import annotations

import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.hub.cases import SHORT, arguments, assert_same, by_us, case, pushed, train_set, trained, warnings_kept
from tests.hub.server import CUT, HUB, READER, WRITER
from tests.trainers.conftest import small_reranker

FAULTS = {
    ("preupload", 401): r"\(401.*Give a token with write access, by `hf auth login` or the variable HF_TOKEN",
    ("preupload", 403): r"\(403.*to that namespace; or choose a repository under your own name",
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
    command = shlex.split(str(caught.value).partition(", or by ")[2])
    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True, capture_output=True)
    assert_same(by_us("me/unlucky"), expected)
    trainer.push_to_hub()
    assert len(pushed("unlucky")) == 1  # it was there already


@case
def test_a_model_that_nobody_saved_is_saved_before_the_hub_is_asked(folder: Path) -> None:
    for step, options in {"create": {}, "branch": {"revision": "v2"}}.items():
        trainer = trained(folder, f"unsaved-{step}", push_to_hub=False, save_strategy="no")
        assert not list((folder / f"unsaved-{step}").glob("*.safetensors"))
        with HUB.failing(step, 403), pytest.raises(OSError, match=rf"'me/unsaved-{step}' failed: \(403.*is whole in"):
            trainer.push_to_hub(**options)
        assert_same(by_us(str(folder / f"unsaved-{step}")), trainer.reranker.predict(SHORT))
        trainer.push_to_hub(**options)
        assert_same(by_us(f"me/unsaved-{step}", **options), trainer.reranker.predict(SHORT))


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
        with pytest.raises(
            OSError, match=rf"making the repository '{owner}/nowhere' failed: \(403.*under your own name"
        ):
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
