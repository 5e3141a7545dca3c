"""A folder with two tiny rerankers and small files of groups, which is the current one; and the command line in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rerank_trainer.cli import main
from tests.trainers.conftest import small_reranker, word_groups

TRAIN = """\
model: student
train_dataset: rows.jsonl
output_dir: out
per_device_train_batch_size: 4
passages_per_query: 4
num_train_epochs: 1
learning_rate: 1e-3
eval_strategy: no
save_strategy: no
report_to: none
use_cpu: true
disable_tqdm: true
dataloader_pin_memory: false
"""


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("student", "teacher")):
        small_reranker(seed).save_pretrained(folder / name)
    for seed, (name, count) in enumerate({"rows.jsonl": 10, "dev.jsonl": 6}.items()):
        word_groups(count, seed=seed).to_json(folder / name)
    (folder / "train.yaml").write_text(TRAIN)
    return folder


@pytest.fixture
def world(made_once, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(world, capsys):
    """Runs a command line; gives its exit code, what it printed, and what stood on standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run
