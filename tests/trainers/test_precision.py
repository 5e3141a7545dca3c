"""Precision in training: bfloat16 up to evaluation, its attention and its warning; float16 with a scaled loss."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from rerank_trainer.evaluation.evaluator import evaluate_groups
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.trainers.conftest import small_reranker, word_groups


def test_bfloat16_trains_and_its_evaluation_finds_what_prediction_in_bfloat16_finds(make_args):
    groups = word_groups(16, seed=4)
    args = make_args(bf16=True, num_train_epochs=3, learning_rate=5e-3, eval_metrics=["ndcg@10"])
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(48), eval_dataset=groups)
    before = trainer.evaluate()["eval_ndcg@10"]
    trainer.train()
    after = trainer.evaluate()["eval_ndcg@10"]

    def predict(pairs):
        return trainer.reranker.predict(pairs, autocast_dtype=torch.bfloat16)

    assert after > before + 0.1
    assert evaluate_groups(groups, predict, metrics=["ndcg@10"])["ndcg@10"] == pytest.approx(after, abs=0.02)


class Overflow(TrainerCallback):
    """Scales the loss out of float16's range in one step, and keeps the weights before each step and after the last."""

    def __init__(self, trainer: ContrastiveRerankTrainer, *, at_step: int) -> None:
        self.trainer, self.at_step, self.weights = trainer, at_step, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.keep()
        if state.global_step == self.at_step:
            self.trainer.accelerator.scaler._scale.fill_(2.0**120)

    def on_train_end(self, args, state, control, **kwargs):
        self.keep()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step - 1 == self.at_step:
            self.scale_after = self.trainer.accelerator.scaler.get_scale()
            self.trainer.accelerator.scaler._scale.fill_(1024.0)

    def keep(self) -> None:
        self.weights.append(copy.deepcopy(self.trainer.model.state_dict()))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_step_of_float16_that_overflows_is_skipped_and_the_weights_stay_finite(make_args, monkeypatch):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(warmup_steps=0), train_dataset=word_groups(16))
    # accelerate has no float16 on a CPU: the accelerator is set up here as it sets itself up on a GPU
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
    trainer.args.fp16 = trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    overflow = Overflow(trainer, at_step=1)
    trainer.add_callback(overflow)
    trainer.train()

    moved = [
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in zip(overflow.weights, overflow.weights[1:], strict=False)
    ]
    assert moved == [True, False, True, True]
    assert overflow.scale_after == 2.0**119  # a skipped step halves it
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_bfloat16_is_warned_of_where_the_processor_only_emulates_it(make_args, monkeypatch, caplog):
    named = "bf16=True: this processor has no instructions"
    for bf16, supported, warnings in ((True, False, 1), (True, True, 0), (False, False, 0)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda supported=supported: {"avx512_bf16": supported})
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ContrastiveRerankTrainer(small_reranker(), make_args(bf16=bf16), train_dataset=word_groups(4))
        assert caplog.text.count(named) == warnings


def test_a_model_given_by_name_trains_with_the_attention_that_is_fastest_in_its_precision(make_args, tmp_path):
    small_reranker().save_pretrained(tmp_path / "model")

    def attention(model, **options):
        return ContrastiveRerankTrainer(model, make_args(**options)).model.config._attn_implementation

    name, own = str(tmp_path / "model"), {"model_init_kwargs": {"attn_implementation": "sdpa"}}
    assert attention(name, bf16=True) == "eager"
    assert attention(name) == "sdpa"
    assert attention(name, bf16=True, **own) == "sdpa"
    assert attention(small_reranker(), bf16=True) == "sdpa"  # a model of the user's own keeps what it has
