"""The trainer that both methods share: groups in, one loss out; everything else is the Transformers Trainer's."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from peft import PeftConfig, PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from rerank_trainer.data.collator import RerankCollator
from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.sampling import EvalGroups
from rerank_trainer.models.adapters import num_parameters
from rerank_trainer.models.precision import computes_bf16
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import bind_row_forward
from rerank_trainer.models.token_budget import checked_max_tokens
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.objective import Objective
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.card import TrainingCard
from rerank_trainer.trainers.evaluators import as_evaluator
from rerank_trainer.trainers.footprint import Footprint, FootprintReport
from rerank_trainer.trainers.hooks import GroupHooks
from rerank_trainer.trainers.learning_rates import default_head_learning_rate, default_learning_rate
from rerank_trainer.trainers.metrics import GroupMetrics
from rerank_trainer.trainers.progress import ObjectiveCallback, prepare_objective
from rerank_trainer.trainers.refusals import refuse_unsupported
from rerank_trainer.trainers.saving import refuse_other_kind, verify_folder
from rerank_trainer.trainers.sharding import agree_on_forwards, name_layers
from rerank_trainer.trainers.sources import Rows, TrainSource, as_sources, as_train_set, is_several, with_instruction
from rerank_trainer.trainers.step_report import StepReport
from rerank_trainer.trainers.students import as_student
from rerank_trainer.trainers.watch import RerankWatch

if TYPE_CHECKING:
    from sentence_transformers.base.evaluation import BaseEvaluator

logger = logging.getLogger(__name__)

_OF_NAMED = ("temperature", "teacher_temperature", "label_weight", "label_loss", "label_loss_options")


class RerankTrainer(GroupHooks):
    """Trains a reranker on groups with any objective. Use one of its two subclasses, or give an objective.

    Args:
        model: A Hub id or folder (of an adapter as well, whose training goes on), a Transformers or PEFT model with one
            logit, or a :class:`Reranker`.
        args: What to do; ``None`` takes the defaults.
        objective: An objective of your own; None takes the one that ``args`` names.
        peft_config: Train an adapter beside the frozen model: a ``LoraConfig`` (also with ``use_dora=True``),
            ``IA3Config`` or ``PromptTuningConfig``; what it leaves open is completed, see ``docs/cheap_students.md``.
        lora: The same with defaults: LoRA of rank 16 on every linear layer of the backbone.
        quantization_config: Hold the weights of a model given by name in 4 or 8 bits, a ``BitsAndBytesConfig``; needs
            an adapter.
        load_in_4bit: The same with defaults: nf4, as in QLoRA.
        train_dataset: Rows in any layout that :func:`load_groups` recognises: a data set, a path or a Hub id; or
            several: a mapping from name to rows or to a :class:`TrainSource`. Rows may be a stream, a
            ``datasets.IterableDataset``, when ``args.max_steps`` says how long to train.
        eval_dataset: Rows, or a mapping from name to rows: the names stand in the logs.
        processing_class: A tokenizer other than the model's own.
        compute_metrics: Metrics of your own in place of ``args.eval_metrics``; ``label_ids`` is the pair (labels,
            missed gains), both padded with -100, as are the scores where no passage is.
        evaluator: An evaluator of sentence-transformers or a list of them, with or without ``eval_dataset``: it judges
            the model in memory, and its figures join those of :meth:`evaluate`.
        callbacks: As in Transformers; a :class:`RerankWatch` among them takes the place of the default one.
        optimizers: As in Transformers.

    Attributes:
        reranker: The model with its tokenizer, template and head; ``trainer.model`` is the plain Transformers model.

    Raises:
        ValueError: If rows, model and arguments do not fit each other; before any training time is spent.
        ImportError: If the weights are to be quantised and bitsandbytes is missing.
    """

    scores_are: str | None = None  # what a column `scores` holds for this trainer, in rows that do not say

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel | Reranker,
        args: RerankTrainingArguments | None = None,
        *,
        objective: Objective | None = None,
        peft_config: PeftConfig | None = None,
        lora: bool = False,
        quantization_config: BitsAndBytesConfig | None = None,
        load_in_4bit: bool = False,
        train_dataset: Rows | Mapping[str, Rows | TrainSource] | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        evaluator: BaseEvaluator | list[BaseEvaluator] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        # a copy: the learning rate is filled in by the model's size, and the caller may train another model next
        args = copy.copy(args) if args is not None else RerankTrainingArguments("trainer_output")
        refuse_unsupported(args)
        warn_of_emulation(args)
        _require_one_objective(objective, args, train_dataset)
        set_seed(args.seed)  # before a model is loaded: its fresh head is drawn here
        cheap: Any = {"peft_config": peft_config, "lora": lora}
        cheap |= {"quantization_config": quantization_config, "load_in_4bit": load_in_4bit}
        self.reranker = as_student(model, args, processing_class, **cheap)
        refuse_other_kind(args, self.reranker.model)
        self.card = TrainingCard(self.reranker, train_dataset, eval_dataset)
        objective = objective or self.named_objective(args)
        train_groups, train_objective = self._train_set(train_dataset, objective, args)
        eval_groups = self._eval_groups(eval_dataset)
        own_metrics = args.eval_metrics if compute_metrics is None and eval_dataset is not None else []
        refuse_sharded_evaluator(evaluator, args)
        self.evaluator = as_evaluator(evaluator, eval_metrics=own_metrics)
        self._set_learning_rates(args)
        name_layers(args, self.reranker.model)
        scorer = self.reranker.row_scorer(
            checked_max_tokens(args.max_tokens_per_micro_batch),
            recompute=args.recompute_activations,
            share_prefix=args.share_prefix,
        )
        bind_row_forward(self.reranker.model, scorer)
        super().__init__(
            model=self.reranker.model,
            args=args,
            data_collator=RerankCollator(self.reranker.template, sources=getattr(train_objective, "sources", ())),
            train_dataset=train_groups,
            # an evaluator alone can be what Transformers evaluates: any value but None says that there is something
            eval_dataset=[] if eval_groups is None and evaluator is not None else eval_groups,
            processing_class=self.reranker.tokenizer,
            compute_metrics=compute_metrics or GroupMetrics(args.eval_metrics, args.label_names),
            callbacks=[*with_watch(callbacks or []), FootprintReport],
            optimizers=optimizers,
        )
        self._set_objectives(train_objective, objective)
        if args.step_report:
            self.add_callback(StepReport)
        agree_on_forwards(self)
        self.eval_dataset = eval_groups

    def named_objective(self, args: RerankTrainingArguments) -> Objective:
        """The objective that the arguments name.

        Raises:
            ValueError: Here always: this trainer has no default objective.
        """
        raise ValueError("RerankTrainer needs objective=...; or use ContrastiveRerankTrainer or DistillRerankTrainer.")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As in Transformers, for rows in any layout that is recognised; empty where an evaluator alone is there."""
        if eval_dataset is None and self.eval_dataset is None and self.evaluator is not None:
            return DataLoader([])
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._eval_groups(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As in Transformers, for rows in any layout that is recognised."""
        return super().get_test_dataloader(self._eval_groups(test_dataset))

    def named_source_objective(self, name: str, args: RerankTrainingArguments) -> Objective:
        """The objective that a name in a :class:`TrainSource` stands for: the same as in ``args.objective``."""
        args = copy.copy(args)
        if name != args.objective:
            args.loss_options = None  # those of another loss
        args.objective = name
        return self.named_objective(args)

    def _train_set(self, rows: Any, objective: Objective, args: RerankTrainingArguments) -> tuple[Any, Objective]:
        """The training set with its objective: the trainer's own, or with several sources one that tells them apart."""
        if rows is None:
            return None, objective
        if not is_several(rows):
            groups = self._train_groups(TrainSource(rows), objective)
            warn_of_instruction(self.reranker, groups)
            return as_train_set({None: groups}, None, args), objective
        sources = as_sources(rows)
        named = {source.objective for source in sources.values() if isinstance(source.objective, str)}
        by_name: dict[Any, Any] = {name: self.named_source_objective(name, args) for name in named}
        objectives = {
            name: objective if source.objective is None else by_name.get(source.objective, source.objective)
            for name, source in sources.items()
        }
        groups_of: dict[str | None, Any] = {}
        for name, source in sources.items():
            try:
                groups_of[name] = self._train_groups(source, objectives[name])
            except ValueError as error:
                raise ValueError(f"source {name!r}: {error}") from error
        warn_of_instruction(self.reranker, *groups_of.values())
        weights = [source.weight for source in sources.values() if source.weight is not None]
        return as_train_set(groups_of, weights or None, args), SourceObjective(objectives)

    def _train_groups(self, source: TrainSource, objective: Objective) -> datasets.Dataset | datasets.IterableDataset:
        groups = load_groups(source.rows, scores_are=source.scores_are or self.scores_are)
        return with_instruction(require_targets(groups, objective), source.instruction)

    def _eval_groups(self, rows: Any) -> Any:
        if isinstance(rows, datasets.IterableDataset):
            raise ValueError(
                "the evaluation set is a stream, but metrics are of a whole. Keep a part of it: "
                "datasets.Dataset.from_list(list(stream.take(1_000)))."
            )
        if rows is None or isinstance(rows, Dataset) and not isinstance(rows, datasets.Dataset):
            return rows
        if isinstance(rows, Mapping) and not isinstance(rows, datasets.DatasetDict):
            return {name: self._eval_groups(part) for name, part in rows.items()}
        groups = load_groups(rows, scores_are=self.scores_are)
        if "labels" not in groups.column_names:
            raise ValueError(
                f"the evaluation set has the columns {groups.column_names} and no labels, so nothing can be measured. "
                "Add a column labels: one number of 0 or more a passage."
            )
        return EvalGroups(groups)

    @property
    def footprint(self) -> Footprint | None:
        """What was trained, its size and the memory it took, see :class:`Footprint`; None before training."""
        reports = (each for each in self.callback_handler.callbacks if isinstance(each, FootprintReport))
        return next(reports).footprint

    def save_merged(self, folder: str | Path) -> None:
        """Write the student with its adapter merged into full weights, and verify the folder as any other.

        Raises:
            ValueError: If the student has no adapter, one that cannot be merged, or the folder scores otherwise.
        """
        if self.is_world_process_zero():
            self.reranker.save_merged(folder)
            verify_folder(self, str(folder))
            self.card.write(self, folder, is_merged=True)

    def _set_objectives(self, train_objective: Objective, eval_objective: Objective) -> None:
        """The objectives, which have measured what they need before training, and the callback that tells them more."""
        is_part = eval_objective in train_objective.modules()
        for objective in (train_objective,) if is_part else (train_objective, eval_objective):
            prepare_objective(objective, self.train_dataset, getattr(train_objective, "sources", ()))
        device = self.args.device
        self.objective, self.eval_objective = train_objective.to(device), eval_objective.to(device)
        self.objective_callback = ObjectiveCallback(self)
        self.add_callback(self.objective_callback)

    def _set_learning_rates(self, args: RerankTrainingArguments) -> None:
        _, size = num_parameters(self.reranker.model)
        if args.learning_rate is None:
            is_adapter = isinstance(self.reranker.model, PeftModel)
            args.learning_rate = default_learning_rate(size, is_adapter=is_adapter)
        if args.head_learning_rate is None:
            args.head_learning_rate = default_head_learning_rate(args.learning_rate)
        logger.info(
            "learning rate %.2g for a model of %.0fM parameters, %.2g for its %d freshly initialised tensors",
            args.learning_rate,
            size / 1e6,
            args.head_learning_rate,
            len(self.reranker.fresh_parameters),
        )


def refuse_sharded_evaluator(evaluator: Any, args: RerankTrainingArguments) -> None:
    """Refuse evaluators where weights are sharded."""
    if evaluator is not None and args.fsdp:
        raise ValueError(
            f"fsdp={args.fsdp!r} with evaluator={evaluator!r}: evaluators score unlike numbers of batches in each "
            "process, and sharded weights would wait for each other. Evaluate the saved folder afterwards."
        )


def with_watch(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks, objects or classes, and a :class:`RerankWatch` if none of them is one."""
    given = any(issubclass(each if isinstance(each, type) else type(each), RerankWatch) for each in callbacks)
    return [*callbacks] if given else [*callbacks, RerankWatch()]


def _require_one_objective(objective: Objective | None, args: RerankTrainingArguments, rows: Any) -> None:
    """Refuse a named objective, or settings of one that would do nothing, beside an objective that is an object."""
    if objective is None:
        return
    if args.objective is not None:
        raise ValueError(f"two objectives: args.objective={args.objective!r} and {objective!r}. Give one of them.")
    if args.loss_options is not None:
        raise ValueError(
            f"loss_options={args.loss_options!r} go with an objective that is named, and this one is an object. "
            "Give them to its loss: with_options(loss_fn, ...)."
        )
    sources = rows.values() if is_several(rows) else ()
    if any(isinstance(source, TrainSource) and isinstance(source.objective, str) for source in sources):
        return  # theirs are named, so they take the settings
    plain = {field.name: field.default for field in dataclasses.fields(RerankTrainingArguments)}
    idle = {name: getattr(args, name) for name in _OF_NAMED if getattr(args, name) != plain[name]}
    if idle:
        raise ValueError(
            f"{idle} go with an objective that is named, and this one is an object, which has settings of its own: "
            "give them to it, such as TeacherObjective(kl, teacher_temperature=2.0)."
        )


def require_targets(groups: Any, objective: Objective, *, has_teacher: bool = False) -> Any:
    """The groups, unless they lack what the objective compares with; those of a stream are looked at when they come.

    Args:
        groups: Of a training set.
        objective: What is minimised.
        has_teacher: Whether teacher scores come in training, so that the groups need none.

    Raises:
        ValueError: If labels or teacher scores are missing, or a label is greater than a loss accepts.
    """
    columns = groups.column_names
    needs_teacher = objective.needs_teacher and not has_teacher
    for needed, name in ((objective.needs_labels, "labels"), (needs_teacher, "teacher_scores")):
        if needed and name not in columns:
            raise ValueError(
                f"objective {objective.names} compares with {name}, but the groups have only the columns {columns}. "
                + ("Pass teacher=..., or add the column." if name == "teacher_scores" else "Add the column.")
            )
    if not objective.needs_labels or objective.max_label is None:
        return groups
    limit: dict[str, Any] = {"most": objective.max_label, "names": objective.names}
    if isinstance(groups, datasets.IterableDataset):
        return groups.map(_require_labels, with_indices=True, features=groups.features, fn_kwargs=limit)
    for index, labels in enumerate(groups["labels"]):
        _require_labels({"labels": labels}, index, **limit)
    return groups


def _require_labels(group: dict[str, Any], index: int, *, most: float, names: Sequence[str]) -> dict[str, Any]:
    """The group, unless one of its labels is greater than the losses of these names accept."""
    if max(group["labels"], default=0.0) > most:
        raise ValueError(
            f"row {index}, column labels: {max(group['labels'])} is above {most}, the most that {names} accepts. "
            "Divide the labels by the highest grade."
        )
    return group


def warn_of_emulation(args: RerankTrainingArguments) -> None:
    """Say that bfloat16 would slow the training down here instead of speeding it up."""
    if args.bf16 and args.process_index == 0 and not computes_bf16(args.device):
        logger.warning(
            "bf16=True: this %s has no instructions for bfloat16 and emulates them, slower than float32. Leave it out.",
            "processor" if args.device.type == "cpu" else args.device.type,
        )


def warn_of_instruction(reranker: Reranker, *groups: datasets.Dataset | datasets.IterableDataset) -> None:
    """Say once that instructions are not used, where they are not."""
    if not reranker.template.takes_instructions and any("instruction" in part.column_names for part in groups):
        logger.warning("the column instruction is not used: the model reads pairs without a place for it")
