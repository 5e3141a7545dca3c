"""Tiny language models of true architectures, made from configs, whose tokenizers know the tokens of an answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GemmaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    T5Tokenizer,
)

from rerank_trainer.models.families import FAMILIES
from tests.tiny_tokenizers import TEXTS, merged_pieces

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
_SLIDING = {**_GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16}

# Each kind: the model type and tokenizer that it is made of, and what its configuration says besides sizes. The models
# with a soft cap or a scale change their logits behind the output layer.
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("qwen3", "chat", {**_GROUPED, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", "chat", {"num_key_value_heads": 1}),
    "gemma": ("gemma", "gemma", _GROUPED),
    "gemma2": ("gemma2", "gemma", {**_SLIDING, "final_logit_softcapping": 8.0}),
    "cohere": ("cohere", "chat", {"num_key_value_heads": 1, "logit_scale": 0.25}),
    "granite": ("granite", "chat", {"num_key_value_heads": 1, "logits_scaling": 4.0}),
    "t5": ("t5", "t5", {}),
}
_T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}

# What the tokenizers are trained on: the prompts, so that they take some hundred tokens, and the answers, often.
_ANSWERS = ["yes", "no", "Yes", "No", "true", "false", "0", "1"]
_PROMPTS = [family.prompt.fill(TEXTS[0], TEXTS[1]) for family in FAMILIES.values() if family.prompt is not None]


@cache
def _corpus() -> list[str]:
    return [*TEXTS, *_PROMPTS * 2, *_ANSWERS * 9]


def language_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer that knows the answers and special tokens of its kind: "chat" (Qwen's), "gemma" or "t5"."""
    options: dict[str, Any] = {"texts": _corpus()}
    if kind == "t5":  # whole words, and characters for all others: a trained one would differ between calls
        words = sorted({f"▁{word}" for text in _corpus() for word in text.split()})
        characters = sorted({"▁", *"".join(words)})
        pieces = [*((word, -5.0) for word in words), *((character, -9.0) for character in characters)]
        special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
        return T5Tokenizer(vocab=[*special, *pieces], extra_ids=12)
    options |= {"byte_level": kind == "chat", "vocab_size": 700}
    if kind == "gemma":
        names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        return merged_pieces(GemmaTokenizer, names, add_bos_token=True, **options)
    tokenizer = merged_pieces(Qwen2Tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **options)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def tiny_language_model(
    kind: str, *, seed: int = 0, spread: float = 0.3, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny language model of one of the ``LANGUAGE_MODELS``, and its tokenizer.

    Args:
        kind: The kind.
        seed: Of the weights.
        spread: Standard deviation of every weight matrix.
        **options: More of its configuration.
    """
    model_type, tokenizer_kind, settings = LANGUAGE_MODELS[kind]
    tokenizer = language_tokenizer(tokenizer_kind)
    tokenizer.model_max_length = 512
    sizes = {**_T5_SIZES, "decoder_start_token_id": 0} if model_type == "t5" else _SIZES
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **{**sizes, **settings, **options})
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=spread)
    return model.eval(), tokenizer


def saved_language_model(kind: str, folder: Path, **options: Any) -> Path:
    """The folder, with model and tokenizer as plain Transformers saves them."""
    model, tokenizer = tiny_language_model(kind, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_scores(folder: Path, texts: list[str], yes: str, no: str | None = None) -> torch.Tensor:
    """The logits of the answers, by a plain forward of Transformers for each text, tokenised as it is."""
    from transformers import AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = tokenizer.get_vocab()
    scores = []
    for text in texts:
        inputs: dict[str, Any] = dict(tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([[config.decoder_start_token_id]])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        scores.append(logits[vocabulary[yes]] - (0 if no is None else logits[vocabulary[no]]))
    return torch.stack(scores)
