"""First stage: the candidates that a reranker gets, found by BM25 (needs the extra ``bm25``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tqdm.auto import tqdm

# From this many queries on, or this many passages, the user waits long enough to want a progress bar.
_MANY_QUERIES, _MANY_PASSAGES = 1000, 100_000


def bm25_run(
    corpus: Mapping[str, str], queries: Mapping[str, str], *, depth: int = 100
) -> dict[str, list[tuple[str, float]]]:
    """The best passages of each query by BM25, with their scores, best first.

    Passages that share no word with the query are left out, so a query may have fewer than ``depth``, or none. Equal
    scores stand in the corpus' order, so the same input gives the same run. :class:`BM25` says what is computed.

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
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, found {depth}")
    passage_ids = list(corpus)
    rows = BM25().score_rows(list(queries.values()), list(corpus.values()))
    run: dict[str, list[tuple[str, float]]] = {}
    for query_id, scores in zip(queries, rows, strict=True):
        places = best_places(scores, depth, above=BM25.retrieves_above)
        run[query_id] = [(passage_ids[place], float(scores[place])) for place in places]
    return run


@dataclass(frozen=True)
class BM25:
    """BM25 as a first stage: scores every passage for a query; 0 where they share no word.

    Lucene's variant with k1 = 0.9 and b = 0.4 (the values of Anserini), English stop words left out and words stemmed
    by PyStemmer, as computed by bm25s (Lù, 2024, https://arxiv.org/abs/2407.03618).

    Attributes:
        retrieves_above: A passage is a candidate if its score is above this.

    >>> [(scores > 0).tolist() for scores in BM25().score_rows(["opening files"], ["Sorts.", "Opens a file."])]
    [[False, True]]
    """

    retrieves_above: ClassVar[float] = 0.0

    def score_rows(self, queries: Sequence[str], passages: Sequence[str]) -> Iterator[np.ndarray]:
        """For each query the scores of all passages, ``(num_passages,)`` float32, of 0 or more.

        Raises:
            ImportError: The extra ``bm25`` is not installed.
            ValueError: No passage has a word in it.
        """
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise ImportError(
                f'BM25 needs bm25s and PyStemmer ({error}). Install them with pip install "rerank_trainer[bm25]".'
            ) from error
        stemmer = Stemmer.Stemmer("english")

        def words(texts: Sequence[str], show_progress: bool) -> list[list[str]]:
            found: list[list[str]] = bm25s.tokenize(
                list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=show_progress
            )
            return found

        many_passages, many_queries = len(passages) > _MANY_PASSAGES, len(queries) > _MANY_QUERIES
        tokens = words(passages, many_passages)
        if not any(tokens):
            raise ValueError(
                f"expected passages with words in them, found none in a corpus of {len(passages)} passages"
            )
        index = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend="numpy")
        index.index(tokens, show_progress=many_passages)
        for query in tqdm(words(queries, many_queries), desc="BM25", disable=not many_queries):
            yield index.get_scores(query) if query else np.zeros(len(passages), dtype=np.float32)


def best_places(scores: np.ndarray, depth: int, *, above: float = -np.inf) -> np.ndarray:
    """Places of the highest scores that are above a value, best first, equal ones in their order.

    >>> best_places(np.array([0.5, 2.0, 0.0, 0.5]), 2, above=0.0).tolist()
    [1, 0]
    """
    # A library's top k keeps any of those that tie for the last place.
    threshold = np.partition(scores, -depth)[-depth] if depth < len(scores) else -np.inf
    places = np.flatnonzero((scores >= threshold) & (scores > above))
    return places[np.argsort(-scores[places], kind="stable")][:depth]
