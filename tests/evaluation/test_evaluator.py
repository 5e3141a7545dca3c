"""The evaluator: the scoring function sees the pairs in order, and its scores order the passages, at every depth."""

from __future__ import annotations

import itertools
import json
import sys

import datasets
import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.evaluation import BaseEvaluator, SequentialEvaluator

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.data.runs import read_qrels, read_run, write_run
from rerank_trainer.data.trec import load_beir, load_trec
from rerank_trainer.evaluation import results
from rerank_trainer.evaluation.cross_encoder import LiveCrossEncoder
from rerank_trainer.evaluation.evaluator import RerankEvaluator, evaluate_groups
from rerank_trainer.evaluation.metrics import ranking_metrics
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.tiny_models import tiny_model
from tests.trainers.conftest import SILENT, small_reranker, word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import judge_words

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


# ---- depths, first stages, ceilings

METRICS = ["nDCG@10", "RR@10", "AP", "R@20", "P@5"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Twelve queries with two runs of 40 passages and graded qrels, as files; and the scores of a reranker."""
    folder, chance = tmp_path_factory.mktemp("collection"), np.random.default_rng(3)
    names = [f"p{i}" for i in range(60)]
    table = datasets.Dataset.from_list([{"_id": name, "text": f"text of {name}"} for name in names])
    queries = datasets.Dataset.from_list([{"_id": f"q{i}", "text": f"query {i}"} for i in range(12)])
    judged = {f"q{i}": {str(name): int(chance.integers(0, 4)) for name in chance.choice(names, 15)} for i in range(12)}
    lines = [f"{query} 0 {name} {grade}\n" for query, grades in judged.items() for name, grade in grades.items()]
    (folder / "qrels").write_text("".join(lines))
    runs = {}
    for stage in ("bm25", "dense"):
        runs[stage] = {
            q: [(str(n), 1.0 / (1 + r)) for r, n in enumerate(chance.permutation(names)[:40])] for q in judged
        }
        write_run(folder / f"{stage}.trec", runs[stage], tag=stage)
    groups = {
        stage: load_trec(folder / f"{stage}.trec", folder / "qrels", queries=queries, corpus=table) for stage in runs
    }
    scores = {(f"query {i}", f"text of {name}"): float(chance.normal()) for i in range(12) for name in names}
    return folder, groups, runs, scores


def measured(folder, run):
    """ir_measures on a run and the qrels file."""
    found = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(name) for name in METRICS],
        list(ir_measures.read_trec_qrels(str(folder / "qrels"))),
        {query: dict(entries) for query, entries in run.items()},
    )
    return {str(measure): value for measure, value in found.items()}


def test_every_depth_has_the_figures_of_its_cut_and_reranked_run_in_ir_measures(collection):
    folder, groups, runs, scores = collection
    asked = []

    def predict(pairs):
        asked.append(list(pairs))
        return [scores[pair] for pair in pairs]

    evaluation = RerankEvaluator(groups, metrics=METRICS, depths=(30, 5, 10)).evaluate(predict)

    assert [(r.first_stage, r.depth) for r in evaluation.results] == [
        (stage, depth) for stage in ("bm25", "dense") for depth in (5, 10, 30)
    ]
    for result in evaluation.results:
        cut = {query: entries[: result.depth] for query, entries in runs[result.first_stage].items()}
        reranked = {q: [(p, scores[f"query {q[1:]}", f"text of {p}"]) for p, _ in rows] for q, rows in cut.items()}
        assert result.figures("first_stage") == pytest.approx(measured(folder, cut))
        assert result.figures() == pytest.approx(measured(folder, reranked))
    deepest = {
        (f"query {q[1:]}", f"text of {p}") for run in runs.values() for q, rows in run.items() for p, _ in rows[:30]
    }
    assert len(asked) == 1 and len(asked[0]) == len(deepest) and set(asked[0]) == deepest  # each pair once
    assert evaluation.figures == evaluation.at(first_stage="bm25", depth=30).figures()
    assert list(evaluation.curve("AP", first_stage="dense")) == [5, 10, 30]


def test_the_ceiling_is_the_best_of_all_orders_and_the_share_found_is_counted_by_hand():
    groups = datasets.Dataset.from_dict(
        {
            "query": ["a", "b"],
            "passages": [["1", "2", "3", "4"], ["5", "6", "7"]],
            "labels": [[0.0, 1.0, 0.0, 3.0], [1.0, 0.0, 2.0]],
            "missed_gains": [[2.0], [1.0, 1.0]],
        }
    )
    evaluation = RerankEvaluator(groups, metrics=METRICS, depths=(3, 4)).evaluate()

    for depth, share in ((3, 3 / 7), (4, 4 / 7)):
        result = evaluation.at(depth=depth)
        best = dict.fromkeys(METRICS, 0.0)
        for row in groups:
            labels, rest = row["labels"][:depth], row["labels"][depth:]
            missed = row["missed_gains"] + [grade for grade in rest if grade]
            orders = itertools.permutations(range(len(labels)))
            of_orders = [ranking_metrics([order], [labels], [missed], metrics=METRICS) for order in orders]
            best = {name: best[name] + max(found[name] for found in of_orders) / 2 for name in METRICS}
        assert result.figures("ceiling") == pytest.approx(best)
        assert result.found_share == pytest.approx(share)
        assert result.figures("ceiling")["R@20"] < 1


def test_first_stage_and_ceiling_are_judged_once_however_many_rerankers_are(monkeypatch):
    judged = []
    real = results.metrics_by_query
    monkeypatch.setattr(results, "metrics_by_query", lambda *args, **kwargs: judged.append(1) or real(*args, **kwargs))
    evaluator = RerankEvaluator(GROUPS)

    for _ in range(2):
        evaluator.evaluate(lambda pairs: [float(p) for _, p in pairs])
    assert len(judged) == 3 + 1


def test_a_first_stage_that_found_nothing_at_all_counts_zero():
    rows = {"query": ["a", "b"], "passages": [[], []], "labels": [[], []], "missed_gains": [[1.0], [2.0]]}
    groups = datasets.Dataset.from_dict(rows)
    evaluation = RerankEvaluator(groups, metrics=METRICS).evaluate(lambda pairs: [0.0] * len(pairs))

    assert evaluation.figures == dict.fromkeys(METRICS, 0.0) == evaluation.at().figures("ceiling")
    assert evaluation.at().found_share == 0.0


def test_several_first_stages_of_other_queries_are_refused(collection):
    _, groups, _, _ = collection

    with pytest.raises(ValueError, match="'bm25' and 'dense' differ in 2 judged queries, such as 'q10'"):
        RerankEvaluator({"bm25": groups["bm25"], "dense": groups["dense"].select(range(10))})


def test_the_table_names_first_stage_depth_and_order(collection):
    _, groups, _, _ = collection
    evaluation = RerankEvaluator(groups, metrics=["AP"], depths=(5, 20), name="toy").evaluate()
    lines = str(evaluation).splitlines()

    assert lines[0] == "toy" and lines[1].split() == ["first_stage", "depth", "found_share", "ranking", "AP"]
    assert len(lines) == 2 + 2 * 2 * 3
    assert lines[-1].split()[:2] == ["dense", "20"] and lines[-1].split()[3] == "ceiling"


def test_written_runs_have_the_same_figures_in_ir_measures(collection, tmp_path):
    folder, groups, _, scores = collection
    evaluation = RerankEvaluator(groups, metrics=METRICS).evaluate(lambda pairs: [scores[pair] for pair in pairs])
    paths = evaluation.write_runs(tmp_path / "runs", tag="mine")

    assert [path.name for path in paths] == ["bm25.trec", "dense.trec"]
    for path in paths:
        run = read_run(path)
        assert measured(folder, run) == pytest.approx(evaluation.at(first_stage=path.stem).figures())


def test_groups_without_ids_are_written_by_row_and_place(tmp_path):
    (path,) = RerankEvaluator(GROUPS).evaluate(lambda pairs: [float(p) for _, p in pairs]).write_runs(tmp_path)

    assert read_run(path) == {"0": [("0-2", 3.0), ("0-1", 2.0), ("0-0", 1.0)], "1": [("1-0", 4.0)]}


def test_the_parquet_file_has_each_query_at_each_depth_and_no_text(collection, tmp_path):
    _, groups, _, scores = collection
    evaluation = RerankEvaluator(groups, metrics=["AP"], depths=(5, 10)).evaluate(
        lambda pairs: [scores[pair] for pair in pairs]
    )
    evaluation.to_parquet(tmp_path / "queries.parquet")
    table = pq.read_table(tmp_path / "queries.parquet").to_pandas()

    assert list(table.columns) == ["first_stage", "depth", "query_id", "AP", "first_stage_AP", "ceiling_AP"]
    assert len(table) == 2 * 2 * 12
    means = table.groupby(["first_stage", "depth"])["AP"].mean()
    assert means["dense", 5] == pytest.approx(evaluation.at(first_stage="dense", depth=5).figures()["AP"])
    row = table[(table.first_stage == "bm25") & (table.depth == 10) & (table.query_id == "q3")]
    assert row["AP"].item() == evaluation.by_query("AP", first_stage="bm25", depth=10)["q3"]


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_chart_is_drawn(collection, tmp_path, ending, magic):
    _, groups, _, _ = collection
    evaluation = RerankEvaluator(groups, metrics=["AP"], depths=(5, 10, 20), name="toy").evaluate()
    evaluation.plot(tmp_path / f"chart.{ending}")

    content = (tmp_path / f"chart.{ending}").read_bytes()
    assert content.startswith(magic) and len(content) > 5000


def test_a_missing_matplotlib_is_named(monkeypatch, tmp_path):
    evaluation = RerankEvaluator(GROUPS).evaluate()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ImportError, match=r'pip install "rerank_trainer\[report\]"'):
        evaluation.plot(tmp_path / "chart.png")


def test_the_spread_is_that_of_the_rerankers_scores():
    evaluation = RerankEvaluator(GROUPS).evaluate(lambda pairs: [{"1": 0.0, "2": 3.0}.get(p, 0.0) for _, p in pairs])

    # scores 0, 3, 0 in the one list of two or more: mean 1, squares 1, 4, 1; one of three pairs is tied
    assert evaluation.spread() == pytest.approx({"score_std": 2**0.5, "tie_share": 1 / 3})


# ---- who scores

WORDS = word_groups(8, seed=5)


@pytest.fixture(scope="module")
def reranker():
    return small_reranker(spread=0.3)


@pytest.fixture(scope="module")
def cross_encoder(reranker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    reranker.save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu")


def test_a_reranker_its_function_and_its_folder_in_sentence_transformers_have_the_same_figures(reranker, cross_encoder):
    evaluator = RerankEvaluator(WORDS, metrics=METRICS)
    expected = evaluator.evaluate(reranker.predict).figures

    assert evaluator.evaluate(reranker).figures == pytest.approx(expected)
    assert evaluator.evaluate(cross_encoder).figures == pytest.approx(expected, abs=1e-5)
    assert expected != evaluator.evaluate().figures


def test_a_cross_encoder_is_asked_for_logits_because_its_sigmoid_makes_ties(reranker, cross_encoder, monkeypatch):
    monkeypatch.setattr(cross_encoder, "activation_fn", lambda logits: torch.sigmoid(1000.0 * logits))
    flat = cross_encoder.predict([(g["query"], p) for g in WORDS for p in g["passages"]])
    evaluation = RerankEvaluator(WORDS).evaluate(cross_encoder)

    assert len(set(flat.tolist())) < 10
    assert evaluation.spread()["tie_share"] == RerankEvaluator(WORDS).evaluate(reranker).spread()["tie_share"]
    assert evaluation.figures == pytest.approx(RerankEvaluator(WORDS).evaluate(reranker).figures)


def test_an_instruction_reaches_a_reranker_whose_prompt_has_a_place_for_it(caplog):
    groups = WORDS.select(range(4)).add_column("instruction", ["Find it.", None, "", "Find it now."])
    prompted = Reranker(
        *tiny_model("qwen3"), prompt=Prompt("{instruction}{query}: {passage}", instruction="Rank."), max_length=64
    )
    asked = []
    predict = prompted.predict
    prompted.predict = lambda pairs, instruction: asked.append(instruction) or predict(pairs, instruction=instruction)
    RerankEvaluator(groups).evaluate(prompted)

    assert len(asked) == 1 and set(asked[0]) == {"Find it.", None, "Find it now."}
    assert "the column instruction is not used" not in caplog.text
    live = LiveCrossEncoder(Reranker(prompted.model, prompted.tokenizer, prompt=prompted.prompt, max_length=64))
    pairs = [(group["query"], p, group["instruction"]) for group in groups for p in group["passages"]]
    expected = [predict([(query, p)], instruction=own or None).item() for query, p, own in pairs]
    for model in (prompted, live):
        found = np.concatenate(RerankEvaluator(groups).evaluate(model).scored["candidates"].scores)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    RerankEvaluator(groups).evaluate(lambda pairs: [0.0] * len(pairs))
    assert "the column instruction is not used: the model has no place for it" in caplog.text


def test_it_is_an_evaluator_of_sentence_transformers(cross_encoder):
    one = RerankEvaluator(WORDS, metrics=["nDCG@10", "AP"], name="words")
    two = RerankEvaluator({"a": WORDS, "b": WORDS}, metrics=["AP"])
    figures = one(cross_encoder)

    assert isinstance(one, BaseEvaluator) and one.primary_metric == "words_nDCG@10"
    assert figures == {f"words_{name}": value for name, value in one.evaluate(cross_encoder).figures.items()}
    assert set(two(cross_encoder)) == {"a_AP", "b_AP"} and two.primary_metric == "a_AP"
    in_a_row = SequentialEvaluator([two, one])(cross_encoder)
    assert figures.items() <= in_a_row.items() and in_a_row["sequential_score"] == figures["words_nDCG@10"]


def test_the_trainer_takes_it_and_has_its_figures_from_its_own_evaluation_too(reranker, tmp_path):
    args = RerankTrainingArguments(str(tmp_path), **SILENT, eval_metrics=METRICS)
    evaluator = RerankEvaluator(WORDS, metrics=METRICS, name="words")
    figures = ContrastiveRerankTrainer(reranker, args, eval_dataset=WORDS, evaluator=evaluator).evaluate()

    expected = evaluator.evaluate(reranker).figures
    for name in METRICS:
        assert figures[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-5)
        assert figures[f"eval_words_{name}"] == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.slow
def test_two_processes_have_the_figures_of_one_and_score_half_of_the_pairs_each(tmp_path):
    judge_words(tmp_path / "one", rank=0)
    launch(judge_words, tmp_path / "two", num_processes=2)
    one = json.loads((tmp_path / "one" / "0.json").read_text())
    first, second = [json.loads((tmp_path / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]

    assert first["figures"] == second["figures"] and first["by_query"] == second["by_query"]
    assert first["figures"] == pytest.approx(one["figures"], abs=1e-6) and one["figures"]["AP"] < 1
    assert first["trainer"] == second["trainer"] == pytest.approx(one["trainer"], abs=1e-6)
    assert set(first["trainer"]) == {"eval_nDCG@10", "eval_AP", "eval_words_nDCG@10", "eval_words_AP"}
    assert first["trainer"]["eval_words_AP"] == pytest.approx(first["trainer"]["eval_AP"], abs=1e-6)
    assert first["num_scored"] + second["num_scored"] == one["num_scored"]
    assert abs(first["num_scored"] - second["num_scored"]) <= 1
    assert "boom" in first["failure"]
    assert "the evaluation failed in another process; process 0: KeyError('boom')" in second["failure"]


def test_scores_that_are_there_are_judged_as_those_of_a_function(collection):
    _, groups, _, scores = collection
    evaluator = RerankEvaluator(groups, metrics=METRICS, depths=(5, 30))
    expected = evaluator.evaluate(lambda pairs: [scores[pair] for pair in pairs])
    own = {name: [[scores[g["query"], p] for p in g["passages"]] for g in of] for name, of in groups.items()}
    found = evaluator.evaluate_scores(own)

    assert found.rows() == expected.rows()
    assert found.spread(first_stage="dense") == expected.spread(first_stage="dense")
    alone = RerankEvaluator(groups["dense"], metrics=METRICS, depths=5).evaluate_scores(own["dense"])
    assert alone.figures == found.at(first_stage="dense", depth=5).figures()


# ---- bad input


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0, 3.0], [1.0]], "candidates: found scores of 2 groups, expected 3"),
        (
            [[1.0, 2.0], [1.0], []],
            r"candidates, query '0': expected 3 finite scores, one a passage, found \[1.0, 2.0\]",
        ),
        ([[1.0, 2.0, 3.0], [float("nan")], []], r"query '1': expected 1 finite scores, one a passage, found \[nan\]"),
        ([[1.0, 2.0, "high"], [1.0], []], "query '0': expected numbers, found .*high"),
        ({"bm25": [[1.0, 2.0, 3.0], [1.0], []]}, r"scores are there for \['bm25'\], expected them for .*'candidates'"),
    ],
)
def test_scores_that_do_not_fit_the_lists_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        RerankEvaluator(GROUPS).evaluate_scores(scores)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            [0.0, 1.0, float("nan"), 2.0],
            "1 of 4 scores are not finite numbers, the first is nan for the query 'a' with",
        ),
        ([0.0, 1.0, 2.0, float("-inf")], "the first is -inf for the query 'b' with the passage '4'"),
        (["high"] * 4, "predict must return one number a pair, found .*high"),
        ([None] * 4, "predict must return one number a pair"),
        (np.zeros((4, 3)), r"predict returned an array of shape \(4, 3\) for 4 pairs"),
        (None, "predict must return one number a pair, found 'None'"),
    ],
)
def test_scores_that_are_no_numbers_are_refused_with_their_pair(scores, message):
    with pytest.raises(ValueError, match=message):
        RerankEvaluator(GROUPS).evaluate(lambda pairs: scores)


@pytest.mark.parametrize("given", [lambda pairs: torch.zeros(4, 1, dtype=torch.bfloat16), lambda pairs: np.zeros(4)])
def test_tensors_and_arrays_are_scores_too(given):
    assert RerankEvaluator(GROUPS).evaluate(given).spread()["tie_share"] == 1.0


def test_a_name_is_no_model():
    with pytest.raises(ValueError, match=r"model='my-model': expected a Reranker.* Reranker.from_pretrained"):
        RerankEvaluator(GROUPS).evaluate("my-model")


def test_a_set_without_a_positive_is_refused():
    groups = datasets.Dataset.from_dict({"query": ["a"], "passages": [["1", "2"]], "labels": [[0.0, 0.0]]})

    with pytest.raises(ValueError, match="none of 1 groups has a relevant passage.*same split"):
        RerankEvaluator(groups)
    with pytest.raises(ValueError, match="none of 1 groups has a relevant passage"):
        evaluate_groups(groups)


def test_a_label_that_is_no_grade_is_refused_before_anything_is_scored():
    groups = datasets.Dataset.from_dict({"query": ["a"], "passages": [["1", "2"]], "labels": [[0.5, 0.0]]})

    with pytest.raises(ValueError, match="group 0 has the label 0.5; ranking metrics need integer grades"):
        RerankEvaluator(groups)


def test_a_query_id_that_stands_twice_is_refused():
    groups = GROUPS.add_column("query_id", ["x", "y", "x"])

    with pytest.raises(ValueError, match="row 2: found the query_id 'x' for the second time"):
        RerankEvaluator(groups)


def test_groups_without_labels_and_what_is_no_data_set_are_refused():
    with pytest.raises(ValueError, match=r"expected groups with query, passages and labels, found .*'query'"):
        RerankEvaluator(GROUPS.remove_columns("labels"))
    for wrong in ([{"query": "a"}], datasets.DatasetDict({"test": GROUPS})):
        with pytest.raises(ValueError, match=r"expected a datasets.Dataset of groups"):
            RerankEvaluator(wrong)
    with pytest.raises(ValueError, match="expected one first stage or more"):
        RerankEvaluator({})
    with pytest.raises(ValueError, match="first stage '../dense': expected a name that a file can have"):
        RerankEvaluator({"../dense": GROUPS})


@pytest.mark.parametrize("depths", [0, (), (5, -1), (2.5,), "20"])
def test_depths_that_are_none_are_refused(depths):
    with pytest.raises(ValueError, match="depths=.*: expected 1 or more"):
        RerankEvaluator(GROUPS, depths=depths)


@pytest.mark.parametrize("metrics", [[], "ndcg@10"])
def test_metrics_are_a_list(metrics):
    with pytest.raises(ValueError, match="metrics=.*: expected a list of one name or more"):
        RerankEvaluator(GROUPS, metrics=metrics)


def test_a_depth_below_every_list_and_an_order_of_relevance_are_warned_of(caplog):
    RerankEvaluator(GROUPS, depths=500)
    assert "depth 500: the longest candidate list has 3 passages" in caplog.text
    assert "relevant passages stand before others" not in caplog.text
    RerankEvaluator(GROUPS.map(lambda row: {"labels": sorted(row["labels"], reverse=True), "missed_gains": []}))
    assert "in all of 3 groups relevant passages stand before others" in caplog.text


def test_a_metric_a_depth_or_a_first_stage_that_was_not_evaluated_is_named():
    evaluation = RerankEvaluator(GROUPS, metrics=["AP"]).evaluate()

    with pytest.raises(ValueError, match=r"metric 'RR' was not evaluated; expected one of \['AP'\]"):
        evaluation.by_query("RR")
    with pytest.raises(ValueError, match=r"depth=7: expected one of \[\('candidates', 3\)\]"):
        evaluation.at(depth=7)
    with pytest.raises(ValueError, match=r"metric 'RR' was not evaluated"):
        evaluation.curve("RR")


# ---- real collections


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),  # figures of the collections' READMEs
    [
        ("scifact", {"nDCG@10": 0.6762, "R@100": 0.9127, "RR@10": 0.6413, "AP@100": 0.6369}),
        ("cosqa", {"nDCG@10": 0.3200, "RR@10": 0.2716, "AP@100": 0.2810}),
    ],
)
def test_the_first_stage_of_a_real_collection_has_its_published_figures(rerank_data, name, published):
    groups = load_beir(rerank_data / name, "test", run=rerank_data / name / "run.bm25.test.trec")
    evaluation = RerankEvaluator(groups, metrics=list(published), depths=(20, 50, 100)).evaluate()

    qrels, run = (
        read_qrels(rerank_data / name / "qrels" / "test.tsv"),
        read_run(rerank_data / name / "run.bm25.test.trec"),
    )
    by_rank = {query: {passage: -rank for rank, (passage, _) in enumerate(of_query)} for query, of_query in run.items()}
    expected = ir_measures.calc_aggregate([ir_measures.parse_measure(metric) for metric in published], qrels, by_rank)
    assert evaluation.figures == pytest.approx({str(metric): value for metric, value in expected.items()})
    assert evaluation.figures == pytest.approx(published, abs=1e-3)
    ceilings = evaluation.curve("nDCG@10", ranking="ceiling")
    assert ceilings[20] < ceilings[50] < ceilings[100] < 1
