"""Embedding models by name: opened from safetensors, and never from a pickle."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from rerank_trainer.models.embedder import open_embedder


@pytest.fixture
def folder(minilm_path, tmp_path):
    SentenceTransformer(minilm_path, device="cpu").save(str(tmp_path))
    return tmp_path


def test_it_embeds_as_sentence_transformers_does(folder):
    expected = SentenceTransformer(str(folder), device="cpu").encode("a kettle on fire")

    assert (open_embedder(folder).to("cpu").encode("a kettle on fire") == expected).all()


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_pickled_weights_are_refused_by_the_files_name(folder, place):
    weights = folder / "model.safetensors"
    if place:  # as older versions laid a model out
        (folder / place).mkdir()
        modules = folder / "modules.json"
        modules.write_text(modules.read_text().replace('"path": ""', f'"path": "{place}"'))
    torch.save(load_file(weights), folder / place / "pytorch_model.bin")
    weights.unlink()

    with pytest.raises(ValueError, match="has pickled weights, .*pytorch_model.bin"):
        open_embedder(folder)
