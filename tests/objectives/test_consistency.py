"""Score consistency: a teacher's scores on a scale that fits the student."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.consistency import AffineMap, IsotonicMap, ZScore
from rerank_trainer.objectives.objective import Targets, TeacherObjective
from tests.objectives.planted import noise_like

MASK = torch.rand(30, 8, generator=torch.Generator().manual_seed(1)) < 0.8
TEACHER = 50.0 + 9.0 * noise_like(torch.zeros(30, 8), seed=2)
STUDENT = 0.2 * TEACHER + noise_like(torch.zeros(30, 8), seed=3)
TARGETS = Targets(torch.zeros(30, 8), MASK, TEACHER.masked_fill(~MASK, 1e9))


def within(values, mask=MASK):
    """Standard deviation within the groups and mean of all, with numpy, group by group."""
    groups = [row[real].double().numpy() for row, real in zip(values, mask, strict=True)]
    squares = np.concatenate([(group - group.mean()) ** 2 for group in groups])
    return squares.mean() ** 0.5, np.concatenate(groups).mean()


def see(score_map, scores, targets):
    score_map.learn(score_map.tally(scores, targets).sum(dim=1))


def test_a_z_score_has_mean_zero_and_deviation_one_in_each_group_over_its_real_passages():
    mapped = ZScore()(TARGETS)

    for row, teacher, real in zip(mapped, TEACHER, MASK, strict=True):
        values = teacher[real].numpy()
        if len(values) > 1:
            np.testing.assert_allclose(row[real], (values - values.mean()) / values.std(), rtol=1e-4, atol=1e-5)
        assert not row[~real].any()
    equal = Targets(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.full((1, 3), 4.0))
    assert ZScore()(equal).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("make", [AffineMap, IsotonicMap])
def test_before_the_first_fit_a_map_has_the_least_spread_and_a_mean_of_zero(make):
    score_map = make(least_spread=0.7)
    score_map.prepare(TARGETS)

    assert within(score_map(TARGETS)) == pytest.approx((0.7, 0.0), abs=0.02)


@pytest.mark.parametrize("make", [AffineMap, IsotonicMap])
def test_after_a_fit_a_map_has_the_spread_and_the_mean_of_the_student(make):
    score_map = make(refresh=2)
    score_map.prepare(TARGETS)
    before = score_map(TARGETS)
    see(score_map, STUDENT, TARGETS)
    assert torch.equal(score_map(TARGETS), before)  # fitted every second step
    see(score_map, STUDENT, TARGETS)

    assert within(score_map(TARGETS)) == pytest.approx(within(STUDENT), rel=0.02)
    assert score_map.readings()["teacher_slope"] == pytest.approx(within(STUDENT)[0] / within(TEACHER)[0], rel=1e-4)


@pytest.mark.parametrize("make", [AffineMap, IsotonicMap])
def test_a_student_that_knows_nothing_is_no_target(make):
    score_map = make(refresh=1, least_spread=0.7)
    score_map.prepare(TARGETS)
    see(score_map, torch.zeros_like(STUDENT) + 3.0, TARGETS)

    assert within(score_map(TARGETS)) == pytest.approx((0.7, 3.0), abs=0.02)


@pytest.mark.parametrize("make", [AffineMap, IsotonicMap])
def test_following_a_map_does_not_shrink_the_student_from_fit_to_fit(make):
    score_map = make(refresh=1, least_spread=0.1)
    score_map.prepare(TARGETS)
    spread, _ = within(STUDENT)
    student = STUDENT
    for _ in range(20):
        see(score_map, student, TARGETS)
        # half way to the target: it never agrees with it in full
        student = 0.5 * STUDENT + 0.5 * score_map(TARGETS)

    assert within(score_map(TARGETS))[0] > 0.85 * spread


def test_an_isotonic_map_is_monotone_and_straightens_a_bent_scale():
    bent = Targets(TARGETS.labels, MASK, (TEACHER / 9.0).exp().masked_fill(~MASK, 0.0))
    score_map = IsotonicMap(refresh=1)
    score_map.prepare(bent)
    see(score_map, TEACHER / 9.0, bent)
    mapped = score_map(bent)

    order = bent.teacher_scores[MASK].argsort()
    assert (mapped[MASK][order].diff() >= 0).all()
    error = (mapped - TEACHER / 9.0)[MASK]
    assert error.abs().mean() < 0.15  # of values whose standard deviation is 1; bins are coarse at the ends


def test_the_state_of_a_map_is_the_map_and_what_was_collected():
    score_map, other = IsotonicMap(refresh=2), IsotonicMap(refresh=2)
    for one in (score_map, other):
        one.prepare(TARGETS)
    see(score_map, STUDENT, TARGETS)
    other.load_state_dict(score_map.state_dict())
    for one in (score_map, other):
        see(one, STUDENT, TARGETS)

    assert torch.equal(score_map(TARGETS), other(TARGETS))


@pytest.mark.parametrize("options", [{"refresh": 0}, {"least_spread": 0.0}], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0"):
        IsotonicMap(**options)


def test_a_temperature_is_measured_on_what_the_map_gives_and_not_before_there_is_one():
    objective = TeacherObjective(LOSSES["kl"], teacher_temperature="auto", consistency=ZScore())
    objective.prepare(TARGETS)
    mapped = TeacherObjective(LOSSES["kl"], teacher_temperature="auto")
    mapped.prepare(Targets(TARGETS.labels, MASK, ZScore()(TARGETS)))

    assert objective.readings() == mapped.readings()
    with pytest.raises(ValueError, match='teacher_temperature="auto" with AffineMap, which follows the student'):
        TeacherObjective(LOSSES["kl"], teacher_temperature="auto", consistency=AffineMap())
