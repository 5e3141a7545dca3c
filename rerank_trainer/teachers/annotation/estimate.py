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

    None if a paid teacher has kept all scores of the sample, which then says nothing.

    Args:
        sample: Groups. The first is scored once before, since a first call may load and measure.
        scorer: Scores them.
        num_pairs: Pairs that are to be scored.
        num_processes: Processes that share the work, all as fast as this one.
    """
    of_sample = _estimates(scorer.teacher, sample.to_pylist())
    if not all(estimate.num_pairs for estimate in of_sample):
        return None
    cost = _sum_of_costs(of_sample)
    scorer(sample.slice(0, 1))
    start = time.perf_counter()
    scorer(sample)
    seconds, num_sampled = time.perf_counter() - start, num_passages(sample)
    return Estimate(
        num_pairs,
        pairs_per_second=num_processes * num_sampled / seconds,
        cost=None if cost is None else cost * num_pairs / num_sampled,
    )


def is_paid(teacher: Teacher) -> bool:
    """Whether the teacher, or one that it is made of, can say before what it costs."""
    return isinstance(teacher, PaidTeacher) or any(map(is_paid, getattr(teacher, "members", ())))


def price_of(groups: Sequence[Mapping[str, Any]], teacher: Teacher) -> float | None:
    """What a thousand pairs like these cost, in the unit of the teacher's prices; nothing is asked.

    None if the teacher has no price, or has kept all scores of these groups.
    """
    estimates = _estimates(teacher, groups)
    cost, num_pairs = _sum_of_costs(estimates), sum(len(group["passages"]) for group in groups)
    return 1000 * cost / num_pairs if cost and num_pairs else None


def _estimates(teacher: Teacher, groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What each paid teacher says: this one, or those that it is made of."""
    if isinstance(teacher, PaidTeacher):
        return [teacher.estimate(groups)]
    return [estimate for member in getattr(teacher, "members", ()) for estimate in _estimates(member, groups)]


def _sum_of_costs(estimates: Sequence[Any]) -> float | None:
    costs = [estimate.cost for estimate in estimates if estimate.cost is not None]
    return sum(costs) if costs else None
