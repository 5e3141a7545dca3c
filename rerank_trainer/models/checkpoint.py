"""Checkpoints: the files beside the weights, so that every loader reads the same scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDENTITY = "torch.nn.modules.linear.Identity"  # the name by which sentence-transformers knows "no activation"
OLD_ACTIVATION = "sbert_ce_default_activation_function"  # where its versions before 4 wrote the activation
README = "README.md"  # the model card
MODULES = "modules.json"  # files of sentence-transformers: its modules, the first of them, and the model as a whole
TRANSFORMER_SETTINGS = "sentence_bert_config.json"
MODEL_SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
_LOGIT_SCORE_FOLDER = "1_LogitScore"
# how sentence-transformers runs a model whose logits are the scores, or tokens' logits
_LOGITS = {"method": "forward", "method_output_name": "logits"}
_CLASSIFIER = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": _LOGITS},
    "module_output_name": "scores",
}
_LANGUAGE_MODEL = {
    "transformer_task": "text-generation",
    "modality_config": {"text": _LOGITS},
    "module_output_name": "causal_logits",
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
    has_prompt: bool = False,
    transformer: Mapping[str, Any] = _CLASSIFIER,
    modules: Sequence[tuple[str, str]] = (),
    in_float32: Sequence[str] = (),
    base_config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write what sentence-transformers reads beside the Hugging Face files.

    Raw logits; pairs as plain text, or in the tokenizer's chat template; and the length limit where
    sentence-transformers and text-embeddings-inference look for it.

    Args:
        folder: A folder that holds the model, or an adapter, and the tokenizer already.
        max_length: Tokens of a row.
        has_prompt: Whether pairs are written by the tokenizer's chat template.
        transformer: How sentence-transformers runs the model; by default its logits are the scores.
        modules: Folder of each module behind the model, and its class by its full name.
        in_float32: Layers that compute in float32 whatever the type of the weights.
        base_config: For an adapter, whose folder has no ``config.json``: what its base's must say to be opened as it
            was, such as ``num_labels``.
        settings: For an adapter: what only our own loader reads, see ``peers.stored_settings``.
    """
    folder = Path(folder)
    chain = [("", _TRANSFORMER), *modules]
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(chain)]
    _write(folder / MODULES, entries)
    modalities = dict(transformer["modality_config"])
    if has_prompt:
        modalities["message"] = {**modalities["text"], "format": "flat"}
    base = {} if base_config is None else {"config_kwargs": dict(base_config)}
    how = {**transformer, "modality_config": modalities, "max_seq_length": max_length, **base}
    _write(folder / TRANSFORMER_SETTINGS, how)
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


def write_logit_score(folder: str | Path, answers: Sequence[int]) -> dict[str, Any]:
    """Write the module that reads a language model's answer; back comes what :func:`write_loader_files` must be told.

    Of a language model with an encoder sentence-transformers knows no chain: it is told the one of a causal model,
    which it refuses to load by name, where without it a fresh head would score.

    Args:
        folder: A folder.
        answers: Ids of the tokens with which the model answers: "relevant", then the opposite if there is one.
    """
    tokens = dict(zip(("true_token_id", "false_token_id"), [*answers, None], strict=False))
    Path(folder, _LOGIT_SCORE_FOLDER).mkdir(exist_ok=True)
    _write(Path(folder, _LOGIT_SCORE_FOLDER, "config.json"), {**tokens, "module_input_name": "causal_logits"})
    return {"transformer": _LANGUAGE_MODEL, "modules": [(_LOGIT_SCORE_FOLDER, _LOGIT_SCORE)]}


def copy_loader_files(source: str | Path, target: str | Path) -> None:
    """Copy what loaders read beside weights and tokenizer: folders of modules, and code that the model came with.

    Args:
        source: A saved reranker.
        target: A folder.
    """
    source, target = Path(source), Path(target)
    code = [path.name for path in source.glob("*.py")]
    for name in (MODULES, TRANSFORMER_SETTINGS, MODEL_SETTINGS, *code):
        shutil.copyfile(source / name, target / name)
    for module in json.loads((source / MODULES).read_text(encoding="utf-8")):
        if module["path"]:
            shutil.copytree(source / module["path"], target / module["path"], dirs_exist_ok=True)


@contextmanager
def keeping_card(folder: str | Path) -> Iterator[None]:
    """Leave the model card of a folder as it was: PEFT writes into it, and names the path of a base that is local."""
    path = Path(folder, README)
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            path.write_bytes(before)
        else:
            path.unlink(missing_ok=True)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
