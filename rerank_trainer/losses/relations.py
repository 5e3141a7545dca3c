"""Relations: how a group's passages lie to each other is compared, whatever the units of the two sides."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from rerank_trainer.losses.reduction import (
    defined_where,
    has_three_unequal,
    pairs_of_passages,
    pairwise_differences,
    weighted_mean,
)

LEAST_UNIT = 0.1  # scores closer than this lie together: a unit of 0 would make the gradient infinite


@defined_where(has_three_unequal)
def relations(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean Huber loss between the score differences of all pairs, each side in units of its own mean difference.

    .. math:: \ell(s, t) = \frac{1}{K (K - 1)} \sum_{i \neq j} \operatorname{Huber}_1 \Big(
              \frac{s_i - s_j}{\max(\mu_s, 0.1)} - \frac{t_i - t_j}{\mu_t} \Big), \quad
              \mu_x = \frac{1}{K (K - 1)} \sum_{i \neq j} |x_i - x_j|

    It asks for the teacher's proportions and leaves the student its own scale and place: multiplying a group's scores
    or teacher scores by a number above 0, or adding one, changes nothing. Where the student's scores lie closer than
    0.1 on average (after the temperature), 0.1 is the unit and the scale does matter; it keeps the gradient finite.
    Adapted from the instance relations of CTSL-MKT (Sun et al., 2021, https://arxiv.org/abs/2101.08471), which compare
    features; scores stand in their place, with the Huber loss and the mean distance for unit of relational knowledge
    distillation (Park et al., 2019, https://arxiv.org/abs/1904.05068).

    Args:
        scores: Student scores, ``(batch_size, group_size)``.
        labels: Teacher scores on any scale, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores; it matters only below the least unit.

    Returns:
        ``(batch_size,)``. A group counts when it has three real passages or more whose teacher scores are not all
        equal: the one difference of two passages is its own unit.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, teacher_scores = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 5.0, 8.0]])
    >>> relations(scores, 10 * teacher_scores, mask=torch.tensor([[True, True, True]]))  # the same proportions
    tensor([0.])
    """
    pairs = pairs_of_passages(weights, weights)
    student, teacher = pairwise_differences(scores / temperature), pairwise_differences(labels)
    student_unit, teacher_unit = (weighted_mean(side.abs(), pairs)[:, None, None] for side in (student, teacher))
    student = student / student_unit.clamp(min=LEAST_UNIT)
    teacher = teacher / teacher_unit.masked_fill(teacher_unit == 0, 1.0)
    return weighted_mean(functional.huber_loss(student, teacher, reduction="none"), pairs)
