"""The report of mining: what was looked at, what each filter dropped, and how many queries got what they asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# Upper ends of the ranges of ranks that the report counts.
_RANKS = (10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class FilterCount:
    """What one filter did.

    Attributes:
        name: The filter in words.
        num_dropped: Candidates that it dropped, of those that the filters before it had left.
        num_queries: Queries of which it dropped any.
        num_without_measure: Queries of which it dropped all, because a positive scores 0 or less and a share of that
            means nothing.
    """

    name: str
    num_dropped: int
    num_queries: int
    num_without_measure: int


@dataclass(frozen=True)
class MiningReport:
    """What mining did, in counts; prints as a short table. It holds texts only where examples were asked for.

    Attributes:
        first_stage: In words.
        num_passages: Passages searched, each text once.
        num_empty_passages: Left out, because they have no text.
        num_duplicate_passages: Left out, because another has the same text.
        num_groups: Groups given.
        num_without_positive: Of those, left out because no positive of theirs is known.
        num_negatives_asked: For each query.
        num_candidates: Passages inside the window, over all queries.
        filters: What each filter did, in their order.
        num_negatives: Negatives chosen, over all queries.
        num_complete: Groups that got as many as were asked for.
        num_short: Groups that got fewer, but one or more.
        num_empty: Groups that got none.
        empty_kept: Whether those were kept; otherwise they were left out.
        num_without_candidates: Of the groups that got none, those whose window was empty before any filter.
        ranks: How many of the chosen negatives stand in each range of ranks, counted from 1 among the first stage's
            candidates without the query's positives.
        examples: Where asked for: query, positive, passage, rank, first-stage score, and ``verdict`` ("chosen", or the
            filter that dropped it).
    """

    first_stage: str
    num_passages: int
    num_empty_passages: int
    num_duplicate_passages: int
    num_groups: int
    num_without_positive: int
    num_negatives_asked: int
    num_candidates: int
    filters: tuple[FilterCount, ...]
    num_negatives: int
    num_complete: int
    num_short: int
    num_empty: int
    empty_kept: bool
    num_without_candidates: int
    ranks: dict[str, int]
    examples: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for ``json.dumps``."""
        return asdict(self)

    def __str__(self) -> str:
        left_out = "kept, with positives only" if self.empty_kept else "left out"
        lines = [
            ("passages searched", self.num_passages, f"by {self.first_stage}"),
            ("  left out: empty", self.num_empty_passages, ""),
            ("  left out: same text", self.num_duplicate_passages, ""),
            ("groups", self.num_groups, ""),
            ("  left out: no positive", self.num_without_positive, ""),
            ("candidates in the window", self.num_candidates, ""),
            *((f"  dropped by {of.name}", of.num_dropped, self._detail(of)) for of in self.filters),
            ("negatives chosen", self.num_negatives, ""),
            *((f"  of ranks {ranks}", count, "") for ranks, count in self.ranks.items()),
            (f"groups with {self.num_negatives_asked} negatives", self.num_complete, ""),
            ("groups with fewer", self.num_short, ""),
            ("groups with none", self.num_empty, f"{left_out}; {self.num_without_candidates} had no candidates"),
        ]
        width = max(len(what) for what, _, _ in lines)
        return "\n".join(f"{what:<{width}} {count:>10,}  {detail}".rstrip() for what, count, detail in lines)

    def _detail(self, of: FilterCount) -> str:
        share = of.num_dropped / self.num_candidates if self.num_candidates else 0.0
        measured = f", {of.num_without_measure} with a positive of 0 or less" if of.num_without_measure else ""
        return f"{share:.1%}, in {of.num_queries} groups{measured}"


def count_ranks(ranks: Iterable[int]) -> dict[str, int]:
    """How many ranks, counted from 1, stand in each range; ranges without any are left out.

    >>> count_ranks([1, 10, 11, 2000])
    {'1-10': 2, '11-20': 1, '1001-': 1}
    """
    edges = (0, *_RANKS)
    counts = Counter(max(index for index, edge in enumerate(edges) if rank > edge) for rank in ranks)
    names = [f"{low + 1}-{high}" for low, high in zip(edges, edges[1:], strict=False)] + [f"{edges[-1] + 1}-"]
    return {name: counts[index] for index, name in enumerate(names) if counts[index]}
