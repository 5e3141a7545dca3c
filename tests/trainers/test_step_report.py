"""The step report: the seconds of each phase are those that were spent there, the other figures those of the groups."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from rerank_trainer.trainers import step_report
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.step_report import Clock, StepReport, device_clock, matmul_peak
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import QUIET, SGD, furthest, train

PHASES = ("data", "forward", "backward", "optimizer", "rest")


def test_a_phase_inside_another_interrupts_it():
    clock = Clock(iter([0.0, 1.0, 3.0, 6.0, 10.0]).__next__)
    clock.start()
    with clock.phase("forward"):  # from 1
        with clock.phase("backward"):  # from 3 to 6
            pass
    # until 10

    assert clock.seconds == {"data": 0, "forward": 2 + 4, "backward": 3, "optimizer": 0, "rest": 1}


def test_what_is_skipped_is_charged_to_no_phase():
    clock = Clock(iter([0.0, 1.0, 50.0, 52.0]).__next__)
    clock.start()
    clock.turn("rest")
    clock.skip()
    clock.turn("data")

    assert clock.seconds["rest"] == 1 + 2
    assert sum(clock.seconds.values()) == 3


def test_waiting_for_each_item_is_charged_and_what_is_done_with_it_is_not():
    clock = Clock(iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0, 21.0]).__next__)
    clock.start()

    assert list(clock.during("data", iter("ab"))) == ["a", "b"]
    assert clock.seconds["data"] == (3 - 1) + (14 - 10) + (21 - 20)  # two items, and the end
    assert clock.seconds["rest"] == 1 + (10 - 3) + (20 - 14)


def test_on_a_gpu_the_clock_is_read_after_the_device_has_finished(monkeypatch):
    waited_for = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited_for.append)
    gpu = torch.device("cuda", 1)

    assert device_clock(gpu)() > 0
    assert waited_for == [gpu]
    device_clock(torch.device("cpu"))()
    assert waited_for == [gpu]


def test_the_peak_is_that_of_the_fastest_product(monkeypatch):
    # the product that is not timed reads no clock; then 8, 2 and 4 seconds for 2 * 10^3 operations
    times = iter([0.0, 8.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(step_report, "device_clock", lambda device: times.__next__)

    assert matmul_peak(torch.device("cpu"), torch.float32, size=10, num_products=3) == 2000 / 2


class Spent:
    """Seconds that pass only where a test lets them pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def before(self, owner: Any, name: str, seconds: float) -> None:
        """Let so many seconds pass in each call of a method."""
        method = getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return method(*args, **kwargs)

        setattr(owner, name, slow)


