"""Merging: the weighted average, or the SLERP, of checkpoints of one base, file by file, by mergekit's arithmetic."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.adapters import base_of_adapter
from rerank_trainer.models.checkpoint import MODULES
from rerank_trainer.models.export import CHECK_PAIRS
from rerank_trainer.models.families import family_of, prompt_of
from rerank_trainer.models.heads import Head
from rerank_trainer.models.loading import load_tokenizer
from rerank_trainer.models.peers import stored_json
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.verify import verify_checkpoint

logger = logging.getLogger(__name__)

Merge: TypeAlias = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]

METHODS = {"average": "linear", "slerp": "slerp"}  # ours, and mergekit's names
_SETTINGS = (".json", ".jinja", ".txt", ".model")  # ends of the files beside the weights
# What a configuration says of where its weights come from, and not of how they score.
_ORIGIN = ("_name_or_path", "transformers_version", "dtype", "sentence_transformers", "rerank_trainer", "use_cache")


def merge_checkpoints(
    names: Sequence[str | Path],
    folder: str | Path,
    *,
    method: str = "average",
    weights: Sequence[float] | None = None,
    pairs: Sequence[tuple[str, str]] = CHECK_PAIRS,
    head: str | Head = "auto",
    revision: str | None = None,
    token: str | None = None,
) -> Reranker:
    """The reranker that a folder now holds: its weights lie between those of checkpoints of one base.

    The average of fine-tuned weights is that of `model soups <https://arxiv.org/abs/2203.05482>`_; SLERP, between two,
    goes along the arc from one tensor to the other (``sin((1-t)w)/sin(w) a + sin(tw)/sin(w) b``, w the angle between
    them), as `Qwen3's rerankers <https://arxiv.org/abs/2506.05176>`_ end their training. One file of tensors at a time
    is in memory, computed in float32 and written in the type of the first checkpoint. Adapters are merged into their
    base before, which is exact for adapters of any kind and rank. The result is verified like any other checkpoint.

    Args:
        names: Folders or Hub ids of rerankers or adapters. Prompt, tokenizer and lengths are taken from the first.
        folder: Where to write.
        method: "average" or "slerp".
        weights: The share of each, in the order of the names; divided by their sum. None gives equal shares.
        pairs: Some (query, passage) pairs to verify with.
        head: How they score, as in :meth:`Reranker.from_pretrained`.
        revision: Branch, tag or commit of all Hub ids.
        token: Hub token.

    Raises:
        ValueError: If there are too few checkpoints, weights do not fit, or configuration, tensors, tokenizers, prompts
            or answers differ, with what differs.
        ImportError: If mergekit is missing.

    >>> merge_checkpoints(["out/checkpoint-400", "out/checkpoint-500"], "merged", method="slerp")  # doctest: +SKIP
    """
    sought = [str(name) for name in names]
    shares = _shares(sought, method, weights)
    merge = _mergekit(method, shares)
    hub = {key: value for key, value in {"revision": revision, "token": token}.items() if value is not None}
    _refuse_unlike_bases(sought, hub)
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=Path(folder).parent, prefix="merging-") as scratch:
        wholes = [_whole_folder(name, Path(scratch, str(i)), head=head, hub=hub) for i, name in enumerate(sought)]
        sources = [_Source.read(*source, head=head, hub=hub) for source in zip(sought, wholes, strict=True)]
        for other in sources[1:]:
            sources[0].refuse_unlike(other, pairs)
        _write_merged(sources, Path(scratch, "merged"), merge)
        how: dict[str, Any] = {"head": sources[0].head, "prompt": sources[0].prompt, "dtype": "auto", "device": "cpu"}
        reranker = Reranker.from_pretrained(Path(scratch, "merged"), **how)
        if reranker.fresh_parameters:
            raise ValueError(f"{sought[0]} has no trained {list(reranker.fresh_parameters)}: it is no reranker yet")
        reranker.save_pretrained(folder)
    verify_checkpoint(folder, reranker, pairs)
    logger.info("%s: the %s of %s with the shares %s", folder, method, sought, [round(share, 4) for share in shares])
    return reranker


def _shares(names: Sequence[str], method: str, weights: Sequence[float] | None) -> list[float]:
    """The weights with a sum of 1."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {list(METHODS)}")
    if len(names) < 2 or (method == "slerp" and len(names) != 2):
        wanted = "exactly two checkpoints; merge its result with the next" if method == "slerp" else "two or more"
        raise ValueError(f"method={method!r} takes {wanted}, found {len(names)}: {list(names)}")
    weights = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(names) or not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise ValueError(f"weights={weights}: expected one for each of {len(names)} checkpoints, 0 or more, not all 0")
    return [weight / sum(weights) for weight in weights]


def _mergekit(method: str, shares: Sequence[float]) -> Merge:
    """What makes one state of many, in float32."""
    try:
        from mergekit.merge_methods import merge_state_dicts
    except ImportError as error:
        raise ImportError('merging needs mergekit: pip install "rerank_trainer[merge]"') from error
    how = {"base": 0, "parameters": {"t": shares[1]}} if method == "slerp" else {"parameters": {"weight": shares}}
    return partial(merge_state_dicts, method=METHODS[method], dtype=torch.float32, **how)


def _refuse_unlike_bases(names: Sequence[str], hub: dict[str, Any]) -> None:
    adapters = {name: base_of_adapter(name, hub) for name in names}
    bases = {name: str(adapter.base_model_name_or_path) for name, adapter in adapters.items() if adapter is not None}
    if len(set(bases.values())) > 1:
        raise ValueError(f"the adapters stand on unlike bases, {bases}. Merge adapters of one base.")


