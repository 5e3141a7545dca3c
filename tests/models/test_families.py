"""Families: how a checkpoint scores is found out, its scores are its own library's, and a saved one says the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.families import FAMILIES
from rerank_trainer.models.heads import LogitHead
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.verify import verify_checkpoint
from rerank_trainer.models.windows import Windows
from tests.tiny_language_models import plain_scores, saved_language_model
from tests.tiny_models import TEXTS, tiny_model

PAIRS = [(query, passage) for query in (TEXTS[0], f"{TEXTS[1]}?") for passage in (*TEXTS, "", "two\n\nlines \n")]
LONG = [(TEXTS[0], f"{TEXTS[1]}. " * 40), (TEXTS[2], " ".join(TEXTS) * 9)]

# The prompts as their authors publish them; the links stand in families.py.
QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {instruction}\n'
    "<Query>: {query}\n<Document>: {passage}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
BGE = (
    "<bos>A: {query}\nB: {passage}\nGiven a query A and a passage B, determine whether the passage contains an answer "
    "to the query by providing a prediction of either 'Yes' or 'No'."
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nquery: {query}\ndocument: {passage}\nYou are a search relevance expert who evaluates how well "
    "documents match search queries. For each query-document pair, carefully analyze the semantic relationship between "
    "them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n"
    "<|im_start|>assistant\n"
)
WEB = "Given a web search query, retrieve relevant passages that answer the query"

# Each published family: a repository's name, its architecture, its answers, and its prompt.
PUBLISHED = {
    "qwen3-reranker": ("Qwen3-Reranker-0.6B", "qwen3", ("yes", "no"), QWEN3.replace("{instruction}", WEB)),
    "bge-reranker-v2-gemma": ("bge-reranker-v2-gemma", "gemma", ("Yes",), BGE),
    "bge-like with a soft cap": ("my-bge-reranker-v2-gemma2", "gemma2", ("Yes",), BGE),
    "mxbai-rerank-v2": ("mxbai-rerank-base-v2", "qwen2", ("1", "0"), MXBAI),
    "monot5": (
        "monot5-base-msmarco",
        "t5",
        ("▁true", "▁false"),
        "Query: {query} Document: {passage} Relevant:</s>",
    ),
    "rankt5": ("RankT5-base", "t5", ("<extra_id_10>",), "Query: {query} Document: {passage}</s>"),
}


def filled(text: str, pairs=PAIRS) -> list[str]:
    return [text.replace("{query}", query).replace("{passage}", passage) for query, passage in pairs]


def pinned_chat_folder(folder: Path, chat_template: str | None = None) -> Path:
    """A Qwen3 as sentence-transformers saves it with its module LogitScore, by its own writer."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules.logit_score import LogitScore

    plain = saved_language_model("qwen3", folder / "plain")
    if chat_template is not None:
        tokenizer = AutoTokenizer.from_pretrained(plain)
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), transformer_task="text-generation")
    vocabulary = transformer.tokenizer.get_vocab()
    modules = [transformer, LogitScore(vocabulary["yes"], vocabulary["no"])]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


def cross_encoder(folder: Path):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_family_is_known_by_name_and_scores_as_plain_transformers(family, tmp_path, caplog):
    name, kind, answers, text = PUBLISHED[family]
    folder = saved_language_model(kind, tmp_path / name)
    with caplog.at_level(logging.INFO, logger="rerank_trainer"):
        reranker = Reranker.from_pretrained(folder)
    scores = reranker.predict(PAIRS)

    assert scores.std() > 0.1
    torch.testing.assert_close(scores, plain_scores(folder, filled(text), *answers), atol=1e-5, rtol=0)
    assert "is known by its name as a reranker of the family" in caplog.text and reranker.fresh_parameters == ()


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_saved_folder_is_found_again_and_opens_in_every_loader_that_can(family, tmp_path):
    name, kind, _, _ = PUBLISHED[family]
    reranker = Reranker.from_pretrained(saved_language_model(kind, tmp_path / name), max_length=200)
    reranker.save_pretrained(tmp_path / "student")
    again = Reranker.from_pretrained(tmp_path / "student")

    assert again.head == reranker.head and again.prompt == reranker.prompt and again.max_length == 200
    torch.testing.assert_close(again.predict(PAIRS + LONG), reranker.predict(PAIRS + LONG), atol=1e-6, rtol=0)
    loaders = {"transformers"} if kind == "t5" else {"transformers", "sentence_transformers"}
    # also of pairs that are cut: sentence-transformers keeps the prompt's end too, so other ids would be refused
    assert set(verify_checkpoint(tmp_path / "student", reranker, PAIRS + LONG)) == loaders


