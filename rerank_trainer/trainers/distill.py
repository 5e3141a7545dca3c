"""The distillation trainer: a student learns from a teacher's scores."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.rankings import hold_minus_ranks
from rerank_trainer.models.placement import place
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.naming import (
    LABEL_LOSSES,
    MIXED,
    TEACHER_LOSSES,
    contrastive_objective,
    distillation_objective,
)
from rerank_trainer.objectives.objective import Objective
from rerank_trainer.objectives.order import refuse_distances_of_ranks
from rerank_trainer.objectives.schedules import Ramp
from rerank_trainer.teachers.check import TeacherReport, check_teacher
from rerank_trainer.teachers.live import LiveTeacher
from rerank_trainer.teachers.store import add_teacher_scores
from rerank_trainer.teachers.teacher import Teacher, as_teacher
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer, require_targets
from rerank_trainer.trainers.live import LiveTeaching, require_live_targets
from rerank_trainer.trainers.sources import TrainSource, with_instruction

logger = logging.getLogger(__name__)

# How much labels count beside a live teacher: they are alone until the student knows something that could be taught.
LIVE_LABEL_WEIGHT = Ramp(1.0, 0.5, begin=0.3, end=0.5)


class DistillRerankTrainer(RerankTrainer):
    """Trains a student on a teacher's scores: by default KL between their distributions over each query's passages.

    The teacher scores the training groups once, before training, with a progress bar (of several sources, those whose
    objective compares with it); the scores are kept on disk under a fingerprint of teacher and texts, so that a second
    run or student pays nothing. A :class:`LiveTeacher`, such as the student's own average, scores in every step.

    Args:
        model: The student; see :class:`RerankTrainer`.
        args: What to do; ``label_weight`` mixes the labels in.
        teacher: A Hub id or folder, a :class:`Reranker`, any :class:`Teacher` or :class:`LiveTeacher`; None takes the
            rows' own column ``teacher_scores``.
        **options: The other arguments of :class:`RerankTrainer`.

    Attributes:
        teacher_reports: A :class:`TeacherReport` on each training set that was checked, in their order.

    Raises:
        ValueError: As :class:`RerankTrainer`; if the rows have no teacher scores and there is no teacher; if they have
            and there is; if the teacher's head is untrained; if the teacher's scores cannot be right (see
            ``docs/watching.md``), or are ranks and the objective reads distances (see ``docs/teachers.md``); if a live
            teacher cannot teach this student, or no label counts beside it.
    """

    scores_are = "teacher_scores"
    teacher_reports: list[TeacherReport]

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel | Reranker,
        args: RerankTrainingArguments | None = None,
        *,
        teacher: str | Path | Reranker | Teacher | LiveTeacher | None = None,
        **options: Any,
    ) -> None:
        self.teacher = teacher
        self.teacher_reports = []
        self._teacher_options = args
        self._loaded_teacher: Teacher | None = None
        super().__init__(model, args, **options)
        self._loaded_teacher = None  # its scores are there; a model of its own need not stay in memory
        if isinstance(teacher, LiveTeacher):
            self.live_teaching = LiveTeaching(self, teacher)

    def named_objective(self, args: RerankTrainingArguments) -> Objective:
        """The loss of teacher scores that ``args.objective`` names, mixed with the labels; KL when it names none.

        Beside a live teacher labels count by default, see ``docs/self_teachers.md``.

        Raises:
            ValueError: If the name is not known, or a loss of labels is named that has no weight.
        """
        for name in ("label_loss", "label_loss_options"):
            if getattr(args, name) is not None and args.label_weight == 0 and args.objective != "gated":
                raise ValueError(
                    f"{name}={getattr(args, name)!r} would do nothing at label_weight=0; give a label_weight"
                )
        assert not isinstance(args.loss_options, str)  # the arguments refuse it
        assert not isinstance(args.label_loss_options, str)
        assert args.teacher_temperature is not None  # the arguments refuse it
        if isinstance(self.teacher, LiveTeacher) and args.objective in (None, MIXED) and args.label_weight == 0:
            return MixedObjective(
                label_weight=LIVE_LABEL_WEIGHT,
                temperature=args.temperature,
                teacher_temperature=args.teacher_temperature,
            )
        return distillation_objective(
            args.objective or "kl",
            temperature=args.temperature,
            teacher_temperature=args.teacher_temperature,
            loss_options=args.loss_options,
            label_weight=args.label_weight,
            label_loss=args.label_loss or "infonce",
            label_loss_options=args.label_loss_options,
            # how many epochs a number of steps makes is not known here
            num_epochs=1.0 if args.max_steps > 0 else args.num_train_epochs,
        )

    def named_source_objective(self, name: str, args: RerankTrainingArguments) -> Objective:
        """A loss of teacher scores, as in ``args.objective``; or one that only labels have, such as "infonce"."""
        if name in LABEL_LOSSES and name not in TEACHER_LOSSES:
            return contrastive_objective(name, temperature=args.temperature)
        return super().named_source_objective(name, args)

    def _train_groups(self, source: TrainSource, objective: Objective) -> datasets.Dataset | datasets.IterableDataset:
        if self.teacher is not None or not objective.needs_teacher:
            # a column `scores` can only mean labels
            source = dataclasses.replace(source, scores_are=source.scores_are or "labels")
        args = self._teacher_options or RerankTrainingArguments("trainer_output")
        if self.teacher is None or not objective.needs_teacher:
            groups = super()._train_groups(source, objective)
            if objective.needs_teacher:
                refuse_distances_of_ranks(objective, args.teacher_scale or _scale_of(groups))
                self._check_teacher(groups, args, objective, scale=None)
            return groups
        groups = with_instruction(load_groups(source.rows, scores_are=source.scores_are), source.instruction)
        if isinstance(self.teacher, LiveTeacher):
            require_live_targets(groups, objective, self.teacher)
            return require_targets(groups, objective, has_teacher=True)
        if isinstance(groups, datasets.IterableDataset):
            raise ValueError(
                "a teacher scores all groups before training, and these rows are a stream. Load them whole, or let "
                "annotate(rows, teacher, output_dir) write its scores first and train on output_dir with teacher=None."
            )
        if self._loaded_teacher is None:  # once for all sources
            autocast_dtype = torch.bfloat16 if args.bf16 else None
            self._loaded_teacher = as_teacher(self.teacher, device=args.device, autocast_dtype=autocast_dtype)
            if args.process_index == 0:
                warn_of_cpu(self._loaded_teacher, args.device)
        teacher = self._loaded_teacher
        refuse_distances_of_ranks(objective, args.teacher_scale or teacher.scale)
        with args.main_process_first(desc="teacher scores"):
            groups = add_teacher_scores(
                groups, teacher, cache_dir=args.teacher_cache_dir, show_progress_bar=_shows_progress(args)
            )
        require_targets(groups, objective)
        self._check_teacher(groups, args, objective, scale=teacher.scale)
        return groups

    def _check_teacher(
        self,
        groups: datasets.Dataset | datasets.IterableDataset,
        args: RerankTrainingArguments,
        objective: Objective,
        *,
        scale: str | None,
    ) -> None:
        """Check the teacher scores of a training set, if the arguments allow it, and say what was found."""
        if not args.check_teacher:
            return
        if isinstance(groups, datasets.IterableDataset):
            logger.info("teacher scores of a stream are not checked: nobody knows them yet")
            return
        is_main = args.process_index == 0
        has_fresh_head = bool(self.reranker.fresh_parameters)
        if is_main and not has_fresh_head and not (args.fsdp or args.deepspeed):
            place(self.reranker.model, args.device)  # where the Trainer puts it next
        predict = partial(self.reranker.predict, show_progress_bar=_shows_progress(args))
        temperature, takes_softmax = args.teacher_temperature, not {"kl", "mixed"}.isdisjoint(objective.names)
        report = check_teacher(
            groups,
            scale=args.teacher_scale or scale,
            # a measured temperature makes no flat targets
            temperature=temperature if takes_softmax and isinstance(temperature, float) else None,
            predict=predict if is_main and not has_fresh_head else None,
            seed=args.seed,
        )
        if is_main:
            untrained = "; the student's head is freshly initialised, so it is not compared" if has_fresh_head else ""
            logger.info("%s%s", report, untrained)
            for warning in report.warnings:
                logger.warning(warning)
        self.teacher_reports.append(report)


def warn_of_cpu(teacher: Teacher, device: torch.device) -> None:
    """Say where a teacher that was given as an object, or a member of one, will score on the CPU, slowly."""
    for part in getattr(teacher, "members", [teacher]):
        reranker = getattr(part, "reranker", None)
        if isinstance(reranker, Reranker) and reranker.model.device.type == "cpu" != device.type:
            logger.warning(
                "the teacher %s is on the CPU and scores there, while the student trains on %s. Give it by name, or "
                "move it before: teacher.model.to(%r).",
                type(reranker.model).__name__,
                device,
                str(device),
            )


def _scale_of(groups: datasets.Dataset | datasets.IterableDataset) -> str | None:
    """The scale of teacher scores that say it themselves: ranks, as the layouts of rankings give them."""
    is_ranking = isinstance(groups, datasets.Dataset) and hold_minus_ranks(groups["teacher_scores"])
    return "rank" if is_ranking else None


def _shows_progress(args: RerankTrainingArguments) -> bool | None:
    """Whether this process shows how far its scoring is: the main one for long work, unless that is switched off."""
    return False if args.disable_tqdm or args.process_index else None
