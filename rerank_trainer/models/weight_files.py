"""Weight files: safetensors are read; pickled weights are refused by name unless they are asked for.

Unpickling a file can run any code that is in it. What is allowed explicitly is still read by ``torch.load`` with
``weights_only=True``, which builds tensors and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import has_file

PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PICKLED_HEAD = "reranker_head.pt"
_REMEDY = (
    "Unpickling can run code that the file holds. Use a revision with safetensors, or convert it once where you trust "
    "it: load it with allow_pickle=True and save it again."
)


def loading_options(model_kwargs: Mapping[str, Any], *, allow_pickle: bool) -> dict[str, Any]:
    """The options of Transformers' ``from_pretrained``, with those that decide about pickles set.

    Raises:
        ValueError: If an option would open pickled weights beside ``allow_pickle``.
    """
    for name in ("use_safetensors", "weights_only"):
        if model_kwargs.get(name) not in (None, True):
            raise ValueError(
                f"{name}={model_kwargs[name]!r} would read pickled weights. Leave it out; pass allow_pickle=True to "
                "read them, with weights_only=True."
            )
    return {**model_kwargs, "use_safetensors": None if allow_pickle else True, "weights_only": True}


@contextmanager
def pickles_refused(name: str, *, config: Any, allow_pickle: bool, hub: Mapping[str, Any]) -> Iterator[None]:
    """Load weights in here: what is pickled is refused by the file's name.

    Args:
        name: Hub id or folder.
        config: The checkpoint's configuration, which may name its weight file.
        allow_pickle: Whether pickled weights may be read.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, where they are given.

    Raises:
        ValueError: Naming the file, and what to do instead.
    """
    if allow_pickle:
        yield
        return
    named = getattr(config, "transformers_weights", None)
    if isinstance(named, str) and not named.endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"config.json of {name} names the weights {named!r}, which are pickled. {_REMEDY}")
    try:
        yield
    except OSError as error:
        found = [file for file in PICKLED_WEIGHTS if _has(name, file, hub)]
        if not found:
            raise
        raise ValueError(
            f"{name} has pickled weights, {found[0]}, and no safetensors beside them. {_REMEDY}"
        ) from error


def refuse_pickled_adapter(name: str, *, allow_pickle: bool, hub: Mapping[str, Any]) -> None:
    """Refuse an adapter whose weights are pickled: PEFT and Transformers fall back on them whatever they are told.

    Raises:
        ValueError: Naming the file, and what to do instead.
    """
    if allow_pickle or not _has(name, "adapter_model.bin", hub) or _has(name, "adapter_model.safetensors", hub):
        return
    raise ValueError(f"{name} has a pickled adapter, adapter_model.bin, and no adapter_model.safetensors. {_REMEDY}")


def refuse_pickled_head(name: str, *, hub: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose score head stands in a pickle beside the weights: it would begin anew, unseen.

    Raises:
        ValueError: Naming the file, and what to do instead.
    """
    if Path(name).is_dir():
        heads = sorted(path.name for end in ("pt", "pth", "bin", "pkl") for path in Path(name).glob(f"*head*.{end}"))
    else:
        heads = [PICKLED_HEAD] if _has(name, PICKLED_HEAD, hub) else []
    if heads:
        raise ValueError(
            f"the weights of {name} have no score head, and {heads[0]} beside them is a pickle, which is never read. "
            "Put the head's tensors into model.safetensors under the model's own names, or load from a copy without "
            "that file to train a fresh head."
        )


def refuse_pickled_module(name: str, path: str, *, hub: Mapping[str, Any]) -> None:
    """Refuse a module of sentence-transformers whose weights are pickled.

    Args:
        name: Hub id or folder.
        path: The module's folder in it.
        hub: As in :func:`pickles_refused`.

    Raises:
        ValueError: Naming the file, and what to do instead.
    """
    file = f"{path}/{PICKLED_WEIGHTS[0]}"
    if _has(name, file, hub) and not _has(name, f"{path}/model.safetensors", hub):
        raise ValueError(f"{name} has pickled weights, {file}, and no safetensors beside them. {_REMEDY}")


def _has(name: str, file: str, hub: Mapping[str, Any]) -> bool:
    return has_file(name, file, **hub)
