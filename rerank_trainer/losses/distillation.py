"""Distillation losses: a student's distribution over the passages of a group is drawn to its teacher's."""

from __future__ import annotations

from torch import Tensor

from rerank_trainer.losses.reduction import (
    check_temperature,
    defined_where,
    has_two_passages,
    masked_log_softmax,
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
