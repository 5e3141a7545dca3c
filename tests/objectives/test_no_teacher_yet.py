"""While there is no teacher yet, what compares with one counts nothing, and labels take their place where they can."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rerank_trainer.losses import infonce, kl, margin_mse, ranknet
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.consistency import ZScore
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective, WeightedObjective

SCORES = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.2, 0.1], [3.0, 1.0, float("inf")]])
# the second group has no positive, the third a place without a passage
LABELS = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -100.0]])
TARGETS = Targets(LABELS, LABELS != -100)


def values_and_gradient(objective):
    scores = SCORES.clone().requires_grad_()
    values = objective(scores, TARGETS)
    values.sum().backward()
    return values.detach(), scores.grad


@pytest.mark.parametrize("loss_fn", [kl, margin_mse, ranknet], ids=lambda loss_fn: loss_fn.__name__)
@pytest.mark.parametrize("consistency", [None, ZScore()], ids=["plain", "z-score"])
def test_a_part_that_compares_with_a_teacher_counts_no_group(loss_fn, consistency):
    objective = TeacherObjective(loss_fn, consistency=consistency)

    values, gradient = values_and_gradient(objective)

    assert not objective.counts(TARGETS).any()
    assert values.tolist() == [[0.0] * 3] and gradient.abs().sum() == 0


def test_mixed_targets_are_the_labels_alone_and_groups_without_a_positive_do_not_count():
    objective = MixedObjective(label_weight=0.25)

    _, gradient = values_and_gradient(objective)
    _, of_labels = values_and_gradient(LabelObjective(infonce))

    assert objective.counts(TARGETS).tolist() == [[True, False, True]]
    torch.testing.assert_close(gradient, of_labels)
    assert of_labels.abs().sum() > 0


def test_a_gate_lets_the_labels_through_and_learns_nothing():
    gated = GatedObjective()

    values, gradient = values_and_gradient(gated)
    _, of_labels = values_and_gradient(LabelObjective(infonce))

    assert gated.counts(TARGETS).tolist() == [[False] * 3, [True, False, True]]
    assert values[0].tolist() == [0.0] * 3
    torch.testing.assert_close(gradient, of_labels)
    gated.learn(gated.tally(SCORES, TARGETS).sum(dim=1))
    assert gated.readings() == {"teacher_trusted": 0.0}


def test_a_weighted_list_keeps_its_other_parts():
    objective = WeightedObjective([(0.5, LabelObjective(infonce)), (0.5, TeacherObjective(kl))])

    assert objective.counts(TARGETS).tolist() == [[True, False, True], [False] * 3]


def test_a_source_is_without_a_teacher_as_a_single_set_is():
    objective = SourceObjective({"own": MixedObjective(label_weight=0.5), "other": TeacherObjective(kl)})
    targets = replace(TARGETS, source=torch.tensor([0, 0, 1]))

    assert objective.counts(targets).tolist() == [[True, False, False], [False] * 3]
    assert objective(SCORES, targets)[1].tolist() == [0.0] * 3
