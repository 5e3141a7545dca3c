"""Tiny models of true architectures, made from configs, initialised so wide that their scores spread."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

TEXTS = [
    "how does a kettle boil water over a fire",
    "the old ship sailed past seven islands in the north",
    "a library lends books, maps and records to everyone",
    "doctors measure the pressure of blood in the arm",
    "rain falls on the hills and fills the river by night",
]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def byte_tokenizer(*, special: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: with [CLS] and [SEP] around the texts as encoders have it, or bare as decoders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["[PAD]", "[CLS]", "[SEP]"] if special else ["<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if not special:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|end|>", padding_side="left", model_max_length=128
        )
    ids = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_config(kind: str, vocab_size: int) -> PretrainedConfig:
    """The configuration of a tiny "bert", "modernbert" or "qwen3" without dropout."""
    if kind == "bert":
        return BertConfig(
            vocab_size=vocab_size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=1, **_SIZES
        )
    if kind == "modernbert":
        return ModernBertConfig(
            vocab_size=vocab_size, num_labels=1, pad_token_id=0, cls_token_id=1, sep_token_id=2, **_SIZES
        )
    return Qwen3Config(vocab_size=vocab_size, num_key_value_heads=2, head_dim=16, num_labels=1, **_SIZES)


def tiny_model(
    kind: str, *, num_labels: int = 1, seed: int = 0, spread: float = 0.3
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny model and its tokenizer.

    Args:
        kind: "bert", "modernbert" (encoders) or "qwen3" (a decoder with a score head).
        num_labels: Logits.
        seed: Of the weights.
        spread: Standard deviation of every weight matrix.
    """
    tokenizer = byte_tokenizer(special=kind != "qwen3")
    config = tiny_config(kind, len(tokenizer))
    config.num_labels = num_labels
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=spread)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), tokenizer


PAIRS = [(query, passage) for query in TEXTS[:3] for passage in TEXTS] + [
    (TEXTS[0], TEXTS[1] * 6),  # a passage that does not fit
    (TEXTS[2], ""),
    ("water", "fire"),
]
