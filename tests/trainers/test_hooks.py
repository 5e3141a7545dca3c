"""Hooks: the signatures that we rely on, one loss over the whole optimizer step, the files of a checkpoint."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.hooks import GroupHooks
from tests.trainers.conftest import small_reranker, word_groups

SIGNATURES = {
    "_get_dataloader": [
        "self",
        "dataset",
        "description",
        "batch_size",
        "sampler_fn",
        "is_training",
        "dataloader_key",
    ],
    "_prepare_input": ["self", "data"],
    "_track_num_input_tokens": ["self", "inputs"],
    "hyperparameter_search": [
        "self",
        "hp_space",
        "compute_objective",
        "n_trials",
        "direction",
        "backend",
        "hp_name",
        "kwargs",
    ],
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_save": ["self", "output_dir", "state_dict"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_optimizer": ["self", "model"],
    "floating_point_ops": ["self", "inputs"],
    "log": ["self", "logs", "start_time"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_transformers_has_the_method_that_we_override(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == SIGNATURES[name]
    assert list(inspect.signature(getattr(GroupHooks, name)).parameters) == SIGNATURES[name]


def test_no_other_method_of_transformers_is_overridden_here():
    ours = {name for name in vars(GroupHooks) if inspect.isfunction(vars(GroupHooks)[name])}

    assert {name for name in ours if hasattr(Trainer, name)} == set(SIGNATURES)


def test_transformers_still_scales_by_what_the_class_attribute_says():
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)
    assert GroupHooks.loss_is_scaled_for_ga is True


def ragged_groups():
    """24 groups; every third without a positive, every fourth shorter than K, with teacher scores."""
    rows = word_groups(24).to_list()
    for index, row in enumerate(rows):
        if index % 3 == 0:
            row["labels"] = [0.0] * len(row["labels"])
        size = 3 if index % 4 == 0 else 6
        row.update({name: row[name][:size] for name in ("passages", "labels")})
        row["teacher_scores"] = [math.sin(7.0 * index + i) for i in range(size)]
    return type(word_groups(1)).from_list(rows)


def test_the_loss_is_the_mean_over_the_groups_that_define_it(make_args):
    groups = ragged_groups()
    trainer = ContrastiveRerankTrainer(small_reranker(spread=0.3), make_args(), train_dataset=groups)
    batch = trainer.data_collator([trainer.train_dataset[0, index] for index in range(6)])
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)

    expected = []
    for scores, labels, mask in zip(outputs["scores"], batch["labels"], batch["mask"], strict=True):
        if labels[mask].any():
            expected.append(torch.nn.functional.cross_entropy(scores[mask], labels[mask].argmax()))
    assert len(expected) == 3  # groups 0 and 3 have no positive, and group 4 lost it when it was cut
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_a_weight_of_two_counts_as_the_group_twice(make_args):
    groups = word_groups(3)
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3), make_args(), train_dataset=groups.add_column("weight", [1.0, 2.0, 0.0])
    )
    rows = [trainer.train_dataset[0, index] for index in range(3)]
    weighted = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    for row in rows:
        row.pop("weight")
    repeated = trainer.compute_loss(trainer.model, trainer.data_collator([rows[0], rows[1], rows[1]]))

    torch.testing.assert_close(weighted, repeated)


def test_a_batch_that_defines_no_loss_gives_zero_and_a_zero_gradient(make_args):
    groups = word_groups(2).map(lambda row: {"labels": [0.0] * len(row["labels"])})
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=groups)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[0, 0]]))
    loss.backward()

    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_the_parts_of_a_mixture_stand_in_the_log_and_add_up(make_args):
    args = make_args(label_weight=0.5, logging_strategy="steps", logging_steps=3)
    trainer = DistillRerankTrainer(small_reranker(), args, train_dataset=ragged_groups())
    trainer.train()

    (first, *_) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss_kl"] > 0 and first["loss_label_infonce"] > 0
    assert first["loss"] == pytest.approx(first["loss_kl"] + first["loss_label_infonce"], abs=2e-4)


def test_checkpoints_written_in_training_hold_every_file_and_no_token(make_args):
    args = make_args(save_strategy="steps", save_steps=2, max_steps=2, hub_token="hf_secret_word")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    trainer.train()
    folder = Path(args.output_dir) / "checkpoint-2"

    names = {path.name for path in folder.iterdir()}
    assert {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"} <= names
    assert not any(b"hf_secret_word" in path.read_bytes() for path in folder.iterdir())
    assert args.hub_token == trainer.args.hub_token == "hf_secret_word"
    pairs = [("water", "fire"), ("rain", "rain on hills")]
    again = Reranker.from_pretrained(folder).predict(pairs)
    torch.testing.assert_close(again, trainer.reranker.predict(pairs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("progress", "epoch"), [(0, 0), (1.0, 1), (2.75, 2)])
def test_the_sampler_is_told_its_epoch_where_the_data_loader_does_not_reach_it(make_args, progress, epoch):
    # with several processes and a resume in the middle of an epoch, accelerate wraps the sampler too deep
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(4))
    sampler = trainer._get_train_sampler()
    trainer.state.epoch = progress
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)

    assert {key[0] for key in sampler} == {epoch}
