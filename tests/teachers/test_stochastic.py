"""The stochastic teacher chooses among samples, and weighs by their variance, as slow definitions say."""

from __future__ import annotations

import math

import pytest
import torch

from rerank_trainer.models.head_dropout import HeadDropout
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.live import Training
from rerank_trainer.teachers.stochastic import (
    StochasticTeacher,
    sample_variance,
    student_guided,
    variance_weights,
)
from tests.tiny_models import tiny_model

MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(values: list[float]) -> list[float]:
    return [math.exp(value) / sum(math.exp(other) for other in values) for value in values]


def chosen_slowly(samples, scores, num_passages, temperature):
    """The definition, in plain Python: the tenth with the least divergence, weighted by its exponential."""
    student = softmax([score / temperature for score in scores[:num_passages]])
    divergences = []
    for number in range(len(samples[0])):
        teacher = softmax([samples[passage][number] / temperature for passage in range(num_passages)])
        divergences.append(sum(p * math.log(p / q) for p, q in zip(student, teacher, strict=True)))
    nearest = sorted(range(len(divergences)), key=lambda number: divergences[number])[: len(divergences) // 10]
    attention = [math.exp(-divergences[number]) for number in nearest]
    return [
        sum(a * samples[passage][number] for a, number in zip(attention, nearest, strict=True)) / sum(attention)
        for passage in range(num_passages)
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_tenth_of_samples_that_is_nearest_to_the_student_is_averaged(temperature):
    samples, scores = draws(2, 5, 30), draws(2, 5, seed=1)

    found = student_guided(samples, scores, MASK, num_kept=3, temperature=temperature)

    for group, num_passages in ((0, 5), (1, 3)):
        expected = chosen_slowly(samples[group].tolist(), scores[group].tolist(), num_passages, temperature)
        assert found[group, :num_passages].tolist() == pytest.approx(expected, abs=1e-5)
    assert found[1, 3:].tolist() == [0.0, 0.0]


def test_what_stands_at_a_masked_place_changes_no_choice():
    samples, scores = draws(2, 5, 30), draws(2, 5, seed=1)
    other_samples, other_scores = samples.clone(), scores.clone()
    other_samples[~MASK] = 1e6
    other_scores[~MASK] = math.nan

    found = student_guided(other_samples, other_scores, MASK, num_kept=3)

    torch.testing.assert_close(found, student_guided(samples, scores, MASK, num_kept=3))


@pytest.mark.parametrize(("num_samples", "share", "kept"), [(30, 0.1, 3), (25, 0.1, 3), (5, 0.1, 1), (10, 1.0, 10)])
def test_the_share_of_samples_is_rounded_up_and_never_nothing(num_samples, share, kept):
    assert StochasticTeacher(num_samples=num_samples, kept_share=share).num_kept == kept


def test_variance_is_high_at_the_passage_on_which_samples_disagree():
    samples = (
        draws(1, 4, 2000) * torch.tensor([0.1, 2.0, 0.1, 0.1])[:, None] + torch.tensor([3.0, 1.0, 0.0, -5.0])[:, None]
    )
    mask = torch.ones(1, 4, dtype=torch.bool)

    variance = sample_variance(samples, mask)[0]

    # of a passage, relative to the mean of four: (3/4)^2 of its own and (1/4)^2 of each other's
    expected = [
        (9 * own**2 + sum(o**2 for o in others)) / 16
        for own, others in (
            (0.1, (2.0, 0.1, 0.1)),
            (2.0, (0.1, 0.1, 0.1)),
            (0.1, (2.0, 0.1, 0.1)),
            (0.1, (2.0, 0.1, 0.1)),
        )
    ]
    assert variance.tolist() == pytest.approx(expected, rel=0.1)
    weights = variance_weights(variance[None], mask)[0]
    assert weights.argmin() == 1 and weights.mean().item() == pytest.approx(1.0)


def test_what_moves_all_passages_of_a_group_alike_is_no_variance():
    samples = draws(1, 4, 1).expand(1, 4, 30) + 5 * draws(30)

    assert sample_variance(samples, torch.ones(1, 4, dtype=torch.bool)).max().item() < 1e-10


def test_equal_variances_weigh_all_passages_alike_also_where_there_is_none():
    assert variance_weights(torch.full((2, 5), 3.0), MASK).tolist() == [[1.0] * 5, [1.0, 1.0, 1.0, 0.0, 0.0]]
    assert variance_weights(torch.zeros(2, 5), MASK).tolist() == [[1.0] * 5, [1.0, 1.0, 1.0, 0.0, 0.0]]


def test_variance_of_scores_is_that_of_dropping_features_of_a_planted_size():
    """Dropout at rate p of a linear score has the variance p / (1 - p) times the sum of its squared terms."""
    reranker = Reranker(*tiny_model("bert"), max_length=48)
    head = HeadDropout(reranker)
    head.draw(20_000, rate=0.1, generator=torch.Generator().manual_seed(0))
    weight, features = reranker.model.classifier.weight[0], draws(32)

    samples = head.noises @ (weight * features)

    expected = 0.1 / 0.9 * (weight * features).square().sum().item()
    assert samples.var().item() == pytest.approx(expected, rel=0.05)


def test_a_student_that_nobody_has_trained_is_no_teacher():
    student = Reranker(*tiny_model("bert"), max_length=48, fresh_parameters=("classifier.weight",))

    with pytest.raises(ValueError, match=r"\['classifier.weight'\] are freshly initialised"):
        StochasticTeacher().attach(student, Training())
    with pytest.raises(ValueError, match=r"\['classifier.weight'\] are freshly initialised"):
        StochasticTeacher(student)


def test_a_teacher_that_reads_pairs_otherwise_is_refused():
    student = Reranker(*tiny_model("bert"), max_length=48)

    with pytest.raises(ValueError, match="this teacher has another frame, vocabulary"):
        StochasticTeacher(Reranker(*tiny_model("roberta"), max_length=48)).attach(student, Training())
    with pytest.raises(ValueError, match="this teacher has another max_length 32 against 48"):
        StochasticTeacher(Reranker(*tiny_model("bert"), max_length=32)).attach(student, Training())


@pytest.mark.parametrize(
    "options",
    [{"num_samples": 0}, {"dropout": 0.0}, {"dropout": 1.0}, {"kept_share": 0.0}, {"temperature": 0.0}],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused_with_its_value(options):
    ((name, value),) = options.items()

    with pytest.raises(ValueError, match=f"{name}={value}"):
        StochasticTeacher(**options)
