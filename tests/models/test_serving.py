"""Serving: what the commands say agrees with what the servers read from a checkpoint's files."""

from __future__ import annotations

import json
import shlex

import pytest
from peft import LoraConfig

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.serving import serving_commands
from rerank_trainer.models.token_logits import TokenLogitHead
from tests.tiny_language_models import saved_language_model, tiny_language_model
from tests.tiny_models import tiny_model, tiny_recurrent_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks


def options(command: str) -> dict[str, str]:
    """The options of a shell command."""
    words = shlex.split(command)
    return {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def body(request: str) -> dict:
    """What a request sends."""
    words = shlex.split(request)
    return json.loads(words[words.index("-d") + 1])


def edit_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("it's") / "bert"  # a name that a shell must not take apart
    Reranker(*tiny_model("bert"), max_length=96).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "Qwen3-Reranker-tiny"
    return saved_language_model("qwen3", folder)


def test_an_encoder_of_ours_is_served_by_both_with_its_logit(encoder):
    vllm, tei = serving_commands(encoder)

    assert shlex.split(vllm.command)[:3] == ["vllm", "serve", str(encoder)]
    assert options(vllm.command) == {"--runner": "pooling", "--max-model-len": "96"}
    assert vllm.score == "the logit, as it is"
    assert "use_activation" not in body(vllm.request)
    assert options(tei.command) == {"--model-id": str(encoder), "--port": "8080"}
    assert tei.score.startswith("the sigmoid of the logit")
    assert body(tei.request)["raw_scores"] is True
    assert "```bash" in vllm.markdown() and vllm.command in vllm.markdown()


def test_a_checkpoint_that_names_no_activation_is_asked_for_its_logit(encoder, tmp_path):
    Reranker.from_pretrained(encoder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "sentence_transformers"}))
    vllm, _ = serving_commands(tmp_path)

    assert body(vllm.request)["use_activation"] is False
    assert vllm.score.startswith("the sigmoid of the logit")


def test_a_long_row_asks_text_embeddings_inference_for_room(encoder, tmp_path):
    Reranker.from_pretrained(encoder).save_pretrained(tmp_path)
    edit_json(tmp_path / "sentence_bert_config.json", max_seq_length=32768)

    assert options(serving_commands(tmp_path)[1].command)["--max-batch-tokens"] == "32768"


def test_what_sentence_transformers_saves_alone_cannot_start_in_text_embeddings_inference(encoder, tmp_path):
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(encoder), device="cpu").save_pretrained(str(tmp_path))
    tei = serving_commands(tmp_path)[1]

    assert tei.command is None
    assert "no max_seq_length" in tei.markdown()


def test_a_language_model_of_ours_is_converted_by_vllm_with_its_own_prompt(qwen, tmp_path):
    Reranker.from_pretrained(qwen, max_length=200).save_pretrained(tmp_path)
    vllm, tei = serving_commands(tmp_path)

    given = options(vllm.command)
    assert json.loads(given["--hf-overrides"]) == {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "method": "from_2_way_softmax",
    }
    assert given["--chat-template"] == str(tmp_path / "chat_template.jinja")
    assert given["--max-model-len"] == "200"
    assert tei.command is None
    assert "no classifier for qwen3" in tei.score


def test_a_published_language_model_is_told_where_its_prompt_comes_from(qwen):
    vllm = serving_commands(qwen)[0]

    assert json.loads(options(vllm.command)["--hf-overrides"])["classifier_from_token"] == ["no", "yes"]
    assert any("no file holds its prompt" in note for note in vllm.notes)
    assert body(vllm.request)["use_activation"] is False


def test_one_token_is_converted_without_a_difference_and_a_second_beginning_is_told(tmp_path):
    from rerank_trainer.models.families import FAMILIES

    family = FAMILIES["bge-reranker-v2-gemma"]
    source = Reranker(*tiny_language_model("gemma"), head=family.head, prompt=family.prompt)
    source.save_pretrained(tmp_path)
    vllm = serving_commands(tmp_path)[0]

    overrides = json.loads(options(vllm.command)["--hf-overrides"])
    assert (overrides["classifier_from_token"], overrides["method"]) == (["Yes"], "no_post_processing")
    assert any("special tokens around the prompt" in note for note in vllm.notes)


def test_what_a_server_cannot_score_has_a_reason_in_place_of_a_command(encoder, tmp_path):
    adapted = Reranker.from_pretrained(encoder).with_adapter(LoraConfig(r=2, target_modules=["query"]))
    adapted.save_pretrained(tmp_path / "adapter")
    capped = tiny_language_model("gemma2")
    Reranker(*capped, head=TokenLogitHead("Yes"), max_length=64).save_pretrained(tmp_path / "capped")
    t5, t5_tokenizer = tiny_language_model("t5")
    Reranker(t5, t5_tokenizer, head=TokenLogitHead("▁true")).save_pretrained(tmp_path / "t5")
    mamba, tokenizer = tiny_recurrent_model("mamba")
    mamba.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    Reranker.from_pretrained(tmp_path / "lm").save_pretrained(tmp_path / "chain")
    model, tokenizer = tiny_model("bert", num_labels=2)
    model.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")

    for folder, reason in {
        "adapter": "it is an adapter",
        "capped": "what the model does to its logits, {'final_logit_softcapping': 8.0}",
        "t5": "a decoder behind an encoder",
        "chain": "modules behind a backbone",
        "lm": "MambaForCausalLM has no score head",
        "two": "it has 2 labels",
    }.items():
        vllm = serving_commands(tmp_path / folder)[0]
        assert (vllm.command, vllm.request) == (None, None), folder
        assert reason in vllm.markdown(), folder
