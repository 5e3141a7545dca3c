"""Cells: one model trained by one recipe from one seed and judged; what it gave is written at its end, or its error."""

from __future__ import annotations

import copy
import errno
import functools
import json
import logging
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PrinterCallback

from rerank_trainer.comparison.budgets import Spending, Steps
from rerank_trainer.comparison.environment import environment
from rerank_trainer.comparison.plan import TEACHER, UNTRAINED, Cell, Plan
from rerank_trainer.comparison.recipes import CONTRASTIVE, Stage
from rerank_trainer.data.columns import GROUP_FEATURES
from rerank_trainer.data.whole_files import write_whole
from rerank_trainer.evaluation.results import Evaluation
from rerank_trainer.models.adapters import num_parameters
from rerank_trainer.models.placement import place
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.check import check_teacher
from rerank_trainer.teachers.store import stored_scores
from rerank_trainer.teachers.teacher import Teacher, as_teacher
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.students import as_student

logger = logging.getLogger(__name__)

RESULT_FILE, FAILURE_FILE, SCORES_FILE = "result.json", "failure.json", "train_scores.parquet"
# What no cell does, unless the arguments say otherwise.
_QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "verify_checkpoints": "never"}
# Options of loading that a folder which was opened with them and saved holds already.
_SAVED = ("keep_layers", "revision", "head", "prompt", "instruction")


def is_over(plan: Plan, cell: Cell) -> bool:
    """Whether the cell is finished, or has failed."""
    folder = plan.cell_folder(cell)
    return (folder / RESULT_FILE).exists() or (folder / FAILURE_FILE).exists()


def run_cell(plan: Plan, cell: Cell, on_share: Callable[[float], None]) -> None:
    """Train and judge a cell, and write what it gave; of one that fails, the error is written.

    Args:
        plan: What is compared.
        cell: Which one; the caller has claimed it.
        on_share: Told which share of its training is done.

    Raises:
        OSError: If what it gave cannot be written, because the disk is full for instance.
    """
    folder = plan.cell_folder(cell)
    shutil.rmtree(folder, ignore_errors=True)  # what a killed job has left
    folder.mkdir(parents=True)
    begun = time.time()
    try:
        evaluations, facts = _outcome(plan, cell, on_share)
    except Exception as error:  # noqa: BLE001  a cell that fails must not lose the others; its error is kept and shown
        if _is_full_disk(error):  # the others would fail, too
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, found by {cell}") from error
        logger.warning("%s failed: %s: %s", cell, type(error).__name__, error)
        failure = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        write_whole(folder / FAILURE_FILE, _json({"cell": vars(cell), **failure}))
        return
    finally:
        shutil.rmtree(folder / "work", ignore_errors=True)
    found = {
        name: [{"first_stage": r.first_stage, "depth": r.depth, "share": r.found_share} for r in evaluation.results]
        for name, evaluation in evaluations.items()
    }
    for name, evaluation in evaluations.items():
        evaluation.to_parquet(folder / f"{name}.parquet")
    # last and whole: a cell is finished once this file is there
    finished = {
        "cell": vars(cell),
        "begun": begun,
        "seconds_in_all": time.time() - begun,
        "found_share": found,
        "environment": environment(arguments(plan, Cell(TEACHER), {}).device),
        **facts,
    }
    write_whole(folder / RESULT_FILE, _json(finished))


def _is_full_disk(error: BaseException) -> bool:
    """Whether a disk or its quota is full; safetensors and others raise errors of their own that say so in words."""
    full = [errno.ENOSPC, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])]
    if (isinstance(error, OSError) and error.errno in full) or any(os.strerror(code) in str(error) for code in full):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _is_full_disk(cause)


def _outcome(plan: Plan, cell: Cell, on_share: Callable[[float], None]) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    if cell.recipe == TEACHER:
        return _of_teacher(plan, plan.cell_folder(cell))
    if cell.recipe == UNTRAINED:
        student = plan.students[cell.student]
        reranker = as_student(student.start(), arguments(plan, cell, {}), **_loading(student.options))
        size = {"num_parameters": num_parameters(reranker.model)[1]}
        if reranker.fresh_parameters:
            return {}, {"left_out": "its head is freshly initialised, so its scores would be random", **size}
        return _judged(plan, reranker), size
    reranker, facts = _trained(plan, cell, on_share)
    return _judged(plan, reranker), facts


