"""Shared prefixes: the scores and gradients of whole rows, with fewer tokens run; refused where they would not be."""

from __future__ import annotations

import logging

import pytest
import torch

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.data.templates import Row
from rerank_trainer.models.prefix import share_saved, sharing_rows
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import bind_row_forward
from tests.tiny_models import DECODERS, TEXTS, tiny_model

GROUPS = [(TEXTS[0], TEXTS[1:]), (TEXTS[1] * 2, TEXTS), ("water", [*TEXTS[2:], TEXTS[0] * 9]), (TEXTS[3], [TEXTS[4]])]


def decoder(kind="qwen3", *, spread=0.3, **options):
    model, tokenizer = tiny_model(kind, spread=spread)
    reranker = Reranker(model, tokenizer, max_length=128)
    bind_row_forward(model, reranker.row_scorer(200, **options))
    encoded = reranker.template.encode(GROUPS)
    cells = [(group, passage) for group, rows in enumerate(encoded) for passage in range(len(rows))]
    return model, lay_rows([row for rows in encoded for row in rows], cells)


def scores_and_gradient(kind="qwen3", *, dropout=0.0, **options):
    # less wide than usual: behind weights of 0.3, float32 itself is off by more than 1e-6 (against float64)
    model, rows = decoder(kind, spread=0.1, **options)
    with torch.no_grad():
        model(rows=rows)  # tries whether sharing is exact
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    num_run = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: num_run.append(args[0].numel()))
    model.train()
    torch.manual_seed(3)
    scores = model(rows=rows)
    num_tokens = sum(num_run)
    scores.sin().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return scores.detach(), gradient, num_tokens


@pytest.mark.parametrize(
    ("kind", "recompute"), [*((kind, False) for kind in sorted(DECODERS)), ("qwen3", True)], ids=str
)
def test_scores_and_gradients_are_those_of_whole_rows(kind, recompute):
    scores, gradient, num_tokens = scores_and_gradient(kind, share_prefix=True, recompute=recompute)
    whole_scores, whole_gradient, num_whole = scores_and_gradient(kind, share_prefix=False)

    assert whole_scores.std() > 0.1
    torch.testing.assert_close(scores, whole_scores, rtol=0, atol=1e-6)
    assert (gradient - whole_gradient).norm() < 1e-6 * whole_gradient.norm()
    assert num_tokens < 0.85 * num_whole


def test_what_follows_a_shared_prefix_is_recomputed_with_the_same_dropout():
    options = {"share_prefix": True, "dropout": 0.2}
    _, kept, num_kept = scores_and_gradient(recompute=False, **options)
    _, recomputed, num_recomputed = scores_and_gradient(recompute=True, **options)

    assert torch.equal(kept, recomputed) and num_recomputed == num_kept  # in the forward; the backward runs more
    assert not torch.equal(kept, scores_and_gradient(share_prefix=True, recompute=False)[1])


def test_a_prefix_is_shared_where_it_pays(caplog):
    model, rows = decoder()
    prefixes = model.row_scorer.prefix

    assert len(prefixes.choose(type(model).forward.__get__(model), rows)) == 13  # all but the group of one passage
    few = lay_rows([Row([1, 2, *[7] * 40], None, 2), Row([1, 2, *[8] * 40], None, 2)], [(0, 0), (0, 1)])
    assert prefixes.choose(type(model).forward.__get__(model), few) == []  # 2 of 84 tokens would be saved


def test_tokens_are_counted_once_a_row_with_the_prefix_that_it_shares():
    reranker = Reranker(*tiny_model("qwen3"), max_length=128)
    encoded = reranker.template.encode([(TEXTS[0], [TEXTS[1], TEXTS[2]])])[0]
    counts = []
    scorer = reranker.row_scorer(share_prefix=True, on_forward=counts.append)
    with torch.no_grad():
        scorer(reranker.model, lay_rows(encoded, [(0, 0), (0, 1)]))  # tries sharing, which counts too
        counts.clear()
        scorer(reranker.model, lay_rows(encoded, [(0, 0), (0, 1)]))

    longest = max(len(row.input_ids) for row in encoded)
    assert sum(counts) in (2 * longest, sum(len(row.input_ids) for row in encoded))  # together, or each alone


def test_the_share_saved_counts_each_prefix_once():
    rows = lay_rows([Row([4, 4, 5], None, 2), Row([4, 4, 6], None, 2), Row([4, 7], None, 1)], [(0, 0), (0, 1), (1, 0)])

    assert sharing_rows(rows, pad_token_id=0) == [0, 1]
    assert share_saved(rows, [0, 1]) == 2 / 8


def test_a_row_with_nothing_behind_its_prefix_runs_whole():
    rows = lay_rows([Row([4, 4, 5], None, 2), Row([4, 4], None, 2), Row([4, 4, 0], None, 2)], [(0, 0), (0, 1), (0, 2)])

    assert sharing_rows(rows, pad_token_id=0) == []  # nothing, or only what counts as padding: one row is left


def test_an_encoder_does_not_share_and_says_why(caplog):
    model, rows = decoder("bert")
    with caplog.at_level(logging.INFO), torch.no_grad():
        model(rows=rows)
        model(rows=rows)

    assert caplog.text.count("prefixes are not shared: BertForSequenceClassification is no decoder") == 1


def test_a_model_that_sees_later_tokens_is_found_out(caplog):
    model, rows = decoder()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    plain = type(model.model).forward

    def bidirectional(self, input_ids=None, attention_mask=None, **kwargs):
        full = attention_mask[:, None, None, :].bool().expand(-1, 1, input_ids.shape[1], -1)
        return plain(self, input_ids, attention_mask={"full_attention": full}, **kwargs)

    model.model.forward = bidirectional.__get__(model.model)
    with caplog.at_level(logging.INFO), torch.no_grad():
        model(rows=rows)

    assert "prefixes are not shared: its scores behind a shared prefix are not those of whole rows" in caplog.text


def test_sharing_is_refused_together_with_layer_checkpointing():
    model, rows = decoder(share_prefix=True)
    model.model.layers[0].gradient_checkpointing = True  # as gradient_checkpointing_enable leaves the layers
    model.train()

    with pytest.raises(ValueError, match="share_prefix=True, but layer checkpointing"):
        model(rows=rows)


def test_a_wish_that_an_encoder_cannot_fulfil_is_refused():
    model, rows = decoder("bert", share_prefix=True)

    with pytest.raises(ValueError, match="share_prefix=True, but BertForSequenceClassification is no decoder"):
        model(rows=rows)
