"""Rankings without scores: the order that a teacher gave to the passages of a query, as minus their ranks."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence

_PERMUTATION = re.compile(r"\s*\[?\d+\]?(?:\s*>\s*\[?\d+\]?)*\s*")


def minus_ranks(best_first: Sequence[Hashable], entries: Sequence[Hashable]) -> list[float]:
    """Minus the rank of each entry; those that the ranking does not name share the rank after the last one named.

    Losses of an order never order passages of equal scores, so they learn of a list of the best few that those stand
    before all others, and nothing of the others among themselves.

    Args:
        best_first: The ranking, each entry once; what is not among the entries takes no rank.
        entries: Of a group: its passages, their ids or their places.

    >>> minus_ranks(["c", "x", "a"], ["a", "b", "c", "d"])
    [-2.0, -3.0, -1.0, -3.0]
    """
    own = set(entries)
    ranks = {entry: rank for rank, entry in enumerate((entry for entry in best_first if entry in own), start=1)}
    return [-float(ranks.get(entry, len(ranks) + 1)) for entry in entries]


def hold_minus_ranks(teacher_scores: Iterable[Sequence[float]]) -> bool:
    """Whether the teacher scores of every group are what :func:`minus_ranks` makes: -1, -2, ..., ties at the end.

    >>> hold_minus_ranks([[-2.0, -3.0, -1.0, -3.0]]), hold_minus_ranks([[-2.0, -2.0, -1.0, -3.0]])
    (True, False)
    """
    for scores in teacher_scores:
        best_first = [scores.index(score) for score in sorted(set(scores), reverse=True)]
        if list(scores) != minus_ranks(best_first[:-1], range(len(scores))):
            return False
    return True


def read_permutation(text: str) -> list[int]:
    """The places in an answer such as RankGPT's (https://arxiv.org/abs/2304.09542), counted from 1, best first.

    Raises:
        ValueError: If the text is anything else.

    >>> read_permutation("[2] > [1] > [3]")
    [2, 1, 3]
    """
    if not _PERMUTATION.fullmatch(text):
        raise ValueError(
            f"expected a permutation such as '[2] > [1] > [3]', found {text!r}. Keep nothing but the places, each in "
            "brackets, with > between them."
        )
    return [int(place) for place in re.findall(r"\d+", text)]


def fault_of_permutation(places: Sequence[float], num_passages: int) -> str | None:
    """What is wrong with places, counted from 1, as the ranking of so many passages; None if nothing is.

    >>> fault_of_permutation([2, 1, 2], 3)
    'the place 2 for the second time'
    """
    seen = set()
    for place in places:
        if place in seen:
            return f"the place {place:g} for the second time"
        if not (1 <= place <= num_passages and float(place).is_integer()):
            return f"the place {place:g} of {num_passages} passages, counted from 1"
        seen.add(place)
    return None
