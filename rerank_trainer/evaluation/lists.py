"""Candidate lists: what first stages give to a reranker, checked before it is judged, cut at a depth, and scored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# What the candidates of a data set are called where no first stage has a name.
CANDIDATES = "candidates"


@dataclass(frozen=True, eq=False)
class CandidateLists:
    """The candidate lists of one first stage; texts stay in the data set.

    Attributes:
        name: Of the first stage.
        groups: With ``query``, ``passages`` in the order of the first stage, and optionally ``instruction``.
        query_ids: One a group; the number of the row where the groups have none.
        passage_ids: One list a group; the row and the place where the groups have none.
        labels: Integer grades, one list a group.
        missed_gains: Grades of the relevant passages outside of each list.
    """

    name: str
    groups: datasets.Dataset
    query_ids: list[str]
    passage_ids: list[list[str]]
    labels: list[list[float]]
    missed_gains: list[list[float]]

    @property
    def longest(self) -> int:
        """Passages of the longest list."""
        return max(map(len, self.labels), default=0)

    @property
    def judged(self) -> list[str]:
        """The queries about which something relevant is known."""
        known = zip(self.query_ids, self.labels, self.missed_gains, strict=True)
        return [query_id for query_id, labels, missed in known if any(labels) or any(missed)]

    def cut(self, depth: int) -> tuple[list[list[float]], list[list[float]]]:
        """Labels of the first ``depth`` passages of each list, and the gains that are missed then."""
        labels = [row[:depth] for row in self.labels]
        behind = ([grade for grade in row[depth:] if grade > 0] for row in self.labels)
        return labels, [missed + more for missed, more in zip(self.missed_gains, behind, strict=True)]

    def checked(self, scores: Sequence[Any]) -> list[NDArray[np.float64]]:
        """These scores as arrays, one a list.

        Raises:
            ValueError: If they are not one finite number a passage.
        """
        if len(scores) != len(self.labels):
            raise ValueError(f"{self.name}: found scores of {len(scores)} groups, expected {len(self.labels)}")
        checked = []
        for query_id, row, labels in zip(self.query_ids, scores, self.labels, strict=True):
            try:
                values = np.asarray(row, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.name}, query {query_id!r}: expected numbers, found {str(row)[:80]!r}"
                ) from error
            if values.shape != (len(labels),) or not np.isfinite(values).all():
                raise ValueError(
                    f"{self.name}, query {query_id!r}: expected {len(labels)} finite scores, one a passage, found "
                    f"{str(row)[:80]}"
                )
            checked.append(values)
        return checked


@dataclass(frozen=True, eq=False)
class ScoredLists:
    """Candidate lists with the scores of a reranker, as deep as they were scored.

    Attributes:
        queries: Their texts.
        query_ids, passage_ids, labels, missed_gains: As in :class:`CandidateLists`, cut.
        scores: ``(list_length,)`` each, higher is more relevant.
    """

    queries: list[str]
    query_ids: list[str]
    passage_ids: list[list[str]]
    labels: list[list[float]]
    missed_gains: list[list[float]]
    scores: list[NDArray[np.float64]]

    def pairs(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """All scores, ``(num_pairs,)``, and whether each passage is relevant (grade 1 or more)."""
        relevant = [grade >= 1 for row in self.labels for grade in row]
        return np.concatenate([np.empty(0), *self.scores]), np.array(relevant, dtype=bool)


def candidate_lists(groups: datasets.Dataset | Mapping[str, datasets.Dataset]) -> list[CandidateLists]:
    """The lists of one data set, or of several first stages by name, checked.

    Raises:
        ValueError: If groups lack labels or anything relevant, a query id stands there twice, a name is none that a
            file can have, or first stages differ in the queries that can be judged.
    """
    if isinstance(groups, datasets.DatasetDict) or not isinstance(groups, Mapping | datasets.Dataset):
        raise ValueError(
            f"groups: expected a datasets.Dataset of groups, or a dict of them by first stage, found a "
            f"{type(groups).__name__}. load_groups, load_beir, load_trec and load_ir_dataset make groups."
        )
    of_stages = dict(groups) if isinstance(groups, Mapping) else {CANDIDATES: groups}
    if not of_stages:
        raise ValueError("groups: expected one first stage or more, found an empty dict")
    for name in of_stages:
        if not name or "/" in name or "\\" in name:
            raise ValueError(f"first stage {name!r}: expected a name that a file can have; it becomes one of a run")
    lists = [_lists_of(name, of_stage) for name, of_stage in of_stages.items()]
    for other in lists[1:]:
        differ = sorted(set(lists[0].judged) ^ set(other.judged))
        if differ:
            raise ValueError(
                f"the first stages {lists[0].name!r} and {other.name!r} differ in {len(differ)} judged queries, such "
                f"as {differ[0]!r}: their means would not be comparable. Load both with the same qrels."
            )
    return lists


def _lists_of(name: str, groups: datasets.Dataset) -> CandidateLists:
    missing = {"query", "passages", "labels"} - set(groups.column_names)
    if missing:
        raise ValueError(
            f"{name}: expected groups with query, passages and labels, found the columns {groups.column_names}. "
            "to_groups makes groups of other layouts; without labels nothing can be judged."
        )
    labels = groups["labels"][:]
    query_ids = [str(i) for i in _column(groups, "query_id") or range(len(labels))]
    seen: set[str] = set()
    for row, query_id in enumerate(query_ids):
        if query_id in seen:
            raise ValueError(
                f"{name}, row {row}: found the query_id {query_id!r} for the second time. Join the rows, or remove the "
                "column query_id if each row is a query of its own."
            )
        seen.add(query_id)
    passage_ids = _column(groups, "passage_ids")
    if passage_ids is None:
        passage_ids = [[f"{row}-{place}" for place in range(len(own))] for row, own in enumerate(labels)]
    missed_gains = _column(groups, "missed_gains") or [[] for _ in labels]
    lists = CandidateLists(name, groups, query_ids, passage_ids, labels, missed_gains)
    if not lists.judged:
        raise ValueError(
            f"{name}: none of {len(labels)} groups has a relevant passage (a label or a missed gain of 1 or more), so "
            "there is nothing to judge by. Are run and qrels of the same split, and labels not all 0?"
        )
    if all(own == sorted(own, reverse=True) for own in labels) and not any(missed_gains):
        logger.warning(
            "%s: in all of %d groups relevant passages stand before others and none is missed. If this is not the "
            "order of a first stage, its figures and every cut at a depth mean nothing.",
            name,
            len(labels),
        )
    return lists


def _column(groups: datasets.Dataset, name: str) -> list[Any] | None:
    return groups[name][:] if name in groups.column_names else None


def checked_depths(depths: int | Sequence[int] | None, lists: Sequence[CandidateLists]) -> list[int]:
    """Depths in rising order; without any, that of the longest list.

    Raises:
        ValueError: If one is below 1 or no integer.
    """
    longest = max(own.longest for own in lists)
    if depths is None:
        return [max(longest, 1)]
    wanted = sorted({depths} if isinstance(depths, int) else set(depths))
    if not wanted or not all(isinstance(depth, int) and depth >= 1 for depth in wanted):
        raise ValueError(f"depths={depths!r}: expected 1 or more, or several, such as (20, 50, 100, 500)")
    if wanted[-1] > longest:
        logger.warning(
            "depth %d: the longest candidate list has %d passages, so figures below that depth are those of whole "
            "lists. Load the groups with depth=%d.",
            wanted[-1],
            longest,
            wanted[-1],
        )
    return wanted
