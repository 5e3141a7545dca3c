"""Thresholds: what is kept, counted by hand."""

from __future__ import annotations

import math

import datasets
import pytest

from rerank_trainer.evaluation.calibration import Calibration
from rerank_trainer.evaluation.evaluator import RerankEvaluator
from rerank_trainer.evaluation.thresholds import threshold_table

GROUPS = datasets.Dataset.from_dict(
    {
        "query": ["a", "b"],
        "passages": [["3", "1", "2"], ["0", "-1"]],
        "labels": [[1.0, 0.0, 2.0], [1.0, 0.0]],
        "missed_gains": [[], [1.0]],
    }
)


@pytest.fixture(scope="module")
def evaluation():
    return RerankEvaluator(GROUPS).evaluate(lambda pairs: [float(passage) for _, passage in pairs])


def test_each_threshold_keeps_what_reaches_it_by_hand(evaluation):
    low, middle, high = threshold_table(evaluation, [-5.0, 1.0, 3.5])

    # five passages, three of them relevant, and one relevant passage that the first stage missed
    assert low == {"threshold": -5.0, "kept_per_query": 2.5, "precision": 3 / 5, "recall": 3 / 4, "empty_share": 0.0}
    assert middle == {"threshold": 1.0, "kept_per_query": 1.5, "precision": 2 / 3, "recall": 2 / 4, "empty_share": 0.5}
    assert math.isnan(high.pop("precision"))
    assert high == {"threshold": 3.5, "kept_per_query": 0.0, "recall": 0.0, "empty_share": 1.0}


def test_with_a_calibration_thresholds_are_probabilities(evaluation):
    calibration = Calibration("platt", {"slope": 1.0, "intercept": -1.0})  # 0.5 at a score of 1

    (by_score,) = threshold_table(evaluation, [1.0])
    (by_probability,) = threshold_table(evaluation, [0.5], calibration=calibration)
    assert by_probability == by_score | {"threshold": 0.5}
    assert [row["threshold"] for row in threshold_table(evaluation, calibration=calibration)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    )


def test_without_thresholds_they_are_the_deciles_of_the_scores(evaluation):
    rows = threshold_table(evaluation)

    # of -1, 0, 1, 2, 3 the tenths lie 0.4 apart
    assert [row["threshold"] for row in rows] == pytest.approx([-0.6, -0.2, 0.2, 0.6, 1.0, 1.4, 1.8, 2.2, 2.6])
    assert rows[4]["kept_per_query"] == 1.5


def test_a_calibration_that_saw_a_query_is_refused(evaluation):
    with pytest.raises(ValueError, match="2 of 2 queries were fitted on, the first is 'a'"):
        threshold_table(evaluation, calibration=Calibration.fit(evaluation))
