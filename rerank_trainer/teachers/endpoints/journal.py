"""The journal of answers: what a service was paid for is on disk before the next request goes out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from rerank_trainer.teachers.endpoints.budget import Budget

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (pair BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (one INTEGER PRIMARY KEY, requests INTEGER NOT NULL, pairs INTEGER NOT NULL);
INSERT OR IGNORE INTO spent VALUES (1, 0, 0);
"""
_CHUNK = 500  # pairs that one query looks up
_PATIENCE = 60.0  # seconds to wait for another process that writes


class Journal:
    """Answers by the digest of their pair, and what was spent; an SQLite file, for use in ``with``.

    SQLite keeps a file whole whenever the process or the machine dies, and lets several processes share it. No text and
    no key of a service stands in it.

    Args:
        path: The file; made if it is not there.

    Raises:
        ValueError: If the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=_PATIENCE)
        try:
            self._database.execute("PRAGMA synchronous=FULL")  # a commit returns when it is on the disk
            self._database.executescript(_TABLES)
        except sqlite3.OperationalError:
            self._database.close()
            raise  # locked, no space, not writable: it says so
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise ValueError(
                f"the journal {path} is damaged or none ({error}). Move it away: what it holds is paid for again."
            ) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def read(self, pairs: Iterable[bytes]) -> dict[bytes, float]:
        """The scores of those pairs that have one."""
        wanted = list(pairs)
        found: dict[bytes, float] = {}
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            query = f"SELECT pair, score FROM answers WHERE pair IN ({','.join('?' * len(chunk))})"
            found.update(self._database.execute(query, chunk))
        return found

    def spent(self) -> tuple[int, int]:
        """Requests and pairs that were sent and not refused, by all runs."""
        requests, pairs = self._database.execute("SELECT requests, pairs FROM spent").fetchone()
        return requests, pairs

    def reserve(self, num_pairs: int, budget: Budget) -> bool:
        """Count a request about so many pairs, if the budget allows it."""
        # a write that changes nothing takes the lock, so that no other process counts between reading and writing
        self._database.execute("UPDATE spent SET requests = requests")
        requests, pairs = self.spent()
        if not budget.allows(requests + 1, pairs + num_pairs):
            return False
        self._count(1, num_pairs)
        return True

    def release(self, num_pairs: int) -> None:
        """Count a request no longer: it was refused."""
        self._count(-1, -num_pairs)

    def add(self, pairs: Sequence[bytes], scores: Sequence[float]) -> None:
        """Keep the scores of a request."""
        rows = zip(pairs, scores, strict=True)
        self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def commit(self) -> None:
        """Write what was added and counted to the disk."""
        self._database.commit()

    def _count(self, num_requests: int, num_pairs: int) -> None:
        self._database.execute("UPDATE spent SET requests = requests + ?, pairs = pairs + ?", (num_requests, num_pairs))
