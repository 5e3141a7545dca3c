"""Dropout on the CPU: the rate, the mean and the gradient of torch's, replayed from torch's own source of chance."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from rerank_trainer.models import dropout
from rerank_trainer.models.dropout import drops, quick_dropout, with_quick_dropout
from tests.tiny_models import tiny_model


class Dropping(nn.Module):
    """Drops once as a layer and once as a function."""

    def __init__(self, rate):
        super().__init__()
        self.layer, self.rate = nn.Dropout(rate), rate

    def forward(self, states):
        return functional.dropout(self.layer(states), p=self.rate, training=self.training)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_share_dropped_and_the_scale_of_the_rest_are_those_of_the_rate(rate, dtype):
    dropped = quick_dropout(torch.ones(100_000, dtype=dtype), rate, generator=torch.Generator().manual_seed(0))

    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 100_000) ** 0.5)  # four standard errors
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)], rel=1e-2 if dtype.itemsize == 2 else 1e-4)


def test_neighbours_that_come_from_one_random_number_are_dropped_independently():
    dropped = quick_dropout(torch.ones(40_000, 4), 0.5, generator=torch.Generator().manual_seed(0)) == 0
    correlations = torch.corrcoef(dropped.T.double()) - torch.eye(4)

    assert correlations.abs().max() < 4 / 200  # four standard errors
    assert torch.allclose(dropped.double().mean(dim=0), torch.full((4,), 0.5).double(), atol=0.01)


def test_the_gradient_passes_where_the_states_were_kept():
    states = torch.ones(3, 5, requires_grad=True)
    dropped = quick_dropout(states, 0.5)
    dropped.sum().backward()

    assert torch.equal(states.grad, dropped.detach())  # 0 or the scale, as the ones became


def test_layers_and_functions_drop_by_it_and_by_the_state_of_torchs_random_numbers(monkeypatch):
    rates = []
    monkeypatch.setattr(dropout, "quick_dropout", lambda states, p: rates.append(p) or quick_dropout(states, p))
    module = Dropping(0.25).train()
    forward = with_quick_dropout(module.forward, module)
    torch.manual_seed(1)
    first = forward(torch.ones(50))
    torch.manual_seed(1)

    assert torch.equal(forward(torch.ones(50)), first)
    assert rates == [0.25] * 4
    module(torch.ones(50))
    assert rates == [0.25] * 4  # outside the forward given, torch's own runs


@pytest.mark.parametrize(
    ("module", "expected"),
    [(Dropping(0.1).train(), False), (Dropping(0.1).eval(), True), (Dropping(0.0).train(), True), (None, True)],
    ids=["training", "evaluating", "rate 0", "no module"],
)
def test_a_forward_without_dropout_stays_as_it_is(module, expected):
    forward = Dropping(0.1).forward

    assert (with_quick_dropout(forward, module) is forward) is expected


def test_layers_that_run_again_in_the_backward_keep_torchs_dropout():
    module = Dropping(0.1).train()
    module.layer.gradient_checkpointing = True

    assert with_quick_dropout(module.forward, module) == module.forward


def test_a_rate_in_the_configuration_alone_counts():
    model, _ = tiny_model("qwen3")
    assert not drops(model)

    model.config.attention_dropout = 0.1
    assert drops(model)
