"""Contrasts: every recipe against the reference recipe, first stage, teacher and untrained student, tested by query."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rerank_trainer.comparison.plan import FIRST_STAGE, TEACHER, UNTRAINED
from rerank_trainer.comparison.results import Results
from rerank_trainer.evaluation.significance import PairedTest, holm, paired_test

# The level of all tests: of any false one within a family (Holm), and of what was detectable.
ALPHA = 0.05
REFERENCE = "reference"
# Families: questions that are asked together. Each is corrected for itself.
FAMILIES = (REFERENCE, FIRST_STAGE, TEACHER, UNTRAINED)


@dataclass(frozen=True)
class Contrast:
    """One comparison over the queries of one evaluation set.

    Attributes:
        student, recipe, eval_set: What is compared.
        against: A recipe, "first stage", "teacher" or "untrained".
        family: "reference" or what it is compared with.
        test: Over queries; of several seeds each query counts its mean.
        p_value: Corrected by Holm over its family: all students, recipes and evaluation sets.
    """

    student: str
    recipe: str
    eval_set: str
    against: str
    family: str
    test: PairedTest
    p_value: float

    @property
    def verdict(self) -> int:
        """1 where the recipe is better, -1 where it is worse, 0 where that was not shown."""
        if self.p_value >= ALPHA:
            return 0
        return 1 if self.test.difference > 0 else -1


def contrasts(results: Results, *, num_resamples: int = 10_000) -> list[Contrast]:
    """All contrasts that the finished cells allow, on the first metric at the greatest depth.

    Args:
        results: What was found.
        num_resamples: Of each test and interval.
    """
    found: list[Contrast] = []
    for family in FAMILIES:
        own = [
            Contrast(student, recipe, eval_set, against, family, test, test.p_value)
            for student in results.students
            for recipe in results.recipes
            for eval_set in results.sets
            for against, test in _tests(results, student, recipe, eval_set, family, num_resamples)
        ]
        corrected = holm([contrast.p_value for contrast in own])
        found += [replace(contrast, p_value=corrected[place]) for place, contrast in enumerate(own)]
    return found


def _tests(
    results: Results, student: str, recipe: str, eval_set: str, family: str, num_resamples: int
) -> list[tuple[str, PairedTest]]:
    """None or one."""
    against = results.reference if family == REFERENCE else family
    if recipe == against:
        return []
    owner = student if family in (REFERENCE, UNTRAINED) else ""
    ours = results.by_query(recipe, eval_set, student=student)
    theirs = results.by_query(against, eval_set, student=owner)
    if not ours or not theirs:
        return []
    return [(against, paired_test(ours, theirs, confidence=1 - ALPHA, num_resamples=num_resamples))]
