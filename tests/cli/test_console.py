"""The console: bars as plain lines where no terminal shows them, and log lines."""

from __future__ import annotations

import io
import logging
import pkgutil
import re
import sys

import pytest
from tqdm import tqdm

from rerank_trainer.cli.console import console, lines_for_bars
from rerank_trainer.comparison.plan import Cell
from rerank_trainer.comparison.progress import ComparisonProgress


def test_a_bar_is_a_plain_line_with_percentage_and_time_left():
    stream = io.StringIO()
    with lines_for_bars(seconds=0.0), tqdm(total=4, desc="Scoring", file=stream, mininterval=0) as bar:
        bar.update(1)
        bar.update(2)

    lines = stream.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "Scoring: 0% (0/4)",
        "Scoring: 25% (1/4)",
        "Scoring: 75% (3/4)",
        "Scoring: 75% (3/4)",  # where it ended
    ]
    assert re.fullmatch(r"Scoring: 25% \(1/4\), 00:00 gone, 00:00 left, .*it/s", lines[1])
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue() and "|" not in stream.getvalue()


def test_a_bar_without_a_total_counts():
    stream = io.StringIO()
    with lines_for_bars(seconds=0.0):
        tqdm(file=stream, unit="pair", mininterval=0).update(3)

    assert re.match(r"3, 00:00 gone, .*pair/s", stream.getvalue().splitlines()[-1])


def test_a_bar_that_knows_the_time_left_itself_says_it_once_and_in_short_numbers(capsys):
    cells = [Cell("teacher"), Cell("cl", "small", 0), Cell("cl", "small", 1)]
    with lines_for_bars(seconds=0.0), ComparisonProgress(cells, {cells[0]: 5.0}, show=True) as bar:
        bar.begin(cells[1])
        bar.on_share(1 / 7)

    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"small cl seed 0: 38% \(1\.1/3\), 00:00 gone, about 00:00 left", line)


@pytest.mark.parametrize("leave", [True, False])
def test_a_short_bar_writes_nothing_of_its_own(leave):
    stream = io.StringIO()
    with lines_for_bars(seconds=60.0):
        for _ in tqdm(range(3), file=stream, mininterval=0, leave=leave):
            tqdm.write("a line", file=stream)

    assert stream.getvalue() == "a line\n" * 3


def test_lines_come_so_many_seconds_apart():
    stream = io.StringIO()
    with lines_for_bars(seconds=10.0), tqdm(total=100, file=stream, mininterval=0) as bar:
        clock = [bar.start_t]
        bar._time = lambda: clock[0]
        for _ in range(35):  # seconds
            clock[0] += 1
            bar.update(1)

    shown = [int(line.partition("%")[0]) for line in stream.getvalue().splitlines()]
    assert shown == [10, 20, 30, 35]


@pytest.mark.parametrize(
    "name",
    [
        "transformers.trainer_callback:tqdm",
        "transformers.utils.logging:tqdm_lib.tqdm",
        "datasets.utils:tqdm",
        "huggingface_hub.utils:tqdm",
        "rerank_trainer.models.progress:tqdm",
        "rerank_trainer.teachers.endpoints.endpoint:tqdm",
    ],
)
def test_the_bars_of_all_libraries_draw_by_the_method_that_is_replaced(name):
    assert pkgutil.resolve_name(name).display is tqdm.display


def test_afterwards_bars_are_drawn_as_before():
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), lines_for_bars(seconds=0.0):
        _ = 1 / 0
    tqdm(total=2, file=stream).close()

    assert stream.getvalue().startswith("\r  0%|")


def test_a_terminal_keeps_its_bars(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    with console():
        tqdm(total=2).close()
        written = sys.stderr.getvalue()

    assert "\r  0%|" in written


@pytest.mark.parametrize(("rank", "shown"), [("0", ["INFO: told", "WARNING: warned"]), ("1", ["WARNING: warned"])])
def test_only_the_first_process_tells_what_is_no_warning(rank, shown, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    logger = logging.getLogger("rerank_trainer.somewhere")
    with console():
        logger.info("told")
        logger.warning("warned")
    logger.info("later")

    assert capsys.readouterr().err.splitlines() == shown