def test_sentence_transformers_refuses_what_it_cannot_score(tmp_path):
    saved_language_model("t5", tmp_path / "monot5-base")
    Reranker.from_pretrained(tmp_path / "monot5-base").save_pretrained(tmp_path / "saved")

    with pytest.raises(ValueError, match="T5Config"):  # and does not make up a fresh head
        cross_encoder(tmp_path / "saved")


def test_a_folder_of_sentence_transformers_says_by_itself_how_it_scores(tmp_path):
    template = FAMILIES["qwen3-reranker"].prompt.chat_template()
    folder = pinned_chat_folder(tmp_path, template)
    reranker = Reranker.from_pretrained(folder, max_length=160)
    theirs = cross_encoder(folder)
    theirs.max_seq_length = 160

    scores = torch.as_tensor(theirs.predict(PAIRS + LONG))
    assert scores.std() > 0.1
    torch.testing.assert_close(reranker.predict(PAIRS + LONG), scores, atol=1e-5, rtol=0)
    asked = torch.as_tensor(theirs.predict(PAIRS, prompt="Find the map."))
    torch.testing.assert_close(reranker.predict(PAIRS, instruction="Find the map."), asked, atol=1e-5, rtol=0)
    assert (asked - scores[: len(PAIRS)]).abs().max() > 0.01


def test_the_default_prompt_of_sentence_transformers_is_the_instruction(tmp_path):
    folder = pinned_chat_folder(tmp_path, FAMILIES["qwen3-reranker"].prompt.chat_template())
    settings = folder / "config_sentence_transformers.json"
    entries = {"prompts": {"maps": "Find the map."}, "default_prompt_name": "maps"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **entries}))
    reranker = Reranker.from_pretrained(folder)

    torch.testing.assert_close(
        reranker.predict(PAIRS), torch.as_tensor(cross_encoder(folder).predict(PAIRS)), atol=1e-5, rtol=0
    )
    assert reranker.prompt.instruction == "Find the map."
    reranker.save_pretrained(tmp_path / "again")
    assert Reranker.from_pretrained(tmp_path / "again").prompt == reranker.prompt


def test_answers_to_plain_pairs_score_as_in_sentence_transformers(tmp_path):
    folder = pinned_chat_folder(tmp_path)
    reranker = Reranker.from_pretrained(folder)
    theirs = torch.as_tensor(cross_encoder(folder).predict(PAIRS))

    assert reranker.prompt is None and theirs.std() > 0.1
    torch.testing.assert_close(reranker.predict(PAIRS), theirs, atol=1e-5, rtol=0)
    reranker.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(Reranker.from_pretrained(tmp_path / "again").predict(PAIRS), theirs, atol=1e-5, rtol=0)


def test_a_classifier_behind_a_chat_template_scores_as_in_sentence_transformers(tmp_path):
    from sentence_transformers import CrossEncoder

    model, tokenizer = tiny_model("qwen3")
    tokenizer.chat_template = Prompt("Is {query} in {passage}?").chat_template()
    tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    CrossEncoder(str(tmp_path / "plain"), device="cpu").save_pretrained(str(tmp_path / "theirs"))
    reranker = Reranker.from_pretrained(tmp_path / "theirs")
    expected = torch.as_tensor(cross_encoder(tmp_path / "theirs").predict(PAIRS))

    assert reranker.prompt == Prompt("Is {query} in {passage}?") and expected.std() > 0.1
    torch.testing.assert_close(reranker.predict(PAIRS), expected, atol=1e-5, rtol=0)
    reranker.save_pretrained(tmp_path / "ours")
    verify_checkpoint(tmp_path / "ours", reranker, PAIRS)
    torch.testing.assert_close(Reranker.from_pretrained(tmp_path / "ours").predict(PAIRS), expected, atol=1e-5, rtol=0)


def test_any_other_model_scores_by_tokens_and_a_prompt_of_your_own(tmp_path):
    folder = saved_language_model("cohere", tmp_path / "base")
    prompt = Prompt("{instruction} {query} / {passage} ? ", instruction="Relevant:")
    reranker = Reranker.from_pretrained(folder, head=TokenLogitHead("true", "false"), prompt=prompt)

    texts = filled("Relevant: {query} / {passage} ? ")
    torch.testing.assert_close(reranker.predict(PAIRS), plain_scores(folder, texts, "true", "false"), atol=1e-5, rtol=0)
    reranker.save_pretrained(tmp_path / "saved")
    verify_checkpoint(tmp_path / "saved", reranker, PAIRS)


