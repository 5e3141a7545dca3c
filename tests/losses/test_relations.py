"""Relations: the proportions of a group's scores, whatever their unit, down to the least unit."""

from __future__ import annotations

import torch

from rerank_trainer.losses import relations

SCORES = torch.tensor([[0.0, 1.0, 2.5, -3.0]])
TEACHER = torch.tensor([[1.0, 4.0, 2.0, 0.5]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_neither_units_nor_places_matter():
    value = relations(SCORES, TEACHER, mask=ALL)

    assert value.item() > 0.1
    torch.testing.assert_close(relations(100.0 * SCORES + 7.0, TEACHER, mask=ALL), value)
    torch.testing.assert_close(relations(SCORES, 0.25 * TEACHER - 5.0, mask=ALL), value)


def test_scores_that_are_all_alike_have_a_gradient_that_is_finite_and_points_to_the_teacher():
    scores = torch.zeros(1, 4, requires_grad=True)
    relations(scores, TEACHER, mask=ALL).sum().backward()

    assert scores.grad.isfinite().all() and scores.grad.abs().max() < 1 / 0.1
    assert scores.grad[0].neg().argsort().tolist() == TEACHER[0].argsort().tolist()
