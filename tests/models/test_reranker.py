"""Rerankers: the same score in every loader, pairs in any order and company, clear refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.windows import Windows
from tests.tiny_models import DECODERS, KINDS, PAIRS, TEXTS, byte_tokenizer, tiny_model


class Saved(NamedTuple):
    """A reranker, the folder that it was saved to, and its scores of PAIRS."""

    reranker: Reranker
    folder: str
    scores: torch.Tensor


@pytest.fixture(scope="module", params=[*KINDS, "minilm"])
def saved(request, tmp_path_factory, minilm_path):
    if request.param == "minilm":
        reranker = Reranker.from_pretrained(minilm_path, max_length=64)
        torch.manual_seed(0)
        torch.nn.init.normal_(reranker.model.classifier.weight, std=1.0)
    else:
        reranker = Reranker(*tiny_model(request.param), max_length=64)
    folder = tmp_path_factory.mktemp(request.param)
    reranker.save_pretrained(folder)
    return Saved(reranker, str(folder), reranker.predict(PAIRS))


def transformers_scores(folder: str, pairs: list[tuple[str, str]], **options) -> torch.Tensor:
    """Scores by plain Transformers, in one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    queries, passages = zip(*pairs, strict=True)
    batch = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt", **options)
    with torch.no_grad():
        return model(**batch).logits[:, 0]


def test_scores_spread_and_depend_on_the_passage(saved):
    assert saved.scores.std() > 0.1
    swapped = [(PAIRS[0][0], PAIRS[1][1]), (PAIRS[1][0], PAIRS[0][1])]
    assert (saved.reranker.predict(swapped) - saved.scores[:2]).abs().min() > 1e-3


def test_a_saved_folder_scores_the_same_in_transformers(saved):
    reranker, folder, expected = saved
    lengths = [len(row.input_ids) for pair in PAIRS for row in reranker.template.encode([(pair[0], [pair[1]])])[0]]

    assert min(lengths) < 20 and lengths.count(64) >= 3  # padded; and cut: a long passage, a long query, both
    torch.testing.assert_close(transformers_scores(folder, PAIRS), expected, atol=1e-5, rtol=0)


def test_the_padding_side_changes_nothing(saved, request):
    if request.node.callspec.params["saved"] not in DECODERS:
        pytest.skip("encoders with absolute positions need padding on the right")
    assert AutoTokenizer.from_pretrained(saved.folder).padding_side == "right"
    left = transformers_scores(saved.folder, PAIRS, padding_side="left")
    torch.testing.assert_close(left, saved.scores, atol=1e-5, rtol=0)


def test_a_saved_folder_scores_the_same_in_sentence_transformers(saved):
    from sentence_transformers import CrossEncoder

    scores = CrossEncoder(saved.folder, device="cpu").predict(PAIRS, convert_to_tensor=True)

    torch.testing.assert_close(scores, saved.scores, atol=1e-5, rtol=0)


def test_a_saved_folder_scores_the_same_here(saved):
    again = Reranker.from_pretrained(saved.folder)

    assert again.max_length == 64
    torch.testing.assert_close(again.predict(PAIRS[-6:]), saved.scores[-6:], atol=1e-5, rtol=0)


def test_a_pair_scores_the_same_alone_and_in_company(saved):
    reranker = saved.reranker
    alone = torch.cat([reranker.predict([pair]) for pair in PAIRS[-6:]])

    torch.testing.assert_close(alone, saved.scores[-6:], atol=1e-5, rtol=0)
    torch.testing.assert_close(reranker.predict(PAIRS[-6:], max_tokens=150), alone, atol=1e-5, rtol=0)


def test_a_saved_folder_says_raw_logits_and_length_where_servers_look(saved):
    folder = saved.folder
    config = json.loads(Path(folder, "config.json").read_text())

    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"
    assert config["pad_token_id"] is not None
    assert list(config.get("id2label", {"0": ""})) == ["0"]
    assert json.loads(Path(folder, "sentence_bert_config.json").read_text())["max_seq_length"] == 64


