"""Objects: data sets and teachers, from a name or from a mapping of the arguments of a public function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from rerank_trainer.cli.arguments import read_mapping, unknown
from rerank_trainer.data.files import file_of, read_file
from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.ir_collections import load_ir_dataset
from rerank_trainer.data.trec import load_beir, load_trec
from rerank_trainer.models.preview import preview_checkpoint
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.endpoints.budget import Budget
from rerank_trainer.teachers.endpoints.endpoint import EndpointTeacher
from rerank_trainer.trainers.sources import TrainSource

# Whose arguments a mapping holds, by the one that it cannot do without.
_LOADERS: Mapping[str, Callable[..., Any]] = {
    "source": load_groups,
    "folder": load_beir,
    "qrels": load_trec,
    "name": load_ir_dataset,
}


def rows_of(given: Any, where: str) -> Any:
    """The rows of a data set: a name as it is, or the groups that a mapping asks for.

    Raises:
        ValueError: If it is neither, or an argument is not known.
    """
    given = _mapping_or_name(given, where)
    if isinstance(given, str):
        return given
    loader = next((loader for key, loader in _LOADERS.items() if key in given), None)
    if loader is None:
        raise ValueError(
            f"{where}: expected a path, a Hub id or a mapping with one of {list(_LOADERS)}, found {list(given)}"
        )
    return called(loader, given, where)


def raw_rows_of(given: Any, where: str) -> Any:
    """The rows of a file or of a data set on the Hub as they stand, for functions that convert them in their own way.

    What a mapping asks for, and a file whose rows name texts in another, are groups.
    """
    rows = rows_of(given, where)
    if not isinstance(rows, str):
        return rows
    path = file_of(rows)
    if path is None:
        return datasets.load_dataset(rows, split="train")
    table, corpus = read_file(path, "train", corpus=None)
    return table if corpus is None else load_groups(rows)


def groups_of(given: Any, where: str) -> Any:
    """The groups of a data set; see :func:`rows_of`."""
    rows = rows_of(given, where)
    return load_groups(rows) if isinstance(rows, str) else rows


def sets_of(given: Any, where: str, one: Callable[[Any, str], Any] = rows_of) -> Any:
    """One data set or, by name, each of several."""
    given = _mapping_or_name(given, where)
    if isinstance(given, str) or not _LOADERS.keys().isdisjoint(given):
        return one(given, where)
    return {name: one(part, f"{where}, {name}") for name, part in given.items()}


def source_of(given: Any, where: str) -> Any:
    """One of several training sets: rows, or a mapping of the arguments of :class:`TrainSource`."""
    given = _mapping_or_name(given, where)
    if isinstance(given, dict) and "rows" in given:
        return called(TrainSource, {**given, "rows": rows_of(given["rows"], where)}, where)
    return rows_of(given, where)


def teacher_of(given: str, where: str) -> str | EndpointTeacher:
    """A teacher's name as it is, or the endpoint that a mapping describes, whose budget is a mapping as well."""
    options = _mapping_or_name(given, where)
    if isinstance(options, str):
        return options
    if isinstance(options.get("budget"), dict):
        options["budget"] = called(Budget, options["budget"], f"{where}, budget")
    teacher: EndpointTeacher = called(EndpointTeacher, options, where)
    return teacher


def previewed(teacher: str | EndpointTeacher) -> str:
    """A teacher in words, without its weights and without asking it.

    Raises:
        ValueError: If it is no trained reranker.
    """
    if not isinstance(teacher, str):
        return repr(teacher)
    preview = preview_checkpoint(teacher)
    if not preview.has_head:
        raise ValueError(f"teacher {preview}: its scores would be random. Give a trained reranker.")
    return str(preview)


def counted(groups: datasets.Dataset | datasets.IterableDataset) -> str:
    """Groups in words."""
    if isinstance(groups, datasets.IterableDataset):
        return "a stream of groups"
    return f"{len(groups):,} groups, {sum(map(len, groups['passages'])):,} passages"


def reranker_of(name: str, *, device: str | None, **options: Any) -> Reranker:
    """A reranker on its device: the one asked for, or a GPU where there is one."""
    return Reranker.from_pretrained(name, dtype="auto", device=device, **options)


def called(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """What a function returns for arguments by name.

    Raises:
        ValueError: If one is not known or missing, with the nearest names; or as the function does.
    """
    signature = inspect.signature(function)
    for name in arguments:
        if name not in signature.parameters:
            raise ValueError(f"{where}: {unknown(f'argument of {function.__name__}', name, signature.parameters)}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {function.__name__} has {error}") from error
    return function(**arguments)


def _mapping_or_name(given: Any, where: str) -> Any:
    if isinstance(given, str | Path):
        text = str(given)
        return read_mapping(text, where) if text.startswith("{") else text
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected a path, a Hub id or a mapping, found a {type(given).__name__}")
    return given
