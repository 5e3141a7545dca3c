"""Features of the Transformers Trainer that bear on groups do what they promise there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_trainer.models import dropout
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers import evaluation_hooks
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.tiny_models import tiny_model
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.runs import SGD, furthest, train, uneven_groups


def weights(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    trainer = train(folder, **{**SGD, "num_train_epochs": 1, **options})
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def test_a_swap_planted_in_the_scatter_of_scores_is_seen_by_the_comparison_of_weights(tmp_path, monkeypatch):
    whole = weights(tmp_path, per_device_train_batch_size=8)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert furthest(whole, weights(tmp_path, **cut)) < 1e-6
    scatter = evaluation_hooks.scatter_scores

    def swapped(scores, cells, shape):
        cells = cells.clone()
        cells[:2] = cells[:2].flip(0)  # the first two passages of the first group change places
        return scatter(scores, cells, shape)

    monkeypatch.setattr(evaluation_hooks, "scatter_scores", swapped)
    assert furthest(whole, weights(tmp_path, **cut)) > 1e-3


def loss_and_gradient(make_args, rows, *, max_tokens="auto", distil=False):
    options = {"label_weight": 0.4} if distil else {}
    trainer = (DistillRerankTrainer if distil else ContrastiveRerankTrainer)(
        small_reranker(spread=0.3),
        make_args(max_tokens_per_micro_batch=max_tokens, **options),
        train_dataset=uneven_groups(8),
    )
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def rows_of(groups):
    return [{**group, "row": index} for index, group in enumerate(groups)]


def assert_same_step(one, other):
    torch.testing.assert_close(one[0], other[0], atol=1e-6, rtol=0)
    assert one[1].abs().max() > 0.1
    torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distil", [False, True], ids=["one loss", "mixture"])
def test_the_order_of_passages_changes_neither_loss_nor_gradient(make_args, distil):
    rows, shuffled = rows_of(uneven_groups(8)), []
    for row in rows:
        order = random.Random(row["row"]).sample(range(len(row["passages"])), len(row["passages"]))
        names = ("passages", "labels", "teacher_scores")
        shuffled.append({**row, **{name: [row[name][i] for i in order] for name in names}})

    assert shuffled[1]["passages"] != rows[1]["passages"]
    assert_same_step(*(loss_and_gradient(make_args, given, distil=distil) for given in (rows, shuffled)))


@pytest.mark.parametrize("distil", [False, True], ids=["one loss", "mixture"])
def test_padding_of_tokens_and_of_groups_changes_neither_loss_nor_gradient(make_args, distil):
    rows = rows_of(uneven_groups(8))[1:4]
    # one group more, that counts nothing, twice as wide and of the greatest length: all others are padded to it
    wide = {**rows[0], "passages": ["ship " * 60] * 12, "labels": [0.0] * 12, "teacher_scores": [1.0] * 12}
    padded = [*rows, {**wide, "weight": 0.0}]

    one = loss_and_gradient(make_args, rows, max_tokens=1, distil=distil)  # each row alone, no padding
    assert_same_step(one, loss_and_gradient(make_args, padded, max_tokens=100_000, distil=distil))


def test_activation_checkpointing_changes_no_weight_with_dropout_on(tmp_path, monkeypatch):
    monkeypatch.setattr(dropout, "drops", lambda module: False)  # ours gives way to torch's there and draws otherwise
    plain = weights(tmp_path, dropout=0.1)
    again = weights(tmp_path, dropout=0.1, activation_checkpointing=True)

    assert furthest(plain, again) < 1e-6
    assert furthest(plain, weights(tmp_path)) > 1e-3  # dropout was on


def test_neftune_adds_noise_in_training_and_none_in_evaluation(tmp_path):
    def losses(**options):
        options = {"eval_strategy": "epoch", "learning_rate": 0.0, "num_train_epochs": 1, **options}
        history = train(tmp_path, **{**SGD, **options}).state.log_history
        return [[entry[name] for entry in history if name in entry] for name in ("loss", "eval_loss")]

    plain, noisy = losses(), losses(neftune_noise_alpha=5.0)
    assert all(abs(a - b) > 1e-3 for a, b in zip(plain[0], noisy[0], strict=True))
    assert plain[1] == noisy[1]


@pytest.mark.parametrize("kind", ["all", "non_padding"])
def test_tokens_seen_are_those_of_every_pair(make_args, kind):
    groups = word_groups(6, group_size=4)  # no more than K: every passage trains
    args = make_args(include_num_input_tokens_seen=kind, num_train_epochs=2)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=groups)
    trainer.train()
    tokenizer = trainer.reranker.tokenizer
    pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]

    expected = sum(len(tokenizer(*pair)["input_ids"]) for pair in pairs)
    assert trainer.state.num_input_tokens_seen == 2 * expected


def test_evaluation_before_training_stands_first_in_the_log(make_args):
    args = make_args(eval_on_start=True, logging_strategy="steps", logging_steps=1)
    trainer = ContrastiveRerankTrainer(
        small_reranker(), args, train_dataset=word_groups(4), eval_dataset=word_groups(5, seed=1)
    )
    trainer.train()

    assert "eval_ndcg@10" in trainer.state.log_history[0] and trainer.state.log_history[0]["step"] == 0


def test_scores_moved_to_the_cpu_in_between_give_the_same_metrics(make_args):
    groups = uneven_groups(11).map(lambda row: {"labels": [float("water" in p) for p in row["passages"]]})
    figures = []
    for options in ({}, {"eval_accumulation_steps": 2}, {"per_device_eval_batch_size": 3}):
        trainer = ContrastiveRerankTrainer(small_reranker(), make_args(**options), eval_dataset=groups)
        figures.append({name: value for name, value in trainer.evaluate().items() if "@" in name or "map" in name})

    assert len(figures[0]) == 4 and figures[1] == pytest.approx(figures[0]) and figures[2] == pytest.approx(figures[0])


def test_prediction_of_the_loss_alone_leaves_the_metrics_out(make_args):
    args = make_args(prediction_loss_only=True)
    figures = ContrastiveRerankTrainer(small_reranker(), args, eval_dataset=word_groups(5)).evaluate()

    assert figures["eval_loss"] > 0 and not any("@" in name for name in figures)


def test_an_incomplete_last_batch_is_dropped_when_asked(make_args):
    steps = []
    for drop in (False, True):
        args = make_args(dataloader_drop_last=drop)
        trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(10))
        steps.append(trainer.train().global_step)

    assert steps == [3, 2]  # 10 groups, 4 a step


def test_the_seed_of_the_data_alone_decides_order_and_passages(make_args):
    def first_batch(**seeds):
        trainer = ContrastiveRerankTrainer(small_reranker(), make_args(**seeds), train_dataset=uneven_groups(12))
        return next(iter(trainer.get_train_dataloader()))

    batches = [first_batch(seed=1, data_seed=5), first_batch(seed=2, data_seed=5), first_batch(seed=1, data_seed=6)]
    rows = [(batch["row"].tolist(), batch["student"]["input_ids"].tolist()) for batch in batches]
    assert rows[0] == rows[1] != rows[2]


def test_a_checkpoint_of_the_model_only_holds_no_optimizer_and_opens(make_args):
    args = make_args(save_only_model=True, save_strategy="steps", save_steps=1, max_steps=1)
    ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(4)).train()
    folder = Path(args.output_dir) / "checkpoint-1"

    assert not (folder / "optimizer.pt").exists()
    assert Reranker.from_pretrained(folder).predict([("water", "fire")]).shape == (1,)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd"])
def test_optimizers_move_a_fresh_head_at_its_own_rate(make_args, optim):
    args = make_args(optim=optim, learning_rate=1e-4, head_learning_rate=5e-3, weight_decay=0.01, max_steps=2)
    fresh = ["classifier.bias", "classifier.weight"]
    reranker = Reranker(*tiny_model("bert", spread=0.1), max_length=48, fresh_parameters=fresh)
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=word_groups(8))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    trainer.train()

    for name, parameter in trainer.model.named_parameters():
        assert rates[id(parameter)] == (5e-3 if name in fresh else 1e-4), name
    assert all((trainer.model.get_parameter(name) - before[name]).abs().max() > 0 for name in ["classifier.weight"])
