"""The anchor: a score of 0 means the same for every query, and the order stays as good."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.anchor import Anchor
from rerank_trainer.objectives.objective import LabelObjective, Objective, Targets, WeightedObjective
from tests.objectives.planted import Task, fit

RANKING = LabelObjective(LOSSES["infonce"])


def task_with_levels(num_groups: int, *, seed: int) -> Task:
    """Queries with many relevant passages and with none, and an offset that only looks like relevance.

    Features: relevance plus the query's offset, that offset, the query's mean relevance, and 1.
    """
    chance = torch.Generator().manual_seed(seed)
    level, offset = torch.randn(2, num_groups, 1, generator=chance)
    relevance = level + torch.randn(num_groups, 8, generator=chance)
    ones = torch.ones_like(relevance)
    features = torch.stack([relevance + offset, offset * ones, level * ones, ones], dim=-1)
    return Task(features, relevance, (relevance > 0.5).float())


class MeanAtZero(Objective):
    """The cheaper anchor that was not chosen."""

    names, part_weights = ("mean",), (1.0,)

    def counts(self, targets: Targets) -> Tensor:
        return targets.mask.any(dim=-1)[None]

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        return scores.mean(dim=-1).square()[None]


def judged(objective: Objective, *, num_steps: int = 300) -> tuple[float, float]:
    """Of unseen passages: the share on the right side of 0, and of pairs of a query in the right order."""
    train, held_out = task_with_levels(200, seed=1), task_with_levels(1000, seed=2)
    start = 0.5 * torch.randn(4, generator=torch.Generator().manual_seed(5))
    weights = fit(objective, train.features, train.targets(), num_steps=num_steps, learning_rate=0.5, start=start)
    scores = held_out.features @ weights
    ordered = held_out.labels[:, :, None] > held_out.labels[:, None, :]
    right = scores[:, :, None] > scores[:, None, :]
    at_zero = ((scores > 0) == (held_out.labels > 0)).float().mean().item()
    return at_zero, right[ordered].float().mean().item()


def test_scores_keep_a_meaning_across_queries_and_their_order():
    at_zero, ordered = judged(RANKING)
    anchored, anchored_order = judged(WeightedObjective([(1.0, RANKING), (0.1, Anchor())]))
    mean_at_zero, _ = judged(WeightedObjective([(1.0, RANKING), (0.1, MeanAtZero())]))

    assert at_zero < 0.8 < 0.9 < anchored
    assert mean_at_zero < anchored - 0.05
    assert anchored_order > ordered - 0.005


def test_graded_labels_are_relevant_above_zero():
    targets = Targets(torch.tensor([[3.0, 0.0, -100.0]]), torch.tensor([[True, True, False]]))
    scores = torch.tensor([[2.0, -1.0, 50.0]])

    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-0.5))) / 2
    assert Anchor(temperature=2.0)(scores, targets).item() == pytest.approx(expected)
    assert Anchor().counts(targets).tolist() == [[True]] and Anchor().max_label is None
