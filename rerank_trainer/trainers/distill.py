"""The distillation trainer: a student learns from a teacher's scores."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel

from rerank_trainer.data.formats import load_groups
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.objectives.naming import distillation_objective
from rerank_trainer.objectives.objective import Objective
from rerank_trainer.teachers.check import TeacherReport, check_teacher
from rerank_trainer.teachers.store import add_teacher_scores
from rerank_trainer.teachers.teacher import Teacher, as_teacher
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer, Rows, require_targets

logger = logging.getLogger(__name__)


class DistillRerankTrainer(RerankTrainer):
    """Trains a student on a teacher's scores: by default KL between their distributions over each query's passages.

    The teacher scores the training groups once, before training, with a progress bar; the scores are kept on disk
    under a fingerprint of teacher and texts, so that a second run or student pays nothing.

    Args:
        model: The student; see :class:`RerankTrainer`.
        args: What to do; ``label_weight`` mixes the labels in.
        teacher: A Hub id or folder, a :class:`Reranker`, or any :class:`Teacher`; None takes the rows' own column
            ``teacher_scores``.
        **options: The other arguments of :class:`RerankTrainer`.

    Attributes:
        teacher_report: The :class:`TeacherReport` on the training groups; None without them, and without the check.

    Raises:
        ValueError: As :class:`RerankTrainer`; if the rows have no teacher scores and there is no teacher; if they have
            and there is; if the teacher's head is untrained; if the teacher's scores cannot be right (see
            ``docs/watching.md``).
    """

    scores_are = "teacher_scores"
    teacher_report: TeacherReport | None = None

    def __init__(
        self,
        model: str | Path | PreTrainedModel | Reranker,
        args: RerankTrainingArguments | None = None,
        *,
        teacher: str | Path | Reranker | Teacher | None = None,
        **options: Any,
    ) -> None:
        self.teacher = teacher
        self._teacher_options = args
        super().__init__(model, args, **options)

    def named_objective(self, args: RerankTrainingArguments) -> Objective:
        """The loss of teacher scores that ``args.objective`` names, mixed with the labels; KL when it names none.

        Raises:
            ValueError: If the name is not known.
        """
        return distillation_objective(
            args.objective or "kl",
            temperature=args.temperature,
            teacher_temperature=args.teacher_temperature,
            label_weight=args.label_weight,
        )

    def _train_groups(self, rows: Rows, objective: Objective) -> datasets.Dataset:
        args = self._teacher_options or RerankTrainingArguments("trainer_output")
        if self.teacher is None:
            groups = super()._train_groups(rows, objective)
            if "teacher_scores" in groups.column_names:  # an objective of the labels alone needs none
                self.teacher_report = self._check_teacher(groups, args, objective, scale=None)
            return groups
        # with a teacher, a column `scores` can only mean labels
        groups = load_groups(rows, scores_are="labels")
        autocast_dtype = torch.bfloat16 if args.bf16 else None
        teacher = as_teacher(self.teacher, device=args.device, autocast_dtype=autocast_dtype)
        with args.main_process_first(desc="teacher scores"):
            groups = add_teacher_scores(groups, teacher, cache_dir=args.teacher_cache_dir)
        require_targets(groups, objective)
        self.teacher_report = self._check_teacher(groups, args, objective, scale=teacher.scale)
        return groups

    def _check_teacher(
        self, groups: datasets.Dataset, args: RerankTrainingArguments, objective: Objective, *, scale: str | None
    ) -> TeacherReport | None:
        """What the check finds, logged once; None where the arguments leave it out."""
        if not args.check_teacher:
            return None
        is_main = args.process_index == 0
        has_fresh_head = bool(self.reranker.fresh_parameters)
        if is_main and not has_fresh_head and not (args.fsdp or args.deepspeed or _is_placed(self.reranker.model)):
            self.reranker.model.to(args.device)  # where the Trainer puts it next
        report = check_teacher(
            groups,
            scale=args.teacher_scale or scale,
            temperature=args.teacher_temperature if "kl" in objective.names else None,
            predict=self.reranker.predict if is_main and not has_fresh_head else None,
            seed=args.seed,
        )
        if is_main:
            untrained = "; the student's head is freshly initialised, so it is not compared" if has_fresh_head else ""
            logger.info("%s%s", report, untrained)
            for warning in report.warnings:
                logger.warning(warning)
        return report


def _is_placed(model: PreTrainedModel) -> bool:
    """Whether the model was loaded to where it stays: quantised, or spread over devices."""
    return getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None) is not None
