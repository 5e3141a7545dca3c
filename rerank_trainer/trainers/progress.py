"""Progress: what tells the sampler its epoch and the objective its step, and keeps what the objective has learned."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from rerank_trainer.data.collator import LABEL_PADDING
from rerank_trainer.data.sampling import EpochSampler, TrainGroups
from rerank_trainer.data.streams import StreamGroups
from rerank_trainer.objectives.objective import Objective, Targets

if TYPE_CHECKING:
    from rerank_trainer.trainers.hooks import GroupHooks

OBJECTIVE_FILE = "objective.json"  # in a checkpoint: the buffers of the objective
NUM_SAMPLE_GROUPS = 1024  # training groups that an objective may measure before training


class EpochCallback(TrainerCallback):
    """Tells the sampler its epoch, also with several processes and after a resume in the middle of one."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class ObjectiveCallback(TrainerCallback):
    """Tells the objective the progress before each optimizer step, and what to learn from it afterwards.

    The progress follows from the number of the step alone, so a resumed run goes on where it was.

    Args:
        trainer: Whose objective it is.
    """

    def __init__(self, trainer: GroupHooks) -> None:
        self._trainer = trainer
        self._sums: Tensor | None = None

    def see(self, tallies: Tensor, weights: Tensor) -> None:
        """Add a batch to the step: the tallies of its groups, ``(num_tallies, B)``, and their weights, ``(B,)``."""
        sums = (tallies * weights).sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._sums = None
        for objective in {self._trainer.objective, self._trainer.eval_objective}:
            objective.set_progress(state.global_step / max(1, state.max_steps))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._sums is not None and self._sums.numel():
            self._trainer.objective.learn(reduce(self._sums, "sum"))


def save_objective(objective: nn.Module, folder: str) -> None:
    """Write what an objective has learned into a checkpoint, if there is anything."""
    if buffers := {name: value.tolist() for name, value in objective.state_dict().items()}:
        Path(folder, OBJECTIVE_FILE).write_text(json.dumps(buffers, indent=1) + "\n")


def load_objective(objective: nn.Module, args: TrainingArguments, checkpoint: str | bool | None) -> None:
    """Give an objective what it had learned at a checkpoint, the latest one if that is True.

    Raises:
        ValueError: If the checkpoint is of another objective.
    """
    folder = get_last_checkpoint(args.output_dir) if checkpoint is True else checkpoint
    own = objective.state_dict()
    if not folder or not own:
        return
    path = Path(folder, OBJECTIVE_FILE)
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.keys() != own.keys():
        raise ValueError(
            f"{path}: expected what this objective has learned, {sorted(own)}, found {sorted(kept) or 'no file'}. The "
            "checkpoint is of another objective: resume with the same one, or start from its weights as a model."
        )
    objective.load_state_dict({name: torch.tensor(kept[name], dtype=own[name].dtype) for name in own})


def prepare_objective(objective: Objective, dataset: Any, sources: Sequence[str]) -> None:
    """Let an objective measure what it needs on a sample of the training groups; nothing without such a need."""
    if dataset is not None and objective.needs_sample:
        objective.prepare(sample_targets(dataset, sources))


def sample_targets(dataset: TrainGroups | StreamGroups, sources: Sequence[str] = ()) -> Targets:
    """The targets of some training groups, cut to K passages as in training: some of each source, or a stream's first.

    Args:
        dataset: What the trainer draws from.
        sources: The names of the run's data sets, when there are several.
    """
    if isinstance(dataset, StreamGroups):
        rows = list(itertools.islice(dataset, NUM_SAMPLE_GROUPS))
    else:
        rows = [dataset[0, index] for index in _evenly(getattr(dataset, "sizes", [len(dataset)]))]

    def padded(name: str, default: float, fill: float) -> Tensor:
        values = [[default] * len(row["passages"]) if row.get(name) is None else row[name] for row in rows]
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill).float()

    weights = padded("passage_weights", 1.0, 0.0)
    of_groups = torch.tensor([1.0 if row.get("weight") is None else row["weight"] for row in rows])
    return Targets(
        padded("labels", 0.0, LABEL_PADDING),
        (weights > 0) & (of_groups > 0)[:, None],
        padded("teacher_scores", 0.0, 0.0) if any(row.get("teacher_scores") for row in rows) else None,
        weights,
        torch.tensor([list(sources).index(row["source"]) for row in rows]) if sources else None,
    )


def _evenly(sizes: Sequence[int]) -> list[int]:
    """Indices in data sets of these sizes that follow each other: as many of each, or all that it has."""
    indices: list[int] = []
    for number, size in enumerate(sizes):
        first, num_rows = sum(sizes[:number]), min(size, max(1, NUM_SAMPLE_GROUPS // len(sizes)))
        indices += [first + place * size // num_rows for place in range(num_rows)]
    return indices
