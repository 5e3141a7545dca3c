"""Layers: the linear ones that stand in a model's stack, and a layer that computes otherwise for a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def stacked_linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the model's stacks of layers, in their order.

    They hold most of the weights: adapters are put there, and they are what is quantised. A stack is an
    ``nn.ModuleList``, as in all models of Transformers; what lies around it (embeddings, pooler, head) is no part.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, num_labels=1, **shape))
    >>> names = stacked_linear_layers(model)
    >>> names[0], len(names)
    ('bert.encoder.layer.0.attention.self.query', 6)
    """
    stacks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(stacks)
    ]


@contextmanager
def computing_by(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the layer computes by another function; afterwards as it did.

    >>> layer = nn.Identity()
    >>> with computing_by(layer, lambda states: 2 * states):
    ...     layer(3.0)
    6.0
    >>> layer(3.0)
    3.0
    """
    own = vars(layer).get("forward")  # somebody else may have put one in the place of the class's
    layer.forward = forward
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own
