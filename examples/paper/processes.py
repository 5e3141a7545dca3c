"""Processes: the group that accelerate started, or this process alone."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

# How long one waits for the others: for the last to score its share, or for one that is alone in reading texts.
PATIENCE = timedelta(hours=6)


def joined() -> PartialState:
    """The state of the group, which this process joins if it has not."""
    is_cpu = not torch.cuda.is_available()  # accelerate groups processes on CPUs only if it is told
    return PartialState(cpu=is_cpu, timeout=PATIENCE)
