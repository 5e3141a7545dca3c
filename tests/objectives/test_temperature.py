"""The temperature of a teacher: measured by the width of its targets, once, and then kept."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import entropy

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.objective import Targets, TeacherObjective
from rerank_trainer.objectives.temperature import Temperature, entropy_temperature
from tests.objectives.planted import noise_like, planted_task

LOGITS = 10.0 * noise_like(torch.zeros(50, 16), seed=1)
ALL = torch.ones(50, 16, dtype=torch.bool)


def mean_share(rows, temperature):
    """Mean entropy of the softmax, as a share of the logarithm of the group's size, row by row with scipy."""
    return sum(entropy(softmax([t / temperature for t in row])) / math.log(len(row)) for row in rows) / len(rows)


def test_one_half_means_four_effective_passages_of_sixteen():
    temperature = entropy_temperature(LOGITS, ALL)

    assert mean_share(LOGITS.tolist(), temperature) == pytest.approx(0.5, abs=1e-3)
    one_group = entropy_temperature(LOGITS[:1], ALL[:1])
    assert math.exp(entropy(softmax(LOGITS[0].numpy() / one_group))) == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.9])
def test_masked_passages_and_groups_that_nothing_changes_do_not_count(share):
    mask = ALL.clone()
    mask[::3, 5:] = False
    mask[1] = False
    mask[2, 1:] = False  # a lone passage
    scores = LOGITS.masked_fill(~mask, math.nan)
    scores[4] = 7.0  # all equal: its entropy is the highest at any temperature
    rows = [row[real].tolist() for i, (row, real) in enumerate(zip(scores, mask, strict=True)) if i not in (1, 2, 4)]

    expected = brentq(lambda t: mean_share(rows, t) - share, 1e-2, 1e4)

    assert entropy_temperature(scores, mask, entropy_share=share) == pytest.approx(expected, rel=1e-3)


def test_it_follows_the_scale_of_the_teacher_and_nothing_else():
    temperature = entropy_temperature(LOGITS, ALL)

    assert entropy_temperature(1e-4 * LOGITS + 3.0, ALL) == pytest.approx(1e-4 * temperature, rel=1e-3)
    assert entropy_temperature(1e6 * LOGITS, ALL) == pytest.approx(1e6 * temperature, rel=1e-3)


def test_a_passage_of_weight_two_is_two_passages():
    weights = torch.ones(50, 16)
    weights[:, 3] = 2.0
    repeated = torch.cat([LOGITS, LOGITS[:, 3:4]], dim=1)

    assert entropy_temperature(LOGITS, ALL, weights=weights) == entropy_temperature(
        repeated, torch.ones_like(repeated, dtype=torch.bool)
    )


def test_scores_that_cannot_be_measured_are_refused():
    with pytest.raises(ValueError, match="of 50 training groups none has two passages with unlike teacher scores"):
        entropy_temperature(torch.ones(50, 16), ALL)
    tied = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match="entropy of the targets is 0.79 of log K at any temperature"):
        entropy_temperature(tied, torch.ones_like(tied, dtype=torch.bool))


@pytest.mark.parametrize("value", ["cold", 0.0, -1.0, math.nan, math.inf, None])
def test_a_temperature_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=f"teacher_temperature={value!r}: it divides scores, so give a number above 0"):
        Temperature(value)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_no_temperature_gives_is_refused(share):
    with pytest.raises(ValueError, match=f"entropy_share={share}"):
        Temperature("auto", entropy_share=share)


def test_an_objective_measures_divides_logs_and_keeps_it(caplog):
    targets = planted_task(40, seed=2).targets(LOGITS[:40, :8])
    objective = TeacherObjective(LOSSES["kl"], teacher_temperature=Temperature("auto", entropy_share=0.3))
    with caplog.at_level(logging.INFO):
        objective.prepare(targets)
    expected = entropy_temperature(targets.teacher_scores, targets.mask, entropy_share=0.3)

    assert objective.readings() == {"teacher_temperature": pytest.approx(expected)}
    assert f"teacher_temperature {expected:.4g}: mean entropy of the teacher's targets on 40" in caplog.text
    fixed = TeacherObjective(LOSSES["kl"], teacher_temperature=expected)
    torch.testing.assert_close(objective(targets.labels, targets), fixed(targets.labels, targets))
    kept = TeacherObjective(LOSSES["kl"], teacher_temperature="auto")
    kept.load_state_dict(objective.state_dict())
    torch.testing.assert_close(kept(targets.labels, targets), fixed(targets.labels, targets))
    assert fixed.state_dict() == {} and fixed.readings() == {}


def test_a_temperature_that_was_not_measured_is_not_used():
    targets = planted_task(4, seed=2).targets(LOGITS[:4, :8])
    objective = TeacherObjective(LOSSES["kl"], teacher_temperature="auto")
    objective.prepare(Targets(targets.labels, targets.mask))  # groups without a teacher

    with pytest.raises(ValueError, match='"auto" is measured on the teacher scores of training groups'):
        objective(targets.labels, targets)


def test_each_source_with_an_objective_of_its_own_has_its_own_temperature():
    scores = torch.cat([LOGITS[:25], 100.0 * LOGITS[:25]])
    sources = torch.arange(2).repeat_interleave(25)
    objective = SourceObjective({n: TeacherObjective(LOSSES["kl"], teacher_temperature="auto") for n in ("a", "b")})
    objective.prepare(Targets(torch.zeros(50, 16), ALL, scores, source=sources))

    readings = objective.readings()

    assert readings["b/teacher_temperature"] == pytest.approx(100.0 * readings["a/teacher_temperature"], rel=1e-3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_teacher_on_any_scale_teaches_the_same(scale):
    """Planted: at a temperature of 1 the student's weights would be 0.01, 1 and 7 long."""
    from tests.objectives.planted import accuracy, fit

    task, held_out = planted_task(64, seed=3), planted_task(500, seed=4)
    objective = TeacherObjective(LOSSES["kl"], teacher_temperature="auto")
    targets = task.targets(scale * (task.relevance + 0.3 * noise_like(task.relevance, seed=5)))
    objective.prepare(targets)

    weights = fit(objective, task.features, targets)

    assert accuracy(weights, held_out) > 0.85
    assert 1.5 < weights.norm() < 3.0  # the scale of the student does not follow that of its teacher
