"""Columns: what a column must hold for each role it can play in a group, and the check that every row holds it.

The checks run on Arrow batches, not row by row, so that a few hundred thousand rows take seconds. Each one stops at the
first fault and names the row, the column (as the user spells it), the value and the remedy. Rows and entries of a list
count from 0.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from rerank_trainer.data.leaves import columns_of, is_json, is_list, read_columns
from rerank_trainer.data.rankings import fault_of_permutation

_BATCH_SIZE = 1000
_NUMBERS = ("int", "uint", "float", "bool")


@dataclass(frozen=True)
class Role:
    """What a column holds when it plays one role.

    Attributes:
        holds: ``"text"`` (not empty), ``"note"`` (a text, also an empty one), ``"id"`` (text or integer), ``"number"``.
        is_list: Whether a row holds a list of them.
        may_be_empty: Whether that list may be empty.
        minimum: The smallest number allowed.
        above: Numbers must be greater than this.
        may_be_text: Whether a text may stand for the list, see :func:`rerank_trainer.data.leaves.read_columns`.
    """

    holds: str
    is_list: bool = False
    may_be_empty: bool = False
    minimum: float | None = None
    above: float | None = None
    may_be_text: bool = False

    @property
    def expected(self) -> str:
        """One value of the role, in the words of an error message."""
        if self.holds != "number":
            return {"text": "a text that is not empty", "note": "a text", "id": "an id"}[self.holds]
        if self.above is not None:
            return f"a finite number above {self.above:g}"
        return "a finite number" if self.minimum is None else f"a finite number of {self.minimum:g} or more"

    @property
    def remedy(self) -> str:
        """What a user can do about a value that is not expected."""
        if self.holds == "number":
            return "Give such a number or leave the row out."
        if self.holds == "note":
            return 'Fill it in (with "" where there is none) or remove the column.'
        return "Fill it in or leave it out, together with what belongs to it."


ROLES: Mapping[str, Role] = {
    "query": Role("text"),
    "passages": Role("text", is_list=True),
    "labels": Role("number", is_list=True, may_be_empty=True, minimum=0),
    "teacher_scores": Role("number", is_list=True, may_be_empty=True),
    # One row of a layout that is not yet a group.
    "passage": Role("text"),
    "label": Role("number", minimum=0),
    "teacher_score": Role("number"),
    "positive": Role("text"),
    "negative": Role("text"),
    "margin": Role("number"),
    "pos": Role("text", is_list=True),
    "neg": Role("text", is_list=True),
    "pos_ids": Role("id", is_list=True),
    "neg_ids": Role("id", is_list=True),
    "pos_scores": Role("number", is_list=True),
    "neg_scores": Role("number", is_list=True),
    # Places of the passages, counted from 1, best first.
    "permutation": Role("number", is_list=True, may_be_text=True),
    "passage_id": Role("id"),
    "positive_id": Role("id"),
    "negative_id": Role("id"),
    "candidate_ids": Role("id", is_list=True),
    # Part of the text that they stand before, so they may be missing: see leaves.TITLES.
    "title": Role("note"),
    "titles": Role("note", is_list=True),
    "pos_titles": Role("note", is_list=True),
    "neg_titles": Role("note", is_list=True),
    # Kept with any group.
    "query_id": Role("id"),
    "passage_ids": Role("id", is_list=True, may_be_empty=True),
    "instruction": Role("note"),
    "source": Role("note"),
    "weight": Role("number", minimum=0),
    "passage_weights": Role("number", is_list=True, may_be_empty=True, minimum=0),
    "missed_gains": Role("number", is_list=True, may_be_empty=True, above=0),
}

_SAME_LENGTH = (
    ("passages", "labels"),
    ("passages", "teacher_scores"),
    ("passages", "passage_ids"),
    ("candidate_ids", "labels"),
    ("candidate_ids", "teacher_scores"),
    ("passages", "passage_weights"),
    ("pos", "pos_scores"),
    ("neg", "neg_scores"),
)

_OF_N_TUPLE = ("positive", "negative", "positive_id", "negative_id")

_TEXT, _FLOAT = datasets.Value("string"), datasets.Value("float64")
GROUP_FEATURES: Mapping[str, Any] = {
    "query": _TEXT,
    "query_id": _TEXT,
    "passages": datasets.List(_TEXT),
    "passage_ids": datasets.List(_TEXT),
    "labels": datasets.List(_FLOAT),
    "teacher_scores": datasets.List(_FLOAT),
    "missed_gains": datasets.List(_FLOAT),
    "instruction": _TEXT,
    "source": _TEXT,
    "weight": _FLOAT,
    "passage_weights": datasets.List(_FLOAT),
}

# Begins the column of one of several teachers, ``teacher_scores_<name>``; it is a role of its own, like that of one.
_OF_NAMED_TEACHER = "teacher_scores_"


def is_of_named_teacher(name: str) -> bool:
    """Whether a column or role is one teacher's of several.

    >>> is_of_named_teacher("teacher_scores_large"), is_of_named_teacher("teacher_scores")
    (True, False)
    """
    return len(name) > len(_OF_NAMED_TEACHER) and name.startswith(_OF_NAMED_TEACHER)


def role_of(name: str) -> Role:
    """What a column must hold in the role of this name."""
    return ROLES["teacher_scores" if is_of_named_teacher(name) else name]


def group_features(columns: Iterable[str]) -> datasets.Features:
    """The features of a data set of groups that has these columns, in the contract's order.

    >>> group_features(["labels", "query"])
    {'query': Value('string'), 'labels': List(Value('float64'))}
    """
    present = dict.fromkeys(columns)
    features = {name: feature for name, feature in GROUP_FEATURES.items() if name in present}
    return datasets.Features(
        features | {name: GROUP_FEATURES["teacher_scores"] for name in present if is_of_named_teacher(name)}
    )


def fits(feature: Any, role: str) -> bool:
    """Whether a column of this type can play the role; a column of nothing but None can, for the check to name it."""
    if _is_null(feature):
        return True
    if role_of(role).is_list:
        if not is_list(feature):
            return role_of(role).may_be_text and fits(feature, "query")
        feature = feature.feature
    if _is_null(feature):
        return True
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        return False
    if role_of(role).holds == "number":
        return str(feature.dtype).startswith(_NUMBERS)
    texts = ("string", "large_string", "int", "uint") if role_of(role).holds == "id" else ("string", "large_string")
    return str(feature.dtype).startswith(texts)


def describe(feature: Any) -> str:
    """The type of a column in words: ``list of string``."""
    if is_list(feature):
        return f"list of {describe(feature.feature)}"
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    return "unlike types" if is_json(feature) else type(feature).__name__


def check_rows(dataset: datasets.Dataset, roles: Mapping[str, str], *, first_row: int = 0) -> None:
    """Check every value of the columns against its role, and the lists of a row against each other.

    Args:
        dataset: Rows of any layout.
        roles: Column or leaf (see :mod:`rerank_trainer.data.leaves`) to role, a key of ``ROLES``.
        first_row: The number of the first row, in a part of a larger data set.

    Raises:
        ValueError: At the first fault, with its row, column and value.
    """
    row = first_row
    for table in dataset.select_columns(columns_of(roles, dataset.column_names)).with_format("arrow").iter(_BATCH_SIZE):
        columns = read_columns(table, roles, first_row=row)
        lengths = {name: _check_column(column, name, roles[name], row) for name, column in columns.items()}
        _check_empty_groups(lengths, roles, row)
        _check_lengths(lengths, roles, row)
        _check_permutations(columns, lengths, roles, row)
        row += table.num_rows


def _check_column(column: Any, name: str, role: str, first_row: int) -> Any:
    """Check one column of a batch; returns the length of each row's list, None for a column without lists."""
    wanted = role_of(role)
    expected = f"a list with {wanted.expected} as each entry" if wanted.is_list else wanted.expected
    row = _first(pc.is_null(column))
    if row is not None:
        raise _fault(first_row + row, f"column {name!r}", expected, None, wanted.remedy)
    if not wanted.is_list:
        row = _first(_unexpected(column, wanted))
        if row is not None:
            raise _fault(first_row + row, f"column {name!r}", expected, column[row].as_py(), wanted.remedy)
        return None
    lengths = pc.list_value_length(column)
    # Whether `passages` may be empty depends on another column: see _check_empty_groups.
    row = None if wanted.may_be_empty or role == "passages" else _first(pc.equal(lengths, 0))
    if row is not None:
        raise _fault(first_row + row, f"column {name!r}", "a list that is not empty", [], _EMPTY_REMEDY)
    values = pc.list_flatten(column)
    index = _first(_unexpected(values, wanted))
    if index is not None:
        parents = pc.list_parent_indices(column)
        row = parents[index].as_py()
        where = f"column {name!r}, entry {index - pc.index(parents, row).as_py()}"
        raise _fault(first_row + row, where, wanted.expected, values[index].as_py(), wanted.remedy)
    return lengths


