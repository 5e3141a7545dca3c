"""Advice: figures by query whose truth was planted, and what the rules must say of them."""

from __future__ import annotations

import pytest

from rerank_trainer.comparison.advice import WORTH, advise, queries_needed
from rerank_trainer.evaluation.significance import paired_test
from tests.comparison.made_up import made_up, noise

NUM = 200
BASE = 0.5 + noise(NUM, 0.1, seed=0)


def verdicts(results):
    return {(advice.rule, advice.about): advice.verdict for advice in advise(results, num_resamples=999)}


def compared(*, gain=0.0, gain_out=0.0, mix=None, lead=0.1, spread=0.1, over_first=0.3, depths=(10,), **options):
    """A student whose ``kd`` gains so much over ``cl`` in and out of domain, under a teacher with such a lead."""

    def both(value_in, value_out, seed):
        return {
            "in": BASE + value_in + noise(NUM, spread, seed),
            "out": BASE + value_out + noise(NUM, spread, seed + 1),
        }

    models = {
        ("teacher", ""): both(lead, lead, 10),
        ("cl", "small"): {"in": BASE, "out": BASE},
        ("kd", "small"): both(gain, gain_out, 20),
    }
    if mix is not None:
        models["cl+kd", "small"] = both(mix, mix, 30)
    first = {name: BASE - over_first for name in ("in", "out")}
    bounds = {"first stage": first, "ceiling": {name: BASE * 0 + 0.95 for name in ("in", "out")}}
    return made_up(models, bounds=bounds, out_of_domain=["out"], **options)


@pytest.mark.parametrize(
    ("planted", "method"),
    [
        ({"gain": 0.05, "gain_out": 0.05}, "distil"),
        ({"gain": 0.05, "gain_out": 0.0}, "distil"),  # helps in one domain and costs in none
        ({"gain": -0.05, "gain_out": -0.05}, "contrast"),
        ({"gain": 0.05, "gain_out": -0.05}, "undecided"),
        ({"gain": 0.0, "gain_out": 0.0}, "undecided"),  # 200 queries could not have shown what matters
        ({"gain": 0.0, "gain_out": 0.0, "spread": 0.01}, "contrast"),  # here they could
        ({"gain": 0.03, "gain_out": 0.03, "mix": 0.1}, "mix"),
        ({"gain": 0.1, "gain_out": 0.1, "mix": 0.101}, "distil"),  # the mixture is not shown to be better
        ({"gain": 0.0, "gain_out": 0.0, "mix": 0.1}, "mix"),
    ],
)
def test_the_method_follows_from_the_planted_gain(planted, method):
    assert verdicts(compared(**planted))["method", "small"] == method


@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        ({"lead": 0.1}, "stronger"),
        ({"lead": 0.0}, "not shown"),
        ({"lead": -0.1}, "weaker"),
    ],
)
def test_the_teacher_is_judged_by_the_planted_lead(planted, verdict):
    assert verdicts(compared(**planted))["teacher", "small"] == verdict


@pytest.mark.parametrize(("over_first", "verdict"), [(-0.2, "below the first stage"), (0.0, None), (0.2, None)])
def test_a_teacher_below_the_first_stage_is_named_once_and_may_yet_be_better_than_the_student(over_first, verdict):
    found = verdicts(compared(gain=0.05, gain_out=0.05, lead=0.1, over_first=over_first))

    assert found.get(("teacher", "teacher")) == verdict
    assert (found["teacher", "small"], found["method", "small"]) == ("stronger", "distil")


@pytest.mark.parametrize(("over_first", "verdict"), [(-0.2, "train longer"), (0.0, None), (0.2, None)])
def test_a_student_below_the_first_stage_is_to_be_trained_longer(over_first, verdict):
    assert verdicts(compared(gain=0.01, over_first=over_first)).get(("budget", "small")) == verdict


@pytest.mark.parametrize(("spread", "verdict"), [(0.3, "more queries"), (0.01, "enough queries")])
def test_more_queries_are_asked_for_where_these_vary_too_much(spread, verdict):
    assert verdicts(compared(spread=spread))["queries", "small"] == verdict


def test_queries_needed_would_indeed_show_what_matters():
    values = noise(100, 0.1, seed=3)
    num = queries_needed(paired_test(values, values * 0, num_resamples=99))

    # the definition: (1.96 + 0.84) * 0.1 / sqrt(n) = 0.01 at n = 785; t with 99 degrees asks for a little more
    assert 785 < num < 815
    assert WORTH == 0.01


@pytest.mark.parametrize(
    ("deep", "ceiling", "verdict"),
    [
        (0.05, 0.95, "deeper"),  # still rises
        (-0.05, 0.95, "shallower"),
        (0.0, 0.95, "deep enough"),
        (0.0, 0.6, "deeper"),  # 0.4 are missed, 0.1 are lost by the order
    ],
)
def test_the_depth_follows_from_the_planted_curve(deep, ceiling, verdict):
    curve = {10: BASE, 50: BASE + deep + noise(NUM, 0.01, seed=5)}
    models = {("teacher", ""): {"in": BASE}, ("cl", "small"): {"in": curve}}
    bounds = {"first stage": {"in": BASE - 0.3}, "ceiling": {"in": BASE * 0 + ceiling}}
    results = made_up(models, bounds=bounds, depths=(10, 50))

    assert verdicts(results)["depth", "in"] == verdict


@pytest.mark.parametrize(("metric", "verdict"), [("nDCG@10", "deeper"), ("P@10", None), ("R@5", None)])
def test_what_a_list_misses_is_told_by_metrics_alone_that_reach_one(metric, verdict):
    # a ceiling of 0.3: 7 tenths are missed, or no query has more than 3 relevant passages
    models = {("teacher", ""): {"in": BASE * 0.5}, ("cl", "small"): {"in": BASE * 0.5}}
    bounds = {"first stage": {"in": BASE * 0.4}, "ceiling": {"in": BASE * 0 + 0.3}}

    found = verdicts(made_up(models, bounds=bounds, metric=metric))
    assert found.get(("depth", "in")) == verdict


def test_without_a_recipe_of_labels_alone_nothing_is_said_of_the_method():
    models = {("teacher", ""): {"in": BASE}, ("kd", "small"): {"in": BASE}}
    bounds = {"first stage": {"in": BASE - 0.3}, "ceiling": {"in": BASE + 0.3}}

    assert ("method", "small") not in verdicts(made_up(models, bounds=bounds))


def test_advice_names_the_figures_that_it_follows_from():
    (advice,) = [a for a in advise(compared(gain=0.05, gain_out=0.05), num_resamples=999) if a.rule == "method"]

    assert "kd is better than cl" in advice.text
    assert "in domain +0.050" in advice.text and "200 queries" in advice.text
