"""Leaves: the flat columns that stand inside nested ones, each under a name of its own, read from Arrow batches.

``positive_passages`` that holds a list of ``{docid, title, text}`` has the leaves ``positive_passages.docid``,
``positive_passages.title`` and ``positive_passages.text``, each a list, as ``Dataset.flatten`` of the datasets library
would name them. A conversation, which is a list of messages ``{role, content}``, has three: ``.user`` and ``.system``,
the texts of its messages of that role, and ``.content``, the text of its only message.
"""

from __future__ import annotations

import ast
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from rerank_trainer.data.rankings import read_permutation

_MESSAGE = {"role", "content"}

# A title stands before its text, with a space between.
TITLES = {"title": "passage", "titles": "passages", "pos_titles": "pos", "neg_titles": "neg"}


def leaf_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """The type of each flat column and each leaf; a column's own name goes before that of an equal leaf.

    >>> text = datasets.Value("string")
    >>> leaf_features({"query": text, "hits": datasets.List({"content": text, "label": datasets.Value("int64")})})
    {'query': Value('string'), 'hits.content': List(Value('string')), 'hits.label': List(Value('int64'))}
    """
    leaves: dict[str, Any] = {}
    for name, feature in features.items():
        leaves |= {f"{name}.{field}": leaf for field, leaf in _fields(feature).items()} or {name: feature}
    return leaves | {name: feature for name, feature in features.items() if name in leaves}


def _fields(feature: Any) -> dict[str, Any]:
    if isinstance(feature, dict):
        return dict(feature)
    if not is_list(feature):
        return {}
    entry = feature.feature
    if isinstance(entry, dict):
        if entry.keys() >= _MESSAGE:
            return dict.fromkeys(("user", "system", "content"), entry["content"])
        return {field: datasets.List(leaf) for field, leaf in entry.items()}
    if is_list(entry) and isinstance(entry.feature, dict) and entry.feature.keys() >= _MESSAGE:
        return {"content": datasets.List(entry.feature["content"])}
    return {}


def unused_leaves(features: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The flat columns and leaves that are not among these; those of a conversation count as one.

    >>> text = datasets.Value("string")
    >>> unused_leaves({"query": text, "hits": datasets.List({"content": text, "url": text})}, ["query", "hits.content"])
    ['hits.url']
    """
    used = set(names)
    unused = []
    for name, feature in features.items():
        leaves = [f"{name}.{field}" for field in _fields(feature)]
        is_conversation = f"{name}.content" in leaves and f"{name}.user" in leaves
        if not used & {name, *leaves} and (is_conversation or not leaves):
            unused.append(name)
        elif not is_conversation and name not in used:
            unused += [leaf for leaf in leaves if leaf not in used]
    return unused


def is_list(feature: Any) -> bool:
    """Whether a column of this type holds lists."""
    return isinstance(feature, datasets.List | datasets.LargeList)


def is_json(feature: Any) -> bool:
    """Whether the rows of a column are of unlike types: the readers of the datasets library keep such as JSON."""
    return type(feature).__name__ == "Json"


def columns_of(names: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Those of the columns that hold these flat columns and leaves.

    >>> columns_of(["query", "hits.content", "hits.label"], ["hits", "query", "url"])
    ['query', 'hits']
    """
    present = set(columns)
    return list(dict.fromkeys(name if name in present else name.rpartition(".")[0] for name in names))


def read_columns(table: Any, roles: Mapping[str, str], *, first_row: int = 0) -> dict[str, Any]:
    """The Arrow array of each flat column or leaf, as its role wants it: titles joined to texts, lists as lists.

    Args:
        table: A batch of rows, a ``pyarrow.Table``.
        roles: Flat column or leaf to role. Those that are titles come back inside the texts they stand before.
        first_row: The number of the table's first row, for messages.

    Raises:
        ValueError: A conversation has not the messages that it should have, or a text holds no list.
    """
    columns = {name: _leaf(table, name, first_row) for name in roles}
    for name, role in roles.items():
        written = _written(columns[name], role)
        if written is not None:
            columns[name] = _lists_of(columns[name], written, name, first_row)
    named = {role: name for name, role in roles.items()}
    for title, text in TITLES.items():
        if title in named:
            titles = columns.pop(named[title])
            columns[named[text]] = _with_titles(titles, columns[named[text]])
    return columns


def _leaf(table: Any, name: str, first_row: int) -> Any:
    if name in table.column_names:
        return _chunk(table[name])
    parent, _, field = name.rpartition(".")
    column = _chunk(table[parent])
    if pa.types.is_struct(column.type):
        return pc.struct_field(column, field)
    entry = column.type.value_type
    if not pa.types.is_struct(entry):
        messages = _chunk(pc.list_flatten(column))
        parents = pc.list_parent_indices(column)

        def where_in_list(index: int) -> str:
            row = parents[index].as_py()
            return f"row {first_row + row}, column {parent!r}, entry {index - pc.index(parents, row).as_py()}"

        return _as_lists(column, _texts_of_messages(messages, field, where_in_list))
    if {entry.field(i).name for i in range(entry.num_fields)} >= _MESSAGE:
        return _texts_of_messages(column, field, lambda row: f"row {first_row + row}, column {parent!r}")
    return _as_lists(column, pc.struct_field(pc.list_flatten(column), field))


def _texts_of_messages(column: Any, field: str, where: Callable[[int], str]) -> Any:
    """The text of each conversation's message of a role, or of its only message (``"content"``)."""
    texts = []
    for index, messages in enumerate(column.to_pylist()):
        roles = [message["role"] for message in messages or []]
        if field == "content":
            expected, fits = "one message", len(roles) == 1
        else:
            expected = "one message of the role 'user' and at most one of the role 'system' before it"
            fits = roles in (["user"], ["system", "user"])
        if not fits:
            raise ValueError(
                f"{where(index)}: expected {expected}, found {reprlib.repr(messages)}. Keep those messages or leave "
                "the row out."
            )
        found = [message["content"] for message in messages if field in ("content", message["role"])]
        texts.append(found[0] if found else "")
    return pa.array(texts, pa.string())


def _as_lists(column: Any, values: Any) -> Any:
    """Lists as long as those of ``column``, and null where those are, of other values."""
    lengths = pc.fill_null(pc.cast(pc.list_value_length(column), pa.int32()), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), _chunk(pc.cumulative_sum(lengths))])
    return pa.ListArray.from_arrays(offsets, _chunk(values), mask=pc.is_null(column))


