"""Tiny models of true architectures, made from configs, initialised so wide that their scores spread."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.tiny_tokenizers import TEXTS, TOKENIZERS, byte_tokenizer

__all__ = [
    "KINDS",
    "PAIRS",
    "RECURRENT",
    "TEXTS",
    "byte_tokenizer",
    "tiny_config",
    "tiny_recurrent_model",
    "tiny_model",
]

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
# RoBERTa and its kin count positions from their pad token's place + 1: two more than rows have tokens
_SHIFTED = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
}

# Each kind: the model type and tokenizer that it is made of, and what its configuration says besides sizes.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "bytes", {**_NO_DROPOUT, "max_position_embeddings": 128}),
    "bert-wordpiece": ("bert", "bert", {**_NO_DROPOUT, "max_position_embeddings": 128}),
    "electra": ("electra", "bert", {**_NO_DROPOUT, "embedding_size": 16, "max_position_embeddings": 128}),
    "mpnet": ("mpnet", "mpnet", {**_NO_DROPOUT, **_SHIFTED}),
    "roberta": ("roberta", "roberta", {**_NO_DROPOUT, **_SHIFTED}),
    "xlm-roberta": ("xlm-roberta", "xlm-roberta", {**_NO_DROPOUT, **_SHIFTED}),
    "deberta-v2": (
        "deberta-v2",
        "deberta-v2",
        {
            **_NO_DROPOUT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
            "pooler_dropout": 0.0,
            "max_position_embeddings": 128,
        },
    ),
    "modernbert": (
        "modernbert",
        "bytes",
        {
            "pad_token_id": 0,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
        },
    ),
    "llama": ("llama", "llama", _GROUPED),
    "gemma": ("gemma", "gemma", _GROUPED),
    "gemma2": ("gemma2", "gemma", {**_GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": ("gemma3_text", "gemma", {**_GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "mistral": ("mistral", "llama", {**_GROUPED, "sliding_window": 16}),
    "qwen2": (
        "qwen2",
        "qwen2",
        {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", "bare bytes", {**_GROUPED, "num_key_value_heads": 2}),
}
DECODERS = ["llama", "gemma", "gemma2", "gemma3", "mistral", "qwen2", "qwen3"]

_MAMBA2 = {"expand": 2, "head_dim": 16, "num_heads": 4, "n_groups": 1, "state_size": 4, "chunk_size": 8}
# Recurrent and hybrid backbones that Transformers has no classifier for: the tokenizer, and the configuration besides.
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("bare bytes", {"state_size": 4, "time_step_rank": 4}),
    "mamba2": ("bare bytes", _MAMBA2),
    "recurrent_gemma": ("gemma", {"num_key_value_heads": 1, "attention_window_size": 16, "num_hidden_layers": 3}),
}


def tiny_config(kind: str, vocab_size: int) -> PretrainedConfig:
    """The configuration of a tiny model of one of the ``KINDS``, without dropout."""
    model_type, _, options = KINDS[kind]
    return AutoConfig.for_model(model_type, vocab_size=vocab_size, num_labels=1, **{**_SIZES, **options})


def tiny_model(
    kind: str, *, num_labels: int = 1, seed: int = 0, spread: float = 0.3
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny model and its tokenizer.

    Args:
        kind: One of the ``KINDS``: encoders, and decoders with a score head.
        num_labels: Logits.
        seed: Of the weights.
        spread: Standard deviation of every weight matrix.
    """
    tokenizer = TOKENIZERS[KINDS[kind][1]]()
    config = tiny_config(kind, len(tokenizer))
    config.num_labels = num_labels
    torch.manual_seed(seed)
    return _spread_out(AutoModelForSequenceClassification.from_config(config), spread), tokenizer


def tiny_recurrent_model(
    kind: str, *, seed: int = 0, spread: float = 0.3
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny language model of one of the ``RECURRENT`` kinds and its tokenizer, as such models are published."""
    name, options = RECURRENT[kind]
    tokenizer = TOKENIZERS[name]()
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**_SIZES, **options})
    torch.manual_seed(seed)
    return _spread_out(AutoModelForCausalLM.from_config(config), spread), tokenizer


def _spread_out(model: PreTrainedModel, spread: float) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=spread)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


PAIRS = [(query, passage) for query in TEXTS[:3] for passage in TEXTS] + [
    (TEXTS[0], TEXTS[1] * 6),  # a passage that does not fit
    (TEXTS[1] * 6, TEXTS[0]),  # a query that does not fit
    (TEXTS[1] * 6, TEXTS[0] * 6),  # neither
    (TEXTS[2], ""),
    ("water", "fire"),
]
