"""Scoring: flat token rows to scores, in micro-batches of like length under a token budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rerank_trainer.data.collator import TokenRows, lay_rows
from rerank_trainer.data.templates import Row
from rerank_trainer.models.embeddings import with_words_looked_up_once
from rerank_trainer.models.heads import Head
from rerank_trainer.models.micro_batches import OVERHEAD_CPU, OVERHEAD_GPU, micro_batches, pad_spans, row_starts
from rerank_trainer.models.prefix import PrefixSharing, module_of
from rerank_trainer.models.recompute import Recomputation, is_out_of_memory
from rerank_trainer.models.work import Work

logger = logging.getLogger(__name__)

# Tokens of one micro-batch, padding included. On two cores, MiniLM trains fastest at about a thousand.
MAX_TOKENS_CPU = 1024
MAX_TOKENS_GPU = 32768


def scatter_scores(scores: Tensor, cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Scores of rows put into their (group, passage) cells; 0 where no row is.

    >>> scatter_scores(torch.tensor([0.5, 2.0]), torch.tensor([[0, 1], [1, 0]]), (2, 2))
    tensor([[0.0000, 0.5000],
            [2.0000, 0.0000]])
    """
    return scores.new_zeros(tuple(shape)).index_put((cells[:, 0], cells[:, 1]), scores)


class RowScorer:
    """Scores token rows with a model's forward.

    Nothing here changes a score or a gradient beyond rounding: rows run in micro-batches of like length, what a group's
    rows share runs once, activations are recomputed where they would not fit, and where memory runs out micro-batches
    become smaller.

    Args:
        head: Turns one forward into one score a row.
        pad_token_id: Fills short rows.
        padding_side: "right" or "left".
        max_tokens: Tokens of a micro-batch, padding included; None chooses by device.
        recompute: Whether activations are computed again in the backward instead of being kept, so that memory does
            not grow with the number of rows; None does so for a batch whose activations would not fit.
        share_prefix: Whether a decoder runs what a group's rows begin with once; None does so where it pays.
        agree: Turns this process's number of micro-batches into the greatest of all processes; None where processes
            need not agree. Weights that are gathered layer by layer need it: a process with fewer forwards than the
            others would leave them waiting. It makes up the difference with forwards of one token that count nothing,
            shares no prefixes, and decides nothing by its own memory.

    Attributes:
        work: Counts what runs while it is set; None counts nothing.
    """

    def __init__(
        self,
        head: Head,
        *,
        pad_token_id: int,
        padding_side: str,
        max_tokens: int | None = None,
        recompute: bool | None = None,
        share_prefix: bool | None = None,
        agree: Callable[[int], int] | None = None,
    ) -> None:
        self.head = head
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side
        self.max_tokens = max_tokens
        self.recomputation = Recomputation(recompute)
        self.prefix = PrefixSharing(head, pad_token_id=pad_token_id, wanted=share_prefix)
        self.agree = agree
        self.work: Work | None = None

    def __call__(self, forward: Callable[..., Any], rows: TokenRows) -> Tensor:
        """Scores of the rows in their order, ``(num_rows,)`` float32."""
        if self.agree is not None:
            return self._scores_in_step(forward, rows, self.agree)
        if not rows["lengths"].numel():
            return rows["lengths"].new_zeros(0, dtype=torch.float32)
        while True:
            try:
                return self._scores(forward, rows)
            except RuntimeError as error:
                if not (is_out_of_memory(error) and self.shrink(rows)):
                    raise

    def shrink(self, rows: TokenRows) -> bool:
        """Halve the token budget and recompute from here on; False when nothing smaller is left to try."""
        budget, longest = self._budget(rows), int(rows["lengths"].max())
        if budget <= longest and self.recomputation.active:
            return False
        self.max_tokens = max(longest, budget // 2)
        self.recomputation = Recomputation(True)
        if rows["lengths"].device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory: from here on micro-batches have at most %d tokens instead of %d, and activations are "
            "recomputed; batches keep their groups",
            self.max_tokens,
            budget,
        )
        return True

    def _budget(self, rows: TokenRows) -> int:
        return self.max_tokens or (MAX_TOKENS_CPU if rows["lengths"].device.type == "cpu" else MAX_TOKENS_GPU)

    def _scores(self, forward: Callable[..., Any], rows: TokenRows) -> Tensor:
        lengths, device, budget = rows["lengths"].tolist(), rows["lengths"].device, self._budget(rows)
        overhead = OVERHEAD_CPU if device.type == "cpu" else OVERHEAD_GPU
        sharing = self.prefix.choose(forward, rows)
        apart = set(sharing)
        whole = [row for row in range(len(lengths)) if row not in apart]
        plan = micro_batches([lengths[row] for row in whole], budget, overhead=overhead)
        plan = [[whole[i] for i in batch] for batch in plan]
        self.recomputation.begin(sum(lengths), device)
        ids, module = rows["input_ids"], module_of(forward)
        forward = with_words_looked_up_once(forward, module, ids, pad_token_id=self.pad_token_id)
        scores = [self._run(forward, rows, batch) for batch in plan]
        self._count(lengths, plan)
        if sharing:
            options: dict[str, Any] = {"max_tokens": budget, "overhead": overhead, "recomputation": self.recomputation}
            options["work"] = self.work
            scores.append(self.prefix.scores(forward, rows, sharing, **options))
        order = torch.tensor([row for batch in plan for row in batch] + sharing, device=device)
        return torch.cat(scores)[torch.argsort(order)]

    def _scores_in_step(self, forward: Callable[..., Any], rows: TokenRows, agree: Callable[[int], int]) -> Tensor:
        """The scores, by as many forwards as every other process runs."""
        device = rows["lengths"].device
        plan = micro_batches(rows["lengths"].tolist(), self._budget(rows))
        # before the first forward, in which the processes already wait for each other
        num_fillers = agree(len(plan)) - len(plan)
        scores = [self._run(forward, rows, batch) for batch in plan]
        # last, so that they are cut off below; through `cat` backward still visits them, with a gradient of 0
        filler = lay_rows([Row([self.pad_token_id], [0] if "token_type_ids" in rows else None, 0)], [(0, 0)])
        on_device: Any = {name: value.to(device) for name, value in filler.items()}  # type: ignore[attr-defined]
        scores += [self._run(forward, on_device, [0]) for _ in range(num_fillers)]
        self._count(rows["lengths"].tolist(), plan, num_fillers=num_fillers)
        if not scores:
            return rows["lengths"].new_zeros(0, dtype=torch.float32)
        order = torch.tensor([row for batch in plan for row in batch], dtype=torch.long, device=device)
        return torch.cat(scores)[: len(order)][torch.argsort(order)]

    def _count(self, lengths: Sequence[int], plan: Sequence[Sequence[int]], *, num_fillers: int = 0) -> None:
        if self.work is None:
            return
        self.work.num_padding += num_fillers
        for batch in plan:
            self.work.add([lengths[row] for row in batch])

    def _run(self, forward: Callable[..., Any], rows: TokenRows, batch: list[int]) -> Tensor:
        index = torch.tensor(batch, device=rows["lengths"].device)
        lengths = rows["lengths"][index]
        padding: dict[str, Any] = {"pad_token_id": self.pad_token_id, "padding_side": self.padding_side}

        def run() -> Tensor:
            return self.head(forward, pad_spans(rows, row_starts(rows)[index], lengths, **padding))

        module = module_of(forward)
        parameters = () if module is None else module.parameters()
        return self.recomputation.run(run, num_tokens=len(batch) * int(lengths.max()), parameters=parameters)


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
