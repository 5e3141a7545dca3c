"""Hooks: every method of the Transformers Trainer that we override to train, private ones included.

Those that evaluate stand in ``evaluation_hooks.py``, those that push in ``hub_hooks.py``. A test compares
all signatures with the installed Transformers: a new release cannot slip past them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from rerank_trainer.data.balance import BalancedSampler, TokenEstimate
from rerank_trainer.data.sampling import TrainGroups
from rerank_trainer.data.truncation import Truncation
from rerank_trainer.models.chains import load_module_weights
from rerank_trainer.models.checkpoint import keeping_card
from rerank_trainer.objectives.objective import Targets
from rerank_trainer.trainers.evaluation_hooks import EvaluationHooks
from rerank_trainer.trainers.hub_hooks import HubHooks, local_checkpoint
from rerank_trainer.trainers.learning_rates import split_off_head
from rerank_trainer.trainers.live import LiveTeaching
from rerank_trainer.trainers.out_of_memory import StepReplay
from rerank_trainer.trainers.progress import EpochCallback, ObjectiveCallback, load_objective, save_objective
from rerank_trainer.trainers.saving import final_checkpoint, hide_token, verify_folder
from rerank_trainer.trainers.step_report import StepReport, reporting
from rerank_trainer.trainers.watch import RerankWatch, Seen


class GroupHooks(HubHooks, EvaluationHooks):
    """The Transformers Trainer taught to train on batches of groups."""

    objective_callback: ObjectiveCallback
    live_teaching: LiveTeaching | None = None  # a teacher that is asked in every step
    # compute_loss divides by the counts of the whole optimizer step: the parent must not divide again
    loss_is_scaled_for_ga = True

    @property
    def watch(self) -> RerankWatch | None:
        """The callback that watches training; None when it was removed."""
        return next((each for each in self.callback_handler.callbacks if isinstance(each, RerankWatch)), None)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As in Transformers, also from a checkpoint on the Hub: ``hf://namespace/name``, see ``docs/hub.md``.

        Afterwards no parameter counts as freshly initialised, so the model may be a teacher.
        """
        resume_from_checkpoint = local_checkpoint(resume_from_checkpoint, self.args)
        self._noted, self._train_cut, self._replay = {}, Truncation(), StepReplay(self)
        self._forget_evaluation()
        load_objective(self.objective, self.args, resume_from_checkpoint)
        if self.live_teaching is not None:
            self.live_teaching.load(resume_from_checkpoint)
        if self.watch is not None:
            self.watch.attach(self)
        with reporting(self):
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self.reranker.fresh_parameters = ()
        folder = final_checkpoint(self.args, self.state) if trial is None else None
        if folder is not None:
            if self.args.verify_checkpoints == "final":
                verify_folder(self, folder)
            self.card.write(self, folder)  # now that the training is whole
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

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in Transformers; where memory runs out, the step begins anew with smaller micro-batches."""
        step = partial(super().training_step, model, inputs, num_items_in_batch)
        return self._replay.run(step, inputs["student"])

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
            return_outputs: Whether to return ``(loss, {"scores": (batch_size, group_size), "values": (num_parts,
                batch_size)})``: the scores, and each part's value for each group, times its weight.
            num_items_in_batch: Each part's count, ``(num_parts,)``; None counts this batch alone.
        """
        scores = self._scores(model, inputs)
        if self.live_teaching is not None:
            inputs = self.live_teaching.guided(inputs, scores.detach())
        targets = Targets.of_batch(inputs)
        defined = self.objective.counts(targets)
        counts = (defined * inputs["weights"]).sum(dim=1)
        totals = counts if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        values = self.objective(scores, targets) * inputs["weights"]
        sums = values.sum(dim=1)
        contributions = self.objective.contributions(sums, totals)
        loss = contributions.sum()
        if num_items_in_batch is not None:
            of_parts = {"contributions": contributions.detach(), "sums": sums.detach(), "counts": counts}
            self._replay.count(partial(self._note, inputs, **of_parts))
            tallies = self.objective.tally(scores.detach(), targets)
            self._replay.count(partial(self.objective_callback.see, tallies, inputs["weights"]))
            # gradients are averaged over processes, but the counts are sums over them
            loss = loss * self.accelerator.num_processes
            if self.watch is not None:
                of_batch = (loss.detach(), values.detach(), scores.detach())
                seen = Seen(*of_batch, targets, defined.any(dim=0), inputs["row"])
                self._replay.count(partial(self.watch.see, seen))
        return (loss, {"scores": scores, "values": values}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Each part's count over the batches of an optimizer step and all processes, ``(num_parts,)`` float32.

        A live teacher scores the batches first: what counts may follow from its scores.
        """
        if self.live_teaching is not None:
            self.live_teaching.teach(batch_samples)
        return self.accelerator.reduce(self._counts(batch_samples, device), reduction="sum")

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, TrainGroups):
            return super()._get_train_sampler(train_dataset)
        num_processes, batch_size = self.args.world_size, self._groups_each()
        one_source = getattr(self.args, "batch_sources", "mixed") == "one"
        # processes need whole batches, unless those that are not whole are dropped
        fills_up = num_processes > 1 and not self.args.dataloader_drop_last
        sampler = dataset.sampler(
            shuffle=self.args.train_sampling_strategy == "random",
            multiple_of=num_processes * batch_size if fills_up else 1,
            one_source_size=self._train_batch_size if one_source else None,
        )
        self.pop_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
        if num_processes == 1 or not getattr(self.args, "balance_processes", False):
            return sampler
        return BalancedSampler(
            sampler,
            TokenEstimate(dataset, self.reranker.template),
            num_processes=num_processes,
            batch_size=batch_size,
            # a batch that processes split is of one source as a whole: its groups may change places
            run_size=batch_size if one_source and not self.args.accelerator_config.split_batches else 1,
            batches_per_step=self.args.gradient_accumulation_steps,
        )

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

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The parent's norm of the gradient, which the watch looks at as well."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.watch is not None:
            # of sharded weights it is a sharded tensor, which collectives do not take
            self.watch.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of one forward and backward: six a token and parameter outside the embeddings."""
        num_parameters = self.reranker.model.num_parameters(exclude_embeddings=True)
        # the size, not the sum of the lengths: reading that after each batch would wait for a GPU
        return 6 * inputs["student"]["input_ids"].numel() * num_parameters

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Transformers; beside the loss stand parts, sources, pairs cut, figures of the watch and the report."""
        if self._noted and ("loss" in logs or "train_loss" in logs):
            noted, self._noted = self.accelerator.reduce(self._noted, reduction="sum"), {}
            cut = Truncation(*noted.pop("truncation").tolist())
            self._train_cut += cut
            self._warn_of_truncation(self._train_cut, "training")
            if "loss" in logs:
                noted["contributions"] /= max(1, self.state.global_step - self._noted_at)
                logs.update({name: round(value, 4) for name, value in self.objective.figures(**noted).items()})
                logs["truncated"] = round(cut.share, 4)
        if "train_loss" in logs:
            logs["train_truncated"] = round(self._train_cut.share, 4)
        for callback in self.callback_handler.callbacks if "loss" in logs else ():
            if isinstance(callback, RerankWatch | StepReport):
                logs.update(callback.figures(self.args.device))
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        hide_token(self.args)
        folder = output_dir or self.args.output_dir
        with keeping_card(folder):
            super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        self.reranker.write_loader_files(folder)
        is_final = Path(folder).name != f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not is_final:
            save_objective(self.objective, folder)
            if self.live_teaching is not None:
                self.live_teaching.save(folder)
        if is_final or self.args.verify_checkpoints == "every_save":
            verify_folder(self, folder)
        self.card.write(self, folder)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the output folder, with what is given here as well; see ``docs/model_card.md``."""
        assert self.args.output_dir is not None
        self.card.write(
            self,
            self.args.output_dir,
            language=language,
            license=license,
            tags=tags,
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=tasks,
            dataset_tags=dataset_tags,
            dataset=dataset,
            dataset_args=dataset_args,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As in Transformers, which reads the backbone of a chain: its modules stand in folders of their own."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_fsdp_enabled:  # there one file holds all
            load_module_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_fsdp_enabled and self.state.best_model_checkpoint is not None:
            load_module_weights(self.model, self.state.best_model_checkpoint)

    def _groups_each(self) -> int:
        """How many groups a process takes for one batch; accelerate refuses a batch that cannot be split evenly."""
        processes_of_a_batch = self.args.world_size if self.args.accelerator_config.split_batches else 1
        return max(1, self.args.train_batch_size // processes_of_a_batch)

    _replay = cached_property(StepReplay)
    _noted: dict[str, Tensor] = {}  # what `log` reports, summed in this process since its last entry
    _noted_at = 0
    _train_cut = Truncation()

    def _note(self, inputs: dict[str, Any], **of_parts: Tensor) -> None:
        if not self._noted:
            self._noted_at = self.state.global_step
        sources = torch.arange(len(getattr(self.data_collator, "sources", ())), device=inputs["weights"].device)
        present = (inputs["weights"] > 0)[:, None]
        noted = {
            **of_parts,
            "groups": (present & (inputs["source"][:, None] == sources)).sum(dim=0) if len(sources) else sources,
            "truncation": (present * inputs["truncation"]).sum(dim=0),
        }
        self._noted = {name: value.detach() + self._noted.get(name, 0) for name, value in noted.items()}

    def _counts(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """Each part's count over batches of this process; a group counts with its weight."""
        counts = torch.zeros(len(self.objective.names), device=device)
        for batch in batches:
            counts += (self.objective.counts(Targets.of_batch(batch)) * batch["weights"]).sum(dim=1).to(device)
        return counts
