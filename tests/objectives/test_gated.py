"""Gating: each query follows its teacher as far as the labels say that it is better than the student."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.naming import distillation_objective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.utilities import ndcg

# Two passages each; the last group has no positive. A positive's score is the utility below.
LABELS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
TEACHER = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 5.0], [2.0, 0.0]])
SCORES = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
TARGETS = Targets(LABELS, torch.ones(4, 2, dtype=torch.bool), TEACHER)


def of_positive(scores, labels, mask):
    return (scores * (labels > 0)).sum(dim=-1)


def gate(**options):
    options = {"utility": of_positive, "full_trust_at": 2.0, "source_share": 0.0, **options}
    return GatedObjective(TeacherObjective(LOSSES["mse"]), **options)


def test_a_query_trusts_its_teacher_by_the_advantage_and_takes_the_rest_from_its_labels():
    objective = gate()

    # advantages 3, 1 and -1 of the 2 for full trust; the last group cannot judge, and its source is not known yet
    assert objective.trust(SCORES, TARGETS).tolist() == [1.0, 0.5, 0.0, 1.0]
    mse, nce = [9 / 2, 1 / 2, 0.0, 4 / 2], [0.0, math.log(2.0), math.log(1 + math.exp(-1.0)), 0.0]
    expected = [[mse[0], 0.5 * mse[1], 0.0, mse[3]], [0.0, 0.5 * nce[1], nce[2], 0.0]]
    torch.testing.assert_close(objective(SCORES, TARGETS), torch.tensor(expected))


def test_gates_leave_the_counts_alone():
    objective = gate()

    assert objective.names == ("mse", "label_infonce")
    assert objective.counts(TARGETS).tolist() == [[True] * 4, [True, True, True, False]]
    sums, totals = objective(SCORES, TARGETS).sum(dim=1), objective.counts(TARGETS).sum(dim=1)
    torch.testing.assert_close(objective.contributions(sums, totals), sums / torch.tensor([4.0, 3.0]))


def test_what_was_seen_decides_for_queries_that_cannot_judge_and_steadies_the_others():
    objective = gate(source_share=0.25, decay=0.5)
    objective.learn(objective.tally(SCORES, TARGETS).sum(dim=1))

    mean = (3.0 + 1.0 - 1.0) / 3
    trust = [1.0, (0.75 * 1.0 + 0.25 * mean) / 2, 0.0, mean / 2]
    torch.testing.assert_close(objective.trust(SCORES, TARGETS), torch.tensor(trust))
    objective.learn(torch.tensor([6.0, 1.0, 0.0, 0.0]))  # one query more, with an advantage of 6
    mean = (0.5 * 3.0 + 6.0) / (0.5 * 3 + 1)
    assert objective.trust(SCORES, TARGETS)[3].item() == pytest.approx(min(1.0, mean / 2))
    assert objective.readings()["teacher_advantage"] == pytest.approx(mean)


def test_the_log_has_the_share_of_queries_that_trusted_since_its_last_entry():
    objective = gate()
    targets = dataclasses.replace(TARGETS, mask=torch.tensor([[True, True]] * 3 + [[False, False]]))  # a filler
    objective.learn(objective.tally(SCORES, targets).sum(dim=1))

    figures = objective.figures(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.zeros(2), torch.zeros(0))

    # the gate of the second query stands at one half, not above
    expected = {"loss_mse": 1.0, "loss_label_infonce": 2.0, "teacher_trusted": 1 / 3, "teacher_advantage": 1.0}
    assert figures == pytest.approx(expected)
    assert "teacher_trusted" not in objective.readings()


def test_after_the_measure_is_taken_it_stays_and_decides_alone():
    objective = gate(measured_until=0.5)
    objective.set_progress(0.4)
    objective.learn(objective.tally(SCORES, TARGETS).sum(dim=1))  # a mean of 1
    objective.set_progress(0.5)
    objective.learn(objective.tally(SCORES + 9.0, TARGETS).sum(dim=1))

    assert objective.trust(SCORES, TARGETS).tolist() == [0.5] * 4
    assert distillation_objective("gated", num_epochs=4.0).measured_until == 0.25
    assert distillation_objective("gated", num_epochs=0.5).measured_until == 1.0


def test_batches_add_up_to_what_one_batch_would_teach():
    objective = GatedObjective(utility="ndcg")
    halves = [
        objective.tally(SCORES[part], Targets(LABELS[part], TARGETS.mask[part], TEACHER[part]))
        for part in (slice(0, 1), slice(1, 4))
    ]

    torch.testing.assert_close(torch.cat(halves, dim=1), objective.tally(SCORES, TARGETS))


def test_each_source_has_a_mean_of_its_own_and_evaluation_that_of_all():
    shared = gate(source_share=1.0)
    objective = SourceObjective({"a": shared, "b": shared})
    targets = dataclasses.replace(TARGETS, source=torch.tensor([0, 0, 1, 1]))
    objective.learn(objective.tally(SCORES, targets).sum(dim=1))

    assert shared.trust(SCORES, targets).tolist() == [1.0, 1.0, 0.0, 0.0]  # means 2 and -1
    for source in (None, torch.full((4,), -1)):
        trust = shared.trust(SCORES, dataclasses.replace(targets, source=source))
        torch.testing.assert_close(trust, torch.full((4,), 0.5))  # mean 1
    without_b = dataclasses.replace(targets, mask=targets.mask & (targets.source == 0)[:, None])
    without_b_sums = objective.tally(SCORES, without_b).sum(dim=1)
    for _ in range(2000):  # far beyond where a fading count would be 0
        objective.learn(without_b_sums)
    assert shared.counted[1] == 1.0  # the one group of b that judged
    assert shared.trust(SCORES, targets)[2:].tolist() == [0.0, 0.0]  # b keeps its mean


def test_what_was_seen_is_in_the_state_and_nothing_else_is():
    objective = WeightedObjective([(1.0, gate(source_share=1.0))])
    objective.learn(objective.tally(SCORES, TARGETS).sum(dim=1))
    other = WeightedObjective([(1.0, gate(source_share=1.0))])
    other.load_state_dict(objective.state_dict())

    assert sorted(objective.state_dict()) == ["parts.0.counted", "parts.0.sums"]
    torch.testing.assert_close(other.parts[0].trust(SCORES, TARGETS), objective.parts[0].trust(SCORES, TARGETS))


def test_the_gate_has_no_gradient():
    scores = SCORES.clone().requires_grad_()
    objective = gate()
    objective(scores, TARGETS).sum().backward()

    # group 1 at a gate of one half: half the gradient of MSE, (s - t), and half that of InfoNCE, (q - y)
    expected = 0.5 * torch.tensor([-1.0, 0.0]) + 0.5 * torch.tensor([-0.5, 0.5])
    torch.testing.assert_close(scores.grad[1], expected)


def test_the_nearest_thing_to_a_perfect_order_is_one_and_ties_share_their_ranks():
    mask = torch.tensor([[True, True, True, False]])
    labels = torch.tensor([[2.0, 1.0, 0.0, 9.0]])
    best = 2 / math.log2(2) + 1 / math.log2(3)

    assert ndcg(torch.tensor([[3.0, 2.0, 1.0, 9.0]]), labels, mask).item() == pytest.approx(1.0)
    reverse = (1 / math.log2(3) + 2 / math.log2(4)) / best
    assert ndcg(torch.tensor([[1.0, 2.0, 3.0, 9.0]]), labels, mask).item() == pytest.approx(reverse)
    tied = (2 + 1) / math.log2(1 + 2) / best
    assert ndcg(torch.zeros(1, 4), labels, mask).item() == pytest.approx(tied)
    assert ndcg(torch.zeros(1, 4), torch.zeros(1, 4), mask).item() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"utility": "mrr"}, "utility='mrr': expected one of .'ndcg', 'log_probability'."),
        ({"utility": of_positive}, "full_trust_at=None: expected a number above 0"),
        ({"full_trust_at": -1.0}, "full_trust_at=-1.0"),
        ({"source_share": 1.5}, "source_share=1.5"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"measured_until": 0.0}, "measured_until=0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GatedObjective(**options)


def test_its_name_is_shorthand_for_kl_and_infonce():
    objective = distillation_objective("gated", temperature=2.0, teacher_temperature=4.0)

    assert objective.names == ("kl", "label_infonce")
    assert isinstance(objective.labels, LabelObjective) and objective.teacher.temperature == 2.0
    with pytest.raises(ValueError, match='label_weight=0.3: objective "gated" weighs the labels itself'):
        distillation_objective("gated", label_weight=0.3)
