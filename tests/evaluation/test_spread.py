"""Spread: standard deviations by numpy, ties by comparing each pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from rerank_trainer.evaluation.spread import score_spread, score_std, tied_pairs


@pytest.fixture(scope="module")
def groups():
    """Coarse scores (many ties) of 40 groups of 0 to 7 passages."""
    chance = np.random.default_rng(0)
    return [chance.integers(-2, 3, size=size) / 2 for size in chance.integers(0, 8, size=40)]


def padded(groups):
    rows = [torch.as_tensor(group) for group in groups]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True), mask


def test_score_std_is_that_of_numpy(groups):
    expected = [np.std(group) if len(group) > 1 else math.nan for group in groups]

    assert score_std(*padded(groups)).tolist() == pytest.approx(expected, nan_ok=True)


def test_tied_pairs_are_those_that_a_comparison_of_each_pair_finds(groups):
    pairs = [list(itertools.combinations(group, 2)) for group in groups]
    num_tied, num_pairs = tied_pairs(*padded(groups))

    assert num_tied.tolist() == [sum(a == b for a, b in group) for group in pairs]
    assert num_pairs.tolist() == [len(group) for group in pairs]
    assert any(num_tied)


def test_the_spread_of_groups_leaves_out_padding_and_groups_of_one_by_hand():
    figures = score_spread([[1.0, 3.0, 99.0], [5.0], [2.0, 2.0, 4.0]], [[0, 1, -100], [1], [0, 0, 0]])

    assert figures["score_std"] == pytest.approx((1.0 + math.sqrt(8 / 9)) / 2)
    assert figures["tie_share"] == pytest.approx(1 / 4)
    assert score_spread([], []) == {}