def test_a_family_s_name_makes_a_student_of_a_plain_language_model(tmp_path):
    folder = saved_language_model("qwen3", tmp_path / "Qwen3-0.6B")

    student = Reranker.from_pretrained(folder, head="qwen3-reranker", instruction="Find it.")
    expected = plain_scores(folder, filled(QWEN3.replace("{instruction}", "Find it.")), "yes", "no")
    torch.testing.assert_close(student.predict(PAIRS), expected, atol=1e-5, rtol=0)
    fresh = Reranker.from_pretrained(folder)  # as before: nothing says that it answers
    assert fresh.head == LogitHead() and fresh.fresh_parameters == ("score.weight",)


def test_layers_that_are_left_out_are_left_out_of_language_models_too(tmp_path):
    folder = saved_language_model("qwen2", tmp_path / "mxbai-rerank-base-v2")
    reranker = Reranker.from_pretrained(folder, keep_layers=1)

    assert reranker.model.config.num_hidden_layers == len(reranker.model.model.layers) == 1
    assert reranker.predict(PAIRS).std() > 0.1


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return Reranker.from_pretrained(saved_language_model("qwen3", tmp_path_factory.mktemp("m") / "qwen3-reranker"))


def test_instructions_reach_the_prompt_for_all_pairs_and_for_each(qwen3):
    one = qwen3.predict(PAIRS, instruction="Find the map.")
    other = qwen3.predict(PAIRS)
    mixed = qwen3.predict(PAIRS, instruction=["Find the map.", None, ""] * 4 + ["Find the map.", ""])

    torch.testing.assert_close(mixed, torch.where(torch.arange(14) % 3 == 0, one, other), atol=1e-5, rtol=0)
    assert (one - other).abs().max() > 0.01
    torch.testing.assert_close(qwen3.predict(PAIRS, instruction=WEB), other, atol=1e-6, rtol=0)
    best = qwen3.rank(*PAIRS[0][:1], TEXTS, instruction="Find the map.")[0]
    assert best["score"] == pytest.approx(one[:5].max().item(), abs=1e-5)


def test_company_and_order_change_no_score(qwen3):
    scores = qwen3.predict(PAIRS + LONG)

    alone = torch.cat([qwen3.predict([pair]) for pair in PAIRS + LONG])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(qwen3.predict((PAIRS + LONG)[::-1]), scores.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "yesno"}, r"head='yesno': expected one of \['auto', 'logit', 'qwen3-reranker'"),
        ({"head": TokenLogitHead("perhaps"), "prompt": Prompt("{query}{passage}")}, "'perhaps' is not one token"),
        ({"head": TokenLogitHead("yes", "no")}, "has no chat template that writes one. Give it: prompt=Prompt"),
        ({"head": "monot5", "instruction": "Find it."}, "instruction='Find it.', but the prompt .* has no place"),
        ({"instruction": "Find it."}, "instruction='Find it.': pairs are encoded without a prompt"),
        ({"head": "qwen3-reranker", "max_length": 40}, "max_length=40 .* leaves no room for a passage"),
    ],
)
def test_heads_and_prompts_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Reranker.from_pretrained(saved_language_model("qwen3", tmp_path), **options)


def test_an_instruction_without_a_place_is_refused_when_scoring():
    with pytest.raises(ValueError, match="instruction='Find it.': pairs are encoded without a prompt"):
        Reranker(*tiny_model("bert")).predict([("sun", "star")], instruction="Find it.")


def test_as_many_instructions_as_pairs_are_expected(qwen3):
    with pytest.raises(ValueError, match="1 instructions for 14 pairs: give one for all, or one each"):
        qwen3.predict(PAIRS, instruction=["Find it."])


def test_windows_of_a_prompt_are_refused(qwen3):
    with pytest.raises(ValueError, match="a prompt is tokenised as one text"):
        qwen3.predict(PAIRS, windows=Windows())


def test_a_checkpoint_without_a_trained_output_layer_is_refused(tmp_path):
    model, tokenizer = tiny_model("qwen3")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"has no trained lm_head\.weight, so the tokens .* mean nothing"):
        Reranker.from_pretrained(tmp_path, head="qwen3-reranker")
