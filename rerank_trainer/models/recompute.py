"""Recomputation: activations are kept for the backward while they fit into memory, and computed again otherwise.

What a token's activations take is measured here, and the token budget follows it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rerank_trainer.models.memory import free_bytes, give_back_freed_memory, with_peak_bytes, with_saved_bytes
from rerank_trainer.models.token_budget import TokenBudget

logger = logging.getLogger(__name__)

# Activations may take this share of what the device has left before they are recomputed.
SHARE_OF_FREE_MEMORY = 0.6
# On a CPU the C library keeps what micro-batches have freed, in pieces that larger tensors do not fit into: 27 MB more
# with each one of MiniLM (1,024 tokens). Handing it back after so many takes 7 to 10 % of a recomputed step.
MICRO_BATCHES_BETWEEN_TRIMS = 8


class Recomputation:
    """Runs the micro-batches of a batch, and recomputes their activations in the backward where they would not fit.

    The gradient is the same to the last digit, dropout included: the state of the random numbers is replayed. What a
    token's activations take is measured on a micro-batch, and again when rows are longer than any before, so any
    architecture, precision and attention counts as it is. In training it is what autograd keeps, without a backward the
    most that is there at the same time.

    Args:
        wanted: True recomputes always, False never, None where the activations of a whole batch would not fit.
        budget: Is told what a token takes where only one micro-batch has to fit: recomputed, or without a backward.
    """

    def __init__(self, wanted: bool | None = None, *, budget: TokenBudget | None = None) -> None:
        self.wanted = wanted
        self.active = bool(wanted)
        self.budget = budget
        self._bytes_per_token = {True: 0.0, False: 0.0}  # with a backward, and without
        self._longest = {True: 0, False: 0}  # the longest row that was measured
        self._batch: tuple[int, torch.device] | None = None
        self._num_runs = 0

    def begin(self, num_tokens: int, device: torch.device) -> None:
        """Decide for a batch of so many tokens; for the first one, as soon as a micro-batch of it has been measured."""
        self._batch = (num_tokens, device)
        self._decide()

    def always(self) -> None:
        """Recompute from here on."""
        self.wanted = self.active = True

    def run(
        self,
        function: Callable[..., Tensor],
        *inputs: Tensor,
        num_tokens: int,
        longest: int = 1,
        parameters: Iterable[Tensor] = (),
    ) -> Tensor:
        """The function of the inputs, whose activations are kept or recomputed.

        Args:
            function: A forward of one micro-batch.
            inputs: Tensors that it takes; gradients flow back into them. One is on the model's device: PyTorch replays
                the random numbers of the devices of these tensors, and of no other but the CPU.
            num_tokens: Tokens of the micro-batch, padding included.
            longest: Tokens of its longest row.
            parameters: What lives anyway and counts for nothing.
        """
        backward = torch.is_grad_enabled()
        if self._is_to_measure(num_tokens, longest):
            measured = with_saved_bytes if backward else with_peak_bytes
            result, taken = measured(lambda: function(*inputs), without=[*parameters, *inputs])
            self._bytes_per_token[backward] = max(self._bytes_per_token[backward], taken / num_tokens)
            self._longest[backward] = longest
            self._decide()
            return result
        if backward and self.active:
            return checkpoint(self._trimming(function), *inputs, use_reentrant=False)
        return function(*inputs)

    def _trimming(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function, which keeps the memory of the process flat; it runs in the forward and in the backward."""

        def run(*inputs: Tensor) -> Tensor:
            self._num_runs += 1
            if self._num_runs % MICRO_BATCHES_BETWEEN_TRIMS == 0 and self._batch and self._batch[1].type == "cpu":
                give_back_freed_memory()
            return function(*inputs)

        return run

    def _is_to_measure(self, num_tokens: int, longest: int) -> bool:
        backward = torch.is_grad_enabled()
        if longest <= self._longest[backward]:
            return False
        if backward and self.wanted is None:
            return True
        if self.budget is None or not self.budget.is_auto or self._batch is None or (backward and not self.active):
            return False
        # what does not grow with the rows would count for too much in a small one
        return num_tokens >= self.budget.size(self._batch[1]) // 8

    def _decide(self) -> None:
        backward = torch.is_grad_enabled()
        bytes_per_token = self._bytes_per_token[backward]
        if self._batch is None or not bytes_per_token:
            return
        (num_tokens, device), was_active = self._batch, self.active
        needed, free = bytes_per_token * num_tokens, free_bytes(device)
        if backward and self.wanted is None:
            self.active = needed > SHARE_OF_FREE_MEMORY * free
        if self.active and not was_active:
            logger.info(
                "activations of %d tokens would take %.1f GB of the %.1f GB left: they are recomputed in the backward",
                num_tokens,
                needed / 1e9,
                free / 1e9,
            )
        if self.budget is not None and (self.active or not backward):
            self.budget.fit(num_tokens, device, bytes_per_token=bytes_per_token, free=free)


def recomputes_layers(module: nn.Module) -> bool:
    """Whether Transformers' layer checkpointing is on: layers run again in the backward, outside of any forward."""
    return module.training and any(getattr(layer, "gradient_checkpointing", False) for layer in module.modules())
