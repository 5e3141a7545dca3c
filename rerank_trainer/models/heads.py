"""Heads: how a backbone's forward on one micro-batch becomes one score a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Head(Protocol):
    """Runs the forward on padded inputs and returns float32 scores, ``(num_rows,)``, higher is more relevant.

    Its ``repr`` says all that its scores depend on: it is part of a teacher's fingerprint.
    """

    def fitted_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Head:
        """The head as this model needs it.

        Raises:
            ValueError: If it is no head for this model.
        """
        ...

    def __call__(self, forward: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class LogitHead:
    """The one logit of a sequence classification model."""

    def fitted_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LogitHead:
        """Itself, if the model has one logit."""
        if model.config.num_labels != 1:
            raise ValueError(
                f"{type(model).__name__} has num_labels={model.config.num_labels}; a reranker has one logit. Load it "
                "with Reranker.from_pretrained, or with num_labels=1."
            )
        return self

    def __call__(self, forward: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
        return forward(**inputs).logits[:, 0].float()


def counted(head: Callable[..., Tensor], on_forward: Callable[[int], None]) -> Callable[..., Tensor]:
    """The head, that also says after each forward how many tokens ran: padding and a shared prefix included."""

    def run(forward: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
        scores = head(forward, inputs)
        on_forward(inputs["attention_mask"].numel())
        return scores

    run.__wrapped__ = head  # type: ignore[attr-defined]
    return run


def fold_two_logits(model: nn.Module) -> None:
    """Replace a classifier's two logits by their difference, second minus first, in place.

    The softmax of two logits gives the second class the probability sigmoid(second - first), so the one logit orders
    passages, and is calibrated, as the pair was.

    Args:
        model: A sequence classification model of two labels: (not relevant, relevant).

    Raises:
        ValueError: If the model does not end in exactly one linear layer with two outputs.
    """
    name, last = _last_linear(model, num_outputs=2)
    one = nn.Linear(last.in_features, 1, bias=last.bias is not None, device=last.weight.device, dtype=last.weight.dtype)
    with torch.no_grad():
        one.weight.copy_(last.weight[1:] - last.weight[:1])
        if last.bias is not None:
            one.bias.copy_(last.bias[1:] - last.bias[:1])
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, one)
    model.num_labels = 1
    model.config.num_labels = 1


def _last_linear(model: nn.Module, num_outputs: int) -> tuple[str, nn.Linear]:
    backbone = getattr(model, "base_model_prefix", "")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == num_outputs
        and not (backbone and name.startswith(f"{backbone}."))
    ]
    if len(found) != 1:
        raise ValueError(
            f"expected one linear layer with {num_outputs} outputs at the end of {type(model).__name__}, found "
            f"{[name for name, _ in found]}. Load a checkpoint with num_labels=1 instead."
        )
    return found[0]
