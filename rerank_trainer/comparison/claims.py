"""Claims: lock files by which jobs that share a folder divide its cells, and take over those of a job that died."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

# A running job touches its lock so often; on another machine, a lock untouched for so long counts as abandoned.
TOUCHED_EVERY, STALE_AFTER = 20.0, 600.0


class Claim:
    """A cell that is ours until the block ends, for use in ``with``; :func:`claim` makes it.

    Attributes:
        path: The lock file, which holds host, process and time.
    """

    def __init__(self, path: Path, content: str) -> None:
        self.path = path
        self._content = content
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if _read(self.path) == self._content:  # otherwise another job has taken it over
            self.path.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._over.wait(TOUCHED_EVERY):
            if self.path.exists():
                os.utime(self.path)


def claim(path: Path, *, stale_after: float = STALE_AFTER) -> Claim | None:
    """The claim to a cell, or None where another job has it.

    Args:
        path: Of the lock file. It is made in one step, so of several jobs one gets it.
        stale_after: Seconds after which a lock of another machine that nobody touches may be taken over. On this
            machine, the lock of a process that has ended may be, at once.
    """
    mine = {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid()), "time": time.time()}
    content = json.dumps({**mine, "token": uuid.uuid4().hex})
    if _create(path, content) or (_remove_abandoned(path, stale_after) and _create(path, content)):
        return Claim(path, content)
    return None


def holder(path: Path) -> str:
    """Who has a lock, in words; "" where nobody has it."""
    found = _parsed(_read(path))
    return f"process {found['pid']} on {found['host']}" if found else ""


def _create(path: Path, content: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
    except OSError:  # the disk is full: an empty lock would be nobody's, and yet keep others out for a while
        path.unlink(missing_ok=True)
        raise
    return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _parsed(content: str | None) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(content or "")
    except ValueError:  # one that is being written
        return None
    return found


def _remove_abandoned(path: Path, stale_after: float) -> bool:
    """Remove the lock of a job that died. One job at a time looks and removes, so that none removes a new lock."""
    guard = path.with_name(f"{path.name}.taking")
    if not _create(guard, ""):
        if _age(guard) > stale_after:  # whoever looked died as well; the next try finds it gone
            guard.unlink(missing_ok=True)
        return False
    try:
        found = _read(path)
        if found is None or not _abandoned(path, found, stale_after):
            return False
        path.unlink()
        return True
    finally:
        guard.unlink(missing_ok=True)


def _abandoned(path: Path, content: str, stale_after: float) -> bool:
    found = _parsed(content)
    if found is not None and found["host"] == platform.node():
        return _started(found["pid"]) != found["started"]
    return _age(path) > stale_after


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _started(pid: int) -> float | None:
    """When a process began; a number that is used again belongs to another one."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
