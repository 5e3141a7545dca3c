"""Calibration: scores as probabilities, by a mapping fitted on held-out queries, and how far those can be trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from rerank_trainer.evaluation.results import Evaluation

METHODS = ("platt", "isotonic")
_FORMAT = 1


@dataclass(frozen=True)
class CalibrationReport:
    """How well probabilities agree with what is relevant.

    Attributes:
        error: Expected calibration error, from 0 to 1: over bins of equal width, the share of pairs in the bin times
            the distance between their mean probability and the share of relevant ones.
        brier: Mean squared distance between probability and relevance, from 0 to 1.
        bins: For each bin that has pairs ``low``, ``high``, ``num_pairs``, ``mean_probability``, ``relevant_share``.
        num_pairs: Pairs judged.
    """

    error: float
    brier: float
    bins: tuple[dict[str, float], ...]
    num_pairs: int


@dataclass(frozen=True)
class Calibration:
    """A stored mapping from scores to the probability that a passage is relevant (grade 1 or more).

    ``Calibration.fit`` makes one, ``save`` and ``load`` keep it as JSON, and it is a function of scores. It knows the
    queries that it was fitted on by digests of their texts, and refuses to be judged on them.

    Attributes:
        method: "platt" or "isotonic".
        parameters: "platt": ``slope`` and ``intercept``. "isotonic": ``scores`` and ``probabilities``, the corners of
            a line.
        fitted_on: Digests of the queries.
        num_pairs: Pairs that it was fitted on.

    >>> platt = Calibration("platt", {"slope": 2.0, "intercept": -1.0})
    >>> platt([0.5, 100.0]).tolist()
    [0.5, 1.0]
    """

    method: str
    parameters: dict[str, Any]
    fitted_on: frozenset[str] = field(default=frozenset(), repr=False)
    num_pairs: int = 0

    @classmethod
    def fit(cls, held_out: Evaluation, *, method: str = "platt", first_stage: str | None = None) -> Calibration:
        """The mapping that fits the scores of an evaluation on held-out queries.

        "platt" is a logistic curve of the score, with the smoothed labels of Platt (1999, see
        https://scikit-learn.org/stable/modules/calibration.html#sigmoid), which a hundred pairs can fit; "isotonic" is
        any rising line (Zadrozny and Elkan, 2002, https://doi.org/10.1145/775047.775151), for a thousand
        relevant pairs or more.

        Args:
            held_out: An evaluation on queries on which the mapping will not be judged.
            method: "platt" or "isotonic".
            first_stage: Which lists; None takes the first.

        Raises:
            ValueError: If the method is not known, all pairs or none are relevant, or they do not grow with the score.
        """
        if method not in METHODS:
            raise ValueError(f"method={method!r}: expected one of {METHODS}")
        lists = held_out.scored[held_out.at(first_stage=first_stage).first_stage]
        scores, relevant = lists.pairs()
        if relevant.all() or not relevant.any():
            raise ValueError(
                f"{int(relevant.sum())} of {len(relevant)} pairs are relevant: a mapping needs pairs of both kinds"
            )
        fitted = _platt(scores, relevant) if method == "platt" else _isotonic(scores, relevant)
        return cls(method, fitted, frozenset(map(_digest, lists.queries)), len(scores))

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of scores, of their shape."""
        values = np.asarray(scores, dtype=np.float64)
        if self.method == "isotonic":
            line = (np.asarray(self.parameters[name]) for name in ("scores", "probabilities"))
            return np.asarray(np.interp(values, *line))
        logits = self.parameters["slope"] * values + self.parameters["intercept"]
        return np.exp(-np.logaddexp(0.0, -logits))

    def evaluate(
        self, evaluation: Evaluation, *, first_stage: str | None = None, num_bins: int = 15
    ) -> CalibrationReport:
        """How well the probabilities fit on other queries than those it was fitted on.

        Args:
            evaluation: Of the same model.
            first_stage: Which lists; None takes the first.
            num_bins: Of equal width, 15 as in Guo et al. (2017, https://arxiv.org/abs/1706.04599).

        Raises:
            ValueError: If a query of the evaluation was fitted on, or ``num_bins`` is below 1.
        """
        lists = evaluation.scored[evaluation.at(first_stage=first_stage).first_stage]
        self.require_other_queries(lists.queries)
        scores, relevant = lists.pairs()
        return calibration_report(self(scores), relevant, num_bins=num_bins)

    def require_other_queries(self, queries: Sequence[str]) -> None:
        """Refuse queries that the mapping was fitted on.

        Raises:
            ValueError: Naming the first and their number.
        """
        shared = [query for query in queries if _digest(query) in self.fitted_on]
        if shared:
            raise ValueError(
                f"{len(shared)} of {len(queries)} queries were fitted on, the first is {shared[0][:80]!r}: on those "
                "probabilities are right by construction. Fit on held-out queries, or evaluate on others."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON: the mapping and digests of queries, no text."""
        content = {
            "format": _FORMAT,
            "method": self.method,
            "parameters": self.parameters,
            "num_pairs": self.num_pairs,
            "fitted_on": sorted(self.fitted_on),
        }
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """The mapping of a file that :meth:`save` wrote.

        Raises:
            ValueError: If it is no such file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT or content["method"] not in METHODS:
                raise ValueError(f"format {content['format']!r}, method {content['method']!r}")
            calibration = cls(
                content["method"], content["parameters"], frozenset(content["fitted_on"]), content["num_pairs"]
            )
            calibration([0.0])  # the parameters are there
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a file that Calibration.save wrote, found {error!r}") from error
        return calibration


def calibration_report(probabilities: ArrayLike, relevant: ArrayLike, *, num_bins: int = 15) -> CalibrationReport:
    """How well probabilities agree with what is relevant, whoever made them.

    Args:
        probabilities: ``(num_pairs,)``, from 0 to 1.
        relevant: ``(num_pairs,)`` bool.
        num_bins: Of equal width. A probability on the border of two belongs to the lower one.

    Raises:
        ValueError: If a probability lies outside of [0, 1], there are no pairs, or ``num_bins`` is below 1.

    >>> calibration_report([0.75, 0.75, 0.25, 0.25], [True, False, False, False], num_bins=2).error
    0.25
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if num_bins < 1 or values.shape != truth.shape or values.ndim != 1 or not len(values):
        raise ValueError(
            f"expected one probability and one truth a pair and 1 bin or more, found shapes {values.shape} and "
            f"{truth.shape} and num_bins={num_bins}"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"expected probabilities from 0 to 1, found {values.min()} to {values.max()}. A Calibration maps scores."
        )
    places = np.clip(np.ceil(values * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append(
            {
                "low": float(place / num_bins),
                "high": float((place + 1) / num_bins),
                "num_pairs": int(inside.sum()),
                "mean_probability": float(values[inside].mean()),
                "relevant_share": float(truth[inside].mean()),
            }
        )
    error = sum(one["num_pairs"] * abs(one["mean_probability"] - one["relevant_share"]) for one in bins) / len(values)
    brier = float(np.square(values - truth).mean())
    return CalibrationReport(error, brier, tuple(bins), len(values))


def _platt(scores: NDArray[np.float64], relevant: NDArray[np.bool_]) -> dict[str, Any]:
    """A logistic curve; its labels 1 and 0 are moved inwards by Platt's rule, so that separable scores get one too."""
    num_relevant = int(relevant.sum())
    num_others = len(relevant) - num_relevant
    wanted = np.where(relevant, (num_relevant + 1) / (num_relevant + 2), 1 / (num_others + 2))
    mean, std = scores.mean(), scores.std() or 1.0
    column = ((scores - mean) / std)[:, None]
    # a pair whose wanted probability is t counts t times as relevant and 1 - t times as not
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    model.fit(
        np.concatenate([column, column]),
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([wanted, 1 - wanted]),
    )
    slope = float(model.coef_[0, 0] / std)
    _require_rising(slope)
    return {"slope": slope, "intercept": float(model.intercept_[0]) - slope * float(mean)}


def _isotonic(scores: NDArray[np.float64], relevant: NDArray[np.bool_]) -> dict[str, Any]:
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, relevant)
    _require_rising(model.y_thresholds_[-1] - model.y_thresholds_[0])
    return {"scores": model.X_thresholds_.tolist(), "probabilities": model.y_thresholds_.tolist()}


def _require_rising(rise: float) -> None:
    if not rise > 0:
        raise ValueError(
            "a higher score does not make a passage more often relevant: the scores are reversed or all alike, or the "
            "model ranks no better than chance. No mapping can mend that."
        )


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]
