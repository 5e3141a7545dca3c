"""Micro-batches: every row in one of them, within the budget, with as few tokens as any cut has; and their padding."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.data.templates import Row
from rerank_trainer.models.micro_batches import micro_batches, pad_spans, row_starts

ROWS = lay_rows(
    [Row([5, 6, 7], [0, 0, 1], 2), Row([8], [0], 1), Row([9, 10], [0, 1], 1)], cells=[(0, 0), (0, 1), (1, 0)]
)


def lognormal_lengths(num_rows, seed=0):
    chance = random.Random(seed)
    return [max(4, min(256, round(chance.lognormvariate(4.1, 0.55)))) for _ in range(num_rows)]


def padded_tokens(lengths, plan):
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)


def test_every_row_is_in_one_micro_batch_within_the_budget():
    lengths = [random.Random(0).randint(1, 200) for _ in range(300)]
    plan = micro_batches(lengths, max_tokens=512)

    assert sorted(index for batch in plan for index in batch) == list(range(300))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 512 for batch in plan)


def test_a_row_longer_than_the_budget_runs_alone():
    assert micro_batches([3, 700, 4], max_tokens=64) == [[1], [2, 0]]


def test_no_rows_make_no_micro_batch():
    assert micro_batches([], max_tokens=64) == []


@pytest.mark.parametrize("overhead", [0, 7, 50])
def test_no_cut_in_order_of_length_costs_less(overhead):
    lengths = sorted((random.Random(overhead).randint(1, 60) for _ in range(14)), reverse=True)

    @cache
    def least(start):  # tries every place where the micro-batch that begins at `start` can end
        if start == len(lengths):
            return 0
        ends = (end for end in range(start + 1, len(lengths) + 1) if lengths[start] * (end - start) <= 128)
        return min(lengths[start] * (end - start) + overhead + least(end) for end in ends)

    plan = micro_batches(lengths, max_tokens=128, overhead=overhead)
    assert padded_tokens(lengths, plan) + overhead * len(plan) == least(0)


@pytest.mark.parametrize("seed", range(5))
def test_less_than_a_twentieth_of_lognormal_lengths_is_padding(seed):
    lengths = lognormal_lengths(64, seed)
    padded = padded_tokens(lengths, micro_batches(lengths, max_tokens=1024))

    assert 1 - sum(lengths) / padded < 0.05
    assert padded < 0.5 * len(lengths) * max(lengths)  # what one padded batch would run


def pad(chosen, side, pad_token_id):
    index = torch.tensor(chosen)
    return pad_spans(
        ROWS, row_starts(ROWS)[index], ROWS["lengths"][index], pad_token_id=pad_token_id, padding_side=side
    )


def test_rows_are_padded_on_the_right():
    padded = pad([0, 1], "right", 0)

    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_rows_are_padded_on_the_left():
    padded = pad([2, 0], "left", 1)

    assert padded["input_ids"].tolist() == [[1, 9, 10], [5, 6, 7]]
    assert padded["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
