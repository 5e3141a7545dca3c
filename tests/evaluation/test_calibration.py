"""Calibration: known truths, arithmetic by hand, scikit-learn's own calibration, and what is refused."""

from __future__ import annotations

import json
import math

import datasets
import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from rerank_trainer.evaluation.calibration import Calibration, calibration_report
from rerank_trainer.evaluation.evaluator import RerankEvaluator


def evaluation_of(name, num_queries, *, seed, slope=1.5, shift=-1.0, group_size=20):
    """Queries whose passages are relevant with probability sigmoid(slope * score + shift)."""
    chance = np.random.default_rng(seed)
    scores = chance.normal(scale=2.0, size=(num_queries, group_size))
    relevant = chance.uniform(size=scores.shape) < 1 / (1 + np.exp(-(slope * scores + shift)))
    relevant[:, 0] |= ~relevant.any(axis=1)
    rows = {
        "query": [f"{name} {i}" for i in range(num_queries)],
        "passages": [[f"{value!r}" for value in row] for row in scores.tolist()],
        "labels": relevant.astype(float).tolist(),
    }
    return RerankEvaluator(datasets.Dataset.from_dict(rows)).evaluate(lambda pairs: [float(p) for _, p in pairs])


ALIKE = {"query": ["a", "b"], "passages": [["1", "2"], ["3", "4"]], "labels": [[1.0, 0.0], [0.0, 1.0]]}


@pytest.fixture(scope="module")
def held_out():
    return evaluation_of("dev", 100, seed=0)


@pytest.fixture(scope="module")
def judged():
    return evaluation_of("test", 100, seed=1)


def test_platt_finds_the_slope_and_intercept_that_the_labels_were_drawn_with(held_out):
    found = Calibration.fit(held_out).parameters

    assert found["slope"] == pytest.approx(1.5, abs=0.15) and found["intercept"] == pytest.approx(-1.0, abs=0.15)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_fitted_mapping_has_a_small_error_on_other_queries_and_a_wrong_one_a_large_error(held_out, judged, method):
    fitted = Calibration.fit(held_out, method=method).evaluate(judged)
    wrong = Calibration("platt", {"slope": 0.3, "intercept": 2.0}).evaluate(judged)

    assert fitted.error < 0.03 and wrong.error > 0.3
    assert fitted.brier < 0.6 * wrong.brier
    assert fitted.num_pairs == 2000 == sum(one["num_pairs"] for one in fitted.bins)


def test_platt_is_that_of_scikit_learn(held_out):
    scores, relevant = held_out.scored["candidates"].pairs()

    class Scores(LogisticRegression):
        def decision_function(self, X):
            return X[:, 0]

    base = Scores().fit(scores[:, None], relevant)
    from sklearn.frozen import FrozenEstimator

    theirs = CalibratedClassifierCV(FrozenEstimator(base), method="sigmoid").fit(scores[:, None], relevant)
    points = np.linspace(-6, 6, 50)
    expected = theirs.predict_proba(points[:, None])[:, 1]

    np.testing.assert_allclose(Calibration.fit(held_out)(points), expected, atol=1e-3)


def test_isotonic_is_that_of_scikit_learn_also_outside_of_what_it_saw(held_out):
    scores, relevant = held_out.scored["candidates"].pairs()
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, relevant)
    points = np.linspace(-20, 20, 200)

    np.testing.assert_allclose(Calibration.fit(held_out, method="isotonic")(points), theirs.predict(points), atol=1e-12)


def test_scores_that_separate_relevant_from_others_still_get_a_finite_curve():
    rows = {"query": ["a"], "passages": [["-1", "1"]], "labels": [[0.0, 1.0]]}
    evaluation = RerankEvaluator(datasets.Dataset.from_dict(rows)).evaluate(lambda pairs: [float(p) for _, p in pairs])
    calibration = Calibration.fit(evaluation)

    # one pair of each kind: Platt's labels are 2/3 and 1/3, which a curve through two points meets exactly
    assert calibration([-1.0, 1.0]) == pytest.approx([1 / 3, 2 / 3], abs=1e-4)
    assert calibration.parameters["slope"] == pytest.approx(math.log(2), abs=1e-3)


