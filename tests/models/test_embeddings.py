"""Embeddings: one lookup a batch gives the values and the gradient of a lookup in every micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.models import embeddings
from rerank_trainer.models.embeddings import plain_table, with_words_looked_up_once
from rerank_trainer.models.recompute import with_saved_bytes
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import bind_row_forward
from tests.tiny_models import PAIRS, tiny_model


class Words(nn.Module):
    """A module whose word embeddings are a given table."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def get_input_embeddings(self):
        return self.table

    def forward(self, ids):
        return self.table(ids)


def looked_up(module, batch, pad, ids):
    """The embeddings of ``ids`` in a batch of tokens."""
    return with_words_looked_up_once(module.forward, module, torch.tensor(batch), pad_token_id=pad)(torch.tensor(ids))


def gradients(model, rows):
    model.zero_grad()
    scores = model(rows=rows)
    scores.square().sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2", "qwen3", "gemma3"])
def test_scores_and_gradient_are_those_of_lookups_in_the_whole_table(kind, recompute, monkeypatch):
    model, tokenizer = tiny_model(kind)
    reranker = Reranker(model, tokenizer, max_length=64)
    bind_row_forward(model, reranker.row_scorer(60, recompute=recompute))
    encoded = [rows[0] for rows in reranker.template.encode([(query, [passage]) for query, passage in PAIRS])]
    rows = lay_rows(encoded, [(i, 0) for i in range(len(encoded))])
    scores, once = gradients(model, rows)
    monkeypatch.setattr(embeddings, "plain_table", lambda module: None)
    plain_scores, plain = gradients(model, rows)

    assert torch.equal(scores, plain_scores)
    assert once.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(once[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item(), msg=name)


def test_a_lookup_makes_a_gradient_of_the_words_it_looks_up_and_not_of_the_table():
    module = Words(nn.Embedding(5, 2))
    states = looked_up(module, [3, 1, 3], 0, [[3, 1], [3, 0]])

    assert states.grad_fn.next_functions[0][0].name() == "IndexBackward0"
    states.sum().backward()
    assert module.table.weight.grad[:, 0].tolist() == [1.0, 1.0, 0.0, 2.0, 0.0]  # how often each word was looked up
    assert "forward" not in vars(module.table)


def test_padding_has_no_gradient_where_the_table_gives_it_none():
    module = Words(nn.Embedding(5, 2, padding_idx=1))
    looked_up(module, [3], 1, [[3, 1]]).sum().backward()

    assert module.table.weight.grad[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_tokens_that_the_batch_does_not_hold_are_looked_up_in_the_table():
    module = Words(nn.Embedding(5, 2))
    states = looked_up(module, [3], 0, [3, 4])

    assert torch.equal(states, module.table.weight[[3, 4]])


def test_the_lookup_keeps_no_copy_of_the_table():
    module = Words(nn.Embedding(1000, 8))
    _, saved = with_saved_bytes(lambda: looked_up(module, [3, 4], 0, [3, 4]), without=module.parameters())

    assert saved <= 16 + 24  # two places, and the three words of the batch, in int64


@pytest.mark.parametrize(
    "table",
    [
        nn.Embedding(5, 2, max_norm=1.0),
        nn.Embedding(5, 2, sparse=True),
        nn.Embedding(5, 2, scale_grad_by_freq=True),
        nn.Embedding(5, 2).requires_grad_(False),
        nn.Linear(5, 2),
    ],
    ids=["norms", "sparse", "by frequency", "frozen", "linear"],
)
def test_tables_that_do_more_than_look_up_run_as_they_are(table):
    assert plain_table(Words(table)) is None


def test_a_module_without_word_embeddings_runs_as_it_is():
    assert plain_table(nn.Linear(2, 2)) is None
