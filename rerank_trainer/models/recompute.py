"""Recomputation: activations are kept for the backward while they fit into memory, and computed again otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Activations may take this share of what the device has left before they are recomputed.
SHARE_OF_FREE_MEMORY = 0.6


class Recomputation:
    """Runs the micro-batches of a batch, and recomputes their activations in the backward where they would not fit.

    The gradient is the same to the last digit, dropout included: the state of the random numbers is replayed. What a
    token's activations take is measured on a micro-batch, so any architecture, precision and attention counts as it is.

    Args:
        wanted: True recomputes always, False never, None where the activations of a whole batch would not fit.
    """

    def __init__(self, wanted: bool | None = None) -> None:
        self.wanted = wanted
        self.active = bool(wanted)
        self._bytes_per_token = 0.0
        self._batch: tuple[int, torch.device] | None = None

    def begin(self, num_tokens: int, device: torch.device) -> None:
        """Decide for a batch of so many tokens; for the first one, as soon as a micro-batch of it has been measured."""
        self._batch = (num_tokens, device)
        if self.wanted is None and torch.is_grad_enabled() and self._bytes_per_token:
            self._decide()

    def _decide(self) -> None:
        if self._batch is None:
            return
        num_tokens, device = self._batch
        needed, free = self._bytes_per_token * num_tokens, free_bytes(device)
        was_active, self.active = self.active, needed > SHARE_OF_FREE_MEMORY * free
        if self.active and not was_active:
            logger.info(
                "activations of %d tokens would take %.1f GB of the %.1f GB left: they are recomputed in the backward",
                num_tokens,
                needed / 1e9,
                free / 1e9,
            )

    def run(
        self, function: Callable[..., Tensor], *inputs: Tensor, num_tokens: int, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """The function of the inputs, whose activations are kept or recomputed.

        Args:
            function: A forward of one micro-batch.
            inputs: Tensors that it takes; gradients flow back into them.
            num_tokens: Tokens of the micro-batch, padding included.
            parameters: What lives anyway and counts for nothing.
        """
        if not torch.is_grad_enabled():
            return function(*inputs)
        if self.active:
            return checkpoint(function, *inputs, use_reentrant=False)
        if self.wanted is None and not self._bytes_per_token:
            result, saved = with_saved_bytes(lambda: function(*inputs), without=[*parameters, *inputs])
            self._bytes_per_token = saved / num_tokens
            self._decide()
            return result
        return function(*inputs)


def with_saved_bytes(function: Callable[[], T], *, without: Iterable[Tensor] = ()) -> tuple[T, int]:
    """What the function returns, and the bytes that autograd keeps until the backward of it.

    Args:
        function: A forward.
        without: Tensors that live anyway, such as parameters.

    >>> weight = torch.ones(3, 3, requires_grad=True)
    >>> _, saved = with_saved_bytes(lambda: torch.ones(5, 3) @ weight, without=[weight])
    >>> saved  # the float32 input, 5 x 3
    60
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    return result, sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """The bytes that can still be allocated on the device; on the CPU, those of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