class Fail(TrainerCallback):
    """Breaks a training off in its second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise InterruptedError


def reports(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("broken_off", [False, True], ids=["first training", "after one that was broken off"])
def test_each_phase_has_the_seconds_that_were_spent_in_it(make_args, monkeypatch, broken_off):
    spent = Spent()
    monkeypatch.setattr(step_report, "device_clock", lambda device: lambda: spent.now)
    monkeypatch.setattr(step_report, "matmul_peak", lambda device, dtype: 1e9)
    # 16 groups: an epoch is two steps of two batches of four; evaluation after each step
    options = {"gradient_accumulation_steps": 2, "logging_strategy": "steps", "logging_steps": 2}
    args = make_args(step_report=True, eval_strategy="steps", eval_steps=1, num_train_epochs=2, **options)
    groups = word_groups(16)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=groups, eval_dataset=groups)
    if broken_off:
        trainer.add_callback(Fail)
        with pytest.raises(InterruptedError):
            trainer.train()
        trainer.remove_callback(Fail)
    spent.before(trainer, "data_collator", 1)
    spent.before(trainer, "_prepare_inputs", 10)
    spent.before(trainer.accelerator, "backward", 100)
    spent.before(trainer, "_track_num_input_tokens", 1000)
    spent.before(trainer.accelerator, "clip_grad_norm_", 10_000)
    spent.before(trainer.model, "zero_grad", 100_000)
    spent.before(trainer, "evaluation_loop", 10_000_000)

    trainer.train()

    expected = {"data": 2, "forward": 20, "backward": 200, "optimizer": 110_000, "rest": 2000}
    for entry in reports(trainer):
        found = {name: entry[f"seconds_{name}"] for name in PHASES}
        # four batches of the training and four of each evaluation are collated; the former alone count
        assert found == pytest.approx(expected, rel=1e-3)
        assert entry["seconds_step"] == pytest.approx(sum(expected.values()), rel=1e-3)
    assert len(reports(trainer)) == 2


def test_afterwards_the_trainer_has_its_own_methods_again(make_args):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(step_report=True), train_dataset=word_groups(8))
    own = set(vars(trainer)), set(vars(trainer.accelerator))
    given = trainer.log_metrics = object()
    with step_report.replaced(trainer, "log_metrics", "another"):
        assert trainer.log_metrics == "another"
    assert trainer.log_metrics is given
    trainer.train()

    assert not {"training_step", "get_batch_samples"} & (set(vars(trainer)) - own[0])
    assert not {"backward", "clip_grad_norm_"} & (set(vars(trainer.accelerator)) - own[1])
    assert trainer.model.row_scorer.work is None


def test_without_the_argument_nothing_is_reported(make_args):
    args = make_args(logging_strategy="steps", logging_steps=1)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    trainer.train()

    assert not any(isinstance(each, StepReport) for each in trainer.callback_handler.callbacks)
    assert not {"tokens_per_second", "padding_share", "peak_share"} & {name for log in reports(trainer) for name in log}


def test_the_report_changes_no_weight_with_dropout_on(tmp_path):
    options = {**SGD, "num_train_epochs": 1, "dropout": 0.2, "per_device_train_batch_size": 4}
    plain, reported = (train(tmp_path, step_report=wanted, **options).model.state_dict() for wanted in (False, True))

    assert furthest(plain, reported) == 0.0


def test_tokens_padding_and_the_share_of_the_peak_are_those_of_the_groups(make_args, monkeypatch):
    ticks = itertools.count(0.0, 1.0)
    monkeypatch.setattr(step_report, "device_clock", lambda device: ticks.__next__)
    monkeypatch.setattr(step_report, "matmul_peak", lambda device, dtype: 1e6)
    args = make_args(
        step_report=True,
        logging_strategy="steps",
        logging_steps=2,
        passages_per_query=6,
        max_tokens_per_micro_batch=10**6,
    )
    reranker = small_reranker()
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=word_groups(8))
    masks = []  # of all forwards that run
    reranker.model.bert.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    trainer.train()

    lengths = torch.cat([mask.sum(dim=1) for mask in masks])
    num_tokens, num_run = int(lengths.sum()), sum(mask.numel() for mask in masks)
    embeddings = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    num_parameters = sum(
        p.numel() for name, p in reranker.model.named_parameters() if not any(part in name for part in embeddings)
    )
    # the tiny model has 2 layers, 32 wide
    flops = 6 * num_tokens * num_parameters + 12 * 2 * 32 * int(lengths.square().sum())
    (entry,) = reports(trainer)
    seconds = 2 * entry["seconds_step"]
    assert len(lengths) == 8 * 6
    assert entry["tokens_per_second"] == pytest.approx(num_tokens / seconds, rel=1e-3)
    assert entry["padding_share"] == pytest.approx(1 - num_tokens / num_run, rel=1e-3)
    assert entry["peak_share"] == pytest.approx(flops / (seconds * 1e6), rel=1e-3)


def report_to_file(folder: Path) -> None:
    """Train by a clock that ticks one second a reading in the first process and three in the second; keep the log."""
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ticks = itertools.count(0.0, 2.0 * rank + 1.0)
    step_report.device_clock = lambda device: ticks.__next__
    step_report.matmul_peak = lambda device, dtype: 1e6 * (rank + 1)
    options = {**QUIET, "passages_per_query": 6, "logging_steps": 2, "num_train_epochs": 1, "step_report": True}
    if num_processes > 1:
        options["ddp_backend"] = "gloo"
    args = RerankTrainingArguments(str(folder), per_device_train_batch_size=8 // num_processes, **options)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(16))
    trainer.train()
    if rank == 0:
        (folder / f"{num_processes}.json").write_text(json.dumps(reports(trainer)))


@pytest.mark.slow
def test_two_processes_report_the_mean_of_their_seconds_and_the_sum_of_their_tokens(tmp_path):
    for num_processes in (1, 2):
        launch(report_to_file, tmp_path, num_processes=num_processes)
    (one,), (two,) = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2))

    for name in ("step", *PHASES):  # the second takes three times as long, so the mean is twice the first
        assert two[f"seconds_{name}"] == pytest.approx(2 * one[f"seconds_{name}"], rel=1e-3)
    assert two["tokens_per_second"] == pytest.approx(one["tokens_per_second"] / 2, rel=1e-3)
    # possible were 1e6 * s by one process; by two, 1e6 * s and 2e6 * 3 s
    assert two["peak_share"] == pytest.approx(one["peak_share"] / 7, rel=1e-3)
