"""The plan of a comparison: its cells, all settings that decide their outcome, and where each cell is kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets

from rerank_trainer.comparison.budgets import Budget, Steps
from rerank_trainer.comparison.recipes import Recipe
from rerank_trainer.comparison.students import Student, model_digest
from rerank_trainer.data.whole_files import write_whole
from rerank_trainer.evaluation.evaluator import RerankEvaluator
from rerank_trainer.trainers.arguments import RerankTrainingArguments

SETTINGS_FILE = "compare.json"
# Names of rows of the table that no recipe may have.
FIRST_STAGE, CEILING, TEACHER, UNTRAINED = "first stage", "ceiling", "teacher", "untrained"
IN_DOMAIN, OUT_OF_DOMAIN = "in domain", "out of domain"
# What may grow from one call to the next: cells that are finished stay as they are.
_MAY_GROW = ("students", "recipes", "seeds")
# Arguments that a comparison decides, and who does.
_DECIDED = {
    **dict.fromkeys(("output_dir",), "output_dir=... of compare"),
    **dict.fromkeys(("seed", "data_seed"), "seeds=..."),
    **dict.fromkeys(("max_steps", "num_train_epochs"), "budget=..."),
    **dict.fromkeys(("eval_strategy", "do_eval", "load_best_model_at_end", "metric_for_best_model"), "eval_sets=..."),
    **dict.fromkeys(("save_strategy", "save_steps", "resume_from_checkpoint"), "cells, which begin anew when stopped"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "you, afterwards"),
    "train_sampling_strategy": "seeds=..., which draw one order for all recipes",
    "teacher_scale": "the teacher",
}
_SECRET = "hub_token"  # that no file may hold
_COLUMN = {"name": "the column teacher_scores"}
_SAMPLED_ROWS = 1000  # that make the digest of a large data set


@dataclass(frozen=True)
class Cell:
    """One model that is judged.

    Attributes:
        recipe: The name of a recipe, "teacher" or "untrained".
        student: Its name; "" of the teacher.
        seed: Of its training; None where nothing is trained.
    """

    recipe: str
    student: str = ""
    seed: int | None = None

    @property
    def key(self) -> str:
        """The name of its folder: safe everywhere, unlike for unlike cells."""
        parts = [self.student, self.recipe, "" if self.seed is None else f"seed{self.seed}"]
        text = "--".join(part for part in parts if part)
        safe = re.sub(r"[^\w.+-]", "-", text.replace(">", "-then-"))
        return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    def __str__(self) -> str:
        return " ".join(
            [*filter(None, (self.student, self.recipe))] + ([] if self.seed is None else [f"seed {self.seed}"])
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a comparison does.

    Attributes:
        students, recipes: By name.
        teacher: As given; None where the rows have its scores, or no recipe needs one.
        train: Checked groups.
        evaluators: By the name of the evaluation set.
        out_of_domain: Those of them that are.
        seeds: Of the trainings.
        budget: Of each recipe.
        arguments: Of :class:`RerankTrainingArguments`, for all cells.
        folder: Where everything is kept.
        save_models: Whether trained models are kept.
        settings: All that decides the outcome, as plain values; what the folder is known by.
    """

    students: Mapping[str, Student]
    recipes: Mapping[str, Recipe]
    teacher: Any
    train: datasets.Dataset
    evaluators: Mapping[str, RerankEvaluator]
    out_of_domain: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    arguments: Mapping[str, Any]
    folder: Path
    save_models: bool = False
    settings: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "settings", _settings(self))

    @property
    def metric(self) -> str:
        """The one that tests, tables and advice are about."""
        return next(iter(self.evaluators.values())).metrics[0]

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher to judge: one that is given, or scores that stand in the rows."""
        return self.teacher is not None or "teacher_scores" in self.train.column_names

    @property
    def cells(self) -> list[Cell]:
        """All of them: first what others need, then seed by seed, so that a stopped comparison has whole seeds."""
        first = [Cell(TEACHER)] * self.has_teacher + [Cell(UNTRAINED, student) for student in self.students]
        trained = [Cell(r, student, seed) for seed in self.seeds for student in self.students for r in self.recipes]
        return first + trained

    def describe(self) -> dict[str, str]:
        """All that would be done, in words."""
        sets = [
            f"{name}: {len(evaluator.lists[0].judged):,} queries to depth {evaluator.depths[-1]}"
            + (f" ({OUT_OF_DOMAIN})" if name in self.out_of_domain else "")
            for name, evaluator in self.evaluators.items()
        ]
        return {
            "students": ", ".join(self.students),
            "recipes": ", ".join(self.recipes),
            "teacher": str((self.settings["teacher"] or {}).get("name", "none")),
            "train": f"{len(self.train):,} groups",
            "eval_sets": "; ".join(sets),
            "budget": f"{self.budget.amount:,} {self.budget.unit} of each recipe",
            "cells": f"{len(self.cells)}, seeds {', '.join(map(str, self.seeds))}",
            "output_dir": str(self.folder),
        }

    def cell_folder(self, cell: Cell) -> Path:
        """Where the cell is kept."""
        return self.folder / "cells" / cell.key

    def write_settings(self) -> None:
        """Write the settings into the folder, or make sure that it was made with the same ones.

        Raises:
            ValueError: If it was made with others; the difference is shown.
        """
        path = self.folder / SETTINGS_FILE
        settings = json.loads(json.dumps(self.settings))
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if changed := differences(found, settings):
                raise ValueError(
                    f"{self.folder} was made with other settings, and cells of both could not be compared:\n"
                    + "\n".join(f"  {line}" for line in changed)
                    + "\nGive the settings of the folder, or another output_dir."
                )
            for name in _MAY_GROW:
                old, new = found[name], settings[name]
                settings[name] = {**old, **new} if isinstance(old, dict) else sorted({*old, *new})
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1).encode())


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What is set otherwise, one line each. Students, recipes and seeds that only one of them has are no difference.

    >>> differences({"budget": {"steps": 5}, "seeds": [0]}, {"budget": {"steps": 6}, "seeds": [0, 1]})
    ['budget.steps: 5 in the folder, 6 asked']
    """
    old, new = _flat(found), _flat(asked)
    common = {name: found.get(name, {}).keys() & asked.get(name, {}).keys() for name in ("students", "recipes")}

    def counts(key: tuple[str, ...]) -> bool:
        return key[0] != "seeds" and (key[0] not in common or len(key) == 1 or key[1] in common[key[0]])

    lines = []
    for key in sorted({*old, *new}):
        was, now = (values.get(key, "nothing") for values in (old, new))
        if was != now and counts(key):
            lines.append(f"{'.'.join(key)}: {was} in the folder, {now} asked")
    return lines


