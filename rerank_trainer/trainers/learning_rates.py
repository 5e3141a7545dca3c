"""Learning rates: a default that follows model size, and one of their own for fresh parameters."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

# Parameters and learning rate of published rerankers (Ettin, https://huggingface.co/blog/ettin-reranker).
_PUBLISHED = ((17e6, 2.4e-4), (32e6, 1.2e-4), (68e6, 3e-5), (150e6, 1.5e-5), (400e6, 7e-6), (1e9, 3e-6))
MAX_HEAD_LEARNING_RATE = 1e-3
MAX_ADAPTER_LEARNING_RATE = 1e-3


def default_learning_rate(num_parameters: int, *, is_adapter: bool = False) -> float:
    """A learning rate for a model of this size: published ones, straight lines between them in logarithms.

    An adapter wants steps about ten times as large as the whole model does, at any size and rank, as Schulman et al.
    measured for LoRA, https://thinkingmachines.ai/blog/lora/.

    Args:
        num_parameters: Of the whole model. Smaller and larger models than the published ones take the nearest rate.
        is_adapter: Whether an adapter is trained, the model beside it frozen: ten times the rate, at most 1e-3.

    Returns:
        The rate to two digits.

    >>> default_learning_rate(150_000_000)
    1.5e-05
    """
    sizes = [math.log(size) for size, _ in _PUBLISHED]
    rates = [math.log(rate) for _, rate in _PUBLISHED]
    size = min(max(math.log(num_parameters), sizes[0]), sizes[-1])
    upper = next(i for i in range(1, len(sizes)) if size <= sizes[i])
    share = (size - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])
    rate = math.exp(rates[upper - 1] + share * (rates[upper] - rates[upper - 1]))
    return float(f"{min(10 * rate, MAX_ADAPTER_LEARNING_RATE) if is_adapter else rate:.1e}")


def default_head_learning_rate(learning_rate: float) -> float:
    """Ten times the model's learning rate, at most 1e-3 unless the model's own is higher."""
    return max(learning_rate, min(10 * learning_rate, MAX_HEAD_LEARNING_RATE))


def split_off_head(
    optimizer: torch.optim.Optimizer, model: nn.Module, fresh_parameters: Collection[str], learning_rate: float
) -> None:
    """Move the freshly initialised parameters into groups of their own with another learning rate, in place.

    Args:
        optimizer: An optimizer that has not stepped yet.
        model: The model it optimises.
        fresh_parameters: Names in ``model.named_parameters()``.
        learning_rate: For these parameters.
    """
    fresh = {id(parameter) for name, parameter in model.named_parameters() if name in fresh_parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in fresh]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in fresh]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
