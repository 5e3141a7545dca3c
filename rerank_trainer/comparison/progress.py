"""The bar of a whole comparison: cells that are over, the one that runs, and the time left by what cells have taken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from rerank_trainer.comparison.plan import Cell

# Which share of a cell its training is taken to be; judging is the rest.
_TRAINING_SHARE = 0.9


@contextmanager
def without_other_bars() -> Iterator[None]:
    """Switch off the bars of Transformers and datasets for a while: models are opened and written in every cell."""
    had = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had[0]:
            transformers_logging.enable_progress_bar()
        if not had[1]:
            datasets.enable_progress_bars()


class ComparisonProgress:
    """One bar for all cells, for use in ``with``. The time left is that of this job alone.

    Args:
        cells: All of them.
        taken: Seconds of the cells that are over.
        show: None shows it in a terminal.
    """

    def __init__(self, cells: Sequence[Cell], taken: Mapping[Cell, float], *, show: bool | None = None) -> None:
        self.cells, self.taken = cells, dict(taken)
        self._bar = tqdm(
            total=len(cells),
            initial=len(self.taken),
            unit="cell",
            disable=None if show is None else not show,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {n:.1f}/{total} cells [{elapsed}{postfix}]",
            desc="comparison",
        )
        self._cell: Cell | None = None
        self._begun = self._share = 0.0

    def __enter__(self) -> ComparisonProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, cell: Cell) -> None:
        """This job begins a cell."""
        self._cell, self._begun, self._share = cell, time.perf_counter(), 0.0
        self._bar.set_description_str(str(cell))
        self._show()

    def on_share(self, share: float) -> None:
        """So much of the cell's training is done."""
        self._share = share * _TRAINING_SHARE
        self._show()

    def over(self, cell: Cell) -> None:
        """A cell is over, ours or that of another job."""
        if cell not in self.taken:
            self.taken[cell] = time.perf_counter() - self._begun if cell == self._cell else 0.0
        if cell == self._cell:
            self._cell, self._share = None, 0.0
        self._show()

    def seconds_left(self) -> float | None:
        """By the mean of cells of the same student, or of all where none of its is over; None where nobody knows."""
        left = [cell for cell in self.cells if cell not in self.taken]
        means = [self._mean(cell) for cell in left]
        if any(mean is None for mean in means):
            return None
        spent = time.perf_counter() - self._begun if self._cell is not None else 0.0
        return max(0.0, sum(mean for mean in means if mean is not None) - spent)

    def _mean(self, cell: Cell) -> float | None:
        if cell == self._cell and self._share > 0:
            return (time.perf_counter() - self._begun) / self._share
        known = {other: seconds for other, seconds in self.taken.items() if seconds and other.seed is not None}
        alike = [seconds for other, seconds in known.items() if other.student == cell.student]
        values = alike or list(known.values())
        if not values and self._cell is not None and self._share > 0 and self._cell.seed is not None:
            return (time.perf_counter() - self._begun) / self._share
        return sum(values) / len(values) if values else None

    def _show(self) -> None:
        self._bar.n = len(self.taken) + (self._share if self._cell is not None else 0.0)
        left = self.seconds_left()
        options: dict[str, Any] = {"refresh": False}
        self._bar.set_postfix_str("" if left is None else f"about {tqdm.format_interval(left)} left", **options)
        self._bar.refresh()
