"""Balance: which groups the trainer lets processes exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rerank_trainer.data.balance import BalancedSampler
from rerank_trainer.data.sampling import EpochSampler
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.trainers.conftest import small_reranker, word_groups

ONE_SOURCE = {"batch_sources": "one"}
SPLIT = {"accelerator_config": {"split_batches": True}}


@pytest.fixture
def sampler_of(make_args, monkeypatch) -> Callable[..., Any]:
    """The sampler of a trainer that believes to be one of so many processes."""

    def make(num_processes: int, *, train_dataset: Any = None, **options: Any) -> Any:
        rows = word_groups(21) if train_dataset is None else train_dataset
        trainer = ContrastiveRerankTrainer(small_reranker(), make_args(**options), train_dataset=rows)
        monkeypatch.setattr(RerankTrainingArguments, "world_size", num_processes)
        return trainer._get_train_sampler()

    return make


def settings(sampler: BalancedSampler) -> tuple[int, int, int, int]:
    return sampler.num_processes, sampler.batch_size, sampler.run_size, sampler.batches_per_step


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2, 4, 1, 1)),
        ({"gradient_accumulation_steps": 3}, (2, 4, 1, 3)),
        (SPLIT, (2, 2, 1, 1)),
        (ONE_SOURCE, (2, 4, 4, 1)),
        ({**ONE_SOURCE, **SPLIT}, (2, 2, 1, 1)),  # the batch of 4 that both split is of one source
    ],
)
def test_processes_exchange_what_keeps_each_batch_what_it_is(sampler_of, options, expected):
    sampler = sampler_of(2, train_dataset={"a": word_groups(12), "b": word_groups(8, seed=1)}, **options)

    assert settings(sampler) == expected
    assert len(sampler) % (expected[0] * expected[1]) == 0


def test_groups_come_as_they_are_in_one_process_or_when_asked(sampler_of):
    assert type(sampler_of(1)) is EpochSampler
    assert type(sampler_of(2, balance_processes=False)) is EpochSampler


def test_a_last_batch_that_is_dropped_is_not_filled_up(sampler_of):
    assert (len(sampler_of(2)), len(sampler_of(2, dataloader_drop_last=True))) == (24, 21)


def test_a_stream_is_not_exchanged(sampler_of):
    assert sampler_of(2, train_dataset=word_groups(21).to_iterable_dataset(), max_steps=2) is None
