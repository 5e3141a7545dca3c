"""Descriptions: what an objective is made of, in words for a reader, and the papers that it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rerank_trainer.losses.citations import BIBTEX, CITED_FOR
from rerank_trainer.losses.options import LossWithOptions
from rerank_trainer.objectives.anchor import Anchor
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.consistency import AffineMap
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import LabelObjective, Objective, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.schedules import Constant, Ramp, Schedule
from rerank_trainer.objectives.temperature import Temperature

# What parts of an objective come from, beside the loss that they hold.
_PARTS_CITE: dict[type, tuple[str, ...]] = {
    AffineMap: ("han2021fixing",),
    Anchor: CITED_FOR["bce"],
    MixedObjective: (*CITED_FOR["infonce"], "maroto2022benefits"),
}
_BIBTEX = {
    "han2021fixing": """@misc{han2021fixing,
  title={Fixing the Teacher-Student Knowledge Discrepancy in Distillation},
  author={Han, Jiangfan and others},
  year={2021},
  eprint={2103.16844},
  archivePrefix={arXiv}
}""",
    "maroto2022benefits": """@misc{maroto2022benefits,
  title={On the Benefits of Knowledge Distillation for Adversarial Robustness},
  author={Maroto, Javier and Ortiz-Jim{\\'e}nez, Guillermo and Frossard, Pascal},
  year={2022},
  eprint={2203.07159},
  archivePrefix={arXiv}
}""",
}


@dataclass(frozen=True)
class Part:
    """A part of an objective, in words.

    Attributes:
        name: As in the log.
        loss: The loss, or the class of an objective of one's own.
        compares_with: "labels", "teacher", both, or nothing that is known.
        weight: A number, or how it changes.
        settings: Everything else by name.
    """

    name: str
    loss: str
    compares_with: str
    weight: str = "1"
    settings: dict[str, str] = field(default_factory=dict)


def describe_objective(objective: Objective) -> list[Part]:
    """The parts of an objective, in the order of its names.

    >>> from rerank_trainer.losses import infonce, kl
    >>> parts = [(0.3, LabelObjective(infonce)), (Ramp(1.0, 0.5), TeacherObjective(kl, teacher_temperature=2.0))]
    >>> for part in describe_objective(WeightedObjective(parts)):
    ...     print(part.name, "|", part.weight, "|", part.settings)
    infonce | 0.3 | {}
    kl | from 1 to 0.5 | {'teacher temperature': '2'}
    """
    if isinstance(objective, SourceObjective):
        return [
            replace(part, name=f"{objective.sources[source]}/{part.name}")
            for own, sources in zip(objective.parts, objective.sources_of, strict=True)
            for source in sources
            for part in describe_objective(own)
        ]
    if isinstance(objective, WeightedObjective):
        return [
            replace(part, weight=_times(_of_schedule(schedule), part.weight))
            for schedule, own in zip(objective.schedules, objective.parts, strict=True)
            for part in describe_objective(own)
        ]
    if isinstance(objective, GatedObjective):
        gate = {"teacher trusted fully from an advantage of": f"{objective.full_trust_at:g}"}
        teacher, labels = describe_objective(objective.teacher), describe_objective(objective.labels)
        gated = [(part, "how far the teacher is better, by query") for part in teacher]
        gated += [(part, "the rest") for part in labels]
        return [
            replace(part, weight=_times(weight, part.weight), settings={**part.settings, **gate})
            for part, weight in gated
        ]
    if isinstance(objective, MixedObjective):
        settings = {"label weight": _of_schedule(objective.schedule)} | _of_teacher(objective)
        return [Part(objective.names[0], "kl", "labels and teacher", settings=settings)]
    if isinstance(objective, TeacherObjective):
        compares_with = "labels and teacher" if objective.needs_labels else "teacher"
        settings = _of_loss(objective.loss_fn) | _of_teacher(objective)
        return [Part(objective.names[0], _name_of(objective.loss_fn), compares_with, settings=settings)]
    if isinstance(objective, LabelObjective):
        settings = _of_loss(objective.loss_fn) | _temperature(objective.loss_fn.keywords["temperature"])
        return [Part(objective.names[0], _name_of(objective.loss_fn), "labels", settings=settings)]
    if isinstance(objective, Anchor):
        return [Part(objective.names[0], "bce", "labels", settings=_temperature(objective.temperature))]
    targets = [name for name, needed in _needs(objective).items() if needed]
    numbered = zip(objective.names, objective.part_weights, strict=True)
    return [Part(name, type(objective).__name__, " and ".join(targets), f"{weight:g}") for name, weight in numbered]


def cited_by(objective: Objective) -> dict[str, str]:
    """BibTeX of the papers that the losses and parts of an objective come from, by key.

    >>> from rerank_trainer.losses import ranknet
    >>> list(cited_by(LabelObjective(ranknet)))
    ['burges2005learning']
    """
    keys: dict[str, None] = {}
    for part in objective.modules():
        loss_fn = getattr(part, "loss_fn", None)
        keys |= dict.fromkeys(CITED_FOR.get(_name_of(loss_fn), ()))
        keys |= dict.fromkeys(_PARTS_CITE.get(type(part), ()))
    return {key: (BIBTEX | _BIBTEX)[key] for key in keys}


def _name_of(loss_fn: Any) -> str:
    """The name of a loss whose temperature an objective has chosen."""
    return str(getattr(getattr(loss_fn, "func", None), "__name__", ""))


def _of_loss(loss_fn: Any) -> dict[str, str]:
    loss = loss_fn.func
    options = loss.options if isinstance(loss, LossWithOptions) else {}
    return {name: f"{value}" for name, value in options.items()}


def _of_teacher(objective: TeacherObjective) -> dict[str, str]:
    settings = _temperature(objective.temperature)
    if (divisor := _of_divisor(objective.teacher_temperature)) != "1":
        settings["teacher temperature"] = divisor
    if objective.consistency is not None:
        settings["teacher scores mapped by"] = type(objective.consistency).__name__
    return settings


def _of_divisor(temperature: Temperature) -> str:
    if not temperature.is_auto:
        return f"{temperature.fixed:g}"
    measured = float(temperature.measured)
    return f"{measured:g} (measured)" if measured else "auto"


def _temperature(value: float) -> dict[str, str]:
    return {} if value == 1 else {"temperature": f"{value:g}"}


def _of_schedule(schedule: Schedule) -> str:
    if isinstance(schedule, Constant):
        return f"{schedule.value:g}"
    if not isinstance(schedule, Ramp):
        return type(schedule).__name__
    part = "" if (schedule.begin, schedule.end) == (0, 1) else f" between {schedule.begin:.0%} and {schedule.end:.0%}"
    return f"from {schedule.first:g} to {schedule.last:g}{part}"


def _times(outer: str, inner: str) -> str:
    return outer if inner == "1" else inner if outer == "1" else f"{outer} × {inner}"


def _needs(objective: Objective) -> dict[str, bool]:
    return {"labels": objective.needs_labels, "teacher": objective.needs_teacher}
