"""Merge: the scores of several teachers side by side, joined by the ids of queries and passages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from rerank_trainer.data.columns import GROUP_FEATURES
from rerank_trainer.data.files import Source
from rerank_trainer.data.formats import load_groups
from rerank_trainer.teachers.annotation.scorer import COLUMN

logger = logging.getLogger(__name__)


def merge_teacher_scores(annotated: Mapping[str, Source]) -> datasets.Dataset:
    """The groups of the first data set, with a column ``teacher_scores_<name>`` for each.

    Groups are joined by ``query_id``, or by the text of the query (and instruction) where one of two data sets has no
    such column; passages by ``passage_ids``, or likewise by their texts. So the others may have their rows and passages
    in another order, and more of both. Trainers read ``teacher_scores``: rename one column, or make one of several.

    Args:
        annotated: Name of a teacher to its groups with ``teacher_scores``: a folder that ``annotate`` wrote, or
            whatever else ``load_groups`` takes.

    Raises:
        ValueError: If there are fewer than two; a data set has no teacher scores, has two groups of one query, or lacks
            a group or passage of the first.

    >>> groups = {"query_id": ["7"], "query": ["1 + 1"]}
    >>> one = datasets.Dataset.from_dict({**groups, "passages": [["2", "3"]], "teacher_scores": [[5.0, -1.0]]})
    >>> two = datasets.Dataset.from_dict({**groups, "passages": [["3", "2"]], "teacher_scores": [[0.1, 0.9]]})
    >>> merge_teacher_scores({"large": one, "llm": two})[0]["teacher_scores_llm"]
    [0.9, 0.1]
    """
    if len(annotated) < 2:
        raise ValueError(f"expected the groups of two teachers or more, found {list(annotated)}")
    opened = {name: load_groups(source) for name, source in annotated.items()}
    for name, groups in opened.items():
        if COLUMN not in groups.column_names:
            raise ValueError(f"{name!r}: expected a column {COLUMN}, found {groups.column_names}. Annotate it first.")
    (first_name, first), *others = opened.items()
    merged = first.rename_column(COLUMN, f"{COLUMN}_{first_name}")
    for name, other in others:
        shared = set(first.column_names) & set(other.column_names)
        keys = ["query_id"] if "query_id" in shared else ["query", *({"instruction"} & shared)]
        merged = merged.map(
            _with_scores_of,
            batched=True,
            with_indices=True,
            features=datasets.Features({**merged.features, f"{COLUMN}_{name}": GROUP_FEATURES[COLUMN]}),
            fn_kwargs={
                "other": other,
                "rows": _matched(_ids(first, keys, first_name), _ids(other, keys, name), name),
                "by": "passage_ids" if "passage_ids" in shared else "passages",
                "name": name,
            },
            desc=f"merging {name}",
        )
    return merged


def _ids(groups: datasets.Dataset, keys: Sequence[str], name: str) -> dict[tuple[str, ...], int]:
    """What tells each group from the others, and its row."""
    rows: dict[tuple[str, ...], int] = {}
    for batch in groups.select_columns(list(keys)).iter(10_000):
        for key in zip(*(batch[column] for column in keys), strict=True):
            if key in rows:
                raise ValueError(
                    f"{name!r}: expected one group for each {' and '.join(keys)}, found rows {rows[key]} and "
                    f"{len(rows)} with {key!r:.200}. Give every group a query_id of its own."
                )
            rows[key] = len(rows)
    return rows


def _matched(first: Mapping[tuple[str, ...], int], other: Mapping[tuple[str, ...], int], name: str) -> list[int]:
    """For each group of the first data set its row in the other."""
    missing = [key for key in first if key not in other]
    if missing:
        raise ValueError(
            f"{name!r} lacks {len(missing)} of {len(first)} groups, of which the first is {missing[0]!r:.200}. "
            "Annotate the same groups, or give the data set with fewer groups first."
        )
    logger.info("%r: %d of its %d groups are used", name, len(first), len(other))
    return [other[key] for key in first]


def _with_scores_of(
    batch: Mapping[str, list[Any]], indices: list[int], other: datasets.Dataset, rows: list[int], by: str, name: str
) -> dict[str, list[list[float]]]:
    scored = other[[rows[index] for index in indices]]
    scores = []
    for index, wanted, found, of_found in zip(indices, batch[by], scored[by], scored[COLUMN], strict=True):
        known = dict(zip(found, of_found, strict=True))
        missing = [key for key in wanted if key not in known]
        if missing:
            raise ValueError(
                f"{name!r}, row {rows[index]}: {len(missing)} of the {len(wanted)} {by} of row {index} of the first "
                f"data set have no score, of which the first is {missing[0]!r:.200}. Annotate the same passages."
            )
        scores.append([known[key] for key in wanted])
    return {f"{COLUMN}_{name}": scores}
