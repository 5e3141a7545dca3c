"""Ranking metrics, computed by ir_measures from scores, labels and the gains that candidate lists miss."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import ir_measures
import numpy as np
from numpy.typing import NDArray

from rerank_trainer.data.collator import LABEL_PADDING
from rerank_trainer.evaluation.ties import EXPECTED, has_mixed_ties, tied_ranking

logger = logging.getLogger(__name__)

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
    kind, cutoff = _kind_and_cutoff(name)
    return _MEASURES[kind] if cutoff is None else _MEASURES[kind] @ cutoff


def ranking_metrics(
    scores: Sequence[Sequence[float]] | NDArray[np.floating],
    labels: Sequence[Sequence[float]] | NDArray[np.floating],
    missed_gains: Sequence[Sequence[float]] | NDArray[np.floating] | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, float]:
    """Means over queries of ranking metrics.

    Every group counts: one whose candidate list is empty or holds no positive, but that has missed gains, counts 0.
    A group without any positive, in the list or missed, has no metric: it is left out of the mean, and a log line says
    how many are. ir_measures judges the groups; one in which passages of unlike grades have equal scores counts its
    mean over all orders of those, so that ties favour neither a position nor a label, and no chance is involved.

    Args:
        scores: One score a passage; lists of unlike length, or ``(num_queries, group_size)``.
        labels: Integer grades of 0 or more, shaped as the scores; -100 where there is no passage, whatever its score.
        missed_gains: Grades of judged passages outside the lists, one list a query; -100 at padding.
        metrics: Names such as "ndcg@10", "mrr@10", "map", "recall@100".

    Returns:
        A mapping from metric name to mean, NaN when no group has a positive.

    Raises:
        ValueError: If a label is no integer of 0 or more, the score of a passage is not a number, or numbers of groups
            or passages differ.

    >>> ranking_metrics([[0.1, 0.9]], [[1, 0]], metrics=["mrr@10"])
    {'mrr@10': 0.5}
    >>> ranking_metrics([[0.5, 0.5]], [[1, 0]], metrics=["mrr@10"])
    {'mrr@10': 0.75}
    """
    measures = {parse_metric(name): name for name in metrics}
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    tied: list[dict[str, float]] = []
    num_groups = 0
    for index, (group_scores, grades, missed) in enumerate(_groups(scores, labels, missed_gains)):
        num_groups += 1
        if not grades.any() and not missed.any():
            continue
        if has_mixed_ties(group_scores, grades):
            tied.append(_expected_values(group_scores, grades, missed, metrics))
            continue
        judged = {str(i): int(grade) for i, grade in enumerate(grades)}
        qrels[str(index)] = judged | {f"missed-{i}": int(grade) for i, grade in enumerate(missed)}
        # ranks in place of scores: ir_measures would take scores that differ by less than float32 resolves for equal
        run[str(index)] = {str(i): -float(rank) for rank, i in enumerate(np.argsort(-group_scores))}
    num_judged = len(qrels) + len(tied)
    _log(num_groups, num_judged, len(tied))
    if not num_judged:
        return dict.fromkeys(metrics, float("nan"))
    sums = {name: sum(values[name] for values in tied) for name in metrics}
    for value in ir_measures.iter_calc(list(measures), qrels, run) if qrels else ():
        sums[measures[value.measure]] += value.value
    return {name: total / num_judged for name, total in sums.items()}


def _kind_and_cutoff(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"([a-z]+)(?:@([1-9]\d*))?", name)
    if match is None or match[1] not in _MEASURES or (match[1] in _NEEDS_CUTOFF and match[2] is None):
        raise ValueError(
            f"metric {name!r} is not known; expected one of ndcg, mrr, map, recall@k, precision@k, or with @k"
        )
    return match[1], int(match[2]) if match[2] else None


def _groups(scores: Any, labels: Any, missed_gains: Any) -> Iterable[tuple[NDArray[np.float64], ...]]:
    """Scores, grades and grades missed of each group, checked, without padding."""
    if missed_gains is None:
        missed_gains = [[] for _ in labels]
    if not len(scores) == len(labels) == len(missed_gains):
        raise ValueError(
            f"expected scores, labels and missed gains of the same groups, found {len(scores)}, {len(labels)} and "
            f"{len(missed_gains)} groups"
        )
    for index, row in enumerate(zip(scores, labels, missed_gains, strict=True)):
        group_scores, grades, missed = (np.asarray(values, dtype=np.float64) for values in row)
        if group_scores.shape != grades.shape:
            raise ValueError(f"group {index} has {group_scores.size} scores for {grades.size} labels; give one each")
        real = grades != LABEL_PADDING
        group_scores, grades, missed = group_scores[real], grades[real], missed[missed != LABEL_PADDING]
        _require_grades(grades, index, "label")
        _require_grades(missed, index, "missed gain")
        if np.isnan(group_scores).any():
            raise ValueError(f"group {index} has a score that is not a number; the model has diverged")
        yield group_scores, grades, missed


def _require_grades(grades: NDArray[np.float64], index: int, what: str) -> None:
    wrong = grades[~((grades >= 0) & (grades == np.round(grades)))]
    if len(wrong):
        raise ValueError(
            f"group {index} has the {what} {wrong[0]}; ranking metrics need integer grades. Give 0, 1, 2, ... in the "
            "evaluation set, or metrics of your own as compute_metrics."
        )


def _expected_values(
    scores: NDArray[np.float64], grades: NDArray[np.float64], missed: NDArray[np.float64], metrics: Sequence[str]
) -> dict[str, float]:
    ranking = tied_ranking(scores, grades, missed)
    values = {}
    for name in metrics:
        kind, cutoff = _kind_and_cutoff(name)
        values[name] = EXPECTED[kind](ranking, cutoff or sys.maxsize)
    return values


def _log(num_groups: int, num_judged: int, num_tied: int) -> None:
    if not num_judged:
        logger.warning("none of %d groups has a positive, in the list or missed: every metric is NaN", num_groups)
    elif num_judged < num_groups or num_tied:
        logger.info(
            "%d groups: %d without a positive, in the list or missed, are left out of the means; %d, in which passages "
            "of unlike grades have equal scores, count their mean over all orders of those",
            num_groups,
            num_groups - num_judged,
            num_tied,
        )
