"""A planted task: passages are points, relevance is a hidden direction, and the student is a linear model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rerank_trainer.objectives.objective import Objective, Targets


@dataclass(frozen=True)
class Task:
    """Groups whose most relevant passage is the one furthest along a hidden direction.

    Attributes:
        features: ``(num_groups, group_size, num_features)``.
        relevance: The truth, ``(num_groups, group_size)``, standard normal.
        labels: 1 at the positive, same shape.
    """

    features: Tensor
    relevance: Tensor
    labels: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.labels, dtype=torch.bool)

    def targets(self, teacher_scores: Tensor | None = None, **fields: Tensor) -> Targets:
        return Targets(**{"labels": self.labels, "mask": self.mask, "teacher_scores": teacher_scores, **fields})


def planted_task(num_groups: int, *, seed: int, group_size: int = 8, num_features: int = 16) -> Task:
    """The hidden direction is that of the first feature; label noise is none."""
    chance = torch.Generator().manual_seed(seed)
    features = torch.randn(num_groups, group_size, num_features, generator=chance)
    relevance = features[..., 0]
    return Task(features, relevance, one_hot(relevance))


def noise_like(values: Tensor, *, seed: int) -> Tensor:
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))


def one_hot(relevance: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(relevance.argmax(dim=-1), relevance.shape[-1]).float()


def fit(
    objective: Objective,
    features: Tensor,
    targets: Targets,
    *,
    num_steps: int = 200,
    learning_rate: float = 1.0,
    start: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The weights of a linear student, trained by plain SGD with the sums and counts that the trainer would take.

    The batches follow each other in the order of the groups, again and again; without a size, all groups are one.
    """
    weights = torch.zeros(features.shape[-1]) if start is None else start.clone()
    weights.requires_grad_()
    batches = list(_batches(features, targets, batch_size or len(features)))
    for step in range(num_steps):
        objective.set_progress(step / num_steps)
        of_batch, batch = batches[step % len(batches)]
        scores = of_batch @ weights
        sums, totals = objective(scores, batch).sum(dim=1), objective.counts(batch).sum(dim=1)
        (gradient,) = torch.autograd.grad(objective.contributions(sums, totals).sum(), weights)
        tallies = objective.tally(scores.detach(), batch)
        with torch.no_grad():
            weights -= learning_rate * gradient
        if len(tallies):
            objective.learn(tallies.sum(dim=1))
    return weights.detach()


def _batches(features: Tensor, targets: Targets, size: int) -> Iterator[tuple[Tensor, Targets]]:
    for first in range(0, len(features), size):
        part = slice(first, first + size)
        teacher, source = (None if t is None else t[part] for t in (targets.teacher_scores, targets.source))
        yield features[part], Targets(targets.labels[part], targets.mask[part], teacher, source=source)


def accuracy(weights: Tensor, task: Task) -> float:
    """The share of groups whose positive has the highest score."""
    scores = task.features @ weights
    return (scores.argmax(dim=-1) == task.labels.argmax(dim=-1)).float().mean().item()
