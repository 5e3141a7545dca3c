"""The collator: groups to one batch of flat token rows, labels and mask. It runs in the data workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from rerank_trainer.data.templates import Row, Template
from rerank_trainer.data.truncation import Truncation

LABEL_PADDING = -100.0  # what Transformers pads with when it joins batches of unlike width


class TokenRows(TypedDict, total=False):
    """The token rows of a batch, laid end to end.

    Attributes:
        input_ids: Token ids, ``(num_tokens,)``.
        token_type_ids: Segment ids, ``(num_tokens,)``; absent for tokenizers without segments.
        lengths: Tokens of each row, ``(num_rows,)``.
        prefix_lengths: Leading tokens before the passage, ``(num_rows,)``.
        prefixes: A number for those tokens, equal where they are, ``(num_rows,)``.
        cells: Which (group, passage) each row fills, ``(num_rows, 2)``.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    lengths: Tensor
    prefix_lengths: Tensor
    prefixes: Tensor
    cells: Tensor


def lay_rows(rows: Sequence[Row], cells: Sequence[tuple[int, int]]) -> TokenRows:
    """The rows laid end to end, with the cell of each.

    >>> rows = lay_rows([Row([5, 6, 7], None, 1), Row([5, 8], None, 1)], [(0, 0), (0, 1)])
    >>> rows["input_ids"].tolist(), rows["lengths"].tolist()
    ([5, 6, 7, 5, 8], [3, 2])
    """
    numbers: dict[tuple[int, ...], int] = {}
    prefixes = [numbers.setdefault(tuple(row.input_ids[: row.prefix_length]), len(numbers)) for row in rows]
    lengths = [len(row.input_ids) for row in rows]
    laid = TokenRows(
        input_ids=_end_to_end((row.input_ids for row in rows), sum(lengths)),
        lengths=torch.tensor(lengths, dtype=torch.long),
        prefix_lengths=torch.tensor([row.prefix_length for row in rows], dtype=torch.long),
        prefixes=torch.tensor(prefixes, dtype=torch.long),
        cells=torch.tensor(cells, dtype=torch.long).reshape(-1, 2),
    )
    if rows and rows[0].token_type_ids is not None:
        laid["token_type_ids"] = _end_to_end((row.token_type_ids or () for row in rows), sum(lengths))
    return laid


def _end_to_end(rows: Iterable[Sequence[int]], num_numbers: int) -> Tensor:
    # a chunk to score has a million tokens, from which `torch.tensor` takes several times as long
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64, count=num_numbers))


class RerankCollator:
    """Makes a batch of B groups, the longest of K passages.

    The batch holds, first those that Transformers looks at:

    * ``labels``: ``(B, K)`` float32, -100 at padding; 0 where a group has no labels.
    * ``mask``: ``(B, K)`` bool, True = a passage.
    * ``weights``: ``(B,)`` float32, how much each group counts.
    * ``row``: ``(B,)``, the groups' indices in the data set.
    * ``teacher_scores``: ``(B, K)`` float32, 0 at padding and for groups without; only when some group has them.
    * ``passage_weights``: ``(B, K)`` float32, how often each passage counts, 0 at padding and 1 for groups without;
      only when some group has them.
    * ``source``: ``(B,)``, the number of each group's source in ``sources``, -1 for another or none; only with sources.
    * ``missed_gains``: ``(B, M)`` float32, -100 at padding; only in evaluation.
    * ``truncation``: ``(B, 5)``, each group's counts in the order of :class:`Truncation`.
    * ``student``: the :class:`TokenRows` of all pairs.

    Args:
        template: How a pair becomes token ids.
        sources: The names of the data sets that the run trains on, when there are several.
    """

    def __init__(self, template: Template, *, sources: Sequence[str] = ()) -> None:
        self.template = template
        self.sources: dict[Any, int] = {name: number for number, name in enumerate(sources)}

    def __call__(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sizes = [len(group["passages"]) for group in groups]
        instructions = [group.get("instruction") for group in groups] if self.template.takes_instructions else None
        encoded = self.template.encode([(group["query"], group["passages"]) for group in groups], instructions)
        batch: dict[str, Any] = {
            "labels": _padded([_or_each(group.get("labels"), 0.0, group) for group in groups]),
            "mask": torch.arange(max(1, *sizes)) < torch.tensor(sizes)[:, None],
            "weights": torch.tensor([_or_one(group.get("weight")) for group in groups]),
            "row": torch.tensor([group["row"] for group in groups]),
        }
        if self.sources:
            batch["source"] = torch.tensor([self.sources.get(group.get("source"), -1) for group in groups])
        for name, default in (("teacher_scores", 0.0), ("passage_weights", 1.0)):
            if any(group.get(name) is not None for group in groups):
                batch[name] = _padded([_or_each(group.get(name), default, group) for group in groups], fill=0.0)
        if "missed_gains" in groups[0]:
            batch["missed_gains"] = _padded([group["missed_gains"] for group in groups])
        batch["truncation"] = torch.tensor([astuple(Truncation.of(rows)) for rows in encoded])
        cells = [(group, passage) for group, rows in enumerate(encoded) for passage in range(len(rows))]
        return {**batch, "student": lay_rows([row for rows in encoded for row in rows], cells)}


def _padded(rows: Sequence[Sequence[float]], fill: float = LABEL_PADDING) -> Tensor:
    padded = torch.full((len(rows), max(1, *map(len, rows))), fill)
    for values, row in zip(padded, rows, strict=True):
        values[: len(row)] = torch.tensor(row, dtype=torch.float32)
    return padded


def _or_each(values: Sequence[float] | None, default: float, group: Mapping[str, Any]) -> Sequence[float]:
    return [default] * len(group["passages"]) if values is None else values


def _or_one(weight: float | None) -> float:
    return 1.0 if weight is None else weight
