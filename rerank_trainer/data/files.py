"""Files: rows and tables of texts from a file or the Hub, from the kinds of files that hold nothing but data.

Pickles and scripts are not read. A file of NeMo names the corpus of its ids by a path; it is read only inside the
folder of that file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from rerank_trainer.data.shards import is_shard_folder, shard_files

logger = logging.getLogger(__name__)

Source: TypeAlias = datasets.Dataset | str | os.PathLike[str]

# Only an empty cell is missing: pandas would also take the texts "None", "NA" or "null" for missing ones.
_CSV = {"keep_default_na": False, "na_values": [""]}
_READERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", _CSV | {"sep": "\t"}),
}

# Where a data set on the Hub keeps its tables: the names of configurations and splits, of which the first is taken.
_TABLES = {"queries": ("queries", "query"), "corpus": ("corpus", "documents", "passages")}
_NEMO = {"corpus", "data"}
_NEMO_METADATA = "merlin_metadata.json"


def file_of(source: str | os.PathLike[str]) -> Path | None:
    """The path of a file of rows, or of a folder of shards; None for what can only be another folder or a Hub id.

    Raises:
        ValueError: It is a file of a kind that is not read.
    """
    path = Path(source)
    if path.suffix.lower() in _READERS or is_shard_folder(path):
        return path
    if path.is_file() or (isinstance(source, os.PathLike) and not path.is_dir()):
        raise ValueError(
            f"{path}: expected a file that ends in {', '.join(_READERS)}, or the id of a data set on the Hub, found "
            f"the ending {path.suffix!r}. Files of other kinds are not read: pickles and scripts could run code. Write "
            "the rows as one of those, for instance with Dataset.to_parquet."
        )
    return None


def read_file(path: Path, split: str, *, corpus: Source | None) -> tuple[datasets.Dataset, Source | None]:
    """The rows of a file, and the corpus of their ids: what is given, else the one that a file of NeMo names, or None.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It cannot be read as what its name says, or names a corpus outside its folder; or it is a folder of
            shards, some of which are missing or damaged.
    """
    rows = _read(_files_of(path), split)
    if set(rows.column_names) != _NEMO:
        return rows, corpus
    if split != "train":
        raise ValueError(f"{path}: a file with a corpus and data is read whole, found split={split!r}. Leave it out.")
    content = json.loads(path.read_text(encoding="utf-8"))
    corpus = _nemo_corpus(content["corpus"], path) if corpus is None else corpus
    return datasets.Dataset.from_list(_nemo_rows(content["data"], path)), corpus


def stream_file(path: Path, split: str) -> datasets.IterableDataset:
    """The rows of a file, read as they are asked for.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is a folder of shards, some of which are missing; their bytes are not compared.
    """
    return _read(_files_of(path, read_all=False), split, streaming=True)


def read_table(source: Source, kind: str, *, token: str | bool | None = None) -> datasets.Dataset:
    """The table of texts ``"queries"`` or ``"corpus"``, from a data set, a file or the Hub.

    Of a data set on the Hub (or in a folder) the configuration and the split of that name are taken, where it has them.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It cannot be read, or none of several splits has such a name.
    """
    if isinstance(source, datasets.Dataset):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"{kind}: expected a datasets.Dataset, a path or the id of a data set on the Hub, found a "
            f"{type(source).__name__}. If it is a dict of splits, give one of them."
        )
    path = file_of(source)
    if path is not None:
        return _read(_files_of(path), "train")
    names = _TABLES[kind]
    configs = datasets.get_dataset_config_names(str(source), token=token)
    config = next((name for name in names if name in configs), None)
    splits = datasets.load_dataset(str(source), config, token=token, cache_dir=cache_of(source))
    split = next((name for name in (*names, "train") if name in splits), None)
    if split is None and len(splits) > 1:
        raise ValueError(
            f"{kind}: expected a split of {str(source)!r} that is named {' or '.join(names)} or 'train', found "
            f"{list(splits)}. Load the one that is meant with datasets.load_dataset and give that."
        )
    return splits[split or next(iter(splits))]


def _files_of(path: Path, *, read_all: bool = True) -> list[Path]:
    return shard_files(path, read_all=read_all) if is_shard_folder(path) else [path]


def cache_of(source: str | os.PathLike[str]) -> str | None:
    """Where the tables of a folder are kept: a place that changes with its files. None, the usual one, for the Hub.

    datasets knows the tables of a folder with a card by the folder's and the files' names alone, so it would give those
    of another folder, or of files since replaced.
    """
    path = Path(source).resolve()
    if not path.is_dir():
        return None
    names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    files = [path / name for name in sorted(names) if not any(part.startswith(".") for part in name.parts)]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return os.path.join(datasets.config.HF_DATASETS_CACHE, f"folder-{Hasher.hash(states)}")


def _read(paths: list[Path], split: str, *, streaming: bool = False) -> Any:
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there (a path that ends in {path.suffix} is taken for a file)")
    reader, options = _READERS[paths[0].suffix.lower()]
    names = [str(path) for path in paths]
    try:
        return datasets.load_dataset(reader, data_files=names, split=split, streaming=streaming, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"{', '.join(names)} could not be read as {reader}: {error.__cause__}") from error


def _nemo_rows(rows: Any, path: Path) -> list[dict[str, Any]]:
    """The rows with every passage as ``{id}``: NeMo allows plain ids beside those."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects as data, found {str(rows)[:80]!r}. Correct the file.")
    names = ("pos_doc", "neg_doc")
    return [row | {name: _nemo_ids(row, name, number, path) for name in names} for number, row in enumerate(rows)]


