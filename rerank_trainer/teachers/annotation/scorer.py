"""The scorer: a callable that gives a table of groups its teacher's scores, here and in Ray Data alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import pyarrow as pa

from rerank_trainer.teachers.answers import checked_scores

if TYPE_CHECKING:
    from rerank_trainer.models.reranker import Reranker
    from rerank_trainer.teachers.teacher import Teacher

COLUMN = "teacher_scores"
_SCORES = pa.list_(pa.float64())


class TeacherScorer:
    """Gives tables of groups a column of their teacher's scores.

    :func:`annotate` calls it for each part of a shard. Ray Data calls the same: ``dataset.map_batches(TeacherScorer,
    batch_format="pyarrow", fn_constructor_kwargs={"teacher": "BAAI/bge-reranker-v2-m3"}, ...)``; see
    ``examples/annotate_with_ray.py``.

    Args:
        teacher: A Hub id or folder, a ``Reranker``, or any teacher; loaded once.
        column: The name of the new column.
        device: Where a teacher given by name is put; None takes this process's GPU, or the CPU where there is none.

    Raises:
        ValueError: If it is no teacher.

    >>> class LengthTeacher:
    ...     scale, fingerprint = "logit", "the length of the passage"
    ...     def score(self, groups):
    ...         return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}
    >>> table = pa.table({"query": ["1 + 1"], "passages": [["two", "eleven"]]})
    >>> TeacherScorer(LengthTeacher())(table)["teacher_scores"].to_pylist()
    [[3.0, 6.0]]
    """

    def __init__(
        self, teacher: str | Path | Reranker | Teacher, *, column: str = COLUMN, device: str | None = None
    ) -> None:
        self.teacher: Teacher = teacher if _is_teacher(teacher) else _loaded(teacher, device)
        self.column = column

    def __call__(self, table: pa.Table, *, first_group: int = 0) -> pa.Table:
        """The table with the new column.

        Args:
            table: Groups: ``query``, ``passages``, and whatever else they have, which the teacher is given, too.
            first_group: The number of its first group, for errors.

        Raises:
            ValueError: If the table has the column already, or the teacher's answer is not one finite number a passage.
        """
        if self.column in table.column_names:
            raise ValueError(
                f"the groups have a column {self.column} already: give another name, column='teacher_scores_...', or "
                "drop it."
            )
        groups = table.to_pylist()
        scores = checked_scores(self.teacher.score(groups), groups, first_group=first_group)
        return table.append_column(pa.field(self.column, _SCORES), pa.array(scores, type=_SCORES))


def _is_teacher(value: Any) -> TypeGuard[Teacher]:
    return all(hasattr(value, name) for name in ("scale", "fingerprint", "score"))


def _loaded(teacher: Any, device: str | None) -> Teacher:
    # imported here: a teacher that is no model needs no PyTorch
    from rerank_trainer.teachers.teacher import as_teacher

    return as_teacher(teacher, device=device)
