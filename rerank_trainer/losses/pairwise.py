"""Pairwise losses: differences between two passages of a group are compared with what the targets say of the two.

They hold ``batch_size * group_size ** 2`` differences in memory: 4 MB in float32 for one group of 1,000 passages.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from rerank_trainer.losses.reduction import (
    defined_where,
    has_two_passages,
    has_unequal_labels,
    masked_max,
    pairs_of_passages,
    pairwise_differences,
    weighted_mean,
)


@defined_where(has_unequal_labels)
def hinge(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0, margin: float = 1.0) -> Tensor:
    r"""Mean of what the ordered pairs lack to a margin, in units of the scores.

    .. math:: \ell(s, t) = \frac{1}{|P|} \sum_{(i, j) \in P} \max \big( 0, m - (s_i - s_j) / \tau \big),
              \quad P = \{(i, j) : t_i > t_j\}

    The ranking SVM's loss (Joachims, 2002, https://doi.org/10.1145/775047.775067) without its penalty. One margin for
    all pairs, however far apart the labels. A pair that keeps its margin has no gradient, so the loss leaves alone what
    is right, and reaches 0. Also known as margin ranking loss, triplet loss; ``PairwiseHingeLoss`` in TF-Ranking.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Labels or teacher scores on any scale, higher is more relevant, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores, not the margin.
        margin: How far apart the two scores of an ordered pair shall be, 0 or more.

    Returns:
        ``(batch_size,)``. A group counts when some real passage has a higher target than another one.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, ``temperature`` is not positive, or ``margin`` is negative.

    >>> import torch
    >>> scores, labels = torch.tensor([[1.0, 3.0, 0.5]]), torch.tensor([[2.0, 0.0, 0.0]])
    >>> hinge(scores, labels, mask=torch.tensor([[True, True, True]]))  # ((1 + 2) + (1 - 0.5)) / 2
    tensor([1.7500])
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin}: expected a distance between scores, 0 or more")
    ordered = (pairwise_differences(labels) > 0) * pairs_of_passages(weights, weights)
    return weighted_mean((margin - pairwise_differences(scores / temperature)).relu(), ordered)


