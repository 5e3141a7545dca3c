"""Checkpoints: the files beside the weights, so that every loader reads the same scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDENTITY = "torch.nn.modules.linear.Identity"  # the name by which sentence-transformers knows "no activation"
OLD_ACTIVATION = "sbert_ce_default_activation_function"  # where its versions before 4 wrote the activation
MODULES = "modules.json"  # files of sentence-transformers: its modules, the first of them, and the model as a whole
TRANSFORMER_SETTINGS = "sentence_bert_config.json"
MODEL_SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
# how sentence-transformers runs a model whose logits are the scores
_CLASSIFIER = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}


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
    transformer: Mapping[str, Any] = _CLASSIFIER,
    modules: Sequence[tuple[str, type]] = (),
    in_float32: Sequence[str] = (),
    base_config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write what sentence-transformers reads beside the Hugging Face files.

    Plain text pairs (no chat template), raw logits, and the length limit where sentence-transformers and
    text-embeddings-inference look for it.

    Args:
        folder: A folder that holds the model, or an adapter, and the tokenizer already.
        max_length: Tokens of a row.
        transformer: How sentence-transformers runs the model; by default its logits are the scores.
        modules: Folder and class of each module behind the model.
        in_float32: Layers that compute in float32 whatever the type of the weights.
        base_config: For an adapter, whose folder has no ``config.json``: what its base's must say to be opened as it
            was, such as ``num_labels``.
        settings: For an adapter: what only our own loader reads, see ``peers.stored_settings``.
    """
    folder = Path(folder)
    chain = [("", _TRANSFORMER), *((path, f"{kind.__module__}.{kind.__name__}") for path, kind in modules)]
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(chain)]
    _write(folder / MODULES, entries)
    base = {} if base_config is None else {"config_kwargs": dict(base_config)}
    _write(folder / TRANSFORMER_SETTINGS, {**transformer, "max_seq_length": max_length, **base})
    _write(
        folder / MODEL_SETTINGS,
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
            **({"keep_in_fp32_modules": list(in_float32)} if in_float32 else {}),
            **({} if settings is None else {"rerank_trainer": dict(settings)}),
        },
    )


def copy_loader_files(source: str | Path, target: str | Path) -> None:
    """Copy what sentence-transformers reads beside the Hugging Face files, folders of modules among it.

    Args:
        source: A saved reranker.
        target: A folder.
    """
    source, target = Path(source), Path(target)
    for name in (MODULES, TRANSFORMER_SETTINGS, MODEL_SETTINGS):
        shutil.copyfile(source / name, target / name)
    for module in json.loads((source / MODULES).read_text(encoding="utf-8")):
        if module["path"]:
            shutil.copytree(source / module["path"], target / module["path"], dirs_exist_ok=True)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
