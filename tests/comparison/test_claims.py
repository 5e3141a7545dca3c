"""Claims: one of several jobs gets a cell, and the lock of a job that died is taken over."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rerank_trainer.comparison import claims
from rerank_trainer.comparison.claims import claim, holder


def test_of_many_that_try_at_once_one_gets_the_cell(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: claim(tmp_path / "cell.lock"), range(64)))

    assert sum(each is not None for each in found) == 1


def test_a_lock_is_there_as_long_as_the_block_and_says_whose_it_is(tmp_path):
    lock = tmp_path / "cell.lock"
    with claim(lock):
        assert claim(lock) is None
        assert str(os.getpid()) in holder(lock)

    assert not lock.exists()
    assert claim(lock) is not None


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def written_lock(path, **changed):
    with claim(path):
        content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changed}))


def test_the_lock_of_a_process_that_has_ended_is_taken_over(tmp_path, dead_pid):
    written_lock(tmp_path / "cell.lock", pid=dead_pid, started=1.0)

    own = claim(tmp_path / "cell.lock")
    assert own is not None and str(os.getpid()) in holder(tmp_path / "cell.lock")


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path):
    written_lock(tmp_path / "cell.lock", started=1.0)

    assert claim(tmp_path / "cell.lock") is not None


def test_the_lock_of_another_machine_is_taken_over_once_nobody_touches_it(tmp_path, dead_pid):
    lock = tmp_path / "cell.lock"
    written_lock(lock, host="elsewhere", pid=dead_pid)
    assert claim(lock, stale_after=60) is None

    os.utime(lock, (time.time() - 61,) * 2)
    assert claim(lock, stale_after=60) is not None


def test_of_many_that_take_over_at_once_one_gets_the_cell(tmp_path, dead_pid):
    written_lock(tmp_path / "cell.lock", pid=dead_pid, started=1.0)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: claim(tmp_path / "cell.lock"), range(64)))

    assert sum(each is not None for each in found) == 1


def test_who_was_taken_over_leaves_the_new_lock_alone(tmp_path):
    lock = tmp_path / "cell.lock"
    with claim(lock):
        lock.write_text("of another job")

    assert lock.read_text() == "of another job"


def test_a_lock_that_could_not_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def full(descriptor, mode):
        os.close(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claims.os, "fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        claim(tmp_path / "cell.lock")
    monkeypatch.undo()

    assert claim(tmp_path / "cell.lock") is not None
