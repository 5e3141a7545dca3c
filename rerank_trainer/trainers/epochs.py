"""Epochs: the sampler that chooses passages learns from Transformers which epoch it is."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_trainer.data.sampling import EpochSampler


class EpochCallback(TrainerCallback):
    """Tells the sampler its epoch, also with several processes and after a resume in the middle of one."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))
