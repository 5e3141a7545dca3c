"""Footprint: at the end of training one line says what was trained, what it takes on disk, and the memory it took."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_trainer.models.adapters import num_parameters
from rerank_trainer.models.memory import forget_peak, peak_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Footprint:
    """What a training trained and took.

    Attributes:
        num_trained: Parameters that were trained.
        num_parameters: Of the whole model; a weight of 4 bits counts as one.
        adapter_bytes: What is saved of the adapter; None where the whole model is trained.
        peak_bytes: The most memory that was in use: on a GPU by its tensors, on a CPU by the whole process, its start
            included; None where that is not known.
    """

    num_trained: int
    num_parameters: int
    adapter_bytes: int | None
    peak_bytes: int | None

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel, device: torch.device) -> Footprint:
        """That of a model which has been trained on the device."""
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        adapter_bytes = size if isinstance(model, PeftModel) else None
        return cls(*num_parameters(model), adapter_bytes, peak_bytes(device))

    def __str__(self) -> str:
        """In one line.

        >>> print(Footprint(1_000, 4_000, 4_000_000, 2_500_000_000))
        trained 1,000 of 4,000 parameters (25.00%), adapter 4.0 MB, peak memory 2.50 GB
        """
        parts = [
            f"trained {self.num_trained:,} of {self.num_parameters:,} parameters "
            f"({self.num_trained / self.num_parameters:.2%})"
        ]
        parts += [] if self.adapter_bytes is None else [f"adapter {self.adapter_bytes / 1e6:.1f} MB"]
        parts += [] if self.peak_bytes is None else [f"peak memory {self.peak_bytes / 1e9:.2f} GB"]
        return ", ".join(parts)


class FootprintReport(TrainerCallback):
    """Logs the footprint when training ends.

    Attributes:
        footprint: Of the last training; None before the first.
    """

    def __init__(self) -> None:
        self.footprint: Footprint | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        forget_peak(args.device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.footprint = Footprint.of(kwargs["model"], args.device)
            logger.info("%s", self.footprint)
