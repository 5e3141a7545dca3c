"""The scripts of ``benchmarks/``: what their table says is there, and ratios are those of equal rounds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COMMANDS = sorted(set(re.findall(r"python benchmarks/(\w+\.py)", (BENCHMARKS / "README.md").read_text("utf-8"))))
TIMED = [name for name in COMMANDS if '"--side"' in (BENCHMARKS / name).read_text("utf-8")]


@pytest.fixture(scope="module")
def turns():
    spec = importlib.util.spec_from_file_location("turns", BENCHMARKS / "turns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESULTS = {
    "ours": [{"seconds": 2.0, "tokens": 5}, {"seconds": 4.0, "tokens": 5}],
    "st-8": [{"seconds": 6.0, "tokens": 5}, {"seconds": 4.0, "tokens": 5}],
    "st-16": [{"seconds": 5.0, "tokens": 5}, {"seconds": 8.0, "tokens": 7}],
}


def test_the_table_names_benchmarks():
    assert "training_speed.py" in TIMED


@pytest.mark.parametrize("name", TIMED)
def test_help_says_what_the_sides_are(name):
    run = subprocess.run([sys.executable, BENCHMARKS / name, "--help"], capture_output=True, text=True, timeout=60)

    assert run.returncode == 0, run.stderr
    assert "Sides" in run.stdout


def test_a_ratio_compares_runs_of_the_same_round(turns):
    rows = {row["side"]: row for row in turns.summary(RESULTS, "seconds", base="ours", also=("tokens",))}

    # 6 / 2 = 3 and 4 / 4 = 1; medians 5 and 2
    assert rows["st-8"] == {"side": "st-8", "seconds": 5.0, "ratio": 2.0, "least": 1.0, "greatest": 3.0, "tokens": 5}
    assert rows["ours"]["ratio"] == 1.0


def test_a_peer_at_its_best_is_the_fastest_run_of_each_round(turns):
    best = turns.with_best(RESULTS, "st-", "best", "seconds")["best"]

    assert [run["seconds"] for run in best] == [5.0, 4.0]


def test_sides_that_saw_unlike_tokens_are_named(turns):
    assert turns.differences(RESULTS, ("tokens",)) == ["tokens differs: ours [5], st-8 [5], st-16 [5, 7]"]
    assert turns.differences({name: RESULTS[name] for name in ("ours", "st-8")}, ("tokens",)) == []


def test_objectives_are_compared_on_the_seeds_that_both_have(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    which_objective = importlib.import_module("which_objective")
    sets = ("test nq-qed", "test medquad", "test scifact", "test cosqa")

    def cell(name, seed, value):
        # ten queries a set that differ by the value alone
        return {
            "name": name,
            "seed": seed,
            "ndcg": {part: [value + query / 100 for query in range(10)] for part in sets},
        }

    cells = [cell("teacher: kl", 0, 0.5), cell("teacher: kl", 1, 0.3), cell("infonce", 1, 0.4), cell("BM25", 0, 0.2)]
    tests = which_objective._tests(cells, "teacher: kl")

    # 0.4 - 0.3 of seed 1, not 0.4 - 0.4 of all; 20 queries that all gain
    assert tests == {("infonce", domain): "+0.100*" for domain in ("in domain", "out of domain")}
