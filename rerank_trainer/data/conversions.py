"""Conversions: checked rows of one layout in, groups out.

A conversion takes the rows, the role of each column and how negatives are drawn. It drops no row, and it adds no check:
the rows have passed :func:`rerank_trainer.data.columns.check_rows`. Rows that name passages or queries by id become
groups that have the ids alone; :mod:`rerank_trainer.data.texts` gives them their texts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import datasets
import pyarrow as pa
from datasets.fingerprint import Hasher

from rerank_trainer.data.columns import GROUP_FEATURES, group_features, is_of_named_teacher, role_of
from rerank_trainer.data.leaves import TITLES, columns_of, read_columns
from rerank_trainer.data.rankings import minus_ranks

logger = logging.getLogger(__name__)

# Column or leaf -> role, as `role_of` knows it. Only `negative` and `negative_id` may be the role of several columns.
Roles = dict[str, str]

_RANKS = "the order of %s becomes teacher_scores -1, -2, ...: minus the rank, which are no logits"
_ONE_TO_MANY = {
    "passage": "passages",
    "passage_id": "passage_ids",
    "label": "labels",
    "teacher_score": "teacher_scores",
}


@dataclass(frozen=True)
class Draw:
    """How negatives are drawn for rows that have none: how many for each group, by which seed."""

    num_negatives: int
    seed: int


def names_of(roles: Roles, role: str) -> list[str]:
    """The columns that play a role, in their order.

    >>> names_of({"answer": "positive", "negative_1": "negative", "negative_2": "negative"}, "negative")
    ['negative_1', 'negative_2']
    """
    return [name for name, played in roles.items() if played == role]


def rename(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of rows that are groups but for the names, and the types of numbers and ids."""
    if not set(roles) <= set(dataset.column_names):
        return _map(dataset, roles, lambda batch, indices: {}, [])
    groups = dataset.select_columns(list(roles)).with_format(None)
    groups = groups.rename_columns({name: role for name, role in roles.items() if name != role})
    features = group_features(roles.values())
    return groups if groups.features == features else groups.cast(features)


