"""A run that is killed and resumed ends as the whole run does, bit for bit, with dropout, AdamW and a schedule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainers.launch import launch
from tests.trainers.runs import furthest, outcome, train, uneven_groups

# 3 epochs of 4 steps; a checkpoint after every second step
OPTIONS: dict[str, Any] = {
    "num_groups": 16,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "dropout": 0.1,
    "save_strategy": "steps",
    "save_steps": 2,
}
# evaluation between the steps; the loss, called better when it is greater, falls short of its first value three times:
# training stops at step 8
EVALUATED = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "metric_for_best_model": "loss",
    "greater_is_better": True,
    "load_best_model_at_end": True,
    "restore_callback_states_from_checkpoint": True,
    "patience": 3,
}
WORKERS = {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "fork"}
PERSISTENT = {**WORKERS, "dataloader_persistent_workers": True}
CASES = {
    "mid epoch": ({}, 2, 1),
    "between epochs": ({}, 4, 1),
    "mid last epoch": ({}, 10, 1),
    "workers": (WORKERS, 6, 1),
    "persistent workers, mid epoch": (PERSISTENT, 2, 1),
    "persistent workers, between epochs": (PERSISTENT, 4, 1),
    "accumulated": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 6, 1),
    "best model and patience": (EVALUATED, 4, 1),
    "best model and patience, persistent workers": ({**EVALUATED, **PERSISTENT}, 6, 1),
    "two processes, mid epoch": ({"per_device_train_batch_size": 2}, 6, 2),
    "two processes, between epochs": ({"per_device_train_batch_size": 2, **PERSISTENT}, 4, 2),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """What came of the whole run; workers, which may change nothing, are left out."""
    runs: dict[str, Any] = {}

    def of(num_processes: int, options: dict[str, Any]) -> dict[str, Any]:
        options = {name: value for name, value in options.items() if name not in PERSISTENT}
        key = f"{num_processes} {options}"
        if key not in runs:
            folder = tmp_path_factory.mktemp("whole")
            launch(train, folder, num_processes=num_processes, **options)
            runs[key] = outcome(folder, "run")
        return runs[key]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_that_is_resumed_ends_as_the_whole_run(tmp_path, whole_run, case):
    options, step, num_processes = CASES[case]
    options = {**OPTIONS, **options}
    launch(train, tmp_path, num_processes=num_processes, killed=True, kill_at=step + 1, **options)
    launch(train, tmp_path, num_processes=num_processes, **options, resume_from=f"checkpoint-{step}")

    whole, cut = whole_run(num_processes, options), outcome(tmp_path, "run")
    assert whole["history"][-1]["step"] == (8 if "patience" in options else 12)
    assert furthest(whole["weights"], cut["weights"]) == 0
    assert {key: whole[key] for key in ("history", "best", "callbacks")} == {
        key: cut[key] for key in ("history", "best", "callbacks")
    }


def test_a_run_that_skips_no_data_begins_its_epoch_anew_and_ends_at_the_same_step(tmp_path, monkeypatch):
    from rerank_trainer.data.sampling import TrainGroups

    taken: list[tuple[int, int]] = []
    item = TrainGroups.__getitem__
    monkeypatch.setattr(TrainGroups, "__getitem__", lambda self, key: (taken.append(key), item(self, key))[1])
    train(tmp_path, **OPTIONS)
    whole = list(taken)
    taken.clear()
    trainer = train(tmp_path, **OPTIONS, resume_from="checkpoint-6", ignore_data_skip=True)

    assert trainer.state.global_step == 12
    # from step 6 of 12, in the middle of epoch 1: all of epoch 1 once more, then the two steps that are left
    assert taken[: 16 + 8] == whole[16 : 32 + 8]
    assert {index for _, index in taken[:16]} == set(range(len(uneven_groups(16))))
