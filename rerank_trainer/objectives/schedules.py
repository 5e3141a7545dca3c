"""Schedules: how much something counts as training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A number that follows the progress of training: any object with this method will do."""

    def at(self, progress: float) -> float:
        """The number, 0 or more, when this share of the optimizer steps is done, from 0 to 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same number throughout.

    Args:
        value: 0 or more.

    Raises:
        ValueError: If it is negative or not finite.
    """

    value: float

    def __post_init__(self) -> None:
        _require_numbers(value=self.value)

    def at(self, progress: float) -> float:
        """The number."""
        return self.value


@dataclass(frozen=True)
class Ramp:
    """From one number to another in a straight line, constant before and after it.

    Args:
        first: The number until ``begin``, 0 or more.
        last: The number from ``end`` on, 0 or more.
        begin: Where the line begins, as a share of the optimizer steps, from 0 to 1.
        end: Where it ends; equal to ``begin``, the number jumps there.

    Raises:
        ValueError: If a number is negative or not finite, or the shares are not in order.

    >>> ramp = Ramp(0.0, 1.0, end=0.5)
    >>> ramp.at(0.0), ramp.at(0.25), ramp.at(0.5), ramp.at(1.0)
    (0.0, 0.5, 1.0, 1.0)
    """

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _require_numbers(first=self.first, last=self.last)
        if not 0 <= self.begin <= self.end <= 1:
            raise ValueError(
                f"begin={self.begin}, end={self.end}: expected shares of the optimizer steps, 0 <= begin <= end <= 1"
            )

    def at(self, progress: float) -> float:
        """The number when this share of the optimizer steps is done."""
        if progress >= self.end:
            return self.last
        if progress <= self.begin:
            return self.first
        return self.first + (self.last - self.first) * (progress - self.begin) / (self.end - self.begin)


def as_schedule(value: float | Schedule) -> Schedule:
    """The schedule itself, or a number that stays."""
    return Constant(value) if isinstance(value, int | float) else value


def _require_numbers(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}={number}: expected a number of 0 or more")
