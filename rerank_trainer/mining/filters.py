"""Filters against false negatives: each says the highest score that a negative may have, given the positives' scores.

Unlabelled is not irrelevant: many of the best candidates of a first stage answer the query although nobody said so. A
filter measures a candidate on the scale of the query's known positives, after *NV-Retriever* (Moreira et al., 2024,
https://arxiv.org/abs/2407.15831), by the first stage's own scores or by those of another scorer. Of several positives
the lowest score counts, as in ``mine_hard_negatives`` of sentence-transformers: the strictest choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rerank_trainer.models.reranker import Reranker


@runtime_checkable
class PairScorer(Protocol):
    """Scores pairs of a query and a passage, higher is more relevant.

    Attributes:
        scale: What the scores are: "logit", "probability" or "similarity".
    """

    @property
    def scale(self) -> str: ...

    def score_pairs(self, queries: Sequence[str], passages: Sequence[str], pairs: np.ndarray) -> np.ndarray:
        """One score for each pair, ``(num_pairs,)``.

        Args:
            queries: The texts that the first column of ``pairs`` counts, from 0.
            passages: The texts that the second column counts.
            pairs: ``(num_pairs, 2)`` integers.
        """
        ...


class NegativeFilter(Protocol):
    """Says which candidates are too good to be negatives.

    Attributes:
        scored_by: Whose scores are compared; None for those of the first stage.
        uses_positives: Whether the limit depends on the positives' scores.
    """

    @property
    def scored_by(self) -> PairScorer | None: ...

    @property
    def uses_positives(self) -> bool: ...

    def limit(self, positive_scores: np.ndarray) -> float:
        """The highest score that a negative of this query may have; minus infinity if none can be one."""
        ...


@dataclass(frozen=True)
class RerankerScores:
    """The scores of a reranker for filters: its logits, or their sigmoid.

    Args:
        reranker: Any reranker with a trained head.
        probabilities: Whether to take the sigmoid. It suits rerankers trained pointwise (bce); those trained on lists
            fix differences of logits only.

    Raises:
        ValueError: If the reranker's head is freshly initialised: its scores would be noise.

    >>> RerankerScores(Reranker.from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2"))  # doctest: +SKIP
    RerankerScores(logits)
    """

    reranker: Reranker
    probabilities: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.reranker.fresh_parameters:
            raise ValueError(
                f"the reranker's parameters {list(self.reranker.fresh_parameters)} are freshly initialised, so its "
                "scores are random. Give a trained reranker."
            )

    def __repr__(self) -> str:
        return f"RerankerScores({'probabilities' if self.probabilities else 'logits'})"

    @property
    def scale(self) -> str:
        """Either "probability" or "logit"."""
        return "probability" if self.probabilities else "logit"

    def score_pairs(self, queries: Sequence[str], passages: Sequence[str], pairs: np.ndarray) -> np.ndarray:
        """As :meth:`PairScorer.score_pairs`."""
        scores = self.reranker.predict(_Pairs(queries, passages, pairs)).double()
        return (scores.sigmoid() if self.probabilities else scores).numpy()


class _Pairs(Sequence[tuple[str, str]]):
    """Pairs of texts made when asked for: millions of them need not stand in memory."""

    def __init__(self, queries: Sequence[str], passages: Sequence[str], pairs: np.ndarray) -> None:
        self.queries, self.passages, self.pairs = queries, passages, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        query, passage = self.pairs[index]
        return self.queries[query], self.passages[passage]


@dataclass(frozen=True, repr=False)
class _ScoredFilter:
    """What filters share: who scores, and a name for reports."""

    scored_by: Any = field(default=None, kw_only=True)

    uses_positives = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scored_by", as_scorer(self.scored_by))

    def __repr__(self) -> str:
        values = [f"{getattr(self, of.name):g}" for of in fields(self) if of.name != "scored_by"]
        by = [] if self.scored_by is None else [f"scored_by={self.scored_by}"]
        return f"{type(self).__name__}({', '.join(values + by)})"


@dataclass(frozen=True, repr=False)
class MaxScore(_ScoredFilter):
    """Negatives score at most ``max_score``, whatever the positives score.

    Args:
        max_score: The highest score allowed.
        scored_by: A reranker (its logits), :class:`RerankerScores`, ``Embeddings``; None for the first stage's scores.

    Raises:
        ValueError: If ``max_score`` is not finite, or ``scored_by`` none of these.

    >>> MaxScore(0.8).limit(np.array([0.9]))
    0.8
    """

    max_score: float

    uses_positives = False

    def __post_init__(self) -> None:
        _check_number("max_score", self.max_score, -math.inf, math.inf)
        super().__post_init__()

    def limit(self, positive_scores: np.ndarray) -> float:
        """``max_score``."""
        return self.max_score


@dataclass(frozen=True, repr=False)
class AbsoluteMargin(_ScoredFilter):
    """Negatives score at most ``min(positive scores) - margin``: TopK-MarginPos of NV-Retriever.

    Args:
        margin: 0 or more, in units of the scores. 0 drops what scores above the positive.
        scored_by: A reranker (its logits), :class:`RerankerScores`, ``Embeddings``; None for the first stage's scores.

    Raises:
        ValueError: If ``margin`` is negative or not finite, or ``scored_by`` none of these.

    >>> AbsoluteMargin(0.25).limit(np.array([1.0, 0.75]))
    0.5
    """

    margin: float

    def __post_init__(self) -> None:
        _check_number("margin", self.margin, 0, math.inf)
        super().__post_init__()

    def limit(self, positive_scores: np.ndarray) -> float:
        """The lowest positive score less the margin."""
        return float(positive_scores.min()) - self.margin


@dataclass(frozen=True, repr=False)
class RelativeMargin(_ScoredFilter):
    """Negatives score at most ``(1 - margin) * min(positive scores)``; ``relative_margin`` of sentence-transformers.

    A share of a score means something only if 0 is the scale's zero. So logits are refused, and a query with a positive
    that scores 0 or less gets no negatives: the report counts such queries.

    Args:
        margin: From 0 to below 1. 0.05 is the 95 % of NV-Retriever.
        scored_by: :class:`RerankerScores` with ``probabilities=True``, ``Embeddings``; None for the first stage's
            scores.

    Raises:
        ValueError: If ``margin`` is outside of that, or ``scored_by`` gives logits or is none of these.

    >>> RelativeMargin(0.25).limit(np.array([1.0, 0.5])), RelativeMargin(0.25).limit(np.array([1.0, -0.5]))
    (0.375, -inf)
    """

    margin: float

    def __post_init__(self) -> None:
        _check_number("margin", self.margin, 0, 1)
        super().__post_init__()
        _refuse_logits(self)

    def limit(self, positive_scores: np.ndarray) -> float:
        """The lowest positive score less its share; minus infinity if that score is 0 or less."""
        return _share(1 - self.margin, positive_scores)


@dataclass(frozen=True, repr=False)
class PercentOfPositive(_ScoredFilter):
    """Negatives score at most ``share * min(positive scores)``: TopK-PercPos of NV-Retriever.

    ``PercentOfPositive(0.95)`` is ``RelativeMargin(0.05)``, under the name that the paper gives it; what is said there
    of logits and of positives that score 0 or less holds here.

    Args:
        share: Above 0, at most 1: 0.95 for 95 %.
        scored_by: As in :class:`RelativeMargin`.

    Raises:
        ValueError: If ``share`` is outside of that, or ``scored_by`` gives logits or is none of these.

    >>> PercentOfPositive(0.75).limit(np.array([1.0, 0.5]))
    0.375
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, found {self.share}: 95 % is 0.95")
        super().__post_init__()
        _refuse_logits(self)

    def limit(self, positive_scores: np.ndarray) -> float:
        """That share of the lowest positive score; minus infinity if that score is 0 or less."""
        return _share(self.share, positive_scores)


@dataclass(frozen=True)
class RerankerVerdict:
    """Negatives are what a cross-encoder calls irrelevant: by probability, by distance from the positive, or by both.

    Args:
        reranker: A trained reranker.
        threshold: The highest probability (sigmoid of the logit) that a negative may have, between 0 and 1; None asks
            for no such limit. It suits rerankers trained pointwise (bce), whose logits have a zero.
        margin: How far, in logits, a negative lies at least below the lowest positive; None asks for no such distance.
            It suits any reranker.

    Raises:
        ValueError: If both are None, one is outside of its range, or the reranker's head is freshly initialised.

    >>> RerankerVerdict(Reranker.from_pretrained("BAAI/bge-reranker-base"), threshold=0.5)  # doctest: +SKIP
    RerankerVerdict(threshold=0.5)
    """

    reranker: Reranker
    threshold: float | None = field(default=None, kw_only=True)
    margin: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.threshold is None and self.margin is None:
            raise ValueError(
                "expected a threshold, a margin or both, found neither. threshold=0.5 drops what the reranker calls "
                "relevant, margin=0.0 what it ranks above the positive."
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, found {self.threshold}")
        if self.margin is not None:
            _check_number("margin", self.margin, 0, math.inf)
        RerankerScores(self.reranker)  # refuses a fresh head here, not after the search

    def __repr__(self) -> str:
        values = {"threshold": self.threshold, "margin": self.margin}
        said = [f"{name}={value:g}" for name, value in values.items() if value is not None]
        return f"RerankerVerdict({', '.join(said)})"

    @property
    def scored_by(self) -> RerankerScores:
        """The reranker's logits."""
        return RerankerScores(self.reranker)

    @property
    def uses_positives(self) -> bool:
        """Whether a margin is asked for."""
        return self.margin is not None

    def limit(self, positive_scores: np.ndarray) -> float:
        """The threshold as a logit, or the lowest positive logit less the margin, whichever is lower."""
        limits = []
        if self.threshold is not None:
            limits.append(math.log(self.threshold / (1 - self.threshold)))
        if self.margin is not None:
            limits.append(float(positive_scores.min()) - self.margin)
        return min(limits)


def as_scorer(scored_by: Any) -> PairScorer | None:
    """A scorer from a reranker (its logits) or a scorer; None stays None.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(scored_by, Reranker):
        return RerankerScores(scored_by)
    if scored_by is None or isinstance(scored_by, PairScorer):
        return scored_by
    raise ValueError(
        f"scored_by={scored_by!r}: expected a Reranker, RerankerScores(reranker), Embeddings(model), or None for the "
        "scores of the first stage"
    )


def _share(share: float, positive_scores: np.ndarray) -> float:
    lowest = float(positive_scores.min())
    return share * lowest if lowest > 0 else -math.inf


def _refuse_logits(asked: _ScoredFilter) -> None:
    if asked.scored_by is not None and asked.scored_by.scale == "logit":
        raise ValueError(
            f"{asked!r}: a share of a logit means nothing, because logits are negative as well as positive and 0 is "
            "one like any other. Use scored_by=RerankerScores(reranker, probabilities=True), or AbsoluteMargin."
        )


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value < high:
        wanted = f"{low:g} or more" + (f" and below {high:g}" if math.isfinite(high) else "")
        raise ValueError(f"{name} must be {'a finite number' if low == -math.inf else wanted}, found {value}")
