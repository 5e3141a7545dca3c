"""Ranking metrics, computed by ir_measures from scores, labels and the gains that candidate lists miss."""

from __future__ import annotations

import difflib
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
# Names as they stand in the logs, short for those of ir_measures.
_SHORT = {"ndcg": "nDCG", "mrr": "RR", "map": "AP", "recall": "R", "precision": "P", "success": "Success"}
_NEEDS_CUTOFF = ("R", "P", "Success")


def parse_metric(name: str) -> Any:
    """The measure of ir_measures that a name such as "nDCG@10", "RR(rel=2)@10" or "ndcg@10" stands for.

    Raises:
        ValueError: If the name is not known or lacks its cut-off; the message names those that are nearest.

    >>> parse_metric("mrr@10"), parse_metric("AP(rel=2)")
    (RR@10, AP(rel=2))
    """
    kind = re.match(r"[^(@]*", name)[0] if isinstance(name, str) else ""  # type: ignore[index]
    try:
        measure = ir_measures.parse_measure(_SHORT.get(kind, kind) + name[len(kind) :])
        measure.validate_params()
    except (NameError, ValueError, AssertionError, TypeError) as error:
        raise _unknown_metric(name, kind) from error
    cutoff, rel = (measure.params.get(parameter, 1) for parameter in ("cutoff", "rel"))
    if measure.NAME not in EXPECTED or measure.params.keys() - {"cutoff", "rel"} or cutoff < 1 or rel < 1:
        raise _unknown_metric(name, kind)
    return measure


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
        metrics: Names of ir_measures such as "nDCG@10", "RR@10", "AP", "R@100", "P@5", "Success@5", also with the
            lowest grade that is relevant, "RR(rel=2)@10"; or "ndcg@10", "mrr@10", "map", "recall@100", "precision@5".

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
    values = metrics_by_query(scores, labels, missed_gains, metrics=metrics)
    return {name: mean_over_queries(of_queries) for name, of_queries in values.items()}


def metrics_by_query(
    scores: Sequence[Sequence[float]] | NDArray[np.floating],
    labels: Sequence[Sequence[float]] | NDArray[np.floating],
    missed_gains: Sequence[Sequence[float]] | NDArray[np.floating] | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, NDArray[np.float64]]:
    """The metrics of each query, ``(num_queries,)`` each; NaN where nothing relevant is known.

    Args and Raises: as :func:`ranking_metrics`.

    >>> metrics_by_query([[0.1, 0.9], [2.0]], [[1, 0], [0]], metrics=["RR"])
    {'RR': array([0.5, nan])}
    """
    measures = {name: parse_metric(name) for name in metrics}
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    tied: dict[int, dict[Any, float]] = {}
    num_groups = 0
    for index, (group_scores, grades, missed) in enumerate(_groups(scores, labels, missed_gains)):
        num_groups += 1
        if not grades.any() and not missed.any():
            continue
        if has_mixed_ties(group_scores, grades):
            tied[index] = _expected_values(group_scores, grades, missed, measures.values())
            continue
        judged = {str(i): int(grade) for i, grade in enumerate(grades)}
        qrels[str(index)] = judged | {f"missed-{i}": int(grade) for i, grade in enumerate(missed)}
        # ranks in place of scores: ir_measures would take scores that differ by less than float32 resolves for equal
        run[str(index)] = {str(i): -float(rank) for rank, i in enumerate(np.argsort(-group_scores))}
    _log(num_groups, len(qrels) + len(tied), len(tied))
    blank = np.full(num_groups, np.nan)
    blank[[int(index) for index in qrels]] = 0.0  # also where ir_measures has no value, having seen no candidate
    values = {measure: blank.copy() for measure in measures.values()}
    for found in ir_measures.iter_calc(list(values), qrels, run) if qrels else ():
        values[found.measure][int(found.query_id)] = found.value
    for index, expected in tied.items():
        for measure, value in expected.items():
            values[measure][index] = value
    return {name: values[measure] for name, measure in measures.items()}


def mean_over_queries(values: NDArray[np.float64]) -> float:
    """The mean over the queries that have a value; NaN when none has one."""
    judged = values[~np.isnan(values)]
    return float(judged.mean()) if len(judged) else float("nan")


def _unknown_metric(name: Any, kind: str) -> ValueError:
    known = (*_SHORT, *EXPECTED) if kind.islower() else (*EXPECTED, *_SHORT)
    close = difflib.get_close_matches(kind.lower(), {one.lower() for one in known}, n=2, cutoff=0.5)
    nearest = [one for match in close for one in known if one.lower() == match]
    rest = str(name)[len(kind) :]
    usable = [near + (rest if re.fullmatch(r"@[1-9]\d*", rest) else _cutoff_hint(near)) for near in nearest]
    guess = f"Did you mean {' or '.join(usable)}? " if usable else ""
    return ValueError(
        f"metric {name!r} is not known. {guess}Expected nDCG, RR, AP, R, P or Success with a cut-off of 1 or more, as "
        "in R@100 (nDCG, RR and AP also without), where rel=2 may say what is relevant, as in RR(rel=2)@10; or ndcg, "
        "mrr, map, recall, precision or success."
    )


def _cutoff_hint(kind: str) -> str:
    return "@10" if _SHORT.get(kind, kind) in _NEEDS_CUTOFF else ""


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
    scores: NDArray[np.float64], grades: NDArray[np.float64], missed: NDArray[np.float64], measures: Iterable[Any]
) -> dict[Any, float]:
    values = {}
    for measure in measures:
        ranking = tied_ranking(scores, grades, missed, rel=measure["rel"] if "rel" in measure.params else 1)
        values[measure] = EXPECTED[measure.NAME](ranking, measure.params.get("cutoff", sys.maxsize))
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
