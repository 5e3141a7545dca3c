"""Placement: which device a model is put on, models that stay where they were loaded, and numbers on their way."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel


def own_device() -> torch.device:
    """The accelerator of this process, the CPU where there is none.

    Of several it is that of ``LOCAL_RANK`` where a launcher has set it, or PyTorch's current one.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    index = torch.accelerator.current_device_index() if rank is None else int(rank) % torch.accelerator.device_count()
    return torch.device(accelerator.type, index)


def is_placed(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model was loaded to where it stays: quantised, or spread over devices."""
    return getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None) is not None


def place(model: PreTrainedModel | PeftModel, device: torch.device | str | None = None) -> None:
    """Put the model on the device, by default on :func:`own_device`, unless it stays where it was loaded."""
    if not is_placed(model):
        model.to(own_device() if device is None else device)


def put(numbers: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of numbers on the device, which does not wait for it: ``torch.tensor(..., device=...)`` would.

    The order of the device's work is kept, and the driver has read the numbers when it returns.

    >>> put([3, 1], torch.device("cpu"))
    tensor([3, 1])
    """
    dtype = torch.long if dtype is None and not numbers else dtype
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=device.type == "cuda")
