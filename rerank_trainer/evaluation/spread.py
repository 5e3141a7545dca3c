"""Spread: how far apart the scores within a group are, and how many of them are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rerank_trainer.data.collator import LABEL_PADDING
from rerank_trainer.losses.reduction import weighted_mean


def score_std(scores: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation of the scores within each group, ``(batch_size,)``; NaN for groups of fewer than two passages.

    The sum of squares is divided by the number of passages, not by one less.

    Args:
        scores: ``(batch_size, group_size)``.
        mask: True = a passage, same shape.

    >>> score_std(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]]))
    tensor([1.])
    """
    deviation = scores - weighted_mean(scores, mask).unsqueeze(-1)
    return weighted_mean(deviation.square(), mask).sqrt().masked_fill(mask.sum(dim=-1) < 2, torch.nan)


def tied_pairs(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs of passages of each group have equal scores, and how many pairs there are, each ``(batch_size,)``.

    Args:
        scores: ``(batch_size, group_size)``, finite.
        mask: True = a passage, same shape.

    >>> tied_pairs(torch.tensor([[2.0, 1.0, 2.0, 2.0]]), torch.ones(1, 4, dtype=torch.bool))
    (tensor([3]), tensor([6]))
    """
    ordered = scores.masked_fill(~mask, torch.inf).sort(dim=-1).values
    places = torch.arange(scores.shape[-1], device=scores.device)
    # a score is tied with those between its first equal and itself: each pair is counted once
    num_equal_before = places - torch.searchsorted(ordered, ordered)
    sizes = mask.sum(dim=-1)
    num_tied = num_equal_before.masked_fill(places >= sizes.unsqueeze(-1), 0).sum(dim=-1)
    return num_tied, sizes * (sizes - 1) // 2


def score_spread(scores: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
    """``score_std``, the mean over groups of :func:`score_std`, and ``tie_share``, that of all pairs of passages.

    NaN when no group has two passages; nothing without groups.

    Args:
        scores: One score a passage, lists of unlike length.
        labels: Shaped as the scores, -100 where there is no passage.

    >>> score_spread([[1.0, 3.0], [0.0, 0.0]], [[0, 1], [0, 1]])
    {'score_std': 0.5, 'tie_share': 0.5}
    """
    real = [torch.as_tensor(row) != LABEL_PADDING for row in labels]
    rows = [torch.as_tensor(row)[mask] for row, mask in zip(scores, real, strict=True)]
    if not rows:
        return {}
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    padded = pad_sequence(rows, batch_first=True)
    num_tied, num_pairs = (counts.sum() for counts in tied_pairs(padded, mask))
    return {"score_std": score_std(padded, mask).nanmean().item(), "tie_share": (num_tied / num_pairs).item()}
