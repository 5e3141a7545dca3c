from __future__ import annotations

import math

import numpy as np
import pytest

from rerank_trainer.mining.first_stages import Embeddings, search
from rerank_trainer.mining.passages import Judged, PassagePool

PASSAGES = ["Cats chase mice.", "Dogs chase cats.", "The bank raised its rates.", "Birds sing at dawn."]
QUERIES = ["what do cats hunt", "interest rates"]


def pool_of(texts) -> PassagePool:
    pool = PassagePool()
    for number, text in enumerate(texts):
        pool.add(text, f"p{number}")
    return pool


def judged(query, positives=(), query_id="q", excluded=()) -> Judged:
    return Judged(0, query, query_id, {}, frozenset(positives), frozenset(positives) | frozenset(excluded))


class Given:
    """A first stage whose scores are given."""

    def __init__(self, scores, retrieves_above=-math.inf):
        self.scores, self.retrieves_above = scores, retrieves_above

    def score_rows(self, queries, passages):
        for _ in queries:
            yield np.array(self.scores)


@pytest.fixture(scope="module")
def minilm(minilm_path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm_path)


@pytest.fixture(scope="module")
def cosines(minilm) -> np.ndarray:
    """By sentence-transformers' own similarity, ``(num_queries, num_passages)``."""
    return minilm.similarity(minilm.encode(QUERIES), minilm.encode(PASSAGES)).numpy()


def test_an_embedding_model_given_by_its_folder_gives_cosines(minilm_path, cosines):
    rows = list(Embeddings(minilm_path).score_rows(QUERIES, PASSAGES))

    assert np.allclose(rows, cosines, atol=1e-5)


def test_pairs_score_as_in_the_search_and_each_text_is_encoded_once(minilm, cosines, monkeypatch):
    encoded = []
    encode = type(minilm).encode_document
    monkeypatch.setattr(
        minilm, "encode_document", lambda texts, **kw: encoded.extend(texts) or encode(minilm, texts, **kw)
    )
    pairs = np.array([[1, 2], [0, 0], [0, 2], [1, 2]])

    scores = Embeddings(minilm).score_pairs(QUERIES, PASSAGES, pairs)

    assert np.allclose(scores, cosines[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    assert sorted(encoded) == sorted([PASSAGES[0], PASSAGES[2]])


def test_prompts_stand_before_the_texts_as_given_else_by_name_else_the_models_own(minilm, monkeypatch):
    monkeypatch.setattr(minilm, "prompts", {"query": "ask: ", "document": "", "mine": "look up: "})
    plain = minilm.encode([*PASSAGES[:2], f"passage: {PASSAGES[0]}", f"passage: {PASSAGES[1]}"])
    asked = minilm.encode([f"{prompt}{QUERIES[0]}" for prompt in ("ask: ", "look up: ", "query: ")])

    for first_stage, query, passages in [
        (Embeddings(minilm), asked[0], plain[:2]),
        (Embeddings(minilm, query_prompt_name="mine"), asked[1], plain[:2]),
        (Embeddings(minilm, query_prompt="query: ", corpus_prompt="passage: "), asked[2], plain[2:]),
    ]:
        (row,) = first_stage.score_rows(QUERIES[:1], PASSAGES[:2])
        assert np.allclose(row, passages @ query, atol=1e-5)  # MiniLM's embeddings have length 1


def test_candidates_are_best_first_equal_ones_in_the_order_of_the_corpus():
    (found,) = search(Given([1.0, 3.0, 1.0, 3.0, 0.5]), [judged("q")], pool_of("abcde"), 4)

    assert found.places.tolist() == [1, 3, 0, 2]
    assert found.scores.tolist() == [3.0, 3.0, 1.0, 1.0]


def test_positives_are_scored_but_are_no_candidates():
    (found,) = search(Given([1.0, 3.0, 2.0, 0.5]), [judged("q", positives=[3, 1], excluded=[2])], pool_of("abcd"), 10)

    assert found.places.tolist() == [0]
    assert found.positives.tolist() == [1, 3]
    assert found.positive_scores.tolist() == [3.0, 0.5]


def test_the_depth_counts_candidates_without_the_positives():
    (found,) = search(Given([4.0, 3.0, 2.0, 1.0]), [judged("q", positives=[0])], pool_of("abcd"), 2)

    assert found.places.tolist() == [1, 2]


def test_what_a_first_stage_does_not_retrieve_is_no_candidate():
    (found,) = search(Given([0.0, 2.0, 0.0], retrieves_above=0.0), [judged("q", positives=[0])], pool_of("abc"), 10)

    assert found.places.tolist() == [1]
    assert found.positive_scores.tolist() == [0.0]


def test_a_run_keeps_its_order_and_lacks_scores_of_positives_that_it_does_not_have():
    run = {"q": [("p2", 5.0), ("p3", 4.0), ("p1", 4.0)]}

    (found,) = search(run, [judged("q", positives=[0, 2])], pool_of("abcd"), 10)

    assert found.places.tolist() == [3, 1]
    assert found.scores.tolist() == [4.0, 4.0]
    assert np.array_equal(found.positive_scores, [math.nan, 5.0], equal_nan=True)


def test_a_query_that_a_run_does_not_have_has_no_candidates():
    (found,) = search({"other": [("p1", 1.0)]}, [judged("q")], pool_of("abc"), 10)

    assert found.places.tolist() == []


def test_ids_of_one_text_are_one_candidate():
    (found,) = search({"q": [("p1", 3.0), ("p0", 2.0), ("p2", 1.0)]}, [judged("q")], pool_of(["a", "a", "b"]), 10)

    assert found.places.tolist() == [0, 1]
    assert found.scores.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("run", "query_id", "found"),
    [
        ({"q": [("p9", 1.0)]}, "q", "the run names the passage 'p9', which is not in the corpus"),
        (
            {"q": [("p0", 1.0), ("p1", 2.0)]},
            "q",
            "passage 'p1': expected finite scores, best first, found 2.0 after 1.0",
        ),
        ({"q": [("p0", math.nan)]}, "q", "found nan after inf"),
        ({"q": [("p0", 1.0)]}, None, "query 'a query': a run needs a column query_id"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(run, query_id, found):
    with pytest.raises(ValueError, match=found):
        search(run, [judged("a query", query_id=query_id)], pool_of("abc"), 10)


@pytest.mark.parametrize("scores", [[1.0, math.nan], [1.0, 2.0, 3.0], [1.0]])
def test_scores_that_are_not_finite_or_not_one_a_passage_are_refused(scores):
    with pytest.raises(ValueError, match="query 'q': expected 2 finite scores of the first stage"):
        search(Given(scores), [judged("q")], pool_of("ab"), 10)


def test_what_is_no_first_stage_is_refused():
    with pytest.raises(ValueError, match=r"first_stage='bm25': expected BM25\(\), Embeddings\(model\), or a run"):
        search("bm25", [judged("q")], pool_of("ab"), 10)
