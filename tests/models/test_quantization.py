"""Quantisation: what is held in few bits and what is not, and that saved adapters and merged weights score the same."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig, GPTQConfig

from rerank_trainer.models.adapters import default_lora, num_parameters
from rerank_trainer.models.quantization import require_bitsandbytes
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.verify import verify_checkpoint
from tests.models.test_adapters import edit_json, trained
from tests.tiny_models import PAIRS, tiny_model

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks


@pytest.fixture(scope="module", params=["bert", "qwen3"])
def backbone(request, tmp_path_factory):
    """A folder with a backbone alone; of BERT even without the pooler, which is then drawn anew."""
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = tiny_model(request.param)
    if request.param == "bert":
        del model.bert.pooler
    model.base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(backbone):
    """A reranker on the backbone in 4 bits, with an adapter that has other values than its first."""
    torch.manual_seed(0)
    reranker = Reranker.from_pretrained(backbone, load_in_4bit=True, max_length=64)
    return trained(reranker.with_adapter(default_lora(reranker.model)))


def test_the_layers_of_the_stack_are_of_4_bits_and_all_that_lies_around_is_float32(backbone):
    model = Reranker.from_pretrained(backbone, load_in_4bit=True).model
    plain = Reranker.from_pretrained(backbone).model

    of_4_bits = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(".layer" in name for name in of_4_bits)
    assert {name for name in linear if ".layer" in name} == of_4_bits
    others = [parameter for name, parameter in model.named_parameters() if parameter.dtype != torch.uint8]
    assert all(parameter.dtype == torch.float32 for parameter in others)
    assert num_parameters(model)[1] == sum(parameter.numel() for parameter in plain.parameters())


def test_only_the_adapter_and_what_no_checkpoint_has_trained_learn(quantized):
    learning = {name for name, parameter in quantized.model.named_parameters() if parameter.requires_grad}

    assert set(quantized.fresh_parameters) <= learning
    assert all("lora_" in name or ".modules_to_save." in name for name in learning)
    assert all(p.dtype == torch.float32 for name, p in quantized.model.named_parameters() if name in learning)


def test_the_gradient_is_that_of_the_dequantised_weights(backbone):
    torch.manual_seed(0)
    reranker = Reranker.from_pretrained(backbone, load_in_4bit=True, max_length=64)
    reranker = reranker.with_adapter(LoraConfig(r=2, target_modules=default_lora(reranker.model).target_modules))
    reranker.predict(PAIRS[:2])  # as an evaluation in the middle of training
    batch = reranker.tokenizer(*map(list, zip(*PAIRS[:4], strict=True)), padding=True, return_tensors="pt")
    gradients = []
    for dequantised in (False, True):
        if dequantised:
            for module in list(reranker.model.modules()):
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    whole = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                    module.forward = lambda x, whole=whole, bias=module.bias: nn.functional.linear(x, whole, bias)
        reranker.model.zero_grad()
        reranker.model(**batch).logits.sum().backward()
        gradients.append([p.grad.clone() for p in reranker.model.parameters() if p.grad is not None])

    assert len(gradients[0]) == len(gradients[1]) > 4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_saved_adapter_on_the_base_in_4_bits_scores_the_same_in_every_loader(backbone, quantized, tmp_path, caplog):
    quantized.save_pretrained(tmp_path)

    assert max(verify_checkpoint(tmp_path, quantized, PAIRS).values()) < 1e-4
    again = Reranker.from_pretrained(tmp_path, load_in_4bit=True)
    torch.testing.assert_close(again.predict(PAIRS), quantized.predict(PAIRS), atol=1e-5, rtol=1e-5)
    with caplog.at_level(logging.INFO):
        whole = Reranker.from_pretrained(tmp_path)
    assert "trained on a base of 4 bits, and its base is loaded as one of full precision" in caplog.text
    assert (whole.predict(PAIRS) - quantized.predict(PAIRS)).abs().max() > 1e-3  # what quantising rounds away


def test_merging_dequantises_once_and_says_so(quantized, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        quantized.save_merged(tmp_path)

    assert "its weights of 4 bits were dequantised to torch.float32" in caplog.text
    whole = Reranker.from_pretrained(tmp_path)
    assert type(whole.model) is type(quantized.model.get_base_model())
    assert not any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in whole.model.modules())
    torch.testing.assert_close(whole.predict(PAIRS), quantized.predict(PAIRS), atol=1e-4, rtol=1e-4)
    assert max(verify_checkpoint(tmp_path, quantized, PAIRS).values()) < 1e-3
    assert quantized.model.is_loaded_in_4bit  # the one in memory stays as it was


def test_a_broken_adapter_of_4_bits_is_found(quantized, tmp_path):
    from safetensors.torch import load_file, save_file

    quantized.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    head = next(name for name in weights if "lora" not in name and name.endswith("weight"))
    weights[head] *= 1.01
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="opened by transformers, scores pair"):
        verify_checkpoint(tmp_path, quantized, PAIRS)


def test_8_bits_train_too(backbone, tmp_path):
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "max_length": 64}
    reranker = Reranker.from_pretrained(backbone, **options)
    reranker = trained(reranker.with_adapter(LoraConfig(r=2)))
    reranker.save_pretrained(tmp_path)

    assert max(verify_checkpoint(tmp_path, reranker, PAIRS).values()) < 1e-2


def test_an_adapter_says_by_itself_how_its_base_was_held(quantized, tmp_path, caplog):
    quantized.save_pretrained(tmp_path)
    edit_json(tmp_path / "config_sentence_transformers.json", rerank_trainer={})

    with caplog.at_level(logging.INFO):
        Reranker.from_pretrained(tmp_path)
    assert "bits" not in caplog.text


def test_a_missing_package_is_named_with_its_extra(backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(ImportError, match=r'need bitsandbytes .* pip install "rerank_trainer\[qlora\]"'):
        Reranker.from_pretrained(backbone, load_in_4bit=True)


def test_a_device_that_cannot_is_refused_with_those_that_can():
    with pytest.raises(ValueError, match=r"on the device 'meta': bitsandbytes .* knows \['cpu', .*use_cpu=True"):
        require_bitsandbytes(torch.device("meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_in_4bit": True, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "give one of them"),
        ({"quantization_config": GPTQConfig(bits=4)}, "is a GPTQConfig; only a BitsAndBytesConfig"),
    ],
)
def test_what_cannot_be_meant_is_refused(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        Reranker.from_pretrained(backbone, **options)
