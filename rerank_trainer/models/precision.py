"""Precision: scores of float32 under autocast, and where a device computes bfloat16 itself, or rounds float32."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

# What processors call instructions that multiply in bfloat16: of x86 the first two, of ARM the last.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def score_in_float32(model: nn.Module) -> None:
    """Let the layer that makes the score compute in float32 under autocast, in place.

    bfloat16 keeps 8 binary digits: between 4 and 8 there are 128 scores, and passages that a model tells apart would
    tie. Without autocast nothing changes, so that weights of 16 bits score as they do in other loaders.

    Args:
        model: A sequence classification model; its layers with one output that stand outside of the backbone are meant.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, num_labels=1, **shape))
    >>> score_in_float32(model)
    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     model(input_ids=torch.tensor([[1, 2]])).logits.dtype
    torch.float32
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT wraps the whole model
    backbone = getattr(plain, "base_model", plain)
    inside = set() if backbone is plain else set(backbone.modules())
    for module in plain.modules():
        if type(module) is nn.Linear and module.out_features == 1 and module not in inside:
            module.forward = MethodType(_linear_in_float32, module)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 whatever the type of its weights and its input, under autocast too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _in_float32(self, inputs)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; where it is emulated, float32 is faster.

    >>> isinstance(computes_bf16(torch.device("cpu")), bool)
    True
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)
    return True  # not known to emulate it


def rounds_float32(device: torch.device) -> bool:
    """Whether the device multiplies float32 in tf32, which keeps 11 binary digits, as float16 does (``tf32=True``).

    >>> rounds_float32(torch.device("cpu"))
    False
    """
    return device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _linear_in_float32(self: nn.Linear, inputs: Tensor) -> Tensor:
    device_type = inputs.device.type
    return _in_float32(self, inputs) if torch.is_autocast_enabled(device_type) else nn.Linear.forward(self, inputs)


def _in_float32(layer: nn.Linear, inputs: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast(inputs.device.type, enabled=False):
        return functional.linear(inputs.float(), layer.weight.float(), bias)
