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
from rerank_trainer.models.dropout import with_quick_dropout
from rerank_trainer.models.embeddings import with_words_looked_up_once
from rerank_trainer.models.memory import is_out_of_memory
from rerank_trainer.models.micro_batches import OVERHEAD_CPU, OVERHEAD_GPU, micro_batches, pad_spans, row_starts
from rerank_trainer.models.placement import put
from rerank_trainer.models.prefix import PrefixSharing, module_of
from rerank_trainer.models.random_state import RandomState
from rerank_trainer.models.recompute import Recomputation
from rerank_trainer.models.token_budget import TokenBudget
from rerank_trainer.models.work import Work

logger = logging.getLogger(__name__)


def scatter_scores(scores: Tensor, cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Scores of rows put into their (group, passage) cells; 0 where no row is. Rows may have several scores each.

    >>> scatter_scores(torch.tensor([0.5, 2.0]), torch.tensor([[0, 1], [1, 0]]), (2, 2))
    tensor([[0.0000, 0.5000],
            [2.0000, 0.0000]])
    """
    return scores.new_zeros((*shape, *scores.shape[1:])).index_put((cells[:, 0], cells[:, 1]), scores)


class RowScorer:
    """Scores token rows with a model's forward.

    Nothing here changes a score or a gradient beyond rounding: rows run in micro-batches of like length, what a group's
    rows share runs once, activations are recomputed where they would not fit, and where memory runs out micro-batches
    become smaller.

    Args:
        head: Turns one forward into one score a row.
        pad_token_id: Fills short rows.
        padding_side: "right" or "left".
        max_tokens: Tokens of a micro-batch, padding included; "auto" chooses by device and free memory.
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
        head: Callable[..., Tensor],
        *,
        pad_token_id: int,
        padding_side: str,
        max_tokens: int | str = "auto",
        recompute: bool | None = None,
        share_prefix: bool | None = None,
        agree: Callable[[int], int] | None = None,
    ) -> None:
        self.head = head
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side
        self.budget = TokenBudget(max_tokens)
        self.recomputation = Recomputation(recompute, budget=self.budget)
        self.prefix = PrefixSharing(head, pad_token_id=pad_token_id, wanted=share_prefix)
        self.agree = agree
        self.work: Work | None = None

    def __call__(self, forward: Callable[..., Any], rows: TokenRows) -> Tensor:
        """Scores of the rows in their order, ``(num_rows,)`` float32."""
        if self.agree is not None:
            return self._scores_in_step(forward, rows, self.agree)
        if not rows["lengths"].numel():
            return rows["lengths"].new_zeros(0, dtype=torch.float32)
        device, random_state = rows["lengths"].device, RandomState(rows["lengths"].device)
        longest = int(rows["lengths"].max())  # not where memory has run out
        while True:
            try:
                return self._scores(forward, rows)
            except RuntimeError as error:
                if not (is_out_of_memory(error) and self.can_shrink(longest, device)):
                    raise
            self.shrink(longest, device)  # out here, where no traceback holds activations any more
            random_state.restore()

    def can_shrink(self, longest: int, device: torch.device) -> bool:
        """Whether something smaller is left to try for rows of at most so many tokens."""
        return self.budget.size(device) > longest or not self.recomputation.active

    def shrink(self, longest: int, device: torch.device) -> None:
        """Halve the token budget, to no less than the longest row, and recompute activations from here on."""
        before = self.budget.size(device)
        self.budget.halve(longest, device)
        self.recomputation.always()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory: from here on micro-batches have at most %d tokens instead of %d, and activations are "
            "recomputed; batches keep their groups",
            self.budget.size(device),
            before,
        )

    def _scores(self, forward: Callable[..., Any], rows: TokenRows) -> Tensor:
        lengths, device = rows["lengths"].tolist(), rows["lengths"].device
        overhead = OVERHEAD_CPU if device.type == "cpu" else OVERHEAD_GPU
        sharing = self.prefix.choose(forward, rows)
        apart = set(sharing)
        left = [row for row in range(len(lengths)) if row not in apart]
        self.recomputation.begin(sum(lengths), device)
        if device.type == "cpu":  # a GPU spends next to nothing on either
            ids, module = rows["input_ids"], module_of(forward)
            forward = with_words_looked_up_once(forward, module, ids, pad_token_id=self.pad_token_id)
            forward = with_quick_dropout(forward, module)
        scores: list[Tensor] = []
        ran: list[list[int]] = []
        while left:
            budget = self.budget.size(device)
            for places in micro_batches([lengths[row] for row in left], budget, overhead=overhead):
                ran.append([left[place] for place in places])
                scores.append(self._run(forward, rows, ran[-1], longest=lengths[ran[-1][0]]))
                if self.budget.size(device) < budget:  # measured on this one, and the others would be too large
                    break
            left = sorted(set(left).difference(*ran))
        self._count(lengths, ran)
        if sharing:
            options: dict[str, Any] = {"max_tokens": self.budget.size(device), "overhead": overhead, "work": self.work}
            scores.append(self.prefix.scores(forward, rows, sharing, **options, recomputation=self.recomputation))
        order = put([row for batch in ran for row in batch] + sharing, device)
        return torch.cat(scores)[torch.argsort(order)]

    def _scores_in_step(self, forward: Callable[..., Any], rows: TokenRows, agree: Callable[[int], int]) -> Tensor:
        """The scores, by as many forwards as every other process runs."""
        device = rows["lengths"].device
        lengths = rows["lengths"].tolist()
        plan = micro_batches(lengths, self.budget.size(device))
        # before the first forward, in which the processes already wait for each other
        num_fillers = agree(len(plan)) - len(plan)
        scores = [self._run(forward, rows, batch, longest=lengths[batch[0]]) for batch in plan]
        # last, so that they are cut off below; through `cat` backward still visits them, with a gradient of 0
        filler = lay_rows([Row([self.pad_token_id], [0] if "token_type_ids" in rows else None, 0)], [(0, 0)])
        on_device: Any = {name: value.to(device) for name, value in filler.items()}  # type: ignore[attr-defined]
        scores += [self._run(forward, on_device, [0], longest=1) for _ in range(num_fillers)]
        self._count(lengths, plan, num_fillers=num_fillers)
        if not scores:
            return rows["lengths"].new_zeros(0, dtype=torch.float32)
        order = put([row for batch in plan for row in batch], device)
        return torch.cat(scores)[: len(order)][torch.argsort(order)]

    def _count(self, lengths: Sequence[int], plan: Sequence[Sequence[int]], *, num_fillers: int = 0) -> None:
        if self.work is None:
            return
        self.work.num_padding += num_fillers
        for batch in plan:
            self.work.add([lengths[row] for row in batch])

    def _run(self, forward: Callable[..., Any], rows: TokenRows, batch: list[int], *, longest: int) -> Tensor:
        padding: dict[str, Any] = {"pad_token_id": self.pad_token_id, "padding_side": self.padding_side}

        def run(index: Tensor) -> Tensor:
            spans = row_starts(rows)[index], rows["lengths"][index]
            return self.head(forward, pad_spans(rows, *spans, **padding, longest=longest))

        module, index = module_of(forward), put(batch, rows["lengths"].device)
        options: dict[str, Any] = {"num_tokens": len(batch) * longest, "longest": longest}
        parameters = () if module is None else module.parameters()
        return self.recomputation.run(run, index, **options, parameters=parameters)


def scores_in_evaluation(
    scorer: RowScorer,
    model: nn.Module,
    rows: TokenRows,
    *,
    forward: Callable[..., Any] | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """What the scorer gives for the rows, without gradient and without dropout; the model stays in the mode it was in.

    Args:
        scorer: An engine.
        model: Whose forward it is.
        rows: Token rows on the model's device.
        forward: Another way to call the model; None calls it.
        autocast_dtype: Compute in this type; None computes in the weights' type.
    """
    training, device_type = model.training, rows["lengths"].device.type
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device_type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            return scorer(model if forward is None else forward, rows)
    finally:
        model.train(training)


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
