"""Dropout on a CPU: four elements from each random number, where torch draws two random numbers for each element.

There drawing is serial on most processors: it took 19 % of a bfloat16 training step of MiniLM on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rerank_trainer.models.recompute import recomputes_layers

_LEVELS = 2**16  # an element is dropped by 16 random bits, so the rate is a multiple of 1 / 65536


def with_quick_dropout(forward: Callable[..., Any], module: nn.Module | None) -> Callable[..., Any]:
    """The forward, whose dropout on the CPU runs by :func:`quick_dropout`; the forward itself where nothing drops.

    So too under Transformers' layer checkpointing: layers that run again in the backward would draw otherwise there.

    Args:
        forward: A forward of the module.
        module: The model; None changes nothing.
    """
    if module is None or not (module.training and drops(module)) or recomputes_layers(module):
        return forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with _QuickDropout():  # around each run, for one that is recomputed runs in the backward
            return forward(*args, **kwargs)

    run.__wrapped__ = forward  # type: ignore[attr-defined]
    return run


def drops(module: nn.Module) -> bool:
    """Whether the module has a dropout, as a layer or as a rate in its configuration, above 0."""
    if any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in module.modules()):
        return True
    config = getattr(module, "config", None)
    rates = {} if config is None else vars(config)
    return any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in rates.items())


def quick_dropout(states: Tensor, p: float, *, generator: torch.Generator | None = None) -> Tensor:
    """The states with a share ``p`` of their elements at 0 and the others scaled up, so that the mean stays.

    Args:
        states: Any floating point tensor on the CPU.
        p: Share to drop, above 0 and below 1, rounded to a multiple of 1 / 65536.
        generator: Source of chance; None takes torch's own.

    >>> kept = quick_dropout(torch.ones(10_000), 0.25)
    >>> kept.unique().tolist()
    [0.0, 1.3333333730697632]
    """
    dropped = round(p * _LEVELS)
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64)
    draws.random_(-(2**63), None, generator=generator)  # all 64 bits; without bounds the first would always be 0
    bits = draws.view(torch.int16)[: states.numel()].view(states.shape)
    noise = (bits >= dropped - _LEVELS // 2).to(states.dtype).mul_(_LEVELS / (_LEVELS - dropped))
    return states * noise


class _QuickDropout(TorchFunctionMode):
    """Runs dropout on the CPU by :func:`quick_dropout`, in modules and as a function, and all else as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.dropout:
            return _dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or inplace or input.device.type != "cpu" or not 0 < round(p * _LEVELS) < _LEVELS:
        return functional.dropout(input, p, training, inplace)
    return quick_dropout(input, p)
