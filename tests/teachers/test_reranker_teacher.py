"""A reranker teaches in any precision and with any head, in one line, and its fingerprint follows how it was opened."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.teacher import RerankerTeacher, as_teacher
from tests.models.test_adapters import trained
from tests.tiny_language_models import saved_language_model
from tests.tiny_models import TEXTS, tiny_model

# peft asks a model by a name that transformers has given up
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

GROUPS = [{"query": TEXTS[0], "passages": TEXTS[1:4]}, {"query": TEXTS[3], "passages": TEXTS[:2]}]
PAIRS = [(group["query"], passage) for group in GROUPS for passage in group["passages"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A cross-encoder, the same with an adapter, and two language models that answer with a token."""
    root = tmp_path_factory.mktemp("teachers")
    Reranker(*tiny_model("bert"), max_length=64).save_pretrained(root / "bert")
    adapted = Reranker.from_pretrained(root / "bert").with_adapter(LoraConfig(r=2, target_modules=["query"]))
    trained(adapted).save_pretrained(root / "adapter")
    return {name: root / name for name in ("bert", "adapter")} | {
        "decoder": saved_language_model("qwen3", root / "decoder"),
        "seq2seq": saved_language_model("t5", root / "seq2seq"),
    }


OPENED = {
    "float32": ("bert", {}),
    "bfloat16": ("bert", {"dtype": torch.bfloat16}),
    "4 bits": ("bert", {"load_in_4bit": True}),
    "adapter": ("adapter", {}),
    "a token's logit": ("decoder", {"head": "qwen3-reranker"}),
    "the logit of another family": ("decoder", {"head": "bge-reranker-v2-gemma"}),
    "seq2seq": ("seq2seq", {"head": "monot5"}),
}


def opened(folders, name):
    if name == "4 bits":
        pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    folder, options = OPENED[name]
    return Reranker.from_pretrained(folders[folder], **options)


@pytest.mark.parametrize("name", OPENED)
def test_whatever_opens_teaches_its_own_scores_in_one_line(folders, name):
    reranker = opened(folders, name)
    teacher = as_teacher(reranker)

    flat = [score for scores in teacher.score(GROUPS)["scores"] for score in scores]
    torch.testing.assert_close(torch.tensor(flat), reranker.predict(PAIRS), atol=1e-5, rtol=0)
    assert torch.tensor(flat).std() > 0.01
    assert RerankerTeacher(opened(folders, name)).fingerprint == teacher.fingerprint


def test_each_way_to_open_a_reranker_has_a_fingerprint_of_its_own(folders):
    fingerprints = {RerankerTeacher(opened(folders, name)).fingerprint for name in OPENED}

    assert len(fingerprints) == len(OPENED)


def test_the_prompt_is_part_of_the_fingerprint(folders):
    prompts = (None, Prompt("Query: {query} Document: {passage} Fits:</s>"))
    options = {"head": "monot5"}
    made = {
        RerankerTeacher(Reranker.from_pretrained(folders["seq2seq"], prompt=p, **options)).fingerprint for p in prompts
    }

    assert len(made) == 2


def test_equal_weights_under_another_config_have_another_fingerprint():
    model, tokenizer = tiny_model("bert")
    cut = BertForSequenceClassification(BertConfig(**{**model.config.to_dict(), "num_attention_heads": 1}))
    cut.load_state_dict(model.state_dict())
    teachers = [RerankerTeacher(Reranker(each, tokenizer)) for each in (model, cut)]

    scores = [teacher.score(GROUPS)["scores"] for teacher in teachers]
    assert scores[0] != scores[1]
    assert teachers[0].fingerprint != teachers[1].fingerprint


def test_the_scale_of_an_adapter_is_part_of_the_fingerprint(folders):
    """It stands in no weight, and changes every score."""
    made = []
    for alpha in (2, 8):
        torch.manual_seed(0)
        reranker = Reranker.from_pretrained(folders["bert"])
        adapted = trained(reranker.with_adapter(LoraConfig(r=2, lora_alpha=alpha, target_modules=["query"])))
        made.append((adapted.predict(PAIRS), RerankerTeacher(adapted).fingerprint))

    assert (made[0][0] - made[1][0]).abs().max() > 1e-3
    assert made[0][1] != made[1][1]


def test_an_adapter_that_brings_the_head_which_its_base_lacks_has_one_fingerprint(tmp_path):
    base = saved_language_model("qwen2", tmp_path / "base")  # without a head: one is drawn whenever it is opened
    adapted = Reranker.from_pretrained(base).with_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    trained(adapted).save_pretrained(tmp_path / "adapter")
    fingerprints, scores = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        reranker = Reranker.from_pretrained(tmp_path / "adapter")
        fingerprints.append(RerankerTeacher(reranker).fingerprint)
        scores.append(reranker.predict(PAIRS))

    assert torch.equal(*scores)
    assert fingerprints[0] == fingerprints[1]
    with torch.no_grad():
        next(p for name, p in reranker.model.named_parameters() if "score.modules_to_save" in name).mul_(2)
    assert RerankerTeacher(reranker).fingerprint != fingerprints[0]
