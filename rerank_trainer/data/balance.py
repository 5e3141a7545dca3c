"""Balance: the groups of a batch dealt to processes, so that each of them holds about as many tokens as the others."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Sampler

from rerank_trainer.data.sampling import EpochSampler, TrainGroups
from rerank_trainer.data.templates import Template

logger = logging.getLogger(__name__)

# What is tokenised once, before training, to learn how many bytes make a token.
_NUM_GROUPS_TRIED = 64
_NUM_PASSAGES_TRIED = 4


def deal(sizes: Sequence[int], loads: list[int], *, num_each: int) -> list[list[int]]:
    """For each process the numbers of its items, so many each and in their order.

    The largest item goes first, each to the process with the least so far that has room left ("longest processing
    time first", `Graham 1969 <https://doi.org/10.1137/0117039>`_, here with equal numbers).

    Args:
        sizes: Of the items, as many as all processes take together.
        loads: What each process holds already; the sizes of its items are added.
        num_each: How many items a process takes.

    >>> loads = [0, 0]
    >>> deal([9, 1, 5, 4], loads, num_each=2), loads
    ([[0, 1], [2, 3]], [10, 9])
    """
    dealt: list[list[int]] = [[] for _ in loads]
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        process = min((p for p in range(len(loads)) if len(dealt[p]) < num_each), key=loads.__getitem__)
        dealt[process].append(item)
        loads[process] += sizes[item]
    return [sorted(items) for items in dealt]


class BalancedSampler(Sampler[tuple[int, int]]):
    """The keys of a sampler in another order: which process takes which group of a batch changes, and nothing else.

    The keys of one batch of all processes follow each other, first those of the first process, as accelerate hands them
    out. They are dealt by their sizes, and what one batch leaves uneven the next one of the same optimizer step evens
    out. Every process computes the same order, so none needs to ask the others.

    Args:
        sampler: The keys; a batch at their end that is not whole stays as it is.
        num_tokens: How many tokens the group of a key has, about.
        num_processes: How many processes share a batch.
        batch_size: How many groups a process takes of it.
        run_size: So many keys that follow each other stay together; it divides ``batch_size``.
        batches_per_step: How many batches make an optimizer step, in which processes wait for each other once.

    >>> num_tokens = {(0, 0): 900, (0, 1): 500, (0, 2): 400, (0, 3): 100}
    >>> as_they_come = EpochSampler(4, seed=0, shuffle=False)
    >>> list(BalancedSampler(as_they_come, num_tokens.__getitem__, num_processes=2, batch_size=2))
    [(0, 0), (0, 3), (0, 1), (0, 2)]
    """

    def __init__(
        self,
        sampler: EpochSampler,
        num_tokens: Callable[[tuple[int, int]], int],
        *,
        num_processes: int,
        batch_size: int,
        run_size: int = 1,
        batches_per_step: int = 1,
    ) -> None:
        assert batch_size % run_size == 0, (batch_size, run_size)
        self.sampler = sampler
        self.num_tokens = num_tokens
        self.num_processes = num_processes
        self.batch_size = batch_size
        self.run_size = run_size
        self.batches_per_step = batches_per_step

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        keys, size = iter(self.sampler), self.num_processes * self.batch_size
        loads: list[int] = []
        for number in count():
            if number % self.batches_per_step == 0:
                loads = [0] * self.num_processes
            batch = list(islice(keys, size))
            if len(batch) < size:
                yield from batch
                return
            runs = [batch[start : start + self.run_size] for start in range(0, size, self.run_size)]
            sizes = [sum(map(self.num_tokens, run)) for run in runs]
            for items in deal(sizes, loads, num_each=self.batch_size // self.run_size):
                for item in items:
                    yield from runs[item]


class TextSizes:
    """Groups with the bytes of each text in its place, so that drawing passages from them draws their sizes.

    No text is read for it: Arrow keeps where each one begins. Holds four bytes a passage.

    >>> groups = datasets.Dataset.from_dict({"query": ["1 + 1"], "passages": [["2", "two"]], "labels": [[1.0, 0.5]]})
    >>> TextSizes(groups)[0]
    {'query': 5, 'passages': [1, 3], 'labels': [1.0, 0.5]}
    """

    def __init__(self, groups: datasets.Dataset) -> None:
        # what decides which passages are drawn comes along
        names = [name for name in ("query", "passages", "labels", "passage_weights") if name in groups.column_names]
        parts: dict[str, list[pa.Array]] = {name: [] for name in names}
        for table in groups.select_columns(names).with_format("arrow").iter(batch_size=1000):
            for name in names:
                parts[name] += [_sizes(part) if name in ("query", "passages") else part for part in table[name].chunks]
        self._columns = {name: pa.chunked_array(column).combine_chunks() for name, column in parts.items()}

    def __len__(self) -> int:
        return len(self._columns["query"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index].as_py() for name, column in self._columns.items()}


def _sizes(texts: pa.Array) -> pa.Array:
    """The bytes of each text, of a column of texts or of lists of texts."""
    if pa.types.is_list(texts.type) or pa.types.is_large_list(texts.type):
        ends = np.cumsum(pc.list_value_length(texts), dtype=np.int32)
        return pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), _sizes(texts.flatten()))
    return pc.binary_length(texts).cast(pa.int32())


class TokenEstimate:
    """Says about how many tokens the training row of a key has: the pairs of the passages that are drawn, as cut.

    Bytes become tokens by what 64 groups of the set need, which are tokenised once; the groups of a step are not.

    Args:
        train_set: Whose rows they are.
        template: How a pair becomes tokens.
    """

    def __init__(self, train_set: TrainGroups, template: Template) -> None:
        self.sizes = copy.copy(train_set)
        self.sizes.groups = TextSizes(train_set.groups)
        self.max_length = template.max_length
        groups = train_set.groups.select(range(0, len(train_set), -(-len(train_set) // _NUM_GROUPS_TRIED)))
        pairs = [(group["query"], group["passages"][:_NUM_PASSAGES_TRIED]) for group in groups]
        rows = [row for of_group in template.encode(pairs) for row in of_group]
        num_bytes = sum(len(f"{query}{passage}".encode()) for query, passages in pairs for passage in passages)
        num_tokens = sum(row.num_pair_tokens for row in rows)
        self.bytes_per_token = num_bytes / max(1, num_tokens)
        lost = (row.num_query_lost + row.num_passage_lost for row in rows)
        kept = (row.num_pair_tokens - num_lost for row, num_lost in zip(rows, lost, strict=True))
        self.num_special = max((len(row.input_ids) - num for row, num in zip(rows, kept, strict=True)), default=0)
        logger.info("processes share groups by their tokens, estimated by %.1f bytes a token", self.bytes_per_token)

    def __call__(self, key: tuple[int, int]) -> int:
        row = self.sizes[key]
        tokens = (round((row["query"] + size) / self.bytes_per_token) + self.num_special for size in row["passages"])
        return sum(min(self.max_length, num_tokens) for num_tokens in tokens)
