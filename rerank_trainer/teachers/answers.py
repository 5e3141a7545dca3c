"""Answers: what a teacher gave for groups, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def checked_scores(
    answer: Mapping[str, list[list[float]]], groups: Sequence[Mapping[str, Any]], *, first_group: int = 0
) -> list[list[float]]:
    """The scores of a teacher's answer, one list a group.

    Args:
        answer: What ``teacher.score(groups)`` returned.
        groups: The groups it was asked about.
        first_group: The number of the first of them, for errors.

    Raises:
        ValueError: If groups or passages have no score, or a score is not finite.

    >>> checked_scores({"scores": [[0.5, -1.0]]}, [{"query": "sun", "passages": ["a star", "a paper"]}])
    [[0.5, -1.0]]
    """
    scores = answer["scores"]
    if len(scores) != len(groups):
        raise ValueError(f"the teacher gave scores for {len(scores)} groups of {len(groups)}")
    for number, (group_scores, group) in enumerate(zip(scores, groups, strict=True), start=first_group):
        if len(group_scores) != len(group["passages"]):
            raise ValueError(
                f"group {number}: the teacher gave {len(group_scores)} scores for {len(group['passages'])} passages"
            )
        wrong = [score for score in group_scores if not math.isfinite(score)]
        if wrong:
            raise ValueError(f"group {number}: the teacher gave the score {wrong[0]}; scores must be finite numbers")
    return scores
