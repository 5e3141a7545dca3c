"""Objectives in training: their schedules follow the steps, and what they learn survives a resume."""

from __future__ import annotations

import datasets
import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.anchor import Anchor
from rerank_trainer.objectives.consistency import IsotonicMap
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.objective import LabelObjective, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.schedules import Ramp
from rerank_trainer.objectives.temperature import entropy_temperature
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.progress import OBJECTIVE_FILE, sample_targets
from rerank_trainer.trainers.sources import TrainSource
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import SGD, furthest, outcome, train, uneven_groups

STEPS = {**SGD, "max_steps": 8, "logging_strategy": "steps", "logging_steps": 1}


def taught_groups(num_groups: int = 16) -> datasets.Dataset:
    """Groups whose teacher prefers the positive, and the other passages by their place."""
    groups = word_groups(num_groups)
    teacher = [[3.0 * label + 0.1 * place for place, label in enumerate(labels)] for labels in groups["labels"]]
    return groups.add_column("teacher_scores", teacher)


def ramp_from_labels_to_teacher():
    return WeightedObjective(
        [
            (Ramp(1.0, 0.0, end=0.5), LabelObjective(LOSSES["infonce"])),
            (Ramp(0.0, 1.0, end=0.5), TeacherObjective(LOSSES["kl"])),
        ]
    )


