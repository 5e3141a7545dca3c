"""Advice: what follows from a comparison's figures by stated rules; all thresholds stand at the top of this file.

Rules see tests over queries that are pooled by domain: all queries of the sets in the domain, and all of those outside.
Two models of the same student are compared by the mean of each query over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerank_trainer.comparison.contrasts import ALPHA
from rerank_trainer.comparison.plan import CEILING, FIRST_STAGE, TEACHER
from rerank_trainer.comparison.results import Results
from rerank_trainer.evaluation.metrics import parse_metric
from rerank_trainer.evaluation.significance import PairedTest, holm, paired_test

# A difference of the metric that would matter. Smaller ones that were not shown are left alone.
WORTH = 0.01
# Depth: what the first stage misses must cost so many times what the order costs before it is named.
MISSED_RATIO = 1.0
# Metrics that are 1 where all that is relevant stands in front, so that 1 - ceiling is what the candidates miss.
_REACH_ONE = ("nDCG", "RR", "AP", "Success")

CONTRAST, DISTIL, MIX, UNDECIDED = "contrast", "distil", "mix", "undecided"
STRONGER, EQUAL, WEAKER, BELOW_FIRST_STAGE = "stronger", "not shown", "weaker", "below the first stage"
MORE_QUERIES, ENOUGH_QUERIES = "more queries", "enough queries"
TRAIN_LONGER = "train longer"
DEEPER, SHALLOWER, DEEP_ENOUGH = "deeper", "shallower", "deep enough"


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        rule: "method", "teacher", "queries", "budget" or "depth".
        about: The student, the teacher, or the evaluation set.
        verdict: In a word or two.
        text: In sentences, with the figures that it follows from.
    """

    rule: str
    about: str
    verdict: str
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


@dataclass(frozen=True)
class _Tested:
    test: PairedTest
    p_value: float

    @property
    def verdict(self) -> int:
        return 0 if self.p_value >= ALPHA else 1 if self.test.difference > 0 else -1

    @property
    def text(self) -> str:
        return f"{self.test.difference:+z.3f} (p = {self.p_value:.2g}, {self.test.num_queries} queries)"


def advise(results: Results, *, num_resamples: int = 10_000) -> list[Advice]:
    """What the figures say: by student its method, teacher, queries and budget; of the teacher; by set the depth.

    Args:
        results: What was found.
        num_resamples: Of each test.
    """
    resamples = {"num_resamples": num_resamples}
    found: list[Advice] = []
    methods = _against(results, results.recipes, results.reference, resamples)
    for student in results.students:
        own = {key[1:]: value for key, value in methods.items() if key[0] == student}
        if results.has_plain_reference and own:
            found.append(_method(results, student, own, resamples))
            found.append(_queries(results, student, own))
        found += _teacher(results, student, resamples) + _budget(results, student, resamples)
    found += _teacher_alone(results, resamples)
    return found + [advice for name in results.sets for advice in _depth(results, name, resamples)]


def _against(
    results: Results, recipes: Sequence[str], reference: str, resamples: dict[str, Any]
) -> dict[tuple[str, str, str], _Tested]:
    """(student, recipe, domain) to the test against the reference recipe, corrected over all of them."""
    tests = {}
    for student in results.students:
        for recipe in recipes:
            for domain, sets in results.domains().items():
                test = _test(
                    results.pooled(recipe, sets, student=student),
                    results.pooled(reference, sets, student=student),
                    resamples,
                )
                if recipe != reference and test is not None:
                    tests[student, recipe, domain] = test
    return _corrected(tests)


def _test(ours: Any, theirs: Any, resamples: dict[str, Any]) -> PairedTest | None:
    return paired_test(ours, theirs, confidence=1 - ALPHA, **resamples) if ours and theirs else None


def _corrected(tests: dict[Any, PairedTest]) -> dict[Any, _Tested]:
    corrected = holm({key: test.p_value for key, test in tests.items()})
    return {key: _Tested(test, corrected[key]) for key, test in tests.items()}


