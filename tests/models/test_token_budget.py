"""Token budget: what computes fastest, less where it would not fit, and never a change of scores or gradient."""

from __future__ import annotations

import logging

import pytest
import torch

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.models import recompute
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import bind_row_forward
from rerank_trainer.models.token_budget import TokenBudget
from tests.tiny_models import PAIRS, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (1_000_000, 1024),  # 0.3 of it is more than 1,024 tokens of 100 bytes
        (300_000, 512),  # 90,000 bytes are 900 tokens: half of 1,024 fits
        (3_000, 8),  # 900 bytes are 9 tokens
    ],
)
def test_an_automatic_budget_is_halved_until_a_micro_batch_fits(caplog, free, size):
    budget = TokenBudget("auto")
    with caplog.at_level(logging.INFO):
        budget.fit(5000, CPU, bytes_per_token=100.0, free=free)

    assert budget.size(CPU) == size
    assert (f"at most {size} tokens instead of 1024" in caplog.text) is (size < 1024)


def test_a_batch_that_is_smaller_than_the_budget_does_not_lower_it():
    budget = TokenBudget("auto")
    budget.fit(800, CPU, bytes_per_token=100.0, free=300_000)

    assert budget.size(CPU) == 1024


def test_a_budget_that_is_given_is_not_lowered_by_what_is_free():
    budget = TokenBudget(2000)
    budget.fit(5000, CPU, bytes_per_token=100.0, free=10)

    assert budget.size(CPU) == 2000


@pytest.mark.parametrize("value", [None, 0, -3, 1.5, True, "fast", ""], ids=repr)
def test_what_is_no_number_of_tokens_is_refused(value):
    with pytest.raises(ValueError, match=f"the tokens of a micro-batch are {value!r}: expected a number above 0"):
        TokenBudget(value)


def test_digits_of_a_command_line_are_a_number():
    assert TokenBudget("2048").size(CPU) == 2048


def sizes_that_run(reranker):
    """The tokens of each micro-batch that runs from here on."""
    head, sizes = reranker.head, []

    def noted(forward, inputs):
        sizes.append(inputs["input_ids"].numel())
        return head(forward, inputs)

    reranker.head = noted
    return sizes


def test_prediction_with_little_memory_takes_smaller_micro_batches_and_gives_the_same_scores(monkeypatch, caplog):
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    pairs = [(query, f"{number} {passage}") for number in range(5) for query, passage in PAIRS]
    expected = reranker.predict(pairs)
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    sizes = sizes_that_run(reranker)
    monkeypatch.setattr(recompute, "free_bytes", lambda device: 700_000)

    with caplog.at_level(logging.INFO):
        scores = reranker.predict(pairs)

    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert sizes[0] > 512 and 64 < max(sizes[1:]) <= 512  # the first one is what was measured
    assert caplog.text.count("tokens instead of 1024") == 1

    del sizes[:]
    reranker.predict(pairs)
    assert max(sizes) <= 512  # what was measured is known to the next call


def test_prediction_measures_nothing_where_the_budget_is_given(monkeypatch):
    monkeypatch.setattr(recompute, "with_peak_bytes", None)  # calling it would fail
    reranker = Reranker(*tiny_model("bert"), max_length=64)

    assert reranker.predict(PAIRS, max_tokens=1024).shape == (len(PAIRS),)


def gradient(monkeypatch, free):
    """The gradient of a loss over many rows, with so many bytes free, and the most tokens that ran at once."""
    monkeypatch.setattr(recompute, "free_bytes", lambda device: free)
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    sizes = sizes_that_run(reranker)
    bind_row_forward(reranker.model, reranker.row_scorer())
    encoded = [rows[0] for rows in reranker.template.encode([(query, [passage]) for query, passage in PAIRS * 4])]
    rows = lay_rows(encoded, [(i, 0) for i in range(len(encoded))])
    reranker.model.train()
    scores = reranker.model(rows=rows)
    del sizes[0]  # what was measured
    scores.square().mean().backward()
    return torch.cat([p.grad.flatten() for p in reranker.model.parameters() if p.grad is not None]), max(sizes)


def test_training_with_little_memory_takes_smaller_micro_batches_and_gives_the_same_gradient(monkeypatch):
    plenty, most = gradient(monkeypatch, 10**12)
    little, fewer = gradient(monkeypatch, 3_000_000)

    assert most > 512 and fewer <= 256
    torch.testing.assert_close(little, plenty, rtol=1e-5, atol=1e-6 * plenty.abs().max().item())
