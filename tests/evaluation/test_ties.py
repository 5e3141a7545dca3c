"""Ties: the closed forms equal the mean of ir_measures over every order of the passages with equal scores."""

from __future__ import annotations

import itertools

import ir_measures
import numpy as np
import pytest

from rerank_trainer.evaluation.metrics import parse_metric, ranking_metrics

METRICS = ["ndcg", "ndcg@1", "ndcg@3", "mrr", "mrr@2", "map", "map@3", "recall@1", "recall@4", "precision@3"]
METRICS += ["Success@1", "Success@3", "RR(rel=2)@3", "AP(rel=2)", "R(rel=2)@2", "P(rel=2)@3", "Success(rel=2)@2"]


def mean_over_orders(scores, grades, missed):
    """ir_measures on each order that keeps the scores falling, averaged: the slow definition."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    judged = {f"p{i}": int(grade) for i, grade in enumerate(grades)} | {f"m{i}": int(g) for i, g in enumerate(missed)}
    qrels = {str(number): judged for number in range(len(orders))}
    run = {str(n): {f"p{i}": 100.0 - rank for rank, i in enumerate(order)} for n, order in enumerate(orders)}
    found = ir_measures.calc_aggregate([parse_metric(name) for name in METRICS], qrels, run)
    return {name: found[parse_metric(name)] for name in METRICS}


@pytest.mark.parametrize("seed", range(20))
def test_a_group_with_ties_counts_its_mean_over_all_their_orders(seed):
    chance = np.random.default_rng(seed)
    scores, grades = chance.integers(0, 3, size=5).astype(float), chance.integers(0, 3, size=5)
    missed = chance.integers(0, 3, size=seed % 3)
    if not grades.any() and not missed.any():
        pytest.skip("no positive")

    found = ranking_metrics([scores], [grades], [missed], metrics=METRICS)
    assert found == pytest.approx(mean_over_orders(scores, grades, missed))


def test_a_scorer_that_never_decides_gets_the_figures_of_chance_by_hand():
    # one positive among four: each place equally likely
    figures = ranking_metrics([[0.0] * 4], [[0, 0, 1, 0]], metrics=["mrr", "map", "recall@2", "precision@2", "ndcg"])

    assert figures == pytest.approx(
        {
            "mrr": (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
            "map": (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
            "recall@2": 2 / 4,
            "precision@2": 1 / 4,
            "ndcg": sum(1 / np.log2(rank + 1) for rank in (1, 2, 3, 4)) / 4,
        }
    )


@pytest.mark.parametrize("place", [0, 2, 4])
def test_ties_favour_no_position(place):
    labels = [[int(i == place) for i in range(5)]] * 4

    figures = ranking_metrics([[1.5] * 5] * 4, labels, metrics=METRICS)
    assert figures == pytest.approx(mean_over_orders([0.0] * 5, [1, 0, 0, 0, 0], []))


def test_neither_the_order_of_passages_and_groups_nor_a_subset_changes_what_a_group_counts():
    chance = np.random.default_rng(7)
    scores, labels = chance.integers(0, 3, size=(9, 10)).astype(float), chance.integers(0, 2, size=(9, 10))
    alone = [ranking_metrics([s], [y], metrics=METRICS) for s, y in zip(scores, labels, strict=True)]
    groups, passages = chance.permutation(9), chance.permutation(10)

    whole = ranking_metrics(scores[groups][:, passages], labels[groups][:, passages], metrics=METRICS)
    assert whole == pytest.approx({name: np.mean([figures[name] for figures in alone]) for name in METRICS})


def test_scores_that_differ_by_less_than_float32_resolves_are_no_ties():
    close = [[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]]

    assert ranking_metrics(close, [[0, 1], [1, 0]], metrics=["mrr"])["mrr"] == 1.0
    assert ranking_metrics(close, [[1, 0], [0, 1]], metrics=["mrr"])["mrr"] == 0.5


def test_equal_scores_of_equal_grades_decide_nothing():
    assert ranking_metrics([[2.0, 1.0, 1.0]], [[1, 0, 0]], metrics=["ndcg", "map"]) == {"ndcg": 1.0, "map": 1.0}
