"""The evaluator: the scoring function sees the pairs in order, and its scores order the passages."""

from __future__ import annotations

import datasets
import pytest

from rerank_trainer.evaluation.evaluator import evaluate_groups

GROUPS = datasets.Dataset.from_dict(
    {
        "query": ["a", "b", "c"],
        "passages": [["1", "2", "3"], ["4"], []],
        "labels": [[0.0, 0.0, 1.0], [1.0], []],
        "missed_gains": [[], [], [1.0]],
    }
)


def test_the_first_stage_is_judged_in_its_own_order():
    assert evaluate_groups(GROUPS, metrics=["mrr@10"])["mrr@10"] == pytest.approx((1 / 3 + 1 + 0) / 3)


def test_scores_order_the_passages_of_their_own_query():
    seen = []

    def predict(pairs):
        seen.extend(pairs)
        return [float(passage) for _, passage in pairs]

    assert evaluate_groups(GROUPS, predict, metrics=["mrr@10"])["mrr@10"] == pytest.approx((1 + 1 + 0) / 3)
    assert seen == [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")]


def test_another_number_of_scores_is_refused():
    with pytest.raises(ValueError, match="returned 3 scores for 4 pairs"):
        evaluate_groups(GROUPS, lambda pairs: [0.0] * 3)


def test_any_scoring_function_sees_each_pair_once_and_its_score_counts_wherever_the_pair_stands():
    groups = datasets.Dataset.from_dict(
        {
            "query": ["a", "b", "a"],
            "passages": [["1", "2", "1"], ["2"], ["2", "3"]],
            "labels": [[0.0, 1.0, 0.0], [1.0], [1.0, 0.0]],
        }
    )
    seen = []

    def predict(pairs):
        seen.extend(pairs)
        return [float(passage) for _, passage in pairs]

    # "2" is first among 1, 2, 1; alone; and second to 3
    assert evaluate_groups(groups, predict, metrics=["mrr@10"])["mrr@10"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert seen == [("a", "1"), ("a", "2"), ("b", "2"), ("a", "3")]