@defined_where(has_unequal_labels)
def ranknet(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean logistic loss of the ordered pairs, in nats.

    .. math:: \ell(s, t) = \frac{1}{|P|} \sum_{(i, j) \in P} \log (1 + e^{-(s_i - s_j) / \tau}),
              \quad P = \{(i, j) : t_i > t_j\}

    Only the order of the targets matters, so labels, a teacher's scores and negated ranks all do. The loss is that of
    RankNet (Burges et al., 2005, https://doi.org/10.1145/1102351.1102363) without its scale; RankGPT (Sun et al.,
    2023, https://arxiv.org/abs/2304.09542) distils an LLM's order with it. Also known as pairwise logistic loss,
    Bradley-Terry loss. ``RankNetLoss`` in sentence-transformers, whose mean goes over all pairs of the batch, and whose
    default ``reduction_log="binary"`` divides by log 2; there is one value a group here, and each has the same weight.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Labels or teacher scores on any scale, higher is more relevant, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores.

    Returns:
        ``(batch_size,)``. A group counts when some real passage has a higher target than another one.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, labels = torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    >>> ranknet(scores, labels, mask=torch.tensor([[True, True, True]]))  # log(1 + exp(2))
    tensor([2.1269])
    """
    ordered = (pairwise_differences(labels) > 0) * pairs_of_passages(weights, weights)
    return weighted_mean(-functional.logsigmoid(pairwise_differences(scores / temperature)), ordered)


PAIRS = ("best", "all")


@defined_where(has_two_passages)
def margin_mse(
    scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0, pairs: str = "best"
) -> Tensor:
    r"""Mean squared difference between the margins of scores and of targets.

    .. math:: \ell(s, t) = \frac{1}{|P|} \sum_{(i, j) \in P} \big( (s_i - s_j) / \tau - (t_i - t_j) \big)^2

    Adapted from Hofstätter et al. (2020, https://arxiv.org/abs/2010.02666), who compare the margin between a labelled
    positive and a negative passage with the teacher's: that is ``positive_margin_mse``. Here labels have no place, and
    P are the pairs

    * "best": :math:`t_i = \max_k t_k, \, j \neq i`; the passage with the highest target stands for the positive. Those
      tied for it each do so in turn, also against each other, with a margin of 0 to learn.
    * "all": :math:`i \neq j`; every margin of the group, so the value is twice the variance of :math:`s / \tau - t`.

    So the order of the passages never matters; a passage of the weight w meets its own copies in w - 1 of such pairs,
    none if w is below 1. A constant added to a group's scores or targets changes nothing. ``SupervisedMarginMSE`` in
    Lightning IR takes all pairs but ties, ``PairwiseMSELoss`` in TF-Ranking "all". Squares above 1e38 are infinite in
    float32; the gradient stays finite.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Teacher scores, on the scale that score differences shall have, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores, not the targets.
        pairs: "best" or "all".

    Returns:
        ``(batch_size,)``. A group of two real passages or more counts, also when the targets are all equal: a margin
        of 0 is a target like any other.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, ``temperature`` is not positive, or ``pairs`` not known.

    >>> import torch
    >>> scores, teacher_scores = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 3.0, 1.0]])
    >>> margin_mse(scores, teacher_scores, mask=torch.tensor([[True, True, True]]))  # ((-1 - 2)^2 + (1 - 4)^2) / 2
    tensor([9.])
    """
    if pairs not in PAIRS:
        raise ValueError(f"pairs={pairs!r}: expected one of {PAIRS}")
    first = weights * (labels == masked_max(labels, weights > 0).unsqueeze(-1)) if pairs == "best" else weights
    return weighted_mean(_squared_margins(scores / temperature, labels), pairs_of_passages(first, weights))


@defined_where(has_unequal_labels)
def positive_margin_mse(
    scores: Tensor, labels: Tensor, *, weights: Tensor, teacher_scores: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Mean squared difference between the student's and the teacher's margins of the pairs that labels order.

    .. math:: \ell(s, y, t) = \frac{1}{|P|} \sum_{(i, j) \in P} \big( (s_i - s_j) / \tau - (t_i - t_j) \big)^2,
              \quad P = \{(i, j) : y_i > y_j\}

    Margin-MSE (Hofstätter et al., 2020, https://arxiv.org/abs/2010.02666): labels say which passage is the positive,
    the teacher how far it is ahead, or behind. Each positive meets each negative, and of graded labels the higher the
    lower. ``MarginMSELoss`` in sentence-transformers, for one positive and as many negatives in every group. Squares
    above 1e38 are infinite in float32; the gradient stays finite.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Relevance on any scale, higher is more relevant, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        teacher_scores: Teacher scores, on the scale that score differences shall have, same shape.
        temperature: Divides the student's scores, not the teacher's.

    Returns:
        ``(batch_size,)``. A group counts when some real passage is labelled above another one.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, teacher_scores = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 3.0, 1.0]])
    >>> mask, labels = torch.tensor([[True, True, True]]), torch.tensor([[0.0, 1.0, 0.0]])
    >>> positive_margin_mse(scores, labels, teacher_scores=teacher_scores, mask=mask)  # ((1 + 2)^2 + (2 - 2)^2) / 2
    tensor([4.5000])
    """
    ordered = (pairwise_differences(labels) > 0) * pairs_of_passages(weights, weights)
    return weighted_mean(_squared_margins(scores / temperature, teacher_scores), ordered)


def _squared_margins(scores: Tensor, targets: Tensor) -> Tensor:
    """``((s_i - s_j) - (t_i - t_j)) ** 2`` at ``[:, i, j]``, ``(batch_size, group_size, group_size)``."""
    # a difference of differences: (s_i - t_i) - (s_j - t_j)
    return pairwise_differences(scores - targets).square()
