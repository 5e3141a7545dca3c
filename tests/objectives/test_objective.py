"""Objectives: parts with their own counts and weights; names as shorthand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from rerank_trainer.losses import LOSSES, lambdarank, positive_margin_mse, with_options
from rerank_trainer.objectives.consistency import ZScore
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.naming import contrastive_objective, distillation_objective
from rerank_trainer.objectives.objective import LabelObjective, Targets, TeacherObjective, WeightedObjective

SCORES = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
TARGETS = Targets(
    labels=torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
    mask=torch.ones(2, 2, dtype=torch.bool),
    teacher_scores=torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]),
)
# InfoNCE of group 0: -log(3/4); group 1 has no positive. KL against (1/2, 1/2) and of (3/4, 1/4) against (1/2, 1/2).
INFONCE = [-math.log(3 / 4), 0.0]
KL = [0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)]


def test_labels_and_teacher_are_parts_with_counts_of_their_own():
    objective = distillation_objective("kl", label_weight=0.25)

    assert objective.names == ("kl", "label_infonce")
    assert objective.part_weights == (0.75, 0.25)
    assert objective.counts(TARGETS).tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(objective(SCORES, TARGETS), torch.tensor([KL, INFONCE]))


def test_teacher_temperature_divides_the_teacher_and_temperature_the_student():
    hot = distillation_objective("kl", temperature=2.0, teacher_temperature=4.0)
    cold = distillation_objective("kl")
    scaled = Targets(TARGETS.labels, TARGETS.mask, TARGETS.teacher_scores / 4)

    torch.testing.assert_close(hot(SCORES, TARGETS), cold(SCORES / 2, scaled))


def test_the_paper_is_plain_infonce_and_plain_kl():
    torch.testing.assert_close(contrastive_objective("paper")(SCORES, TARGETS), torch.tensor([INFONCE]))
    torch.testing.assert_close(distillation_objective("paper")(SCORES, TARGETS), torch.tensor([KL]))


def test_options_reach_the_loss_by_name_and_by_object():
    options = {"weighting": "lambdarank", "k": 1}
    by_name = contrastive_objective("lambdarank", temperature=0.5, loss_options=options)
    by_object = LabelObjective(with_options(lambdarank, **options), temperature=0.5)

    values = by_name(SCORES, TARGETS)

    assert values.equal(by_object(SCORES, TARGETS)) and by_name.names == by_object.names == ("lambdarank",)
    assert values[0].equal(lambdarank(SCORES, TARGETS.labels, mask=TARGETS.mask, temperature=0.5, **options))


def test_a_mixture_has_a_loss_of_the_labels_with_options_of_its_own():
    objective = distillation_objective(
        "margin_mse",
        loss_options={"pairs": "all"},
        label_weight=0.25,
        label_loss="hinge",
        label_loss_options={"margin": 3.0},
    )

    assert objective.names == ("margin_mse", "label_hinge")
    # margins log 3 of the scores and 0 of the teacher, and the other way round; 3 less the lead of the positive
    expected = [[math.log(3.0) ** 2, math.log(3.0) ** 2], [3.0 - math.log(3.0), 0.0]]
    torch.testing.assert_close(objective(SCORES, TARGETS), torch.tensor(expected))


def test_a_loss_that_takes_both_compares_the_teachers_margin_of_the_pairs_that_labels_order():
    objective = distillation_objective("positive_margin_mse", teacher_temperature=0.5)
    teacher = Targets(TARGETS.labels, TARGETS.mask, torch.tensor([[1.0, 3.0], [5.0, 0.0]]))

    assert objective.needs_labels and objective.needs_teacher and objective.max_label is None
    assert objective.counts(teacher).tolist() == [[True, False]]  # the second group has no label above another
    expected = [[(math.log(3.0) - (2.0 - 6.0)) ** 2, 0.0]]
    torch.testing.assert_close(objective(SCORES, teacher), torch.tensor(expected))
    assert not TeacherObjective(LOSSES["kl"]).needs_labels and TeacherObjective(positive_margin_mse).needs_labels


@pytest.mark.parametrize(
    ("make", "name", "options", "message"),
    [
        (contrastive_objective, "hinge", {"loss_options": {"k": 3}}, r"hinge has no option 'k'; it has \['margin'\]"),
        (contrastive_objective, "paper", {"loss_options": {"k": 3}}, "does not take .*loss_options"),
        (
            distillation_objective,
            "kl",
            {"loss_options": {"teacher_temperature": 2.0}},
            "set teacher_temperature itself",
        ),
        (distillation_objective, "kl", {"label_weight": 0.5, "label_loss": "kl"}, "objective 'kl' is not known here"),
        (
            distillation_objective,
            "kl",
            {"label_weight": 0.5, "label_loss_options": {"k": 3}},
            "infonce has no option 'k'",
        ),
    ],
)
def test_options_that_have_no_place_are_refused(make, name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize(
    "settings", [{"label_weight": 0.3}, {"temperature": 2.0}, {"teacher_temperature": 0.5}], ids=lambda s: next(iter(s))
)
def test_the_paper_takes_no_settings(settings):
    with pytest.raises(ValueError, match=f"does not take .*{next(iter(settings))}"):
        distillation_objective("paper", **settings)


@pytest.mark.parametrize(("make", "name"), [(contrastive_objective, "kl"), (distillation_objective, "infonce")])
def test_a_name_that_is_not_known_here_is_refused(make, name):
    with pytest.raises(ValueError, match=f"objective '{name}' is not known here; expected one of .*paper"):
        make(name)


def test_a_label_weight_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="label_weight=1.5"):
        distillation_objective("kl", label_weight=1.5)


def test_a_sum_of_objectives_knows_what_its_parts_need():
    both = WeightedObjective([(2.0, LabelObjective(LOSSES["bce"])), (0.5, TeacherObjective(LOSSES["mse"], name="raw"))])

    assert both.needs_labels and both.needs_teacher and both.max_label == 1.0
    assert both.names == ("bce", "raw") and both.part_weights == (2.0, 0.5)
    assert not LabelObjective(LOSSES["infonce"]).needs_teacher


@pytest.mark.parametrize(
    "kind",
    [lambda of_teacher, of_labels: WeightedObjective([(0.5, of_teacher), (0.5, of_labels)]), GatedObjective],
    ids=["weighted", "gated"],
)
def test_parts_that_the_log_could_not_tell_apart_are_refused(kind):
    of_teacher, of_labels = TeacherObjective(LOSSES["ranknet"]), LabelObjective(LOSSES["ranknet"])

    with pytest.raises(ValueError, match=r"named \('ranknet', 'ranknet'\).*Give one of them a name of its own"):
        kind(of_teacher, of_labels)
    assert kind(of_teacher, LabelObjective(LOSSES["ranknet"], name="own")).names == ("ranknet", "own")


def test_what_two_parts_measure_stands_in_the_log_twice():
    parts = [
        TeacherObjective(LOSSES["kl"], teacher_temperature="auto", consistency=consistency, name=name)
        for name, consistency in (("as_given", None), ("in_deviations", ZScore()))
    ]
    objective = WeightedObjective([*((0.4, part) for part in parts), (0.2, LabelObjective(LOSSES["infonce"]))])
    objective.prepare(TARGETS)

    measured = [part.readings()["teacher_temperature"] for part in parts]
    names = ["teacher_temperature_as_given", "teacher_temperature_in_deviations"]
    assert objective.readings() == dict(zip(names, measured, strict=True)) and measured[0] != measured[1]
    assert WeightedObjective([(1.0, parts[0])]).readings() == {"teacher_temperature": measured[0]}


def test_sums_of_sums_multiply_their_weights():
    inner = WeightedObjective([(0.5, LabelObjective(LOSSES["infonce"]))])

    assert WeightedObjective([(3.0, inner)]).part_weights == (1.5,)


@pytest.mark.parametrize("weights", [[], [-1.0]])
def test_objectives_without_parts_or_with_negative_weights_are_refused(weights):
    with pytest.raises(ValueError, match="expected objectives with weights of 0 or more, got"):
        WeightedObjective([(weight, LabelObjective(LOSSES["infonce"])) for weight in weights])


def test_the_snippets_of_the_page_run_one_after_the_other():
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)

    assert len(snippets) == page.count("```python") > 8
