"""Objectives by source: a source's groups go to its own objective, and all groups weigh alike."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.naming import distillation_objective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective

SCORES = torch.tensor([[2.0, 0.0], [1.0, 3.0], [0.0, 0.5], [4.0, 1.0]])
LABELS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
TEACHER = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 3.0]])
TARGETS = Targets(LABELS, torch.ones(4, 2, dtype=torch.bool), TEACHER, source=torch.tensor([0, 1, 0, 1]))
# -log sigmoid of the positive's lead, by group; group 3 has no positive
INFONCE = [math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(2.0)), math.log(1 + math.exp(0.5)), 0.0]


def test_each_source_has_its_own_parts_and_nothing_of_the_others():
    objective = SourceObjective({"a": LabelObjective(LOSSES["infonce"]), "b": TeacherObjective(LOSSES["mse"])})

    assert objective.names == ("a/infonce", "b/mse") and objective.sources == ("a", "b")
    assert objective.counts(TARGETS).tolist() == [[True, False, True, False], [False, True, False, True]]
    expected = [[INFONCE[0], 0.0, INFONCE[2], 0.0], [0.0, (1 + 9) / 2, 0.0, (9 + 4) / 2]]
    torch.testing.assert_close(objective(SCORES, TARGETS), torch.tensor(expected))


def test_a_source_that_shares_its_objective_is_a_part_of_its_own_in_the_same_mean():
    shared = LabelObjective(LOSSES["infonce"])
    objective = SourceObjective({"a": shared, "b": shared})
    values, totals = objective(SCORES, TARGETS), objective.counts(TARGETS).sum(dim=1)

    contributions = objective.contributions(values.sum(dim=1), totals)

    assert totals.tolist() == [2, 1]
    torch.testing.assert_close(contributions, torch.tensor([(INFONCE[0] + INFONCE[2]) / 3, INFONCE[1] / 3]))


def test_a_mixture_shared_by_all_sources_gives_the_loss_of_one_data_set():
    mixture = distillation_objective("kl", label_weight=0.3)
    objective = SourceObjective({"a": mixture, "b": mixture})

    def loss(objective):
        return objective.contributions(objective(SCORES, TARGETS).sum(dim=1), objective.counts(TARGETS).sum(dim=1))

    torch.testing.assert_close(loss(objective).sum(), loss(mixture).sum())


def test_unlike_objectives_are_weighted_by_their_share_of_the_groups():
    # one source of 1 group with two parts, which 1 and 0 groups define; one of 3 groups
    mixture = distillation_objective("kl", label_weight=0.25)
    objective = SourceObjective({"a": LabelObjective(LOSSES["bce"]), "b": mixture})
    sums, totals = torch.tensor([6.0, 5.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])

    # 3/4 of the mean 2 of a; 1/4 of 3/4 of the mean 5 of b's KL
    torch.testing.assert_close(
        objective.contributions(sums, totals), torch.tensor([3 / 4 * 2.0, 1 / 4 * 3 / 4 * 5.0, 0.0])
    )
    assert objective.contributions(torch.zeros(3), torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_a_batch_without_teacher_scores_is_none_of_the_source_that_needs_them():
    objective = SourceObjective({"a": LabelObjective(LOSSES["infonce"]), "b": TeacherObjective(LOSSES["kl"])})
    targets = dataclasses.replace(TARGETS, teacher_scores=None, source=torch.zeros(4, dtype=torch.long))

    assert objective.counts(targets).tolist() == [[True, True, True, False], [False] * 4]
    torch.testing.assert_close(objective(SCORES, targets), torch.tensor([INFONCE, [0.0] * 4]))


def test_an_objective_sees_the_passages_of_its_own_sources_only():
    class Spy(LabelObjective):
        def forward(self, scores, targets):
            seen.append(targets.mask.tolist())
            return super().forward(scores, targets)

    seen = []
    objective = SourceObjective({"a": Spy(LOSSES["mse"]), "b": LabelObjective(LOSSES["mse"])})
    objective(SCORES, TARGETS)

    assert seen == [[[True, True], [False, False], [True, True], [False, False]]]


def test_what_the_loss_of_one_source_cannot_hold_does_not_reach_the_gradient_of_another():
    objective = SourceObjective({"a": LabelObjective(LOSSES["mse"]), "b": LabelObjective(LOSSES["infonce"])})
    labels = LABELS.clone()
    labels[1] = torch.tensor([1e30, 0.0])  # a group of b; its squared difference is infinite
    scores = SCORES.clone().requires_grad_()

    values = objective(scores, dataclasses.replace(TARGETS, labels=labels))
    values.sum().backward()

    assert values.isfinite().all() and values[0, 1] == 0.0
    lead = torch.tensor(2.0).sigmoid().item()
    torch.testing.assert_close(scores.grad[1], torch.tensor([-lead, lead]))


def test_the_log_has_each_sources_mean_over_its_own_groups():
    objective = SourceObjective(
        {
            "a": LabelObjective(LOSSES["bce"]),
            "b": distillation_objective("kl", label_weight=0.25),
            "c": LabelObjective(LOSSES["infonce"]),
        }
    )

    figures = objective.figures(
        torch.zeros(4), torch.tensor([6.0, 8.0, 1.0, 0.0]), torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([4, 2, 0])
    )

    assert figures == pytest.approx(
        {
            "loss_a": 2.0,
            "groups_a": 4,
            "loss_b": 0.75 * 4.0 + 0.25 * 1.0,
            "loss_b/kl": 0.75 * 4.0,
            "loss_b/label_infonce": 0.25,
            "groups_b": 2,
            "groups_c": 0,
        }
    )


def test_a_sum_of_sources_knows_what_they_need():
    objective = SourceObjective({"a": LabelObjective(LOSSES["bce"]), "b": TeacherObjective(LOSSES["kl"])})

    assert objective.needs_labels and objective.needs_teacher and objective.max_label == 1.0