_EMPTY_REMEDY = "Fill it or leave the row out."


def _check_empty_groups(lengths: Mapping[str, Any], roles: Mapping[str, str], first_row: int) -> None:
    """A group without passages has to say what its candidate list missed: in evaluation such a query counts 0."""
    named = {role: name for name, role in roles.items()}
    if "passages" not in named:
        return
    empty = pc.equal(lengths[named["passages"]], 0)
    if "missed_gains" in named:
        empty = pc.and_(empty, pc.equal(lengths[named["missed_gains"]], 0))
    row = _first(empty)
    if row is not None:
        remedy = _EMPTY_REMEDY + " Only a group with missed_gains (for evaluation) may have no passages."
        raise _fault(first_row + row, f"column {named['passages']!r}", "a list that is not empty", [], remedy)


def _check_lengths(lengths: Mapping[str, Any], roles: Mapping[str, str], first_row: int) -> None:
    named = {role: name for name, role in roles.items()}
    for one, other in (*_SAME_LENGTH, *(("passages", role) for role in named if is_of_named_teacher(role))):
        if one in named and other in named:
            wanted, found = lengths[named[one]], lengths[named[other]]
            row = _first(pc.not_equal(pc.cast(wanted, pa.int64()), pc.cast(found, pa.int64())))
            if row is not None:
                raise ValueError(
                    f"row {first_row + row}: column {named[one]!r} has {wanted[row]} entries but column "
                    f"{named[other]!r} has {found[row]}. Give one for each passage, or leave the row out."
                )
    num_texts = sum(role in _OF_N_TUPLE for role in roles.values())
    for role in ("labels", "teacher_scores"):
        if num_texts and role in named:
            row = _first(pc.not_equal(lengths[named[role]], num_texts))
            if row is not None:
                raise ValueError(
                    f"row {first_row + row}: column {named[role]!r} has {lengths[named[role]][row]} entries, expected "
                    f"{num_texts}: one for the positive and one for each of the {num_texts - 1} negatives. "
                    "Margins over one positive can be written as scores: [0, -margin_1, -margin_2, ...]."
                )


