"""Token logits: those of the whole model, whatever it does to them; adapters count, padding changes nothing."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rerank_trainer.models.heads import LogitHead
from rerank_trainer.models.prefix import reason_against
from rerank_trainer.models.token_logits import TokenLogitHead, last_places, token_id
from tests.tiny_language_models import LANGUAGE_MODELS, language_tokenizer, tiny_language_model
from tests.tiny_models import tiny_model

LENGTHS = (7, 3, 5)
# PEFT asks Transformers for a name that will go
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def padded(vocab_size: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Three rows of random tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(3, 7, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        places = slice(7 - length, 7) if side == "left" else slice(0, length)
        ids[row, places] = torch.randint(4, vocab_size, (length,), generator=generator)
        mask[row, places] = 1
    return {"input_ids": ids, "attention_mask": mask}


def whole_logits(model, inputs):
    """The logits of the vocabulary behind each row, rows one by one and without padding."""
    rows = [row[mask.bool()][None] for row, mask in zip(*inputs.values(), strict=True)]
    start = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
    return torch.stack([model(input_ids=row, **start).logits[0, -1] for row in rows])


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_the_score_is_the_difference_of_the_model_s_own_logits(kind):
    model, tokenizer = tiny_language_model(kind)
    head = TokenLogitHead(21, 30).fitted_to(model, tokenizer)
    inputs = padded(model.config.vocab_size)
    with torch.no_grad():
        scores = head(model, inputs)
        logits = whole_logits(model, inputs)

    assert scores.std() > 0.1
    torch.testing.assert_close(scores, logits[:, 21] - logits[:, 30], rtol=0, atol=1e-5)
    alone = TokenLogitHead(21).fitted_to(model, tokenizer)(model, inputs).detach()
    torch.testing.assert_close(alone, logits[:, 21], rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", [{"final_logit_softcapping": 0.5}, {"final_logit_softcapping": None}])
def test_a_soft_cap_bounds_one_token_s_score(option):
    model, tokenizer = tiny_language_model("gemma2", **option)
    scores = TokenLogitHead(21).fitted_to(model, tokenizer)(model, padded(model.config.vocab_size))

    assert (scores.abs().max() < 0.5) == (option["final_logit_softcapping"] == 0.5)


def test_only_the_rows_of_the_answers_are_multiplied_at_one_place():
    model, tokenizer = tiny_language_model("qwen2", tie_word_embeddings=False)
    head = TokenLogitHead(21, 30).fitted_to(model, tokenizer)
    shapes = []

    def run(**inputs):
        output = model(**inputs)
        shapes.append(tuple(output.logits.shape))
        return output

    run.__wrapped__ = model
    head(run, padded(model.config.vocab_size)).sum().backward()

    assert shapes == [(3, 1, 2)]
    changed = model.lm_head.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert changed == [21, 30]
    assert "forward" not in vars(model.lm_head)  # the layer is its own again


def test_the_output_layer_is_its_own_again_after_an_error():
    model, tokenizer = tiny_language_model("qwen2")

    def broken(**inputs):
        raise RuntimeError("out of memory")

    broken.__wrapped__ = model
    with pytest.raises(RuntimeError, match="out of memory"):
        TokenLogitHead(21).fitted_to(model, tokenizer)(broken, padded(300))

    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_place_is_that_of_the_last_token_on_either_side(side):
    mask = padded(300, side)["attention_mask"]

    assert last_places(mask).tolist() == ([6, 6, 6] if side == "left" else [6, 2, 4])


@peft_warns
def test_an_output_layer_that_is_trained_whole_beside_an_adapter_is_the_one_that_scores():
    model, tokenizer = tiny_language_model("qwen2", tie_word_embeddings=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight[21] += 1.0
    inputs = padded(300)
    scores = TokenLogitHead(21).fitted_to(adapted, tokenizer)(adapted, inputs)

    torch.testing.assert_close(scores.detach(), whole_logits(adapted, inputs)[:, 21].detach(), rtol=0, atol=1e-5)
    scores.sum().backward()
    trained = adapted.base_model.model.lm_head.modules_to_save["default"].weight.grad
    assert trained.abs().sum(dim=1).nonzero().flatten().tolist() == [21]


@peft_warns
def test_an_adapter_on_the_output_layer_counts_and_trains():
    model, tokenizer = tiny_language_model("qwen2", tie_word_embeddings=False)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(model, config).eval()
    head = TokenLogitHead(21, 30).fitted_to(adapted, tokenizer)
    inputs = padded(model.config.vocab_size)
    scores = head(adapted, inputs)
    with torch.no_grad():
        logits = whole_logits(adapted, inputs)
        with adapted.disable_adapter():
            plain = whole_logits(adapted, inputs)

    torch.testing.assert_close(scores.detach(), logits[:, 21] - logits[:, 30], rtol=0, atol=1e-5)
    assert (scores - (plain[:, 21] - plain[:, 30])).abs().max() > 0.1
    scores.sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lm_head.lora_A" in name for name in trained) and any("lm_head.lora_B" in name for name in trained)


@peft_warns
@pytest.mark.parametrize(
    ("wrapped", "weights"), [(False, torch.float32), (False, torch.bfloat16), (True, torch.float32)]
)
def test_logits_are_float32_under_autocast(wrapped, weights):
    model, tokenizer = tiny_language_model("gemma2", tie_word_embeddings=False)
    model.to(weights)
    if wrapped:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")).eval()
    head = TokenLogitHead(21).fitted_to(model, tokenizer)
    dtypes = []

    def run(**inputs):
        output = model(**inputs)
        dtypes.append(output.logits.dtype)
        return output

    run.__wrapped__ = model
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        scores = head(run, padded(model.config.get_text_config().vocab_size))

    assert dtypes == [torch.float32]
    assert (scores.bfloat16().float() - scores).abs().max() > 0  # not a bfloat16 in disguise


@peft_warns
@pytest.mark.parametrize("autocast", [False, True])
def test_an_adapted_output_layer_of_16_bits_scores_under_autocast_too(autocast):
    model, tokenizer = tiny_language_model("qwen2", tie_word_embeddings=False)
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(model.to(torch.bfloat16), config).eval()
    inputs = padded(300)
    with torch.no_grad():
        whole = model(**inputs).logits[torch.arange(3), last_places(inputs["attention_mask"]), 21].float()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            scores = TokenLogitHead(21).fitted_to(model, tokenizer)(model, inputs)

    torch.testing.assert_close(scores, whole, rtol=0.02, atol=0.02)


def test_a_text_of_one_token_an_entry_of_the_vocabulary_and_an_id_name_a_token():
    chat, t5 = language_tokenizer("chat"), language_tokenizer("t5")

    assert token_id(chat, "yes") == chat.get_vocab()["yes"]
    assert token_id(t5, "true") == token_id(t5, "▁true") == t5.get_vocab()["▁true"]
    assert token_id(t5, "<extra_id_10>") == t5.get_vocab()["<extra_id_10>"]
    assert token_id(chat, 5) == 5


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (TokenLogitHead("entirely"), "'entirely' is not one token of Qwen2Tokenizer: it becomes ['e"),
        (TokenLogitHead("yes", "not at all"), "'not at all' is not one token"),
        (TokenLogitHead("yes", "yes"), "yes='yes' and no='yes' are the same token"),
        (TokenLogitHead(""), "'' is not one token"),
        (TokenLogitHead(3, 70_000), "no=70000.: ids of Qwen2ForCausalLM are from 0 to"),
        (TokenLogitHead(-1), "yes=-1, no=None.: ids of Qwen2ForCausalLM are from 0 to"),
    ],
)
def test_answers_that_are_not_one_token_each_are_refused(head, message):
    with pytest.raises(ValueError, match=message.replace("['e", r"\['e")):
        head.fitted_to(*tiny_language_model("qwen2"))


def test_heads_refuse_models_that_they_cannot_read():
    with pytest.raises(ValueError, match="BertForSequenceClassification has no output layer"):
        TokenLogitHead(5).fitted_to(*tiny_model("bert"))
    with pytest.raises(ValueError, match="Qwen2ForCausalLM has num_labels=2"):
        LogitHead().fitted_to(*tiny_language_model("qwen2"))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration does not say with which token its decoder begins"):
        TokenLogitHead(5).fitted_to(*tiny_language_model("t5", decoder_start_token_id=None))


def test_a_model_with_an_encoder_shares_no_prefix():
    reason = reason_against(tiny_language_model("t5")[0])

    assert reason == "T5ForConditionalGeneration is no decoder that takes keys and values"
