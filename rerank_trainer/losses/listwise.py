"""Listwise losses: the scores of a whole group are compared with its labels at once."""

from __future__ import annotations

from torch import Tensor

from rerank_trainer.losses.reduction import defined_where, has_unequal_labels, masked_log_softmax, weighted_mean


def has_positive_to_prefer(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: is a label positive, and are the labels of the real passages not all equal?"""
    return (labels > 0).any(dim=-1) & has_unequal_labels(labels, mask)


@defined_where(has_positive_to_prefer)
def infonce(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Cross-entropy between the labels' shares and the softmax of the scores, in nats.

    .. math:: \ell(s, y) = -\sum_i \frac{y_i}{\sum_j y_j} \log \operatorname{softmax}(s / \tau)_i

    With one positive this is InfoNCE (van den Oord et al., 2018, https://arxiv.org/abs/1807.03748) over the passages of
    one query, which rerankers know as localized contrastive estimation, LCE (Gao et al., 2021,
    https://arxiv.org/abs/2101.08751), and as the softmax loss of RankT5 (Zhuang et al., 2022,
    https://arxiv.org/abs/2210.10634). Several positives share the target in proportion to their labels; they also stand
    in each other's denominator, so the lowest value is the entropy of the shares and not 0. Also known as softmax
    cross-entropy, group-wise cross-entropy.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Relevance, 0 or more, graded or not, same shape. Only the proportions within a group matter.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores.

    Returns:
        ``(batch_size,)``. A group counts when a label is positive and the labels are not all equal.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, labels = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> infonce(scores, labels, mask=torch.tensor([[True, True, False]]))  # log(1 + exp(1 - 2))
    tensor([0.3133])
    """
    return weighted_mean(-masked_log_softmax(scores / temperature, weights), weights * labels)
