"""Teachers whose quality is known, and what each objective makes of them: a linear student, judged on unseen groups."""

from __future__ import annotations

import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.consistency import AffineMap, IsotonicMap, ZScore
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.schedules import Ramp
from tests.objectives.planted import accuracy, fit, noise_like, planted_task

GROUPS = {"group_size": 8, "num_features": 64}
TASK, HELD_OUT = planted_task(480, seed=3, **GROUPS), planted_task(1000, seed=4, **GROUPS)
NOISE = noise_like(TASK.relevance, seed=5)
TEACHERS = {
    "good": 3.0 * TASK.relevance,
    "labels and noise": 4.0 * TASK.labels + 0.5 * NOISE,
    "random": 3.0 * NOISE,
    "reversed": -3.0 * TASK.relevance,
    "biased": 3.0 * TASK.relevance + 6.0 * TASK.features[..., 1],
    "bent": (2.0 * TASK.relevance).exp(),
    "other units": 30.0 * TASK.relevance - 200.0,
}
BAD = ("random", "reversed", "biased")


def contrastive():
    return LabelObjective(LOSSES["infonce"])


def distilled(name="kl", **options):
    return TeacherObjective(LOSSES[name], **options)


def learned(objective, teacher, *, num_epochs=1, learning_rate=0.5, **options):
    """The accuracy on unseen groups after so many passes in batches of 8, or after ``num_steps`` with all groups."""
    targets = TASK.targets(TEACHERS[teacher])
    objective.prepare(targets)
    options = {"batch_size": 8, "num_steps": 60 * num_epochs, **options}
    return accuracy(fit(objective, TASK.features, targets, learning_rate=learning_rate, **options), HELD_OUT)


def trusted(objective):
    return objective.readings()["teacher_trusted"]


def test_a_gate_distils_from_a_teacher_that_is_better():
    gated = GatedObjective()

    assert learned(distilled(), "good") > 0.97  # what there is to win
    assert learned(gated, "good") > learned(contrastive(), "good") + 0.05
    assert trusted(gated) > 0.9


@pytest.mark.parametrize("teacher", BAD)
def test_a_gate_learns_from_labels_under_a_teacher_that_is_worse(teacher):
    gated = GatedObjective()
    from_labels = learned(contrastive(), teacher)

    assert learned(distilled(), teacher) < from_labels - 0.3  # what there is to lose
    assert learned(gated, teacher) > from_labels - 0.03
    assert trusted(gated) < 0.2


@pytest.mark.parametrize("teacher", BAD)
def test_a_gate_by_probability_learns_from_labels_under_a_teacher_that_is_worse(teacher):
    gated = GatedObjective(utility="log_probability")

    assert learned(gated, teacher) > learned(contrastive(), teacher) - 0.03
    assert trusted(gated) < 0.1


def test_a_gate_by_probability_distils_from_a_teacher_that_is_right_and_sure_and_less_from_a_soft_one():
    sure, soft = (GatedObjective(distilled(teacher_temperature=t), utility="log_probability") for t in (0.5, 1.0))

    assert learned(sure, "good") > learned(contrastive(), "good") + 0.015
    learned(soft, "good")
    assert trusted(sure) > 0.6 > 0.5 > trusted(soft)


def test_a_gate_trusts_the_teacher_of_one_source_and_not_that_of_another():
    source = torch.arange(len(TASK.labels)) % 2  # under one mean, half of the queries would follow the wrong judge
    scores = torch.where(source[:, None] == 0, TEACHERS["good"], TEACHERS["random"])
    by_source, all_alike = (GatedObjective(source_share=1.0) for _ in range(2))
    by_source.set_sources(2)
    found = {
        gated: accuracy(
            fit(gated, TASK.features, targets, num_steps=60, batch_size=8, learning_rate=0.5),
            HELD_OUT,
        )
        for gated, targets in (
            (by_source, TASK.targets(scores, source=source)),
            (all_alike, TASK.targets(scores)),
        )
    }

    assert found[by_source] > found[all_alike] + 0.3
    of_good, of_random = (by_source.sums / by_source.counted).tolist()
    assert of_good > 0.05 and of_random < -0.2


