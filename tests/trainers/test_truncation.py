"""The share of cut pairs in the trainer's logs: exact between log lines, over the training and in evaluation."""

from __future__ import annotations

import datasets
import pytest

from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.trainers.conftest import small_reranker

LONG = "water and fire on seven hills " * 12


def groups_with_long_passages(num_long):
    """A group for each number: that many of its 4 passages do not fit."""
    return datasets.Dataset.from_list(
        [
            {"query": "water", "passages": [LONG] * num + ["fire"] * (4 - num), "labels": [1.0, 0.0, 0.0, 0.0]}
            for num in num_long
        ]
    )


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "were cut" in r.getMessage()]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_logs_say_the_share_of_pairs_cut_since_the_last_line_and_in_all(make_args, caplog, num_workers):
    args = make_args(
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        logging_strategy="steps",
        logging_steps=1,
        dataloader_num_workers=num_workers,
    )
    trainer = ContrastiveRerankTrainer(
        small_reranker(), args, train_dataset=groups_with_long_passages([2, 1, 0, 0, 4, 0])
    )
    metrics = trainer.train().metrics

    assert [entry["truncated"] for entry in trainer.state.log_history if "loss" in entry] == [3 / 8, 0, 4 / 8]
    assert metrics["train_truncated"] == trainer.state.log_history[-1]["train_truncated"] == round(7 / 24, 4)
    (warning,) = warnings_of(caplog)  # once, although two lines are above the share
    assert warning.startswith("training: 3 of 8 pairs were cut to max_length=48, ")


def test_evaluation_says_the_share_of_each_set_and_warns_once_of_each(make_args, caplog):
    sets = {"long": groups_with_long_passages([4, 2, 0]), "short": groups_with_long_passages([0, 0])}
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(per_device_eval_batch_size=2), eval_dataset=sets)
    figures = [trainer.evaluate(), trainer.evaluate()]

    assert [(f["eval_long_truncated"], f["eval_short_truncated"]) for f in figures] == [(0.5, 0.0)] * 2
    assert [text.split(" pairs")[0] for text in warnings_of(caplog)] == ["eval_long: 6 of 12"]


def test_a_share_below_the_stated_one_is_logged_without_a_warning(make_args, caplog):
    trainer = ContrastiveRerankTrainer(
        small_reranker(), make_args(), train_dataset=groups_with_long_passages([1, 0, 0, 0])
    )

    assert trainer.train().metrics["train_truncated"] == round(1 / 16, 4)
    assert warnings_of(caplog) == []


def test_a_second_training_counts_anew(make_args):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=groups_with_long_passages([1, 0]))
    first = trainer.train().metrics["train_truncated"]
    trainer.train_dataset.groups = groups_with_long_passages([0, 0])

    assert (first, trainer.train().metrics["train_truncated"]) == (1 / 8, 0.0)
