"""Utilities: how well scores serve the labels of a group, to compare a teacher with its student by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rerank_trainer.losses import infonce
from rerank_trainer.losses.reduction import pairwise_differences

# utility_fn(scores, labels, mask) -> (batch_size,): one value a group, higher is better
UtilityFn = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_probability(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """The mean log-probability of the positives under the softmax of the scores, ``(batch_size,)``, in nats.

    It sees how sure the scores are, so a temperature matters; 0 for groups that :func:`infonce` is not defined on.

    >>> log_probability(torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.ones(1, 4, dtype=torch.bool))
    tensor([-1.3863])
    """
    return -infonce(scores, labels, mask=mask)


def ndcg(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    r"""The nDCG of the whole group with the labels for gains, ``(batch_size,)`` from 0 to 1; 0 without a positive.

    .. math:: \frac{\sum_i y_i / \log_2 (1 + r_i)}{\sum_k y_{(k)} / \log_2 (1 + k)}

    Järvelin and Kekäläinen (2002, https://doi.org/10.1145/582415.582418). Passages with equal scores share the mean of
    their ranks. It sees the order alone, so no temperature matters.

    >>> labels, mask = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[True, True, False]])
    >>> ndcg(torch.tensor([[2.0, 1.0, 9.0]]), labels, mask)  # second: log2(2) / log2(3)
    tensor([0.6309])
    """
    gains = labels.float().masked_fill(~mask, 0.0)
    differences = pairwise_differences(scores)  # (B, i, j): i before j
    higher = ((differences < 0) & mask.unsqueeze(-2)).sum(dim=-1)
    equal = ((differences == 0) & mask.unsqueeze(-2)).sum(dim=-1)
    ranks = higher + (equal.clamp(min=1) + 1) / 2
    gained = (gains / (1 + ranks).log2()).sum(dim=-1)
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    best = (gains.sort(dim=-1, descending=True).values / (1 + places).log2()).sum(dim=-1)
    return gained / best.masked_fill(best == 0, 1.0)


# By name, each with the advantage at which a teacher is trusted fully.
UTILITIES: dict[str, tuple[UtilityFn, float]] = {"ndcg": (ndcg, 0.02), "log_probability": (log_probability, 0.5)}
