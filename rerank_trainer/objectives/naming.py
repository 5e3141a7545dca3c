"""Names as shorthand for objectives: a loss's name, or a preset that stands for a paper's own choice."""

from __future__ import annotations

from collections.abc import Iterable

from rerank_trainer.losses import LOSSES, LossFn
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import LabelObjective, Objective, TeacherObjective, WeightedObjective

# Which losses compare scores with labels, and which with a teacher's scores.
LABEL_LOSSES = ("infonce", "bce", "mse", "ranknet")
TEACHER_LOSSES = ("kl", "margin_mse", "mse", "ranknet", "relations")
# Xu et al. (2025), https://arxiv.org/abs/2507.08336: InfoNCE against KL on the same groups, nothing mixed in.
PAPER = "paper"
# Labels and teacher together: in one distribution, or as far as the teacher is better.
MIXED, GATED = "mixed", "gated"


def contrastive_objective(name: str, *, temperature: float = 1.0) -> Objective:
    """The objective of learning from labels that a name stands for.

    Args:
        name: A loss of labels, or "paper" for plain InfoNCE.
        temperature: Divides the scores.

    Raises:
        ValueError: If the name is not known, or "paper" comes with a temperature.
    """
    if name == PAPER:
        _require_plain(temperature=temperature)
        name = "infonce"
    return LabelObjective(_loss(name, LABEL_LOSSES), temperature=temperature)


def distillation_objective(
    name: str,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | str = 1.0,
    label_weight: float = 0.0,
    label_loss: str = "infonce",
    num_epochs: float = 1.0,
) -> Objective:
    """The objective of learning from a teacher that a name stands for.

    Args:
        name: A loss of teacher scores, or "paper" for plain KL.
        temperature: Divides the student's scores, before both losses.
        teacher_temperature: Divides the teacher's scores: a number or "auto".
        label_weight: Between 0 and 1: how much the labels count; the teacher counts the rest. "gated" finds it itself.
        label_loss: The loss of the labels.
        num_epochs: How often each group comes; "gated" measures in the first epoch only.

    Raises:
        ValueError: If a name is not known, the weight not in [0, 1], or "paper" or "gated" come with what they do not
            take.
    """
    if name == PAPER:
        _require_plain(temperature=temperature, teacher_temperature=teacher_temperature, label_weight=label_weight)
        name = "kl"
    if not 0 <= label_weight <= 1:
        raise ValueError(f"label_weight={label_weight}: expected a weight from 0 (teacher only) to 1 (labels only)")
    if name == MIXED:
        return MixedObjective(
            label_weight=label_weight, temperature=temperature, teacher_temperature=teacher_temperature
        )
    loss = LOSSES["kl"] if name == GATED else _loss(name, (*TEACHER_LOSSES, MIXED, GATED))
    teacher = TeacherObjective(loss, temperature=temperature, teacher_temperature=teacher_temperature)
    if name == GATED:
        if label_weight:
            raise ValueError(f'label_weight={label_weight}: objective "gated" weighs the labels itself, by query')
        labels = LabelObjective(_loss(label_loss, LABEL_LOSSES), temperature=temperature, name=f"label_{label_loss}")
        return GatedObjective(teacher, labels, measured_until=1.0 / max(1.0, num_epochs))
    if label_weight == 0:
        return teacher
    labels = LabelObjective(_loss(label_loss, LABEL_LOSSES), temperature=temperature, name=f"label_{label_loss}")
    return WeightedObjective([(1 - label_weight, teacher), (label_weight, labels)])


def _loss(name: str, accepted: Iterable[str]) -> LossFn:
    if name not in accepted:
        raise ValueError(f"objective {name!r} is not known here; expected one of {[*accepted, PAPER]}")
    return LOSSES[name]


def _require_plain(**settings: float | str) -> None:
    plain = {"temperature": 1.0, "teacher_temperature": 1.0, "label_weight": 0.0}
    changed = {name: value for name, value in settings.items() if value != plain[name]}
    if changed:
        raise ValueError(f'objective "paper" is plain InfoNCE or plain KL; it does not take {changed}. Name the loss.')
