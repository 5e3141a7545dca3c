"""Where models are put."""

import pytest
import torch
from datasets import Dataset

from rerank_trainer import ContrastiveRerankTrainer, Reranker, RerankTrainingArguments
from rerank_trainer.models import placement
from tests.tiny_models import tiny_model

ROWS = Dataset.from_dict({"query": ["one"], "passages": [["one two", "three"]], "labels": [[1.0, 0.0]]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    for part in tiny_model("bert"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def accelerator(monkeypatch):
    """A device that every machine has and that is not the CPU."""
    monkeypatch.setattr(placement, "own_device", lambda: torch.device("meta"))
    return torch.device("meta")


def test_a_process_takes_the_accelerator_of_its_rank(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert placement.own_device() == torch.device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert placement.own_device() == torch.device("cuda:3")
    monkeypatch.setenv("LOCAL_RANK", "5")  # more processes than devices
    assert placement.own_device() == torch.device("cuda:1")


def test_a_reranker_is_opened_on_the_accelerator_unless_told_otherwise(folder, accelerator):
    assert Reranker.from_pretrained(folder).model.device == accelerator
    assert Reranker.from_pretrained(folder, device="cpu").model.device == torch.device("cpu")


def test_a_model_with_a_device_map_stays_where_that_says(folder, accelerator):
    reranker = Reranker.from_pretrained(folder, device_map={"": "cpu"})
    assert reranker.model.device == torch.device("cpu")


def test_a_trainer_opens_its_student_on_the_cpu(folder, tmp_path, accelerator):
    args = RerankTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[])
    trainer = ContrastiveRerankTrainer(folder, args, train_dataset=ROWS)
    assert trainer.model.device == torch.device("cpu")
