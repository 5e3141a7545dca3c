"""Ties: what a ranking metric of one group is worth on average over all orders of the passages with equal scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class TiedRanking:
    """A ranking in which each place holds the average of its tie block: equal scores make one block.

    Attributes:
        starts: Where the block of each place begins, counted from 0, ``(num_passages,)``.
        sizes: Passages of that block.
        relevant: Those of them that are relevant.
        gains: Their mean grade.
        ideal_gains: All grades above 0, in the list or missed, highest first.
        num_relevant: Relevant passages, in the list or missed.
    """

    starts: NDArray[np.int64]
    sizes: Floats
    relevant: Floats
    gains: Floats
    ideal_gains: Floats
    num_relevant: int


def has_mixed_ties(scores: Floats, grades: Floats) -> bool:
    """Whether two passages of unlike grades have equal scores, so that their order would change a metric.

    >>> has_mixed_ties(np.array([2.0, 2.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    False
    """
    return len(set(scores.tolist())) < len(set(zip(scores.tolist(), grades.tolist(), strict=True)))


def tied_ranking(scores: Floats, grades: Floats, missed: Floats, *, rel: int = 1) -> TiedRanking:
    """The ranking of a group by falling scores.

    Args:
        scores: ``(num_passages,)``.
        grades: ``(num_passages,)``, 0 or more.
        missed: Grades of the judged passages outside the list.
        rel: The lowest grade of a relevant passage.

    >>> tied_ranking(np.array([1.0, 3.0, 3.0]), np.array([0.0, 2.0, 0.0]), np.array([1.0])).gains
    array([1., 1., 0.])
    """
    block: NDArray[np.int64]
    sizes: NDArray[np.int64]
    _, block, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    places: NDArray[np.int64] = np.repeat(np.arange(len(sizes)), sizes)  # the block of each place, best first
    everything = np.concatenate([grades, missed])
    return TiedRanking(
        starts=(np.cumsum(sizes) - sizes)[places],
        sizes=sizes[places].astype(np.float64),
        relevant=np.bincount(block, weights=grades >= rel, minlength=len(sizes))[places],
        gains=(np.bincount(block, weights=grades, minlength=len(sizes)) / sizes)[places],
        ideal_gains=np.sort(everything[everything > 0])[::-1],
        num_relevant=int((everything >= rel).sum()),
    )


def expected_ndcg(ranking: TiedRanking, cutoff: int) -> float:
    """Expected nDCG with the grade as gain and log2(rank + 1) as discount, as in trec_eval."""
    return _dcg(ranking.gains[:cutoff]) / _dcg(ranking.ideal_gains[:cutoff])


def expected_precision(ranking: TiedRanking, cutoff: int) -> float:
    """Expected share of relevant passages among the first ``cutoff`` places, filled or not."""
    return float((ranking.relevant / ranking.sizes)[:cutoff].sum() / cutoff)


def expected_recall(ranking: TiedRanking, cutoff: int) -> float:
    """Expected share of the relevant passages that stand among the first ``cutoff`` places."""
    return float((ranking.relevant / ranking.sizes)[:cutoff].sum() / max(ranking.num_relevant, 1))


def expected_average_precision(ranking: TiedRanking, cutoff: int) -> float:
    """Expected average precision.

    A place of a block of n passages, r of them relevant, holds a relevant one with probability r / n; given that, each
    earlier place of the block holds one with probability (r - 1) / (n - 1).
    """
    place = np.arange(len(ranking.sizes))
    is_relevant = ranking.relevant / ranking.sizes
    of_earlier_blocks = np.concatenate([[0.0], np.cumsum(is_relevant)])[ranking.starts]
    of_own_block = (place - ranking.starts) * (ranking.relevant - 1) / np.maximum(ranking.sizes - 1, 1)
    precision = (of_earlier_blocks + of_own_block + 1) / (place + 1)
    return float((is_relevant * precision)[:cutoff].sum() / max(ranking.num_relevant, 1))


def expected_reciprocal_rank(ranking: TiedRanking, cutoff: int) -> float:
    """Expected reciprocal rank of the first relevant passage; 0 where it stands behind ``cutoff``.

    It stands in the first block of n passages that has r > 0 relevant ones, at the place j of it (from 0) with
    probability r / (n - j) times that of none before.
    """
    blocks = np.flatnonzero(ranking.relevant)
    if not len(blocks):
        return 0.0
    start, size, relevant = (float(values[blocks[0]]) for values in (ranking.starts, ranking.sizes, ranking.relevant))
    expected, none_before = 0.0, 1.0
    for place in range(int(min(size - relevant + 1, cutoff - start))):
        here = relevant / (size - place)
        expected += none_before * here / (start + place + 1)
        none_before *= 1 - here
    return expected


def expected_success(ranking: TiedRanking, cutoff: int) -> float:
    """Probability that a relevant passage stands among the first ``cutoff`` places.

    Only the first block that has relevant ones decides: the places of it that count are all others with probability
    (n - r) / n times (n - r - 1) / (n - 1) and so on.
    """
    blocks = np.flatnonzero(ranking.relevant)
    if not len(blocks):
        return 0.0
    start, size, relevant = (float(values[blocks[0]]) for values in (ranking.starts, ranking.sizes, ranking.relevant))
    none = 1.0
    for place in range(int(max(0, min(size, cutoff - start)))):
        none *= max(size - relevant - place, 0.0) / (size - place)
    return 1.0 - none


# By the names of ir_measures. The closed forms for ties: McSherry and Najork, "Computing Information Retrieval
# Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008,
# https://doi.org/10.1007/978-3-540-78646-7_38
EXPECTED: dict[str, Callable[[TiedRanking, int], float]] = {
    "nDCG": expected_ndcg,
    "RR": expected_reciprocal_rank,
    "AP": expected_average_precision,
    "R": expected_recall,
    "P": expected_precision,
    "Success": expected_success,
}


def _dcg(gains: Floats) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())
