"""Metric losses: smooth stand-ins for NDCG, MRR and errors of ranks, which themselves have no gradient.

They hold ``batch_size * group_size ** 2`` differences in memory, as pairwise losses do. ApproxRank's alpha (also called
a temperature elsewhere) is ``1 / temperature`` here: the lower the temperature, the closer to the metric, and the fewer
passages have a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rerank_trainer.losses.ranks import gains, ideal_dcg, label_ranks, ranks, soft_ranks
from rerank_trainer.losses.reduction import (
    defined_where,
    has_positive_to_prefer,
    has_unequal_labels,
    masked_max,
    pairs_of_passages,
    pairwise_differences,
    weighted_mean,
)

# Gains are powers of two: this is far above any grade, and far from the end of float32.
MAX_GRADE = 64.0

WEIGHTINGS = ("ndcg_loss1", "ndcg_loss2", "ndcg_loss2++", "lambdarank")


def has_positive_and_other(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: does the group have a real passage labelled above 0, and one that is not?"""
    return ((labels > 0) & mask).any(dim=-1) & ((labels <= 0) & mask).any(dim=-1)


@defined_where(has_positive_to_prefer, max_label=MAX_GRADE)
def lambdarank(
    scores: Tensor,
    labels: Tensor,
    *,
    weights: Tensor,
    temperature: float = 1.0,
    weighting: str = "ndcg_loss2++",
    k: int | None = None,
    mu: float = 10.0,
) -> Tensor:
    r"""Mean logistic loss of the pairs, each weighted by what it means for NDCG, in nats.

    .. math:: \ell(s, y) = \frac{1}{|P|} \sum_{(i, j) \in P} w_{ij} \log (1 + e^{-(s_i - s_j) / \tau})

    The LambdaLoss framework of Wang et al. (2018, https://doi.org/10.1145/3269206.3271784). With ranks
    :math:`r` by the present scores (which get no gradient through them), discounts :math:`D(r) = \log_2 (1 + r)`, and
    gains :math:`G_i = (2^{y_i} - 1) / \text{ideal DCG}`:

    * ``lambdarank``: :math:`|1 / D(r_i) - 1 / D(r_j)| \, |G_i - G_j|`, the change of NDCG if the two were swapped;
    * ``ndcg_loss2``: :math:`(1 / D(d) - 1 / D(d + 1)) \, |G_i - G_j|` with :math:`d = |r_i - r_j|`, a tighter bound;
    * ``ndcg_loss2++``: the first, and ``mu`` times the second; the strongest in the paper;
    * ``ndcg_loss1``: :math:`G_i / D(r_i)`, a coarse bound.

    P are the pairs with :math:`y_i > y_j`; for ``ndcg_loss1`` all pairs of two passages. Of passages with equal scores,
    the less relevant stands before, so that a tie is a mistake to mend; equally relevant ones share the mean of their
    places. ``LambdaLoss`` in sentence-transformers, with its order of tied passages, a mean over all pairs of the batch
    where there is one value a group here, ``reduction_log="binary"`` by default, which divides by log 2, and an
    ``NDCGLoss1Scheme`` that also pairs each passage with itself.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Grades of relevance, 0 or more, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores; 1 / sigma of the paper.
        weighting: "ndcg_loss1", "ndcg_loss2", "ndcg_loss2++" or "lambdarank".
        k: A pair counts if one of the two is among the k passages at the top, and ideal DCG is that of k places; None
            counts all pairs.
        mu: Weight of ``ndcg_loss2`` in ``ndcg_loss2++``; the others do not look.

    Returns:
        ``(batch_size,)``. A group counts when a label is positive and the labels are not all equal.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or an option is out of its range.

    >>> import torch
    >>> scores, labels = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    >>> mask = torch.tensor([[True, True]])
    >>> lambdarank(scores, labels, mask=mask, weighting="lambdarank")  # (1 - 1 / log2(3)) * log(1 + exp(2))
    tensor([0.7850])
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}: expected one of {WEIGHTINGS}")
    if k is not None and not k >= 1:
        raise ValueError(f"k={k}: expected how many passages at the top count, 1 or more, or None for all")
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu={mu}: expected a weight of 0 or more")
    ahead, above = pairwise_differences(scores), pairwise_differences(labels)
    precedes = (ahead < 0) | ((ahead == 0) & (above > 0))  # [:, i, j]: j before i
    places = ranks(precedes + 0.5 * ((ahead == 0) & (above == 0)), weights)
    own_gains = gains(labels)
    own_gains = own_gains / _or_one(ideal_dcg(own_gains, weights, k=k)).unsqueeze(-1)
    pairs = pairs_of_passages(weights, weights)
    if weighting != "ndcg_loss1":
        pairs = pairs * (above > 0)
    if k is not None:
        at_the_top = (precedes * weights.unsqueeze(-2)).sum(dim=-1) < k
        pairs = pairs * (at_the_top.unsqueeze(-1) | at_the_top.unsqueeze(-2))
    losses = -functional.logsigmoid(ahead / temperature)
    return weighted_mean(_pair_weights(weighting, own_gains, places, mu) * losses, pairs)


def _pair_weights(weighting: str, own_gains: Tensor, places: Tensor, mu: float) -> Tensor:
    """What each pair means for NDCG, ``(batch_size, group_size, group_size)``."""
    inverse_discounts = 1.0 / torch.log2(1.0 + places)
    if weighting == "ndcg_loss1":
        return (own_gains * inverse_discounts).unsqueeze(-1).expand(*own_gains.shape, own_gains.shape[-1])
    by_rank = pairwise_differences(inverse_discounts).abs()
    # Passages that share their places would be 0 apart, where no discount is defined; they are neighbours.
    apart = pairwise_differences(places).abs().clamp(min=1.0)
    by_distance = 1.0 / torch.log2(1.0 + apart) - 1.0 / torch.log2(2.0 + apart)
    weights = {
        "lambdarank": by_rank,
        "ndcg_loss2": by_distance,
        "ndcg_loss2++": by_rank + mu * by_distance,
    }
    return weights[weighting] * pairwise_differences(own_gains).abs()


@defined_where(has_positive_to_prefer, max_label=MAX_GRADE)
def approx_ndcg(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""One minus NDCG of smooth ranks, between 0 and 1.

    .. math:: \ell(s, y) = 1 - \frac{1}{\text{ideal DCG}} \sum_i \frac{2^{y_i} - 1}{\log_2 (1 + \hat r_i)}, \quad
              \hat r_i = 1 + \sum_{j \neq i} \sigma \Big( \frac{s_j - s_i}{\tau} \Big)

    ApproxNDCG of Qin et al. (2010, https://doi.org/10.1007/s10791-009-9124-x), whose alpha is :math:`1 / \tau`.
    Passages far from each other have no gradient, so a model whose scores spread wants a higher temperature.
    ``ApproxNDCGLoss`` in TF-Ranking (at temperature 0.1, without the one), ``ApproxNDCG`` in Lightning IR.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Grades of relevance, 0 or more, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores.

    Returns:
        ``(batch_size,)``. A group counts when a label is positive and the labels are not all equal.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, labels = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    >>> approx_ndcg(scores, labels, mask=torch.tensor([[True, True]]))  # 1 - 1 / log2(2 + sigmoid(2))
    tensor([0.3449])
    """
    own_gains = gains(labels)
    dcg = (weights * own_gains / torch.log2(1.0 + soft_ranks(scores / temperature, weights))).sum(dim=-1)
    return 1.0 - dcg / _or_one(ideal_dcg(own_gains, weights))


