"""Listwise losses: the scores of a whole group are compared with its labels at once."""

from __future__ import annotations

import torch
from torch import Tensor

from rerank_trainer.losses.reduction import (
    check_temperature,
    defined_where,
    has_positive_to_prefer,
    has_unequal_labels,
    masked_log_softmax,
    pairs_of_passages,
    pairwise_differences,
    weighted_mean,
)


@defined_where(has_positive_to_prefer)
def infonce(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Cross-entropy between the labels' shares and the softmax of the scores, in nats.

    .. math:: \ell(s, y) = -\sum_i \frac{y_i}{\sum_j y_j} \log \operatorname{softmax}(s / \tau)_i

    With one positive this is InfoNCE (van den Oord et al., 2018, https://arxiv.org/abs/1807.03748) over the passages of
    one query, which rerankers know as localized contrastive estimation, LCE (Gao et al., 2021,
    https://arxiv.org/abs/2101.08751), and as the softmax loss of RankT5 (Zhuang et al., 2022,
    https://arxiv.org/abs/2210.10634). Several positives share the target in proportion to their labels; they also stand
    in each other's denominator, so the lowest value is the entropy of the shares and not 0. Also known as softmax
    cross-entropy, group-wise cross-entropy; ``SoftmaxLoss`` in TF-Ranking. ``MultipleNegativesRankingLoss`` in
    sentence-transformers is this of sigmoids, at temperature 0.1, with passages of other queries among the negatives.

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


@defined_where(has_unequal_labels)
def listnet(
    scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0, label_temperature: float = 1.0
) -> Tensor:
    r"""Cross-entropy between the softmax of the labels and the softmax of the scores, in nats.

    .. math:: \ell(s, y) = -\sum_i \operatorname{softmax}(y / \tau_y)_i \log \operatorname{softmax}(s / \tau)_i

    The top-one loss of ListNet (Cao et al., 2007, https://doi.org/10.1145/1273496.1273513). With labels of 0 and 1 at a
    label temperature of 1, the one positive of 8 passages gets 28 % of the target, and that of 100 passages 3 %: the
    rest is a call to score all alike. At 0.2 it gets 95 % of 8; ``infonce`` gives it all. Of a teacher's scores this
    is ``kl`` up to a constant. ``ListNetLoss`` in sentence-transformers, which has no label temperature and also draws
    the scores of a group of equal labels together.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Relevance on any scale, same shape. A constant added to a group's changes nothing.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores.
        label_temperature: Divides the labels; lower gives the most relevant passages more of the target.

    Returns:
        ``(batch_size,)``. A group counts when some real passage is labelled above another one.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or a temperature is not positive.

    >>> import math, torch
    >>> scores, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    >>> listnet(scores, labels, mask=torch.tensor([[True, True]]))  # log(1 + exp(1)) - 1/4 * 1
    tensor([1.0633])
    """
    check_temperature(label_temperature=label_temperature)
    shares = weights * masked_log_softmax(labels / label_temperature, weights).exp()
    return weighted_mean(-masked_log_softmax(scores / temperature, weights), shares)


@defined_where(has_unequal_labels)
def list_mle(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Negative log-likelihood of the labels' order, if passages were drawn one after the other by softmax, in nats.

    .. math:: \ell(s, y) = -\sum_i \log \frac{e^{s_i / \tau}}{e^{s_i / \tau} + \sum_{j: y_j < y_i} e^{s_j / \tau}}

    ListMLE (Xia et al., 2008, https://doi.org/10.1145/1390156.1390306) where no labels are equal. Passages of equal
    labels do not compete: each is compared with those labelled below it, as in the unique softmax of Zhu and Klabjan
    (2020, https://arxiv.org/abs/2001.01828). So the passages at the bottom cost nothing, and labels of 0 and 1 do not
    spread or squeeze the negatives. The value is a sum, as a likelihood is, and grows with the group: ``p_list_mle``
    averages. ``ListMLELoss`` in sentence-transformers, which by default takes the passages' own order for the labels'.

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
    >>> scores, labels = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> list_mle(scores, labels, mask=torch.tensor([[True, True, True]]))  # log((e + 2) / e) + log(2)
    tensor([1.2446])
    """
    return (weights * _losses_to_lower(scores / temperature, labels, weights)).sum(dim=-1)


@defined_where(has_unequal_labels)
def p_list_mle(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean of ListMLE's terms that counts the top of the order most, in nats.

    .. math:: \ell(s, y) = -\frac{1}{\sum_i \alpha_i} \sum_i \alpha_i
              \log \frac{e^{s_i / \tau}}{e^{s_i / \tau} + \sum_{j: y_j < y_i} e^{s_j / \tau}},
              \quad \alpha_i = 2^{n - r_i} - 1

    Position-aware ListMLE (Lan et al., 2014, https://auai.org/uai2014/proceedings/individuals/164.pdf) divided by the
    sum of its weights, over the n passages of a group with their ranks :math:`r` by label. Passages of equal labels do
    not compete (see ``list_mle``) and share the mean weight of their places. The first three places have 7/8 of the
    weight or more, whatever the group size. No power of two is taken that is above 1, so no group size overflows.
    ``PListMLELoss`` in sentence-transformers, which by default takes the passages' own order for the labels'.

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
    >>> scores, labels = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> p_list_mle(scores, labels, mask=torch.tensor([[True, True, True]]))  # (3 * log((e + 2) / e) + log(2)) / 4
    tensor([0.5869])
    """
    losses = _losses_to_lower(scores / temperature, labels, weights)
    return weighted_mean(losses, weights * _place_weights(labels, weights))


def _losses_to_lower(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each passage against those labelled below it, ``(batch_size, group_size)``."""
    size = scores.shape[-1]
    itself = torch.eye(size, dtype=torch.bool, device=scores.device)
    rivals = torch.where(itself, 1.0, (pairwise_differences(labels) > 0) * weights.unsqueeze(-2))
    log_probs = masked_log_softmax(scores.unsqueeze(-2).expand(-1, size, -1), rivals)
    return -log_probs.diagonal(dim1=-2, dim2=-1)


def _place_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """``2 ** (n - place) - 1``, its mean over the places that a tie shares, divided by ``2 ** n`` to be at most 1."""
    above = pairwise_differences(labels)
    below = ((above > 0) * weights.unsqueeze(-2)).sum(dim=-1)
    level = 1.0 + ((above == 0) * pairs_of_passages(torch.ones_like(weights), weights)).sum(dim=-1)
    size = (below + level).amax(dim=-1, keepdim=True)
    # the places of a tie are below + 1, ..., below + level, from the bottom
    summed = torch.exp2(below + level - size) - torch.exp2(below - size)
    return (summed / level - torch.exp2(-size)).clamp(min=0.0)
