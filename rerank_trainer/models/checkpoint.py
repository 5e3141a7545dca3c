"""Checkpoints: the files beside the weights, so that every loader reads the same scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDENTITY = "torch.nn.modules.linear.Identity"  # the name by which sentence-transformers knows "no activation"
OLD_ACTIVATION = "sbert_ce_default_activation_function"  # where its versions before 4 wrote the activation
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"


def mark_config(config: PretrainedConfig, *, query_max_length: int | None) -> None:
    """Put into ``config.json`` what readers look for there: raw logits for older sentence-transformers and vLLM.

    Args:
        config: The model's configuration, changed in place.
        query_max_length: A query budget other than the default, kept for our own loader.
    """
    config.sentence_transformers = {"activation_fn": IDENTITY, "version": _version("sentence-transformers")}
    for stale in (OLD_ACTIVATION, "rerank_trainer"):
        if hasattr(config, stale):
            delattr(config, stale)
    if query_max_length is not None:
        config.rerank_trainer = {"query_max_length": query_max_length}


def write_loader_files(
    folder: str | Path,
    *,
    max_length: int,
    base_config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write what sentence-transformers reads beside the Hugging Face files.

    Plain text pairs (no chat template), raw logits, and the length limit where sentence-transformers and
    text-embeddings-inference look for it.

    Args:
        folder: A folder that holds the model, or an adapter, and the tokenizer already.
        max_length: Tokens of a row.
        base_config: For an adapter, whose folder has no ``config.json``: what its base's must say to be opened as it
            was, such as ``num_labels``.
        settings: For an adapter: what only our own loader reads, see ``peers.stored_settings``.
    """
    folder = Path(folder)
    _write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER}])
    _write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
            "max_seq_length": max_length,
            **({} if base_config is None else {"config_kwargs": dict(base_config)}),
        },
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {
                "sentence_transformers": _version("sentence-transformers"),
                "transformers": _version("transformers"),
                "pytorch": _version("torch"),
            },
            "activation_fn": IDENTITY,
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
            **({} if settings is None else {"rerank_trainer": dict(settings)}),
        },
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
