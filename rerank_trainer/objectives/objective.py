"""Objectives: modules that turn a step's scores and targets into one value a group for each of their parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rerank_trainer.losses import LossFn
from rerank_trainer.objectives.adaptive import Adaptive
from rerank_trainer.objectives.schedules import Constant, Schedule, as_schedule
from rerank_trainer.objectives.temperature import Temperature

if TYPE_CHECKING:
    from rerank_trainer.objectives.consistency import ScoreMap


@dataclass(frozen=True)
class Targets:
    """What the scores of a batch are compared with.

    Attributes:
        labels: Relevance, ``(batch_size, group_size)``, -100 at padding.
        mask: True = a passage of a weight above 0, ``(batch_size, group_size)``.
        teacher_scores: A teacher's scores, ``(batch_size, group_size)``, any scale; None where no group has any:
            without a teacher, while there is none yet, in a batch of other sources.
        weights: How often each passage counts, ``(batch_size, group_size)``; None counts each once.
        source: Which of the run's data sets each group is of, ``(batch_size,)``; None where there is one.
    """

    labels: Tensor
    mask: Tensor
    teacher_scores: Tensor | None = None
    weights: Tensor | None = None
    source: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> Targets:
        """The targets of a batch of the collator; a group of weight 0 is as if it were not there."""
        weights = batch.get("passage_weights")
        mask = batch["mask"] & (batch["weights"] > 0)[:, None]
        mask = mask if weights is None else mask & (weights > 0)
        return cls(batch["labels"], mask, batch.get("teacher_scores"), weights, batch.get("source"))

    def of_teacher(self) -> Targets:
        """These, as what compares with a teacher sees them: without teacher scores all passages are absent."""
        if self.teacher_scores is not None:
            return self
        nothing = torch.zeros_like(self.labels)
        return replace(self, teacher_scores=nothing, mask=torch.zeros_like(self.mask))


class Objective(Adaptive):
    """A weighted sum of parts; each part is averaged over the groups that define it.

    The trainer calls :meth:`counts` on all batches of an optimizer step before the first forward, sums the values that
    :meth:`forward` returns, and divides each part by its own count over all of the step's batches and processes.

    Attributes:
        names: The parts' names, for the log.
        part_weights: How much each part counts in the sum, at this point of the training.
        needs_labels: Whether a part compares with labels.
        needs_teacher: Whether a part compares with teacher scores.
        max_label: The greatest label that every part accepts; None = no limit.
    """

    names: tuple[str, ...]
    part_weights: tuple[float, ...]
    needs_labels: bool = False
    needs_teacher: bool = False
    max_label: float | None = None

    def counts(self, targets: Targets) -> Tensor:
        """Which groups define each part, ``(num_parts, batch_size)`` bool."""
        raise NotImplementedError

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        """The value of each part for each group, ``(num_parts, batch_size)`` float32; 0 where undefined.

        Args:
            scores: Student scores, ``(batch_size, group_size)``.
            targets: Labels, mask and teacher scores of the batch.
        """
        raise NotImplementedError

    def contributions(self, sums: Tensor, totals: Tensor) -> Tensor:
        """What each part adds to the loss of an optimizer step: its weight times its mean, ``(..., num_parts)``.

        Args:
            sums: Each part's values, summed over some of the step's groups, ``(..., num_parts)``.
            totals: How many groups of the whole step define each part, ``(num_parts,)``.
        """
        # not `device=`, which would wait for a GPU between forward and backward
        weights = torch.tensor(self.part_weights).to(sums.device, non_blocking=sums.is_cuda)
        return sums * weights / totals.clamp(min=torch.finfo(sums.dtype).tiny)

    def figures(self, contributions: Tensor, sums: Tensor, counts: Tensor, groups: Tensor) -> dict[str, float]:
        """What the log says beside the loss: what each part contributes to it when there are several, and the readings.

        Args:
            contributions: Those of an average step, ``(num_parts,)``.
            sums: Each part's values, summed over all groups since the last entry of the log, ``(num_parts,)``.
            counts: How many of these groups define each part, ``(num_parts,)``.
            groups: How many groups of each source there were, ``(num_sources,)``.
        """
        if len(self.names) == 1:
            return self.readings()
        losses = {f"loss_{name}": value for name, value in zip(self.names, contributions.tolist(), strict=True)}
        return losses | self.readings()


class LabelObjective(Objective):
    """A loss of the labels.

    Args:
        loss_fn: A loss from :mod:`rerank_trainer.losses` that compares scores with labels.
        temperature: Divides the scores.
        name: The part's name in the log; by default the loss's.
    """

    needs_labels = True

    def __init__(self, loss_fn: LossFn, *, temperature: float = 1.0, name: str | None = None) -> None:
        super().__init__()
        self.loss_fn = partial(loss_fn, temperature=temperature)
        self._counts = loss_fn.counts
        self.max_label = loss_fn.max_label
        self.names = (name or loss_fn.__name__,)
        self.part_weights = (1.0,)

    def counts(self, targets: Targets) -> Tensor:
        return self._counts(targets.labels, targets.mask)[None]

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        return self.loss_fn(scores, targets.labels, mask=targets.mask, weights=targets.weights)[None]


class TeacherObjective(Objective):
    """A loss of the teacher's scores.

    Args:
        loss_fn: A loss from :mod:`rerank_trainer.losses`; the teacher's scores take the labels' place, unless the loss
            takes both.
        temperature: Divides the student's scores.
        teacher_temperature: Divides the teacher's scores: a number, "auto", or a
            :class:`~rerank_trainer.objectives.temperature.Temperature`.
        consistency: A :class:`~rerank_trainer.objectives.consistency.ScoreMap` of the teacher's scores, before they are
            divided; None leaves them.
        name: The part's name in the log; by default the loss's.

    Raises:
        ValueError: If "auto" meets a map that follows the student: it would be measured before there is one.
    """

    needs_teacher = True

    def __init__(
        self,
        loss_fn: LossFn,
        *,
        temperature: float = 1.0,
        teacher_temperature: float | str | Temperature = 1.0,
        consistency: ScoreMap | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.loss_fn = partial(loss_fn, temperature=temperature)
        self._counts = loss_fn.counts
        self.needs_labels = self._takes_labels = loss_fn.takes_teacher_scores
        if not isinstance(teacher_temperature, Temperature):
            teacher_temperature = Temperature(teacher_temperature)
        self.teacher_temperature = teacher_temperature
        self.consistency = consistency
        if teacher_temperature.is_auto and consistency is not None and consistency.follows_student:
            raise ValueError(
                f'teacher_temperature="auto" with {type(consistency).__name__}, which follows the student: the scale '
                "that is measured before the training would not stay. Give a number; 1 fits a map that has the "
                "student's spread."
            )
        self.names = (name or loss_fn.__name__,)
        self.part_weights = (1.0,)

    def counts(self, targets: Targets) -> Tensor:
        targets = targets.of_teacher()
        return self._counts(targets.labels if self._takes_labels else self.scaled(targets), targets.mask)[None]

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        targets = targets.of_teacher()
        return self.compared(scores, self.scaled(targets), targets)[None]

    def compared(self, scores: Tensor, teacher_scores: Tensor, targets: Targets) -> Tensor:
        """The loss of the scores against these scores of a teacher, ``(batch_size,)``."""
        given = {"mask": targets.mask, "weights": targets.weights}
        if self._takes_labels:
            return self.loss_fn(scores, targets.labels, teacher_scores=teacher_scores, **given)
        return self.loss_fn(scores, teacher_scores, **given)

    def scaled(self, targets: Targets) -> Tensor:
        """The teacher's scores as the loss sees them, ``(batch_size, group_size)``."""
        assert targets.teacher_scores is not None  # of_teacher has seen to it
        mapped = targets.teacher_scores if self.consistency is None else self.consistency(targets)
        return self.teacher_temperature(mapped)

    def prepare(self, targets: Targets) -> None:
        if targets.teacher_scores is None:  # an objective of evaluation alone may miss them
            return
        if self.consistency is not None:
            self.consistency.prepare(targets)
            targets = replace(targets, teacher_scores=self.consistency(targets))
        self.teacher_temperature.prepare(targets)


