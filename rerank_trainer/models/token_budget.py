"""Token budget: how many tokens a micro-batch may have, by what computes fastest and by what fits into memory."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)

AUTO = "auto"
# What computes fastest. On two cores, MiniLM trains fastest at about a thousand tokens.
MAX_TOKENS_CPU = 1024
MAX_TOKENS_GPU = 32768
# The activations of one micro-batch may take this share of what is free. Beside them stand, in the backward, their
# gradients and those of the weights, and what single operations need while they run.
SHARE_OF_A_MICRO_BATCH = 0.3


class TokenBudget:
    """How many tokens a micro-batch may have, padding included. A row that is longer runs alone.

    It is only ever halved, so that free memory which differs a little from run to run rarely leads to other
    micro-batches, and one that was too large is not tried again.

    Args:
        max_tokens: A number, which memory lowers only by running out; or "auto": what computes fastest on the device,
            halved until the activations of one micro-batch fit.

    Raises:
        ValueError: If it is neither a positive number nor "auto".
    """

    def __init__(self, max_tokens: int | str = AUTO) -> None:
        number = checked_max_tokens(max_tokens)
        self.is_auto = number == AUTO
        self._size = None if isinstance(number, str) else number

    def size(self, device: torch.device) -> int:
        """The tokens that a micro-batch may have at present."""
        return self._size or (MAX_TOKENS_CPU if device.type == "cpu" else MAX_TOKENS_GPU)

    def fit(self, num_tokens: int, device: torch.device, *, bytes_per_token: float, free: int) -> None:
        """Halve an "auto" budget until a micro-batch fits, and say so in the log.

        Args:
            num_tokens: Tokens of the whole batch: no micro-batch has more.
            device: Where it runs.
            bytes_per_token: What the activations of a token take while its micro-batch runs.
            free: Bytes that are free.
        """
        before = size = self.size(device)
        while self.is_auto and size > 1 and min(size, num_tokens) * bytes_per_token > SHARE_OF_A_MICRO_BATCH * free:
            size //= 2
        if size < before:
            self._size = size
            logger.info(
                "micro-batches have at most %d tokens instead of %d: a token's activations take %.3g MB, and %.3g GB "
                "of memory are free",
                size,
                before,
                bytes_per_token / 1e6,
                free / 1e9,
            )

    def halve(self, longest: int, device: torch.device) -> None:
        """Halve the budget after memory has run out, to no less than the longest row. Nothing is estimated any more."""
        self._size = max(longest, self.size(device) // 2)
        self.is_auto = False


def checked_max_tokens(max_tokens: int | str | None) -> int | str:
    """A positive number of tokens, or "auto"; digits, as a command line gives them, become a number.

    Raises:
        ValueError: If it is something else.
    """
    if max_tokens == AUTO:
        return AUTO
    if isinstance(max_tokens, str) and max_tokens.isdecimal():
        max_tokens = int(max_tokens)
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise ValueError(
            f"the tokens of a micro-batch are {max_tokens!r}: expected a number above 0, or 'auto', which chooses by "
            "device and free memory"
        )
    return max_tokens