def _check_permutations(
    columns: Mapping[str, Any], lengths: Mapping[str, Any], roles: Mapping[str, str], first_row: int
) -> None:
    named = {role: name for name, role in roles.items()}
    if "permutation" not in named:
        return
    name = named["permutation"]
    nums_passages = lengths[named["passages"]].to_pylist()
    for row, (places, num_passages) in enumerate(zip(columns[name].to_pylist(), nums_passages, strict=True)):
        fault = fault_of_permutation(places, num_passages)
        if fault is not None:
            raise ValueError(
                f"row {first_row + row}, column {name!r}: found {fault}. Name each passage once, by its place in "
                f"{named['passages']!r}, best first; those that are left out share the last rank."
            )


def _unexpected(values: Any, wanted: Role) -> Any:
    """Boolean array: True where a value is not what the role holds."""
    if _is_null_array(values):
        return pc.is_null(values)
    if wanted.holds == "text":
        return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True)
    if wanted.holds in ("id", "note"):
        return pc.is_null(values)
    numbers = pc.cast(values, pa.float64(), safe=False)
    expected = pc.is_finite(numbers)
    if wanted.minimum is not None:
        expected = pc.and_(expected, pc.greater_equal(numbers, wanted.minimum))
    if wanted.above is not None:
        expected = pc.and_(expected, pc.greater(numbers, wanted.above))
    return pc.fill_null(pc.invert(expected), True)


def _first(mask: Any) -> int | None:
    index: int = pc.index(mask, True).as_py()
    return None if index < 0 else index


def _fault(row: int, where: str, expected: str, found: Any, remedy: str) -> ValueError:
    return ValueError(f"row {row}, {where}: expected {expected}, found {reprlib.repr(found)}. {remedy}")


def _is_null(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype == "null"


def _is_null_array(values: Any) -> bool:
    return bool(pa.types.is_null(values.type))
