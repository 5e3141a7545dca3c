"""The estimate: what scoring a data set will take and cost, from a sample of its groups."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from rerank_trainer.teachers.annotation.loop import num_passages
from rerank_trainer.teachers.annotation.scorer import TeacherScorer
from rerank_trainer.teachers.teacher import Teacher

# The sample is at most this part of the groups, and so many of them: it is scored twice.
SHARE = 100
MOST_GROUPS = 32


@runtime_checkable
class PaidTeacher(Teacher, Protocol):
    """A teacher whose scores cost money."""

    def estimate_cost(self, groups: Sequence[Mapping[str, Any]]) -> float | None:
        """What scoring these groups costs, in the unit of its prices; None where it has none."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What scoring will take.

    Attributes:
        num_pairs: Pairs that are not scored yet; None where nobody knows.
        pairs_per_second: Of all processes together.
        seconds: For all pairs; None where nobody knows how many.
        cost: For all pairs, or for each where nobody knows how many; None for a teacher that costs nothing.

    >>> print(Estimate(num_pairs=1_000_000, pairs_per_second=250.0, seconds=4000.0, cost=12.5))
    1,000,000 pairs at 250 a second: about 1:06:40; cost about 12.5
    """

    num_pairs: int | None
    pairs_per_second: float
    seconds: float | None
    cost: float | None

    def __str__(self) -> str:
        speed, each = f"{self.pairs_per_second:,.3g}", ""
        if self.num_pairs is None or self.seconds is None:
            text, each = f"{speed} pairs a second, of a stream of unknown length", " a pair"
        else:
            minutes, seconds = divmod(round(self.seconds), 60)
            text = f"{self.num_pairs:,} pairs at {speed} a second: about {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        return text if self.cost is None else f"{text}; cost about {self.cost:.4g}{each}"


def estimate_from(sample: pa.Table, scorer: TeacherScorer, *, num_pairs: int | None, num_processes: int) -> Estimate:
    """What scoring will take if its groups are like those of a sample, which is scored.

    Args:
        sample: Groups. The first is scored once before, since a first call may load and measure.
        scorer: Scores them.
        num_pairs: Pairs that are to be scored; None where nobody knows.
        num_processes: Processes that share the work, all as fast as this one.
    """
    scorer(sample.slice(0, 1))
    start = time.perf_counter()
    scorer(sample)
    num_sampled = num_passages(sample)
    speed = num_processes * num_sampled / max(time.perf_counter() - start, 1e-9)
    cost = scorer.teacher.estimate_cost(sample.to_pylist()) if isinstance(scorer.teacher, PaidTeacher) else None
    if cost is not None:
        cost *= (1 if num_pairs is None else num_pairs) / num_sampled
    return Estimate(num_pairs, speed, None if num_pairs is None else num_pairs / speed, cost)
