"""Micro-batches: which rows run together, and the rows of one as a model's padded input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rerank_trainer.data.collator import TokenRows

# What one more micro-batch costs beside its tokens, in tokens. It weighs padding against many small forwards.
OVERHEAD_CPU = 24
OVERHEAD_GPU = 1024


def micro_batches(lengths: Sequence[int], max_tokens: int, *, overhead: int = OVERHEAD_CPU) -> list[list[int]]:
    """Row numbers cut into micro-batches: longest rows first, each at most ``max_tokens`` when padded.

    Of all ways to cut the rows in order of length, the one with the fewest tokens is taken, padding and the overhead of
    each micro-batch included. A row that is longer than the budget gets a micro-batch of its own.

    Args:
        lengths: Tokens of each row.
        max_tokens: Tokens of a micro-batch, padding included.
        overhead: What a micro-batch costs beside its tokens, in tokens.

    >>> micro_batches([2, 9, 3, 8], max_tokens=20, overhead=4)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = np.array([lengths[i] for i in order], dtype=np.int64)
    costs: NDArray[np.int64] = np.zeros(len(order) + 1, dtype=np.int64)  # costs[i]: of the first i rows, at best
    begins: NDArray[np.int64] = np.zeros(len(order) + 1, dtype=np.int64)  # where its last micro-batch begins
    num_rows: NDArray[np.int64] = np.arange(len(order), 0, -1, dtype=np.int64)
    first = 0  # where the widest micro-batch that fits begins: one that ends later begins no earlier
    for end in range(1, len(order) + 1):
        while first < end - 1 and lengths[order[first]] * (end - first) > max_tokens:
            first += 1
        total = costs[first:end] + longest[first:end] * num_rows[first - end :]
        best = int(total.argmin())
        costs[end], begins[end] = total[best] + overhead, first + best
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = int(begins[end])
    return batches[::-1]


def pad_spans(
    rows: TokenRows,
    starts: Tensor,
    lengths: Tensor,
    *,
    pad_token_id: int,
    padding_side: str,
    longest: int | None = None,
) -> dict[str, Tensor]:
    """Spans of the rows' tokens as a model's input: ids, attention mask and segments, each ``(num_spans, longest)``.

    Args:
        rows: Token rows laid end to end.
        starts: Where each span begins, ``(num_spans,)``.
        lengths: Its tokens, ``(num_spans,)``.
        pad_token_id: Fills short spans.
        padding_side: "right" or "left".
        longest: Tokens of the longest span, where the caller knows them; None reads them, and an accelerator waits.
    """
    lengths, starts = lengths[:, None], starts[:, None]
    longest = int(lengths.max()) if longest is None else longest
    places = torch.arange(longest, device=lengths.device)[None, :]
    if padding_side == "left":
        places = places - (places.shape[1] - lengths)
    real = (places >= 0) & (places < lengths)
    sources = (starts + places).clamp(0, rows["input_ids"].numel() - 1)
    inputs = {
        "input_ids": rows["input_ids"][sources].masked_fill(~real, pad_token_id),
        "attention_mask": real.long(),
    }
    if "token_type_ids" in rows:
        inputs["token_type_ids"] = rows["token_type_ids"][sources].masked_fill(~real, 0)
    return inputs


def row_starts(rows: TokenRows) -> Tensor:
    """Where each row begins, ``(num_rows,)``."""
    return rows["lengths"].cumsum(0) - rows["lengths"]