def test_extreme_scores_overflow_nothing():
    assert Calibration("platt", {"slope": 1.0, "intercept": 0.0})([-1e6, 0.0, 1e6]).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_stored_mapping_is_json_without_texts_and_comes_back_the_same(held_out, judged, tmp_path, method):
    calibration = Calibration.fit(held_out, method=method)
    calibration.save(tmp_path / "calibration.json")
    text = (tmp_path / "calibration.json").read_text()
    again = Calibration.load(tmp_path / "calibration.json")

    assert set(json.loads(text)) == {"format", "method", "parameters", "num_pairs", "fitted_on"} and "dev 3" not in text
    assert again == calibration
    assert again.evaluate(judged) == calibration.evaluate(judged)
    with pytest.raises(ValueError, match="100 of 100 queries were fitted on, the first is 'dev 0'"):
        again.evaluate(held_out)


def test_one_shared_query_is_enough_to_refuse(held_out):
    calibration = Calibration.fit(held_out)

    with pytest.raises(ValueError, match="1 of 2 queries were fitted on, the first is 'dev 7'"):
        calibration.require_other_queries(["new", "dev 7"])


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_scores_that_are_reversed_or_all_alike_are_refused(method):
    alike = RerankEvaluator(datasets.Dataset.from_dict(ALIKE)).evaluate(lambda pairs: [0.5] * len(pairs))

    for evaluation in (evaluation_of("dev", 50, seed=0, slope=-1.0), alike):
        with pytest.raises(ValueError, match="a higher score does not make a passage more often relevant"):
            Calibration.fit(evaluation, method=method)


def test_pairs_of_one_kind_and_unknown_methods_are_refused(held_out):
    rows = {"query": ["a"], "passages": [["1", "2"]], "labels": [[1.0, 1.0]]}
    evaluation = RerankEvaluator(datasets.Dataset.from_dict(rows)).evaluate()

    with pytest.raises(ValueError, match="2 of 2 pairs are relevant: a mapping needs pairs of both kinds"):
        Calibration.fit(evaluation)
    with pytest.raises(ValueError, match="method='beta': expected one of"):
        Calibration.fit(held_out, method="beta")


@pytest.mark.parametrize(
    "content",
    ["no json", "{}", '{"format": 2, "method": "platt"}', "[]"]
    + ['{"format": 1, "method": "platt", "parameters": {}, "fitted_on": [], "num_pairs": 1}'],
)
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "other.json").write_text(content)

    with pytest.raises(ValueError, match=r"other.json: expected a file that Calibration.save wrote"):
        Calibration.load(tmp_path / "other.json")


# ---- the error


def test_the_expected_calibration_error_by_hand():
    probabilities = [0.05, 0.15, 0.15, 0.95, 1.0, 0.0]
    relevant = [False, True, False, True, False, False]
    # bins of a tenth: {0.05, 0.0}: mean .025, none of 2; {.15, .15}: one of 2; {.95, 1.0}: mean .975, one of 2
    expected = (2 * 0.025 + 2 * abs(0.15 - 0.5) + 2 * abs(0.975 - 0.5)) / 6

    report = calibration_report(probabilities, relevant, num_bins=10)
    assert report.error == pytest.approx(expected)
    assert report.brier == pytest.approx(brier_score_loss(relevant, probabilities))
    assert [(one["low"], one["num_pairs"]) for one in report.bins] == [(0.0, 2), (0.1, 2), (0.9, 2)]
    assert report.bins[1]["relevant_share"] == 0.5
    (border,) = calibration_report([0.5, 0.5], [True, False], num_bins=2).bins
    assert (border["low"], border["high"]) == (0.0, 0.5)


def test_right_probabilities_have_an_error_of_about_zero_and_certain_wrong_ones_of_one():
    chance = np.random.default_rng(7)
    probabilities = chance.uniform(size=50_000)

    assert calibration_report(probabilities, chance.uniform(size=50_000) < probabilities).error < 0.01
    assert calibration_report([1.0, 0.0], [False, True]).error == 1.0


@pytest.mark.parametrize(
    ("probabilities", "relevant", "num_bins", "message"),
    [
        ([0.5, 1.5], [True, False], 10, "expected probabilities from 0 to 1, found 0.5 to 1.5"),
        ([0.5, math.nan], [True, False], 10, "expected probabilities from 0 to 1"),
        ([0.5], [True, False], 10, "expected one probability and one truth a pair"),
        ([], [], 10, "expected one probability"),
        ([0.5], [True], 0, "num_bins=0"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, relevant, num_bins, message):
    with pytest.raises(ValueError, match=message):
        calibration_report(probabilities, relevant, num_bins=num_bins)
