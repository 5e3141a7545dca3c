"""Evaluation hooks: the methods of the Transformers Trainer that we override to evaluate batches of groups."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from rerank_trainer.data.collator import LABEL_PADDING
from rerank_trainer.data.truncation import WARNING_SHARE, Truncation
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import scatter_scores
from rerank_trainer.objectives.objective import Objective, Targets
from rerank_trainer.trainers.card import TrainingCard
from rerank_trainer.trainers.evaluators import add_figures, evaluator_figures
from rerank_trainer.trainers.metrics import GroupMetrics

if TYPE_CHECKING:
    from sentence_transformers.base.evaluation import BaseEvaluator

logger = logging.getLogger(__name__)


class EvaluationHooks(Trainer):
    """The Transformers Trainer taught to evaluate batches of groups.

    Subclasses set ``reranker``, ``card`` and ``evaluator`` before and both objectives after the parent's ``__init__``.
    """

    reranker: Reranker
    card: TrainingCard
    objective: Objective
    eval_objective: Objective
    evaluator: BaseEvaluator | None = None
    model_wrapped: nn.Module

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, ...] | None]:
        """Loss (None where the batch lacks the objective's targets), scores, and the tensors of ``label_names``.

        Scores are -100 where no passage is, as they are where Transformers joins batches of unlike width.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), self._with_objective(self.eval_objective):
            if self.objective.needs_teacher and "teacher_scores" not in inputs:
                loss, scores = None, self._scores(model, inputs)
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                scores = outputs["scores"]
                if "values" in outputs:  # a compute_loss of the user's own may leave them out
                    counts = self.objective.counts(Targets.of_batch(inputs)) * inputs["weights"]
                    self._note_evaluation(sums=outputs["values"].T.contiguous(), totals=counts.T.contiguous())
            self._note_evaluation(truncation=inputs["truncation"])
        if prediction_loss_only:
            return loss, None, None
        scores = scores.masked_fill(~inputs["mask"], LABEL_PADDING)
        return loss, scores, tuple(inputs[name] for name in self.label_names)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in Transformers; the figures of the evaluator join those of the (first) evaluation set."""
        if self._evaluator_prefix is not None:  # called by itself, once for each of several sets
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self._evaluator_prefix = metric_key_prefix
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._evaluator_prefix = None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in Transformers; the loss is that of all groups as one batch, however they were cut into batches.

        The metrics say which share of the pairs was cut, as ``eval_truncated``, and hold the evaluator's figures.
        """
        self._eval_noted = {}
        self.card.measured[metric_key_prefix] = getattr(dataloader.dataset, "groups", None)
        if isinstance(self.compute_metrics, GroupMetrics):
            self.compute_metrics.reset()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        cut = Truncation(*self._eval_noted.pop("truncation", torch.zeros(0)).long().tolist())
        if self._eval_noted:
            loss = self.eval_objective.contributions(**self._eval_noted).sum()
            output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        output.metrics[f"{metric_key_prefix}_truncated"] = round(cut.share, 4)
        self._warn_of_truncation(cut, metric_key_prefix)
        if self.evaluator is not None and self._evaluator_prefix:
            prefix, self._evaluator_prefix = self._evaluator_prefix, ""  # once, whatever the number of sets
            figures = evaluator_figures(self.evaluator, self.reranker, self.args, self.state)
            add_figures(output.metrics, figures, prefix=prefix)
        return output

    _eval_noted: dict[str, Tensor] = {}  # what an evaluation reports, summed over batches and processes
    _evaluator_prefix: str | None = None  # None outside of evaluate(), empty when the evaluator has run
    _warned_of: frozenset[str] = frozenset()

    def _forget_evaluation(self) -> None:
        """Let several processes train together after an ``evaluate()``.

        An evaluation marks the bare model as prepared, and training would then leave out DistributedDataParallel
        without a word: each process would train a model of its own.
        """
        is_wrapped = isinstance(self.model_wrapped, nn.parallel.DistributedDataParallel)
        if self.accelerator.num_processes == 1 or is_wrapped or not self.accelerator._models:
            return
        if "_original_forward" in vars(self.model):  # under mixed precision; training would wrap it once more
            self.model.forward = self.model.__dict__.pop("_original_forward")
        self.accelerator._models.clear()
        self.model._is_accelerate_prepared = False
        self.model_wrapped = self.model

    def _note_evaluation(self, **of_groups: Tensor) -> None:
        """Add up what is known of each group, ``(B, ...)``, over processes."""
        # gathered as predictions are: groups that were repeated to fill the last batch of a process count once
        for name, values in self.accelerator.gather_for_metrics(of_groups).items():
            self._eval_noted[name] = values.double().sum(dim=0) + self._eval_noted.get(name, 0)

    def _warn_of_truncation(self, cut: Truncation, where: str) -> None:
        if cut.share > WARNING_SHARE and where not in self._warned_of and self.is_world_process_zero():
            logger.warning("%s: %s; raise max_length", where, cut.describe(self.reranker.max_length))
            self._warned_of = self._warned_of | {where}

    @contextlib.contextmanager
    def _with_objective(self, objective: Objective) -> Iterator[None]:
        """Evaluation knows no sources: its loss is that of the trainer's own objective."""
        kept, self.objective = self.objective, objective
        try:
            yield
        finally:
            self.objective = kept

    def _scores(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        rows = inputs["student"]
        return scatter_scores(model(rows=rows).float(), rows["cells"], inputs["labels"].shape)
