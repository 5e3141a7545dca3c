"""Recipes, students and budgets: what is accepted, what it stands for, what is refused."""

from __future__ import annotations

import pytest

from rerank_trainer.comparison.budgets import Seconds, Steps, Tokens, as_budget
from rerank_trainer.comparison.recipes import RECIPES, Recipe, Stage, as_recipes
from rerank_trainer.comparison.students import Student, as_students, model_digest
from rerank_trainer.losses import kl
from rerank_trainer.objectives.objective import TeacherObjective


def test_names_stand_for_what_their_signs_say():
    kinds = {name: recipe.kind for name, recipe in RECIPES.items()}

    assert kinds == {"cl": "contrast", "kd": "distil", "cl+kd": "mix", "cl>kd": "mix", "kd>cl": "mix"}
    assert [stage.method for stage in RECIPES["cl>kd"].stages] == ["contrastive", "distill"]
    assert RECIPES["cl>kd"].shares == [0.5, 1.0]


def test_an_objective_of_ones_own_says_itself_what_it_reads():
    stage = Stage("distill", objective=TeacherObjective(kl))

    assert Recipe("own", [stage]).kind == "distil"
    assert stage.settings["objective"][0]["loss"] == "kl"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["kld"], r"recipe 'kld' is not known; nearest: 'kd'"),
        (["cl", "cl"], r"the name 'cl' stands there 2 times"),
        ("cl", r"expected a list of one or more"),
        ([{"name": "x"}], r"expected a name and stages"),
        ([{"name": "x", "stages": [{"method": "sing"}]}], r"method='sing': expected 'contrastive' or 'distill'"),
        ([{"name": "x", "stages": [{"method": "distill", "share": 0}]}], r"share=0"),
        ([{"name": "x", "stages": []}], r"recipe 'x' with 0 stages"),
    ],
)
def test_recipes_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_recipes(given)


def test_budgets_come_as_objects_or_mappings():
    assert as_budget({"steps": 5}) == Steps(5)
    assert as_budget({"tokens": 5}) == Tokens(5)
    assert as_budget(Seconds(0.5)) == Seconds(0.5)


@pytest.mark.parametrize("given", [{"steps": 0}, {"steps": 1.5}, {"tokens": True}, {"hours": 1}, 5, {"seconds": -1}])
def test_budgets_that_cannot_be_are_refused(given):
    with pytest.raises(ValueError, match=r"expected"):
        as_budget(given)


def test_students_have_the_last_part_of_their_path_as_name(tmp_path):
    (tmp_path / "model").mkdir()

    assert list(as_students([str(tmp_path / "model"), "some/other"])) == ["model", "some/other"]
    assert list(as_students({"short": {"model": "some/other", "arguments": {"learning_rate": 1e-3}}})) == ["short"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a/b", "a/b"], r"with names of their own"),
        ([], r"expected one or more"),
        ([3], r"student 3: expected a Hub id"),
        ([{"model": "a/b", "colour": 1}], r"expected model, name, arguments and options"),
        ([Student("a/b", name="x"), {"model": "c/d", "options": {"colour": 1}}], r"\['colour'\] are not known"),
    ],
)
def test_students_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_students(given)


def test_a_folder_is_known_by_what_it_holds_and_not_by_its_path(tmp_path):
    for name, content in (("one/m", "{}"), ("two/m", "{}"), ("three/m", "{ }")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(content)
    one, two, three = (model_digest(tmp_path / name / "m") for name in ("one", "two", "three"))

    assert one == two != three
    assert str(tmp_path) not in str(one)
