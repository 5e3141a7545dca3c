"""Figures: what the scores of a batch say about training, as sums and counts that batches and processes add up.

Everything here runs on the device of the scores, without reading a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerank_trainer.losses.reduction import masked_max, pairwise_differences, weighted_mean
from rerank_trainer.objectives.objective import Targets

# The rows of totals(), by the names under which they are logged.
FIGURES = ("score_std", "tie_share", "undefined_share", "kendall_tau", "teacher_top1")


def totals(scores: Tensor, targets: Targets, defined: Tensor) -> Tensor:
    """Sum and count of each of :data:`FIGURES`, ``(5, 2)`` float32: a figure is its sum divided by its count.

    Args:
        scores: The student's, ``(batch_size, group_size)``.
        targets: Labels, mask and teacher scores of the same passages.
        defined: Which groups define a part of the loss, ``(batch_size,)`` bool.
    """
    mask, teacher_scores = targets.mask, targets.teacher_scores
    num_tied, num_pairs = tied_pairs(scores, mask)
    present = mask.any(dim=-1)
    no_teacher = scores.new_zeros(2)
    return torch.stack(
        [
            _sum_and_count(score_std(scores, mask)),
            torch.stack([num_tied.sum(), num_pairs.sum()]).float(),
            torch.stack([(present & ~defined).sum(), present.sum()]).float(),
            no_teacher if teacher_scores is None else _sum_and_count(kendall_tau(scores, teacher_scores, mask)),
            no_teacher if teacher_scores is None else _sum_and_count(top1(teacher_scores, targets.labels, mask)),
        ]
    )


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


def kendall_tau(scores: Tensor, teacher_scores: Tensor, mask: Tensor) -> Tensor:
    r"""Kendall's tau-b between two orders of each group, ``(batch_size,)`` from -1 to 1; NaN where one is all ties.

    .. math:: \tau_b = \frac{C - D}{\sqrt{(P - T_s)(P - T_t)}}

    of P pairs, C in the same order, D in the opposite one, T tied by either
    (https://en.wikipedia.org/wiki/Kendall_rank_correlation_coefficient#Tau-b).

    Args:
        scores: ``(batch_size, group_size)``.
        teacher_scores: Same shape.
        mask: True = a passage, same shape.

    >>> mask = torch.ones(1, 3, dtype=torch.bool)
    >>> kendall_tau(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.1, 0.3, 0.2]]), mask)
    tensor([0.3333])
    """
    absent = ~(mask.unsqueeze(-1) & mask.unsqueeze(-2))
    student = pairwise_differences(scores).sign().masked_fill(absent, 0.0)
    teacher = pairwise_differences(teacher_scores).sign().masked_fill(absent, 0.0)
    untied = student.abs().sum(dim=(-2, -1)) * teacher.abs().sum(dim=(-2, -1))
    return (student * teacher).sum(dim=(-2, -1)) / untied.sqrt()


def top1(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Whether each group's highest score is a positive's, ``(batch_size,)``; NaN for groups without a positive.

    Passages that share the highest score share the place: one positive among two gives 0.5.

    Args:
        scores: ``(batch_size, group_size)``.
        labels: Relevance, positive above 0, same shape.
        mask: True = a passage, same shape.

    >>> mask = torch.ones(1, 3, dtype=torch.bool)
    >>> top1(torch.tensor([[2.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]]), mask=mask)
    tensor([0.5000])
    """
    positive = (labels > 0) & mask
    highest = (scores == masked_max(scores, mask).unsqueeze(-1)) & mask
    return weighted_mean(positive.float(), highest).masked_fill(~positive.any(dim=-1), torch.nan)


def spread_of(scores: Tensor, mask: Tensor) -> dict[str, float]:
    """``score_std`` and ``tie_share`` over groups, as in training; NaN when no group has two passages.

    Args:
        scores: ``(num_groups, group_size)``.
        mask: True = a passage, same shape.
    """
    num_tied, num_pairs = (counts.sum() for counts in tied_pairs(scores, mask))
    return {"score_std": score_std(scores, mask).nanmean().item(), "tie_share": (num_tied / num_pairs).item()}


def _sum_and_count(values: Tensor) -> Tensor:
    return torch.stack([values.nansum(), (~values.isnan()).sum()])