def _whole_folder(name: str, scratch: Path, *, head: str | Head, hub: dict[str, Any]) -> Path:
    """A folder on this machine with whole weights."""
    if base_of_adapter(name, hub) is not None:
        Reranker.from_pretrained(name, head=head, dtype="auto", device="cpu", **hub).save_merged(scratch)
        return scratch
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=["*.safetensors", *(f"*{end}" for end in _SETTINGS)], **hub))


@dataclass(frozen=True)
class _Source:
    """A whole checkpoint: where each of its tensors stands, and all else that its score depends on."""

    name: str
    folder: Path
    places: Mapping[str, tuple[str, tuple[int, ...]]]  # of each tensor, named with its part: its file, and its shape
    config: dict[str, Any]
    modules: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    head: Head
    prompt: Prompt | None

    @classmethod
    def read(cls, name: str, folder: Path, *, head: str | Head, hub: dict[str, Any]) -> _Source:
        family, answer = family_of(name, head=head, hub=hub)
        tokenizer = load_tokenizer(str(folder))
        fitted = family.head
        if isinstance(fitted, TokenLogitHead):
            fitted = fitted.with_ids(tokenizer)
        config = {
            key: value for key, value in AutoConfig.from_pretrained(folder).to_dict().items() if key not in _ORIGIN
        }
        modules = stored_json(str(folder), MODULES, {}) or []
        parts = [module["path"] for module in modules]
        settings = {part: stored_json(str(folder), f"{part}/config.json", {}) for part in parts if part}
        places = {}
        for part in dict.fromkeys(["", *parts]):
            for file in sorted((folder / part).glob("*.safetensors")):
                with safe_open(file, "pt") as tensors:
                    for key in tensors.keys():
                        shape = tuple(tensors.get_slice(key).get_shape())
                        places[f"{part}:{key}"] = (str(file.relative_to(folder)), shape)
        if not places:
            raise ValueError(f"{name} has no safetensors, and pickled weights are not merged. Save it as safetensors.")
        prompt = prompt_of(family, answer, tokenizer)
        return cls(name, folder, places, config, settings, tokenizer, fitted, prompt)

    @property
    def files(self) -> list[str]:
        """The files with tensors."""
        return list(dict.fromkeys(file for file, _ in self.places.values()))

    def refuse_unlike(self, other: _Source, pairs: Sequence[tuple[str, str]]) -> None:
        """Refuse a checkpoint whose weights mean another thing.

        Raises:
            ValueError: With what differs.
        """
        ours, theirs = self.places, other.places
        shapes = {key: (ours[key][1], theirs[key][1]) for key in ours.keys() & theirs.keys()}
        unlike = {
            "configuration": _differences(self.config, other.config),
            "modules": _differences(self.modules, other.modules),
            "tensors": sorted(ours.keys() ^ theirs.keys())[:3],
            "shapes": [f"{key} {pair}" for key, pair in shapes.items() if pair[0] != pair[1]][:3],
            "head": [] if self.head == other.head else [str(self.head), str(other.head)],
            "prompt": [] if self.prompt == other.prompt else [str(self.prompt), str(other.prompt)],
            "tokenizer": _unlike_tokens(self.tokenizer, other.tokenizer, pairs),
        }
        found = [f"{what}: {', '.join(said)}" for what, said in unlike.items() if said]
        if found:
            raise ValueError(
                f"{self.name} and {other.name} cannot be merged, they differ in {'; '.join(found)}. Merge checkpoints "
                "that were trained from one model."
            )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return [f"{key} {ours.get(key)!r} and {theirs.get(key)!r}" for key in keys]


def _unlike_tokens(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[str]:
    if ours.get_vocab() != theirs.get_vocab():
        unlike = len(ours.get_vocab().items() ^ theirs.get_vocab().items())
        return [f"{unlike} entries of the vocabulary"]
    if any(ours(*pair)["input_ids"] != theirs(*pair)["input_ids"] for pair in pairs):
        return ["how texts are cut into tokens"]
    return []


def _write_merged(sources: Sequence[_Source], target: Path, merge: Merge) -> None:
    """Write what Transformers reads of the merged checkpoint: all but the weights is the first one's."""
    first = sources[0]
    for part in ["", *first.modules]:
        (target / part).mkdir()
        for file in (first.folder / part).iterdir():
            if file.is_file() and file.suffix in _SETTINGS:
                shutil.copyfile(file, target / part / file.name)
    for place in first.files:
        with _tensors(sources, place) as states:
            merged = merge(states)
            typed = {key: tensor.to(states[0][key].dtype) for key, tensor in merged.items()}
        save_file(typed, target / place, metadata={"format": "pt"})


@contextmanager
def _tensors(sources: Sequence[_Source], file: str) -> Iterator[list[dict[str, Tensor]]]:
    """The tensors of one of the first checkpoint's files, and those of the others by the same names, in any file."""
    keys = [key for key, (place, _) in sources[0].places.items() if place == file]
    with ExitStack() as stack:
        states = []
        for source in sources:
            opened: dict[str, Any] = {}
            state = {}
            for key in keys:
                place = source.places[key][0]
                if place not in opened:
                    opened[place] = stack.enter_context(safe_open(source.folder / place, "pt"))
                name = key.partition(":")[2]
                state[name] = opened[place].get_tensor(name)
            states.append(state)
        yield states
