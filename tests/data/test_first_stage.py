from __future__ import annotations

import json
import math
import sys

import ir_measures
import pytest

from rerank_trainer.data.first_stage import bm25_run
from rerank_trainer.data.runs import read_qrels

CORPUS = {"p1": "cats chase mice", "p2": "dogs chase cats", "p3": "birds sing"}


def test_scores_are_those_of_the_formula():
    # Robertson's idf as in Lucene, k1 = 0.9, b = 0.4; every text has its words counted after stemming.
    run = bm25_run({"p1": "cat cat mouse", "p2": "dog", "p3": "bird song"}, {"q": "cats"})

    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    norm = 0.9 * (1 - 0.4 + 0.4 * 3 / 2)  # 3 words, 2 in the mean
    assert run["q"] == [("p1", pytest.approx(idf * 2 / (2 + norm), rel=1e-6))]


def test_words_are_stemmed_and_stop_words_do_not_count():
    assert [passage for passage, _ in bm25_run(CORPUS, {"q": "the chasing"})["q"]] == ["p1", "p2"]
    assert bm25_run(CORPUS, {"q": "the and of"})["q"] == []


def test_passages_that_share_no_word_are_left_out():
    run = bm25_run(CORPUS, {"q": "singing birds", "nothing": "zebra"})

    assert [passage for passage, _ in run["q"]] == ["p3"]
    assert run["nothing"] == []


def test_an_empty_query_has_no_candidates():
    assert bm25_run(CORPUS, {"q": ""}) == {"q": []}


def test_every_query_is_in_the_run_in_the_given_order():
    assert list(bm25_run(CORPUS, {"z": "cats", "a": "zebra", "m": "mice"})) == ["z", "a", "m"]


def test_scores_fall_and_the_best_passage_stands_first():
    passages = bm25_run(CORPUS, {"q": "cats chase mice"})["q"]

    assert [passage for passage, _ in passages] == ["p1", "p2"]
    assert passages[0][1] > passages[1][1] > 0


@pytest.mark.parametrize("depth", [1, 7, 20, 100])
def test_equal_scores_stand_in_the_order_of_the_corpus_also_where_the_run_is_cut(depth):
    corpus = {f"p{i * 7 % 20}": "same words" for i in range(20)} | {"other": "something else"}

    run = bm25_run(corpus, {"q": "words"}, depth=depth)

    assert [passage for passage, _ in run["q"]] == list(corpus)[: min(depth, 20)]


def test_depth_cuts_after_the_best():
    corpus = {f"p{i}": "word " * (i + 1) for i in range(20)}

    run = bm25_run(corpus, {"q": "word"}, depth=3)

    assert [passage for passage, _ in run["q"]] == ["p19", "p18", "p17"]


def test_many_queries_show_their_progress_and_few_do_not(capfd):
    bm25_run(CORPUS, {"q": "cats"})
    assert capfd.readouterr().err == ""

    run = bm25_run(CORPUS, {f"q{i}": "cats" for i in range(1001)})
    assert len(run) == 1001
    assert "BM25" in capfd.readouterr().err


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth must be 1 or more, found 0"):
        bm25_run(CORPUS, {"q": "cats"}, depth=0)


@pytest.mark.parametrize("corpus", [{}, {"p1": "", "p2": "the"}])
def test_a_corpus_without_words_is_refused(corpus):
    with pytest.raises(ValueError, match=f"found none in a corpus of {len(corpus)} passages"):
        bm25_run(corpus, {"q": "cats"})


@pytest.mark.parametrize("module", ["bm25s", "Stemmer"])
def test_the_missing_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ImportError, match=r'pip install "rerank_trainer\[bm25\]"'):
        bm25_run(CORPUS, {"q": "cats"})


# The README of each collection gives these, measured with bm25s' own top k. On cosqa a host name in five passages was
# replaced after that, and up to two queries lie at the end of the run among equal scores, so R@100 is left out there.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("collection", "split", "published"),
    [
        ("cosqa", "dev", {"nDCG@10": 0.3167, "RR@10": 0.2647, "AP@100": 0.2774}),
        ("cosqa", "test", {"nDCG@10": 0.3200, "RR@10": 0.2716, "AP@100": 0.2810}),
        ("scifact", "test", {"nDCG@10": 0.6762, "R@100": 0.9127, "RR@10": 0.6413, "AP@100": 0.6369}),
    ],
)
def test_figures_of_the_collections_are_reproduced(rerank_data, collection, split, published):
    folder = rerank_data / collection
    corpus, queries = (
        {row["_id"]: f"{row.get('title', '')} {row['text']}" for row in map(json.loads, path.read_text().splitlines())}
        for path in (folder / "corpus.jsonl", folder / "queries.jsonl")
    )
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv")

    run = bm25_run(corpus, {query_id: queries[query_id] for query_id in qrels})

    measures = [ir_measures.parse_measure(name) for name in published]
    found = ir_measures.calc_aggregate(measures, qrels, {query_id: dict(scores) for query_id, scores in run.items()})
    assert {str(measure): value for measure, value in found.items()} == pytest.approx(published, abs=0.002)
