"""Mixed targets: labels and teacher in one distribution."""

from __future__ import annotations

import math

import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.naming import distillation_objective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective
from rerank_trainer.objectives.schedules import Ramp

# softmax of the teacher: (1/4, 3/4); group 1 has no positive, group 2 a masked passage
LABELS = torch.tensor([[1.0, 0.0, -100.0], [0.0, 0.0, -100.0], [3.0, 1.0, 0.0]])
MASK = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
TEACHER = torch.tensor([[0.0, math.log(3.0), 9.0], [0.0, math.log(3.0), 9.0], [0.0, 0.0, 0.0]])
TARGETS = Targets(LABELS, MASK, TEACHER)
SCORES = torch.tensor([[0.5, -0.5, 9.0], [0.0, 1.0, 9.0], [1.0, 2.0, 3.0]])


def test_the_target_is_the_mean_of_both_and_the_teachers_where_no_passage_is_positive():
    target = MixedObjective(label_weight=0.5).target(TARGETS)

    expected = [[5 / 8, 3 / 8, 0.0], [1 / 4, 3 / 4, 0.0], [(1 / 3 + 3 / 4) / 2, (1 / 3 + 1 / 4) / 2, 1 / 6]]
    torch.testing.assert_close(target, torch.tensor(expected))


def test_its_gradient_is_that_of_both_losses_together_where_there_is_a_positive():
    def gradient(of):
        scores = SCORES.clone().requires_grad_()
        of(scores).sum().backward()
        return scores.grad

    mixed = gradient(lambda scores: MixedObjective(label_weight=0.3, temperature=2.0)(scores, TARGETS))
    kl, nce = TeacherObjective(LOSSES["kl"], temperature=2.0), LabelObjective(LOSSES["infonce"], temperature=2.0)
    added = gradient(lambda scores: 0.7 * kl(scores, TARGETS) + 0.3 * nce(scores, TARGETS))
    alone = gradient(lambda scores: kl(scores, TARGETS))

    torch.testing.assert_close(mixed[[0, 2]], added[[0, 2]])
    torch.testing.assert_close(mixed[1], alone[1])


@pytest.mark.parametrize("label_weight", [0.0, 0.4, 1.0])
def test_the_loss_is_zero_where_the_student_meets_the_target(label_weight):
    objective = MixedObjective(label_weight=label_weight)
    target = objective.target(TARGETS)
    scores = target.clamp(min=1e-30).log()

    assert objective.counts(TARGETS).tolist() == [[True] * 3]
    torch.testing.assert_close(objective(scores, TARGETS), torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_a_passage_of_weight_two_is_two_passages():
    weights = torch.tensor([[2.0, 1.0]])
    pair = Targets(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]), torch.tensor([[0.5, 2.0]]), weights)
    three = Targets(
        torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0.5, 0.5, 2.0]])
    )
    objective = MixedObjective(label_weight=0.3)

    torch.testing.assert_close(
        objective(torch.tensor([[1.0, -1.0]]), pair), objective(torch.tensor([[1.0, 1.0, -1.0]]), three)
    )


def test_the_weight_of_the_labels_may_follow_a_schedule():
    objective = MixedObjective(label_weight=Ramp(1.0, 0.0))
    assert objective.readings() == {"label_weight": 1.0}
    objective.set_progress(0.75)

    torch.testing.assert_close(objective.target(TARGETS), MixedObjective(label_weight=0.25).target(TARGETS))
    assert objective.readings() == {"label_weight": 0.25}
    assert MixedObjective(label_weight=0.5).readings() == {}


@pytest.mark.parametrize("label_weight", [-0.1, 1.1, Ramp(0.0, 2.0)])
def test_a_label_weight_outside_its_range_is_refused(label_weight):
    with pytest.raises(ValueError, match="expected a (weight from 0|number of 0 or more)"):
        MixedObjective(label_weight=label_weight)


def test_its_name_takes_the_settings_of_a_distillation():
    objective = distillation_objective("mixed", label_weight=0.3, temperature=2.0, teacher_temperature=4.0)

    made = MixedObjective(label_weight=0.3, temperature=2.0, teacher_temperature=4.0)
    torch.testing.assert_close(objective(SCORES, TARGETS), made(SCORES, TARGETS))
    assert objective.names == ("mixed",) and objective.needs_labels and objective.needs_teacher
