"""Figures against other libraries and definitions evaluated group by group."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from rerank_trainer.evaluation.spread import score_spread, score_std, tied_pairs
from rerank_trainer.objectives.objective import Targets
from rerank_trainer.trainers.figures import FIGURES, kendall_tau, top1, totals


@pytest.fixture(scope="module")
def ragged():
    """Coarse scores (many ties), labels, teacher scores and mask of 40 groups of 0 to 7 passages."""
    chance = torch.Generator().manual_seed(0)
    mask = torch.arange(7) < torch.randint(0, 8, (40, 1), generator=chance)
    scores, teacher_scores = (torch.randint(-2, 3, (40, 7), generator=chance) / 2 for _ in range(2))
    labels = torch.randint(0, 2, (40, 7), generator=chance) * torch.randint(0, 2, (40, 1), generator=chance)
    return scores.masked_fill(~mask, 0.0), labels.float().masked_fill(~mask, -100.0), teacher_scores, mask


def groups_of(*tensors, mask):
    return [tuple(t[i][mask[i]].tolist() for t in tensors) for i in range(len(mask))]


def test_kendall_tau_is_that_of_scipy(ragged):
    scores, _, teacher_scores, mask = ragged
    groups = groups_of(scores, teacher_scores, mask=mask)
    expected = [kendalltau(*group).statistic if len(group[0]) > 1 else math.nan for group in groups]

    assert kendall_tau(scores, teacher_scores, mask).tolist() == pytest.approx(expected, nan_ok=True, abs=1e-6)
    assert any(map(math.isnan, expected)) and not all(map(math.isnan, expected))


def test_the_teachers_first_place_is_shared_by_what_ties_there(ragged):
    _, labels, teacher_scores, mask = ragged
    expected = []
    for values, own in groups_of(labels, teacher_scores, mask=mask):
        first = [label > 0 for label, score in zip(values, own, strict=True) if score == max(own)]
        expected.append(sum(first) / len(first) if any(label > 0 for label in values) else math.nan)

    assert top1(teacher_scores, labels, mask).tolist() == pytest.approx(expected, nan_ok=True)
    assert {0.0, 1.0} < set(expected)


def test_totals_of_halves_add_up_to_the_means_of_the_whole(ragged):
    scores, labels, teacher_scores, mask = ragged
    defined = torch.arange(40) % 5 > 0
    halves = [
        totals(scores[part], Targets(labels[part], mask[part], teacher_scores[part]), defined[part])
        for part in (slice(0, 13), slice(13, 40))
    ]
    sums, counts = sum(halves).T
    figures = dict(zip(FIGURES, (sums / counts).tolist(), strict=True))

    assert figures["score_std"] == pytest.approx(np.nanmean(score_std(scores, mask)))
    assert figures["tie_share"] == pytest.approx(sum(tied_pairs(scores, mask)[0]) / sum(tied_pairs(scores, mask)[1]))
    assert int(mask.any(dim=1).sum()) == 33  # a group without passages, or without weight, is as if it were not there
    assert figures["undefined_share"] == pytest.approx(7 / 33)
    assert figures["kendall_tau"] == pytest.approx(np.nanmean(kendall_tau(scores, teacher_scores, mask)))
    assert figures["teacher_top1"] == pytest.approx(np.nanmean(top1(teacher_scores, labels, mask)))
    assert score_spread(scores, labels) == pytest.approx({name: figures[name] for name in ("score_std", "tie_share")})


def test_without_a_teacher_its_figures_count_nothing(ragged):
    scores, labels, _, mask = ragged

    assert totals(scores, Targets(labels, mask), labels[:, 0] > 0)[3:].tolist() == [[0.0, 0.0], [0.0, 0.0]]