def _nemo_ids(row: Mapping[str, Any], name: str, number: int, path: Path) -> list[dict[str, str]]:
    found = row.get(name)
    entries = [entry.get("id") if isinstance(entry, dict) else entry for entry in _listed(found)]
    if not entries or not all(isinstance(entry, str | int) for entry in entries):
        raise ValueError(
            f"{path}, row {number} of data, {name!r}: expected ids or objects with an id, one or more, found "
            f"{str(found)[:80]!r}. Correct or leave out the row."
        )
    return [{"id": str(entry)} for entry in entries]


def _nemo_corpus(corpora: Any, path: Path) -> datasets.Dataset:
    """The one corpus that the file names, from a file or a folder of files of one kind inside the file's folder."""
    found = [entry.get("path") if isinstance(entry, dict) else None for entry in _listed(corpora)]
    if len(found) != 1 or not isinstance(found[0], str):
        raise ValueError(
            f"{path}: expected one corpus, {{'path': ...}}, found {str(corpora)[:80]!r}. Split the file by corpus_id."
        )
    corpus = _inside(path.parent, found[0], path)
    logger.info("%s names the corpus %s", path, corpus)
    if not corpus.is_dir():
        if file_of(corpus) is None or not corpus.is_file():
            raise FileNotFoundError(f"{corpus}, the corpus of {path}, is not there")
        return _read([corpus], "train")
    files = sorted(file for file in corpus.iterdir() if file.suffix in _READERS and file.name != _NEMO_METADATA)
    files = [_inside(path.parent, str(file), path) for file in files]
    if len({file.suffix for file in files}) != 1:
        raise ValueError(
            f"{corpus}, the corpus of {path}: expected files of one kind that ends in {', '.join(_READERS)}, found "
            f"{[file.name for file in files]}. Give corpus= to say which."
        )
    return _read(files, "train")


def _inside(folder: Path, name: str, path: Path) -> Path:
    """The place that a name in a file means, which has to be inside a folder: whoever wrote the file chose the name."""
    resolved, allowed = (folder / name).resolve(), folder.resolve()
    if not resolved.is_relative_to(allowed):
        raise ValueError(
            f"{path} names the corpus {name!r}, which is {resolved}: expected a place inside {allowed}, the folder of "
            "the file. Nothing outside is read for a file's sake; if you trust it, give its path as corpus=."
        )
    return resolved


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
