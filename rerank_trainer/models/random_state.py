"""Random state: where the random numbers of PyTorch stand, so that what ran out of memory draws the same again."""

from __future__ import annotations

import torch


class RandomState:
    """The state of the random numbers on the CPU and on a device.

    >>> state = RandomState(torch.device("cpu"))
    >>> drawn = torch.rand(3)
    >>> state.restore()
    >>> torch.equal(torch.rand(3), drawn)
    True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._of_cpu = torch.get_rng_state()
        self._of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self._of_cpu)
        if self._of_device is not None:
            torch.cuda.set_rng_state(self._of_device, self._device)
