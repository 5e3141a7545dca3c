"""Options of a loss, chosen once: a loss with its options is a loss."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from rerank_trainer.losses.reduction import LossFn

# What every call passes anew, and an objective keeps for itself.
_NOT_OPTIONS = ("scores", "labels", "mask", "temperature", "weights", "teacher_scores")


class LossWithOptions:
    """A loss whose options are chosen; it is called, asked and named like the loss itself. See :func:`with_options`."""

    def __init__(self, loss_fn: LossFn, options: dict[str, Any]) -> None:
        self.loss_fn = loss_fn
        self.options = options
        self.__name__ = loss_fn.__name__
        self.max_label = loss_fn.max_label
        self.takes_teacher_scores = loss_fn.takes_teacher_scores

    def counts(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Return which groups define the loss, ``(batch_size,)`` bool; no option changes that."""
        return self.loss_fn.counts(labels, mask)

    def __call__(self, scores: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """Return one value a group, ``(batch_size,)``."""
        return self.loss_fn(scores, labels, **{**self.options, **arguments})

    def __repr__(self) -> str:
        return f"{self.__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


def with_options(loss_fn: LossFn, **options: Any) -> LossFn:
    """Return the loss with these options, as ``functools.partial`` would, still knowing which groups count.

    Args:
        loss_fn: A loss.
        **options: Those of its formula, such as ``k`` or ``margin``; the temperature belongs to who calls the loss.

    Returns:
        The loss itself if there are no options.

    Raises:
        ValueError: If the loss has no such option, or does not take the value.

    >>> from rerank_trainer.losses import lambdarank
    >>> with_options(lambdarank, k=10, weighting="ndcg_loss2")
    lambdarank(k=10, weighting='ndcg_loss2')
    """
    if isinstance(loss_fn, LossWithOptions):
        return with_options(loss_fn.loss_fn, **{**loss_fn.options, **options})
    own = [name for name in inspect.signature(loss_fn).parameters if name not in _NOT_OPTIONS]
    unknown = sorted(set(options) - set(own))
    if unknown:
        has = f"it has {own}" if own else "it has none"
        raise ValueError(f"{loss_fn.__name__} has no option {', '.join(map(repr, unknown))}; {has}")
    if not options:
        return loss_fn
    loss = LossWithOptions(loss_fn, options)
    _try_on_two_passages(loss)
    return loss


def _try_on_two_passages(loss: LossWithOptions) -> None:
    """Call the loss once, so that a value it does not take is refused here and not in the first step of a training.

    Raises:
        ValueError: With the option.
    """
    scores, labels = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    teacher = {"teacher_scores": labels} if loss.takes_teacher_scores else {}
    try:
        loss(scores, labels, mask=torch.ones(1, 2, dtype=torch.bool), **teacher)
    except TypeError as error:  # a text where a number belongs
        raise ValueError(f"{loss!r}: {error}") from error
