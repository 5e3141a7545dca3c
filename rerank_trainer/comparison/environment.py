"""The environment: versions of what figures depend on, and the kind of device, as each cell notes them."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from rerank_trainer import __version__
from rerank_trainer.models.placement import own_device

_LIBRARIES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "sentence-transformers",
    "scipy",
)


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Versions, and the kind of a device (None: the one where models are put here); no name of a machine or user."""
    device = own_device() if device is None else device
    is_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if is_gpu else f"{device.type.upper()} ({platform.machine()})"
    return {"Python": platform.python_version(), "device": kind, "rerank_trainer": __version__} | {
        name: version(name) for name in _LIBRARIES
    }
