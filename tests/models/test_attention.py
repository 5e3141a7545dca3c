"""Attention: chosen by a table where Transformers' default was loaded, and never at the cost of a score."""

from __future__ import annotations

import logging

import pytest
import torch

from rerank_trainer.models.attention import choose_attention
from rerank_trainer.models.reranker import Reranker
from tests.tiny_models import KINDS, PAIRS, tiny_model

TRAINING_ON_CPU = {"device": torch.device("cpu"), "autocast_dtype": torch.bfloat16, "max_length": 512}


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_chosen_changes_no_score_beyond_rounding(kind):
    reranker = Reranker(*tiny_model(kind), max_length=48)
    before, had = reranker.predict(PAIRS), reranker.model.config._attn_implementation
    chosen = choose_attention(reranker.model, **TRAINING_ON_CPU)

    assert had == ("eager" if kind in ("deberta-v2", "mpnet", "gemma2") else "sdpa")  # these have no other
    assert chosen == reranker.model.config._attn_implementation == "eager"
    torch.testing.assert_close(reranker.predict(PAIRS), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"device": torch.device("cuda")},
        {"autocast_dtype": None},
        {"autocast_dtype": torch.float16},
        {"max_length": 513},
    ],
    ids=str,
)
def test_what_is_not_measured_keeps_the_default(change):
    model, _ = tiny_model("bert")

    assert choose_attention(model, **{**TRAINING_ON_CPU, **change}) == "sdpa"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("rate", "chosen"), [(0.0, "sdpa"), (0.1, "eager")])
def test_in_float32_dropout_decides(rate, chosen):
    model, _ = tiny_model("bert")
    model.config.attention_probs_dropout_prob = rate

    assert choose_attention(model, **{**TRAINING_ON_CPU, "autocast_dtype": None}) == chosen


def test_the_log_says_in_one_line_which_attention_it_is(caplog):
    with caplog.at_level(logging.INFO, logger="rerank_trainer"):
        choose_attention(tiny_model("bert")[0], **TRAINING_ON_CPU)
        choose_attention(tiny_model("bert")[0], **{**TRAINING_ON_CPU, "autocast_dtype": None})

    chosen, default = caplog.messages
    assert chosen.startswith("attention: eager, which trains faster than sdpa")
    assert default == "attention: sdpa, the default of Transformers"


def test_the_choice_is_not_saved_with_the_model(tmp_path):
    reranker = Reranker(*tiny_model("bert"))
    choose_attention(reranker.model, **TRAINING_ON_CPU)
    reranker.save_pretrained(tmp_path)

    assert "attn_implementation" not in (tmp_path / "config.json").read_text()
    assert Reranker.from_pretrained(tmp_path).model.config._attn_implementation == "sdpa"