@pytest.mark.parametrize("kind", ["qwen2", "xlm-roberta"])
def test_a_chat_template_of_the_tokenizer_changes_no_score(tmp_path, kind):
    from sentence_transformers import CrossEncoder

    model, tokenizer = tiny_model(kind)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    reranker = Reranker(model, tokenizer, max_length=64)
    plain = reranker.predict(PAIRS)
    reranker.save_pretrained(tmp_path)

    assert AutoTokenizer.from_pretrained(tmp_path).chat_template
    torch.testing.assert_close(transformers_scores(str(tmp_path), PAIRS), plain, atol=1e-5, rtol=0)
    other = CrossEncoder(str(tmp_path), device="cpu")
    torch.testing.assert_close(other.predict(PAIRS, convert_to_tensor=True), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(Reranker.from_pretrained(tmp_path).predict(PAIRS), plain, atol=1e-6, rtol=0)

    # without the file that says "plain text", sentence-transformers would go through the template
    for name in ("modules.json", "sentence_bert_config.json"):
        (tmp_path / name).unlink()
    templated = CrossEncoder(str(tmp_path), device="cpu").predict(PAIRS, convert_to_tensor=True)
    assert (templated - plain).abs().max() > 0.01


def test_a_query_budget_is_kept_in_the_folder_and_leaves_it_with_the_budget(tmp_path):
    reranker = Reranker(*tiny_model("bert"), max_length=40, query_max_length=30)
    reranker.save_pretrained(tmp_path)
    pair = [(TEXTS[0] * 5, TEXTS[1] * 5)]
    again = Reranker.from_pretrained(tmp_path)

    assert again.query_max_length == 30
    torch.testing.assert_close(again.predict(pair), reranker.predict(pair), atol=1e-6, rtol=0)
    assert again.with_lengths(max_length=36).query_max_length == 30
    assert (transformers_scores(str(tmp_path), pair) - reranker.predict(pair)).abs() > 1e-3  # as the docs say
    Reranker(again.model, again.tokenizer, max_length=40).save_pretrained(tmp_path / "without")
    assert "rerank_trainer" not in json.loads((tmp_path / "without" / "config.json").read_text())


def test_rank_orders_passages_from_best_to_worst(saved):
    ranking = saved.reranker.rank(TEXTS[0], TEXTS, top_k=3)
    scores = saved.scores[:5].tolist()  # the same query with the same passages

    assert [entry["corpus_id"] for entry in ranking] == sorted(range(5), key=lambda i: -scores[i])[:3]
    assert [entry["text"] for entry in ranking] == [TEXTS[entry["corpus_id"]] for entry in ranking]
    assert ranking[0]["score"] == pytest.approx(max(scores), abs=1e-5)


def test_two_logits_become_their_difference(tmp_path):
    model, tokenizer = tiny_model("bert", num_labels=2)
    tokenizer.model_max_length = 64
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    queries, passages = zip(*PAIRS, strict=True)
    batch = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits

    reranker = Reranker.from_pretrained(tmp_path)
    reranker.save_pretrained(tmp_path / "folded")

    torch.testing.assert_close(reranker.predict(PAIRS), logits[:, 1] - logits[:, 0], atol=1e-5, rtol=0)
    folded = transformers_scores(str(tmp_path / "folded"), PAIRS)
    torch.testing.assert_close(folded, logits[:, 1] - logits[:, 0], atol=1e-5, rtol=0)


def test_three_labels_are_refused_by_number(tmp_path):
    model, tokenizer = tiny_model("bert", num_labels=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="classifies into 3 labels"):
        Reranker.from_pretrained(tmp_path)


def test_options_of_transformers_pass_through(tmp_path):
    Reranker(*tiny_model("qwen3")).save_pretrained(tmp_path)

    loaded = Reranker.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.config._attn_implementation == "eager"
    assert Reranker.from_pretrained(tmp_path).model.dtype == torch.float32


def test_a_plain_backbone_gets_a_fresh_head_and_says_which(tmp_path):
    tokenizer = byte_tokenizer(special=True)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    assert Reranker.from_pretrained(tmp_path).fresh_parameters == ("classifier.bias", "classifier.weight")


def test_kept_layers_are_those_asked_for(tmp_path):
    reranker = Reranker(*tiny_model("qwen3"))
    reranker.save_pretrained(tmp_path)
    second = reranker.model.model.layers[1].state_dict()

    cut = Reranker.from_pretrained(tmp_path, keep_layers=[1])

    assert cut.model.config.num_hidden_layers == len(cut.model.model.layers) == 1
    kept = cut.model.model.layers[0].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in second.items())
    cut.save_pretrained(tmp_path / "cut")
    again = Reranker.from_pretrained(tmp_path / "cut")
    torch.testing.assert_close(again.predict(PAIRS), cut.predict(PAIRS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", [[0, 2], [], [1, 0], 3, 0])
def test_layers_that_do_not_exist_are_refused(tmp_path, layers):
    Reranker(*tiny_model("bert")).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="keep_layers=.*from 0 to 1"):
        Reranker.from_pretrained(tmp_path, keep_layers=layers)


def test_a_decoder_without_pad_token_takes_its_end_of_text_token():
    model, tokenizer = tiny_model("qwen3")
    assert tokenizer.pad_token is None

    Reranker(model, tokenizer)

    assert model.config.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.padding_side == "right"


def test_a_tokenizer_without_pad_and_end_token_is_refused():
    model, tokenizer = tiny_model("qwen3")
    tokenizer.eos_token = None

    with pytest.raises(ValueError, match="no pad token .pad_token=None"):
        Reranker(model, tokenizer)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("water", "fire"), "expected a list of .query, passage. pairs"),
        ([("water", "fire"), "water"], "pair 1 is 'water'"),
        ([("water", None)], "pair 0 is .'water', None."),
        ([("a", "b", "c")], "pair 0 is"),
    ],
)
def test_what_is_not_a_pair_is_refused_with_its_number(pairs, message):
    with pytest.raises(ValueError, match=message):
        Reranker(*tiny_model("bert")).predict(pairs)


