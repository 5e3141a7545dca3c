"""Ranking metrics: hand arithmetic, ir_measures on TREC files, missed gains, ties."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest

from rerank_trainer.evaluation.metrics import parse_metric, ranking_metrics


def test_ndcg_of_graded_labels_by_hand():
    # ranked: grade 1, grade 0, grade 3; ideal: 3, 1, 0; trec_eval's gain is the grade itself
    found = 1 / math.log2(2) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)

    assert ranking_metrics([[0.9, 0.5, 0.1]], [[1, 0, 3]], metrics=["ndcg@10"])["ndcg@10"] == pytest.approx(
        found / ideal
    )


def test_mrr_map_recall_and_precision_by_hand():
    figures = ranking_metrics(
        [[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]],
        [[0, 1, 0, 1], [1, 0, 0, 0]],
        metrics=["mrr@10", "map", "recall@2", "precision@2"],
    )

    assert figures["mrr@10"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert figures["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 / 4) / 2)
    assert figures["recall@2"] == pytest.approx((1 / 2 + 0) / 2)
    assert figures["precision@2"] == pytest.approx((1 / 2 + 0) / 2)


def test_a_list_that_misses_a_positive_cannot_reach_one():
    figures = ranking_metrics([[2.0, 1.0]], [[1, 0]], [[1.0]], metrics=["ndcg@10", "recall@10", "mrr@10"])

    assert figures["recall@10"] == 0.5
    assert figures["ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert figures["mrr@10"] == 1.0


def test_a_query_without_candidates_counts_zero():
    figures = ranking_metrics([[1.0], []], [[1], []], [[], [1.0]], metrics=["mrr@10", "ndcg@10"])

    assert figures == {"mrr@10": 0.5, "ndcg@10": 0.5}


def test_a_group_without_any_positive_is_left_out():
    assert ranking_metrics([[1.0], [1.0]], [[1], [0]], metrics=["map"])["map"] == 1.0
    assert math.isnan(ranking_metrics([[1.0]], [[0]], metrics=["map"])["map"])


def test_padding_does_not_rank():
    padded = np.array([[-3.0, -5.0, 0.0]])
    labels = np.array([[0.0, 1.0, -100.0]])

    assert ranking_metrics(padded, labels, metrics=["mrr@10"])["mrr@10"] == 0.5


def test_equal_scores_favour_neither_position_nor_label():
    labels = [[1, 0], [0, 1]] * 200
    mrr = ranking_metrics([[0.0, 0.0]] * 400, labels, metrics=["mrr@10"])["mrr@10"]
    first = ranking_metrics([[0.0, 0.0]] * 400, [[1, 0]] * 400, metrics=["mrr@10"])["mrr@10"]

    assert mrr == pytest.approx(0.75, abs=0.03) and first == pytest.approx(0.75, abs=0.03)


def test_figures_equal_those_of_ir_measures_on_trec_files(tmp_path):
    chance = np.random.default_rng(0)
    scores = [chance.normal(size=12) for _ in range(20)]
    labels = [chance.integers(0, 3, size=12) for _ in range(20)]
    (tmp_path / "run").write_text(
        "".join(f"{q} Q0 p{i} 1 {s:.17g} tag\n" for q, row in enumerate(scores) for i, s in enumerate(row))
    )
    (tmp_path / "qrels").write_text(
        "".join(f"{q} 0 p{i} {y}\n" for q, row in enumerate(labels) for i, y in enumerate(row))
    )
    expected = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10, ir_measures.RR @ 10, ir_measures.AP, ir_measures.R @ 5],
        ir_measures.read_trec_qrels(str(tmp_path / "qrels")),
        ir_measures.read_trec_run(str(tmp_path / "run")),
    )

    figures = ranking_metrics(scores, labels, metrics=["ndcg@10", "mrr@10", "map", "recall@5"])
    assert list(figures.values()) == pytest.approx([expected[parse_metric(name)] for name in figures])


def test_a_label_that_is_no_integer_is_refused_with_its_group():
    with pytest.raises(ValueError, match="group 1 has the label 0.5"):
        ranking_metrics([[1.0], [1.0]], [[1], [0.5]])


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="group 0 has a score that is not a number"):
        ranking_metrics([[float("nan"), 1.0]], [[1, 0]])


@pytest.mark.parametrize("name", ["ndgc@10", "recall", "ndcg@0", "NDCG@10", "ndcg@", "mrr@-1"])
def test_an_unknown_metric_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"metric '{name}' is not known"):
        parse_metric(name)
