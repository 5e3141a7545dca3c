"""Learning rates: the published table at its points, and fresh parameters in groups of their own."""

from __future__ import annotations

import pytest
import torch

from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.learning_rates import default_head_learning_rate, default_learning_rate, split_off_head
from tests.trainers.conftest import small_reranker, word_groups


@pytest.mark.parametrize(("size", "rate"), [(17e6, 2.4e-4), (68e6, 3e-5), (1e9, 3e-6), (1e6, 2.4e-4), (7e9, 3e-6)])
def test_published_sizes_have_their_published_rates(size, rate):
    assert default_learning_rate(int(size)) == pytest.approx(rate)


def test_between_published_sizes_the_rate_is_a_geometric_mean():
    assert default_learning_rate(int((17e6 * 32e6) ** 0.5)) == 1.7e-4  # sqrt(2.4e-4 * 1.2e-4) is 1.697e-4


@pytest.mark.parametrize(("rate", "head"), [(1e-5, 1e-4), (2e-4, 1e-3), (3e-3, 3e-3)])
def test_a_fresh_head_learns_ten_times_as_fast_up_to_a_thousandth(rate, head):
    assert default_head_learning_rate(rate) == pytest.approx(head)


def test_fresh_parameters_move_to_groups_that_keep_their_weight_decay():
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)})
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters["body.weight"], parameters["head.weight"]], "weight_decay": 0.1},
            {"params": [parameters["body.bias"], parameters["head.bias"]], "weight_decay": 0.0},
        ],
        lr=1e-5,
    )
    split_off_head(optimizer, model, ["head.weight", "head.bias"], 1e-3)

    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {name: found[id(parameter)] for name, parameter in parameters.items()} == {
        "body.weight": (1e-5, 0.1),
        "body.bias": (1e-5, 0.0),
        "head.weight": (1e-3, 0.1),
        "head.bias": (1e-3, 0.0),
    }


def test_the_trainer_takes_size_and_head_into_account_and_leaves_the_arguments_alone(make_args):
    reranker = small_reranker()
    reranker.fresh_parameters = ("classifier.weight", "classifier.bias")
    args = make_args(learning_rate=None)
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=word_groups(4))
    optimizer = trainer.create_optimizer()

    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(reranker.model.classifier.weight)] == pytest.approx(1e-3)
    assert rates[id(reranker.model.bert.embeddings.word_embeddings.weight)] == pytest.approx(2.4e-4)
    assert args.learning_rate is None