def test_no_pairs_give_no_scores():
    assert Reranker(*tiny_model("bert")).predict([]).shape == (0,)


def test_predict_leaves_the_model_in_the_mode_it_was_in():
    reranker = Reranker(*tiny_model("bert"))
    reranker.model.train()
    reranker.predict(PAIRS[:2])

    assert reranker.model.training


def test_bfloat16_scores_are_near_and_float32():
    reranker = Reranker(*tiny_model("bert", spread=0.1))
    exact, rough = reranker.predict(PAIRS), reranker.predict(PAIRS, autocast_dtype=torch.bfloat16)

    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05 and math.isfinite(rough.sum())


def cut_lines(caplog):
    return [(r.levelname, r.getMessage()) for r in caplog.records if "were cut" in r.getMessage()]


@pytest.mark.parametrize(("num_short", "level"), [(1, "WARNING"), (30, "INFO")])
def test_predict_says_once_a_call_how_much_was_cut_and_warns_once_when_it_is_much(caplog, num_short, level):
    reranker = Reranker(*tiny_model("bert"), max_length=40)
    long = TEXTS[1] * 6
    num_tokens = sum(len(reranker.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (TEXTS[0], long))
    share = round(100 * (num_tokens - (40 - 3)) / num_tokens)
    pairs = [(TEXTS[0], long), *[("water", "fire")] * num_short, (TEXTS[0], long)]

    with caplog.at_level("INFO"):
        reranker.predict(pairs, pairs_per_chunk=2)
        reranker.predict(pairs)

    text = f"2 of {num_short + 2} pairs were cut to max_length=40, {share} % of their tokens lost; raise max_length"
    text = f"{text} or pass windows=Windows()"
    assert cut_lines(caplog) == [(level, text), ("INFO", text)]


@pytest.mark.parametrize("windows", [None, Windows(overlap=4)], ids=["short pairs", "windows"])
def test_predict_says_nothing_when_nothing_was_lost(caplog, windows):
    reranker = Reranker(*tiny_model("bert"), max_length=40)
    with caplog.at_level("INFO"):
        reranker.predict([("water", TEXTS[1] * 6 if windows else "fire")], windows=windows)

    assert cut_lines(caplog) == []
