"""Truncation: how many pairs did not fit, and how many of their tokens were cut off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from rerank_trainer.data.templates import Row

# Above this share of cut pairs the log warns: scores then rest on a part of the text too often to be an accident.
WARNING_SHARE = 0.1


@dataclass(frozen=True)
class Truncation:
    """Counts of what was cut from pairs; counts of several calls add up.

    Attributes:
        num_pairs: All pairs, cut or not.
        num_cut: Pairs of which passage or query was cut.
        num_queries_cut: Pairs of which the query was cut.
        num_tokens: Tokens that the cut pairs had before, special tokens not included.
        num_lost: Tokens that they lost.

    >>> first, second = Truncation(10, 2, 0, 300, 60), Truncation(10, 0, 0, 0, 0)
    >>> print((first + second).describe(128))
    2 of 20 pairs were cut to max_length=128, 20 % of their tokens lost
    """

    num_pairs: int = 0
    num_cut: int = 0
    num_queries_cut: int = 0
    num_tokens: int = 0
    num_lost: int = 0

    @classmethod
    def of(cls, pairs: Iterable[Row]) -> Truncation:
        """The counts of rows that are one pair each."""
        rows = list(pairs)
        cut = [row for row in rows if row.num_query_lost or row.num_passage_lost]
        return cls(
            num_pairs=len(rows),
            num_cut=len(cut),
            num_queries_cut=sum(row.num_query_lost > 0 for row in cut),
            num_tokens=sum(row.num_pair_tokens for row in cut),
            num_lost=sum(row.num_query_lost + row.num_passage_lost for row in cut),
        )

    def __add__(self, other: Truncation) -> Truncation:
        return Truncation(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Truncation) -> Truncation:
        return Truncation(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def share(self) -> float:
        """Share of the pairs that were cut, from 0 to 1; 0 where there are none."""
        return self.num_cut / max(1, self.num_pairs)

    def describe(self, max_length: int) -> str:
        """The counts in words, for a log."""
        text = (
            f"{self.num_cut} of {self.num_pairs} pairs were cut to max_length={max_length}, "
            f"{100 * self.num_lost / max(1, self.num_tokens):.0f} % of their tokens lost"
        )
        return f"{text}; in {self.num_queries_cut} of them the query was cut too" if self.num_queries_cut else text
