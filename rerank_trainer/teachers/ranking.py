"""The teacher that knows an order and no scores: an LLM's permutations, a run, lists of the best few."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rerank_trainer.data.rankings import fault_of_permutation, minus_ranks, read_permutation
from rerank_trainer.data.runs import Run, read_run
from rerank_trainer.teachers.teacher import read_column

# What the keys of the rankings and their entries are, by the columns of a group that hold them.
_COLUMNS = {"id": ("query_id", "passage_ids"), "text": ("query", "passages")}


class RankingTeacher:
    """Rankings of each query's passages; the scores are minus the ranks, -1 for the best.

    Passages of a group that its ranking leaves out share the last rank: losses of an order put them below all others
    and learn nothing of them among themselves. What a ranking names beside the group's passages takes no rank. Rows
    that hold their ranking themselves need no teacher; ``docs/data_formats.md`` shows what they may look like.

    Args:
        rankings: For each query its passages, best first; or a text such as "[2] > [1] > [3]", the places of the
            group's passages, counted from 1.
        by: What names queries and passages: "id" (the columns ``query_id`` and ``passage_ids``) or "text".

    Raises:
        ValueError: If ``by`` is something else, or a ranking names a passage twice or cannot be read.

    >>> teacher = RankingTeacher({"q1": ["p7", "p3"], "q2": "[2] > [1]"})
    >>> groups = [{"query_id": "q1", "query": "1 + 1", "passages": ["4", "3", "2"], "passage_ids": ["p9", "p3", "p7"]}]
    >>> groups += [{"query_id": "q2", "query": "2 + 2", "passages": ["3", "4"], "passage_ids": ["p3", "p9"]}]
    >>> teacher.score(groups)
    {'scores': [[-3.0, -2.0, -1.0], [-2.0, -1.0]]}
    """

    scale = "rank"

    def __init__(self, rankings: Mapping[str, Sequence[str] | str], *, by: str = "id") -> None:
        if by not in _COLUMNS:
            raise ValueError(f"by={by!r}: expected one of {[*_COLUMNS]}")
        self.rankings = {query: _checked(query, ranking) for query, ranking in rankings.items()}
        self.columns = _COLUMNS[by]
        digest = hashlib.sha256(json.dumps([by, self.rankings], sort_keys=True).encode())
        self.fingerprint = f"rankings {digest.hexdigest()}"

    @classmethod
    def from_run(cls, run: str | os.PathLike[str] | Run) -> RankingTeacher:
        """The order of a TREC run, by id; its scores, which may be anything, are left out.

        Args:
            run: The file, or what :func:`rerank_trainer.data.trec.read_run` returns.

        Raises:
            ValueError: As ``read_run``.
        """
        found = run if isinstance(run, Mapping) else read_run(run)
        return cls({query: [passage for passage, _ in ranked] for query, ranked in found.items()})

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """As :meth:`Teacher.score`.

        Raises:
            ValueError: If a group's query has no ranking, or one that does not fit its passages.
        """
        return {"scores": [self._scores(group) for group in groups]}

    def _scores(self, group: Mapping[str, Any]) -> list[float]:
        query = read_column(group, self.columns[0], self)
        ranking = self.rankings.get(query)
        if ranking is None:
            raise ValueError(
                f"{self.columns[0]} {query!r}: none of the {len(self.rankings)} rankings is of it. Add it, or leave "
                "the group out."
            )
        if isinstance(ranking, tuple):  # places
            num_passages = len(group["passages"])
            fault = fault_of_permutation(ranking, num_passages)
            if fault is not None:
                raise ValueError(f"{self.columns[0]} {query!r}: its ranking names {fault}.")
            return minus_ranks(ranking, range(1, num_passages + 1))
        entries = read_column(group, self.columns[1], self)
        if set(entries).isdisjoint(ranking):
            raise ValueError(
                f"{self.columns[0]} {query!r}: its ranking {ranking[:2]} ... names none of the group's "
                f"{self.columns[1]}, {entries[:2]} ... Name passages alike in both, or leave the group out."
            )
        return minus_ranks(ranking, entries)


def _checked(query: str, ranking: Sequence[str] | str) -> list[str] | tuple[int, ...]:
    """A list of names as it is, a permutation as a tuple of places."""
    try:
        found = tuple(read_permutation(ranking)) if isinstance(ranking, str) else list(ranking)
    except ValueError as error:
        raise ValueError(f"the ranking of {query!r}: {error}") from error
    seen = set()
    for entry in found:
        if entry in seen:
            raise ValueError(f"the ranking of {query!r} names {entry!r} for the second time. Keep one of the two.")
        seen.add(entry)
    return found
