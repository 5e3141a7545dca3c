"""Figures: what the scores of a batch say about training, as sums and counts that batches and processes add up.

Everything here runs on the device of the scores, without reading a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerank_trainer.evaluation.spread import score_std, tied_pairs
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


def _sum_and_count(values: Tensor) -> Tensor:
    return torch.stack([values.nansum(), (~values.isnan()).sum()])
