"""Peers: what checkpoints of other libraries say beside their weights, and which of them score otherwise than we do."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PretrainedConfig
from transformers.utils import cached_file

from rerank_trainer.models.checkpoint import IDENTITY, MODEL_SETTINGS, MODULES, OLD_ACTIVATION, TRANSFORMER_SETTINGS

logger = logging.getLogger(__name__)

_STATES = "last_hidden_state"
# modules of sentence-transformers that may stand between a backbone and its score
_CHAIN_MODULES = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")


class StoredChain(NamedTuple):
    """Modules that make the score behind a backbone.

    Attributes:
        modules: Class name and folder of each.
        output: What they take from the backbone's output.
        feature: The name under which they take it.
        in_float32: Layers that compute in float32 whatever the type of their weights; "0." is the backbone's.
    """

    modules: tuple[tuple[str, str], ...]
    output: str
    feature: str
    in_float32: tuple[str, ...]


class Answer(NamedTuple):
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


def stored_json(name: str, file: str, hub: dict[str, Any]) -> Any:
    """The content of a JSON file of a checkpoint; None if there is no such file."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def stored_answer(name: str, hub: dict[str, Any]) -> Answer:
    """What a checkpoint stores of prompt and answer; nothing where no sentence-transformers has written it."""
    settings, modules = _cross_encoder_settings(name, hub), stored_json(name, MODULES, hub)
    if settings is None or not modules:
        return Answer()
    message = (stored_json(name, TRANSFORMER_SETTINGS, hub) or {}).get("modality_config", {}).get("message")
    tokens: tuple[int, ...] = ()
    if _class_name(modules[-1]) == "LogitScore":
        score = stored_json(name, f"{modules[-1]['path']}/config.json", hub)
        tokens = tuple(score[key] for key in ("true_token_id", "false_token_id") if score.get(key) is not None)
    return Answer(
        tokens,
        has_messages=message is not None,
        is_structured=message is not None and message.get("format") == "structured",
        instruction=(settings.get("prompts") or {}).get(settings.get("default_prompt_name")),
    )


def stored_architectures(name: str, hub: dict[str, Any]) -> list[str]:
    """The model classes that a checkpoint's configuration names; none for an adapter."""
    return (stored_json(name, "config.json", hub) or {}).get("architectures") or []


def refuse_foreign(name: str, hub: dict[str, Any]) -> None:
    """Refuse a reranker that its own library scores otherwise than by a logit of a pair of texts or of a prompt.

    Args:
        name: Hub id or folder.
        hub: What finds its files on the Hub: revision, token...

    Raises:
        ValueError: If the score is made by a file that is not read (Tevatron's head), or the texts are changed before
            they are encoded (by a prompt that is not the chat template's).
    """
    if stored_json(name, "reranker_config.json", hub) is not None:
        raise ValueError(
            f"{name} is a Tevatron reranker whose score head is a file of its own, reranker_head.pt, a pickle, which "
            "may run any code and is not read. Load it in Tevatron and save backbone and head as a "
            "...ForSequenceClassification model with num_labels=1."
        )
    settings = _cross_encoder_settings(name, hub)
    if settings is None or stored_json(name, MODULES, hub) is None:
        return
    transformer = stored_json(name, TRANSFORMER_SETTINGS, hub) or {}
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


def stored_chain(name: str, hub: dict[str, Any]) -> StoredChain | None:
    """The modules that make a cross-encoder's score behind its backbone; None where the model itself gives a score.

    Raises:
        ValueError: If modules of other kinds stand there, or the backbone does not run as a feature extractor.
    """
    settings, modules = _cross_encoder_settings(name, hub), stored_json(name, MODULES, hub)
    if settings is None or modules is None:
        return None
    kinds = [_class_name(module) for module in modules]
    if kinds[1:] in ([], ["LogitScore"]):  # the second is a language model's, see `stored_answer`
        return None
    transformer = stored_json(name, TRANSFORMER_SETTINGS, hub) or {}
    text = transformer.get("modality_config", {}).get("text") or {"method": "forward", "method_output_name": _STATES}
    task = transformer.get("transformer_task", "feature-extraction")
    loads = (
        task == "feature-extraction"
        and text["method"] == "forward"
        and isinstance(text["method_output_name"], str)
        and "message" not in transformer.get("modality_config", {})
        and kinds[0] == "Transformer"
        and modules[0]["path"] == ""
        and all(kind in _CHAIN_MODULES for kind in kinds[1:])
        and all(module["type"].startswith("sentence_transformers.") for module in modules)
        and all(".." not in module["path"] and not module["path"].startswith("/") for module in modules)
    )
    if not loads:
        raise ValueError(
            f"{name} is a chain of the modules {kinds} (task {task!r}). What loads is a Transformer that extracts "
            f"features, with modules of sentence-transformers behind it that are among {list(_CHAIN_MODULES)}; or one "
            "Transformer with a classification head or the module LogitScore. Use its sequence classification export."
        )
    return StoredChain(
        tuple((kind, module["path"]) for kind, module in zip(kinds[1:], modules[1:], strict=True)),
        output=text["method_output_name"],
        feature=transformer.get("module_output_name", "token_embeddings"),
        in_float32=tuple(settings.get("keep_in_fp32_modules") or ()),
    )


def stored_max_length(name: str, hub: dict[str, Any]) -> int | None:
    """Tokens of a row that a cross-encoder of sentence-transformers stores beside its tokenizer; None without them."""
    if _cross_encoder_settings(name, hub) is None:
        return None
    return (stored_json(name, TRANSFORMER_SETTINGS, hub) or {}).get("max_seq_length")


def stored_settings(name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """What our own adapters store where whole models have their ``config.json``; empty for others'."""
    return dict((stored_json(name, MODEL_SETTINGS, hub) or {}).get("rerank_trainer") or {})


def old_activation(config: Mapping[str, Any]) -> str | None:
    """The activation that a ``config.json`` names, where older sentence-transformers and vLLM look for it."""
    return (config.get("sentence_transformers") or {}).get("activation_fn") or config.get(OLD_ACTIVATION)


def log_activation(name: str, config: PretrainedConfig, hub: dict[str, Any]) -> None:
    """Say in the log that a stored activation, such as a sigmoid, is not applied: scores here are the logits."""
    stored = (_cross_encoder_settings(name, hub) or {}).get("activation_fn") or old_activation(config.to_dict())
    if stored and stored.rpartition(".")[2] != IDENTITY.rpartition(".")[2]:
        logger.info("%s stores the activation %s, which is not applied: scores here are the logits", name, stored)


def _cross_encoder_settings(name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    settings = stored_json(name, MODEL_SETTINGS, hub)
    return settings if settings is not None and settings.get("model_type") == "CrossEncoder" else None


def _class_name(module: dict[str, Any]) -> str:
    """The class of an entry of ``modules.json``, without its module."""
    return str(module["type"]).rpartition(".")[2]