def _trained(plan: Plan, cell: Cell, on_share: Callable[[float], None]) -> tuple[Reranker, dict[str, Any]]:
    student, recipe = plan.students[cell.student], plan.recipes[cell.recipe]
    folder, groups, scale = plan.cell_folder(cell), plan.train, None
    if recipe.reads_teacher:
        groups, scale = _with_teacher(plan)
    order = list(range(len(groups)))
    random.Random(f"compare-{cell.seed}").shuffle(order)
    start: Any = student.start()
    options = dict(student.options)
    spent: dict[str, float] = {"steps": 0, "seconds": 0.0, "tokens": 0, "groups": 0}
    losses: list[dict[str, Any]] = []
    for number, (stage, share) in enumerate(zip(recipe.stages, recipe.shares, strict=True)):
        until = plan.budget.amount * share
        spending = Spending(
            plan.budget,
            spent=spent[plan.budget.unit],
            until=round(until) if isinstance(plan.budget, Steps) else until,
            warmup=arguments(plan, cell, stage.arguments).warmup_steps,
            on_share=on_share,
        )
        args = arguments(plan, cell, stage.arguments, **spending.arguments, teacher_scale=scale)
        if number:
            args.model_init_kwargs = _without_cuts(args.model_init_kwargs)
        rows = groups.select(next_groups(order, int(spent["groups"]), spending, args))
        trainer = _trainer(stage, start, args, rows, options)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(spending)
        trainer.train()
        own = {"steps": spending.num_steps, "seconds": spending.seconds, "tokens": spending.num_tokens}
        own["groups"] = groups_taken(spending.num_steps, len(rows), args)
        spent = {unit: spent[unit] + own[unit] for unit in spent}
        losses += [{"stage": number, **entry} for entry in trainer.state.log_history if "loss" in entry]
        if number + 1 < len(recipe.stages):  # the next trainer opens a folder, as anybody would
            start, options = folder / "work" / f"stage{number}", _loading(student.options)
            trainer.reranker.save_pretrained(start)
    if plan.save_models:
        trainer.reranker.save_pretrained(folder / "model")
    trained, size = num_parameters(trainer.model)
    facts: dict[str, Any] = {f"num_{unit}": spent[unit] for unit in ("steps", "tokens", "groups")}
    facts |= {"seconds": spent["seconds"], "num_parameters": size, "num_trained": trained, "losses": losses}
    return trainer.reranker, facts


def _trainer(stage: Stage, start: Any, args: RerankTrainingArguments, rows: Any, options: Any) -> RerankTrainer:
    trainer_class = ContrastiveRerankTrainer if stage.method == CONTRASTIVE else DistillRerankTrainer
    return trainer_class(start, args, train_dataset=rows, objective=copy.deepcopy(stage.objective), **options)


def arguments(plan: Plan, cell: Cell, stage: Mapping[str, Any], **own: Any) -> RerankTrainingArguments:
    """Those of a stage: of the comparison, then of the student, then of the stage, then what the budget says."""
    student = plan.students[cell.student].arguments if cell.student else {}
    decided = {
        "output_dir": str(plan.cell_folder(cell) / "work"),
        "seed": cell.seed or 0,
        "train_sampling_strategy": "sequential",
        "check_teacher": False,  # once, in the teacher's own cell
    }
    return RerankTrainingArguments(**{**_QUIET, **plan.arguments, **student, **stage, **decided, **own})


def next_groups(order: Sequence[int], taken: int, spending: Spending, args: RerankTrainingArguments) -> list[int]:
    """The groups of a stage in their order, which goes on where so many were taken, and begins again at its end.

    Where the number of steps is known, it is just those that they train on, so that the end of a pass cuts no step, and
    every recipe trains on the same ones. Otherwise it is one pass, which the trainer repeats.
    """
    steps = spending.arguments["max_steps"] if spending.knows_steps else 0
    num_groups = steps * _groups_per_step(args) or len(order)
    return [order[(taken + place) % len(order)] for place in range(num_groups)]


