"""Annotate: a teacher's scores for any number of groups, written into a data set of their own."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rerank_trainer.data.columns import check_rows, fits, group_features, is_of_named_teacher
from rerank_trainer.data.files import Source
from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.shards import ShardFolder
from rerank_trainer.data.streams import refuse_part_of_stream
from rerank_trainer.models.progress import MANY_PAIRS, PairProgress
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.annotation.estimate import estimate_from, is_paid, price_of
from rerank_trainer.teachers.annotation.loop import Process, write_shards
from rerank_trainer.teachers.annotation.scorer import COLUMN, TeacherScorer
from rerank_trainer.teachers.teacher import Teacher

logger = logging.getLogger(__name__)

SHARD_SIZE = 1024
BATCH_SIZE = 256
SAMPLE_SIZE = 32


@dataclass(frozen=True)
class AnnotationReport:
    """What one process wrote.

    Attributes:
        output_dir: The folder; ``load_groups`` opens it once it is complete.
        is_complete: Whether the shards of all processes are there.
        num_pairs: Pairs of the whole data set; None while it is not complete.
        num_scored: Pairs that this process scored; those that were there already do not count.
        seconds: What that took.
    """

    output_dir: Path
    is_complete: bool
    num_pairs: int | None
    num_scored: int
    seconds: float

    def __str__(self) -> str:
        speed = f" ({self.num_scored / self.seconds:,.3g} a second)" if self.num_scored else ""
        state = f"{self.num_pairs:,} pairs are there" if self.is_complete else "other processes' shards are missing"
        return f"{self.num_scored:,} pairs scored{speed}; {state}: {self.output_dir}"


def annotate(
    dataset: Source | datasets.IterableDataset,
    teacher: str | Path | Reranker | Teacher,
    output_dir: str | Path,
    *,
    column: str = COLUMN,
    shard_size: int = SHARD_SIZE,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    process_index: int | None = None,
    num_processes: int | None = None,
    wait: bool = True,
    show_progress_bar: bool | None = None,
) -> AnnotationReport:
    """What was written: the groups with a teacher's scores, as parquet shards that ``load_groups(output_dir)`` opens.

    Memory holds one shard, whatever the number of groups. A run that is killed and started again goes on, repeats at
    most one shard a process, and ends with the files of a run that was not. Under ``accelerate launch`` or
    ``torchrun`` processes share the shards; machines need a folder in common. See ``docs/annotate.md``.

    Args:
        dataset: Groups, with labels or without, as a data set or a stream; or whatever else ``load_groups`` takes. Of
            groups all columns are kept.
        teacher: A Hub id or folder, a :class:`Reranker`, or any :class:`Teacher`. Its scores must follow from the group
            and its fingerprint alone.
        output_dir: A folder that is not there, is empty, or was begun by this function with the same arguments.
        column: The column of the scores: ``teacher_scores``, which trainers read, or ``teacher_scores_<name>`` for one
            of several teachers.
        shard_size: Groups of a shard, which are held in memory.
        batch_size: Groups of one call of the teacher; calls never join shards.
        device: Where a teacher given by name is put; None takes this process's GPU, or the CPU where there is none.
        process_index: The number of this process, from 0; None takes what ``accelerate launch`` or ``torchrun`` says.
        num_processes: How many processes share the work; None likewise.
        wait: Whether to wait until the other processes are done. Without it the first of them, if it is not the last to
            end, has to be started again to finish the manifest.
        show_progress_bar: Whether the first process shows pairs scored, pairs a second and time left, of its share;
            None does from a thousand pairs on. An estimate for all is logged before.

    Raises:
        ValueError: If the groups are not valid or have the column already; the teacher's answer is not one finite
            number a passage; the folder holds something else, was begun with another teacher, data set or setting, or
            a file in it is damaged.

    >>> import tempfile
    >>> class LengthTeacher:
    ...     scale, fingerprint = "logit", "the length of the passage"
    ...     def score(self, groups):
    ...         return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}
    >>> groups = datasets.Dataset.from_dict({"query": ["1 + 1"], "passages": [["two", "eleven"]]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     annotate(groups, LengthTeacher(), folder).num_scored
    ...     load_groups(folder)["teacher_scores"][0]
    2
    [3.0, 6.0]
    """
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected 1 or more")
    if column != COLUMN and not is_of_named_teacher(column):
        raise ValueError(f"column={column!r}: expected {COLUMN!r} or '{COLUMN}_...', which load_groups keeps")
    process = _this_process(process_index, num_processes)
    groups = groups_to_score(dataset)
    if column in (groups.column_names or ()):
        raise ValueError(
            f"the groups have a column {column} already: give another name, column='teacher_scores_...', or drop it: "
            f"dataset.remove_columns({column!r})."
        )
    scorer = TeacherScorer(teacher, column=column, device=device)
    settings = {
        "teacher": scorer.teacher.fingerprint,
        "scale": scorer.teacher.scale,
        "column": column,
        "shard_size": shard_size,
        "batch_size": batch_size,
        "columns": sorted(groups.column_names or ()),
        "num_groups": len(groups) if isinstance(groups, datasets.Dataset) else None,
    }
    folder = ShardFolder(Path(output_dir))
    if folder.has_begun():
        folder.compare(settings)  # before the teacher is asked for an estimate
    shown = False if process.index else show_progress_bar
    nums_pairs = _nums_pairs(groups, shard_size)
    own = None if nums_pairs is None else sum(nums_pairs[process.index :: process.count])
    if process.index == 0:
        if nums_pairs is None:
            _log_price(groups, scorer, folder)
        else:
            _log_estimate(groups, scorer, folder, nums_pairs, shard_size, process)
    with PairProgress(own, show=shown, description="Teacher scores") as progress:
        options: dict[str, Any] = {"settings": settings, "process": process, "progress": progress, "wait": wait}
        work = write_shards(_tables(groups, shard_size), scorer, folder.path, **options)
    shards = folder.finished()
    num_pairs = None if shards is None else sum(shard.num_pairs for shard in shards)
    report = AnnotationReport(folder.path, shards is not None, num_pairs, work.num_scored, work.seconds)
    logger.info("%s", report)
    return report


def _this_process(index: int | None, count: int | None) -> Process:
    """Which process this is; nothing is started for it, and no other process is asked."""
    if (index is None) != (count is None):
        raise ValueError(f"process_index={index} and num_processes={count}: give both, or none")
    if index is not None and count is not None:
        return Process(index, count)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Process(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Process(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def groups_to_score(dataset: Any) -> datasets.Dataset | datasets.IterableDataset:
    """Groups with all their columns, also without labels; rows of another layout become groups."""
    is_stream = isinstance(dataset, datasets.IterableDataset)
    features = dataset.features if is_stream or isinstance(dataset, datasets.Dataset) else None
    if features is None or not _are_groups(features):
        return load_groups(dataset)
    if is_stream:
        refuse_part_of_stream(dataset)
    else:
        check_rows(dataset, _roles(features))
    wanted = datasets.Features({**features, **group_features(features)})
    groups = dataset.with_format(None)
    return groups if features == wanted else groups.cast(wanted)


def _are_groups(features: datasets.Features) -> bool:
    roles = _roles(features)
    return {"query", "passages"} <= roles.keys() and all(fits(features[name], name) for name in roles)


def _roles(features: datasets.Features) -> dict[str, str]:
    return {name: name for name in group_features(features)}


def _nums_pairs(groups: datasets.Dataset | datasets.IterableDataset, shard_size: int) -> list[int] | None:
    """The pairs of each shard; None for a stream."""
    if isinstance(groups, datasets.IterableDataset):
        return None
    passages = groups.select_columns(["passages"]).with_format("arrow")
    return [pc.sum(pc.list_value_length(table["passages"])).as_py() for table in passages.iter(shard_size)]


def _tables(groups: datasets.Dataset | datasets.IterableDataset, shard_size: int) -> Iterator[Callable[[], pa.Table]]:
    """The groups of each shard, of which a data set is asked only for those that are wanted."""
    schema = groups.features.arrow_schema.remove_metadata()
    tables = groups.with_format("arrow")
    if isinstance(groups, datasets.Dataset):
        for start in range(0, len(groups), shard_size):
            yield partial(_part, tables, start, min(start + shard_size, len(groups)), schema)
    else:
        for number, table in enumerate(tables.iter(shard_size)):
            yield partial(_checked, table, number * shard_size, schema)


def _part(tables: datasets.Dataset, start: int, stop: int, schema: pa.Schema) -> pa.Table:
    return tables[start:stop].cast(schema)


def _checked(table: pa.Table, start: int, schema: pa.Schema) -> pa.Table:
    rows = datasets.Dataset(table.cast(schema))
    check_rows(rows, _roles(rows.features), first_row=start)
    return rows.data.table


def _log_estimate(
    groups: datasets.Dataset,
    scorer: TeacherScorer,
    folder: ShardFolder,
    nums_pairs: Sequence[int],
    shard_size: int,
    process: Process,
) -> None:
    """Say what the shards that are missing will take, where that is worth a sample."""
    is_open = [not (folder.has_begun() and folder.shard(number)) for number in range(len(nums_pairs))]
    num_open = sum(itertools.compress(nums_pairs, is_open))
    if num_open <= MANY_PAIRS:
        return
    missing = np.flatnonzero(np.repeat(is_open, shard_size)[: len(groups)])
    size = min(SAMPLE_SIZE, max(1, len(missing) // 100))  # scored twice, so at most a hundredth
    sample = groups.select(missing[:: len(missing) // size][:size]).with_format("arrow")[:]
    estimate = estimate_from(sample, scorer, num_pairs=num_open, num_processes=process.count)
    if estimate is not None:
        level = logging.INFO if estimate.cost is None else logging.WARNING  # money is spent from here on
        logger.log(level, "before the start, by a sample of %d groups: %s", size, estimate)


def _log_price(groups: datasets.IterableDataset, scorer: TeacherScorer, folder: ShardFolder) -> None:
    """Say what a paid teacher costs for a stream, of which nobody knows how many pairs it has."""
    if not is_paid(scorer.teacher) or (folder.has_begun() and folder.finished() is not None):
        return
    sample = [group for table_of in _tables(groups.take(SAMPLE_SIZE), SAMPLE_SIZE) for group in table_of().to_pylist()]
    price = price_of(sample, scorer.teacher)
    if price is not None:
        logger.warning(
            "before the start, by the first %d groups of a stream: cost about %.4g for every 1,000 pairs",
            len(sample),
            price,
        )
