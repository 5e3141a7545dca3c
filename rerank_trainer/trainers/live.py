"""Live teaching: a live teacher at work in a trainer, which hands it the batches and keeps its state in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from rerank_trainer.data.streams import StreamGroups
from rerank_trainer.teachers.live import LiveTeacher, Training

if TYPE_CHECKING:
    from rerank_trainer.objectives.objective import Objective
    from rerank_trainer.trainers.hooks import GroupHooks

TEACHER_FILE = "live_teacher.safetensors"  # in a checkpoint: the state of the live teacher
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LiveTeaching:
    """Lets a live teacher score each batch of a training, before the student does.

    Args:
        trainer: A trainer that is ready to train.
        teacher: Who teaches.

    Raises:
        ValueError: If weights are sharded, or the teacher cannot teach this student.
    """

    def __init__(self, trainer: GroupHooks, teacher: LiveTeacher) -> None:
        self._trainer, self._teacher = trainer, teacher
        args = trainer.args
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            sharding = "fsdp" if trainer.is_fsdp_enabled else "deepspeed"
            raise ValueError(
                f"{type(teacher).__name__} with {sharding}: a live teacher computes with weights beside the student's, "
                "of which FSDP has nowhere the whole, and DeepSpeed has not been tried. Leave one of them out, or take "
                "CheckpointTeacher, which scores before the training."
            )
        is_stream = isinstance(trainer.train_dataset, StreamGroups)
        training = Training(
            seed=args.seed,
            num_epochs=1 if is_stream else None if args.max_steps > 0 else args.num_train_epochs,
            autocast_dtype=_PRECISIONS.get(trainer.accelerator.mixed_precision),
            max_tokens=args.max_tokens_per_micro_batch,
            share_prefix=args.share_prefix,
        )
        teacher.attach(trainer.reranker, training)

    def teach(self, batches: Sequence[dict[str, Any]]) -> None:
        """Let the batches of the optimizer step that comes gain what the teacher says of them."""
        state = self._trainer.state
        if batches:  # a loader that has run dry makes no step
            self._teacher.follow(state.global_step, int(state.epoch or 0))
        for batch in batches:
            batch.update(self._teacher.teach(self._trainer._prepare_inputs(batch)))

    def guided(self, batch: dict[str, Any], scores: Tensor) -> dict[str, Any]:
        """The batch, with what the student's scores change in it."""
        return {**batch, **self._teacher.guided(batch, scores)}

    def save(self, folder: str) -> None:
        """Write the teacher's state into a checkpoint, if it has any."""
        if state := self._teacher.state_dict():
            save_file({name: value.contiguous() for name, value in state.items()}, Path(folder, TEACHER_FILE))

    def load(self, checkpoint: str | bool | None) -> None:
        """Give the teacher the state that it had at a checkpoint, the latest one if that is True.

        Raises:
            ValueError: If the checkpoint is of another teacher or another student.
        """
        output_dir = self._trainer.args.output_dir
        folder = get_last_checkpoint(output_dir) if checkpoint is True else checkpoint
        if folder:
            path = Path(str(folder), TEACHER_FILE)
            state: Mapping[str, Tensor] = load_file(path) if path.is_file() else {}
            try:
                self._teacher.load_state_dict(state)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error


def require_live_targets(groups: Any, objective: Objective, teacher: LiveTeacher) -> None:
    """Refuse rows and objectives that do not go with a live teacher.

    Raises:
        ValueError: Saying which, and what to do.
    """
    name = type(teacher).__name__
    if "teacher_scores" in groups.column_names:
        raise ValueError(
            f"the rows have a column teacher_scores already and {name} is given: which one counts? Pass teacher=None "
            'to use the column, or drop it: dataset.remove_columns("teacher_scores").'
        )
    if objective.needs_teacher and objective.needs_sample:
        raise ValueError(
            f"objective {objective.names} measures teacher scores before the training (teacher_temperature='auto', "
            f"AffineMap or IsotonicMap), and {name} gives them in training alone. Its scores are on the student's own "
            "scale: leave that out."
        )
    if teacher.needs_labels and objective.needs_teacher and not objective.needs_labels:
        raise ValueError(
            f"objective {objective.names} compares with {name} alone, which knows nothing but what labels have taught "
            "the student. Leave the objective out, give a label_weight, or a MixedObjective, a WeightedObjective or a "
            "GatedObjective."
        )
