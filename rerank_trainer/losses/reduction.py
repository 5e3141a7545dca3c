"""What every loss shares: the checks at the door, the care for masked passages, and the mean over what is left.

A loss file holds formulas and nothing else. :func:`defined_where` wraps each formula: it checks the tensors, raises
half precision to float32, and blanks every cell that the formula must not see. So a formula may assume that its
tensors are finite wherever the caller's real passages are, and has to look at ``mask`` only to know what is real.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast

import torch
from torch import Tensor

P = ParamSpec("P")

CountsFn = Callable[[Tensor, Tensor], Tensor]


class LossFn(Protocol):
    """A loss of ``rerank_trainer``: call it, or ask it which groups it is defined on.

    Attributes:
        counts: ``counts(labels, mask) -> (batch_size,)`` bool, True where a group defines the loss. It needs no
            scores, so the groups of an optimizer step can be counted before the forward.
        max_label: The largest label that the loss accepts, None for no bound. Losses read no values (that would stall
            an accelerator), so whoever loads the data compares.
    """

    __name__: str
    counts: CountsFn
    max_label: float | None

    def __call__(self, scores: Tensor, labels: Tensor, *, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Return one value a group, ``(batch_size,)``."""
        ...


class DefinedLoss(Protocol[P]):
    """A :class:`LossFn` that keeps the signature of its formula, further options included."""

    __name__: str
    counts: CountsFn
    max_label: float | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Return one value a group, ``(batch_size,)``."""
        ...


def defined_where(
    counts_fn: CountsFn, *, max_label: float | None = None
) -> Callable[[Callable[P, Tensor]], DefinedLoss[P]]:
    """Make a loss of a formula that is defined on the groups that ``counts_fn`` names.

    The formula ``(scores, labels, *, mask, temperature, ...) -> (batch_size,)`` gets checked tensors, in float32 unless
    they are float64, in which masked passages and all passages of a group that does not count are 0 with a False mask.
    Blanking before the formula, and not only its result, keeps NaN and infinity out of the gradient as well.
    The formula divides its scores by the temperature itself, as its definition says.

    Args:
        counts_fn: ``(labels, mask) -> (batch_size,)`` bool. It sees labels in float32, 0 at masked passages.
        max_label: See :class:`LossFn`.

    Returns:
        A decorator. Its result is the function with the attributes ``counts`` and ``max_label``.

    >>> @defined_where(has_passage)
    ... def mean_score(scores, labels, *, mask, temperature=1.0):
    ...     return weighted_mean(scores / temperature, mask)
    >>> scores, mask = torch.tensor([[2.0, 4.0, float("nan")]]), torch.tensor([[True, True, False]])
    >>> mean_score(scores, torch.zeros(1, 3), mask=mask)
    tensor([3.])
    >>> mean_score.counts(torch.zeros(1, 3), mask)
    tensor([True])
    """

    def counts(labels: Tensor, mask: Tensor) -> Tensor:
        check_groups(labels=labels, mask=mask)
        # Always float32, whatever the scores are: labels that only differ in float64 define no pair in float32.
        return counts_fn(labels.float().masked_fill(~mask, 0.0), mask)

    def decorate(formula: Callable[P, Tensor]) -> DefinedLoss[P]:
        @functools.wraps(formula)
        def loss_fn(
            scores: Tensor, labels: Tensor, *, mask: Tensor, temperature: float = 1.0, **options: Any
        ) -> Tensor:
            check_groups(scores=scores, labels=labels, mask=mask)
            check_temperature(temperature=temperature)
            defined = counts(labels, mask)
            seen = mask & defined.unsqueeze(-1)
            dtype = torch.promote_types(scores.dtype, torch.float32)
            scores = scores.to(dtype).masked_fill(~seen, 0.0)
            labels = labels.to(dtype).masked_fill(~seen, 0.0)
            apply = cast(Callable[..., Tensor], formula)
            return apply(scores, labels, mask=seen, temperature=temperature, **options).masked_fill(~defined, 0.0)

        loss = cast(Any, loss_fn)
        loss.counts = counts
        loss.max_label = max_label
        return cast("DefinedLoss[P]", loss)

    return decorate


def check_groups(*, mask: Tensor, **tensors: Tensor) -> None:
    """Refuse tensors that would broadcast: all must be ``(batch_size, group_size)``, and ``mask`` bool.

    Raises:
        ValueError: If shapes differ, are not two-dimensional, have no passage, or ``mask`` is not bool.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in {**tensors, "mask": mask}.items()}
    if mask.dim() != 2 or len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{' and '.join(shapes)} must have one shape (batch_size, group_size), got {found}. "
            "Pad shorter groups and set mask to False at the padding."
        )
    if mask.shape[1] == 0:
        raise ValueError(f"group_size must be at least 1, got tensors of shape {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor (True = real passage), got {mask.dtype}. Use mask.bool().")


def check_temperature(**temperatures: float) -> None:
    """Refuse temperatures that are not positive and finite.

    Raises:
        ValueError: With the name and the value.
    """
    for name, value in temperatures.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive finite number (scores are divided by it), got {value}")


def has_passage(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: does the group have a real passage?"""
    return mask.any(dim=-1)


def has_two_passages(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: does the group have two real passages or more?"""
    return mask.sum(dim=-1) >= 2


def has_unequal_labels(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: is some real passage labelled above another one?"""
    return masked_max(labels, mask) > -masked_max(-labels, mask)


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest real value of each group, ``(batch_size,)``; -inf where no passage is real."""
    return values.masked_fill(~mask, -math.inf).amax(dim=-1)


def masked_log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Return log-probabilities over the real passages of each group, ``(batch_size, group_size)``, in nats.

    A masked passage gets a log-probability of about the lowest finite number, hence the probability 0.
    """
    # The lowest finite number and not -inf: a group without real passages would be NaN here and on the way back.
    return values.masked_fill(~mask, torch.finfo(values.dtype).min).log_softmax(dim=-1)


def pairwise_differences(values: Tensor) -> Tensor:
    """Return ``(batch_size, group_size, group_size)`` with ``values[:, i] - values[:, j]`` at ``[:, i, j]``."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def pairs_of_passages(first: Tensor, second: Tensor) -> Tensor:
    """Return ``(batch_size, group_size, group_size)`` bool: ``first[:, i]`` and ``second[:, j]`` and ``i != j``."""
    different = ~torch.eye(first.shape[-1], dtype=torch.bool, device=first.device)
    return first.unsqueeze(-1) & second.unsqueeze(-2) & different


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum(weights * values) / sum(weights)`` of each group, and 0 where all weights are 0.

    What has the weight 0 is absent: even an infinite value there adds nothing, neither here nor to the gradient.

    Args:
        values: ``(batch_size, ...)``.
        weights: Non-negative or bool (then this is the mean over True), same shape as ``values``.

    Returns:
        ``(batch_size,)``.

    >>> weighted_mean(torch.tensor([[1.0, 4.0, float("inf")]]), torch.tensor([[2.0, 1.0, 0.0]]))
    tensor([2.])
    """
    values, weights = values.flatten(1), weights.flatten(1)
    total = weights.sum(dim=-1)
    summed = (weights * values.masked_fill(weights == 0, 0.0)).sum(dim=-1)
    return summed / total.masked_fill(total == 0, 1.0)