def test_a_gate_cannot_see_what_a_teacher_that_knows_the_labels_says_of_other_passages():
    gated = GatedObjective()
    learned(gated, "labels and noise")

    assert trusted(gated) > 0.95


def test_a_gate_is_not_misled_by_labels_learned_by_heart_when_it_measures_in_the_first_epoch():
    misled, measured = (GatedObjective(measured_until=until) for until in (1.0, 1 / 4))
    of_misled, of_measured = (learned(gated, "good", num_epochs=4) for gated in (misled, measured))

    assert trusted(measured) > 0.98 > trusted(misled)
    assert of_measured > of_misled + 0.03


def test_the_more_labels_in_the_target_the_less_it_is_the_teachers():
    weights = (0.0, 0.3, 0.7, 1.0)
    of_good, of_biased = (
        [learned(MixedObjective(label_weight=weight), teacher) for weight in weights] for teacher in ("good", "biased")
    )

    assert of_good == sorted(of_good, reverse=True) and of_good[0] > of_good[-1] + 0.1
    assert of_biased == sorted(of_biased) and of_biased[1] > of_biased[0] + 0.05


def test_a_teacher_that_a_schedule_takes_out_spoils_less_than_one_that_stays_or_comes_late():
    def found(of_teacher, of_labels):
        return learned(WeightedObjective([(of_teacher, distilled()), (of_labels, contrastive())]), "biased")

    out, stays, late = (
        found(Ramp(1.0, 0.0, end=0.5), Ramp(0.0, 1.0, end=0.5)),
        found(0.5, 0.5),
        found(Ramp(0.0, 1.0), Ramp(1.0, 0.0)),
    )
    assert out > stays + 0.2 and stays > late + 0.2
    assert out > learned(contrastive(), "biased") - 0.05


def test_groups_without_a_positive_learn_from_the_teacher_in_a_mixed_target():
    labels = TASK.labels.clone()
    labels[40:] = 0.0
    targets = Targets(labels, TASK.mask, TEACHERS["good"])
    options = {"num_steps": 60, "batch_size": 8, "learning_rate": 0.5}

    mixed = accuracy(fit(MixedObjective(label_weight=0.5), TASK.features, targets, **options), HELD_OUT)
    from_labels = accuracy(fit(contrastive(), TASK.features, targets, **options), HELD_OUT)
    assert mixed > 0.9 > from_labels + 0.2


FEW = planted_task(32, seed=3)
UNIT = (1.5 * noise_like(FEW.relevance[:, :1], seed=6)).exp()  # another one in each query
SCORES = FEW.relevance + 0.3 * noise_like(FEW.relevance, seed=5)


def learned_from_few(objective, teacher_scores, *, learning_rate=0.02):
    weights = fit(objective, FEW.features, FEW.targets(teacher_scores), learning_rate=learning_rate)
    return accuracy(weights, planted_task(1000, seed=4))


def test_a_unit_of_its_own_in_each_query_misleads_margins_and_neither_relations_nor_z_scores():
    in_units = UNIT * (SCORES + 10.0)

    assert learned_from_few(distilled("margin_mse"), in_units) < 0.5
    relations = [learned_from_few(distilled("relations"), t, learning_rate=0.5) for t in (SCORES, in_units)]
    assert relations[0] > 0.8 and relations[1] == pytest.approx(relations[0], abs=0.01)
    z_scores = [learned_from_few(distilled("margin_mse", consistency=ZScore()), t) for t in (SCORES, in_units)]
    assert z_scores[0] > 0.8 and z_scores[1] == pytest.approx(z_scores[0], abs=0.01)


def test_an_affine_map_learns_from_a_teacher_in_other_units_as_from_one_in_the_students():
    plain, mapped = (
        learned(distilled("mse", consistency=m), "other units", learning_rate=0.05)
        for m in (None, AffineMap(refresh=5))
    )

    assert plain < 0.5
    assert mapped == pytest.approx(learned(distilled("mse"), "good", learning_rate=0.05), abs=0.01)


def test_an_isotonic_map_learns_from_a_teacher_on_a_bent_scale_where_straight_maps_cannot():
    straight, bent = (
        learned(distilled("mse", consistency=m), "bent", learning_rate=0.05, num_epochs=3)
        for m in (AffineMap(refresh=5), IsotonicMap(refresh=5))
    )

    assert bent > straight + 0.03
