"""Peers: what checkpoints of other libraries say beside their weights, and which of them score otherwise than we do."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import cached_file

from rerank_trainer.models.checkpoint import IDENTITY, OLD_ACTIVATION

logger = logging.getLogger(__name__)

_MODULES = "modules.json"
_TRANSFORMER_SETTINGS = "sentence_bert_config.json"
_MODEL_SETTINGS = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Answer:
    """What a cross-encoder of sentence-transformers says of a prompt and of the tokens that answer it.

    Attributes:
        tokens: Ids of the tokens "relevant" and, where there is one, "not relevant"; empty for a classifier.
        has_messages: Whether the tokenizer's chat template writes the pairs.
        is_structured: Whether it gets contents in typed parts.
        instruction: The instruction that it gets unless told otherwise.
    """

    tokens: tuple[int, ...] = ()
    has_messages: bool = False
    is_structured: bool = False
    instruction: str | None = None


def stored_answer(name: str, hub: dict[str, Any]) -> Answer:
    """What a checkpoint stores of prompt and answer; nothing where no sentence-transformers has written it."""
    settings, modules = _cross_encoder_settings(name, hub), _read(name, _MODULES, hub)
    if settings is None or not modules:
        return Answer()
    message = (_read(name, _TRANSFORMER_SETTINGS, hub) or {}).get("modality_config", {}).get("message")
    tokens: tuple[int, ...] = ()
    if _class_name(modules[-1]) == "LogitScore":
        score = _read(name, f"{modules[-1]['path']}/config.json", hub)
        tokens = tuple(score[key] for key in ("true_token_id", "false_token_id") if score.get(key) is not None)
    return Answer(
        tokens,
        has_messages=message is not None,
        is_structured=message is not None and message.get("format") == "structured",
        instruction=(settings.get("prompts") or {}).get(settings.get("default_prompt_name")),
    )


def stored_architectures(name: str, hub: dict[str, Any]) -> list[str]:
    """The model classes that a checkpoint's configuration names; none for an adapter."""
    return (_read(name, "config.json", hub) or {}).get("architectures") or []


def refuse_foreign(name: str, hub: dict[str, Any]) -> None:
    """Refuse a reranker that its own library scores otherwise than by a logit of a pair of texts or of a prompt.

    Args:
        name: Hub id or folder.
        hub: What finds its files on the Hub: revision, token...

    Raises:
        ValueError: If the score is made by modules behind the transformer (Tevatron's head file, a chain of modules of
            sentence-transformers other than LogitScore), or the texts are changed before they are encoded.
    """
    if _read(name, "reranker_config.json", hub) is not None:
        raise ValueError(
            f"{name} is a Tevatron reranker whose score head is a file of its own, reranker_head.pt, a pickle, which "
            "may run any code and is not read. Load it in Tevatron and save backbone and head as a "
            "...ForSequenceClassification model with num_labels=1."
        )
    settings = _cross_encoder_settings(name, hub)
    modules = _read(name, _MODULES, hub)
    if settings is None or modules is None:
        return
    chain = [_class_name(module) for module in modules]
    if chain[1:] not in ([], ["LogitScore"]):
        raise ValueError(
            f"{name} is a chain of the modules {chain}; only cross-encoders with a sequence classification head, or "
            "with the module LogitScore behind a language model, load. Use its sequence classification export."
        )
    transformer = _read(name, _TRANSFORMER_SETTINGS, hub) or {}
    has_messages = "message" in transformer.get("modality_config", {})
    changes = {
        "default_prompt_name": None if has_messages else settings.get("default_prompt_name"),
        "processing_kwargs": transformer.get("processing_kwargs"),
        "do_lower_case": transformer.get("do_lower_case"),
    }
    found = {key: value for key, value in changes.items() if value}
    if found:
        raise ValueError(
            f"{name} is a cross-encoder of sentence-transformers that changes its texts before it encodes them: "
            f"{found}. Here pairs are encoded as they are, so scores would differ. If that is what you want, load its "
            "model and tokenizer with Transformers and give them to Reranker(model, tokenizer)."
        )


def stored_max_length(name: str, hub: dict[str, Any]) -> int | None:
    """Tokens of a row that a cross-encoder of sentence-transformers stores beside its tokenizer; None without them."""
    if _cross_encoder_settings(name, hub) is None:
        return None
    return (_read(name, _TRANSFORMER_SETTINGS, hub) or {}).get("max_seq_length")


def log_activation(name: str, config: PretrainedConfig, hub: dict[str, Any]) -> None:
    """Say in the log that a stored activation, such as a sigmoid, is not applied: scores here are the logits."""
    stored = (
        (_cross_encoder_settings(name, hub) or {}).get("activation_fn")
        or (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
        or getattr(config, OLD_ACTIVATION, None)
    )
    if stored and stored.rpartition(".")[2] != IDENTITY.rpartition(".")[2]:
        logger.info("%s stores the activation %s, which is not applied: scores here are the logits", name, stored)


def _cross_encoder_settings(name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    settings = _read(name, _MODEL_SETTINGS, hub)
    return settings if settings is not None and settings.get("model_type") == "CrossEncoder" else None


def _class_name(module: dict[str, Any]) -> str:
    """The class of an entry of ``modules.json``, without its module."""
    return str(module["type"]).rpartition(".")[2]


def _read(name: str, file: str, hub: dict[str, Any]) -> Any:
    """The content of a JSON file of a checkpoint; None if there is no such file."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
