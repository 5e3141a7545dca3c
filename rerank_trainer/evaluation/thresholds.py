"""Thresholds: what it would mean to keep the passages whose score reaches one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rerank_trainer.evaluation.calibration import Calibration
from rerank_trainer.evaluation.results import Evaluation

_DECILES = tuple(tenth / 10 for tenth in range(1, 10))


def threshold_table(
    evaluation: Evaluation,
    thresholds: Sequence[float] | None = None,
    *,
    calibration: Calibration | None = None,
    first_stage: str | None = None,
) -> list[dict[str, float]]:
    """For each threshold what keeping the passages that reach it would mean, over all queries together.

    A row has ``threshold``; ``kept_per_query``, the passages kept of a query in the mean; ``precision``, the share of
    relevant ones among those kept (NaN where nothing is); ``recall``, the share of all known relevant passages that are
    kept, those counted that the first stage missed; and ``empty_share``, the share of queries of which nothing is kept.

    Args:
        evaluation: Whose scores.
        thresholds: In the unit of the scores, or of probabilities with a calibration. None: 0.1, 0.2, ..., 0.9 with a
            calibration, else the scores at the deciles of all pairs.
        calibration: Maps the scores to probabilities; it must not have seen these queries.
        first_stage: Which lists; None takes the first.

    Raises:
        ValueError: If the calibration was fitted on a query of the evaluation.

    >>> import datasets
    >>> from rerank_trainer.evaluation.evaluator import RerankEvaluator
    >>> rows = {"query": ["1 + 1"], "passages": [["3", "2"]], "labels": [[0.0, 1.0]]}
    >>> evaluation = RerankEvaluator(datasets.Dataset.from_dict(rows)).evaluate(lambda pairs: [-1.0, 2.0])
    >>> threshold_table(evaluation, [0.0])
    [{'threshold': 0.0, 'kept_per_query': 1.0, 'precision': 1.0, 'recall': 1.0, 'empty_share': 0.0}]
    """
    lists = evaluation.scored[evaluation.at(first_stage=first_stage).first_stage]
    if calibration is not None:
        calibration.require_other_queries(lists.queries)
    scores = [row if calibration is None else calibration(row) for row in lists.scores]
    flat, relevant = np.concatenate(scores), lists.pairs()[1]
    if thresholds is None:
        thresholds = np.quantile(flat, _DECILES).tolist() if calibration is None else _DECILES
    num_relevant = int(relevant.sum()) + sum(len(missed) for missed in lists.missed_gains)
    table = []
    for threshold in thresholds:
        kept = flat >= threshold
        hits = int((kept & relevant).sum())
        table.append(
            {
                "threshold": float(threshold),
                "kept_per_query": float(kept.sum() / len(scores)),
                "precision": hits / int(kept.sum()) if kept.any() else float("nan"),
                "recall": hits / num_relevant,
                "empty_share": float(np.mean([not (row >= threshold).any() for row in scores])),
            }
        )
    return table
