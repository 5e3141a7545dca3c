"""Quantisation: the linear layers of a model's stack in 4 or 8 bits; what lies around it stays in full precision."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from rerank_trainer.models.layers import stacked_linear_layers

logger = logging.getLogger(__name__)


def four_bit(compute_dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    """How ``load_in_4bit=True`` quantises: as QLoRA does, nf4 with its constants quantised too (0.5 bytes a weight).

    See https://arxiv.org/abs/2305.14314.

    Args:
        compute_dtype: Type in which the layers multiply.
    """
    require_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def as_asked(
    quantization_config: BitsAndBytesConfig | None, *, load_in_4bit: bool, dtype: torch.dtype | str
) -> BitsAndBytesConfig | None:
    """The one of two ways to ask for quantised weights that was taken; None where neither was.

    Args:
        quantization_config: The one.
        load_in_4bit: The other.
        dtype: Type of the other weights; 16 bits are also what the layers multiply in.

    Raises:
        ValueError: If both were.
    """
    if not load_in_4bit:
        return quantization_config
    if quantization_config is not None:
        raise ValueError("load_in_4bit=True beside quantization_config: give one of them")
    return four_bit(dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32)


def log_other_bits(name: str, model: nn.Module, trained: int | None) -> None:
    """Say in the log that an adapter was trained on a base of other bits than it is loaded on.

    Args:
        name: The adapter.
        model: What was loaded.
        trained: Bits of the base that it was trained on; None is full precision.
    """
    bits = (trained, num_bits(model))
    if bits[0] != bits[1]:
        logger.info(
            "%s was trained on a base of %s, and its base is loaded as one of %s: scores differ by the rounding",
            name,
            *(f"{number} bits" if number else "full precision" for number in bits),
        )


def require_bitsandbytes(device: torch.device | None = None) -> None:
    """Refuse to quantise where it cannot work, before anything is loaded.

    Args:
        device: Where the model is to run; None asks for the package alone.

    Raises:
        ImportError: If bitsandbytes is not installed.
        ValueError: If it does not know the device.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            f"weights in 4 or 8 bits need bitsandbytes ({error}). Install it with "
            'pip install "rerank_trainer[qlora]", or load the model without quantising it.'
        ) from error
    known = set(bitsandbytes.supported_torch_devices)
    if device is not None and device.type not in known:
        raise ValueError(
            f"weights in 4 or 8 bits on the device {device.type!r}: bitsandbytes {bitsandbytes.__version__} knows "
            f"{sorted(known)}. Train with use_cpu=True, or leave the quantisation out."
        )


def quantized_around_head(
    quantization_config: BitsAndBytesConfig, model_class: type, config: PretrainedConfig, **options: object
) -> BitsAndBytesConfig:
    """The same quantisation, that leaves every linear layer outside of the model's stack as it is.

    A head, or a pooler that no checkpoint has trained, learns as a whole, and the score's digits are made there.

    Args:
        quantization_config: What to quantise how; left unchanged.
        model_class: The auto class that the model is loaded with.
        config: The model's configuration.
        **options: Of ``from_config``.

    Raises:
        ValueError: If it is not a configuration of bitsandbytes.
    """
    if not isinstance(quantization_config, BitsAndBytesConfig):
        raise ValueError(
            f"quantization_config is a {type(quantization_config).__name__}; only a BitsAndBytesConfig has been tried. "
            "Give one, or load_in_4bit=True."
        )
    with torch.device("meta"):  # its modules alone, without memory for weights
        skeleton = model_class.from_config(config, **options)  # type: ignore[attr-defined]
    stacked = set(stacked_linear_layers(skeleton))
    outside = [name for name, part in skeleton.named_modules() if isinstance(part, nn.Linear) and name not in stacked]
    quantization_config = copy.deepcopy(quantization_config)
    quantization_config.llm_int8_skip_modules = [*(quantization_config.llm_int8_skip_modules or ()), *outside]
    return quantization_config


def keep_weights_as_they_are(model: nn.Module) -> None:
    """Let layers of 4 bits score with the weights that they train with, in place.

    On a CPU with AVX-512 instructions for bfloat16, bitsandbytes packs the weights anew at the first forward without a
    gradient, rounds their scales to bfloat16, and lets no gradient through them from then on: an evaluation would end
    the training, unseen.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def num_bits(model: nn.Module) -> int | None:
    """How many bits a quantised weight of the model has, 4 or 8; None where it is not quantised by bitsandbytes."""
    return (
        4 if getattr(model, "is_loaded_in_4bit", False) else 8 if getattr(model, "is_loaded_in_8bit", False) else None
    )


def compute_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """The type in which a quantised model's layers multiply; None where it is not quantised."""
    bits = num_bits(model)
    if bits is None:
        return None
    return torch.float16 if bits == 8 else model.config.quantization_config.bnb_4bit_compute_dtype
