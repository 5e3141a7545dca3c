"""The trainer that both methods share: groups in, one loss out; everything else is the Transformers Trainer's."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from rerank_trainer.data.collator import RerankCollator
from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.sampling import EvalGroups, TrainGroups
from rerank_trainer.evaluation.metrics import ranking_metrics
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import bind_row_forward
from rerank_trainer.objectives.objective import Objective
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.hooks import GroupHooks
from rerank_trainer.trainers.learning_rates import default_head_learning_rate, default_learning_rate
from rerank_trainer.trainers.refusals import refuse_unsupported
from rerank_trainer.trainers.sharding import agree_on_forwards, name_layers

logger = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | str | Path


class RerankTrainer(GroupHooks):
    """Trains a reranker on groups with any objective. Use one of its two subclasses, or give an objective.

    Args:
        model: A Hub id or folder, a Transformers model with one logit, or a :class:`Reranker`.
        args: What to do; ``None`` takes the defaults.
        objective: An objective of your own; None takes the one that ``args`` names.
        train_dataset: Rows in any layout that :func:`load_groups` recognises: a data set, a path or a Hub id.
        eval_dataset: The same, or a mapping from name to rows: the names stand in the logs.
        processing_class: A tokenizer other than the model's own.
        compute_metrics: Metrics of your own in place of ``args.eval_metrics``; ``label_ids`` is the pair (labels,
            missed gains), both padded with -100.
        callbacks: As in Transformers.
        optimizers: As in Transformers.

    Attributes:
        reranker: The model with its tokenizer, template and head; ``trainer.model`` is the plain Transformers model.

    Raises:
        ValueError: If rows, model and arguments do not fit each other; before any training time is spent.
    """

    scores_are: str | None = None  # what a column `scores` holds for this trainer, in rows that do not say

    def __init__(
        self,
        model: str | Path | PreTrainedModel | Reranker,
        args: RerankTrainingArguments | None = None,
        *,
        objective: Objective | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        # a copy: the learning rate is filled in by the model's size, and the caller may train another model next
        args = copy.copy(args) if args is not None else RerankTrainingArguments("trainer_output")
        refuse_unsupported(args)
        if objective is not None and args.objective is not None:
            raise ValueError(f"two objectives: args.objective={args.objective!r} and {objective!r}. Give one of them.")
        set_seed(args.seed)  # before a model is loaded: its fresh head is drawn here
        self.reranker = as_reranker(model, args, processing_class)
        objective = objective or self.named_objective(args)
        train_groups = None if train_dataset is None else self._train_groups(train_dataset, objective)
        self._set_learning_rates(args)
        name_layers(args, self.reranker.model)
        bind_row_forward(self.reranker.model, self.reranker.row_scorer(args.max_tokens_per_micro_batch))
        super().__init__(
            model=self.reranker.model,
            args=args,
            data_collator=RerankCollator(self.reranker.template),
            train_dataset=train_groups
            and TrainGroups(
                train_groups,
                passages_per_query=args.passages_per_query,
                seed=args.seed if args.data_seed is None else args.data_seed,
                top_share=args.top_share,
            ),
            eval_dataset=self._eval_groups(eval_dataset),
            processing_class=self.reranker.tokenizer,
            compute_metrics=compute_metrics or partial(_metrics_of, metrics=args.eval_metrics),
            callbacks=callbacks,
            optimizers=optimizers,
        )
        agree_on_forwards(self)
        self.objective = objective.to(args.device)

    def named_objective(self, args: RerankTrainingArguments) -> Objective:
        """The objective that the arguments name.

        Raises:
            ValueError: Here always: this trainer has no default objective.
        """
        raise ValueError("RerankTrainer needs objective=...; or use ContrastiveRerankTrainer or DistillRerankTrainer.")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As in Transformers, for rows in any layout that is recognised."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._eval_groups(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As in Transformers, for rows in any layout that is recognised."""
        return super().get_test_dataloader(self._eval_groups(test_dataset))

    def _train_groups(self, rows: Rows, objective: Objective) -> datasets.Dataset:
        groups = load_groups(rows, scores_are=self.scores_are)
        require_targets(groups, objective)
        return groups

    def _eval_groups(self, rows: Any) -> Any:
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

    def _set_learning_rates(self, args: RerankTrainingArguments) -> None:
        num_parameters = sum(parameter.numel() for parameter in self.reranker.model.parameters())
        if args.learning_rate is None:
            args.learning_rate = default_learning_rate(num_parameters)
        if args.head_learning_rate is None:
            args.head_learning_rate = default_head_learning_rate(args.learning_rate)
        logger.info(
            "learning rate %.2g for a model of %.0fM parameters, %.2g for its %d freshly initialised tensors",
            args.learning_rate,
            num_parameters / 1e6,
            args.head_learning_rate,
            len(self.reranker.fresh_parameters),
        )


def as_reranker(
    model: str | Path | PreTrainedModel | Reranker,
    args: RerankTrainingArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Reranker:
    """The reranker that is trained: loaded by name, put together from model and tokenizer, or taken as it is.

    Raises:
        ValueError: If a Transformers model comes without its tokenizer, or a reranker with other lengths than asked.
    """
    lengths: dict[str, Any] = {"max_length": args.max_length, "query_max_length": args.query_max_length}
    if isinstance(model, Reranker):
        return model.with_lengths(**lengths) if any(lengths.values()) else model
    if isinstance(model, str | Path):
        options = args.model_init_kwargs or {}
        assert isinstance(options, dict)  # TrainingArguments has parsed the text
        loaded = Reranker.from_pretrained(model, **{**lengths, **options})
        if tokenizer is None:
            return loaded
        return Reranker(loaded.model, tokenizer, **lengths, fresh_parameters=loaded.fresh_parameters)
    if tokenizer is None:
        raise ValueError(
            f"model is a {type(model).__name__} without its tokenizer. Pass processing_class=tokenizer, or give the "
            "model by name."
        )
    return Reranker(model, tokenizer, **lengths)


def require_targets(groups: datasets.Dataset, objective: Objective) -> None:
    """Refuse groups that lack what the objective compares with.

    Raises:
        ValueError: If labels or teacher scores are missing, or a label is greater than a loss accepts.
    """
    columns = groups.column_names
    for needed, name in ((objective.needs_labels, "labels"), (objective.needs_teacher, "teacher_scores")):
        if needed and name not in columns:
            raise ValueError(
                f"objective {objective.names} compares with {name}, but the groups have only the columns {columns}. "
                + ("Pass teacher=..., or add the column." if name == "teacher_scores" else "Add the column.")
            )
    if objective.needs_labels and objective.max_label is not None:
        for index, labels in enumerate(groups["labels"]):
            if max(labels, default=0.0) > objective.max_label:
                raise ValueError(
                    f"row {index}, column labels: {max(labels)} is above {objective.max_label}, the most that "
                    f"{objective.names} accepts. Divide the labels by the highest grade."
                )
    if "instruction" in columns:
        logger.warning("the column instruction is not used: pair encoding has no place for it")


def _metrics_of(prediction: EvalPrediction, *, metrics: list[str]) -> dict[str, float]:
    labels, missed_gains = prediction.label_ids
    return ranking_metrics(prediction.predictions, labels, missed_gains, metrics=metrics)
