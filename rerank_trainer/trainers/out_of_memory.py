"""Out of memory in training: the batches of the optimizer step run again in smaller micro-batches, same groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rerank_trainer.data.collator import TokenRows
from rerank_trainer.models.memory import is_out_of_memory
from rerank_trainer.models.random_state import RandomState

if TYPE_CHECKING:
    from rerank_trainer.trainers.hooks import GroupHooks


class StepReplay:
    """Remembers the batches of an optimizer step until it is done, and runs them again where memory runs out.

    A backward that ends half-way has added to gradients, and those of the step's earlier batches cannot be told from
    its own. So all are cleared, and the step begins anew: its batches, which are tokens and take little memory, run
    with the random numbers that it began with. The gradient is that of a step with the smaller micro-batches from the
    start, dropout included.

    Args:
        trainer: Whose model, objective and optimizer steps these are.
    """

    def __init__(self, trainer: GroupHooks) -> None:
        self._trainer = trainer
        self._batches: list[tuple[Callable[[], Tensor], TokenRows]] = []
        self._number = -1  # of the optimizer step
        self._is_whole = False  # whether the batches account for every gradient that there is
        self._began_with: RandomState | None = None
        self._counts: list[Callable[[], None]] = []

    def count(self, add: Callable[[], None]) -> None:
        """Have something added to the figures when the batch that runs is done: once, however often it runs."""
        self._counts.append(add)

    def run(self, batch: Callable[[], Tensor], rows: TokenRows) -> Tensor:
        """The loss of a batch after its backward.

        Args:
            batch: Forward and backward.
            rows: Its token rows.

        Raises:
            torch.OutOfMemoryError: If nothing smaller is left to try, or the step cannot begin anew.
        """
        self._note(batch, rows)
        to_run = [batch]
        while True:
            try:
                for one in to_run:
                    self._counts = []
                    loss = one()
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._require_replay(error)
            # out here, where no traceback holds activations any more
            self._begin_anew()
            to_run = [one for one, _ in self._batches]
        counts, self._counts = self._counts, []
        for add in counts:
            add()
        return loss

    def _note(self, batch: Callable[[], Tensor], rows: TokenRows) -> None:
        number = self._trainer.state.global_step
        has_gradients = any(parameter.grad is not None for parameter in self._parameters())
        if number != self._number or not has_gradients:
            self._batches, self._number, self._is_whole = [], number, not has_gradients
            self._began_with = RandomState(self._trainer.args.device)
        self._batches.append((batch, rows))

    def _require_replay(self, error: RuntimeError) -> None:
        trainer = self._trainer
        scorer, device = trainer.model.row_scorer, trainer.args.device
        size = scorer.budget.size(device)
        if trainer.args.world_size > 1 or trainer.is_deepspeed_enabled:
            reason = "the other processes would wait for this one, or gradients are DeepSpeed's"
        elif not self._is_whole:
            reason = "there are gradients of batches that this training did not run"
        elif not scorer.can_shrink(self._longest(), device):
            raise error
        else:
            return
        raise torch.OutOfMemoryError(
            f"out of memory with micro-batches of at most {size} tokens, and the step cannot begin anew: {reason}. Set "
            f"max_tokens_per_micro_batch={max(1, size // 2)} and recompute_activations=True; the gradient stays the "
            "same."
        ) from error

    def _begin_anew(self) -> None:
        assert self._began_with is not None  # set with the first batch
        self._trainer.model.row_scorer.shrink(self._longest(), self._trainer.args.device)
        for parameter in self._parameters():
            parameter.grad = None
        self._began_with.restore()

    def _longest(self) -> int:
        """Tokens of the longest row of the step."""
        return max(int(rows["lengths"].max()) for _, rows in self._batches if rows["lengths"].numel())

    def _parameters(self) -> Iterator[nn.Parameter]:
        return chain(self._trainer.model.parameters(), self._trainer.objective.parameters())
