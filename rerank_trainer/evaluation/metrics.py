"""Ranking metrics, computed by ir_measures from scores, labels and the gains that candidate lists miss."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import ir_measures
import numpy as np
from numpy.typing import NDArray

DEFAULT_METRICS = ("ndcg@10", "mrr@10", "map", "recall@10")
# Our names, as they stand in the logs, and those of ir_measures.
_MEASURES = {
    "ndcg": ir_measures.nDCG,
    "mrr": ir_measures.RR,
    "map": ir_measures.AP,
    "recall": ir_measures.R,
    "precision": ir_measures.P,
}
_NEEDS_CUTOFF = ("recall", "precision")


def parse_metric(name: str) -> Any:
    """The measure of ir_measures that a name such as "ndcg@10" stands for.

    Raises:
        ValueError: If the name is not known or lacks its cut-off.

    >>> parse_metric("mrr@10")
    RR@10
    """
    match = re.fullmatch(r"([a-z]+)(?:@([1-9]\d*))?", name)
    if match is None or match[1] not in _MEASURES or (match[1] in _NEEDS_CUTOFF and match[2] is None):
        raise ValueError(
            f"metric {name!r} is not known; expected one of ndcg, mrr, map, recall@k, precision@k, or with @k"
        )
    measure = _MEASURES[match[1]]
    return measure @ int(match[2]) if match[2] else measure


def ranking_metrics(
    scores: Sequence[Sequence[float]] | NDArray[np.floating],
    labels: Sequence[Sequence[float]] | NDArray[np.floating],
    missed_gains: Sequence[Sequence[float]] | NDArray[np.floating] | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, float]:
    """Means over queries of ranking metrics.

    Every group counts: one whose candidate list is empty or holds no positive, but that has missed gains, counts 0.
    A group without any positive, in the list or missed, has no metric and is left out of the mean.
    Equal scores are ordered by a fixed shuffle of each group, so that neither position nor label decides.

    Args:
        scores: One score a passage; lists of unlike length, or ``(num_queries, group_size)``.
        labels: Integer grades, shaped as the scores; -100 where there is no passage.
        missed_gains: Grades of judged passages outside the lists, one list a query; -100 at padding.
        metrics: Names such as "ndcg@10", "mrr@10", "map", "recall@100".

    Returns:
        A mapping from metric name to mean, NaN when no group has a positive.

    Raises:
        ValueError: If a label is not an integer or a score of a passage is not a number.

    >>> ranking_metrics([[0.1, 0.9]], [[1, 0]], metrics=["mrr@10"])
    {'mrr@10': 0.5}
    """
    measures = {name: parse_metric(name) for name in metrics}
    if missed_gains is None:
        missed_gains = [[] for _ in labels]
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for index, row in enumerate(zip(scores, labels, missed_gains, strict=True)):
        query_scores, query_labels, missed = (np.asarray(values, dtype=np.float64) for values in row)
        real = query_labels >= 0
        grades = _integer_grades(query_labels[real], index)
        judged = {str(i): grade for i, grade in enumerate(grades)}
        judged |= {f"missed-{i}": grade for i, grade in enumerate(_integer_grades(missed[missed > 0], index))}
        if not any(judged.values()):
            continue
        qrels[str(index)] = judged
        run[str(index)] = _tie_free_run(query_scores[real], index)
    if not qrels:
        return dict.fromkeys(measures, float("nan"))
    sums = dict.fromkeys(measures, 0.0)
    by_measure = {measure: name for name, measure in measures.items()}
    for value in ir_measures.iter_calc(list(by_measure), qrels, run):
        sums[by_measure[value.measure]] += value.value
    return {name: total / len(qrels) for name, total in sums.items()}


def _integer_grades(labels: NDArray[np.floating], index: int) -> list[int]:
    if not np.all(labels == np.round(labels)):
        wrong = labels[labels != np.round(labels)][0]
        raise ValueError(
            f"group {index} has the label {wrong}; ranking metrics need integer grades. Give 0, 1, 2, ... in the "
            "evaluation set, or metrics of your own as compute_metrics."
        )
    return [int(label) for label in labels]


def _tie_free_run(scores: NDArray[np.floating], index: int) -> dict[str, float]:
    """The passages with scores of their rank: ir_measures would break ties by passage id."""
    if np.isnan(scores).any():
        raise ValueError(f"group {index} has a score that is not a number; the model has diverged")
    order = list(range(len(scores)))
    random.Random(f"ties-{index}").shuffle(order)
    order.sort(key=lambda i: -scores[i])
    return {str(passage): float(-rank) for rank, passage in enumerate(order)}
