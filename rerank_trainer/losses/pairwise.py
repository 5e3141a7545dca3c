"""Pairwise losses: differences between two passages of a group are compared with what the targets say of the two.

They hold ``batch_size * group_size ** 2`` differences in memory: 4 MB in float32 for one group of 1,000 passages.
"""

from __future__ import annotations

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
def ranknet(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean logistic loss of the ordered pairs, in nats.

    .. math:: \ell(s, t) = \frac{1}{|P|} \sum_{(i, j) \in P} \log (1 + e^{-(s_i - s_j) / \tau}),
              \quad P = \{(i, j) : t_i > t_j\}

    Only the order of the targets matters, so labels, a teacher's scores and negated ranks all do. The loss is that of
    RankNet (Burges et al., 2005, https://doi.org/10.1145/1102351.1102363) without its scale; RankGPT (Sun et al.,
    2023, https://arxiv.org/abs/2304.09542) distils an LLM's order with it. Also known as pairwise logistic loss,
    Bradley-Terry loss; ``RankNetLoss`` in sentence-transformers.

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
    ordered = (labels.unsqueeze(-1) > labels.unsqueeze(-2)) * pairs_of_passages(weights, weights)
    return weighted_mean(-functional.logsigmoid(pairwise_differences(scores / temperature)), ordered)


@defined_where(has_two_passages)
def margin_mse(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean squared difference between the margins of scores and of targets, both behind the best target.

    .. math:: \ell(s, t) = \frac{1}{|P|} \sum_{(b, j) \in P} \big( (s_b - s_j) / \tau - (t_b - t_j) \big)^2,
              \quad P = \{(b, j) : t_b = \max_i t_i, \; j \neq b\}

    Hofstätter et al. (2020, https://arxiv.org/abs/2010.02666) compare the margin between a labelled positive and a
    negative passage with the teacher's. Labels have no place here: the passage with the highest target stands for the
    positive. Where the two are one, the value is the mean of their loss over the group's negatives, one triplet (query,
    positive, negative) each; where the teacher prefers a negative, margins are taken from that one. Passages tied
    for the highest target each stand for the positive in turn, also against each other, with a margin of 0 to learn:
    so the order of the passages never matters; a best passage of the weight w meets its own copies in w - 1 of such
    pairs, none if w is below 1. A constant added to a group's scores or targets changes nothing.
    ``MarginMSELoss`` in sentence-transformers. Squares above 1e38 are infinite in float32; the gradient stays finite.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Teacher scores, on the scale that score differences shall have, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores, not the targets.

    Returns:
        ``(batch_size,)``. A group of two real passages or more counts, also when the targets are all equal: a margin
        of 0 is a target like any other.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, teacher_scores = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 3.0, 1.0]])
    >>> margin_mse(scores, teacher_scores, mask=torch.tensor([[True, True, True]]))  # ((-1 - 2)^2 + (1 - 4)^2) / 2
    tensor([9.])
    """
    best = weights * (labels == masked_max(labels, weights > 0).unsqueeze(-1))
    # (s_b - s_j) - (t_b - t_j) is a difference of differences: (s_b - t_b) - (s_j - t_j).
    margins = pairwise_differences(scores / temperature - labels)
    return weighted_mean(margins.square(), pairs_of_passages(best, weights))
