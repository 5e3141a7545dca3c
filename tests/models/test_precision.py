"""Precision: scores of float32 under autocast, and whether a processor computes bfloat16."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rerank_trainer.models.precision import computes_bf16, rounds_float32, score_in_float32
from rerank_trainer.models.reranker import Reranker
from tests.tiny_models import PAIRS, tiny_model

CPU_INFO = Path("/proc/cpuinfo")
KINDS = ["bert", "roberta", "mpnet", "deberta-v2", "modernbert", "qwen3"]  # each another class of head


def last_layer(model):
    """The layer that makes the score, by the names that Transformers gives it."""
    head = getattr(model, "score", None) or model.classifier
    return getattr(head, "out_proj", head)


def scores_and_inputs(model, **autocast):
    """The scores of rows of one length, and what entered the last layer for them."""
    seen = []
    hook = last_layer(model).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    rows = torch.arange(5, 29).reshape(4, 6)
    with torch.inference_mode(), torch.autocast("cpu", **autocast):
        scores = model(input_ids=rows).logits
    hook.remove()
    inputs = seen[0] if seen[0].dim() == 2 else seen[0][:, -1]  # a decoder scores every token: the last one counts
    return scores, inputs


def by_hand(model, inputs):
    last = last_layer(model)
    bias = 0.0 if last.bias is None else last.bias.double()
    return (inputs.double() @ last.weight.double().T + bias).float()


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_last_layer_adds_no_rounding_of_sixteen_bits(kind):
    model = Reranker(*tiny_model(kind)).model
    scores, inputs = scores_and_inputs(model, dtype=torch.bfloat16)

    assert inputs.dtype == torch.bfloat16 or kind == "qwen3"  # its norm gives float32
    torch.testing.assert_close(scores.float(), by_hand(model, inputs), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_last_layer_is_not_rounded_to_sixteen_bits_either():
    model = Reranker(*tiny_model("bert")).model
    seen = []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(input_ids=torch.arange(5, 29).reshape(4, 6)).logits
    scores.sum().backward()

    expected = seen[0].detach().double().sum(dim=0).float()
    torch.testing.assert_close(model.classifier.weight.grad[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_without_autocast_no_score_changes_at_all(kind, dtype):
    model = tiny_model(kind)[0].to(dtype)
    model.config.pad_token_id = 0
    before, _ = scores_and_inputs(model, enabled=False)
    score_in_float32(model)

    assert torch.equal(scores_and_inputs(model, enabled=False)[0], before)


def test_a_gate_of_one_output_inside_the_backbone_keeps_its_precision():
    model, _ = tiny_model("qwen3")
    model.model.gate = nn.Linear(32, 1)
    score_in_float32(model)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.model.gate(torch.ones(1, 32)).dtype == torch.bfloat16
        assert model.score(torch.ones(1, 32)).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_a_head_that_lora_trains_as_a_whole_scores_in_float32_too():
    model = get_peft_model(tiny_model("bert")[0], LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    score_in_float32(model)

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.dtype == torch.float32


def test_prediction_in_bfloat16_tells_passages_apart_that_sixteen_bits_would_tie():
    reranker = Reranker(*tiny_model("bert"))
    scores = reranker.predict(PAIRS, autocast_dtype=torch.bfloat16)

    assert len(scores.unique()) > len(scores.bfloat16().unique())
    torch.testing.assert_close(scores, reranker.predict(PAIRS), atol=0.1, rtol=0)


@pytest.mark.skipif(not CPU_INFO.exists(), reason="the system does not list the processor's instructions")
def test_a_processor_computes_bfloat16_when_the_system_lists_instructions_for_it():
    listed = re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", CPU_INFO.read_text())

    assert computes_bf16(torch.device("cpu")) == bool(listed)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx2": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True), ({"neon": True, "bf16": True}, True)],
)
def test_a_processor_without_instructions_for_bfloat16_is_known_as_such(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert computes_bf16(torch.device("cpu")) == expected


def test_a_gpu_rounds_float32_once_tf32_is_on(monkeypatch):
    gpu = torch.device("cuda")
    assert not rounds_float32(gpu)
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")  # what tf32=True of the arguments sets
    assert rounds_float32(gpu)
    assert not rounds_float32(torch.device("cpu"))
