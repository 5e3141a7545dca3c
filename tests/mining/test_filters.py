from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rerank_trainer.mining.filters import (
    AbsoluteMargin,
    MaxScore,
    PairScorer,
    PercentOfPositive,
    RelativeMargin,
    RerankerScores,
    RerankerVerdict,
    as_scorer,
)
from rerank_trainer.mining.first_stages import Embeddings
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.teacher import RerankerTeacher
from tests.tiny_models import tiny_model

TEXTS = ["rain falls", "the old ship", "a library lends books"]


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker(*tiny_model("bert"))


@pytest.mark.parametrize(
    ("one", "limit"),
    [
        (MaxScore(0.8), 0.8),
        (MaxScore(-3.5), -3.5),
        (AbsoluteMargin(0.0), 0.5),
        (AbsoluteMargin(0.125), 0.375),
        (RelativeMargin(0.0), 0.5),
        (RelativeMargin(0.25), 0.375),
        (PercentOfPositive(1.0), 0.5),
        (PercentOfPositive(0.25), 0.125),
    ],
)
def test_the_lowest_of_several_positives_sets_the_limit(one, limit):
    assert one.limit(np.array([0.75, 0.5, 2.0])) == limit


@pytest.mark.parametrize("lowest", [0.0, -0.5])
@pytest.mark.parametrize("one", [RelativeMargin(0.05), PercentOfPositive(0.95)])
def test_a_share_of_a_positive_that_scores_0_or_less_allows_no_negative(one, lowest):
    # (1 - 0.05) * -0.5 = -0.475 lies above the positive: the limit would rise
    assert one.limit(np.array([0.9, lowest])) == -math.inf


def test_an_absolute_margin_is_measured_below_a_negative_logit_too():
    assert AbsoluteMargin(2.0).limit(np.array([-1.0, -3.0])) == -5.0


@pytest.mark.parametrize("kind", [RelativeMargin, PercentOfPositive])
def test_a_share_of_a_logit_is_refused_and_of_a_probability_is_not(kind, reranker):
    with pytest.raises(ValueError, match=r"0\.5, scored_by=RerankerScores\(logits\)\): a share of a logit"):
        kind(0.5, scored_by=reranker)

    assert kind(0.5, scored_by=RerankerScores(reranker, probabilities=True)).limit(np.array([0.5])) == 0.25


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: AbsoluteMargin(-0.1), "margin must be 0 or more, found -0.1"),
        (lambda: AbsoluteMargin(math.nan), "margin must be 0 or more, found nan"),
        (lambda: RelativeMargin(5), "margin must be 0 or more and below 1, found 5"),
        (lambda: PercentOfPositive(95), "share must be above 0 and at most 1, found 95: 95 % is 0.95"),
        (lambda: PercentOfPositive(0), "share must be above 0 and at most 1, found 0"),
        (lambda: MaxScore(math.inf), "max_score must be a finite number, found inf"),
        (lambda: MaxScore(0.5, scored_by="a/model"), "scored_by='a/model': expected a Reranker"),
    ],
)
def test_a_value_out_of_range_is_refused(make, found):
    with pytest.raises(ValueError, match=found):
        make()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, "found neither"),
        ({"threshold": 1.0}, "threshold must be a probability between 0 and 1, found 1.0"),
        ({"margin": -1.0}, "margin must be 0 or more, found -1.0"),
    ],
)
def test_a_verdict_needs_a_threshold_or_a_margin_in_range(reranker, values, found):
    with pytest.raises(ValueError, match=found):
        RerankerVerdict(reranker, **values)


def test_a_verdict_takes_the_stricter_of_threshold_and_margin(reranker):
    # sigmoid(log 3) = 0.75
    assert RerankerVerdict(reranker, threshold=0.75).limit(np.empty(0)) == pytest.approx(math.log(3))
    assert RerankerVerdict(reranker, margin=1.5).limit(np.array([4.0, 2.0])) == 0.5
    both = RerankerVerdict(reranker, threshold=0.75, margin=1.5)
    assert both.limit(np.array([2.0])) == 0.5
    assert both.limit(np.array([20.0])) == pytest.approx(math.log(3))
    assert (RerankerVerdict(reranker, threshold=0.75).uses_positives, both.uses_positives) == (False, True)


@pytest.mark.parametrize("use", [RerankerScores, lambda it: RerankerVerdict(it, margin=0.0), as_scorer])
def test_a_reranker_with_a_fresh_head_is_refused(use):
    fresh = Reranker(*tiny_model("bert"), fresh_parameters=["classifier.weight"])

    with pytest.raises(ValueError, match=r"\['classifier.weight'\] are freshly initialised"):
        use(fresh)


def test_the_scores_of_a_reranker_are_what_it_predicts_for_these_pairs(reranker):
    pairs = np.array([[1, 0], [0, 2], [1, 2]])
    expected = reranker.predict([(TEXTS[1], TEXTS[0]), (TEXTS[0], TEXTS[2]), (TEXTS[1], TEXTS[2])])

    logits = RerankerScores(reranker).score_pairs(TEXTS[:2], TEXTS, pairs)
    probabilities = RerankerScores(reranker, probabilities=True).score_pairs(TEXTS[:2], TEXTS, pairs)

    assert torch.allclose(torch.tensor(logits), expected.double(), atol=1e-5)
    assert expected.std() > 0.05  # pairs mixed up would show
    assert torch.allclose(torch.tensor(probabilities), expected.double().sigmoid(), atol=1e-6)


def test_a_reranker_stands_for_its_logits(reranker):
    assert as_scorer(reranker) == RerankerScores(reranker)
    assert as_scorer(reranker) != RerankerScores(reranker, probabilities=True)
    assert AbsoluteMargin(1.0, scored_by=reranker).scored_by.scale == "logit"


def test_a_teacher_is_not_taken_for_a_scorer_of_pairs(reranker):
    with pytest.raises(ValueError, match="expected a Reranker"):
        as_scorer(RerankerTeacher(reranker))


def test_filters_are_named_with_their_numbers_and_scorers(reranker):
    named = [
        MaxScore(0.8),
        AbsoluteMargin(2, scored_by=reranker),
        PercentOfPositive(0.95, scored_by=Embeddings("a/model")),
        RerankerVerdict(reranker, threshold=0.5, margin=1.0),
    ]

    assert [repr(one) for one in named] == [
        "MaxScore(0.8)",
        "AbsoluteMargin(2, scored_by=RerankerScores(logits))",
        "PercentOfPositive(0.95, scored_by=Embeddings('a/model'))",
        "RerankerVerdict(threshold=0.5, margin=1)",
    ]
    assert isinstance(Embeddings("a/model"), PairScorer)
