"""Schedules: weights that follow the progress of training, by themselves and inside objectives."""

from __future__ import annotations

import math

import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.schedules import Constant, Ramp

TARGETS = Targets(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[2.0, 0.0]]))
SCORES = torch.zeros(1, 2)  # InfoNCE log 2, MSE of (0, 0) against (2, 0) is 2


def mixture():
    return WeightedObjective(
        [
            (Ramp(1.0, 0.0, begin=0.25, end=0.75), LabelObjective(LOSSES["infonce"])),
            (0.5, TeacherObjective(LOSSES["mse"])),
        ]
    )


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 3.0), (0.2, 3.0), (0.3, 2.5), (0.4, 2.0), (0.6, 1.0), (0.7, 1.0), (1.0, 1.0)]
)
def test_a_ramp_is_a_straight_line_between_two_constants(progress, expected):
    assert Ramp(3.0, 1.0, begin=0.2, end=0.6).at(progress) == pytest.approx(expected)


def test_a_ramp_without_length_is_a_jump():
    jump = Ramp(0.0, 2.0, begin=0.5, end=0.5)

    assert [jump.at(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1.0), "value=-1.0: expected a number of 0 or more"),
        (lambda: Ramp(0.0, math.nan), "last=nan: expected a number of 0 or more"),
        (lambda: Ramp(0.0, 1.0, begin=0.6, end=0.5), "begin=0.6, end=0.5: expected shares"),
        (lambda: Ramp(0.0, 1.0, end=100), "end=100: expected shares"),
    ],
)
def test_numbers_and_shares_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1.0), (0.5, 0.5), (0.75, 0.0)])
def test_a_part_counts_as_its_schedule_says(progress, weight):
    objective = mixture()
    objective.set_progress(progress)

    sums, totals = objective(SCORES, TARGETS).sum(dim=1), objective.counts(TARGETS).sum(dim=1)

    expected = [weight * math.log(2.0), 0.5 * 2.0]
    torch.testing.assert_close(objective.contributions(sums, totals), torch.tensor(expected))


def test_the_log_names_the_weights_that_change_and_no_others():
    objective = mixture()
    objective.set_progress(0.5)

    figures = objective.figures(torch.tensor([0.25, 1.0]), torch.zeros(2), torch.zeros(2), torch.zeros(0))

    assert figures == {"loss_infonce": 0.25, "loss_mse": 1.0, "weight_infonce": 0.5}


def test_a_schedule_inside_reaches_the_outermost_weights():
    outer = WeightedObjective([(2.0, mixture())])
    by_source = SourceObjective({"a": outer, "b": TeacherObjective(LOSSES["mse"])})
    by_source.set_progress(0.5)

    assert outer.part_weights == (1.0, 1.0)
    assert by_source.part_weights == (1.0, 1.0, 1.0)
    assert by_source.readings() == {"a/weight_infonce": 0.5}


def test_a_schedule_of_ones_own_needs_one_method():
    class Wave:
        def at(self, progress):
            return 1.0 + math.sin(math.tau * progress)

    objective = WeightedObjective([(Wave(), LabelObjective(LOSSES["infonce"]))])
    objective.set_progress(0.25)

    assert objective.part_weights == (2.0,)
