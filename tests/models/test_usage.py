"""Usage: every snippet of a model card runs as it is printed, and gives the scores of the model in memory."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.model_card import reranker_card
from rerank_trainer.models.adapters import default_lora
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from tests.tiny_language_models import tiny_language_model
from tests.tiny_models import tiny_model, tiny_recurrent_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

PAIRS = [("what heats water", passage) for passage in ("a kettle on the fire", "a ship on its way to the north")]
PROMPT = Prompt("Query: {query}\nDocument: {passage}\nRelevant:")


def adapted(folder, kind, peft_config=None, **loading):
    """A reranker with an adapter that changes its scores, on a base that is saved in a folder."""
    if loading:
        pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    Reranker(*tiny_model(kind), max_length=64).save_pretrained(folder / "base")
    base = Reranker.from_pretrained(folder / "base", **loading)
    reranker = base.with_adapter(peft_config or default_lora(base.model))
    torch.manual_seed(0)
    for name, parameter in reranker.model.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "prompt" in name):
            torch.nn.init.normal_(parameter, std=0.3)
    return reranker


def language(kind, yes, no, **options):
    model, tokenizer = tiny_language_model(kind, **options)
    return Reranker(model, tokenizer, head=TokenLogitHead(yes, no), prompt=PROMPT)


def recurrent(folder):
    model, tokenizer = tiny_recurrent_model("mamba")
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    return Reranker.from_pretrained(folder / "plain")


EVERY = ("rerank_trainer", "sentence_transformers", "transformers")
# What is saved, and the libraries that open it.
STUDENTS = {
    "classifier": (lambda folder: Reranker(*tiny_model("bert"), max_length=64), EVERY),
    "decoder with a head": (lambda folder: Reranker(*tiny_model("qwen3"), max_length=64), EVERY),
    "adapter of an encoder": (lambda folder: adapted(folder, "bert"), EVERY),
    "adapter of a decoder": (lambda folder: adapted(folder, "llama"), EVERY),
    "adapter on 4 bits": (lambda folder: adapted(folder, "bert", load_in_4bit=True), EVERY),
    "prompt tuning": (
        lambda folder: adapted(folder, "bert", PromptTuningConfig(num_virtual_tokens=4)),
        ("rerank_trainer", "peft"),
    ),
    "two answers": (lambda folder: language("qwen3", "yes", "no"), EVERY),
    "one answer behind a soft cap": (lambda folder: language("gemma2", "Yes", None), EVERY),
    "encoder and decoder": (lambda folder: language("t5", "▁true", "▁false"), ("rerank_trainer", "transformers")),
    "classifier with a prompt": (lambda folder: Reranker(*tiny_model("qwen3"), prompt=PROMPT, max_length=128), EVERY),
    "chain": (recurrent, ("rerank_trainer", "sentence_transformers")),
}


def snippets(card):
    """The snippets of a card by the library that they import."""
    found = re.findall(r"```python\n(.*?)```", str(card), re.DOTALL)
    libraries = ("rerank_trainer", "sentence_transformers", "peft", "transformers")
    return {next(name for name in libraries if f"from {name} import" in code): code for code in found}


def run(code):
    names: dict = {}
    exec(compile(code, "<card>", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def weights_of_4_bits_stay_as_they_are(monkeypatch):
    """On some CPUs bitsandbytes rounds them once more, and fails at layers as narrow as these."""
    if find_spec("bitsandbytes"):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module", params=STUDENTS)
def student(request, tmp_path_factory):
    """A reranker, its folder, and the snippets of its card with the folder in place of the id."""
    make, libraries = STUDENTS[request.param]
    folder = tmp_path_factory.mktemp("student")
    reranker = make(folder)
    reranker.save_pretrained(folder / "saved")
    codes = snippets(reranker_card(reranker, name="some/reranker"))
    assert all(code.count('"some/reranker"') == (1 if "tokenizer" not in code else 2) for code in codes.values())
    return (
        reranker,
        {key: code.replace("some/reranker", str(folder / "saved")) for key, code in codes.items()},
        libraries,
    )


def test_every_library_that_opens_a_folder_has_a_snippet_that_gives_its_scores(student):
    reranker, codes, libraries = student
    assert set(codes) == set(libraries)
    expected = reranker.predict(PAIRS)
    assert (expected[0] - expected[1]).abs() > 1e-3  # else exchanged passages would pass

    for library, code in codes.items():
        names = run(code)
        torch.testing.assert_close(torch.as_tensor(names["scores"]).cpu(), expected, atol=1e-5, rtol=1e-5, msg=library)
        if "ranking" in names:
            assert [entry["corpus_id"] for entry in names["ranking"]] == expected.argsort(descending=True).tolist()


def test_a_merged_adapter_has_the_snippets_of_a_whole_model(tmp_path):
    reranker = adapted(tmp_path, "bert", LoraConfig(r=4))
    reranker.save_merged(tmp_path / "merged")
    card = reranker_card(reranker, name="some/reranker", is_merged=True)

    assert "num_labels" not in str(card) and "adapter_config.json" not in str(card)
    for code in snippets(card).values():
        scores = torch.as_tensor(run(code.replace("some/reranker", str(tmp_path / "merged")))["scores"])
        torch.testing.assert_close(scores, reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)


def test_the_sigmoid_that_the_card_names_maps_scores_of_sentence_transformers(tmp_path):
    from sentence_transformers import CrossEncoder

    reranker = Reranker(*tiny_model("bert"), max_length=64)
    reranker.save_pretrained(tmp_path)
    given = re.search(r"`CrossEncoder\(\.\.\., (.*?)\)`", str(reranker_card(reranker, name="x")))
    activation = eval(given[1].removeprefix("activation_fn="))

    scores = CrossEncoder(str(tmp_path), activation_fn=activation, device="cpu").predict(PAIRS, convert_to_tensor=True)
    torch.testing.assert_close(scores, reranker.predict(PAIRS).sigmoid(), atol=1e-6, rtol=1e-5)


def test_a_name_with_quotes_cannot_leave_its_text(tmp_path):
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    codes = snippets(reranker_card(reranker, name='a"); raise SystemExit("'))

    for code in codes.values():
        with pytest.raises((OSError, ValueError)):  # no such repository
            run(code)


def test_the_prompt_stands_in_the_card_as_code(tmp_path):
    text = str(reranker_card(language("qwen3", "yes", "no"), name="x"))

    assert r': `"Query: {query}\nDocument: {passage}\nRelevant:"`' + "\n" in text
