"""Export: as a classifier a language model scores as it did, in plain Transformers and in sentence-transformers."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.export import export_classifier
from rerank_trainer.models.families import FAMILIES
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from tests.tiny_language_models import language_tokenizer, plain_scores, saved_language_model, tiny_language_model
from tests.tiny_models import PAIRS, tiny_model, tiny_recurrent_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

SHORT = PAIRS[:6]
PROMPT = Prompt("Query: {query}\nText: {passage}\nDoes it answer?")
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# Language models whose true architecture changes the state before the output layer, or the logits behind it.
SCALED = {
    "minicpm3": {
        "hidden_size": 32,
        "dim_model_base": 16,  # the state is divided by 32 / 16
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 2,
    },
    "cohere_compass_text": {
        "num_key_value_heads": 1,
        "logit_scale": 0.25,
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
        },
    },
}
# Each kind: the tokens that it answers with, and the prompt.
KINDS = {
    "qwen3": ("yes", "no", FAMILIES["qwen3-reranker"].prompt),
    "qwen2": ("1", "0", FAMILIES["mxbai-rerank-v2"].prompt),
    "gemma": ("Yes", None, FAMILIES["bge-reranker-v2-gemma"].prompt),
    **{kind: ("yes", "no", PROMPT) for kind in SCALED},
}


def language_model(kind: str, **options):
    """A tiny language model of an architecture that other tests do not need, and its tokenizer."""
    tokenizer = language_tokenizer("chat")
    tokenizer.model_max_length = 256
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**_SIZES, **options})
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval(), tokenizer


def opened_by_transformers(folder, pairs):
    """Scores of a folder by a plain forward, pairs one by one, written by the chat template that it holds."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, passage in pairs:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": passage}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        with torch.no_grad():
            scores.append(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])
    return torch.stack(scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_scores_the_same_as_a_classifier_within_a_millionth(tmp_path, kind):
    yes, no, prompt = KINDS[kind]
    model, tokenizer = language_model(kind, **SCALED[kind]) if kind in SCALED else tiny_language_model(kind)
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    truth = plain_scores(tmp_path / "source", [prompt.fill(*pair) for pair in SHORT], yes, no)
    assert truth.std() > 0.1

    how = {"head": TokenLogitHead(yes, no), "prompt": prompt, "max_length": 256}
    exported = export_classifier(tmp_path / "source", tmp_path / "classifier", pairs=SHORT, **how)

    # rows one by one, as the truth was; a padded batch orders the additions otherwise
    scores = opened_by_transformers(tmp_path / "classifier", SHORT)
    torch.testing.assert_close(scores, truth, rtol=1e-6, atol=1e-6)
    other = CrossEncoder(str(tmp_path / "classifier"), device="cpu").predict(SHORT, convert_to_tensor=True)
    ours = Reranker.from_pretrained(tmp_path / "classifier").predict(SHORT)
    for batched in (other, ours, exported.predict(SHORT)):
        torch.testing.assert_close(batched, truth, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder known by its name as one of Qwen3-Reranker."""
    return saved_language_model("qwen3", tmp_path_factory.mktemp("source") / "Qwen3-Reranker-tiny")


def test_servers_find_one_label_the_activation_the_length_and_the_prompt(qwen, tmp_path):
    exported = export_classifier(qwen, tmp_path, max_length=200)
    config = json.loads((tmp_path / "config.json").read_text())
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())

    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert (config["id2label"], config["label2id"]) == ({"0": "LABEL_0"}, {"LABEL_0": 0})
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"
    assert config["pad_token_id"] == exported.tokenizer.pad_token_id
    assert settings["max_seq_length"] == 200
    assert settings["transformer_task"] == "sequence-classification"
    assert settings["modality_config"]["message"]["format"] == "flat"
    assert len(json.loads((tmp_path / "modules.json").read_text())) == 1
    assert (tmp_path / "chat_template.jinja").is_file()
    assert not (tmp_path / "1_LogitScore").exists()


def test_the_head_is_the_difference_of_two_rows_and_the_source_is_left_as_it_was(qwen, tmp_path):
    source = Reranker.from_pretrained(qwen)
    before, keys = source.predict(SHORT), sorted(source.model.state_dict())
    export_classifier(source, tmp_path)

    rows = load_file(qwen / "model.safetensors")["model.embed_tokens.weight"]  # tied
    yes, no = (source.tokenizer.convert_tokens_to_ids(token) for token in ("yes", "no"))
    weights = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(weights["score.weight"], rows[yes : yes + 1] - rows[no : no + 1], rtol=0, atol=0)
    assert "lm_head.weight" not in weights
    assert torch.equal(source.predict(SHORT), before)
    assert sorted(source.model.state_dict()) == keys
    assert source.model.config.architectures == ["Qwen3ForCausalLM"]


def test_a_tokenizer_of_a_prompt_adds_no_second_beginning(tmp_path):
    model, tokenizer = tiny_language_model("gemma")
    assert tokenizer("a kettle")["input_ids"][0] == tokenizer.bos_token_id
    family = FAMILIES["bge-reranker-v2-gemma"]
    source = Reranker(model, tokenizer, head=family.head, prompt=family.prompt, max_length=256)
    export_classifier(source, tmp_path, pairs=SHORT)

    text = family.prompt.fill("what heats water", "a kettle")
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]  # as vLLM encodes a filled template
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer("a kettle")["input_ids"][0] == tokenizer.bos_token_id


def test_an_adapter_on_the_output_layer_is_merged_first(tmp_path):
    model, tokenizer = tiny_language_model("qwen2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    plain = Reranker.from_pretrained(tmp_path / "base", head=TokenLogitHead("yes", "no"), prompt=PROMPT)
    before = plain.predict(SHORT)
    adapted = plain.with_adapter(LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    scores = adapted.predict(SHORT)
    assert (scores - before).std() > 0.1

    export_classifier(adapted, tmp_path / "classifier", pairs=SHORT)

    torch.testing.assert_close(opened_by_transformers(tmp_path / "classifier", SHORT), scores, rtol=1e-5, atol=1e-5)
    assert torch.equal(adapted.predict(SHORT), scores)


def test_a_classifier_is_written_as_it_is(tmp_path):
    source = Reranker(*tiny_model("bert"), max_length=96)
    export_classifier(source, tmp_path, pairs=SHORT)

    other = CrossEncoder(str(tmp_path), device="cpu")
    torch.testing.assert_close(
        other.predict(SHORT, convert_to_tensor=True), source.predict(SHORT), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("biases", "is_exported"), [((0.5, 0.5), True), ((0.5, 0.25), False)])
def test_biases_of_the_answers_are_exported_where_they_cancel(tmp_path, biases, is_exported):
    model, tokenizer = language_model("phi")
    source = Reranker(model, tokenizer, head=TokenLogitHead("yes", "no"), prompt=PROMPT, max_length=128)
    with torch.no_grad():
        model.lm_head.bias[source.head.token_ids] = torch.tensor(biases)
    if is_exported:
        scores = export_classifier(source, tmp_path, pairs=SHORT).predict(SHORT)
        torch.testing.assert_close(scores, source.predict(SHORT), rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="biases that differ by 0.25"):
            export_classifier(source, tmp_path, pairs=SHORT)
        assert not list(tmp_path.iterdir())


REFUSED = {
    "gemma2": r"a soft cap\?\): \[0.0, 1.0, -1.0, 8.0, 64.0\] become \[0.0, 0.99",
    "cohere": "no sequence classifier on the backbone of CohereForCausalLM",
    "t5": "T5ForConditionalGeneration answers with its decoder's first token",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_language_model_without_a_linear_classifier_of_its_score_is_refused(tmp_path, kind):
    model, tokenizer = tiny_language_model(kind)
    head = TokenLogitHead("▁true", "▁false") if kind == "t5" else TokenLogitHead("Yes")
    source = Reranker(model, tokenizer, head=head, prompt=PROMPT, max_length=256)
    with pytest.raises(ValueError, match=REFUSED[kind]):
        export_classifier(source, tmp_path, pairs=SHORT)
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_ends_with_the_pad_token_is_refused(tmp_path):
    model, tokenizer = tiny_language_model("qwen3")
    prompt = Prompt(f"Query: {{query}}\nText: {{passage}}{tokenizer.pad_token}")
    source = Reranker(model, tokenizer, head=TokenLogitHead("yes", "no"), prompt=prompt, max_length=256)
    with pytest.raises(ValueError, match="a prompt must not end with that one"):
        export_classifier(source, tmp_path, pairs=SHORT)


def test_a_chain_of_modules_is_refused(tmp_path):
    model, tokenizer = tiny_recurrent_model("mamba")
    model.save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    with pytest.raises(ValueError, match="scored by modules behind a backbone"):
        export_classifier(tmp_path / "mamba", tmp_path / "out")


def test_options_of_loading_are_refused_for_a_loaded_reranker(tmp_path):
    with pytest.raises(ValueError, match=r"\['head'\] are for a Hub id or folder"):
        export_classifier(Reranker(*tiny_model("bert")), tmp_path, head="logit")
