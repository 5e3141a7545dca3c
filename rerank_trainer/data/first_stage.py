"""First stage: the candidates that a reranker gets, found by BM25 (needs the extra ``bm25``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tqdm.auto import tqdm

# From this many queries on, or this many passages, the user waits long enough to want a progress bar.
_MANY_QUERIES, _MANY_PASSAGES = 1000, 100_000


def bm25_run(
    corpus: Mapping[str, str], queries: Mapping[str, str], *, depth: int = 100
) -> dict[str, list[tuple[str, float]]]:
    """The best passages of each query by BM25, with their scores, best first.

    Lucene's variant with k1 = 0.9 and b = 0.4 (the values of Anserini), English stop words left out and words stemmed
    by PyStemmer, as computed by bm25s (Lù, 2024, https://arxiv.org/abs/2407.03618). Passages that share no word with
    the query are left out, so a query may have fewer than ``depth``, or none. Equal scores stand in the corpus' order,
    so the same input gives the same run.

    Args:
        corpus: Passage id to text.
        queries: Query id to text.
        depth: How many passages a query gets at most.

    Returns:
        For every query, in the order of ``queries``, its (passage id, score) pairs.

    Raises:
        ImportError: The extra ``bm25`` is not installed.
        ValueError: ``depth`` is below 1, or the corpus has no passage with a word in it.

    >>> corpus = {"p1": "A sorted list of numbers.", "p2": "Sorts numbers.", "p3": "Opens a file."}
    >>> run = bm25_run(corpus, {"q1": "opening files", "q2": "quicksort"})
    >>> [passage_id for passage_id, _ in run["q1"]], run["q2"]
    (['p3'], [])
    """
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise ImportError(
            f'BM25 needs bm25s and PyStemmer ({error}). Install them with pip install "rerank_trainer[bm25]".'
        ) from error
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, found {depth}")

    stemmer = Stemmer.Stemmer("english")

    def words(texts: list[str], show_progress: bool) -> list[list[str]]:
        found: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=show_progress
        )
        return found

    many_passages, many_queries = len(corpus) > _MANY_PASSAGES, len(queries) > _MANY_QUERIES
    tokens = words(list(corpus.values()), many_passages)
    if not any(tokens):
        raise ValueError(f"expected passages with words in them, found none in a corpus of {len(corpus)} passages")
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend="numpy")
    index.index(tokens, show_progress=many_passages)

    passage_ids = list(corpus)
    run: dict[str, list[tuple[str, float]]] = {}
    of_queries = zip(queries, words(list(queries.values()), many_queries), strict=True)
    for query_id, query in tqdm(of_queries, total=len(queries), desc="BM25", disable=not many_queries):
        scores = index.get_scores(query) if query else np.zeros(len(passage_ids), dtype=np.float32)
        run[query_id] = [(passage_ids[place], float(scores[place])) for place in _best(scores, depth)]
    return run


def _best(scores: np.ndarray, depth: int) -> np.ndarray:
    """Places of the highest scores above 0, best first, equal ones in their order."""
    # bm25s' own top k keeps any of those that tie for the last place.
    threshold = np.partition(scores, -depth)[-depth] if depth < len(scores) else 0.0
    places = np.flatnonzero((scores >= threshold) & (scores > 0))
    return places[np.argsort(-scores[places], kind="stable")][:depth]
