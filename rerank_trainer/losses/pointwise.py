"""Pointwise losses: each passage is compared with its own label, whatever else stands in its group."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from rerank_trainer.losses.reduction import defined_where, has_passage, weighted_mean


@defined_where(has_passage, max_label=1.0)
def bce(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean binary cross-entropy of the passages, in nats.

    .. math:: \ell(s, y) = -\frac{1}{n} \sum_i y_i \log \sigma(s_i / \tau) + (1 - y_i) \log (1 - \sigma(s_i / \tau))

    The sum runs over the n real passages of the group. This is the loss of monoBERT (Nogueira and Cho, 2019,
    https://arxiv.org/abs/1901.04085), which sums where we average, so that long groups do not weigh more. Also known as
    pointwise cross-entropy, sigmoid loss, log loss; ``BinaryCrossEntropyLoss`` in sentence-transformers, whose mean
    goes over all passages of the batch where there is one value a group here, and which has a ``pos_weight``.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Probabilities of relevance in [0, 1], same shape; divide graded labels by the highest grade.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores.

    Returns:
        ``(batch_size,)``. Every group with a real passage counts.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    >>> bce(scores, labels, mask=torch.tensor([[True, True]]))  # (log 2 + log(1 + exp(-2))) / 2
    tensor([0.4100])
    """
    losses = functional.binary_cross_entropy_with_logits(scores / temperature, labels, reduction="none")
    return weighted_mean(losses, weights)


@defined_where(has_passage)
def mse(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean squared difference between the passages' scores and their targets, in squared units of the targets.

    .. math:: \ell(s, t) = \frac{1}{n} \sum_i (s_i / \tau - t_i)^2

    The sum runs over the n real passages of the group. With a teacher's logits as targets this is distillation as in
    InRanker (Laitz et al., 2024, https://arxiv.org/abs/2401.06910), which compares two logits a passage where we have
    one score; with labels it is pointwise regression. It ties each score to a place on the teacher's scale, while
    ``margin_mse`` ties differences and ``kl`` their softmax. ``MSELoss`` in sentence-transformers, whose mean goes over
    all passages of the batch where there is one value a group here. Squares of differences above 1e19 are infinite in
    float32; the gradient stays finite.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Teacher scores or labels, on the scale that the scores shall have, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores, not the targets.

    Returns:
        ``(batch_size,)``. Every group with a real passage counts.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, teacher_scores = torch.tensor([[3.0, -1.0]]), torch.tensor([[2.0, -4.0]])
    >>> mse(scores, teacher_scores, mask=torch.tensor([[True, True]]))  # (1^2 + 3^2) / 2
    tensor([5.])
    """
    return weighted_mean((scores / temperature - labels).square(), weights)
