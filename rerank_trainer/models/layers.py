"""Layers: the linear ones that stand in a model's stack; what lies around it (embeddings, pooler, head) is none."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def stacked_linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the model's stacks of layers, in their order.

    They hold most of the weights: adapters are put there, and they are what is quantised. A stack is an
    ``nn.ModuleList``, as in all models of Transformers.

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
