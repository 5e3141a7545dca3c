"""The teacher whose scores stand in the rows already: for an ensemble, or under another scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rerank_trainer.teachers.teacher import read_column


class ColumnTeacher:
    """Scores that stand in a column of the groups, one a passage.

    Args:
        column: Its name.
        scale: What the scores are: "logit", "probability" or "rank".

    >>> ColumnTeacher().score([{"query": "1 + 1", "passages": ["3", "2"], "teacher_scores": [-1.5, 4]}])
    {'scores': [[-1.5, 4.0]]}
    """

    def __init__(self, column: str = "teacher_scores", *, scale: str = "logit") -> None:
        self.columns = (column,)
        self.scale = scale
        self.fingerprint = f"the column {column}"

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """As :meth:`Teacher.score`.

        Raises:
            ValueError: If a group has no such column.
        """
        return {"scores": [[float(score) for score in read_column(group, self.columns[0], self)] for group in groups]}