class WeightedObjective(Objective):
    """Several objectives at once, each with a weight.

    The log has ``loss_<name>``, what each part contributes, and ``weight_<name>`` for weights that change. What else it
    has of several parts under one name, such as ``teacher_temperature``, is followed by the part's.

    Args:
        parts: (weight, objective) pairs; a weight is a number or a :class:`~rerank_trainer.objectives.schedules.Ramp`.

    Raises:
        ValueError: If there is no part, a weight is negative, or two parts have the same name.

    >>> from rerank_trainer.losses import infonce, kl
    >>> from rerank_trainer.objectives.schedules import Ramp
    >>> objective = WeightedObjective([(Ramp(1.0, 0.0), LabelObjective(infonce)), (1.0, TeacherObjective(kl))])
    >>> objective.set_progress(0.25)
    >>> dict(zip(objective.names, objective.part_weights)), objective.readings()
    ({'infonce': 0.75, 'kl': 1.0}, {'weight_infonce': 0.75})
    """

    def __init__(self, parts: Sequence[tuple[float | Schedule, Objective]]) -> None:
        super().__init__()
        numbers = [weight for weight, _ in parts if isinstance(weight, int | float)]
        if not parts or not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"expected objectives with weights of 0 or more, got {[weight for weight, _ in parts]}")
        self.schedules = [as_schedule(weight) for weight, _ in parts]
        self.parts = nn.ModuleList([objective for _, objective in parts])
        self.names = distinct_names(name for _, objective in parts for name in objective.names)
        self.needs_labels = any(part.needs_labels for _, part in parts)
        self.needs_teacher = any(part.needs_teacher for _, part in parts)
        self.max_label = min((p.max_label for _, p in parts if p.max_label is not None), default=None)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        weights = [schedule.at(progress) for schedule in self.schedules]
        of_parts = zip(weights, self.parts, strict=True)
        self.part_weights = tuple(weight * inner for weight, part in of_parts for inner in part.part_weights)

    def counts(self, targets: Targets) -> Tensor:
        return torch.cat([part.counts(targets) for part in self.parts])

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        return torch.cat([part(scores, targets) for part in self.parts])

    def readings(self) -> dict[str, float]:
        changes = [
            not isinstance(schedule, Constant)
            for schedule, part in zip(self.schedules, self.parts, strict=True)
            for _ in part.names
        ]
        named = zip(changes, self.names, self.part_weights, strict=True)
        weights = {f"weight_{name}": weight for changed, name, weight in named if changed}
        inside = [("+".join(part.names), part.readings()) for part in self.parts]
        shared = Counter(key for _, of_part in inside for key in of_part)
        return weights | {
            key if shared[key] == 1 else f"{key}_{name}": value
            for name, of_part in inside
            for key, value in of_part.items()
        }


def distinct_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of an objective's parts, by which the log tells them apart.

    Raises:
        ValueError: If two are the same.
    """
    found = tuple(names)
    if len(set(found)) < len(found):
        raise ValueError(
            f"the parts of an objective are named {found}, and the log could not tell those of one name apart. Give "
            'one of them a name of its own, as in TeacherObjective(..., name="teacher_ranknet").'
        )
    return found