def _method(results: Results, student: str, own: dict[tuple[str, str], _Tested], resamples: dict[str, Any]) -> Advice:
    """Distil or mix if that is better than labels alone in a domain and worse in none; otherwise contrast."""
    reference, kinds = results.reference, {n: r["kind"] for n, r in results.settings["recipes"].items()}
    verdicts: dict[str, list[int]] = {}
    for (recipe, _), tested in own.items():
        verdicts.setdefault(recipe, []).append(tested.verdict)
    better = [recipe for recipe, found in verdicts.items() if max(found) > 0 and min(found) >= 0]
    figures = {
        recipe: "; ".join(f"{domain} {t.text}" for (name, domain), t in own.items() if name == recipe)
        for recipe in verdicts
    }
    mean = {recipe: _overall(results, student, recipe) for recipe in verdicts}
    if better:
        best = max(better, key=lambda recipe: mean[recipe])
        simple = [recipe for recipe in better if kinds[recipe] == DISTIL]
        if kinds[best] == MIX and simple:
            rival = max(simple, key=lambda recipe: mean[recipe])
            ours, theirs = (results.pooled(name, results.sets, student=student) for name in (best, rival))
            test = _test(ours, theirs, resamples)
            best = best if test is not None and test.p_value < ALPHA else rival
        word = {DISTIL: "Distil", MIX: "Mix labels and teacher", CONTRAST: "Learn from labels"}[kinds[best]]
        text = f"{word}: {best} is better than {reference}, {figures[best]}."
        return Advice("method", student, kinds[best], text)
    mixed = [recipe for recipe, found in verdicts.items() if max(found) > 0 > min(found)]
    if mixed:
        text = f"It depends on the domain: {mixed[0]} against {reference}, {figures[mixed[0]]}."
        return Advice("method", student, UNDECIDED, text)
    closest = max(verdicts, key=lambda recipe: mean[recipe])
    of_closest = [tested for (recipe, _), tested in own.items() if recipe == closest]
    if not any(t.verdict for t in of_closest) and any(t.test.detectable > WORTH for t in of_closest):
        text = (
            f"No recipe was shown to be better than {reference}; the nearest is {closest}, {figures[closest]}. Learn "
            f"from labels ({reference}), which needs no teacher, unless more queries decide otherwise."
        )
        return Advice("method", student, UNDECIDED, text)
    text = f"Learn from labels: {closest}, the best of the others, is no better than {reference}, {figures[closest]}."
    return Advice("method", student, CONTRAST, text)


def _overall(results: Results, student: str, recipe: str) -> float:
    """The mean over domains of the mean over sets."""
    domains = [[results.mean(recipe, name, student=student) for name in sets] for sets in results.domains().values()]
    return sum(sum(own) / len(own) for own in domains) / len(domains)


def _teacher(results: Results, student: str, resamples: dict[str, Any]) -> list[Advice]:
    """Strong enough is a teacher that is better than the student without it, in a domain, and worse in none."""
    if not results.has_plain_reference:
        return []
    beside = _teacher_against(results, results.reference, student, resamples)
    if not beside:
        return []
    said = "; ".join(f"{domain} {tested.text}" for domain, tested in beside.items())
    verdicts = [tested.verdict for tested in beside.values()]
    if min(verdicts) < 0:
        text = f"The teacher is weaker than the student that {results.reference} trains: {said}. Find a better one."
        return [Advice("teacher", student, WEAKER, text)]
    if max(verdicts) > 0:
        text = f"The teacher is strong enough: against the student that {results.reference} trains, {said}."
        return [Advice("teacher", student, STRONGER, text)]
    text = (
        f"The teacher was not shown to be better than the student that {results.reference} trains: {said}. A stronger "
        "one is what makes distillation pay."
    )
    return [Advice("teacher", student, EQUAL, text)]


def _teacher_alone(results: Results, resamples: dict[str, Any]) -> list[Advice]:
    """A teacher that ranks worse than the first stage may still teach a weaker student; it is no aim to reach."""
    beside = _teacher_against(results, FIRST_STAGE, "", resamples)
    if not (bad := [f"{domain} {tested.text}" for domain, tested in beside.items() if tested.verdict < 0]):
        return []
    text = (
        f"It ranks worse than the first stage: {'; '.join(bad)}. A student that becomes as good as it does not help "
        "there: find a better teacher, or keep the first stage's order."
    )
    return [Advice("teacher", TEACHER, BELOW_FIRST_STAGE, text)]


def _teacher_against(results: Results, rival: str, student: str, resamples: dict[str, Any]) -> dict[str, _Tested]:
    """Domain to the test of the teacher, corrected over domains."""
    tests = {
        domain: _test(results.pooled(TEACHER, sets), results.pooled(rival, sets, student=student), resamples)
        for domain, sets in results.domains().items()
    }
    return _corrected({domain: test for domain, test in tests.items() if test is not None})


