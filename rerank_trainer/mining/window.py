"""The window: the candidates of all queries whose ranks may give negatives, as flat arrays, and the filters on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rerank_trainer.mining.filters import NegativeFilter, PairScorer
from rerank_trainer.mining.first_stages import Candidates
from rerank_trainer.mining.passages import Judged
from rerank_trainer.mining.report import FilterCount

_NOT_DROPPED = -1


@dataclass
class Window:
    """Candidates of all queries, those of one query together and best first.

    Attributes:
        judged: The queries.
        starts: Where each query's candidates begin, and the end, ``(num_queries + 1,)``.
        places: Of the candidates in the pool, ``(num_candidates,)``, as the three that follow.
        scores: By the first stage.
        ranks: Counted from 1, over all candidates without the query's positives.
        dropped_by: Number of the filter that dropped it, or -1.
        positive_starts: As ``starts``, of the known positives.
        positives: Their places.
        positive_scores: By the first stage; NaN where it gave none.
    """

    judged: Sequence[Judged]
    starts: np.ndarray
    places: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    dropped_by: np.ndarray
    positive_starts: np.ndarray
    positives: np.ndarray
    positive_scores: np.ndarray

    @classmethod
    def of(cls, judged: Sequence[Judged], found: Sequence[Candidates], range_min: int) -> Window:
        """The window of what a first stage found; the first ``range_min`` candidates of each query are skipped."""
        inside = [(of.places[range_min:], of.scores[range_min:]) for of in found]
        counts = [len(places) for places, _ in inside]
        num_candidates = sum(counts)
        return cls(
            judged=judged,
            starts=_starts(counts),
            places=np.concatenate([places for places, _ in inside]),
            scores=np.concatenate([scores for _, scores in inside]),
            ranks=np.concatenate([np.arange(count) for count in counts]) + range_min + 1,
            dropped_by=np.full(num_candidates, _NOT_DROPPED),
            positive_starts=_starts([len(of.positives) for of in found]),
            positives=np.concatenate([of.positives for of in found]),
            positive_scores=np.concatenate([of.positive_scores for of in found]),
        )

    def left(self, query: int) -> np.ndarray:
        """Where the query's candidates stand that no filter has dropped, best first."""
        start, end = self.starts[query : query + 2]
        return start + np.flatnonzero(self.dropped_by[start:end] == _NOT_DROPPED)

    def query_of(self) -> np.ndarray:
        """The query of each candidate, ``(num_candidates,)``."""
        return np.repeat(np.arange(len(self.judged)), np.diff(self.starts))


def apply_filters(
    window: Window, filters: Sequence[NegativeFilter], passages: Sequence[str]
) -> tuple[FilterCount, ...]:
    """Mark what the filters drop, in their order, and count it. What one scorer has scored is not scored again.

    Raises:
        ValueError: If a score is not finite, or the first stage has none for a positive that a filter needs.
    """
    scored: dict[PairScorer | None, _Scores] = {}
    counts = []
    for number, one in enumerate(filters):
        scorer = one.scored_by
        scores = scored.setdefault(scorer, _Scores(scorer, window, passages))
        counts.append(_apply(window, one, number, scores))
    return tuple(counts)


def _apply(window: Window, one: NegativeFilter, number: int, scores: _Scores) -> FilterCount:
    left = np.flatnonzero(window.dropped_by == _NOT_DROPPED)
    of_candidates = scores.of_candidates(left)
    query_of = window.query_of()[left]
    of_positives = scores.of_positives(np.unique(query_of)) if one.uses_positives else None
    limits = np.full(len(window.judged), -np.inf)
    for query in np.unique(query_of):
        start, end = window.positive_starts[query : query + 2]
        limits[query] = one.limit(np.empty(0) if of_positives is None else of_positives[start:end])
    drop = of_candidates > limits[query_of]
    window.dropped_by[left[drop]] = number
    touched = np.unique(query_of[drop])
    return FilterCount(repr(one), int(drop.sum()), len(touched), int(np.isneginf(limits[touched]).sum()))


class _Scores:
    """The scores of one scorer, computed where they are asked for; without a scorer, those of the first stage."""

    def __init__(self, scorer: PairScorer | None, window: Window, passages: Sequence[str]) -> None:
        self.scorer, self.window, self.passages = scorer, window, passages
        self.queries = [of.query for of in window.judged]
        self.candidates = window.scores if scorer is None else np.full(len(window.places), np.nan)
        self.positives = window.positive_scores if scorer is None else np.full(len(window.positives), np.nan)

    def of_candidates(self, left: np.ndarray) -> np.ndarray:
        """Scores of these candidates."""
        self._fill(self.candidates, left, self.window.query_of(), self.window.places)
        return self.candidates[left]

    def of_positives(self, queries: np.ndarray) -> np.ndarray:
        """Scores of all positives, of which those of the given queries are there."""
        query_of: np.ndarray = np.repeat(np.arange(len(self.queries)), np.diff(self.window.positive_starts))
        wanted = np.flatnonzero(np.isin(query_of, queries))
        if self.scorer is None:
            self._check_positives(query_of, wanted)
        self._fill(self.positives, wanted, query_of, self.window.positives)
        return self.positives

    def _fill(self, scores: np.ndarray, wanted: np.ndarray, query_of: np.ndarray, places: np.ndarray) -> None:
        missing = wanted[np.isnan(scores[wanted])]
        if self.scorer is None or not len(missing):
            return
        pairs = np.stack([query_of[missing], places[missing]], axis=1)
        found = self.scorer.score_pairs(self.queries, self.passages, pairs)
        if len(found) != len(pairs) or not np.isfinite(found).all():
            raise ValueError(
                f"{self.scorer!r}: expected {len(pairs)} finite scores, one a pair, found {len(found)}, of which "
                f"{int((~np.isfinite(found)).sum())} are not finite"
            )
        scores[missing] = found

    def _check_positives(self, query_of: np.ndarray, wanted: np.ndarray) -> None:
        unknown = wanted[np.isnan(self.positives[wanted])]
        if len(unknown):
            first = self.window.judged[query_of[unknown[0]]]
            num_queries = len(np.unique(query_of[unknown]))
            raise ValueError(
                f"the run has no score for {len(unknown)} positives of {num_queries} queries, query "
                f"{first.query_id or first.query!r} for one, so nothing can be measured against them. Give the filter "
                "scored_by=Embeddings(model) or a reranker, or use MaxScore, or RerankerVerdict with a threshold."
            )


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
