"""The loop: shards scored and written, by one process or by several that share a folder; it needs no PyTorch.

What a process does follows from its number alone: shard i is of process i modulo their number. A shard is scored in
parts of its own, never together with another, so that a resumed run, or one with other processes, writes the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rerank_trainer.data.shards import ShardFolder
from rerank_trainer.models.progress import PairProgress

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class Process:
    """One of several processes that share the work.

    Attributes:
        index: Its number, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"process {self.index} of {self.count}: expected a number from 0 to {self.count - 1}")


@dataclass
class Work:
    """What one process did and found.

    Attributes:
        num_shards: Shards of the whole data set.
        num_scored: Pairs that this process scored.
        seconds: What scoring them took.
    """

    num_shards: int = 0
    num_scored: int = 0
    seconds: float = 0.0


def write_shards(
    tables: Iterable[Callable[[], pa.Table]],
    score: Callable[..., pa.Table],
    path: Path,
    *,
    settings: Mapping[str, Any],
    process: Process,
    progress: PairProgress,
    wait: bool = True,
) -> Work:
    """Score and write this process's shards; what was done.

    Args:
        tables: The groups of each shard, of all processes, made when asked for.
        score: Gives a table the new column; told the number of its ``first_group``.
        path: The folder of shards.
        settings: What decides the scores, with ``shard_size`` (groups of a shard) and ``batch_size`` (groups that are
            scored at once).
        process: Which shards are this process's.
        progress: Told of pairs.
        wait: Whether to wait until the other processes' shards are there. The first process then finishes the manifest.

    Raises:
        ValueError: If the folder is of other settings or groups, or a shard that is there is damaged.
    """
    folder, work = ShardFolder(path), Work()
    if process.index == 0:
        folder.begin(settings)
    else:
        _wait_for(folder.has_begun, f"the first process to begin {path}")
        folder.compare(settings)
    for number, table_of in enumerate(tables):
        work.num_shards += 1
        if number % process.count == process.index:
            _write_shard(number, table_of(), score, folder, settings, progress, work)
    if work.num_shards == 0:
        raise ValueError("expected one group or more, found none")
    if process.index == 0:
        _finish(folder, work.num_shards, wait=wait)
    elif wait:
        _wait_for(lambda: folder.finished() is not None, f"the manifest of {path}")
    return work


def _write_shard(
    number: int,
    table: pa.Table,
    score: Callable[..., pa.Table],
    folder: ShardFolder,
    settings: Mapping[str, Any],
    progress: PairProgress,
    work: Work,
) -> None:
    first, made_from = number * settings["shard_size"], digest(table)
    num_pairs = num_passages(table)
    shard = folder.shard(number)
    if shard is not None:
        folder.check(number, shard, made_from=made_from, first_group=first)
        progress.skip(num_pairs)
        return
    parts, start = [], time.perf_counter()
    for offset in range(0, len(table), settings["batch_size"]):
        part = table.slice(offset, settings["batch_size"])
        progress.begin(num_passages(part))
        parts.append(score(part, first_group=first + offset))
        progress.end()
    folder.write(number, pa.concat_tables(parts), num_pairs=num_pairs, made_from=made_from)
    work.num_scored += num_pairs
    work.seconds += time.perf_counter() - start


def _finish(folder: ShardFolder, num_shards: int, *, wait: bool) -> None:
    for number in range(num_shards):
        if wait:
            _wait_for(partial(folder.shard, number), f"{folder.file(number)} of another process")
        elif folder.shard(number) is None:
            return
    folder.finish(num_shards)


def digest(table: pa.Table) -> str:
    """A digest of a table's values, however they are laid out in memory."""
    sha256 = hashlib.sha256()
    for row in table.to_pylist():
        sha256.update(json.dumps(row, sort_keys=True, default=str).encode())
    return sha256.hexdigest()


def num_passages(table: pa.Table) -> int:
    """How many pairs the groups of a table make."""
    return int(pc.sum(pc.list_value_length(table["passages"])).as_py() or 0)


def _wait_for(is_there: Callable[[], object], what: str) -> None:
    """Look until it is there, however long: whoever started the processes ends all when one fails."""
    told = time.monotonic()
    while not is_there():
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            logger.info("waiting for %s", what)
            told = time.monotonic()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
