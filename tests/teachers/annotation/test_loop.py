"""The loop: killed at any moment it goes on, and ends with the bytes of a run that was not, however many share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What :mod:`tests.teachers.annotation.killed_loop` found, in an interpreter of its own."""
    command = [sys.executable, str(Path(__file__).with_name("killed_loop.py")), str(tmp_path_factory.mktemp("killed"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_twenty_runs_killed_at_random_leave_the_bytes_of_whole_runs(found):
    assert sum(folder["kills"] for folder in found["random"]) == 20
    assert all(folder["same"] for folder in found["random"])


def test_a_run_repeats_at_most_one_shard_of_those_before(found):
    assert max(folder["repeated"] for folder in found["random"]) == 1  # and some were killed within a shard


def test_a_run_killed_before_any_call_that_changes_files_leaves_the_bytes_of_a_whole_run(found):
    # two folders, the manifest twice and 2 shards with a line each: a file is synced, renamed, and its folder synced
    assert len(found["moments"]) >= 2 + 3 * (2 + 2 * 2)
    assert all(found["moments"])


def test_two_processes_write_the_bytes_of_one(found):
    assert found["processes"]["two"]


def test_three_processes_finish_what_two_that_were_killed_began(found):
    assert found["processes"]["three"]


def test_the_loop_needs_no_torch(found):
    assert found["has_torch"] is False
