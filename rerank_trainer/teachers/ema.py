"""The moving average: a live teacher that is the exponential average of its student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.live import LiveTeacher, Training
from rerank_trainer.teachers.student_copy import StudentCopy


class EmaTeacher(LiveTeacher):
    r"""The student's weights, averaged over its optimizer steps, teach the student.

    .. math:: \theta'_0 = \theta_0, \quad \theta'_t = d_t \theta'_{t-1} + (1 - d_t) \theta_t, \quad
              d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    with the student's weights :math:`\theta_t` after t steps. Adapted from Mean Teacher (Tarvainen and Valpola, 2017,
    https://arxiv.org/abs/1703.01780): here over the passages of a query. The decay's warmup, by which the first weights
    are soon forgotten, is that of
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage. Buffers are the student's.

    It knows nothing that labels have not taught, so the objective must have labels; what the trainer takes by default
    stands in ``docs/self_teachers.md``.

    Args:
        decay: d, from 0 (the student itself) to below 1. The average reaches back about ``1 / (1 - decay)`` steps;
            choose it so that this is a small part of the training.

    Raises:
        ValueError: If ``decay`` is out of its range.
    """

    needs_labels = True
    _copy: StudentCopy

    def __init__(self, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number from 0 (no memory) to below 1, such as 0.999")
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """What is left of the average when the weights after so many steps join it.

        >>> [round(EmaTeacher(decay=0.9).decay_at(step), 3) for step in (1, 8, 1000)]
        [0.182, 0.5, 0.9]
        """
        return min(self.decay, (1 + step) / (10 + step))

    def attach(self, student: Reranker, training: Training) -> None:
        """As :meth:`LiveTeacher.attach`; any student will do."""
        self._copy = StudentCopy(student, training)

    def follow(self, step: int, epoch: int) -> None:
        """Let the student's weights join the average."""
        if step == 0:
            self._copy.take()
        else:
            self._copy.average(self.decay_at(step))

    def teach(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The scores of the averaged weights."""
        return {"teacher_scores": self._copy.scores(batch)}

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by the names of the student's parameters."""
        return self._copy.weights

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As :meth:`LiveTeacher.load_state_dict`."""
        self._copy.load(state)
