"""Significance: cases counted by hand, scipy's own tests, and simulations with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from rerank_trainer.evaluation.significance import detectable_difference, holm, mean_interval, paired_test


def test_the_p_value_of_few_queries_is_counted_over_all_exchanges():
    ours, theirs = [0.9, 0.4, 0.7, 0.5, 0.6, 0.8], [0.5, 0.5, 0.2, 0.3, 0.6, 0.1]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = np.mean(differences)
    exchanged = [np.mean([s * d for s, d in zip(signs, differences, strict=True)]) for signs in SIGNS[6]]
    expected = np.mean([abs(value) >= abs(mean) - 1e-12 for value in exchanged])

    test = paired_test(ours, theirs)
    assert test.exact and test.p_value == pytest.approx(expected) and 0.03 < expected < 0.2
    assert test.difference == pytest.approx(mean)
    assert (test.num_wins, test.num_losses, test.num_queries) == (4, 1, 6)
    assert test.effect_size == pytest.approx(mean / np.std(differences, ddof=1))


SIGNS = {size: list(itertools.product([-1, 1], repeat=size)) for size in (6,)}


def test_five_wins_of_one_size_have_a_p_value_of_two_in_thirty_two():
    test = paired_test([1.0] * 5, [0.5] * 5)

    assert test.p_value == pytest.approx(2 / 32)
    assert (test.low, test.high, test.effect_size, test.detectable) == (0.5, 0.5, math.inf, 0.0)
    assert paired_test([0.5] * 5, [1.0] * 5).effect_size == -math.inf


def test_equal_rankings_differ_in_nothing():
    test = paired_test([0.3, 0.8, 0.1], [0.3, 0.8, 0.1])

    assert (test.difference, test.p_value, test.effect_size, test.low, test.high) == (0.0, 1.0, 0.0, 0.0, 0.0)
    assert (test.num_wins, test.num_losses) == (0, 0)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.1])
def test_many_queries_have_about_the_p_value_and_interval_of_a_t_test(shift):
    chance = np.random.default_rng(1)
    theirs = chance.uniform(size=200)
    ours = theirs + shift + chance.normal(scale=0.3, size=200)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.9)

    test = paired_test(ours, theirs, confidence=0.9)
    assert not test.exact and test.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high), abs=0.005)


@pytest.mark.parametrize(("num_queries", "exact"), [(13, True), (14, False), (2000, False)])
def test_all_exchanges_are_counted_where_they_are_no_more_than_the_resamples(num_queries, exact):
    test = paired_test(np.arange(num_queries) + 1.0, np.zeros(num_queries))

    assert test.exact is exact
    assert test.p_value == pytest.approx(2 / 2**13) if exact else test.p_value < 0.001


def test_the_p_value_of_a_sample_is_never_zero():
    test = paired_test(np.full(100, 0.9) + np.arange(100) / 1000, np.zeros(100), num_resamples=999)

    assert test.p_value == pytest.approx(2 * 1 / 1000)  # scipy doubles the smaller tail


def test_the_same_seed_gives_the_same_test_and_another_one_nearly_so():
    chance = np.random.default_rng(2)
    ours, theirs = chance.uniform(size=(2, 50))

    one, again, other = (paired_test(ours, theirs, seed=seed) for seed in (0, 0, 1))
    assert one == again and one != other
    assert other.p_value == pytest.approx(one.p_value, abs=0.05)


def test_queries_are_paired_by_name_and_those_without_a_value_left_out():
    ours, theirs = {"a": 0.9, "b": 0.2, "c": 0.5}, {"c": 0.25, "b": 0.1, "a": 0.5}

    assert paired_test(ours, theirs) == paired_test([0.9, 0.2, 0.5], [0.5, 0.1, 0.25])
    assert paired_test([0.9, np.nan, 0.2, 0.5], [0.5, np.nan, 0.1, 0.25]).num_queries == 3


def test_a_true_null_is_rejected_as_often_as_the_level_says():
    chance = np.random.default_rng(4)
    p_values = [paired_test(*pair, num_resamples=256).p_value for pair in chance.uniform(size=(200, 2, 8))]

    assert 2 <= sum(p <= 0.05 for p in p_values) <= 19  # binomial(200, 0.05), all but 1 in 500


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1.0, "b": 0.5}, {"a": 1.0, "c": 0.5}, "differ in 2 queries, such as 'b'"),
        ({"a": 1.0}, [1.0], "found one of each"),
        ([1.0, 0.5], [1.0], r"found shapes \(2,\) and \(1,\)"),
        ([1.0, math.nan], [1.0, 0.5], "query 1 has a value under one ranking alone: nan and 0.5"),
        ([1.0], [0.5], "expected finite values of 2 queries or more, found 1"),
        ([1.0, math.inf], [0.5, 0.5], "expected finite values"),
    ],
)
def test_what_cannot_be_paired_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired_test(first, second)


@pytest.mark.parametrize("option", [{"confidence": 95}, {"confidence": 0.0}, {"num_resamples": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match="expected a share between 0 and 1, and 1 or more"):
        paired_test([1.0, 0.5], [0.5, 0.5], **option)


def test_the_interval_of_a_mean_is_scipys_and_leaves_out_queries_without_a_value():
    values = np.random.default_rng(3).beta(2, 5, size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=10_000, rng=np.random.default_rng(9)).confidence_interval

    assert mean_interval(values) == pytest.approx((expected.low, expected.high), abs=0.003)
    assert mean_interval([*values, np.nan]) == mean_interval(dict(enumerate(values))) == mean_interval(values)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)


# ---- Holm


def test_holm_by_hand():
    # sorted .005 .01 .03 .04: times 4, 3, 2, 1 = .02 .03 .06 .04, and none may fall below one before
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm([0.5, 0.6]) == {0: 1.0, 1: 1.0}
    assert holm([]) == {}


def test_what_holm_rejects_is_what_his_steps_reject():
    chance = np.random.default_rng(5)
    for p_values in chance.uniform(size=(50, 7)) ** 4:
        rejected = set()
        for step, place in enumerate(np.argsort(p_values)):  # stop at the first that is not below alpha / (m - step)
            if p_values[place] > 0.05 / (7 - step):
                break
            rejected.add(int(place))
        assert {name for name, p in holm(p_values.tolist()).items() if p <= 0.05} == rejected


def test_a_p_value_out_of_range_is_refused():
    with pytest.raises(ValueError, match="expected p-values from 0 to 1, found"):
        holm([0.5, 1.2])


# ---- what was detectable


def test_a_detectable_difference_by_hand():
    # n = 25: t(24) has its 97.5 % quantile at 2.0639 and its 80 % quantile at 0.8569
    assert detectable_difference(0.2, 25) == pytest.approx((2.0639 + 0.8569) * 0.2 / 5, abs=1e-5)


@pytest.mark.parametrize("num_queries", [20, 50, 300])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_a_t_test_finds_the_detectable_difference_four_times_out_of_five(num_queries, alpha):
    difference = detectable_difference(0.3, num_queries, alpha=alpha)
    # the power of the t test is exact by the noncentral t distribution
    limit = stats.t.ppf(1 - alpha / 2, df=num_queries - 1)
    shift = difference / (0.3 / math.sqrt(num_queries))
    power = stats.nct.sf(limit, num_queries - 1, shift) + stats.nct.cdf(-limit, num_queries - 1, shift)

    assert power == pytest.approx(0.8, abs=0.015)


def test_the_test_reports_what_its_own_queries_could_have_shown():
    chance = np.random.default_rng(6)
    ours, theirs = chance.uniform(size=(2, 60))

    test = paired_test(ours, theirs, confidence=0.99)
    assert test.detectable == pytest.approx(detectable_difference(np.std(ours - theirs, ddof=1), 60, alpha=0.01))
    assert f"detectable {test.detectable:.4f}" in str(test) and "in 60 queries" in str(test)


@pytest.mark.parametrize("wrong", [{"std": -1.0}, {"num_queries": 1}, {"alpha": 0.0}, {"power": 1.0}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 0 or more, 2 or more"):
        detectable_difference(**{"std": 0.3, "num_queries": 30, **wrong})
