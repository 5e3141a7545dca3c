"""The loop in forks of an interpreter that has no PyTorch, killed by SIGKILL; what was found is printed as JSON.

python tests/teachers/annotation/killed_loop.py <an empty folder>
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd  # noqa: F401  pyarrow imports it when first used: here once, and not in every fork
import pyarrow as pa

from rerank_trainer.data.shards import ShardFolder
from rerank_trainer.models.progress import PairProgress
from rerank_trainer.teachers.annotation.loop import Process, write_shards
from rerank_trainer.teachers.annotation.scorer import TeacherScorer

NUM_KILLS = 20
SHARD_SIZE, BATCH_SIZE = 10, 4
# Every call of these is a moment at which a file is half there, named, or removed.
MOMENTS = ("fsync", "replace", "unlink", "rmdir", "mkdir")


class SlowTeacher:
    """Scores by length, half a millisecond a group, and notes each group before it is scored."""

    scale, fingerprint = "logit", "lengths"

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def score(self, groups: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
        file = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, "".join(f"{group['query']}\n" for group in groups).encode())
        os.close(file)
        time.sleep(0.0005 * len(groups))
        return {"scores": [[len(passage) / 7 for passage in group["passages"]] for group in groups]}


def write(folder: Path, *, num_groups: int, index: int = 0, count: int = 1) -> None:
    queries = [str(number) for number in range(num_groups)]
    table = pa.table(
        {"query": queries, "passages": [["star" * (i % 5 + 1), "paper" * (i % 3)] for i in range(num_groups)]}
    )
    with PairProgress(None, show=False) as progress:
        write_shards(
            [partial(table.slice, start, SHARD_SIZE) for start in range(0, num_groups, SHARD_SIZE)],
            TeacherScorer(SlowTeacher(folder.with_suffix(".notes"))),
            folder,
            settings={"shard_size": SHARD_SIZE, "batch_size": BATCH_SIZE, "num_groups": num_groups},
            process=Process(index, count),
            progress=progress,
        )


def started(function: Callable[[], None]) -> int:
    """The id of a fork that runs the function."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """The exit status; minus the signal where one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def repeated(notes: Path, before: int) -> set[int]:
    """The shards of which a run scored groups that runs before it had scored."""
    lines = notes.read_text().split() if notes.exists() else []
    return {int(query) // SHARD_SIZE for query in set(lines[:before]) & set(lines[before:])}


def killed_at_random(folder: Path, num_groups: int) -> list[dict[str, Any]]:
    """Runs killed within the time that a whole one takes, started again until they end; a folder after the other."""
    chance, whole, found, num_kills = random.Random(0), folder / "whole", [], 0
    start = time.monotonic()
    assert ended(started(partial(write, whole, num_groups=num_groups))) == 0
    seconds = time.monotonic() - start
    while num_kills < NUM_KILLS:
        path = folder / f"killed-{len(found)}"
        notes, most_repeated, kills, status = path.with_suffix(".notes"), 0, 0, -1
        while status != 0:
            before = len(notes.read_text().split()) if notes.exists() else 0
            pid = started(partial(write, path, num_groups=num_groups))
            if num_kills < NUM_KILLS:
                time.sleep(chance.uniform(0, seconds))
                os.kill(pid, signal.SIGKILL)
            status = ended(pid)
            assert status in (0, -signal.SIGKILL)
            kills, num_kills = kills + (status != 0), num_kills + (status != 0)
            most_repeated = max(most_repeated, len(repeated(notes, before)))
        found.append({"kills": kills, "same": content(path) == content(whole), "repeated": most_repeated})
    return found


def killed_at_each_moment(folder: Path, num_groups: int) -> list[bool]:
    """Whether the folder becomes that of a whole run after a kill right before each call that changes files."""
    whole, same = folder / "whole", []
    assert ended(started(partial(write, whole, num_groups=num_groups))) == 0
    while True:
        path = folder / f"moment-{len(same)}"
        status = ended(started(partial(dying_write, path, num_groups, at=len(same))))
        if status == 0:
            return same
        assert status == -signal.SIGKILL
        assert ended(started(partial(write, path, num_groups=num_groups))) == 0
        same.append(content(path) == content(whole))


def dying_write(folder: Path, num_groups: int, *, at: int) -> None:
    calls = 0

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in MOMENTS:
        setattr(os, name, guarded(getattr(os, name)))
    write(folder, num_groups=num_groups)


def several_processes(folder: Path, num_groups: int) -> dict[str, bool]:
    """Whether two processes write what one does, and three what two that were killed had begun."""
    whole, two, three = (folder / name for name in ("whole", "two", "three"))
    assert ended(started(partial(write, whole, num_groups=num_groups))) == 0

    def start(path: Path, count: int) -> list[int]:
        return [started(partial(write, path, num_groups=num_groups, index=i, count=count)) for i in range(count)]

    assert [ended(pid) for pid in start(two, 2)] == [0, 0]
    pids = start(three, 2)
    while not list(three.glob("train-*")):
        time.sleep(0.001)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [ended(pid) for pid in pids] == [-signal.SIGKILL] * 2
    begun = ShardFolder(three).finished() is None
    assert [ended(pid) for pid in start(three, 3)] == [0, 0, 0]
    return {"two": content(two) == content(whole), "three": begun and content(three) == content(whole)}


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("random", "moments", "processes"):
        (folder / name).mkdir()
    found = {
        "random": killed_at_random(folder / "random", num_groups=65),
        "moments": killed_at_each_moment(folder / "moments", num_groups=15),
        "processes": several_processes(folder / "processes", num_groups=65),
    }
    print(json.dumps({**found, "has_torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
