"""Attention: which of Transformers' implementations trains fastest where, as measured."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from rerank_trainer.models.dropout import drops
from rerank_trainer.models.loading import dtype_of

logger = logging.getLogger(__name__)

# Processor time with "eager" attention as a share of that with "sdpa", Transformers' default, in micro-batches of 1,024
# tokens on a CPU with avx512_bf16; training is forward and backward. benchmarks/attention_speed.py measures it.
#
#                 rows of   32    64   128   256   512 tokens
# bf16 training   MiniLM   .92   .87   .82   .77   .71    (with dropout, of which eager attention lets ours be used)
#                 Qwen3    .88   .88   .88   .88   .93    (without)
# fp32 training   MiniLM   .99   .95   .98   .93   .92
#                 Qwen3   1.01  1.01  1.01  1.03
# bf16 scoring    MiniLM   .98   .97   .98  1.03  1.10
#                 Qwen3    .98   .98   .97   .99
# fp32 scoring    MiniLM  1.01   .99  1.07  1.10  1.19
#
# So eager pays in training, in float32 only where attention has dropout. Scoring keeps the default; no GPU has been
# measured.
FASTEST_IN_TRAINING = {("cpu", torch.bfloat16): "eager"}
FASTEST_WITH_DROPOUT = {**FASTEST_IN_TRAINING, ("cpu", torch.float32): "eager"}
DEFAULT = "sdpa"
# Longer rows are not measured, and what eager attention keeps for the backward grows with their square.
LONGEST_MEASURED = 512


def choose_attention(
    model: PreTrainedModel, *, device: torch.device, autocast_dtype: torch.dtype | None, max_length: int
) -> str:
    """The attention that trains fastest here, set in the model and said in the log.

    The choice follows a table, never a clock: a resumed run makes it again. A model whose class lacks Transformers'
    default (DeBERTa, MPNet, Gemma 2) has eager attention and keeps it.

    Args:
        model: A model that Transformers has loaded with its default.
        device: Where it trains.
        autocast_dtype: What it computes in under autocast; None where that is the type of the weights.
        max_length: Tokens of the longest row.
    """
    present = model.config._attn_implementation
    table = FASTEST_WITH_DROPOUT if drops(model) else FASTEST_IN_TRAINING
    fastest = table.get((device.type, autocast_dtype or dtype_of(model)), present)
    if fastest == present or present != DEFAULT or max_length > LONGEST_MEASURED:
        logger.info("attention: %s, the default of Transformers", present)
        return present
    model.set_attn_implementation(fastest)
    logger.info(
        "attention: %s, which trains faster than %s on this device in this precision; model_init_kwargs="
        "{'attn_implementation': ...} chooses another",
        fastest,
        present,
    )
    return fastest