def _with_titles(titles: Any, texts: Any) -> Any:
    if not _is_text(texts.type):
        if pa.types.is_null(texts.type) or not _is_text(texts.type.value_type):
            return texts
        return _as_lists(texts, _with_titles(pc.list_flatten(titles), pc.list_flatten(texts)))
    titles = pc.fill_null(pc.cast(titles, texts.type), "")
    return pc.utf8_trim_whitespace(pc.binary_join_element_wise(titles, texts, pa.scalar(" ", texts.type)))


@dataclass(frozen=True)
class _Written:
    """How the text of a row becomes the list that it stands for."""

    expected: str
    entry: Any
    convert: Callable[[str], list[Any]]


def _written_list(text: str, kinds: Any) -> list[Any]:
    """The list in a text in the notation of JSON or of Python; only literals, nothing is run."""
    try:
        entries = json.loads(text)
    except ValueError:
        entries = ast.literal_eval(text)
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, kinds) for entry in entries):
        raise TypeError("no such list")
    return list(entries)


def _written_ids(text: str) -> list[Any]:
    return [None if entry is None else str(entry) for entry in _written_list(text, str | int | None)]


def _written_numbers(text: str) -> list[Any]:
    return _written_list(text, int | float | None)


def _one_or_more(text: str) -> list[Any]:
    """The texts in the JSON of one text or of a list of them, each as it is or as the ``text`` of an object."""
    found = json.loads(text)
    # The datasets library takes the text "2" for JSON already, and leaves its quotation marks out.
    entries = [text] if isinstance(found, int | float) else found if isinstance(found, list) else [found]
    texts = [entry["text"] if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(entry, str | None) for entry in texts):
        raise TypeError("no texts")
    return texts


_IDS = _Written("a list of ids or a text that holds one, such as '[1, 2]'", pa.string(), _written_ids)
_NUMBERS = _Written("a list of numbers or a text that holds one, such as '[0.5, 1]'", pa.float64(), _written_numbers)
_PLACES = _Written("a list of places or a text such as '[2] > [1] > [3]'", pa.int64(), read_permutation)
_ONE_TEXT = _Written("a text or a list of texts", pa.string(), lambda text: [text])
_UNLIKE = _Written("a text or a list of texts", pa.string(), _one_or_more)


def _written(column: Any, role: str) -> _Written | None:
    """Whether, and how, texts in the column stand for lists that the role wants."""
    if isinstance(column.type, pa.BaseExtensionType):
        return _UNLIKE if role in ("pos", "neg") else None
    of_roles = {
        "candidate_ids": _IDS,
        "labels": _NUMBERS,
        "teacher_scores": _NUMBERS,
        "permutation": _PLACES,
        "pos": _ONE_TEXT,
        "neg": _ONE_TEXT,
    }
    return of_roles.get(role) if _is_text(column.type) else None


def _lists_of(column: Any, written: _Written, name: str, first_row: int) -> Any:
    lists = []
    for row, text in enumerate(column.to_pylist()):
        try:
            lists.append(None if text is None else written.convert(text))
        except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"row {first_row + row}, column {name!r}: expected {written.expected}, found {reprlib.repr(text)}. "
                "Write it so or leave the row out."
            ) from error
    return pa.array(lists, pa.list_(written.entry))


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _chunk(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
