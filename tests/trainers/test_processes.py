"""However it is cut into batches, windows, processes and workers, a training ends with the same weights."""

from __future__ import annotations

import pytest

from tests.trainers.launch import launch
from tests.trainers.runs import SGD, furthest, outcome, train_all

# 21 groups: the last step of an epoch has 5, which two processes cannot share out evenly
OPTIONS = {**SGD, "num_groups": 21, "num_train_epochs": 2, "max_tokens_per_micro_batch": 100, "max_length": 16}
OBJECTIVES = {"one loss": {}, "mixture": {"distil": True, "label_weight": 0.4}}
# how a step of 8 groups is cut, by the number of processes
CUTS = {
    1: {
        "whole": {"per_device_train_batch_size": 8},
        "4 x 2": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "2 x 4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    },
    2: {
        "two of 4": {"per_device_train_batch_size": 4},
        "two of 2 x 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        "two of 8 split": {"per_device_train_batch_size": 8, "accelerator_config": {"split_batches": True}},
    },
}
# more steps, and processes that take their groups as they come: they then need unlike numbers of micro-batches
AS_THEY_COME = {**OPTIONS, "max_steps": 20, "balance_processes": False}


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """The folder of all runs: each objective under each cut, and one of more steps for each number of processes."""
    folder = tmp_path_factory.mktemp("cuts")
    for num_processes, ways in CUTS.items():
        runs = {f"{o} {cut}": {**OPTIONS, **OBJECTIVES[o], **ways[cut]} for o in OBJECTIVES for cut in ways}
        runs[f"as they come {num_processes}"] = {**AS_THEY_COME, "per_device_train_batch_size": 8 // num_processes}
        launch(train_all, folder, num_processes=num_processes, runs=runs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("cut", [cut for ways in CUTS.values() for cut in ways if cut != "whole"])
def test_a_step_of_8_groups_trains_the_same_however_it_is_cut(cuts, objective, cut):
    whole, other = outcome(cuts, f"{objective} whole"), outcome(cuts, f"{objective} {cut}")

    assert furthest(whole["weights"], other["weights"]) < 1e-6
    lines = [[entry for entry in run["history"] if "loss" in entry] for run in (whole, other)]
    losses, cut = ([[line[name] for line in of_run] for of_run in lines] for name in ("loss", "truncated"))
    assert len(set(losses[0])) == 6 and losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert cut[0] == cut[1] and 0 < min(cut[0]) < max(cut[0]) < 1  # groups that fill the last batch do not count


@pytest.mark.slow
def test_processes_with_unlike_numbers_of_micro_batches_end_after_twenty_steps_as_one_process_does(cuts):
    one, two = (outcome(cuts, f"as they come {num_processes}") for num_processes in (1, 2))
    num_micro_batches = [[forwards for _, forwards in steps] for steps in two["steps"]]

    unlike = [first != second for first, second in zip(*num_micro_batches, strict=True)]
    assert len(unlike) == 20 and sum(unlike) >= 5
    largest = max(weight.abs().max().item() for weight in one["weights"].values())
    assert furthest(one["weights"], two["weights"]) < 1e-5 * largest


@pytest.mark.slow
def test_processes_that_exchange_groups_hold_more_even_numbers_of_tokens_and_the_same_groups(cuts):
    exchanged, as_they_come = (
        [[tokens for tokens, _ in steps[:6]] for steps in outcome(cuts, name)["steps"]]
        for name in ("one loss two of 4", "as they come 2")
    )

    assert [sum(of_step) for of_step in zip(*exchanged, strict=True)] == list(map(sum, zip(*as_they_come, strict=True)))
    apart = [sum(abs(a - b) for a, b in zip(*steps, strict=True)) for steps in (exchanged, as_they_come)]
    assert apart[0] < apart[1] / 3


@pytest.mark.slow
def test_weights_move_far_enough_for_the_comparison_to_mean_something(cuts):
    whole, other = (outcome(cuts, f"{objective} whole")["weights"] for objective in OBJECTIVES)

    assert furthest(whole, other) > 1e-3


@pytest.mark.slow
def test_workers_of_every_kind_train_as_none_do(tmp_path):
    # dropout on: what workers draw must not come from the chance that dropout takes; K of 6 passages, anew each epoch
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "dropout": 0.1}
    workers = {"dataloader_num_workers": 2}
    persistent = {**workers, "dataloader_persistent_workers": True}
    kinds = {
        "none": {},
        "fork": {**workers, "dataloader_multiprocessing_context": "fork"},
        "persistent": {**persistent, "dataloader_multiprocessing_context": "fork"},
        # nothing is inherited, as with "spawn" (see tests/data/test_sampling.py), but the libraries are there already
        "server": {**persistent, "dataloader_multiprocessing_context": "forkserver"},
    }
    launch(train_all, tmp_path, runs={name: {**options, **kind} for name, kind in kinds.items()})

    none = outcome(tmp_path, "none")
    for name in ("fork", "persistent", "server"):
        other = outcome(tmp_path, name)
        assert furthest(none["weights"], other["weights"]) == 0, name
        assert none["history"] == other["history"], name


@pytest.mark.slow
def test_two_processes_train_the_same_whether_they_keep_activations_or_compute_them_again(tmp_path):
    # dropout, half precision and unlike numbers of micro-batches in the two processes, all at once
    options = {**OPTIONS, "num_train_epochs": 1, "dropout": 0.2, "bf16": True, "per_device_train_batch_size": 4}
    runs = {"kept": {}, "again": {"recompute_activations": True}, "other": {"dropout": 0.0}}
    for name, changed in runs.items():
        runs[name] = {"recompute_activations": False, **options, **changed}
    launch(train_all, tmp_path, num_processes=2, runs=runs)
    kept, again, other = (outcome(tmp_path, name)["weights"] for name in runs)

    assert furthest(kept, again) == 0
    assert furthest(kept, other) > 1e-3
