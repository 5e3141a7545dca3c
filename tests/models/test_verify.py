"""Verifying: a folder that is the model passes; whatever breaks it is named, with the pair and the loader."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_trainer.models import verify
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.verify import verify_checkpoint
from tests.tiny_models import PAIRS, TEXTS, tiny_model

SHORT = PAIRS[:6]  # pairs that fit: what breaks long ones must be seen without long ones


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    reranker = Reranker(*tiny_model("bert"), max_length=96)
    folder = tmp_path_factory.mktemp("original")
    reranker.save_pretrained(folder)
    return reranker, folder


@pytest.fixture
def saved(original, tmp_path):
    """The reranker, and a copy of its folder that a test may break."""
    reranker, folder = original
    shutil.copytree(folder, tmp_path / "copy")
    return reranker, tmp_path / "copy"


def edit_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_whole_folder_passes_with_its_differences(saved):
    reranker, folder = saved
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    differences = verify_checkpoint(folder, reranker, PAIRS)

    assert set(differences) == {"transformers", "sentence_transformers"}
    assert all(0 <= difference < 1e-5 for difference in differences.values())
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before  # no text of a pair in it


def test_a_loader_that_draws_random_numbers_leaves_those_of_the_training(saved, monkeypatch):
    reranker, folder = saved
    open_folder = verify._open_transformers

    def open_and_draw(*args):
        torch.rand(3)
        return open_folder(*args)

    monkeypatch.setattr(verify, "_open_transformers", open_and_draw)
    state = torch.random.get_rng_state()
    verify.verify_checkpoint(folder, reranker, SHORT)

    assert torch.equal(torch.random.get_rng_state(), state)


def test_scaled_weights_are_found(saved):
    reranker, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 1.001
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"opened by transformers, scores pair \d as .* a difference of .* 1e-05"):
        verify_checkpoint(folder, reranker, SHORT)


def test_the_pair_named_is_the_one_that_differs_most(saved):
    reranker, folder = saved
    weights = load_file(folder / "model.safetensors")
    (row,) = reranker.tokenizer(" ship", add_special_tokens=False)["input_ids"]
    weights["bert.embeddings.word_embeddings.weight"][row] *= -1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    pairs = [("rain", "hills"), ("blood", "arm"), ("a ship", "old ship"), ("map", "books")]

    with pytest.raises(ValueError, match="scores pair 2 as"):
        verify_checkpoint(folder, reranker, pairs)


def test_another_activation_is_found(saved):
    reranker, folder = saved
    edit_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    edit_json(folder / "config_sentence_transformers.json", activation_fn="torch.nn.modules.activation.Sigmoid")

    with pytest.raises(ValueError, match="opened by sentence_transformers, scores pair"):
        verify_checkpoint(folder, reranker, SHORT)


def test_a_lost_length_limit_is_found_although_every_pair_fits(saved):
    reranker, folder = saved
    edit_json(folder / "tokenizer_config.json", model_max_length=128)
    assert all(len(row.input_ids) < 96 for p in SHORT for row in reranker.template.encode([(p[0], [p[1]])])[0])

    with pytest.raises(ValueError, match=r"encodes pair 0 as 128 tokens \[.*as 96 .*length limit \(here 96\)"):
        verify_checkpoint(folder, reranker, SHORT)


def test_a_limit_lost_for_sentence_transformers_alone_is_found(saved):
    reranker, folder = saved
    edit_json(folder / "sentence_bert_config.json", max_seq_length=64)

    with pytest.raises(ValueError, match="opened by sentence_transformers, encodes pair 0 as 64 tokens"):
        verify_checkpoint(folder, reranker, SHORT)


def test_a_chat_template_that_is_not_switched_off_is_found(tmp_path):
    model, tokenizer = tiny_model("qwen2")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    reranker = Reranker(model, tokenizer, max_length=64)
    reranker.save_pretrained(tmp_path)
    for name in ("modules.json", "sentence_bert_config.json"):
        (tmp_path / name).unlink()

    with pytest.raises(ValueError, match="opened by sentence_transformers, encodes pair 0"):
        verify_checkpoint(tmp_path, reranker, SHORT)


def test_pairs_that_a_query_budget_cuts_otherwise_are_left_out(tmp_path):
    reranker = Reranker(*tiny_model("bert"), max_length=40, query_max_length=30)
    reranker.save_pretrained(tmp_path)
    cut_by_budget = [(TEXTS[0] * 5, TEXTS[1] * 5)]

    assert verify_checkpoint(tmp_path, reranker, cut_by_budget) == {"transformers": 0.0, "sentence_transformers": 0.0}
    assert max(verify_checkpoint(tmp_path, reranker, [*cut_by_budget, *SHORT]).values()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_pass_within_their_tolerance_and_a_break_does_not(tmp_path, dtype):
    Reranker(*tiny_model("qwen2", spread=0.2), max_length=64).save_pretrained(tmp_path / "float32")
    reranker = Reranker.from_pretrained(tmp_path / "float32", dtype=dtype)
    reranker.save_pretrained(tmp_path)
    assert max(verify_checkpoint(tmp_path, reranker, PAIRS).values()) < 1e-3  # each pair alone: nothing is padded
    weights = load_file(tmp_path / "model.safetensors")
    weights["score.weight"] *= 1.5
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="where 0.0[15] is rounding"):
        verify_checkpoint(tmp_path, reranker, PAIRS)


def test_scores_that_are_no_numbers_do_not_pass(saved):
    reranker, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="as nan"):
        verify_checkpoint(folder, reranker, SHORT)


def test_what_is_not_a_pair_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="pair 1 is 'water'"):
        verify_checkpoint(tmp_path / "nowhere", Reranker(*tiny_model("bert")), [("a", "b"), "water"])


def test_the_rounding_of_tf32_passes_where_it_is_on_and_a_break_does_not(saved, monkeypatch):
    reranker, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 1.002
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(verify, "rounds_float32", lambda device: True)
    assert verify_checkpoint(folder, reranker, SHORT)["transformers"] > 1e-4

    weights["classifier.weight"] *= 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="where 0.01 is rounding"):
        verify_checkpoint(folder, reranker, SHORT)
