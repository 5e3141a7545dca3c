"""Hooks: every method of the Transformers Trainer that we override, private ones included.

A test compares the signatures with the installed Transformers, so that a new release cannot slip past them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
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

    Subclasses set ``reranker`` before and ``objective`` after the parent's ``__init__``.
    """

    reranker: Reranker
    objective: Objective
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

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: Any = None,
        hp_name: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Not supported.

        Raises:
            ValueError: Always: a search sets the model up anew through ``model_init``, and a tokenizer, a head and
                learning rates that follow the model's size belong to ours.
        """
        raise ValueError(
            "hyperparameter_search sets up a bare model for each trial, without its tokenizer and learning rates. Make "
            "a new trainer for each setting, by the model's name, and let your search call its train and evaluate."
        )

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
        values = self.objective(scores, _targets(inputs)) * inputs["weights"]
        part_weights = torch.tensor(self.objective.part_weights, device=values.device)
        parts = values.sum(dim=1) * part_weights / torch.as_tensor(totals).clamp(min=torch.finfo(values.dtype).tiny)
        if num_items_in_batch is not None:
            # gradients are averaged over processes, but the counts are sums over them
            parts = parts * self.accelerator.num_processes
            self._note_parts(parts)
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
        with torch.no_grad(), self.compute_loss_context_manager():
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
        sampler = EpochSampler(
            len(dataset), seed=dataset.seed, shuffle=strategy == "random", multiple_of=self._groups_at_a_time()
        )
        self.pop_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler[Any]] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        """The parent's, with a source of chance of its own.

        A new iterator draws a number, and one that persistent workers keep does not: drawn from the source that
        dropout uses, it would let a resumed run leave the path of the whole run.
        """
        loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        # accelerate wraps the loader that makes the iterators
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _prepare_input(self, data: Any) -> Any:
        """The parent's, without DeepSpeed's cast of labels and teacher scores to the type of the weights."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of all rows; there is no padding among them."""
        if self.args.include_num_input_tokens_seen != "no":
            tokens = inputs["student"]["lengths"].sum().to(self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())

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
        """As in Transformers; with several parts, the loss of each stands beside the sum."""
        if "loss" in logs and len(self.objective.names) > 1 and self._part_sums is not None:
            sums = self.accelerator.reduce(self._part_sums, reduction="mean").tolist()
            steps = max(1, self.state.global_step - self._parts_noted_at)
            for name, total in zip(self.objective.names, sums, strict=True):
                logs[f"loss_{name}"] = round(total / steps, 4)
            self._part_sums, self._parts_noted_at = None, self.state.global_step
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with _without_token(self.args):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_loader_files(output_dir or self.args.output_dir, max_length=self.reranker.max_length)

    def _groups_at_a_time(self) -> int:
        """How many groups all processes take for one batch each; 1 where no batch need be whole."""
        if self.args.world_size == 1 or self.args.dataloader_drop_last:
            return 1
        batches = 1 if self.args.accelerator_config.split_batches else self.args.world_size
        return batches * self.args.train_batch_size

    _part_sums: Tensor | None = None
    _parts_noted_at = 0

    def _note_parts(self, parts: Tensor) -> None:
        self._part_sums = parts.detach() + (0 if self._part_sums is None else self._part_sums)

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
    return Targets(inputs["labels"], inputs["mask"], inputs.get("teacher_scores"))


@contextlib.contextmanager
def _without_token(args: TrainingArguments) -> Iterator[None]:
    """Keep the Hub token out of ``training_args.bin``."""
    token, args.hub_token = args.hub_token, None
    try:
        yield
    finally:
        args.hub_token = token
