"""Live teachers: the protocol of a teacher that is asked in every step, because its scores change in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer, scatter_scores, scores_in_evaluation


@dataclass(frozen=True)
class Training:
    """What a live teacher is told of the training that it is part of.

    Attributes:
        seed: Of whatever it draws.
        num_epochs: How many epochs there are; None where a number of steps is asked for.
        autocast_dtype: The type that the training computes in; None computes in the weights' type.
        max_tokens: Tokens of a micro-batch, padding included, or "auto".
        share_prefix: Whether a decoder runs what a group's rows begin with once; None does so where it pays.
    """

    seed: int = 0
    num_epochs: float | None = None
    autocast_dtype: torch.dtype | None = None
    max_tokens: int | str = "auto"
    share_prefix: bool | None = None


class LiveTeacher:
    """Scores the batches of a step beside the student, without gradient.

    The trainer calls :meth:`attach` once; then for each optimizer step :meth:`follow`, :meth:`teach` for each of its
    batches, and :meth:`guided` for each when the student has scored it. What a teacher remembers from one step to the
    next is its state, and what it draws follows from (seed, step): so a resumed run goes on as the whole one, and all
    processes have the same teacher.

    Attributes:
        scale: What the scores are, as in :class:`~rerank_trainer.teachers.teacher.Teacher`.
        needs_labels: Whether it knows nothing but what labels have taught its student.
    """

    scale = "logit"
    needs_labels = False

    def attach(self, student: Reranker, training: Training) -> None:
        """Get to know the student, which is where it will be trained.

        Raises:
            ValueError: If this teacher cannot teach this student.
        """
        raise NotImplementedError

    def follow(self, step: int, epoch: int) -> None:
        """Take note of the student as it is before an optimizer step.

        Args:
            step: How many steps are done; at 0 a training begins, and nothing of an earlier one is left.
            epoch: How many epochs are done.
        """

    def teach(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What the batch gains before the student sees it: ``teacher_scores``; nothing while there is no teacher.

        Args:
            batch: A batch of the collator, on the student's device.
        """
        raise NotImplementedError

    def guided(self, batch: Mapping[str, Any], scores: Tensor) -> Mapping[str, Tensor]:
        """What changes in the batch when the student has scored it.

        Args:
            batch: The batch with what it has gained.
            scores: The student's, without gradient, ``(batch_size, group_size)``.
        """
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what a checkpoint holds.

        Raises:
            ValueError: If it is of another teacher or another student.
        """


def score_batch(
    scorer: RowScorer,
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    forward: Callable[..., Any] | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """The scores of a batch's pairs, ``(batch_size, group_size)`` float32, 0 where no passage is.

    A head that gives several scores a row adds a last dimension.

    Args:
        scorer: The engine, with the head.
        model: Whose forward it is.
        batch: A batch of the collator.
        forward: Another way to call the model; None calls it.
        autocast_dtype: Compute in this type; None computes in the weights' type.
    """
    rows = batch["student"]
    scores = scores_in_evaluation(scorer, model, rows, forward=forward, autocast_dtype=autocast_dtype)
    return scatter_scores(scores.float(), rows["cells"], batch["labels"].shape)
