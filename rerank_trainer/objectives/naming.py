"""Names as shorthand for objectives: a loss's name, or a preset that stands for a paper's own choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rerank_trainer.losses import LOSSES, LossFn, with_options
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import LabelObjective, Objective, TeacherObjective, WeightedObjective

# Losses of an order, which labels and a teacher's scores both give.
ORDER_LOSSES = ("adr_mse", "hinge", "list_mle", "p_list_mle", "ranknet")
# Which losses compare scores with labels, and which with a teacher's scores.
LABEL_LOSSES = ("infonce", "bce", "mse", "listnet", "lambdarank", "approx_ndcg", "approx_mrr", *ORDER_LOSSES)
TEACHER_LOSSES = ("kl", "margin_mse", "positive_margin_mse", "mse", "pearson", "relations", *ORDER_LOSSES)
# Xu et al. (2025), https://arxiv.org/abs/2507.08336: InfoNCE against KL on the same groups, nothing mixed in.
PAPER = "paper"
# Labels and teacher together: in one distribution, or as far as the teacher is better.
MIXED, GATED = "mixed", "gated"


def contrastive_objective(
    name: str, *, temperature: float = 1.0, loss_options: Mapping[str, Any] | None = None
) -> Objective:
    """The objective of learning from labels that a name stands for.

    Args:
        name: A loss of labels, or "paper" for plain InfoNCE.
        temperature: Divides the scores.
        loss_options: Options of the loss, such as ``{"k": 10}`` of "lambdarank".

    Raises:
        ValueError: If the name or an option is not known, or "paper" comes with other settings.

    >>> contrastive_objective("lambdarank", loss_options={"k": 10}).names
    ('lambdarank',)
    """
    if name == PAPER:
        _require_plain(temperature=temperature, loss_options=loss_options or {})
        name = "infonce"
    return LabelObjective(_loss(name, LABEL_LOSSES, loss_options), temperature=temperature)


def distillation_objective(
    name: str,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | str = 1.0,
    loss_options: Mapping[str, Any] | None = None,
    label_weight: float = 0.0,
    label_loss: str = "infonce",
    label_loss_options: Mapping[str, Any] | None = None,
    num_epochs: float = 1.0,
) -> Objective:
    """The objective of learning from a teacher that a name stands for.

    Args:
        name: A loss of teacher scores, or "paper" for plain KL.
        temperature: Divides the student's scores, before both losses.
        teacher_temperature: Divides the teacher's scores: a number or "auto".
        loss_options: Options of the loss of teacher scores, such as ``{"pairs": "all"}`` of "margin_mse".
        label_weight: Between 0 and 1: how much the labels count; the teacher counts the rest. "gated" finds it itself.
        label_loss: The loss of the labels.
        label_loss_options: Options of the loss of the labels.
        num_epochs: How often each group comes; "gated" measures in the first epoch only.

    Raises:
        ValueError: If a name or an option is not known, the weight not in [0, 1], or "paper",
            "mixed" or "gated" come with what they do not take.

    >>> distillation_objective("margin_mse", loss_options={"pairs": "all"}, label_weight=0.3, label_loss="hinge").names
    ('margin_mse', 'label_hinge')
    """
    if name == PAPER:
        _require_plain(
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            loss_options=loss_options or {},
            label_weight=label_weight,
        )
        name = "kl"
    if not 0 <= label_weight <= 1:
        raise ValueError(f"label_weight={label_weight}: expected a weight from 0 (teacher only) to 1 (labels only)")
    if name == MIXED:
        if loss_options:
            raise ValueError(f'loss_options={dict(loss_options)}: objective "mixed" is KL, which has none')
        return MixedObjective(
            label_weight=label_weight, temperature=temperature, teacher_temperature=teacher_temperature
        )
    loss_name = "kl" if name == GATED else name
    loss = _loss(loss_name, (*TEACHER_LOSSES, MIXED, GATED), loss_options)
    teacher = TeacherObjective(loss, temperature=temperature, teacher_temperature=teacher_temperature)
    label_loss_fn = _loss(label_loss, LABEL_LOSSES, label_loss_options)
    labels = LabelObjective(label_loss_fn, temperature=temperature, name=f"label_{label_loss}")
    if name == GATED:
        if label_weight:
            raise ValueError(f'label_weight={label_weight}: objective "gated" weighs the labels itself, by query')
        return GatedObjective(teacher, labels, measured_until=1.0 / max(1.0, num_epochs))
    if label_weight == 0:
        return teacher
    return WeightedObjective([(1 - label_weight, teacher), (label_weight, labels)])


def _loss(name: str, accepted: Iterable[str], options: Mapping[str, Any] | None) -> LossFn:
    if name not in accepted:
        raise ValueError(f"objective {name!r} is not known here; expected one of {[*accepted, PAPER]}")
    if "teacher_temperature" in (options or {}):
        raise ValueError(f"teacher_temperature is no option of {name!r} here: set teacher_temperature itself")
    return with_options(LOSSES[name], **(options or {}))


def _require_plain(**settings: Any) -> None:
    plain = {"temperature": 1.0, "teacher_temperature": 1.0, "label_weight": 0.0, "loss_options": {}}
    changed = {name: value for name, value in settings.items() if value != plain[name]}
    if changed:
        raise ValueError(f'objective "paper" is plain InfoNCE or plain KL; it does not take {changed}. Name the loss.')
