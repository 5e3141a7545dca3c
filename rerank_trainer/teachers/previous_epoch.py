"""The previous epoch: a live teacher that is its student as it was when the last epoch ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.live import LiveTeacher, Training
from rerank_trainer.teachers.student_copy import StudentCopy

_EPOCH = "epoch"  # in the state, beside the weights: after how many epochs they were taken; 0 without weights


class PreviousEpochTeacher(LiveTeacher):
    """The student at the end of each epoch teaches the next one; the first epoch learns from labels alone.

    Adapted from PS-KD (Kim et al., 2021, https://arxiv.org/abs/2006.12000), where the predictions of the last epoch
    soften the labels of the next. Here the weights are kept in place of predictions, because each epoch draws passages
    of its own.

    While there is no teacher, what compares with one counts no group, and a
    :class:`~rerank_trainer.objectives.mixed.MixedObjective` takes the labels alone.
    """

    needs_labels = True
    _copy: StudentCopy
    _epoch = 0

    def attach(self, student: Reranker, training: Training) -> None:
        """As :meth:`LiveTeacher.attach`.

        Raises:
            ValueError: If there is no second epoch.
        """
        if training.num_epochs is not None and training.num_epochs <= 1:
            raise ValueError(
                f"PreviousEpochTeacher teaches from the second epoch on, and there are {training.num_epochs:g} (a "
                "stream has one). Raise num_train_epochs, or take EmaTeacher."
            )
        self._copy = StudentCopy(student, training)

    def follow(self, step: int, epoch: int) -> None:
        """Keep the student's weights when an epoch has ended."""
        if step == 0:
            self._epoch = 0
        if epoch > self._epoch:
            self._copy.take()
            self._epoch = epoch

    def teach(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The scores of the last epoch's weights; nothing in the first epoch."""
        return {"teacher_scores": self._copy.scores(batch)} if self._epoch else {}

    def state_dict(self) -> dict[str, Tensor]:
        """The number of the epoch, and its weights by the names of the student's parameters."""
        return {_EPOCH: torch.tensor(self._epoch), **(self._copy.weights if self._epoch else {})}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As :meth:`LiveTeacher.load_state_dict`."""
        weights = {name: value for name, value in state.items() if name != _EPOCH}
        self._epoch = int(state.get(_EPOCH, -1))
        if self._epoch != 0:
            self._copy.load(weights)
