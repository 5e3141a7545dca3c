"""What every loss shares: the checks at the door, the care for masked passages, and the mean over what is left.

A loss file holds formulas and nothing else. :func:`defined_where` wraps each formula: it checks the tensors, raises
half precision to float32, fills in the weights, and blanks every cell that the formula must not see. So a formula may
assume that its tensors are finite wherever the caller's real passages are, and that what counts has a weight above 0.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

CountsFn = Callable[[Tensor, Tensor], Tensor]


class LossFn(Protocol):
    """A loss of ``rerank_trainer``: call it, or ask it which groups it is defined on.

    Attributes:
        max_label: The largest label that the loss accepts, None for no bound. Losses read no values (that would stall
            an accelerator), so whoever loads the data compares.
        takes_teacher_scores: Whether the loss takes labels and, as the keyword ``teacher_scores``, a teacher's scores.
    """

    __name__: str
    max_label: float | None
    takes_teacher_scores: bool

    def __call__(
        self,
        scores: Tensor,
        labels: Tensor,
        *,
        mask: Tensor,
        temperature: float = 1.0,
        weights: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return one value a group, ``(batch_size,)``; the options are those of the formula."""
        ...

    def counts(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Return which groups define the loss, ``(batch_size,)`` bool.

        It needs no scores, so the groups of an optimizer step can be counted before the forward.
        """
        ...


def defined_where(counts_fn: CountsFn, *, max_label: float | None = None) -> Callable[[Callable[..., Tensor]], LossFn]:
    """Make a loss of a formula that is defined on the groups that ``counts_fn`` names.

    The formula ``(scores, labels, *, weights, temperature, ...) -> (batch_size,)`` gets checked tensors, in float32
    unless they are float64. ``weights`` stands for the mask as well: a passage that is masked or has the weight 0, and
    every passage of a group that does not count, is 0 in scores, labels and weights; without weights the others are 1.
    Blanking before the formula, and not only its result, keeps NaN and infinity out of the gradient as well.
    The formula divides its scores by the temperature itself, as its definition says. A formula with an argument
    ``teacher_scores`` gets those beside the labels, checked and blanked like them; which groups count, labels decide.

    Args:
        counts_fn: ``(labels, mask) -> (batch_size,)`` bool. It sees labels in float32, 0 at masked passages.
        max_label: See :class:`LossFn`.

    Returns:
        A decorator. Its result is the function with the attributes of :class:`LossFn`.

    >>> @defined_where(has_passage)
    ... def mean_score(scores, labels, *, weights, temperature=1.0):
    ...     return weighted_mean(scores / temperature, weights)
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

    def decorate(formula: Callable[..., Tensor]) -> LossFn:
        takes_teacher_scores = "teacher_scores" in inspect.signature(formula).parameters

        @functools.wraps(formula)
        def loss_fn(
            scores: Tensor,
            labels: Tensor,
            *,
            mask: Tensor,
            temperature: float = 1.0,
            weights: Tensor | None = None,
            **options: Any,
        ) -> Tensor:
            teacher = {"teacher_scores": options.pop("teacher_scores")} if takes_teacher_scores else {}
            given = teacher if weights is None else {**teacher, "weights": weights}
            check_groups(scores=scores, labels=labels, **given, mask=mask)
            check_temperature(temperature=temperature)
            if weights is not None:
                mask = mask & (weights > 0)
            defined = counts(labels, mask)
            seen = mask & defined.unsqueeze(-1)
            dtype = torch.promote_types(scores.dtype, torch.float32)
            scores = scores.to(dtype).masked_fill(~seen, 0.0)
            labels = labels.to(dtype).masked_fill(~seen, 0.0)
            teacher = {name: tensor.to(dtype).masked_fill(~seen, 0.0) for name, tensor in teacher.items()}
            seen_weights = (seen if weights is None else weights).to(dtype).masked_fill(~seen, 0.0)
            values = formula(scores, labels, weights=seen_weights, temperature=temperature, **teacher, **options)
            return values.masked_fill(~defined, 0.0)

        loss = cast(Any, loss_fn)
        loss.counts = counts
        loss.max_label = max_label
        loss.takes_teacher_scores = takes_teacher_scores
        loss.__signature__ = _called_with(loss_fn, formula)
        return cast(LossFn, loss)

    return decorate


def _called_with(loss_fn: Callable[..., Tensor], formula: Callable[..., Tensor]) -> inspect.Signature:
    """The signature that callers see: that of every loss, then the options of this formula."""
    every = inspect.signature(loss_fn, follow_wrapped=False)
    shared = [parameter for name, parameter in every.parameters.items() if name != "options"]
    own = [
        parameter for name, parameter in inspect.signature(formula).parameters.items() if name not in every.parameters
    ]
    return every.replace(parameters=shared + own)


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


def has_positive_to_prefer(labels: Tensor, mask: Tensor) -> Tensor:
    """Return ``(batch_size,)`` bool: is a label positive, and are the labels of the real passages not all equal?"""
    return (labels > 0).any(dim=-1) & has_unequal_labels(labels, mask)


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest real value of each group, ``(batch_size,)``; -inf where no passage is real."""
    return values.masked_fill(~mask, -math.inf).amax(dim=-1)


def masked_log_softmax(values: Tensor, weights: Tensor) -> Tensor:
    r"""Return log-probabilities of the passages of each group, ``(batch_size, group_size)``, in nats.

    .. math:: v_i - \log \sum_j w_j e^{v_j}

    A passage of the weight w stands w times in the denominator; what is returned is the log-probability of one of its
    copies, so that ``weights * result.exp()`` sums to 1. With the weight 0 it is about the lowest finite number.

    Args:
        values: Logits, ``(batch_size, group_size)``.
        weights: Non-negative or bool (a mask), same shape.
    """
    # The lowest finite number and not -inf: a group without real passages would be NaN here and on the way back.
    log_weights = weights.to(values.dtype).masked_fill(weights == 0, 1.0).log()
    shifted = (values + log_weights).masked_fill(weights == 0, torch.finfo(values.dtype).min)
    return shifted.log_softmax(dim=-1) - log_weights


def pairwise_differences(values: Tensor) -> Tensor:
    """Return ``(batch_size, group_size, group_size)`` with ``values[:, i] - values[:, j]`` at ``[:, i, j]``."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def pairs_of_passages(first: Tensor, second: Tensor) -> Tensor:
    """Return how often each ordered pair of passages stands in its group, ``(batch_size, group_size, group_size)``.

    A passage of the weight w counts as w copies: two passages make ``first[:, i] * second[:, j]`` pairs, and a passage
    makes ``first[:, i] * (second[:, i] - 1)`` with its own copies, none where its weight is 1 or less.

    Args:
        first: Weights of the passages that may stand first, 0 for those that may not, ``(batch_size, group_size)``.
        second: Weights of those that may stand second, same shape.

    >>> pairs_of_passages(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 3.0]])).tolist()
    [[[2.0, 6.0], [0.0, 0.0]]]
    """
    others = second.unsqueeze(-2) - torch.eye(first.shape[-1], dtype=second.dtype, device=second.device)
    return first.unsqueeze(-1) * others.clamp(min=0.0)


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
