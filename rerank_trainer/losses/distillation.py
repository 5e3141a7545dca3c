"""Distillation losses: a student's scores of a group are drawn to its teacher's, whatever scale those have."""

from __future__ import annotations

from torch import Tensor

from rerank_trainer.losses.reduction import (
    check_temperature,
    defined_where,
    has_two_passages,
    has_unequal_labels,
    masked_log_softmax,
    masked_max,
    weighted_mean,
)


@defined_where(has_two_passages)
def kl(
    scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0, teacher_temperature: float = 1.0
) -> Tensor:
    r"""Kullback-Leibler divergence of the student's softmax from the teacher's, in nats.

    .. math:: \ell(s, t) = \sum_i p_i (\log p_i - \log q_i), \quad
              p = \operatorname{softmax}(t / \tau_t), \; q = \operatorname{softmax}(s / \tau)

    The distillation of Hinton et al. (2015, https://arxiv.org/abs/1503.02531), over the passages of a query instead of
    classes, as Xu et al. (2025, https://arxiv.org/abs/2507.08336) train rerankers with. The two temperatures are
    independent: set both for Hinton's. His factor :math:`\tau^2`, which keeps gradients of one size as
    :math:`\tau` grows, is left out: a temperature divides scores and does nothing else, in every loss alike. Who
    wants the factor multiplies the weight of the loss. Also known as forward KL, listwise softmax distillation;
    up to the teacher's entropy, a constant, it is ListNet's cross-entropy with teacher scores for labels.
    ``KLDivergence`` in Lightning IR; FlagEmbedding's ``knowledge_distillation`` adds it to ``infonce``, each once.

    Args:
        scores: Student logits, ``(batch_size, group_size)``.
        labels: Teacher scores, raw logits on any scale, same shape. A constant added to a group's changes nothing.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the student's scores.
        teacher_temperature: Divides the teacher's scores; higher spreads the target over more passages.

    Returns:
        ``(batch_size,)``. A group of two real passages or more counts, also when the teacher scores are all equal.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or a temperature is not positive.

    >>> import math, torch
    >>> scores, teacher_scores = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    >>> kl(scores, teacher_scores, mask=torch.tensor([[True, True]]))  # 3/4 log(3/4 * 2) + 1/4 log(1/4 * 2)
    tensor([0.1308])
    """
    check_temperature(teacher_temperature=teacher_temperature)
    teacher_log_probs = masked_log_softmax(labels / teacher_temperature, weights)
    log_probs = masked_log_softmax(scores / temperature, weights)
    return weighted_mean(teacher_log_probs - log_probs, weights * teacher_log_probs.exp())


def has_three_unequal(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: has the group three real passages or more, and are their labels not all equal?"""
    return (mask.sum(dim=-1) >= 3) & has_unequal_labels(labels, mask)


@defined_where(has_three_unequal)
def pearson(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""One minus the correlation of scores and targets over the passages of a group, between 0 and 2.

    .. math:: \ell(s, t) = 1 - \frac{\sum_i (s_i - \bar s) (t_i - \bar t)}
              {\sqrt{\sum_i (s_i - \bar s)^2 \, \sum_i (t_i - \bar t)^2}}

    Half the mean squared difference of the two after each is brought to mean 0 and variance 1 within its group, so a
    teacher on any scale will do, and no temperature has to be chosen: it changes nothing. Adapted from distillation by
    correlation (DIST of Huang et al., 2022, https://arxiv.org/abs/2205.10536), there of class probabilities.
    ``PearsonCorrelation`` in Lightning IR. Neither place nor spread of the scores is learned, and the gradient is the
    larger the closer a group's scores are together. Where they are equal there is no correlation: the value is 1,
    and the gradient draws them to the teacher's order.

    Args:
        scores: Student logits, ``(batch_size, group_size)``.
        labels: Teacher scores on any scale, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the student's scores, without effect.

    Returns:
        ``(batch_size,)``. A group counts when it has three real passages or more (two are always in line) and their
        targets are not all equal.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, teacher_scores = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    >>> pearson(scores, teacher_scores, mask=torch.tensor([[True, True, True]]))  # 1 - 1 / (sqrt(2) * sqrt(2))
    tensor([0.5000])
    """
    products = _standardised(scores / temperature, weights) * _standardised(labels, weights)
    return 1.0 - weighted_mean(products, weights)


def _standardised(values: Tensor, weights: Tensor) -> Tensor:
    """The values with mean 0 and variance 1 in each group; where all are equal, 0."""
    present = weights > 0
    # First a constant off and then a constant over, so that equal values become exactly 0, and no square overflows.
    values = values - masked_max(values, present).detach().unsqueeze(-1)
    centred = (values - weighted_mean(values, weights).unsqueeze(-1)).masked_fill(~present, 0.0)
    largest = centred.detach().abs().amax(dim=-1, keepdim=True)
    centred = centred / largest.masked_fill(largest == 0, 1.0)
    variance = weighted_mean(centred.square(), weights).unsqueeze(-1)
    return centred / variance.masked_fill(variance == 0, 1.0).sqrt()
