"""Objectives in training: their schedules follow the steps, and what they learn survives a resume."""

from __future__ import annotations

import datasets
import pytest

from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.objective import LabelObjective, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.schedules import Ramp
from rerank_trainer.trainers.base import RerankTrainer
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.runs import SGD, furthest

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
