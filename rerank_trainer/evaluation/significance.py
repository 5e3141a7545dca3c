"""Significance: whether one ranking is better than another by more than the choice of queries explains.

Everything is paired by query: the same query under both rankings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

POWER = 0.8
# Numbers that the resampling may hold at a time (32 MiB).
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class PairedTest:
    """How two rankings differ over the same queries.

    Attributes:
        difference: Mean of the first minus mean of the second.
        low, high: Bootstrap interval of the difference over queries.
        p_value: Two-sided: how often a difference as large arises when the two are exchangeable in each query.
        effect_size: The difference divided by the standard deviation of the queries' differences (Cohen's d of pairs);
            0 where nothing differs, infinite where all queries differ alike.
        detectable: The smallest true difference that so many queries, varying as these do, would have shown with
            probability 0.8 at the level alpha = 1 - confidence.
        num_queries: Queries that both rankings have.
        num_wins, num_losses: Queries in which the first is better, or worse.
        exact: Whether all exchanges were counted, or a random sample of them.
    """

    difference: float
    low: float
    high: float
    p_value: float
    effect_size: float
    detectable: float
    num_queries: int
    num_wins: int
    num_losses: int
    exact: bool

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p = {self.p_value:.4f}, effect size "
            f"{self.effect_size:+.2f}, {self.num_wins} wins and {self.num_losses} losses in {self.num_queries} "
            f"queries, detectable {self.detectable:.4f}"
        )


def paired_test(
    first: Mapping[str, float] | ArrayLike,
    second: Mapping[str, float] | ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """How the first ranking differs from the second, by a randomisation test and a bootstrap over queries.

    The randomisation test exchanges the two values of each query, in all 2^n ways where those are no more than
    ``num_resamples`` and otherwise in as many random ones, when the p-value is (1 + count) / (1 + num_resamples) and so
    never 0 (Smucker, Allan and Carterette, 2007, https://doi.org/10.1145/1321440.1321528). The interval is the
    bias-corrected and accelerated bootstrap (Efron, 1987, https://doi.org/10.1080/01621459.1987.10478410). Both are
    computed by scipy. What was detectable is :func:`detectable_difference`.

    Args:
        first: A metric by query, ``{query_id: value}`` as :meth:`Evaluation.by_query` gives it; or an array,
            ``(num_queries,)``, NaN where a query has no value.
        second: The same queries.
        confidence: Of the interval, above 0 and below 1.
        num_resamples: Of test and bootstrap.
        seed: Decides them.

    Raises:
        ValueError: If the queries differ, there are fewer than 2, or a value is not finite.

    >>> test = paired_test({"q1": 0.5, "q2": 1.0, "q3": 0.75}, {"q1": 0.25, "q2": 0.5, "q3": 0.5})
    >>> test.difference == 1 / 3, test.p_value, test.num_wins  # all signs alike: 2 of the 8 exchanges
    (True, 0.25, 3)
    """
    differences = _differences(first, second)
    low, high = _interval(differences, confidence, num_resamples, seed)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=_batch(differences),
        rng=np.random.default_rng(seed),
    )
    num_queries, difference = len(differences), float(differences.mean())
    std: float = float(differences.std(ddof=1)) if np.ptp(differences) else 0.0
    return PairedTest(
        difference=difference,
        low=low,
        high=high,
        p_value=float(test.pvalue),
        effect_size=difference / std if std else math.copysign(math.inf, difference) if difference else 0.0,
        detectable=detectable_difference(std, num_queries, alpha=1 - confidence),
        num_queries=num_queries,
        num_wins=int((differences > 0).sum()),
        num_losses=int((differences < 0).sum()),
        exact=num_queries <= math.log2(num_resamples),
    )


def mean_interval(
    values: Mapping[str, float] | ArrayLike, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap interval of one ranking's mean over queries, as in :func:`paired_test`.

    Raises:
        ValueError: As :func:`paired_test`.

    >>> low, high = mean_interval([0.2, 0.4, 0.6, 0.8])
    >>> 0.2 < low < 0.5 < high < 0.8
    True
    """
    found = np.asarray(list(values.values()) if isinstance(values, Mapping) else values, dtype=np.float64)
    return _interval(_checked(found[~np.isnan(found)]), confidence, num_resamples, seed)


def holm(p_values: Mapping[Any, float] | Sequence[float]) -> dict[Any, float]:
    """The p-values of several comparisons, corrected so that any false one among them is as rare as in a single test.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none falls below one before it, none rises above
    1 (Holm, 1979, https://www.jstor.org/stable/4615733).

    Args:
        p_values: By the name of the comparison, or in a list, whose places are the names then.

    Raises:
        ValueError: If one lies outside of [0, 1].

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    named = dict(p_values.items() if isinstance(p_values, Mapping) else enumerate(p_values))
    if not all(0 <= p <= 1 for p in named.values()):
        raise ValueError(f"expected p-values from 0 to 1, found {named}")
    corrected: dict[Any, float] = {}
    last = 0.0
    for place, name in enumerate(sorted(named, key=lambda name: named[name])):
        last = min(1.0, max(last, (len(named) - place) * named[name]))
        corrected[name] = last
    return {name: corrected[name] for name in named}


def detectable_difference(std: float, num_queries: int, *, alpha: float = 0.05, power: float = POWER) -> float:
    r"""The smallest true mean difference that a two-sided paired test finds with probability ``power``.

    .. math:: (t_{n-1,\,1-\alpha/2} + t_{n-1,\,power}) \cdot s / \sqrt n

    the minimum detectable effect of Bloom (1995, https://doi.org/10.1177/0193841X9501900504). A difference that was not
    significant says little when this is larger than what would matter.

    Args:
        std: Standard deviation of the queries' differences, in the unit of the metric.
        num_queries: n, 2 or more.
        alpha: Level of the test.
        power: The probability.

    Raises:
        ValueError: If a value is out of its range.

    >>> round(detectable_difference(0.3, 300), 3)
    0.049
    """
    if std < 0 or num_queries < 2 or not 0 < alpha < 1 or not 0 < power < 1:
        raise ValueError(
            f"std={std}, num_queries={num_queries}, alpha={alpha}, power={power}: expected 0 or more, 2 or more, and "
            "shares between 0 and 1"
        )
    quantiles = stats.t.ppf([1 - alpha / 2, power], df=num_queries - 1)
    return float(quantiles.sum() * std / math.sqrt(num_queries))


def _differences(first: Any, second: Any) -> NDArray[np.float64]:
    if isinstance(first, Mapping) != isinstance(second, Mapping):
        raise ValueError(
            "first and second: expected two mappings from query to value, or two arrays, found one of each"
        )
    if isinstance(first, Mapping):
        unlike = sorted(first.keys() ^ second.keys(), key=str)
        if unlike:
            raise ValueError(
                f"the two rankings differ in {len(unlike)} queries, such as {unlike[0]!r}: evaluate both on the same "
                "groups"
            )
        first, second = ([values[name] for name in first] for values in (first, second))
    ours, theirs = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(
            f"expected one value a query under both rankings, found shapes {ours.shape} and {theirs.shape}"
        )
    absent = np.isnan(ours)
    if (absent != np.isnan(theirs)).any():
        place = int(np.flatnonzero(absent != np.isnan(theirs))[0])
        raise ValueError(f"query {place} has a value under one ranking alone: {ours[place]} and {theirs[place]}")
    differences = (ours - theirs)[~absent]
    return _checked(differences)


def _checked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values of 2 queries or more, found {len(values)}: {values[:3]}")
    return values


def _interval(values: NDArray[np.float64], confidence: float, num_resamples: int, seed: int) -> tuple[float, float]:
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"confidence={confidence}, num_resamples={num_resamples}: expected a share between 0 and 1, and 1 or more"
        )
    if np.ptp(values) == 0:  # no resample would differ
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=_batch(values),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _batch(values: NDArray[np.float64]) -> int:
    return max(1, _NUMBERS_AT_ONCE // len(values))
