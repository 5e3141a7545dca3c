"""Tiny tokenizers in the shape of each family: its class, its model, its special tokens around a pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    DebertaV2Tokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

TEXTS = [
    "how does a kettle boil water over a fire",
    "the old ship sailed past seven islands in the north",
    "a library lends books, maps and records to everyone",
    "doctors measure the pressure of blood in the arm",
    "rain falls on the hills and fills the river by night",
]
_LIMIT = 128


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
            tokenizer_object=tokenizer, eos_token="<|end|>", padding_side="left", model_max_length=_LIMIT
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
        model_max_length=_LIMIT,
        model_input_names=["input_ids", "attention_mask"],
    )


def joining_tokenizer() -> PreTrainedTokenizerFast:
    """A decoder's tokenizer that encodes a pair as the one text A+B, so that merges cross the edge between them."""

    class JoiningTokenizer(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
            if isinstance(text, str):
                return super()._encode_plus(text + (text_pair or ""), **options)
            return super()._encode_plus(
                [a + b for a, b in zip(text, text_pair or [""] * len(text), strict=True)], **options
            )

    joining = byte_tokenizer(special=False)
    joining.__class__ = JoiningTokenizer
    return joining


class WordTokenizer(PreTrainedTokenizer):
    """A tokenizer written in Python, whose tokens are words: it has a rule of its own for cutting pairs."""

    def __init__(self, **options: Any) -> None:
        words = sorted({word for text in TEXTS for word in text.split()})
        self.words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        super().__init__(**{**names, "special_tokens_pattern": "cls_sep", **options})

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]


def _word_pieces(kind: type[PreTrainedTokenizerBase], special: Sequence[str]) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return kind(vocab=tokenizer.get_vocab(), model_max_length=_LIMIT)


def _unigrams(kind: type[PreTrainedTokenizerBase], special: Sequence[str], unk: str) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=list(special), unk_token=unk, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return kind(
        vocab=[tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]], model_max_length=_LIMIT
    )


def merged_pieces(
    kind: type[PreTrainedTokenizerBase],
    special: Sequence[str],
    *,
    byte_level: bool,
    texts: Sequence[str] = TEXTS,
    vocab_size: int = 300,
    **options: Any,
) -> PreTrainedTokenizerBase:
    """BPE over bytes (GPT-2's way), or over characters behind a Metaspace with byte tokens to fall back on."""
    tokenizer = Tokenizer(models.BPE())
    fallback = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Metaspace()
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(fallback),
        special_tokens=[*special, *fallback],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return kind(vocab=learned["vocab"], merges=merges, model_max_length=_LIMIT, **options)


_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bytes": lambda: byte_tokenizer(special=True),
    "bare bytes": lambda: byte_tokenizer(special=False),
    "bert": lambda: _word_pieces(BertTokenizer, _BERT),
    "mpnet": lambda: _word_pieces(MPNetTokenizer, ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]),
    "roberta": lambda: merged_pieces(RobertaTokenizer, _ROBERTA, byte_level=True),
    "xlm-roberta": lambda: _unigrams(XLMRobertaTokenizer, _ROBERTA, "<unk>"),
    "deberta-v2": lambda: _unigrams(DebertaV2Tokenizer, ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[UNK]"),
    "llama": lambda: merged_pieces(LlamaTokenizer, ["<unk>", "<s>", "</s>"], byte_level=False, add_bos_token=True),
    "gemma": lambda: merged_pieces(
        GemmaTokenizer, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], byte_level=False, add_bos_token=True
    ),
    "qwen2": lambda: merged_pieces(Qwen2Tokenizer, ["<|endoftext|>"], byte_level=True),
}
