"""Checkpoints: the files beside the weights, so that every loader reads the same scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDENTITY = "torch.nn.modules.linear.Identity"  # the name by which sentence-transformers knows "no activation"
OLD_ACTIVATION = "sbert_ce_default_activation_function"  # where its versions before 4 wrote the activation
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
_LOGITS = {"method": "forward", "method_output_name": "logits"}


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
    folder: str | Path, *, max_length: int, has_prompt: bool = False, answers: Sequence[int] = ()
) -> None:
    """Write what sentence-transformers reads beside the Hugging Face files.

    Raw logits; pairs as plain text, or in the tokenizer's chat template; and the length limit where
    sentence-transformers and text-embeddings-inference look for it. Of a language model with an encoder
    sentence-transformers knows no chain: it is told the one of a causal model, which it refuses to load by name, where
    without it a fresh head would score.

    Args:
        folder: A folder that holds the model and tokenizer already.
        max_length: Tokens of a row.
        has_prompt: Whether pairs are written by the tokenizer's chat template.
        answers: Ids of the tokens with which a language model answers: "relevant", then the opposite if there is one.
    """
    folder = Path(folder)
    modules = [("", _TRANSFORMER)]
    if answers:
        modules.append(("1_LogitScore", _LOGIT_SCORE))
        (folder / "1_LogitScore").mkdir(exist_ok=True)
        tokens = dict(zip(("true_token_id", "false_token_id"), [*answers, None], strict=False))
        _write(folder / "1_LogitScore" / "config.json", {**tokens, "module_input_name": "causal_logits"})
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    _write(folder / "modules.json", entries)
    _write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation" if answers else "sequence-classification",
            "modality_config": {"text": _LOGITS, **({"message": {**_LOGITS, "format": "flat"}} if has_prompt else {})},
            "module_output_name": "causal_logits" if answers else "scores",
            "max_seq_length": max_length,
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
        },
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
