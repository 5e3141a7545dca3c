"""Hooks: every method of the Transformers Trainer that we override, private ones included.

A test compares the signatures with the installed Transformers, so that a new release cannot slip past them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from rerank_trainer.data.sampling import EpochSampler, TrainGroups
from rerank_trainer.models.checkpoint import write_loader_files
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import scatter_scores
from rerank_trainer.objectives.objective import Objective, Targets
from rerank_trainer.trainers.learning_rates import split_off_head

logger = logging.getLogger(__name__)


class EpochCallback(TrainerCallback):
    """Tells the sampler its epoch, also with several processes and after a resume in the middle of one."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class GroupHooks(Trainer):
    """The Transformers Trainer taught to train on batches of groups.

    Subclasses set ``reranker`` before and both objectives after the parent's ``__init__``.
    """

    reranker: Reranker
    objective: Objective
    eval_objective: Objective
    # compute_loss divides by the counts of the whole optimizer step: the parent must not divide again
    loss_is_scaled_for_ga = True

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As in Transformers; afterwards no parameter counts as freshly initialised, so the model may be a teacher."""
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self.reranker.fresh_parameters = ()
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's parts, each summed over groups and divided by its count over the whole optimizer step.

        Args:
            model: The wrapped model.
            inputs: A batch of the collator.
            return_outputs: Whether to return ``(loss, {"scores": (batch_size, group_size)})``.
            num_items_in_batch: Each part's count, ``(num_parts,)``; None counts this batch alone.
        """
        scores = self._scores(model, inputs)
        totals = self._counts([inputs], scores.device) if num_items_in_batch is None else num_items_in_batch
        sums = (self.objective(scores, _targets(inputs)) * inputs["weights"]).sum(dim=1)
        parts = self.objective.contributions(sums, torch.as_tensor(totals))
        if num_items_in_batch is not None:
            self._note(parts, sums, inputs)
            # gradients are averaged over processes, but the counts are sums over them
            parts = parts * self.accelerator.num_processes
        loss = parts.sum()
        return (loss, {"scores": scores}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, ...] | None]:
        """Loss (None where the batch lacks the objective's targets), scores, and the tensors of ``label_names``."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), self._with_objective(self.eval_objective):
            if self.objective.needs_teacher and "teacher_scores" not in inputs:
                loss, scores = None, self._scores(model, inputs)
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                scores = outputs["scores"]
        if prediction_loss_only:
            return loss, None, None
        return loss, scores, tuple(inputs[name] for name in self.label_names)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Each part's count over the batches of an optimizer step and all processes, ``(num_parts,)`` float32."""
        return self.accelerator.reduce(self._counts(batch_samples, device), reduction="sum")

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, TrainGroups):
            return super()._get_train_sampler(train_dataset)
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy={strategy!r}: rows are ordered by length inside each batch already; "
                "use 'random' or 'sequential'"
            )
        one_source = getattr(self.args, "batch_sources", "mixed") == "one"
        sampler = dataset.sampler(
            shuffle=strategy == "random", one_source_size=self._train_batch_size if one_source else None
        )
        self.pop_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The parent's optimizer, with freshly initialised parameters at their own learning rate."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        head_learning_rate = getattr(self.args, "head_learning_rate", None)
        if not given and head_learning_rate is not None:
            split_off_head(optimizer, model or self.model, self.reranker.fresh_parameters, head_learning_rate)
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of one forward and backward: six a token and parameter outside the embeddings."""
        num_parameters = self.reranker.model.num_parameters(exclude_embeddings=True)
        return 6 * int(inputs["student"]["lengths"].sum()) * num_parameters

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Transformers; with several parts or sources, the loss of each stands beside the sum."""
        if "loss" in logs and self._noted is not None:
            noted = self.accelerator.reduce(self._noted, reduction="sum")
            steps = max(1, self.state.global_step - self._noted_at)
            num_parts = len(self.objective.names)
            parts, sums, counts, groups = noted.split([num_parts] * 3 + [len(noted) - 3 * num_parts])
            figures = self.objective.figures(parts / steps, sums, counts, groups)
            logs.update({name: round(value, 4) for name, value in figures.items()})
            self._noted, self._noted_at = None, self.state.global_step
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with _without_token(self.args):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_loader_files(output_dir or self.args.output_dir, max_length=self.reranker.max_length)

    _noted: Tensor | None = None  # what `log` reports, summed since its last entry
    _noted_at = 0

    def _note(self, parts: Tensor, sums: Tensor, inputs: dict[str, Any]) -> None:
        sources = torch.arange(len(getattr(self.data_collator, "sources", ())), device=sums.device)
        groups = (inputs["source"][:, None] == sources).sum(dim=0) if len(sources) else sources
        noted = torch.cat([parts.detach(), sums.detach(), self._counts([inputs], sums.device), groups])
        self._noted = noted if self._noted is None else self._noted + noted

    @contextlib.contextmanager
    def _with_objective(self, objective: Objective) -> Iterator[None]:
        """Evaluation knows no sources: its loss is that of the trainer's own objective."""
        kept, self.objective = self.objective, objective
        try:
            yield
        finally:
            self.objective = kept

    def _counts(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """Each part's count over batches of this process; a group counts with its weight."""
        counts = torch.zeros(len(self.objective.names), device=device)
        for batch in batches:
            counts += (self.objective.counts(_targets(batch)) * batch["weights"]).sum(dim=1).to(device)
        return counts

    def _scores(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        rows = inputs["student"]
        return scatter_scores(model(rows=rows).float(), rows["cells"], inputs["labels"].shape)


def _targets(inputs: dict[str, Any]) -> Targets:
    weights = inputs.get("passage_weights")
    mask = inputs["mask"] if weights is None else inputs["mask"] & (weights > 0)
    return Targets(inputs["labels"], mask, inputs.get("teacher_scores"), weights, inputs.get("source"))


@contextlib.contextmanager
def _without_token(args: TrainingArguments) -> Iterator[None]:
    """Keep the Hub token out of ``training_args.bin``."""
    token, args.hub_token = args.hub_token, None
    try:
        yield
    finally:
        args.hub_token = token
