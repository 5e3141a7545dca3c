"""Peers: folders as other libraries write them load with their own scores, or are refused for what they do."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_trainer.models.reranker import Reranker
from tests.tiny_models import PAIRS, TEXTS, tiny_model

SIGMOID = "torch.nn.modules.activation.Sigmoid"


def edit_json(path: Path, **entries) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **entries}))


def plain_folder(folder: Path, kind: str = "bert", max_length: int = 64) -> str:
    """Model and tokenizer as plain Transformers saves them."""
    model, tokenizer = tiny_model(kind)
    tokenizer.model_max_length = max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def version_3(folder: Path) -> str:
    """sentence-transformers below 4: plain files, and the activation in a key of its own."""
    plain_folder(folder)
    edit_json(folder / "config.json", sbert_ce_default_activation_function=SIGMOID)
    return str(folder)


def version_4(folder: Path, version: str = "4.1.0") -> str:
    """sentence-transformers 4: plain files, and a part of config.json."""
    plain_folder(folder)
    edit_json(folder / "config.json", sentence_transformers={"activation_fn": SIGMOID, "version": version})
    return str(folder)


def version_5(folder: Path) -> str:
    """sentence-transformers 5, up to 5.3: as 4; what comes after has the files of 6."""
    return version_4(folder, "5.2.0")


def version_6(folder: Path) -> str:
    """The installed sentence-transformers, by its own writer."""
    from sentence_transformers import CrossEncoder

    CrossEncoder(plain_folder(folder / "plain"), device="cpu").save_pretrained(str(folder / "saved"))
    assert SIGMOID in (folder / "saved" / "config_sentence_transformers.json").read_text()
    return str(folder / "saved")


def cross_encoder_scores(folder: str, pairs=PAIRS) -> torch.Tensor:
    """The logits, by sentence-transformers."""
    from sentence_transformers import CrossEncoder

    cross_encoder = CrossEncoder(folder, device="cpu", activation_fn=torch.nn.Identity())
    return cross_encoder.predict(pairs, convert_to_tensor=True)


@pytest.mark.parametrize("write", [version_3, version_4, version_5, version_6])
def test_a_folder_of_sentence_transformers_scores_with_its_logits_and_says_so(tmp_path, write, caplog):
    folder = write(tmp_path)
    with caplog.at_level(logging.INFO, logger="rerank_trainer"):
        reranker = Reranker.from_pretrained(folder)

    assert reranker.max_length == 64
    torch.testing.assert_close(reranker.predict(PAIRS), cross_encoder_scores(folder), atol=1e-5, rtol=0)
    assert f"stores the activation {SIGMOID}, which is not applied" in caplog.text


@pytest.mark.parametrize("write", [version_3, version_4, version_5, version_6])
def test_saved_again_such_a_folder_is_one_of_raw_logits(tmp_path, write, caplog):
    reranker = Reranker.from_pretrained(write(tmp_path))
    reranker.save_pretrained(tmp_path / "again")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="rerank_trainer"):
        Reranker.from_pretrained(tmp_path / "again")

    assert "activation" not in caplog.text
    assert SIGMOID not in (tmp_path / "again" / "config.json").read_text()


def test_the_stored_length_limit_goes_before_the_tokenizers(tmp_path):
    Reranker.from_pretrained(version_6(tmp_path)).save_pretrained(tmp_path / "mine")
    folder = tmp_path / "mine"
    edit_json(folder / "sentence_bert_config.json", max_seq_length=40)
    reranker = Reranker.from_pretrained(folder)

    assert reranker.max_length == 40
    torch.testing.assert_close(reranker.predict(PAIRS), cross_encoder_scores(str(folder)), atol=1e-5, rtol=0)
    assert Reranker.from_pretrained(folder, max_length=50).max_length == 50


def test_the_limit_of_an_embedding_model_is_not_that_of_a_student_made_of_it(minilm_path):
    assert json.loads(Path(minilm_path, "sentence_bert_config.json").read_text())["max_seq_length"] == 256

    assert Reranker.from_pretrained(minilm_path, keep_layers=1).max_length == 512


def flag_embedding_scores(folder: str, pairs, max_length: int) -> torch.Tensor:
    """FlagEmbedding's way with encoders: query cut to three quarters, then the passage to what the frame leaves."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    scores = []
    for query, passage in pairs:
        query_ids = tokenizer(query, add_special_tokens=False)["input_ids"][: max_length * 3 // 4]
        passage_ids = tokenizer(passage, add_special_tokens=False)["input_ids"][: max_length - 4 - len(query_ids)]
        ids = torch.tensor([[first, *query_ids, end, end, *passage_ids, end]])
        with torch.no_grad():
            scores.append(model(ids, attention_mask=torch.ones_like(ids)).logits[0, 0])
    return torch.stack(scores)


def test_an_encoder_of_flag_embedding_scores_as_there(tmp_path):
    folder = plain_folder(tmp_path, "xlm-roberta", max_length=64)
    expected = flag_embedding_scores(folder, PAIRS, 64)
    with_budget = Reranker.from_pretrained(folder, query_max_length=48)
    plain = Reranker.from_pretrained(folder)
    num_query = [len(ids) for ids in plain.tokenizer([q for q, _ in PAIRS], add_special_tokens=False)["input_ids"]]
    up_to_half = [pair for pair, length in zip(PAIRS, num_query, strict=True) if length <= (64 - 4) // 2]

    torch.testing.assert_close(with_budget.predict(PAIRS), expected, atol=1e-5, rtol=0)
    # without the budget a query of more than half the room is cut as by Transformers and not as there
    assert 0 < len(up_to_half) < len(PAIRS)
    again = flag_embedding_scores(folder, up_to_half, 64)
    torch.testing.assert_close(plain.predict(up_to_half), again, atol=1e-5, rtol=0)
    assert (plain.predict(PAIRS) - expected).abs().max() > 0.01


def test_a_decoder_of_tevatron_scores_as_there_with_its_words_before_the_texts(tmp_path):
    folder = plain_folder(tmp_path, "llama", max_length=128)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [(f"query: {query}", f"document: {passage}") for query, passage in PAIRS[:6]]
    expected = []
    for query, passage in pairs:
        with torch.no_grad():
            expected.append(model(**tokenizer(query, passage, return_tensors="pt")).logits[0, 0])

    scores = Reranker.from_pretrained(folder).predict(pairs)
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=0)


def test_a_head_in_a_pickle_is_refused(tmp_path):
    plain_folder(tmp_path)
    edit_json(tmp_path / "reranker_config.json", pooling="last")
    torch.save({}, tmp_path / "reranker_head.pt")

    with pytest.raises(ValueError, match=r"Tevatron reranker .* reranker_head\.pt, a pickle"):
        Reranker.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("config_sentence_transformers.json", {"default_prompt_name": "web", "prompts": {"web": "Search the web: "}}),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": "only_second"}}}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ],
)
def test_a_cross_encoder_that_changes_its_texts_is_refused_and_its_parts_are_not(tmp_path, file, entry):
    folder = Path(version_6(tmp_path))
    edit_json(folder / file, **entry)

    with pytest.raises(ValueError, match=f"changes its texts .*{next(iter(entry))}"):
        Reranker.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert Reranker(model, AutoTokenizer.from_pretrained(folder)).predict([(TEXTS[0], TEXTS[1])]).isfinite()


def test_a_chain_of_modules_is_refused_by_name(tmp_path):
    folder = Path(version_6(tmp_path))
    modules = [
        {"idx": i, "name": str(i), "path": "", "type": f"x.{name}"} for i, name in enumerate(("Transformer", "Dense"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))

    with pytest.raises(ValueError, match="chain of the modules .'Transformer', 'Dense'."):
        Reranker.from_pretrained(folder)
