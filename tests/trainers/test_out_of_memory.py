"""Out of memory in the backward: the step begins anew, and ends as with smaller micro-batches from the start."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import TrainerCallback

from rerank_trainer.models import recompute
from rerank_trainer.models.memory import with_saved_bytes
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.runs import SGD, uneven_groups

CPU = torch.device("cpu")
BUDGET = 200


class ScarceBackward(torch.autograd.Function):
    """Passes the scores of a micro-batch through; in the n-th backward of all, memory runs out."""

    calls = 0
    fails_at: frozenset[int] = frozenset()

    @staticmethod
    def forward(ctx, scores):
        return scores.clone()

    @staticmethod
    def backward(ctx, gradient):
        ScarceBackward.calls += 1
        if ScarceBackward.calls in ScarceBackward.fails_at:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return gradient


class CountBackwards(TrainerCallback):
    """Keeps how many backwards of micro-batches there were by the end of each step."""

    def __init__(self, counts):
        self.counts = counts

    def on_step_end(self, args, state, control, **kwargs):
        self.counts.append(ScarceBackward.calls)


def make_trainer(make_args, *, fails_at=(), dropout=0.2, groups=None, **options):
    """A trainer of a model with dropout, whose n-th backward of a micro-batch runs out of memory."""
    reranker = small_reranker(spread=0.3)
    for module in reranker.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    head = reranker.head
    reranker.head = lambda forward, inputs: ScarceBackward.apply(head(forward, inputs))
    ScarceBackward.calls, ScarceBackward.fails_at = 0, frozenset(fails_at)
    options = {"recompute_activations": True, "max_tokens_per_micro_batch": BUDGET, **SGD, **options}
    args = make_args(logging_strategy="steps", logging_steps=1, max_steps=3, **options)
    return ContrastiveRerankTrainer(reranker, args, train_dataset=groups or uneven_groups(32))


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def figures(trainer):
    timing = ("runtime", "per_second", "flos")
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{k: v for k, v in line.items() if not any(word in k for word in timing)} for line in lines]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_backward_that_runs_out_of_memory_ends_as_smaller_micro_batches_from_the_start_do(
    make_args, caplog, accumulated
):
    options = {"gradient_accumulation_steps": accumulated}
    smaller = make_trainer(make_args, max_tokens_per_micro_batch=BUDGET // 2, **options)
    smaller.train()
    # in the last backward of all that the first step would have: all of its gradients but one are there
    plain = make_trainer(make_args, **options)
    counts = []
    plain.add_callback(CountBackwards(counts))
    plain.train()
    trainer = make_trainer(make_args, fails_at=[counts[0]], **options)
    trainer.train()

    assert ScarceBackward.calls > counts[-1] and counts[0] > 1
    assert trainer.model.row_scorer.budget.size(CPU) == BUDGET // 2
    assert f"at most {BUDGET // 2} tokens instead of {BUDGET}" in caplog.text
    assert torch.equal(weights(trainer), weights(smaller))
    assert (weights(trainer) - weights(plain)).abs().max() > 1e-5  # dropout: other micro-batches draw otherwise
    # every group counts once. The loss of a batch that was accumulated before memory ran out has been logged already
    assert [line["score_std"] for line in figures(trainer)[1:]] == [line["score_std"] for line in figures(smaller)[1:]]
    if accumulated == 1:
        assert figures(trainer) == figures(smaller)


def test_memory_may_run_out_again_and_again_and_without_dropout_the_weights_stay(make_args):
    undisturbed = make_trainer(make_args, dropout=0.0, recompute_activations=None)
    undisturbed.train()
    trainer = make_trainer(make_args, dropout=0.0, fails_at=[1, 2, 3], recompute_activations=None)
    trainer.train()

    assert trainer.model.row_scorer.budget.size(CPU) == BUDGET // 8
    torch.testing.assert_close(weights(trainer), weights(undisturbed), rtol=0, atol=1e-6)


def test_an_error_is_left_alone_where_nothing_smaller_can_be_tried(make_args):
    trainer = make_trainer(make_args, fails_at=range(1, 100))
    with pytest.raises(torch.OutOfMemoryError, match="^tried to allocate more than there is"):
        trainer.train()


def test_several_processes_are_told_what_to_set(make_args, monkeypatch):
    trainer = make_trainer(make_args, fails_at=[1])
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    batch = trainer.data_collator([trainer.train_dataset[(0, i)] for i in range(4)])
    remedy = re.escape("Set max_tokens_per_micro_batch=100 and recompute_activations=True")

    with pytest.raises(torch.OutOfMemoryError, match=f"the other processes would wait for this one.*{remedy}"):
        trainer.training_step(trainer.model, batch)


def test_gradients_of_another_hand_are_not_cleared(make_args):
    trainer = make_trainer(make_args, fails_at=[1])
    parameter = next(trainer.model.parameters())
    parameter.grad = torch.ones_like(parameter)
    batch = trainer.data_collator([trainer.train_dataset[(0, i)] for i in range(4)])

    with pytest.raises(torch.OutOfMemoryError, match="gradients of batches that this training did not run"):
        trainer.training_step(trainer.model, batch)


def test_other_errors_pass(make_args):
    trainer = make_trainer(make_args)
    trainer.reranker.head = trainer.model.row_scorer.head = lambda forward, inputs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def bytes_of_a_step(make_args, monkeypatch, num_passages):
    """What autograd keeps for a batch of one group, with memory for little more than 16 passages."""
    monkeypatch.setattr(recompute, "free_bytes", lambda device: 12_000_000)
    groups = word_groups(2, group_size=num_passages)
    options = {"passages_per_query": num_passages, "per_device_train_batch_size": 1, "num_train_epochs": 1}
    trainer = make_trainer(make_args, groups=groups, recompute_activations=None, **options)
    batch = trainer.data_collator([trainer.train_dataset[(0, 0)]])
    parameters = list(trainer.model.parameters())
    for _ in range(2):  # a micro-batch of the first batch is measured
        loss, saved = with_saved_bytes(lambda: trainer.compute_loss(trainer.model, batch), without=parameters)
    loss.backward()
    trainer.train()
    assert trainer.state.global_step == 3
    return saved, trainer.model.row_scorer.recomputation.active


def test_256_passages_train_where_16_do(make_args, monkeypatch):
    kept, is_recomputed = bytes_of_a_step(make_args, monkeypatch, 16)
    recomputed, are_recomputed = bytes_of_a_step(make_args, monkeypatch, 256)

    assert not is_recomputed and are_recomputed
    assert recomputed < kept
