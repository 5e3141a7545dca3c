"""Descriptions: every kind of objective is described with its weights and settings, and cites its papers."""

from __future__ import annotations

import pytest
import torch

from rerank_trainer.losses import infonce, kl, lambdarank, margin_mse, positive_margin_mse, with_options
from rerank_trainer.objectives.anchor import Anchor
from rerank_trainer.objectives.by_source import SourceObjective
from rerank_trainer.objectives.consistency import IsotonicMap, ZScore
from rerank_trainer.objectives.description import Part, cited_by, describe_objective
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import LabelObjective, Objective, Targets, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.schedules import Ramp


class Smallness(Objective):
    names = ("smallness",)
    part_weights = (0.5,)


DESCRIBED = {
    "label loss with options": (
        LabelObjective(with_options(lambdarank, k=10), temperature=0.5),
        [Part("lambdarank", "lambdarank", "labels", settings={"k": "10", "temperature": "0.5"})],
    ),
    "teacher loss": (
        TeacherObjective(margin_mse, teacher_temperature=4.0, consistency=ZScore()),
        [
            Part(
                "margin_mse",
                "margin_mse",
                "teacher",
                settings={"teacher temperature": "4", "teacher scores mapped by": "ZScore"},
            )
        ],
    ),
    "loss of both": (
        TeacherObjective(positive_margin_mse),
        [Part("positive_margin_mse", "positive_margin_mse", "labels and teacher")],
    ),
    "weights in weights": (
        WeightedObjective(
            [
                (Ramp(1.0, 0.0, begin=0.1, end=0.2), LabelObjective(infonce)),
                (0.5, WeightedObjective([(0.2, Anchor()), (1.0, TeacherObjective(kl))])),
            ]
        ),
        [
            Part("infonce", "infonce", "labels", "from 1 to 0 between 10% and 20%"),
            Part("anchor", "bce", "labels", "0.5 × 0.2"),
            Part("kl", "kl", "teacher", "0.5"),
        ],
    ),
    "mixed": (
        MixedObjective(label_weight=0.3, teacher_temperature="auto"),
        [Part("mixed", "kl", "labels and teacher", settings={"label weight": "0.3", "teacher temperature": "auto"})],
    ),
    "gated": (
        GatedObjective(),
        [
            Part(
                "kl",
                "kl",
                "teacher",
                "how far the teacher is better, by query",
                {"teacher trusted fully from an advantage of": "0.02"},
            ),
            Part(
                "label_infonce",
                "infonce",
                "labels",
                "the rest",
                {"teacher trusted fully from an advantage of": "0.02"},
            ),
        ],
    ),
    "one's own": (Smallness(), [Part("smallness", "Smallness", "", "0.5")]),
}


@pytest.mark.parametrize(("objective", "parts"), DESCRIBED.values(), ids=DESCRIBED)
def test_an_objective_is_described_by_its_parts(objective, parts):
    assert describe_objective(objective) == parts
    assert tuple(part.name for part in parts) == objective.names


def test_sources_are_described_by_the_names_of_their_parts():
    shared = TeacherObjective(kl)
    objective = SourceObjective({"web": shared, "code": LabelObjective(infonce), "math": shared})

    assert tuple(part.name for part in describe_objective(objective)) == objective.names


def test_a_measured_temperature_is_told():
    objective = TeacherObjective(kl, teacher_temperature="auto")
    objective.prepare(Targets(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 1.0]])))

    assert describe_objective(objective)[0].settings == {"teacher temperature": "0.4784 (measured)"}


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        (LabelObjective(with_options(lambdarank, k=10)), ["wang2018lambdaloss"]),
        (MixedObjective(label_weight=0.3), ["hinton2015distilling", "oord2018representation", "maroto2022benefits"]),
        (TeacherObjective(kl, consistency=IsotonicMap()), ["hinton2015distilling", "han2021fixing"]),
        (GatedObjective(), ["hinton2015distilling", "oord2018representation"]),
        (Anchor(), ["nogueira2019passage"]),
        (Smallness(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_objective_cites_the_papers_of_all_its_parts_once(objective, keys):
    cited = cited_by(objective)

    assert sorted(cited) == sorted(keys)
    assert all(text.startswith("@") and f"{{{key}," in text for key, text in cited.items())