def _budget(results: Results, student: str, resamples: dict[str, Any]) -> list[Advice]:
    """A student that ranks worse than the first stage under its best recipe has learned too little."""
    means = {recipe: _overall(results, student, recipe) for recipe in results.recipes}
    known = {recipe: mean for recipe, mean in means.items() if not math.isnan(mean)}
    if not known:
        return []
    best = max(known, key=lambda recipe: known[recipe])
    tests = {
        domain: _test(results.pooled(best, sets, student=student), results.pooled(FIRST_STAGE, sets), resamples)
        for domain, sets in results.domains().items()
    }
    found = _corrected({domain: test for domain, test in tests.items() if test is not None})
    if not (worse := [f"{domain} {tested.text}" for domain, tested in found.items() if tested.verdict < 0]):
        return []
    text = (
        f"Even by {best}, its best recipe, it ranks worse than the first stage: {'; '.join(worse)}. Train longer, or "
        "on such data, first."
    )
    return [Advice("budget", student, TRAIN_LONGER, text)]


def _queries(results: Results, student: str, own: dict[tuple[str, str], _Tested]) -> Advice:
    """More queries would tell where a difference that was not shown could be larger than what matters."""
    open_ones = [(key, t) for key, t in own.items() if t.verdict == 0 and t.test.detectable > WORTH]
    if not open_ones:
        text = f"These queries are enough: what they did not show is smaller than {WORTH:g}."
        return Advice("queries", student, ENOUGH_QUERIES, text)
    (recipe, domain), tested = max(open_ones, key=lambda found: found[1].test.detectable)
    num = queries_needed(tested.test)
    text = (
        f"More queries would tell: {tested.test.num_queries} queries {domain} cannot show a difference of {recipe} "
        f"from {results.reference} below {tested.test.detectable:.3f}. About {num:,} like them would show {WORTH:g}."
    )
    return Advice("queries", student, MORE_QUERIES, text)


def queries_needed(test: PairedTest, worth: float = WORTH) -> int:
    """How many queries that vary alike would show a difference that matters: what is detectable falls with their root.

    >>> import numpy as np
    >>> test = paired_test(np.tile([0.1, -0.1], 50), np.zeros(100), num_resamples=99)
    >>> round(test.detectable, 4), queries_needed(test)
    (0.0284, 809)
    """
    return math.ceil(test.num_queries * (test.detectable / worth) ** 2)


def _depth(results: Results, name: str, resamples: dict[str, Any]) -> list[Advice]:
    """A deeper list pays where the metric still rises with the depth, or where misses cost more than the order."""
    models = [(student, recipe) for student in results.students for recipe in results.recipes]
    judged = [(results.mean(recipe, name, student=student), student, recipe) for student, recipe in models]
    judged = [each for each in judged if not math.isnan(each[0])]
    if not judged:
        return []
    value, student, recipe = max(judged)
    depths, who = results.depths(name), f"{student} {recipe}"
    missed, order = 1 - results.mean(CEILING, name), results.mean(CEILING, name) - value
    costs = f"what {depths[-1]} candidates miss costs {missed:.3f}, the order of {who} costs {order:.3f}"
    if len(depths) > 1:
        deep, before = (
            results.by_query(recipe, name, student=student, depth=depth) for depth in (depths[-1], depths[-2])
        )
        test = paired_test(deep, before, confidence=1 - ALPHA, **resamples)
        said = f"{who} from {depths[-2]} to {depths[-1]} candidates: {test.difference:+.3f} (p = {test.p_value:.2g})"
        if test.p_value < ALPHA and test.difference < 0:
            return [Advice("depth", name, SHALLOWER, f"Rerank fewer candidates: {said}.")]
        if test.p_value < ALPHA:
            return [Advice("depth", name, DEEPER, f"A deeper list would tell: it still rises, {said}.")]
    if parse_metric(results.metric).NAME not in _REACH_ONE:
        return []
    if missed > MISSED_RATIO * order:
        return [Advice("depth", name, DEEPER, f"A deeper list or a better first stage would tell: {costs}.")]
    return [Advice("depth", name, DEEP_ENOUGH, f"These candidates are enough: {costs}.")]