@defined_where(has_positive_and_other)
def approx_mrr(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""One minus the reciprocal of the first positive's smooth rank, between 0 and 1.

    .. math:: \ell(s, y) = 1 - \Big( 1 + \sum_{j: y_j \le 0} \sigma \Big( \frac{s_j - s_b}{\tau} \Big) \Big)^{-1}, \quad
              b = \arg \max_{i: y_i > 0} s_i

    Adapted from ApproxMRR, which treats MRR as Qin et al. (2010, https://doi.org/10.1007/s10791-009-9124-x) treat
    NDCG. A label above 0 makes a passage positive, whatever its grade, and the best-scored positive is the one that
    counts, as in MRR; no other positive stands before it, so none pushes it down. With one positive this is
    ``ApproxMRRLoss`` in TF-Ranking (at temperature 0.1, without the one) and ``ApproxMRR`` in Lightning IR; of several,
    TF-Ranking takes the mean, and both count them among the passages before.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Relevance, same shape; positive above 0.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores.

    Returns:
        ``(batch_size,)``. A group counts when it has a positive passage and one that is not.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, labels = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    >>> approx_mrr(scores, labels, mask=torch.tensor([[True, True, True]]))  # 1 - 1 / (1 + sigmoid(2))
    tensor([0.4683])
    """
    scores = scores / temperature
    positive = weights * (labels > 0)
    # Positives that are tied for the best share its gradient.
    best = weighted_mean(scores, positive * (scores == masked_max(scores, positive > 0).unsqueeze(-1)))
    before = (weights * (labels <= 0) * torch.sigmoid(scores - best.unsqueeze(-1))).sum(dim=-1)
    return before / (1.0 + before)


@defined_where(has_unequal_labels)
def adr_mse(scores: Tensor, labels: Tensor, *, weights: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean squared error of smooth ranks, discounted by the rank that the targets ask for.

    .. math:: \ell(s, t) = \frac{1}{n} \sum_i \frac{(\hat r_i - r_i)^2}{\log_2 (1 + r_i)}, \quad
              \hat r_i = 1 + \sum_{j \neq i} \sigma \Big( \frac{s_j - s_i}{\tau} \Big)

    ADR-MSE of Rank-DistiLLM (Schlatt et al., 2025, https://arxiv.org/abs/2405.07920), for the order that an LLM gives.
    Equal targets share the mean of their places in :math:`r`, which equal scores attain, so the least value is 0.
    ``ADRMSELoss`` in sentence-transformers, whose mean goes over all passages of the batch, and which also draws the
    scores of a group of equal targets together; ``ApproxRankMSE(discount="log2")`` in Lightning IR, where the order of
    the passages breaks ties.

    Args:
        scores: Model logits, ``(batch_size, group_size)``.
        labels: Labels or teacher scores on any scale, higher is more relevant, same shape.
        mask: True where a passage is real, same shape.
        weights: How often each passage counts, 0 or more, same shape; None counts each once.
        temperature: Divides the scores; 1 / alpha of the paper.

    Returns:
        ``(batch_size,)``. A group counts when some real passage has a higher target than another one.

    Raises:
        ValueError: If shapes differ, ``mask`` is not bool, or ``temperature`` is not positive.

    >>> import torch
    >>> scores, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> adr_mse(scores, labels, mask=torch.tensor([[True, True]]))  # (0.5^2 + 0.5^2 / log2(3)) / 2
    tensor([0.2039])
    """
    target_ranks = label_ranks(labels, weights)
    errors = (soft_ranks(scores / temperature, weights) - target_ranks).square()
    return weighted_mean(errors / torch.log2(1.0 + target_ranks), weights)


def _or_one(values: Tensor) -> Tensor:
    """The values, and 1 in place of 0: what groups that do not count are divided by."""
    return values.masked_fill(values == 0, 1.0)
