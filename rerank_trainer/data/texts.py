"""Texts by id: what a table of queries or a corpus says for an id, and groups of ids filled with their texts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher

from rerank_trainer.data.columns import group_features
from rerank_trainer.data.conversions import Roles
from rerank_trainer.data.files import Source, file_of, read_table
from rerank_trainer.data.layouts.layout import PASSAGE_ID, has, in_words, one
from rerank_trainer.data.leaves import columns_of, read_columns

# What the columns of a table may be called, and what one row of it is.
_IDS = {"queries": ("_id", "query_id", "qid", "question_id", "id"), "corpus": ("_id", *PASSAGE_ID, "pid", "id")}
_TEXTS = {
    "queries": ("text", "query", "question"),
    "corpus": ("text", "passage", "document", "doc", "content"),
}
_ENTRY = {"queries": "query", "corpus": "passage"}
# The roles of columns that name queries and passages, and the roles of those that hold their texts.
_ID_ROLES = {
    "queries": ("query_id",),
    "corpus": ("passage_id", "positive_id", "negative_id", "candidate_ids", "pos_ids", "neg_ids"),
}
_TEXT_ROLES = {"queries": {"query"}, "corpus": {"passage", "passages", "positive", "pos"}}


class TextTable:
    """Texts by id. The texts stay in the table, on disk where it is read from there; ids are looked up in memory.

    Args:
        rows: The table, with one column of ids and one of texts; a column ``title`` stands before a column ``text``.
        kind: ``"queries"`` or ``"corpus"``.

    Raises:
        ValueError: The columns of ids or of texts are not clear.

    >>> rows = datasets.Dataset.from_list([{"_id": "p1", "title": "Sum", "text": "1 + 1 = 2"}])
    >>> table = TextTable(rows, "corpus")
    >>> table.texts(["p1"], table.numbers({"p1", "p2"}))
    ['Sum 1 + 1 = 2']
    """

    def __init__(self, rows: datasets.Dataset, kind: str) -> None:
        features = rows.features
        name = one(features, _IDS[kind], "passage_id")
        text = one(features, tuple(n for n in _TEXTS[kind] if n != name), "passage")
        if name is None or text is None:
            raise ValueError(
                f"{kind}: expected a column of ids ({' | '.join(_IDS[kind])}) and one of texts "
                f"({' | '.join(_TEXTS[kind])}), found {in_words(features)}. Rename them."
            )
        self.kind, self._name, self._text = kind, name, text
        titled = text == "text" and has(features, "title", "title")
        self._roles = {text: "passage"} | ({"title": "title"} if titled else {})
        self._rows = rows.with_format("arrow")

    @property
    def fingerprint(self) -> str:
        """Changes when the table does."""
        fingerprint: str = self._rows._fingerprint
        return fingerprint

    def numbers(self, ids: Container[str] | None) -> dict[str, int]:
        """The row of each of these ids that the table has (None: of all that it has).

        Raises:
            ValueError: It has one of them twice.
        """
        found: dict[str, int] = {}
        number = 0
        for batch in self._rows.select_columns([self._name]).iter(10_000):
            for value in batch[self._name].to_pylist():
                name = str(value)
                if value is not None and (ids is None or name in ids):
                    if name in found:
                        raise ValueError(
                            f"{self.kind}, row {number}: found the id {name!r} for the second time, as in row "
                            f"{found[name]}. Keep one of the two rows."
                        )
                    found[name] = number
                number += 1
        return found

    def texts(self, ids: Sequence[str], numbers: dict[str, int]) -> list[str]:
        """The texts of these ids, whose rows are given.

        Raises:
            ValueError: A text is missing or empty.
        """
        distinct = list(dict.fromkeys(ids))
        found: dict[str, str] = {}
        for name, text in zip(distinct, self._read([numbers[name] for name in distinct]), strict=True):
            if text is None or not text.strip():
                raise ValueError(
                    f"{self.kind}, row {numbers[name]}, column {self._text!r}: expected a text that is not empty for "
                    f"{_ENTRY[self.kind]} {name!r}, found {text!r}. Fill it in or leave out the rows that name it."
                )
            found[name] = text
        return [found[name] for name in ids]

    def all(self, wanted: Container[str] | None) -> dict[str, str]:
        """Id to text of the ids that are wanted (None: all), also those whose text is empty or missing."""
        numbers = self.numbers(wanted)
        rows = list(numbers.values())
        texts: list[str] = []
        for start in range(0, len(rows), 1000):
            texts += [(text or "").strip() for text in self._read(rows[start : start + 1000])]
        return dict(zip(numbers, texts, strict=True))

    def _read(self, numbers: list[int]) -> list[str | None]:
        texts: list[str | None] = read_columns(self._rows[numbers], self._roles)[self._text].to_pylist()
        return texts


def tables_for(roles: Roles, *, queries: Source | None, corpus: Source | None) -> list[TextTable]:
    """The tables that rows with these roles need, opened.

    Raises:
        ValueError: One that is needed is not given, or one that is given is not needed.
    """
    tables = []
    for kind, source in (("queries", queries), ("corpus", corpus)):
        needed = not _TEXT_ROLES[kind] & set(roles.values())
        if needed and source is None:
            raise ValueError(
                f"the rows name their {_texts_in_words(kind)} by id alone (columns {', '.join(roles)}): expected the "
                f"table with their texts as {kind}=, a datasets.Dataset, a path or the id of a data set on the Hub, "
                "found None."
            )
        if not needed and source is not None:
            raise ValueError(
                f"the rows hold the texts of their {_texts_in_words(kind)} (columns {', '.join(roles)}), but {kind}= "
                f"is given: {str(source)[:80]!r}. Leave it out, or remove the columns with the texts."
            )
        if needed:
            tables.append(TextTable(read_table(source, kind), kind))
    return tables


def with_texts(
    groups: datasets.Dataset, rows: datasets.Dataset, roles: Roles, tables: Iterable[TextTable]
) -> datasets.Dataset:
    """The groups with the texts of their ids from these tables.

    Args:
        groups: What was made of the rows, with ids in the place of some texts.
        rows: The rows, which an id that is absent is named by.
        roles: The role of each column of the rows.
        tables: From :func:`tables_for`.

    Raises:
        ValueError: A table lacks an id, or has no text for it.
    """
    texts_of: dict[str, Callable[[Sequence[str]], list[str]]] = {}
    fingerprints = [groups._fingerprint]
    for table in tables:
        numbers = _known(rows, {n: r for n, r in roles.items() if r in _ID_ROLES[table.kind]}, table)
        texts_of[table.kind] = partial(table.texts, numbers=numbers)
        fingerprints.append(table.fingerprint)
    if not texts_of:
        return groups
    return filled(groups, texts_of, Hasher.hash(fingerprints))


def _known(rows: datasets.Dataset, roles: Roles, table: TextTable) -> dict[str, int]:
    """The row in the table of each id that the rows name; refuses ids that it lacks, with the first row of one."""
    first: dict[str, tuple[int, str]] = {}
    number = 0
    for batch in rows.select_columns(columns_of(roles, rows.column_names)).with_format("arrow").iter(1000):
        for name, column in read_columns(batch, roles, first_row=number).items():
            for offset, entries in enumerate(column.to_pylist()):
                for entry in entries if isinstance(entries, list) else [entries]:
                    first.setdefault(str(entry), (number + offset, name))
        number += batch.num_rows
    numbers = table.numbers(first)
    absent = [name for name in first if name not in numbers]
    if absent:
        name = min(absent, key=lambda name: first[name][0])
        row, column = first[name]
        raise ValueError(
            f"row {row}, column {column!r}: {_ENTRY[table.kind]} {name!r} is not in {table.kind}= ({len(absent)} such "
            "ids in all). Add it there, or leave out the rows that name it."
        )
    return numbers


def filled(
    groups: datasets.Dataset, texts_of: dict[str, Callable[[Sequence[str]], list[str]]], fingerprint: str
) -> datasets.Dataset:
    """Groups of ids with their texts: ``query`` by ``query_id`` from ``"queries"``, ``passages`` from ``"corpus"``.

    Args:
        groups: With ``query_id`` for ``"queries"`` and ``passage_ids`` for ``"corpus"``.
        texts_of: For one of the two or both, a function from ids to texts.
        fingerprint: Of the groups and the texts. These are too large to hash, which ``map`` would do without one.
    """
    made = {"queries": "query", "corpus": "passages"}
    features = group_features([*groups.column_names, *(made[kind] for kind in texts_of)])

    def fill(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts: dict[str, list[Any]] = {}
        if "queries" in texts_of:
            texts["query"] = texts_of["queries"](batch["query_id"])
        if "corpus" in texts_of:
            flat = iter(texts_of["corpus"]([name for ids in batch["passage_ids"] for name in ids]))
            texts["passages"] = [[next(flat) for _ in ids] for ids in batch["passage_ids"]]
        return texts

    return groups.map(
        fill,
        batched=True,
        batch_size=100,
        features=features,
        new_fingerprint=fingerprint,
        # On disk also where the ids are in memory, which is where `map` would leave the texts.
        cache_file_name=groups._get_cache_file_path(fingerprint),
        load_from_cache_file=False,
        desc="Filling in texts",
    ).select_columns(list(features))


def read_texts(source: Source, kind: str, wanted: Container[str] | None = None) -> dict[str, str]:
    """Id to text in memory, of the ids that are wanted (None: all); a text may be empty.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: A line or row has no id or text, or an id is there twice.
    """
    path = file_of(source) if isinstance(source, str | os.PathLike) else None
    if path is not None and path.suffix == ".jsonl":
        return _read_lines(path, kind, wanted)
    return TextTable(read_table(source, kind), kind).all(wanted)


def _read_lines(path: Path, kind: str, wanted: Container[str] | None) -> dict[str, str]:
    """As BEIR has it; read line by line, so that a message can name the line."""
    texts: dict[str, str] = {}
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: expected one JSON object, found {line[:80]!r}: {error}") from error
        row = row if isinstance(row, dict) else {}
        name, text = (next((row[key] for key in keys[kind] if key in row), None) for keys in (_IDS, _TEXTS))
        title = row.get("title") if "text" in row else None
        if not isinstance(name, str | int) or not isinstance(title, str | None) or not isinstance(text, str):
            raise ValueError(
                f"{path}:{number}: expected a JSON object with _id and text, and optionally title, found {line[:80]!r}"
            )
        if wanted is None or str(name) in wanted:
            if str(name) in texts:
                raise ValueError(f"{path}:{number}: found _id {name!r} for the second time. Keep one of the two lines.")
            texts[str(name)] = f"{title or ''} {text}".strip()
    return texts


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def _texts_in_words(kind: str) -> str:
    return {"queries": "queries", "corpus": "passages"}[kind]
