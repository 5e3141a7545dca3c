"""Planning: a plan from what a caller or a YAML file gives, checked before any work."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets

from rerank_trainer.comparison.budgets import Budget, as_budget
from rerank_trainer.comparison.cells import arguments, is_over
from rerank_trainer.comparison.plan import TEACHER, UNTRAINED, Cell, Plan, checked_arguments
from rerank_trainer.comparison.recipes import Recipe, as_recipes
from rerank_trainer.comparison.students import as_students
from rerank_trainer.data.formats import load_groups
from rerank_trainer.evaluation.evaluator import RerankEvaluator
from rerank_trainer.models.preview import CheckpointPreview, preview_checkpoint
from rerank_trainer.trainers.arguments import RerankTrainingArguments


def make_plan(
    students: Any,
    teacher: Any,
    train: Any,
    eval_sets: Mapping[str, Any],
    *,
    recipes: Sequence[Recipe | str | Mapping[str, Any]],
    seeds: int | Sequence[int],
    budget: Budget | Mapping[str, Any],
    output_dir: str | Path,
    out_of_domain: Sequence[str],
    metrics: Sequence[str],
    depths: int | Sequence[int] | None,
    args: RerankTrainingArguments | Mapping[str, Any] | None,
    save_models: bool,
) -> Plan:
    """What :func:`compare` would do with these arguments; nothing is loaded but the data, and nothing written.

    Raises:
        ValueError: As :func:`compare`, but for a folder of other settings.
    """
    chosen = as_recipes(recipes)
    plan = Plan(
        students=as_students(students),
        recipes={recipe.name: recipe for recipe in chosen},
        teacher=teacher,
        train=_train_groups(train),
        evaluators=as_evaluators(eval_sets, metrics=tuple(metrics), depths=depths),
        out_of_domain=tuple([out_of_domain] if isinstance(out_of_domain, str) else out_of_domain),
        seeds=_seeds(seeds),
        budget=as_budget(budget),
        arguments=as_arguments(args),
        folder=Path(output_dir),
        save_models=save_models,
    )
    # made once for every model, so that a value that cannot be is refused here and not in each cell
    stages: list[Mapping[str, Any]] = [{}, *(stage.arguments for recipe in chosen for stage in recipe.stages)]
    made = [arguments(plan, Cell(UNTRAINED, name), stage) for name in plan.students for stage in stages]
    if (num := max(made[0].world_size, made[0].n_gpu)) > 1:
        raise ValueError(
            f"compare runs in one process on one device, found {num}. Start it as separate jobs that share "
            "output_dir, one a device (CUDA_VISIBLE_DEVICES); they divide the cells."
        )
    return plan


def refuse_what_cannot_open(plan: Plan) -> None:
    """Refuse models given by name that no cell could open, by all of their files but the weights.

    Students and teacher whose cells are over are not looked at; they may be gone.

    Raises:
        ValueError: Naming the student, or the teacher.
    """
    left = [cell for cell in plan.cells if not is_over(plan, cell)]
    for name in dict.fromkeys(cell.student for cell in left if cell.student):
        if isinstance(model := plan.students[name].model, str | Path):
            given: Any = arguments(plan, Cell(UNTRAINED, name), {}).model_init_kwargs or {}
            _previewed(model, f"student {name!r}", given)
    if Cell(TEACHER) in left and isinstance(plan.teacher, str | Path):
        if not _previewed(plan.teacher, "teacher", {}).has_head:
            raise ValueError(f"teacher {plan.teacher}: its head is freshly initialised. Give a trained reranker.")


def _previewed(model: str | Path, who: str, given: Mapping[str, Any]) -> CheckpointPreview:
    known = inspect.signature(preview_checkpoint).parameters
    try:
        return preview_checkpoint(model, **{name: value for name, value in given.items() if name in known})
    except (OSError, ValueError) as error:
        raise ValueError(f"{who}, {model}: {error}") from error


def as_arguments(args: RerankTrainingArguments | Mapping[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments of all trainings, of an object those that differ from the defaults.

    Raises:
        ValueError: If one is not known, or the comparison decides it.
    """
    if isinstance(args, RerankTrainingArguments):
        plain = RerankTrainingArguments(args.output_dir)
        known = [each.name for each in fields(args) if each.init]
        args = {name: getattr(args, name) for name in known if getattr(args, name) != getattr(plain, name)}
        args = {name: value for name, value in args.items() if name not in ("output_dir", "run_name", "logging_dir")}
    return checked_arguments(args or {}, "args")


def as_evaluators(eval_sets: Any, *, metrics: Sequence[str], depths: Any) -> dict[str, RerankEvaluator]:
    """An evaluator for each set.

    Raises:
        ValueError: If there is none, a set cannot be judged, or evaluators disagree about the first metric.
    """
    if not isinstance(eval_sets, Mapping) or isinstance(eval_sets, datasets.DatasetDict) or not eval_sets:
        raise ValueError(
            f'eval_sets: expected a dict from name to groups, such as {{"scifact": ...}}, found {eval_sets!r:.200}'
        )
    found: dict[str, RerankEvaluator] = {}
    for name, given in eval_sets.items():
        if isinstance(given, RerankEvaluator):
            found[name] = given
            continue
        groups = {k: _groups(v) for k, v in given.items()} if isinstance(given, Mapping) else _groups(given)
        try:
            found[name] = RerankEvaluator(groups, metrics=metrics, depths=depths, name=name)
        except ValueError as error:
            raise ValueError(f"eval_sets, {name!r}: {error}") from error
    for name, evaluator in found.items():
        if evaluator.metrics[0] != metrics[0]:
            raise ValueError(
                f"eval_sets, {name!r}: its first metric is {evaluator.metrics[0]!r}, expected {metrics[0]!r}"
            )
        if (num := len(evaluator.lists[0].judged)) < 2:
            raise ValueError(f"eval_sets, {name!r}: {num} query has a relevant passage; a test needs 2 or more")
    return found


def _groups(given: Any) -> Any:
    return load_groups(given) if isinstance(given, str | Path) else given


def _train_groups(train: Any) -> Any:
    groups = load_groups(train, scores_are="labels")
    if not hasattr(groups, "select"):
        raise ValueError("train is a stream, and all recipes must see the same groups in one order. Load it whole.")
    return groups


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found or len(set(found)) < len(found) or not all(isinstance(seed, int) for seed in found):
        raise ValueError(f"seeds={seeds!r}: expected how many, 1 or more, or a list of different whole numbers")
    return found
