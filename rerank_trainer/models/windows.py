"""Windows: a passage that does not fit, scored in overlapping parts whose scores become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rerank_trainer.data.templates import PairTemplate, Row

_REDUCTIONS = {"max": "amax", "mean": "mean"}


@dataclass(frozen=True)
class Windows:
    """How a passage that does not fit is cut into windows, and how their scores become one.

    A window is as long as the room that the query leaves, so that its row is full. Each begins ``overlap`` tokens
    before the end of the one before it; the last is moved back until it is full too, and so may overlap more. A passage
    that fits has one window and the score that it has without.

    Args:
        overlap: Tokens that a window shares with the one before it.
        aggregate: "max" takes the best window's score (MaxP, https://arxiv.org/abs/1905.09217), "mean" their mean.

    Raises:
        ValueError: If ``overlap`` is negative or ``aggregate`` is another word.

    >>> Windows(overlap=2).starts(passage_length=10, size=4)
    [0, 2, 4, 6]
    >>> Windows(overlap=1).starts(passage_length=9, size=4)
    [0, 3, 5]
    """

    overlap: int = 64
    aggregate: str = "max"

    def __post_init__(self) -> None:
        if self.overlap < 0:
            raise ValueError(f"overlap={self.overlap}: windows share a number of tokens, so give 0 or more")
        if self.aggregate not in _REDUCTIONS:
            raise ValueError(f"aggregate={self.aggregate!r}: expected one of {list(_REDUCTIONS)}")

    def starts(self, *, passage_length: int, size: int) -> list[int]:
        """The places of a passage's tokens at which its windows of ``size`` tokens begin."""
        if passage_length <= size:
            return [0]
        last = passage_length - size
        return [*range(0, last, size - self.overlap), last]

    def rows(self, template: PairTemplate, query: list[int], passage: list[int]) -> list[Row]:
        """The rows of a pair's windows, in the order of the passage.

        Args:
            template: How a pair becomes a row; it cuts a query that is too long, as always.
            query: Token ids without special tokens.
            passage: Token ids without special tokens.

        Raises:
            ValueError: If the room that the query leaves is not greater than the overlap.
        """
        row = template.row(query, passage)
        if not row.num_passage_lost:
            return [row]
        size = len(passage) - row.num_passage_lost
        if self.overlap >= size:
            raise ValueError(
                f"overlap={self.overlap}, but a query of {len(query)} tokens leaves windows of {size} tokens at "
                f"max_length={template.max_length}. Lower the overlap below {size}, or raise max_length."
            )
        kept = query[: len(query) - row.num_query_lost]
        parts = [passage[start : start + size] for start in self.starts(passage_length=len(passage), size=size)]
        return [
            replace(template.row(kept, part), num_pair_tokens=row.num_pair_tokens, num_query_lost=row.num_query_lost)
            for part in parts
        ]

    def reduce(self, scores: Tensor, pairs: Sequence[int] | Tensor, num_pairs: int) -> Tensor:
        """One score a pair, ``(num_pairs,)``, from those of the windows, ``(num_windows,)``.

        Args:
            scores: A score a window.
            pairs: The number of each window's pair, ``(num_windows,)``.
            num_pairs: How many pairs there are; each has a window or more.

        >>> Windows(aggregate="mean").reduce(torch.tensor([1.0, 2.0, 6.0]), [0, 1, 1], 2)
        tensor([1., 4.])
        """
        index = torch.as_tensor(pairs, dtype=torch.long, device=scores.device)
        empty = scores.new_zeros(num_pairs)
        return empty.scatter_reduce(0, index, scores, reduce=_REDUCTIONS[self.aggregate], include_self=False)
