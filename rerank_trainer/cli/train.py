"""``rerank-trainer train``: a trainer from the options, trained, saved and judged."""

from __future__ import annotations

import math
from typing import Any

import datasets
from peft import LoraConfig

from rerank_trainer.cli.arguments import read_mapping
from rerank_trainer.cli.objects import called, counted, previewed, rows_of, sets_of, source_of, teacher_of
from rerank_trainer.cli.options import TrainOptions
from rerank_trainer.data.formats import load_groups
from rerank_trainer.models.preview import CheckpointPreview, preview_checkpoint
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer, require_targets
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.learning_rates import default_head_learning_rate, default_learning_rate
from rerank_trainer.trainers.refusals import refuse_unsupported
from rerank_trainer.trainers.sources import TrainSource, as_sources, as_train_set, is_several

_PREVIEWED = ("head", "keep_layers", "revision", "token", "trust_remote_code", "allow_pickle")


def run(options: TrainOptions, args: RerankTrainingArguments) -> None:
    """Train, save, and judge on the evaluation sets."""
    trainer = _trainer_class(options)(
        options.model,
        args,
        train_dataset=sets_of(options.train_dataset, "train_dataset", one=source_of),
        eval_dataset=None if options.eval_dataset is None else sets_of(options.eval_dataset, "eval_dataset"),
        lora=options.lora,
        peft_config=_peft_config(options),
        load_in_4bit=options.load_in_4bit,
        **_teacher(options),
    )
    try:
        # on a command line "true" stands for the last checkpoint
        found: Any = args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint={"true": True, "false": None}.get(str(found).lower(), found))
        trainer.save_model()
        if options.eval_dataset is not None:
            figures = trainer.evaluate()
            trainer.log_metrics("eval", figures)
            trainer.save_metrics("eval", figures)
        if args.push_to_hub:
            trainer.push_to_hub()
    except (ValueError, OSError, ImportError) as error:
        # the input was accepted: whatever ends the training now is a failure of it
        raise RuntimeError(f"training failed: {error}") from error
    if trainer.is_world_process_zero():
        print(f"saved in {args.output_dir}")


def plan(options: TrainOptions, args: RerankTrainingArguments) -> dict[str, str]:
    """What would be trained, checked without weights and without asking the teacher."""
    refuse_unsupported(args)
    trainer_class = _trainer_class(options)
    teacher = _teacher(options).get("teacher")
    loading = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    model = preview_checkpoint(options.model, **{key: loading[key] for key in _PREVIEWED if key in loading})
    has_new_adapter = _peft_config(options) is not None or options.lora
    _check_adapter(options, model, has_new_adapter=has_new_adapter)
    unmade: Any = object.__new__(trainer_class)  # what a name stands for needs nothing of a trainer but its teacher
    unmade.teacher = teacher
    objective = unmade.named_objective(args)
    given = sets_of(options.train_dataset, "train_dataset", one=source_of)
    sources = as_sources(given) if is_several(given) else {None: TrainSource(given)}
    scores_are = "labels" if teacher is not None else trainer_class.scores_are
    groups: dict[Any, Any] = {
        name: _train_groups(source, objective, has_teacher=teacher is not None, scores_are=scores_are)
        for name, source in sources.items()
    }
    weights = [source.weight for source in sources.values() if source.weight is not None]
    evaluated = {} if options.eval_dataset is None else _eval_groups(options.eval_dataset, trainer_class.scores_are)
    is_adapter = has_new_adapter or model.base is not None
    rate = args.learning_rate or default_learning_rate(model.num_parameters, is_adapter=is_adapter)
    head_rate = args.head_learning_rate or default_head_learning_rate(rate)
    return {
        "model": f"{model}{'; an adapter is trained' if is_adapter else ''}",
        "train_dataset": _counted(groups),
        "eval_dataset": _counted(evaluated) or "none",
        "trainer": trainer_class.__name__,
        "objective": ", ".join(objective.names),
        "teacher": "none" if teacher is None else previewed(teacher),
        "steps": _steps(as_train_set(groups, weights or None, args), args),
        "learning_rate": f"{rate:.2g}" + ("" if model.has_head else f", {head_rate:.2g} for the fresh head"),
        "output_dir": str(args.output_dir),
    }


def _trainer_class(options: TrainOptions) -> type[RerankTrainer]:
    if options.method == "contrastive" and options.teacher is not None:
        raise ValueError(f"method: contrastive learns from labels, and there is a teacher {options.teacher!r}")
    distills = options.method == "distill" or options.teacher is not None
    return DistillRerankTrainer if distills else ContrastiveRerankTrainer


def _teacher(options: TrainOptions) -> dict[str, Any]:
    return {} if options.teacher is None else {"teacher": teacher_of(options.teacher, "teacher")}


def _peft_config(options: TrainOptions) -> LoraConfig | None:
    if options.peft_config is None:
        return None
    return called(LoraConfig, read_mapping(options.peft_config, "peft_config"), "peft_config")


def _check_adapter(options: TrainOptions, model: CheckpointPreview, *, has_new_adapter: bool) -> None:
    if options.lora and options.peft_config is not None:
        raise ValueError("lora beside peft_config: give one of them")
    if has_new_adapter and model.base is not None:
        raise ValueError(f"{model.name} is an adapter, which is trained on: leave out lora and peft_config")
    if options.load_in_4bit and not has_new_adapter and model.base is None:
        raise ValueError("load_in_4bit: weights of 4 bits cannot be trained themselves. Give lora or peft_config")


def _train_groups(source: TrainSource, objective: Any, *, has_teacher: bool, scores_are: str | None) -> Any:
    groups = load_groups(source.rows, scores_are=source.scores_are or scores_are)
    if source.objective is not None:
        return groups  # what it needs is known when it is made
    if has_teacher and "teacher_scores" in groups.column_names:
        raise ValueError("the rows have a column teacher_scores and there is a teacher: leave one of them out")
    if has_teacher and isinstance(groups, datasets.IterableDataset):
        raise ValueError("a teacher scores all groups before training, and these are a stream: annotate them first")
    return require_targets(groups, objective, has_teacher=has_teacher)


def _eval_groups(given: str, scores_are: str | None) -> dict[Any, Any]:
    found = sets_of(
        given, "eval_dataset", one=lambda part, where: load_groups(rows_of(part, where), scores_are=scores_are)
    )
    return found if isinstance(found, dict) else {None: found}


def _counted(groups: dict[Any, Any]) -> str:
    return "; ".join(counted(part) if name is None else f"{name}: {counted(part)}" for name, part in groups.items())


def _steps(train_set: Any, args: RerankTrainingArguments) -> str:
    """How long Transformers will train, and on how much in a step."""
    accumulated, num_processes = args.gradient_accumulation_steps, args.world_size
    groups = args.train_batch_size * num_processes * accumulated
    said = f"of {groups} groups with up to {args.passages_per_query} passages"
    if args.max_steps > 0:
        return f"{args.max_steps} {said}"
    num_batches = math.ceil(math.ceil(len(train_set) / args.train_batch_size) / num_processes)
    num_steps = math.ceil(args.num_train_epochs * math.ceil(num_batches / accumulated))
    return f"{num_steps} {said}, {args.num_train_epochs:g} epochs"
