"""Recipes: what a student learns from, in which stages, and which share of the budget each stage has."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerank_trainer.objectives.description import describe_objective
from rerank_trainer.objectives.objective import Objective

CONTRASTIVE, DISTILL = "contrastive", "distill"
# How much the labels count where labels and teacher train together, as in examples/two_stage.py.
LABEL_WEIGHT = 0.3


@dataclass(frozen=True)
class Stage:
    """One training of a recipe.

    Args:
        method: "contrastive" learns from labels, "distill" from the teacher's scores, and from labels too where the
            arguments say so.
        share: Of the recipe's budget; shares are divided by their sum.
        arguments: Of :class:`RerankTrainingArguments`, for this stage alone: ``objective``, ``label_weight``,
            ``teacher_temperature``, ``learning_rate`` and others. They come before those of the comparison.
        objective: An objective of your own in place of one that the arguments name. Each cell trains a copy.

    Raises:
        ValueError: If the method is not known or the share not above 0.
    """

    method: str
    share: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if self.method not in (CONTRASTIVE, DISTILL):
            raise ValueError(f"method={self.method!r}: expected {CONTRASTIVE!r} or {DISTILL!r}")
        if not self.share > 0:
            raise ValueError(f"share={self.share}: a stage needs a share of the budget above 0; or leave it out")

    @property
    def reads_teacher(self) -> bool:
        """Whether it needs teacher scores."""
        return self.method == DISTILL if self.objective is None else self.objective.needs_teacher

    @property
    def reads_labels(self) -> bool:
        """Whether labels have a part in what is minimised."""
        if self.objective is not None:
            return self.objective.needs_labels
        named = self.arguments.get("objective") in ("mixed", "gated")
        return self.method == CONTRASTIVE or named or self.arguments.get("label_weight", 0) > 0

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as plain values."""
        described = (
            None if self.objective is None else [dataclasses.asdict(p) for p in describe_objective(self.objective)]
        )
        return {"method": self.method, "share": self.share, "arguments": dict(self.arguments), "objective": described}


@dataclass(frozen=True)
class Recipe:
    """A way to train a student.

    Args:
        name: In tables; "cl", "kd", "cl+kd", "cl>kd" and "kd>cl" stand for the recipes of :data:`RECIPES`.
        stages: One or more, in their order. A later one goes on with the model, a new optimizer and a new warmup, at
            the group where the one before it stopped.

    Raises:
        ValueError: If there is no stage.

    >>> Recipe("long kd", [Stage("contrastive", share=0.2), Stage("distill", share=0.8)]).kind
    'mix'
    """

    name: str
    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        if not self.name or not self.stages:
            raise ValueError(f"recipe {self.name!r} with {len(self.stages)} stages: expected a name, and one or more")
        object.__setattr__(self, "stages", tuple(self.stages))

    @property
    def kind(self) -> str:
        """Without teacher "contrast", without labels "distil", otherwise "mix"."""
        if not self.reads_teacher:
            return "contrast"
        return "mix" if any(stage.reads_labels for stage in self.stages) else "distil"

    @property
    def reads_teacher(self) -> bool:
        """Whether a stage needs teacher scores."""
        return any(stage.reads_teacher for stage in self.stages)

    @property
    def shares(self) -> list[float]:
        """The share of the budget that is spent when each stage ends; the last is 1."""
        total = sum(stage.share for stage in self.stages)
        return [sum(stage.share for stage in self.stages[: place + 1]) / total for place in range(len(self.stages))]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as plain values."""
        return {"kind": self.kind, "stages": [stage.settings for stage in self.stages]}


_CL = Stage(CONTRASTIVE, arguments={"objective": "paper"})
_KD = Stage(DISTILL, arguments={"objective": "paper"})
_MIXED = Stage(DISTILL, arguments={"objective": "kl", "label_weight": LABEL_WEIGHT})

# By name: InfoNCE and KL as in the paper, both at once, and one after the other with half of the budget each.
RECIPES: dict[str, Recipe] = {
    "cl": Recipe("cl", [_CL]),
    "kd": Recipe("kd", [_KD]),
    "cl+kd": Recipe("cl+kd", [_MIXED]),
    "cl>kd": Recipe("cl>kd", [_CL, _KD]),
    "kd>cl": Recipe("kd>cl", [_KD, _CL]),
}


def as_recipes(recipes: Sequence[Recipe | str | Mapping[str, Any]]) -> tuple[Recipe, ...]:
    """Recipes from objects, names, and mappings such as a YAML file holds: ``{name: ..., stages: [{method: ...}]}``.

    Raises:
        ValueError: If a name is not known (the nearest are shown), a mapping has other keys, or a name comes twice.

    >>> [recipe.name for recipe in as_recipes(["cl", {"name": "sharp", "stages": [{"method": "distill"}]}])]
    ['cl', 'sharp']
    """
    if isinstance(recipes, str | Mapping | Recipe) or not recipes:
        raise ValueError(f"recipes={recipes!r}: expected a list of one or more, such as ['cl', 'kd']")
    found = tuple(_as_recipe(recipe) for recipe in recipes)
    names = [recipe.name for recipe in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"recipes: the name {twice[0]!r} stands there {names.count(twice[0])} times; expected it once")
    return found


def _as_recipe(given: Recipe | str | Mapping[str, Any]) -> Recipe:
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        try:
            stages = [stage if isinstance(stage, Stage) else Stage(**stage) for stage in given["stages"]]
            return Recipe(**{**given, "stages": stages})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"recipe {dict(given)}: expected a name and stages, each with method, and optionally share and "
                f"arguments ({type(error).__name__}: {error})"
            ) from error
    if given not in RECIPES:
        near = difflib.get_close_matches(str(given), RECIPES, n=2, cutoff=0.3)
        hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
        raise ValueError(f"recipe {given!r} is not known{hint}. Expected a Recipe or one of {list(RECIPES)}")
    return RECIPES[given]