def groups_taken(num_steps: int, num_groups: int, args: RerankTrainingArguments) -> int:
    """How many groups so many steps have trained on; the last step of a pass has what is left of it."""
    per_step = _groups_per_step(args)
    passes, rest = divmod(num_steps, -(-num_groups // per_step))
    return passes * num_groups + min(rest * per_step, num_groups)


def _groups_per_step(args: RerankTrainingArguments) -> int:
    return int(args.train_batch_size * args.gradient_accumulation_steps)


def _loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a student's options those that open it, without those that put an adapter beside it."""
    return {name: value for name, value in options.items() if name in ("load_in_4bit", "quantization_config")}


def _without_cuts(options: Any) -> dict[str, Any] | None:
    """Options of loading for the folder of an earlier stage."""
    return options and {name: value for name, value in options.items() if name not in _SAVED}


def _judged(plan: Plan, reranker: Reranker) -> dict[str, Evaluation]:
    judged = copy.copy(reranker)
    place(reranker.model, arguments(plan, Cell(TEACHER), {}).device)
    precision = torch.bfloat16 if plan.arguments.get("bf16") else None
    how: dict[str, Any] = {"autocast_dtype": precision, "show_progress_bar": False}
    judged.predict = functools.partial(reranker.predict, **how)  # type: ignore[method-assign]
    return {name: evaluator.evaluate(judged) for name, evaluator in plan.evaluators.items()}


def _of_teacher(plan: Plan, folder: Path) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """The teacher judged; its scores of the training groups are written, so that no other cell needs it."""
    if plan.teacher is None:
        sets = {
            name: evaluator.evaluate_scores({own.name: own.groups["teacher_scores"][:] for own in evaluator.lists})
            for name, evaluator in plan.evaluators.items()
            if all("teacher_scores" in own.groups.column_names for own in evaluator.lists)
        }
        return sets, {"scale": None, "warnings": list(check_teacher(plan.train).warnings)}
    args = arguments(plan, Cell(TEACHER), {})
    teacher = as_teacher(plan.teacher, device=args.device, autocast_dtype=torch.bfloat16 if args.bf16 else None)
    kept = args.teacher_cache_dir or plan.folder / "teacher_scores"

    def scored(groups: datasets.Dataset) -> list[list[float]]:
        return stored_scores(groups, teacher, cache_dir=kept, show_progress_bar=False)

    begun = time.perf_counter()
    scores = scored(plan.train)
    seconds = time.perf_counter() - begun
    pq.write_table(pa.table({"teacher_scores": scores}), folder / SCORES_FILE)
    report = check_teacher(_added(plan.train, scores), scale=teacher.scale)
    for warning in report.warnings:
        logger.warning("%s", warning)
    sets = {
        name: evaluator.evaluate_scores({own.name: scored(own.groups) for own in evaluator.lists})
        for name, evaluator in plan.evaluators.items()
    }
    facts = {"scale": teacher.scale, "warnings": list(report.warnings), "seconds": seconds}
    return sets, {**facts, **_size(teacher)}


def _size(teacher: Teacher) -> dict[str, int]:
    reranker = getattr(teacher, "reranker", None)
    return {"num_parameters": num_parameters(reranker.model)[1]} if isinstance(reranker, Reranker) else {}


def _with_teacher(plan: Plan) -> tuple[datasets.Dataset, str | None]:
    """The training groups with the teacher's scores, which its own cell has written, and their scale."""
    folder = plan.cell_folder(Cell(TEACHER))
    if (folder / FAILURE_FILE).exists():
        raise RuntimeError(f"the teacher failed: {json.loads((folder / FAILURE_FILE).read_text())['error']}")
    scale = json.loads((folder / RESULT_FILE).read_text())["scale"]
    if plan.teacher is None:
        return plan.train, scale
    scores = pq.read_table(folder / SCORES_FILE)["teacher_scores"].to_pylist()
    return _added(plan.train, scores), scale


def _added(groups: datasets.Dataset, scores: list[list[float]]) -> datasets.Dataset:
    return groups.add_column("teacher_scores", scores, feature=GROUP_FEATURES["teacher_scores"])


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, default=str).encode()
