"""Placement: which device a model is put on, and models that stay where they were loaded."""

from __future__ import annotations

import os

import torch
from peft import PeftModel
from transformers import PreTrainedModel


def own_device() -> torch.device:
    """The accelerator of this process, by ``LOCAL_RANK`` where a launcher has set it; the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def is_placed(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model was loaded to where it stays: quantised, or spread over devices."""
    return getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None) is not None


def place(model: PreTrainedModel | PeftModel, device: torch.device | str | None = None) -> None:
    """Put the model on the device, by default on :func:`own_device`, unless it stays where it was loaded."""
    if not is_placed(model):
        model.to(own_device() if device is None else device)
