"""Scoring: flat token rows to scores, in micro-batches of like length under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rerank_trainer.data.collator import TokenRows
from rerank_trainer.models.heads import Head

# Tokens of one micro-batch, padding included. On two cores, MiniLM trains fastest at about a thousand.
MAX_TOKENS_CPU = 1024
MAX_TOKENS_GPU = 32768


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers cut into micro-batches: longest rows first, each at most ``max_tokens`` when padded.

    A row that is longer than the budget gets a micro-batch of its own.

    >>> micro_batches([2, 9, 3, 8], max_tokens=20)
    [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_rows(rows: TokenRows, chosen: Sequence[int], *, pad_token_id: int, padding_side: str) -> dict[str, Tensor]:
    """The chosen rows as a model's input: ids, attention mask and segments, each ``(num_chosen, longest)``."""
    index = torch.tensor(chosen, device=rows["lengths"].device)
    lengths = rows["lengths"][index][:, None]
    starts = (rows["lengths"].cumsum(0) - rows["lengths"])[index][:, None]
    places = torch.arange(int(lengths.max()), device=lengths.device)[None, :]
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


def scatter_scores(scores: Tensor, cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Scores of rows put into their (group, passage) cells; 0 where no row is.

    >>> scatter_scores(torch.tensor([0.5, 2.0]), torch.tensor([[0, 1], [1, 0]]), (2, 2))
    tensor([[0.0000, 0.5000],
            [2.0000, 0.0000]])
    """
    return scores.new_zeros(tuple(shape)).index_put((cells[:, 0], cells[:, 1]), scores)


@dataclass(frozen=True)
class RowScorer:
    """Scores token rows with a model's forward.

    Attributes:
        head: Turns one forward into one score a row.
        pad_token_id: Fills short rows.
        padding_side: "right" or "left".
        max_tokens: Tokens of a micro-batch, padding included; None chooses by device.
        agree: Turns this process's number of micro-batches into the greatest of all processes; None where processes
            need not agree. Weights that are gathered layer by layer need it: a process with fewer forwards than the
            others would leave them waiting. It makes up the difference with forwards of one token that count nothing.
    """

    head: Head
    pad_token_id: int
    padding_side: str
    max_tokens: int | None = None
    agree: Callable[[int], int] | None = None

    def __call__(self, forward: Callable[..., Any], rows: TokenRows) -> Tensor:
        """Scores of the rows in their order, ``(num_rows,)`` float32."""
        lengths = rows["lengths"].tolist()
        budget = self.max_tokens or (MAX_TOKENS_CPU if rows["lengths"].device.type == "cpu" else MAX_TOKENS_GPU)
        plan = micro_batches(lengths, budget)
        # before the first forward, in which the processes already wait for each other
        num_fillers = 0 if self.agree is None else self.agree(len(plan)) - len(plan)
        parts = [self.head(forward, self._padded(rows, chosen)) for chosen in plan]
        # last, so that they are cut off below; through `cat` backward still visits them, with a gradient of 0
        parts += [self.head(forward, self._filler(rows)) for _ in range(num_fillers)]
        if not parts:
            return rows["lengths"].new_zeros(0, dtype=torch.float32)
        scores = torch.cat(parts)
        order = torch.tensor([index for chosen in plan for index in chosen], device=scores.device)
        return scores[: len(lengths)][torch.argsort(order)]

    def _padded(self, rows: TokenRows, chosen: list[int]) -> dict[str, Tensor]:
        return pad_rows(rows, chosen, pad_token_id=self.pad_token_id, padding_side=self.padding_side)

    def _filler(self, rows: TokenRows) -> dict[str, Tensor]:
        """One row of one token, shaped as :func:`pad_rows` shapes the others."""
        input_ids = torch.full((1, 1), self.pad_token_id, device=rows["lengths"].device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return {**inputs, "token_type_ids": torch.zeros_like(input_ids)} if "token_type_ids" in rows else inputs


def bind_row_forward(model: nn.Module, scorer: RowScorer) -> None:
    """Give the model a second way to be called: ``model(rows=token_rows)`` returns scores, ``(num_rows,)``.

    A wrapper such as DistributedDataParallel must see the whole batch of groups as one forward, and mixed precision
    must open one autocast context around all its micro-batches: so the engine runs inside ``forward``. Calls without
    ``rows`` are the model's own. Bound again, the newer scorer holds.
    """
    model.row_scorer = scorer
    model.forward = MethodType(_row_forward, model)


def _row_forward(self: nn.Module, *args: Any, rows: TokenRows | None = None, **kwargs: Any) -> Any:
    plain = MethodType(type(self).forward, self)
    if rows is None:
        return plain(*args, **kwargs)
    return self.row_scorer(plain, rows)
