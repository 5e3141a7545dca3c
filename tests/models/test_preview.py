"""The preview of a checkpoint says what opening it finds, and refuses what opening it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from rerank_trainer.models.preview import preview_checkpoint
from rerank_trainer.models.reranker import Reranker
from tests.tiny_language_models import saved_language_model
from tests.tiny_models import tiny_model, tiny_recurrent_model


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _backbone(folder):
    model, tokenizer = tiny_model("bert")
    saved(folder, model.base_model, tokenizer)


def _adapter(folder):
    saved(folder / "base", *tiny_model("bert"))
    reranker = Reranker.from_pretrained(folder / "base")
    reranker.with_adapter(LoraConfig(r=2)).save_pretrained(folder)


CHECKPOINTS = {
    "one logit": lambda folder: saved(folder, *tiny_model("modernbert")),
    "two logits": lambda folder: saved(folder, *tiny_model("bert", num_labels=2)),
    "backbone": _backbone,
    "decoder": lambda folder: saved(folder, *tiny_model("qwen3")),
    "recurrent": lambda folder: saved(folder, *tiny_recurrent_model("mamba2")),
    "fewer layers": lambda folder: saved(folder, *tiny_model("bert")),
    "token": lambda folder: saved_language_model("qwen3", folder),
    "encoder and decoder": lambda folder: saved_language_model("t5", folder),
    "adapter": _adapter,
}
FRESH = {"backbone", "recurrent"}
OPTIONS: dict[str, dict[str, Any]] = {
    "fewer layers": {"keep_layers": 1},
    "token": {"head": "qwen3-reranker"},
    "encoder and decoder": {"head": "monot5"},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_a_preview_says_what_opening_finds(kind, tmp_path):
    CHECKPOINTS[kind](tmp_path)
    options = OPTIONS.get(kind, {})

    preview = preview_checkpoint(tmp_path, **options)

    reranker = Reranker.from_pretrained(tmp_path, **options)
    whole = Reranker.from_pretrained(tmp_path / "base") if kind == "adapter" else reranker
    sizes = [p.numel() for name, p in whole.model.named_parameters() if not name.startswith("chain.")]
    assert preview.head == str(reranker.head)
    assert preview.has_head == (kind not in FRESH) == (not reranker.fresh_parameters)
    assert preview.num_parameters == sum(sizes)
    assert (preview.base is None) == (kind != "adapter")


def test_a_preview_reads_no_weights(tmp_path):
    saved(tmp_path, *tiny_model("bert"))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")

    assert preview_checkpoint(tmp_path).has_head
    assert str(preview_checkpoint(tmp_path)).startswith(f"{tmp_path}: BertForSequenceClassification, 0.0")


def test_a_checkpoint_that_would_not_open_is_refused(tmp_path):
    saved(tmp_path / "three", *tiny_model("bert", num_labels=3))
    with pytest.raises(ValueError, match="classifies into 3 labels"):
        preview_checkpoint(tmp_path / "three")

    saved(tmp_path / "none", *tiny_model("bert"))
    (tmp_path / "none" / "model.safetensors").rename(tmp_path / "none" / "elsewhere")
    with pytest.raises(OSError, match="none has no weights: expected one of"):
        preview_checkpoint(tmp_path / "none")
    (tmp_path / "none" / "elsewhere").rename(tmp_path / "none" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights, pytorch_model\.bin"):
        preview_checkpoint(tmp_path / "none")
    assert preview_checkpoint(tmp_path / "none", allow_pickle=True).has_head