def _flat(value: Any, key: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, (*key, str(name))).items()}
    return {key: value}


def checked_arguments(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """These arguments, unless one is not known or decided elsewhere."""
    known = {each.name for each in fields(RerankTrainingArguments) if each.init}
    for name in given:
        if name in _DECIDED:
            raise ValueError(f"{where}: {name}={given[name]!r} is decided by {_DECIDED[name]}; leave it out")
        if name not in known:
            raise ValueError(f"{where}: {name!r} is no argument of RerankTrainingArguments")
    return dict(given)


def _check(plan: Plan) -> None:
    reserved = {FIRST_STAGE, CEILING, TEACHER, UNTRAINED}
    if taken := reserved & {*plan.recipes, *plan.students}:
        raise ValueError(
            f"{sorted(taken)[0]!r} is a row of its own in the table; give the recipe or student another name"
        )
    if unknown := [name for name in plan.out_of_domain if name not in plan.evaluators]:
        raise ValueError(f"out_of_domain={unknown}: expected names of eval_sets, {list(plan.evaluators)}")
    for name in plan.evaluators:
        if not name or re.search(r"[/\\]", name):
            raise ValueError(f"eval_sets: {name!r} names files, so it must not be empty or hold a slash")
    has_column = "teacher_scores" in plan.train.column_names
    if has_column and plan.teacher is not None:
        raise ValueError("train has a column teacher_scores and there is a teacher: which one counts? Leave one out.")
    needs = [name for name, recipe in plan.recipes.items() if recipe.reads_teacher]
    if needs and not plan.has_teacher:
        raise ValueError(
            f"the recipes {needs} need a teacher, and teacher=None. Give a reranker's name, or rows with a column "
            f"teacher_scores; without either, compare recipes such as 'cl'. train has {plan.train.column_names}."
        )
    labelled = [n for n, r in plan.recipes.items() if any(stage.reads_labels for stage in r.stages)]
    if labelled and "labels" not in plan.train.column_names:
        raise ValueError(f"the recipes {labelled} learn from labels, and train has only {plan.train.column_names}")
    for where, given in [
        *((f"student {n!r}", s.arguments) for n, s in plan.students.items()),
        *((f"recipe {n!r}", stage.arguments) for n, r in plan.recipes.items() for stage in r.stages),
    ]:
        merged = {**plan.arguments, **checked_arguments(given, where)}
        if not isinstance(plan.budget, Steps) and "lr_scheduler_type" in merged:
            raise ValueError(f"{where}: lr_scheduler_type needs the number of steps, which {plan.budget} leaves open")
        if not isinstance(plan.budget, Steps) and (warmup := merged.get("warmup_steps", 0)) >= 1:
            raise ValueError(
                f"{where}: warmup_steps={warmup}: how many steps {plan.budget} makes is open; give a share"
            )


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "budget": {plan.budget.unit: plan.budget.amount},
        "seeds": list(plan.seeds),
        "recipes": {name: recipe.settings for name, recipe in plan.recipes.items()},
        "students": {name: student.settings for name, student in plan.students.items()},
        "teacher": model_digest(plan.teacher) if plan.teacher is not None or not plan.has_teacher else _COLUMN,
        "train": rows_digest(plan.train),
        "eval_sets": {
            name: {
                "domain": OUT_OF_DOMAIN if name in plan.out_of_domain else IN_DOMAIN,
                "metrics": list(evaluator.metrics),
                "depths": list(evaluator.depths),
                "first_stages": {own.name: rows_digest(own.groups) for own in evaluator.lists},
            }
            for name, evaluator in plan.evaluators.items()
        },
        "arguments": {name: _plain(value) for name, value in plan.arguments.items() if name != _SECRET},
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; of an object its text."""
    return json.loads(json.dumps(value, default=str))


def rows_digest(groups: datasets.Dataset) -> dict[str, Any]:
    """By what groups are known again: their number, and a digest of up to 1,000 of them, evenly spaced."""
    num = len(groups)
    digest = hashlib.sha256()
    for place in sorted({i * num // min(num, _SAMPLED_ROWS) for i in range(min(num, _SAMPLED_ROWS))}):
        digest.update(json.dumps(groups[place], sort_keys=True, default=str).encode())
    return {"num_groups": num, "digest": digest.hexdigest()[:16]}