def from_n_tuples(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of the positive, labelled 1, and the negatives, labelled 0; a margin m is teacher scores m and 0."""
    by_id = "positive_id" in roles.values()
    entries = [*names_of(roles, "positive_id"), *names_of(roles, "negative_id")]
    entries = entries or [*names_of(roles, "positive"), *names_of(roles, "negative")]
    made, margins = "passage_ids" if by_id else "passages", names_of(roles, "margin")
    labelled = "labels" in roles.values()

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        of_rows = zip(*(batch[name] for name in entries), strict=True)
        groups: dict[str, list[Any]] = {made: [_converted(of_row, made) for of_row in of_rows]}
        if not labelled:
            groups["labels"] = [[1.0] + [0.0] * (len(entries) - 1)] * len(indices)
        if margins:
            groups["teacher_scores"] = [[float(margin), 0.0] for margin in batch[margins[0]]]
        return groups

    return _map(dataset, roles, convert, [made, "labels", *(["teacher_scores"] if margins else [])])


def from_positives_and_negatives(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of the positives, labelled 1, then the negatives, labelled 0; texts, ids and scores joined alike."""
    column = {role: name for name, role in roles.items()}
    joined = {
        made: (column[positives], column[f"neg{positives.removeprefix('pos')}"])
        for positives, made in (("pos", "passages"), ("pos_ids", "passage_ids"), ("pos_scores", "teacher_scores"))
        if positives in column
    }

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        both = {made: list(zip(batch[pos], batch[neg], strict=True)) for made, (pos, neg) in joined.items()}
        groups = {made: [_converted(pos + neg, made) for pos, neg in of_rows] for made, of_rows in both.items()}
        first = next(iter(both.values()))
        return groups | {"labels": [[1.0] * len(pos) + [0.0] * len(neg) for pos, neg in first]}

    return _map(dataset, roles, convert, [*joined, "labels"])


def from_positive_first(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of listed passages of which the first is the positive, labelled 1, and the others have label 0."""
    passages = names_of(roles, "passages")[0]

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        return {"labels": [[1.0] + [0.0] * (len(texts) - 1) for texts in batch[passages]]}

    return _map(dataset, roles, convert, ["labels"])


def from_candidate_ids(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of listed ids; where nothing says how relevant they are their order does, as teacher scores -1, -2, ..."""
    ids = names_of(roles, "candidate_ids")[0]
    ranked = not {"labels", "teacher_scores"} & set(roles.values())
    if ranked:
        logger.info(_RANKS, ids)

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        groups = {"passage_ids": [_converted(of_row, "passage_ids") for of_row in batch[ids]]}
        if ranked:
            groups["teacher_scores"] = [minus_ranks(range(len(row)), range(len(row))) for row in batch[ids]]
        return groups

    return _map(dataset, roles, convert, ["passage_ids", *(["teacher_scores"] if ranked else [])])


def from_best_first(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of passages that stand in a teacher's order, best first: minus the ranks as teacher scores."""
    passages = names_of(roles, "passages")[0]
    logger.info(_RANKS, passages)

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        places = [range(len(texts)) for texts in batch[passages]]
        return {"teacher_scores": [minus_ranks(of_row, of_row) for of_row in places]}

    return _map(dataset, roles, convert, ["teacher_scores"])


def from_permutations(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of passages whose order is given by their places, counted from 1: minus the ranks as teacher scores."""
    passages, permutation = names_of(roles, "passages")[0], names_of(roles, "permutation")[0]

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        of_rows = zip(batch[permutation], batch[passages], strict=True)
        return {"teacher_scores": [minus_ranks(ranking, range(1, len(texts) + 1)) for ranking, texts in of_rows]}

    return _map(dataset, roles, convert, ["teacher_scores"])


def from_bare_pairs(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of each row's positive, then distinct passages of other rows that are no positive of the row's query."""
    query, positive = names_of(roles, "query")[0], names_of(roles, "positive")[0]
    numbers: dict[str, int] = {}  # passage -> its place among the distinct passages
    positives: dict[str, set[int]] = {}  # query -> the places of its positives
    for batch in dataset.select_columns([query, positive]).with_format(None).iter(10_000):
        for text, passage in zip(batch[query], batch[positive], strict=True):
            positives.setdefault(text, set()).add(numbers.setdefault(passage, len(numbers)))
    passages = list(numbers)
    fewest = len(passages) - max(len(known) for known in positives.values())
    if fewest < draw.num_negatives:
        logger.info(
            "bare pairs: some groups have only %d negatives instead of %d, because the data set has only %d distinct "
            "passages", fewest, draw.num_negatives, len(passages)
        )  # fmt: skip

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        groups: dict[str, list[Any]] = {"passages": [], "labels": []}
        for index, text, passage in zip(indices, batch[query], batch[positive], strict=True):
            known = positives[text]
            # Enough are drawn that num_negatives are left when all positives of the query are among them.
            num_drawn = min(draw.num_negatives + len(known), len(passages))
            drawn = random.Random(f"{draw.seed}-{index}").sample(range(len(passages)), num_drawn)
            negatives = islice((passages[number] for number in drawn if number not in known), draw.num_negatives)
            groups["passages"].append([passage, *negatives])
            groups["labels"].append([1.0] + [0.0] * (len(groups["passages"][-1]) - 1))
        return groups

    fingerprint = Hasher.hash([dataset._fingerprint, "bare pairs", roles, draw])
    return _map(dataset, roles, convert, ["passages", "labels"], fingerprint)


def from_labelled_pairs(dataset: datasets.Dataset, roles: Roles, draw: Draw) -> datasets.Dataset:
    """Groups of the rows of one query, at the place of its first row and in the order of its rows."""
    rows = dataset.select_columns(list(roles)).with_format("arrow")
    played = {name: role for name, role in roles.items() if role not in TITLES}

    def convert(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = _read(rows[list(chain.from_iterable(batch["rows"]))], roles)
        groups = {}
        for name, role in played.items():
            values = iter(pairs[name])
            by_group = [list(islice(values, len(members))) for members in batch["rows"]]
            if role in _ONE_TO_MANY:
                groups[_ONE_TO_MANY[role]] = [_converted(members, _ONE_TO_MANY[role]) for members in by_group]
            else:
                groups[role] = [_converted(members[0], role) for members in by_group]
        return groups

    return datasets.Dataset.from_dict({"rows": _members(rows.with_format(None), played)}).map(
        convert,
        batched=True,
        remove_columns=["rows"],
        features=group_features(_ONE_TO_MANY.get(role, role) for role in played.values()),
        new_fingerprint=Hasher.hash([dataset._fingerprint, "labelled pairs", roles]),
        desc="Collecting the rows of each query",
    )


def _members(rows: datasets.Dataset, roles: Roles) -> list[list[int]]:
    """The rows of each query, told apart by query_id where there is one, else by the query's text."""
    names = [name for name, role in roles.items() if role not in _ONE_TO_MANY]
    key = names.index((names_of(roles, "query_id") or names_of(roles, "query"))[0])
    members: dict[Any, list[int]] = {}
    firsts: dict[Any, tuple[Any, ...]] = {}
    row = 0
    for batch in rows.select_columns(names).iter(10_000):
        for of_query in zip(*(batch[name] for name in names), strict=True):
            first = firsts.setdefault(of_query[key], of_query)
            if of_query != first:
                raise _disagreement(names, row, of_query, members[of_query[key]][0], first)
            members.setdefault(of_query[key], []).append(row)
            row += 1
    return list(members.values())


def _disagreement(
    names: list[str], row: int, found: tuple[Any, ...], first_row: int, first: tuple[Any, ...]
) -> ValueError:
    name, one, other = next(entry for entry in zip(names, first, found, strict=True) if entry[1] != entry[2])
    return ValueError(
        f"row {row}, column {name!r}: expected {one!r}, as in row {first_row} of the same query, found {other!r}. Give "
        "the rows of one query one value, or different queries different values of query_id."
    )


def _map(
    dataset: datasets.Dataset,
    roles: Roles,
    convert: Callable[[dict[str, list[Any]], list[int]], dict[str, list[Any]]],
    made: list[str],
    fingerprint: str | None = None,
) -> datasets.Dataset:
    """Groups row by row: the columns that ``convert`` makes, and beside them those that are a group's column already.

    With a fingerprint (for functions that are too large to hash) nothing is read from the cache of earlier sessions.
    """
    kept = {name: role for name, role in roles.items() if role in GROUP_FEATURES or is_of_named_teacher(role)}
    columns, features = columns_of(roles, dataset.column_names), group_features([*kept.values(), *made])

    def make(table: Any, indices: list[int]) -> Any:
        batch = _read(table, roles)
        groups = {role: [_converted(value, role) for value in batch[name]] for name, role in kept.items()}
        return pa.Table.from_pydict(groups | convert(batch, indices), schema=features.arrow_schema)

    options: dict[str, Any] = {
        "remove_columns": columns,  # a stream would remove them from the groups, too
        "new_fingerprint": fingerprint,
        "load_from_cache_file": None if fingerprint is None else False,
        "desc": "Making groups",
    }
    rows = dataset.select_columns(columns).with_format("arrow")
    if isinstance(rows, datasets.IterableDataset):
        options = {}
    groups = rows.map(make, batched=True, with_indices=True, features=features, **options)
    return groups.with_format(None)


def _read(table: Any, roles: Roles) -> dict[str, list[Any]]:
    return {name: column.to_pylist() for name, column in read_columns(table, roles).items()}


def _converted(value: Any, role: str) -> Any:
    """The value, or each entry of the list, as a group holds it: ids as text, numbers as float."""
    convert: Callable[[Any], Any] = {"id": str, "number": float}.get(role_of(role).holds, lambda text: text)
    return [convert(entry) for entry in value] if role_of(role).is_list else convert(value)
