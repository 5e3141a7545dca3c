"""Objectives: parts with their own counts and weights; names as shorthand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from rerank_trainer.losses import LOSSES
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


@pytest.mark.parametrize(
    "settings", [{"label_weight": 0.3}, {"temperature": 2.0}, {"teacher_temperature": 0.5}], ids=lambda s: next(iter(s))
)
def test_the_paper_takes_no_settings(settings):
    with pytest.raises(ValueError, match=f"does not take .*{next(iter(settings))}"):
        distillation_objective("paper", **settings)


@pytest.mark.parametrize(("make", "name"), [(contrastive_objective, "kl"), (distillation_objective, "lambdarank")])
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
