"""The console: log lines on standard error, and progress bars that become plain lines where no terminal shows them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def console(*, seconds: float = SECONDS_BETWEEN_LINES) -> Iterator[None]:
    """Show what the library logs; without a terminal, bars as a line every so many seconds.

    Of several processes the others than the first show warnings alone.
    """
    logger = logging.getLogger("rerank_trainer")
    level, handler = logger.level, logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        if sys.stderr.isatty():
            yield
        else:
            with lines_for_bars(seconds=seconds):
                yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def lines_for_bars(*, seconds: float) -> Iterator[None]:
    """Let every bar write a line each so many seconds and, if it lasted so long, one at its end.

    The bars of all libraries are tqdm's, which asks to overload ``display``; here that is done for all of them.
    """
    drawn = tqdm.display, tqdm.clear, tqdm.close

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> None:
        elapsed = bar.format_dict["elapsed"]
        if elapsed >= getattr(bar, "next_line", seconds):
            bar.next_line = elapsed + seconds
            _write_line(bar)

    def close(bar: Any) -> None:
        if not getattr(bar, "disable", True):
            if hasattr(bar, "next_line"):
                _write_line(bar)
            bar.sp = None  # as if it were drawn in a window: tqdm writes no line break for it
        drawn[2](bar)

    tqdm.display, tqdm.clear, tqdm.close = display, lambda bar, nolock=False: None, close
    try:
        yield
    finally:
        tqdm.display, tqdm.clear, tqdm.close = drawn


def _write_line(bar: Any) -> None:
    """Write how far a bar is, as "Scoring: 45% (450/1000), 00:10 gone, 00:12 left, 45.0pair/s".

    What a bar's own format leaves out, because it knows better, is left out here, too.
    """
    said = {**bar.format_dict, "prefix": ""}
    what = f"{bar.desc.rstrip(': ')}: " if bar.desc else ""
    own_format = bar.bar_format or "{remaining}{rate_fmt}"
    done = f"{bar.n:.1f}" if isinstance(bar.n, float) else "{n_fmt}"
    how_far = f"{{percentage:.0f}}% ({done}/{{total_fmt}})" if bar.total else done
    left = ", {remaining} left" if bar.total and "{remaining" in own_format else ""
    rate = ", {rate_fmt}" if "{rate_fmt" in own_format else ""
    said["bar_format"] = f"{how_far}, {{elapsed}} gone{left}{rate}{{postfix}}"
    bar.fp.write(f"{what}{tqdm.format_meter(**said)}\n")
    bar.fp.flush()
