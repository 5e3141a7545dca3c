"""Recomputation: the same gradient, dropout included; memory that does not grow; decided by what memory is left."""

from __future__ import annotations

import logging

import pytest
import torch

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.models import recompute
from rerank_trainer.models.recompute import Recomputation, with_saved_bytes
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer, bind_row_forward
from tests.models.test_micro_batches import ROWS
from tests.tiny_models import PAIRS, tiny_model


def trained_gradient(*, recompute, max_tokens=120, dropout=0.2, autocast=False):
    """The gradient of a loss over all pairs, dropout on, and how many bytes autograd kept."""
    model, tokenizer = tiny_model("bert")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    reranker = Reranker(model, tokenizer, max_length=64)
    bind_row_forward(model, reranker.row_scorer(max_tokens, recompute=recompute))
    encoded = [rows[0] for rows in reranker.template.encode([(query, [passage]) for query, passage in PAIRS])]
    rows = lay_rows(encoded, [(i, 0) for i in range(len(encoded))])
    model.train()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        scores, saved = with_saved_bytes(lambda: model(rows=rows), without=model.parameters())
    scores.float().square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), saved


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_recomputed_activations_give_the_same_gradient_with_dropout_on(autocast):
    kept, bytes_kept = trained_gradient(recompute=False, autocast=autocast)
    recomputed, bytes_recomputed = trained_gradient(recompute=True, autocast=autocast)

    assert kept.abs().max() > 0.01
    assert torch.equal(kept, recomputed)
    assert bytes_recomputed < bytes_kept / 20
    assert not torch.equal(kept, trained_gradient(recompute=False, dropout=0.0, autocast=autocast)[0])


@pytest.mark.parametrize(("free", "active"), [(1e9, False), (1e5, True)])
def test_activations_are_recomputed_where_they_would_not_fit(monkeypatch, caplog, free, active):
    monkeypatch.setattr(recompute, "free_bytes", lambda device: free)
    recomputation = Recomputation()
    weight = torch.ones(100, 100, requires_grad=True)
    recomputation.run(lambda: torch.ones(10, 100) @ weight, num_tokens=10, parameters=[weight])  # 400 bytes a token

    with caplog.at_level(logging.INFO):
        recomputation.begin(1000, torch.device("cpu"))

    assert recomputation.active is active
    assert ("would take 0.0 GB of the 0.0 GB left" in caplog.text) is active


def test_the_first_batch_recomputes_what_comes_after_the_micro_batch_that_was_measured(monkeypatch):
    monkeypatch.setattr(recompute, "free_bytes", lambda device: 1e5)
    recomputation = Recomputation()
    weight = torch.ones(100, 100, requires_grad=True)
    recomputation.begin(1000, torch.device("cpu"))
    ran = []

    def forward():
        ran.append(1)
        return (torch.ones(10, 100) @ weight).sum()

    scores = [recomputation.run(forward, num_tokens=10, parameters=[weight]) for _ in range(3)]
    torch.stack(scores).sum().backward()

    assert len(ran) == 5  # the first is kept, the other two run again in the backward


def test_nothing_is_recomputed_without_a_backward(monkeypatch):
    monkeypatch.setattr(recompute, "checkpoint", None)  # calling it would fail
    with torch.no_grad():
        assert Recomputation(True).run(lambda: torch.ones(2), num_tokens=2).tolist() == [1, 1]


def scarce_memory(limit):
    """A head that has memory for ``limit`` tokens of a micro-batch, and notes the sizes that ran."""

    def head(forward, inputs):
        if inputs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError(f"tried to run {inputs['input_ids'].numel()} tokens")
        ran.append(inputs["input_ids"].numel())
        return (inputs["input_ids"] * inputs["attention_mask"]).sum(dim=1).float()

    ran: list[int] = []
    return head, ran


def test_where_memory_runs_out_micro_batches_shrink_and_scores_stay(caplog):
    head, ran = scarce_memory(limit=3)
    scorer = RowScorer(head, pad_token_id=0, padding_side="right", max_tokens=12)

    assert scorer(lambda: None, ROWS).tolist() == [18, 8, 19]
    assert max(ran) == 3 and scorer.budget.size(torch.device("cpu")) == 3
    assert "at most 6 tokens instead of 12" in caplog.text and "at most 3 tokens instead of 6" in caplog.text


def test_a_row_that_does_not_fit_alone_is_an_error():
    head, _ = scarce_memory(limit=2)
    scorer = RowScorer(head, pad_token_id=0, padding_side="right", max_tokens=12)

    with pytest.raises(torch.OutOfMemoryError, match="tried to run 3 tokens"):
        scorer(lambda: None, ROWS)
