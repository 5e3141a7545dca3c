"""Ranking metrics: hand arithmetic, ir_measures on TREC files, missed gains, ties."""

from __future__ import annotations

import math
import re

import ir_measures
import numpy as np
import pytest

from rerank_trainer.data.runs import write_run
from rerank_trainer.data.trec import load_beir
from rerank_trainer.evaluation.evaluator import evaluate_groups
from rerank_trainer.evaluation.metrics import metrics_by_query, parse_metric, ranking_metrics


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
    figures = ranking_metrics([[2.0, 1.0]], [[1, 0]], [[1.0]], metrics=["ndcg@10", "recall@10", "map", "mrr@10"])

    assert figures["recall@10"] == 0.5
    assert figures["map"] == 0.5
    assert figures["ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert figures["mrr@10"] == 1.0


def test_a_query_without_candidates_counts_zero():
    figures = ranking_metrics([[1.0], []], [[1], []], [[], [1.0]], metrics=["mrr@10", "ndcg@10"])

    assert figures == {"mrr@10": 0.5, "ndcg@10": 0.5}


def test_a_group_without_any_positive_is_left_out():
    assert ranking_metrics([[1.0], [1.0]], [[1], [0]], metrics=["map"])["map"] == 1.0
    assert math.isnan(ranking_metrics([[1.0]], [[0]], metrics=["map"])["map"])


def test_padding_does_not_rank():
    labels = np.array([[0.0, 1.0, -100.0]])

    for fill in (0.0, -5.0, -100.0, float("inf"), float("nan")):
        padded = np.array([[-3.0, -5.0, fill]])
        assert ranking_metrics(padded, labels, [[-100]], metrics=["mrr@10"])["mrr@10"] == 0.5


@pytest.fixture
def random_ranking(tmp_path):
    """Scores, labels and missed gains of 20 queries of unlike length, and the same as TREC files."""
    chance = np.random.default_rng(0)
    sizes = [0, *chance.integers(1, 15, size=19)]
    scores = [chance.normal(size=size) for size in sizes]
    labels = [chance.integers(0, 3, size=size) for size in sizes]
    missed = [chance.integers(1, 3, size=1 + index % 3) for index in range(20)]
    run = {f"q{q}": [(f"p{i}", score) for i, score in enumerate(row)] for q, row in enumerate(scores)}
    write_run(tmp_path / "run", run, tag="random")
    lines = [f"q{q} 0 p{i} {grade}\n" for q, row in enumerate(labels) for i, grade in enumerate(row)]
    lines += [f"q{q} 0 missed{i} {grade}\n" for q, row in enumerate(missed) for i, grade in enumerate(row)]
    (tmp_path / "qrels").write_text("".join(lines))
    return scores, labels, missed, tmp_path


METRICS = ["ndcg", "ndcg@10", "ndcg@3", "mrr", "mrr@2", "map", "map@10", "recall@5", "recall@100", "precision@5"]
METRICS += ["nDCG@10", "RR(rel=2)@3", "AP(rel=2)", "R(rel=2)@5", "P(rel=2)@5", "Success@2", "Success(rel=2)@2"]


def test_figures_equal_those_of_ir_measures_on_trec_files(random_ranking):
    scores, labels, missed, folder = random_ranking
    expected = ir_measures.calc_aggregate(
        [parse_metric(name) for name in METRICS],
        ir_measures.read_trec_qrels(str(folder / "qrels")),
        ir_measures.read_trec_run(str(folder / "run")),
    )

    figures = ranking_metrics(scores, labels, missed, metrics=METRICS)
    assert figures == pytest.approx({name: expected[parse_metric(name)] for name in METRICS})
    assert ranking_metrics(scores, labels, metrics=["ndcg"])["ndcg"] > figures["ndcg"]  # what was missed counts


def test_figures_equal_those_of_trec_eval_on_trec_files(random_ranking):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores, labels, missed, folder = random_ranking
    names = {"ndcg": "ndcg", "ndcg@10": "ndcg_cut_10", "mrr": "recip_rank", "map": "map", "recall@5": "recall_5"}
    with open(folder / "qrels") as qrels, open(folder / "run") as run:
        evaluator = pytrec_eval.RelevanceEvaluator(
            pytrec_eval.parse_qrel(qrels), {"ndcg", "ndcg_cut.10", "recip_rank", "map", "recall.5"}
        )
        of_queries = evaluator.evaluate(pytrec_eval.parse_run(run)).values()

    # trec_eval leaves out the query without candidates; here it counts 0
    assert len(of_queries) == 19
    expected = {name: sum(values[theirs] for values in of_queries) / 20 for name, theirs in names.items()}
    assert ranking_metrics(scores, labels, missed, metrics=list(names)) == pytest.approx(expected)


def test_a_beir_folder_is_judged_as_ir_measures_judges_its_run_and_qrels(tmp_path):
    (tmp_path / "qrels").mkdir()
    passages = {"p1": "one", "p2": "two", "p3": "three", "p4": "four"}
    (tmp_path / "corpus.jsonl").write_text("\n".join(f'{{"_id": "{p}", "text": "{t}"}}' for p, t in passages.items()))
    (tmp_path / "queries.jsonl").write_text("\n".join(f'{{"_id": "q{i}", "text": "query {i}"}}' for i in range(4)))
    # q0 lacks p4, of the highest grade; q1 has no candidates at all; q2 has a negative grade; q3 nothing relevant
    qrels = "q0 0 p1 1\nq0 0 p4 3\nq1 0 p2 1\nq2 0 p3 -1\nq2 0 p1 2\nq3 0 p1 0\n"
    (tmp_path / "qrels" / "test.tsv").write_text(qrels)
    run = {"q0": [("p1", 3.0), ("p2", 2.0)], "q2": [("p3", 5.0), ("p1", 4.0)], "q3": [("p1", 1.0)]}
    write_run(tmp_path / "run.trec", run, tag="first")
    judged = [qrel for qrel in ir_measures.read_trec_qrels(qrels) if qrel.query_id != "q3"]

    expected = ir_measures.calc_aggregate(
        [parse_metric(name) for name in METRICS], judged, ir_measures.read_trec_run(str(tmp_path / "run.trec"))
    )
    groups = load_beir(tmp_path, "test", run=tmp_path / "run.trec")
    figures = evaluate_groups(groups, metrics=METRICS)
    assert figures == pytest.approx({name: expected[parse_metric(name)] for name in METRICS})
    assert figures["mrr"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert figures["recall@100"] == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_a_label_that_is_no_integer_is_refused_with_its_group():
    with pytest.raises(ValueError, match="group 1 has the label 0.5"):
        ranking_metrics([[1.0], [1.0]], [[1], [0.5]])


@pytest.mark.parametrize("grade", [-1, -2.0, float("nan"), 0.5])
def test_a_grade_below_zero_is_refused_instead_of_taken_for_padding(grade):
    with pytest.raises(ValueError, match=f"group 0 has the label {float(grade)}"):
        ranking_metrics([[1.0, 2.0]], [[1, grade]])
    with pytest.raises(ValueError, match=f"group 0 has the missed gain {float(grade)}"):
        ranking_metrics([[1.0, 2.0]], [[1, 0]], [[grade]])


def test_unlike_numbers_of_scores_and_labels_are_refused():
    with pytest.raises(ValueError, match="group 1 has 1 scores for 2 labels"):
        ranking_metrics([[1.0], [1.0]], [[1], [1, 0]])
    with pytest.raises(ValueError, match="found 2, 1 and 1 groups"):
        ranking_metrics([[1.0], [1.0]], [[1]])


def test_how_many_groups_are_left_out_or_tied_is_logged(caplog):
    caplog.set_level("INFO")
    ranking_metrics([[1.0], [1.0], [2.0, 2.0]], [[1], [0], [0, 1]])
    ranking_metrics([[1.0]], [[0]])

    assert "3 groups: 1 without a positive, in the list or missed, are left out of the means; 1," in caplog.text
    assert "none of 1 groups has a positive" in caplog.text


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="group 0 has a score that is not a number"):
        ranking_metrics([[float("nan"), 1.0]], [[1, 0]])


@pytest.mark.parametrize(
    ("short", "name"),
    [("ndcg@10", "nDCG@10"), ("mrr@5", "RR@5"), ("map", "AP"), ("recall@100", "R@100"), ("precision@3", "P@3")],
)
def test_short_names_stand_for_measures_of_ir_measures(short, name):
    assert parse_metric(short) == parse_metric(name) == ir_measures.parse_measure(name)


def test_names_of_one_measure_all_have_its_value():
    names = ["ndcg@10", "nDCG@10", "NDCG@10"]

    assert list(ranking_metrics([[2.0, 1.0]], [[1, 0]], metrics=names).items()) == [(name, 1.0) for name in names]


def test_each_query_has_its_value_and_one_without_a_positive_none():
    values = metrics_by_query([[1.0, 2.0], [3.0], [1.0, 1.0]], [[1, 0], [0], [0, 1]], metrics=["RR", "P@1"])

    np.testing.assert_array_equal(values["RR"], [0.5, np.nan, 0.75])  # the third is tied: (1 + 1/2) / 2
    np.testing.assert_array_equal(values["P@1"], [0.0, np.nan, 0.5])


def test_a_query_without_a_passage_of_the_grade_asked_for_counts_zero_as_in_trec_eval():
    assert ranking_metrics([[2.0, 1.0]], [[1, 0]], metrics=["RR(rel=2)", "R(rel=2)@5"]) == {
        "RR(rel=2)": 0.0,
        "R(rel=2)@5": 0.0,
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("nDGC@10", "nDCG@10"),
        ("ndgc@10", "ndcg@10|nDCG@10"),
        ("recal@5", "recall@5"),
        ("recall", "recall@10"),
        ("success", "[Ss]uccess@10"),
        ("MAPP", "map|AP"),
    ],
)
def test_an_unknown_metric_is_answered_with_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=rf"metric '{name}' is not known. Did you mean .*({nearest})") as error:
        parse_metric(name)
    guess = str(error.value).split("Did you mean ")[1].split("?")[0]
    assert all(parse_metric(offered) for offered in guess.split(" or "))


@pytest.mark.parametrize(
    "name",
    ["ndgc@10", "recall", "ndcg@0", "ndcg@", "mrr@-1", "R", "ERR@10", "nDCG(dcg='exp-log2')@10", "AP(rel=0)", "", 5]
    + ["P@5@5", "RR(judged_only=True)@10", "R(rel=2)"],
)
def test_an_unknown_metric_is_refused_by_name(name):
    with pytest.raises(ValueError, match=re.escape(f"metric {name!r} is not known")):
        parse_metric(name)
