"""Streams: groups that are read as they come, checked and converted some rows at a time, and their training rows."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import dill
import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from rerank_trainer.data.columns import check_rows, describe, fits
from rerank_trainer.data.conversions import Draw, Roles, names_of
from rerank_trainer.data.layouts import recognise
from rerank_trainer.data.leaves import columns_of, leaf_features, unused_leaves
from rerank_trainer.data.sampling import cut_to_passages

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 100


def stream_to_groups(rows: datasets.IterableDataset, *, scores_are: str | None = None) -> datasets.IterableDataset:
    """A stream of groups from a stream of rows; see :func:`rerank_trainer.data.formats.to_groups`, which calls this.

    The layout is recognised by the stream's features, or by its first 100 rows when it has none. Every value is checked
    when it is read, so a fault stops the iteration that reaches it.

    Args:
        rows: Rows of a layout that makes a group of each row.
        scores_are: What a column ``score`` or ``scores`` holds.

    Raises:
        ValueError: As ``to_groups``; if a group needs other rows of the stream; if the stream is one process's part.
    """
    refuse_part_of_stream(rows)
    features = rows.features or _first_features(rows)
    layout, roles = recognise(features, scores_are)
    if not layout.row_wise:
        raise ValueError(
            f"the layout {layout.name!r} makes a group of more than its row, which a stream cannot look up. Load it "
            "without streaming=True, or keep a part with datasets.Dataset.from_list(list(rows.take(10_000)))."
        )
    logger.info(
        "a stream of the layout %r: %s; left out: %s",
        layout.name,
        ", ".join(f"{' '.join(names_of(roles, role))} as {role}" for role in dict.fromkeys(roles.values())),
        ", ".join(unused_leaves(features, roles)) or "nothing",
    )
    batched: dict[str, Any] = {"batched": True, "batch_size": ROWS_AT_A_TIME}
    used = datasets.Features({name: features[name] for name in columns_of(roles, features)})
    settings = {"columns": list(used), "roles": roles}
    checked = rows.with_format(None).select_columns(list(used)) if rows.features else rows.with_format(None)
    checked = checked.map(
        _check, with_indices=True, features=used, remove_columns=rows.column_names, fn_kwargs=settings, **batched
    )
    groups = layout.convert(checked, roles, Draw(num_negatives=1, seed=0))  # nothing is drawn for a row by itself
    return groups.map(_typed, features=groups.features, fn_kwargs={"features": groups.features}, **batched)


def refuse_part_of_stream(rows: datasets.IterableDataset) -> None:
    """Refuse a stream of which the process has a part already.

    Raises:
        ValueError: If it has.
    """
    if getattr(rows, "_distributed", None) is not None:
        raise ValueError(
            "the stream is one process's part already (split_dataset_by_node), and it would be split again: "
            "give every process the whole stream."
        )


def _first_features(rows: datasets.IterableDataset) -> datasets.Features:
    first = list(rows.with_format(None).take(ROWS_AT_A_TIME))
    if not first:
        raise ValueError("expected one row or more, found none in the stream")
    names = dict.fromkeys(name for row in first for name in row)
    return _read({name: [row.get(name) for row in first] for name in names}, "the first rows").features


def _read(batch: dict[str, list[Any]], where: str) -> datasets.Dataset:
    try:
        return datasets.Dataset.from_dict(batch)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise ValueError(f"{where}: values of unlike types in a column: {error}") from error


def _check(
    batch: dict[str, list[Any]], indices: list[int], *, columns: list[str], roles: Roles
) -> dict[str, list[Any]]:
    """The columns that play a role, when each of them holds what its role asks for."""
    where = f"rows {indices[0]} to {indices[-1]}"
    used = {name: batch.get(name, [None] * len(indices)) for name in columns}
    rows = _read(used, where)
    leaves = leaf_features(rows.features)
    for name, role in roles.items():
        if name not in leaves or not fits(leaves[name], role):
            found = describe(leaves[name]) if name in leaves else "no such column"
            raise ValueError(
                f"{where}, column {name!r}: found {found}, which "
                f"cannot be the {role} that the first rows of the stream have there. Give all rows one type."
            )
    check_rows(rows, roles, first_row=indices[0])
    return used


def _typed(batch: dict[str, list[Any]], *, features: datasets.Features) -> dict[str, list[Any]]:
    """The batch with every value of its feature's type: the features of a stream are names and convert nothing."""
    return pa.Table.from_pydict(batch).select(list(features)).cast(features.arrow_schema).to_pydict()


class StreamGroups(IterableDataset[dict[str, Any]]):
    """Training rows of streams of groups, without an end: a stream that is used up begins again.

    The rows of a stream come in its order (``stream.shuffle`` has another one in each pass). The passages of a row are
    chosen by the seed, the pass and the texts of the group alone, so they are the same whichever process or data worker
    reads it. Workers share the shards of a stream; several processes read it alike, and each takes its own batches.

    Args:
        sources: Streams of groups by name; the name goes into the row, None for a single stream without one.
        weights: How often each is drawn from, in any unit; they take turns, so that the shares hold at any moment.
        passages_per_query: K. Shorter groups are taken whole.
        seed: Any integer.
        top_share: Share of the negatives taken from the top of the list.
        one_source_size: Every run of so many rows is of one source; None takes turns row by row.
    """

    def __init__(
        self,
        sources: Mapping[str | None, datasets.IterableDataset],
        *,
        weights: Sequence[float],
        passages_per_query: int,
        seed: int,
        top_share: float = 0.0,
        one_source_size: int | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.weights = weights
        self.passages_per_query = passages_per_query
        self.seed = seed
        self.top_share = top_share
        self.run_size = one_source_size or 1

    def __getstate__(self) -> dict[str, Any]:
        # conversions are functions inside of functions, which pickle cannot bring to a worker that is not forked
        return {**self.__dict__, "sources": dill.dumps(self.sources)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "sources": dill.loads(state["sources"])})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if len(self.sources) == 1:
            ((name, groups),) = self.sources.items()
            if worker_id < groups.num_shards:  # `datasets` leaves the other workers without rows
                yield from self._endless(name, groups)
            return
        for name, groups in self.sources.items():
            if groups.num_shards < num_workers:
                raise ValueError(
                    f"source {name!r} has {groups.num_shards} shards for {num_workers} data workers, so that its share "
                    "would be wrong. Set dataloader_num_workers to at most that, or split the stream: reshard()."
                )
        endless = [self._endless(name, groups) for name, groups in self.sources.items()]
        taken = [0] * len(endless)
        while True:
            # the method of D'Hondt: at any moment no share is wrong by more than a few draws
            source = max(range(len(endless)), key=lambda i: self.weights[i] / (taken[i] + 1))
            taken[source] += 1
            yield from itertools.islice(endless[source], self.run_size)

    def _endless(self, name: str | None, groups: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            # a copy, because the workers share the epoch of the original and come to its end at different times
            rows = groups.with_format(None)
            rows.set_epoch(number)
            group = None
            for group in rows:
                rng = random.Random(f"passages-{self.seed}-{number}-{group['query']}-{group['passages']}")
                row = cut_to_passages(group, self.passages_per_query, top_share=self.top_share, rng=rng)
                yield {**row, "row": -1} if name is None else {**row, "row": -1, "source": name}
            if group is None:
                raise ValueError(f"expected groups, found none in the stream{'' if name is None else f' {name!r}'}")
