"""Usage: how what a reranker saves is opened and called by each library, in pieces of code for its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import BitsAndBytesConfig

from rerank_trainer.data.origins import Origin
from rerank_trainer.models.adapters import adapter_kind
from rerank_trainer.models.loading import dtype_of
from rerank_trainer.models.quantization import num_bits
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.verify import brings_code, loaders

# By whether the model is a language model, and has an encoder and a decoder.
_CLASSES = {
    (False, False): "AutoModelForSequenceClassification",
    (False, True): "AutoModelForSequenceClassification",
    (True, False): "AutoModelForCausalLM",
    (True, True): "AutoModelForSeq2SeqLM",
}


def usage_of(reranker: Reranker, model_id: str, *, base: Origin, is_adapter: bool) -> dict[str, Any]:
    """What the snippets of ``model_card_template.md`` are filled with, and what they depend on.

    Options are code that follows a first argument, such as ``, num_labels=1``; texts in it are quoted. They are those
    under which :mod:`~rerank_trainer.models.verify` opens the same folder.

    Args:
        reranker: Any reranker.
        model_id: What the snippets open: a Hub id or a folder.
        base: Where an adapter's base comes from.
        is_adapter: Whether an adapter was saved, or whole weights.
    """
    head = reranker.head if isinstance(reranker.head, TokenLogitHead) else None
    answers = [] if head is None else head.token_ids
    openers = list(loaders(reranker, is_adapter=is_adapter))
    has_decoder_alone = head is not None and not reranker.model.config.is_encoder_decoder
    bits = num_bits(reranker.model) if is_adapter else None
    code = {"trust_remote_code": "True"} if brings_code(reranker) else {}
    # what a base's own files cannot know of this reranker
    labels = {"num_labels": "1", "pad_token_id": "tokenizer.pad_token_id"} if is_adapter and head is None else {}
    weights = {"dtype": _quoted(str(dtype_of(reranker.model)).removeprefix("torch."))} if is_adapter else {}
    quantized = {"quantization_config": "quantization_config"} if bits else {}
    of_base = ", ".join(f"{_quoted(name)}: {value}" for name, value in (weights | quantized).items())
    return {
        "id": _quoted(model_id),
        "quantization": _constructor(reranker.model.config.quantization_config) if bits else "",
        "loaders": openers,
        "our_options": _options(quantized | code),
        "cross_encoder_options": _options(({"model_kwargs": f"{{{of_base}}}"} if of_base else {}) | code),
        "tokenizer_options": _options(({"padding_side": _quoted("left")} if has_decoder_alone else {}) | code),
        "model_options": _options(labels | weights | quantized | code),
        "model_class": _model_class(reranker, openers),
        "is_seq2seq": head is not None and not has_decoder_alone,
        "answers": [
            {"id": token, "token": _quoted(text)}
            for token, text in zip(answers, reranker.tokenizer.convert_ids_to_tokens(answers), strict=True)
        ],
        "has_prompt": reranker.prompt is not None,
        "takes_instructions": reranker.template.takes_instructions,
        "max_length": reranker.max_length,
        "query_max_length": reranker.query_max_length,
        "adapter_note": _adapter_note(reranker, base, bits) if is_adapter else "",
    }


def _model_class(reranker: Reranker, openers: list[str]) -> str | None:
    """The class that opens the model outside of sentence-transformers; None where there is none."""
    if "peft" in openers:
        return "AutoPeftModelForSequenceClassification"
    if "transformers" not in openers:
        return None
    return _CLASSES[isinstance(reranker.head, TokenLogitHead), reranker.model.config.is_encoder_decoder]


def _adapter_note(reranker: Reranker, base: Origin, bits: int | None) -> str:
    note = f"These are the weights of an adapter ({adapter_kind(reranker.model)}); its base is loaded with it"
    if base.hub_id is None:
        note += (
            ", from a local folder: before others can open this, push that one too, and name it as "
            "`base_model_name_or_path` in `adapter_config.json`"
        )
    if bits is not None:
        note += f". It was trained on a base of {bits} bits; on one in full precision it scores otherwise, by rounding"
    return f"{note}."


def _constructor(config: BitsAndBytesConfig) -> str:
    """The call that makes a configuration of quantised weights, with what differs from the defaults."""
    default, values = BitsAndBytesConfig().to_dict(), config.to_dict()
    changed = {name: value for name, value in values.items() if name[0] != "_" and value != default.get(name)}
    return f"BitsAndBytesConfig({', '.join(f'{name}={_literal(value)}' for name, value in changed.items())})"


def _options(options: Mapping[str, str]) -> str:
    return "".join(f", {name}={value}" for name, value in options.items())


def _literal(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else str(value).replace("'", '"')


def _quoted(text: str) -> str:
    """A text as Python and JSON write it."""
    return json.dumps(text, ensure_ascii=False)
