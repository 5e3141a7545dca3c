"""The Hub: pushing, downloading, resuming and failing over HTTP, each case of ``cases.py`` a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_trainer.models.checkpoint import copy_loader_files
from rerank_trainer.models.hub import hub_failure
from rerank_trainer.models.reranker import Reranker
from tests.hub import cases, failures, pushes  # noqa: F401  each adds its cases
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of each case: its traceback, or nothing."""
    folder = tmp_path_factory.mktemp("hub")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache")}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("start.py")), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CASES)
def test_on_the_hub(outcomes, name):
    assert outcomes[name] == ""


def test_a_name_that_the_hub_does_not_allow_is_refused():
    with pytest.raises(ValueError, match="repo_id='me/two--dashes' is no name of a repository"):
        Reranker(*tiny_model("bert")).push_to_hub("me/two--dashes")


def test_without_a_network_a_push_says_so():
    with pytest.raises(OSError, match="the push to 'me/offline' failed: HF_HUB_OFFLINE is set. Unset it."):
        Reranker(*tiny_model("bert")).push_to_hub("me/offline")


def test_code_that_a_model_came_with_goes_along(tmp_path):
    for name in ("from", "to"):
        Reranker(*tiny_model("bert")).save_pretrained(tmp_path / name)
    (tmp_path / "from" / "modeling_strange.py").write_text("class Strange: ...\n")
    copy_loader_files(tmp_path / "from", tmp_path / "to")

    assert (tmp_path / "to" / "modeling_strange.py").is_file()


def test_an_error_of_ones_own_is_not_blamed_on_the_hub():
    assert hub_failure(FileNotFoundError("model.safetensors")) is None