@pytest.fixture
def make_trainer(make_args):
    def make(objective, **options) -> RerankTrainer:
        args = make_args(**{**STEPS, **options})
        return RerankTrainer(small_reranker(spread=0.3), args, objective=objective, train_dataset=taught_groups())

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_a_weight_follows_the_optimizer_steps_also_when_batches_are_accumulated(make_trainer):
    trainer = make_trainer(ramp_from_labels_to_teacher(), per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer.train()

    assert logged(trainer, "weight_infonce") == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert logged(trainer, "weight_kl") == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert logged(trainer, "loss_kl")[0] == 0.0 and logged(trainer, "loss_infonce")[-1] == 0.0


def test_a_resumed_run_goes_on_with_the_weights_of_the_whole_run(make_trainer):
    whole = make_trainer(ramp_from_labels_to_teacher(), save_strategy="steps", save_steps=2)
    whole.train()
    cut = make_trainer(ramp_from_labels_to_teacher())
    cut.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")

    assert logged(cut, "weight_kl") == logged(whole, "weight_kl")
    assert furthest(dict(whole.model.state_dict()), dict(cut.model.state_dict())) == 0


def everything_that_learns():
    """Of one type each, with short periods: all that an objective can remember."""
    gated = GatedObjective(TeacherObjective(LOSSES["kl"], teacher_temperature="auto"), decay=0.5)
    mapped = TeacherObjective(LOSSES["margin_mse"], consistency=IsotonicMap(refresh=3))
    return WeightedObjective([(1.0, gated), (Ramp(0.0, 0.2), mapped), (0.1, Anchor())])


def test_what_an_objective_has_learned_survives_a_resume(make_trainer):
    whole = make_trainer(everything_that_learns(), save_strategy="steps", save_steps=2)
    whole.train()
    cut = make_trainer(everything_that_learns())
    cut.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")

    for name in ("teacher_trusted", "teacher_advantage", "teacher_slope", "weight_margin_mse", "teacher_temperature"):
        assert logged(cut, name) == logged(whole, name) and len(logged(whole, name)) == 8
    assert len(set(logged(whole, "teacher_slope"))) == 3  # before the fits of steps 3 and 6, and after
    assert furthest(dict(whole.model.state_dict()), dict(cut.model.state_dict())) == 0
    kept, own = cut.objective.state_dict(), whole.objective.state_dict()
    assert kept.keys() == own.keys() and all(torch.equal(kept[name], own[name]) for name in own)


def test_a_checkpoint_of_another_objective_is_refused(make_trainer):
    plain = make_trainer(LabelObjective(LOSSES["infonce"]), save_strategy="steps", save_steps=4)
    plain.train()
    folder = f"{plain.args.output_dir}/checkpoint-4"

    with pytest.raises(ValueError, match=rf"{OBJECTIVE_FILE}: expected .*'counted', 'sums'.*found no file"):
        make_trainer(GatedObjective()).train(resume_from_checkpoint=folder)


def test_a_measured_temperature_is_that_of_the_groups_as_they_are_drawn_and_a_resumed_run_keeps_it(make_args, tmp_path):
    def make(scale, **options):
        groups = taught_groups()
        scores = [[scale * score for score in row] for row in groups["teacher_scores"]]
        groups = groups.remove_columns("teacher_scores").add_column("teacher_scores", scores)
        args = make_args(**{**STEPS, "teacher_temperature": "auto", **options})
        return DistillRerankTrainer(small_reranker(spread=0.3), args, train_dataset=groups)

    whole = make(1.0, save_strategy="steps", save_steps=4)
    whole.train()
    drawn = [row["teacher_scores"] for row in (whole.train_dataset[0, index] for index in range(16))]
    assert {len(row) for row in drawn} == {4}  # of 6 passages
    expected = entropy_temperature(torch.tensor(drawn), torch.ones(16, 4, dtype=torch.bool))
    assert logged(whole, "teacher_temperature") == [pytest.approx(expected, abs=1e-4)] * 8

    cut = make(10.0, output_dir=str(tmp_path / "cut"))
    assert cut.objective.readings()["teacher_temperature"] == pytest.approx(10 * expected, rel=1e-3)
    cut.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert logged(cut, "teacher_temperature") == logged(whole, "teacher_temperature")


def test_the_sample_of_a_run_with_sources_is_padded_numbered_and_without_what_is_absent(make_args):
    sources = {"a": TrainSource(uneven_groups(8)), "b": TrainSource(word_groups(5), objective="infonce")}
    trainer = DistillRerankTrainer(
        small_reranker(), make_args(teacher_temperature="auto", passages_per_query=5), train_dataset=sources
    )

    targets = sample_targets(trainer.train_dataset, ["a", "b"])

    assert targets.source.tolist() == [0] * 8 + [1] * 5
    assert targets.mask.sum(dim=1).tolist() == [3, 5, 5, 5, 3, 5, 5, 5, 5, 5, 5, 5, 5]
    assert targets.labels[0].tolist() == [0.0, 0.0, 0.0, -100.0, -100.0]
    alone = make_args(teacher_temperature="auto", passages_per_query=5)
    one_set = DistillRerankTrainer(small_reranker(), alone, train_dataset=sources["a"].rows)
    assert trainer.objective.readings()["a/teacher_temperature"] == one_set.objective.readings()["teacher_temperature"]


def test_a_stream_is_measured_by_its_first_groups(make_args):
    groups = taught_groups()
    args = make_args(**STEPS, teacher_temperature="auto", passages_per_query=6)
    streamed = DistillRerankTrainer(small_reranker(), args, train_dataset=groups.to_iterable_dataset())
    whole = DistillRerankTrainer(small_reranker(), args, train_dataset=groups)

    assert streamed.objective.readings() == whole.objective.readings()


@pytest.mark.slow
def test_two_processes_gate_as_one_does(tmp_path):
    options = {**SGD, "distil": True, "objective": "gated", "teacher_temperature": "auto", "num_train_epochs": 2}
    launch(train, tmp_path / "two", num_processes=2, per_device_train_batch_size=2, **options)
    train(tmp_path / "one", per_device_train_batch_size=4, **options)
    two, one = outcome(tmp_path / "two", "run"), outcome(tmp_path / "one", "run")

    assert furthest(two["weights"], one["weights"]) < 1e-5
    names = ("teacher_trusted", "teacher_advantage", "loss_kl", "loss_label_infonce")
    for of_two, of_one in zip(two["history"], one["history"], strict=True):
        if "loss" in of_one:
            assert [of_two[name] for name in names] == pytest.approx([of_one[name] for name in names], abs=2e-4)
    assert 0 < sum(entry.get("teacher_trusted", 0.0) for entry in one["history"]) < len(one["history"]) - 1
