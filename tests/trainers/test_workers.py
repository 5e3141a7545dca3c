"""Workers: they draw passages, tokenise and join, so that the training process does nothing of it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from rerank_trainer.data.collator import RerankCollator
from rerank_trainer.data.sampling import TrainGroups
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.trainers.conftest import small_reranker, word_groups

WORKERS = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}


@pytest.fixture
def only_workers(monkeypatch):
    """Once called, lets this process neither read groups, nor join rows, nor tokenise."""
    own = os.getpid()

    def forbid(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def guarded(*args: Any, **options: Any) -> Any:
            assert os.getpid() != own, f"{kind.__name__}.{name} ran in the training process"
            return method(*args, **options)

        monkeypatch.setattr(kind, name, guarded)

    def forbid_all(trainer: ContrastiveRerankTrainer) -> None:
        forbid(TrainGroups, "__getitem__")
        forbid(RerankCollator, "__call__")
        forbid(type(trainer.reranker.tokenizer), "_encode_plus")

    return forbid_all


def test_the_training_process_neither_reads_nor_joins_nor_tokenises(make_args, only_workers):
    args = make_args(**WORKERS, verify_checkpoints="never", num_train_epochs=2)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    only_workers(trainer)
    trainer.train()

    assert trainer.state.global_step == 4


def test_without_workers_it_does_all_of_it_and_is_seen_doing_so(make_args, only_workers):
    args = make_args(verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    only_workers(trainer)

    with pytest.raises(AssertionError, match="TrainGroups.__getitem__ ran in the training process"):
        trainer.train()
    with pytest.raises(AssertionError, match="_encode_plus ran in the training process"):
        trainer.reranker.tokenizer("water")
