"""The estimate: what scoring a data set will take and cost, from a sample of its groups."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from tqdm import tqdm

from rerank_trainer.teachers.annotation.loop import num_passages
from rerank_trainer.teachers.annotation.scorer import TeacherScorer
from rerank_trainer.teachers.teacher import Teacher


@runtime_checkable
class PaidTeacher(Teacher, Protocol):
    """A teacher that can say before what it costs, such as an ``EndpointTeacher``."""

    def estimate(self, groups: Sequence[Mapping[str, Any]]) -> Any:
        """What these groups will cost: ``cost`` in the unit of its prices, or None, and the ``num_pairs`` it is for.

        Nothing is asked. Pairs whose scores it has kept do not count.
        """
        ...


@dataclass(frozen=True)
class Estimate:
    """What scoring will take.

    Attributes:
        num_pairs: Pairs that are not scored yet.
        pairs_per_second: Of all processes together.
        cost: For all pairs; None for a teacher that costs nothing.

    >>> print(Estimate(num_pairs=1_000_000, pairs_per_second=250.0, cost=12.5))
    1,000,000 pairs at 250 a second: about 1:06:40; cost about 12.5
    """

    num_pairs: int
    pairs_per_second: float
    cost: float | None = None

    @property
    def seconds(self) -> float:
        """For all pairs."""
        return self.num_pairs / self.pairs_per_second

    def __str__(self) -> str:
        cost = "" if self.cost is None else f"; cost about {self.cost:.4g}"
        time_left = tqdm.format_interval(self.seconds)
        return f"{self.num_pairs:,} pairs at {self.pairs_per_second:,.3g} a second: about {time_left}{cost}"


def estimate_from(
    sample: pa.Table, scorer: TeacherScorer, *, num_pairs: int, num_processes: int = 1
) -> Estimate | None:
    """What scoring will take if its groups are like those of a sample, which is scored.

    None if the teacher has kept all scores of the sample, which then says nothing.

    Args:
        sample: Groups. The first is scored once before, since a first call may load and measure.
        scorer: Scores them.
        num_pairs: Pairs that are to be scored.
        num_processes: Processes that share the work, all as fast as this one.
    """
    of_sample = scorer.teacher.estimate(sample.to_pylist()) if isinstance(scorer.teacher, PaidTeacher) else None
    if of_sample is not None and not of_sample.num_pairs:
        return None
    cost = None if of_sample is None else of_sample.cost
    scorer(sample.slice(0, 1))
    start = time.perf_counter()
    scorer(sample)
    seconds, num_sampled = time.perf_counter() - start, num_passages(sample)
    return Estimate(
        num_pairs,
        pairs_per_second=num_processes * num_sampled / seconds,
        cost=None if cost is None else cost * num_pairs / num_sampled,
    )
