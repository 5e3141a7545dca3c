"""Ranks of a group's passages, by labels and by scores, and the gains and discounts of NDCG.

A rank is 1 for the passage at the top. A passage of the weight w takes w places, and its rank is the mean of them; so
ranks need no sorting, only who stands before whom.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor

from rerank_trainer.losses.reduction import pairs_of_passages, pairwise_differences

# Sums of the discounts of the first n places. Relevant passages of a group are fewer; if not, the last discount stays.
_NUM_PLACES = 1024
_SUMMED_DISCOUNTS = tuple(accumulate((1 / math.log2(1 + place) for place in range(1, _NUM_PLACES + 1)), initial=0.0))


def ranks(precedes: Tensor, weights: Tensor) -> Tensor:
    """Return the ranks of the passages, ``(batch_size, group_size)``: 1, and one more for each that stands before.

    Args:
        precedes: At ``[:, i, j]`` how surely passage j stands before passage i, from 0 to 1, and 1/2 where the two
            share their places, ``(batch_size, group_size, group_size)``.
        weights: How often each passage counts, ``(batch_size, group_size)``.
    """
    return 1.0 + (pairs_of_passages(torch.ones_like(weights), weights) * precedes).sum(dim=-1)


def label_ranks(labels: Tensor, weights: Tensor) -> Tensor:
    """Return ranks by label, ``(batch_size, group_size)``; passages of equal labels share the mean of their places.

    >>> label_ranks(torch.tensor([[0.0, 3.0, 0.0]]), torch.ones(1, 3))
    tensor([[2.5000, 1.0000, 2.5000]])
    """
    ahead = pairwise_differences(labels)
    return ranks((ahead < 0) + 0.5 * (ahead == 0), weights)


def soft_ranks(scores: Tensor, weights: Tensor) -> Tensor:
    r"""Return ranks by score that have a gradient, ``(batch_size, group_size)``.

    .. math:: \hat r_i = 1 + \sum_{j \neq i} \sigma(s_j - s_i)

    ApproxRank of Qin et al. (2010, https://doi.org/10.1007/s10791-009-9124-x); the farther the scores are apart, the
    closer to the ranks themselves.
    """
    return ranks(torch.sigmoid(-pairwise_differences(scores)), weights)


def gains(labels: Tensor) -> Tensor:
    """Return ``2 ** label - 1`` of each passage, the gain of graded relevance in NDCG, ``(batch_size, group_size)``."""
    return torch.expm1(labels * math.log(2.0))


def ideal_dcg(gains: Tensor, weights: Tensor, *, k: int | None = None) -> Tensor:
    """Return the largest discounted cumulative gain that an order of the passages can have, ``(batch_size,)``.

    Args:
        gains: Gain of each passage, 0 or more, ``(batch_size, group_size)``.
        weights: How many places each passage takes, same shape.
        k: How many places count; None counts all.

    >>> ideal_dcg(torch.tensor([[1.0, 3.0, 0.0]]), torch.ones(1, 3))  # 3 / log2(2) + 1 / log2(3)
    tensor([3.6309])
    """
    ahead = pairwise_differences(gains)
    before = ((ahead < 0) * weights.unsqueeze(-2)).sum(dim=-1)
    level = ((ahead == 0) * weights.unsqueeze(-2)).sum(dim=-1)
    discounts = _summed_discounts(before + level, k) - _summed_discounts(before, k)
    # Passages of equal gain share their discounts, w of each passage's.
    return (weights * gains * discounts / level.masked_fill(level == 0, 1.0)).sum(dim=-1)


def _summed_discounts(counts: Tensor, k: int | None) -> Tensor:
    """``sum(1 / log2(1 + place))`` over so many places, linear between whole numbers; places beyond k add nothing."""
    counts = counts if k is None else counts.clamp(max=k)
    whole = counts.floor().clamp(max=_NUM_PLACES - 1)
    # not `device=`, which would wait for a GPU
    discounts = torch.tensor(_SUMMED_DISCOUNTS, dtype=counts.dtype).to(counts.device, non_blocking=counts.is_cuda)
    return discounts[whole.long()] + (counts - whole) / torch.log2(2.0 + whole)
