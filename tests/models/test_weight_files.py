"""Weight files: pickles are refused by name, and read as tensors alone where they are allowed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.weight_files import loading_options
from tests.tiny_models import PAIRS, byte_tokenizer, tiny_model


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def folder(tmp_path):
    """A reranker's folder whose weights are pickled."""
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    reranker.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(reranker.model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model"


def test_the_trap_springs_when_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran"))).close()

    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_by_name_and_remedy(folder, file):
    (folder / "pytorch_model.bin").rename(folder / file)

    with pytest.raises(ValueError, match=rf"pickled weights, {file}, .*safetensors.*allow_pickle=True"):
        Reranker.from_pretrained(folder)


def test_pickled_weights_that_are_allowed_score_as_the_model_did(folder):
    scores = Reranker.from_pretrained(folder, allow_pickle=True).predict(PAIRS)

    torch.testing.assert_close(scores, Reranker(*tiny_model("bert"), max_length=64).predict(PAIRS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_allowed_or_not_a_pickle_runs_no_code(folder, tmp_path, allow_pickle):
    torch.save({"classifier.bias": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")

    with pytest.raises((ValueError, pickle.UnpicklingError), match="pickled weights|[Ww]eights.only"):
        Reranker.from_pretrained(folder, allow_pickle=allow_pickle)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("option", ["use_safetensors", "weights_only"])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_no_other_option_opens_pickles(folder, option, allow_pickle):
    with pytest.raises(ValueError, match=f"{option}=False would read pickled weights.*allow_pickle"):
        Reranker.from_pretrained(folder, allow_pickle=allow_pickle, **{option: False})


@pytest.mark.parametrize(("allow_pickle", "use_safetensors"), [(False, True), (True, None)])
def test_transformers_is_told_to_build_tensors_only(allow_pickle, use_safetensors):
    options = loading_options({"dtype": "auto"}, allow_pickle=allow_pickle)

    assert options == {"dtype": "auto", "use_safetensors": use_safetensors, "weights_only": True}


def test_weights_that_are_missing_altogether_are_no_matter_of_pickles(folder):
    (folder / "pytorch_model.bin").unlink()

    with pytest.raises(OSError, match="no file named model.safetensors"):
        Reranker.from_pretrained(folder)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path):
    reranker = Reranker(*tiny_model("bert"))
    reranker.save_pretrained(tmp_path)
    torch.save({"classifier.bias": Trap(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")

    torch.testing.assert_close(Reranker.from_pretrained(tmp_path).predict(PAIRS), reranker.predict(PAIRS))
    assert not (tmp_path / "ran").exists()


def test_a_pickled_adapter_is_refused_although_the_weights_are_safetensors(tmp_path):
    Reranker(*tiny_model("bert")).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["query"]})
    )
    torch.save({"x": Trap(tmp_path / "ran")}, tmp_path / "adapter_model.bin")

    with pytest.raises(ValueError, match=r"pickled adapter, adapter_model\.bin"):
        Reranker.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_config_cannot_name_a_pickle_as_its_weights(tmp_path):
    Reranker(*tiny_model("bert")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))

    with pytest.raises(ValueError, match=r"names the weights 'adapter_model\.bin', which are pickled"):
        Reranker.from_pretrained(tmp_path)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_pickled_head_beside_a_backbone_is_not_replaced_by_a_fresh_one_in_silence(tmp_path, allow_pickle):
    tokenizer = byte_tokenizer(special=True)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save({"weight": torch.ones(1, 16)}, tmp_path / "reranker_head.pt")

    with pytest.raises(ValueError, match=r"no score head, and reranker_head\.pt beside them is a pickle"):
        Reranker.from_pretrained(tmp_path, allow_pickle=allow_pickle)
