"""Recomputation: the same gradient, dropout included; memory that does not grow; decided by what memory is left."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.models import recompute
from rerank_trainer.models.heads import LogitHead
from rerank_trainer.models.memory import with_saved_bytes
from rerank_trainer.models.recompute import Recomputation
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer, bind_row_forward
from tests.models.test_micro_batches import ROWS
from tests.tiny_models import PAIRS, tiny_model


def trained_gradient(*, recompute, max_tokens=120, dropout=0.2, autocast=False, kind="bert", lora=False, head=None):
    """The gradient of a loss over all pairs, dropout on, and how many bytes autograd kept."""
    model, tokenizer = tiny_model(kind)
    if lora:
        options = {"task_type": "SEQ_CLS", "r": 4, "lora_dropout": dropout, "init_lora_weights": False}
        model = get_peft_model(model, LoraConfig(**options))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    reranker = Reranker(model, tokenizer, max_length=64)
    reranker.head = head or reranker.head
    bind_row_forward(model, reranker.row_scorer(max_tokens, recompute=recompute))
    encoded = [rows[0] for rows in reranker.template.encode([(query, [passage]) for query, passage in PAIRS])]
    rows = lay_rows(encoded, [(i, 0) for i in range(len(encoded))])
    model.train()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        scores, saved = with_saved_bytes(lambda: model(rows=rows), without=model.parameters())
    scores.float().square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), saved


# peft asks Transformers under a name that is going
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("kind", "lora"), [("bert", False), ("bert", True), ("qwen3", True)])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_recomputed_activations_give_the_same_gradient_with_dropout_on(kind, lora, autocast):
    options = {"kind": kind, "lora": lora, "autocast": autocast}
    kept, bytes_kept = trained_gradient(recompute=False, **options)
    recomputed, bytes_recomputed = trained_gradient(recompute=True, **options)

    assert kept.abs().max() > 0.01
    assert torch.equal(kept, recomputed)
    assert bytes_recomputed < bytes_kept / 10  # a decoder keeps what runs for the prefixes that its rows share
    assert not torch.equal(kept, trained_gradient(recompute=False, dropout=0.0, **options)[0])


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


def test_what_a_token_takes_is_measured_again_when_rows_are_longer_than_any_before(monkeypatch):
    monkeypatch.setattr(recompute, "free_bytes", lambda device: 1e6)
    recomputation = Recomputation()
    weight = torch.ones(100, 100, requires_grad=True)

    def run(width, longest):  # 400 bytes a token and unit of width
        options = {"num_tokens": 10, "longest": longest, "parameters": [weight]}
        recomputation.run(lambda: torch.ones(10 * width, 100) @ weight, **options)
        recomputation.begin(1000, torch.device("cpu"))
        return recomputation.active

    assert [run(1, 5), run(4, 5), run(4, 6)] == [False, False, True]  # 0.4 MB, not measured, 1.6 MB of 1 MB


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


def test_a_forward_that_ran_out_of_memory_draws_the_dropout_of_smaller_micro_batches_from_the_start():
    def scarce(forward, inputs):
        nonlocal num_forwards
        num_forwards += 1
        if num_forwards == 3:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return LogitHead()(forward, inputs)

    num_forwards = 0
    interrupted, _ = trained_gradient(recompute=True, max_tokens=240, head=scarce)

    assert torch.equal(interrupted, trained_gradient(recompute=True, max_tokens=120)[0])
    assert not torch.equal(interrupted, trained_gradient(recompute=True, max_tokens=240)[0])


def test_prediction_goes_on_in_smaller_micro_batches_where_memory_runs_out():
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    expected = reranker.predict(PAIRS)
    head, sizes = reranker.head, []

    def scarce(forward, inputs):
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 150:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return head(forward, inputs)

    reranker = Reranker(reranker.model, reranker.tokenizer, max_length=64)
    reranker.head = scarce
    torch.testing.assert_close(reranker.predict(PAIRS), expected, atol=1e-5, rtol=0)
    del sizes[:]
    reranker.predict(PAIRS)

    assert max(sizes) <= 150  # the next call does not run out again


def test_freed_memory_is_handed_back_while_micro_batches_are_recomputed(monkeypatch):
    trims = []
    monkeypatch.setattr(recompute, "give_back_freed_memory", lambda: trims.append(1))
    recomputation = Recomputation(True)
    recomputation.begin(170, torch.device("cpu"))
    weight = torch.ones(3, 3, requires_grad=True)
    scores = [recomputation.run(lambda: (torch.ones(10, 3) @ weight).sum(), num_tokens=10) for _ in range(17)]

    assert len(trims) == 2  # after 8 and 16
    torch.stack(scores).sum().backward()
    assert len(trims) == 4  # 34 runs in all
    with torch.no_grad():
        for _ in range(17):
            recomputation.run(lambda: weight.sum(), num_tokens=10)
    assert len(trims) == 4


@pytest.mark.parametrize("agree", [None, lambda own: own], ids=["alone", "in step"])
def test_random_numbers_are_replayed_on_the_device_of_the_rows(monkeypatch, agree):
    """On a GPU dropout draws there, and PyTorch replays what was drawn on the devices of the tensors it is given."""
    devices = []

    def noting(function, *inputs, **options):
        devices.append([tensor.device for tensor in inputs])
        return function(*inputs)

    monkeypatch.setattr(recompute, "checkpoint", noting)
    weight = torch.ones(1, requires_grad=True)
    scorer = RowScorer(
        lambda forward, inputs: weight * inputs["input_ids"].sum(dim=1).float(),
        pad_token_id=0,
        padding_side="right",
        max_tokens=4,
        recompute=True,
        agree=agree,
    )
    scorer(lambda: None, ROWS)

    assert len(devices) > 1 and all(each == [ROWS["lengths"].device] for each in devices)
