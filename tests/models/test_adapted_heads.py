"""Adapters on language models that answer with a token and on chains: saved, opened, merged with the same scores."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from rerank_trainer.models.adapters import default_lora
from rerank_trainer.models.families import FAMILIES
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.verify import verify_checkpoint
from tests.tiny_language_models import saved_language_model
from tests.tiny_models import PAIRS, tiny_recurrent_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

SHORT = PAIRS[:6]
QWEN3, MONOT5 = "Qwen3-Reranker-tiny", "monot5-tiny"  # names by which the families are known
ADAPTED = {
    "qwen3": (QWEN3, {"transformers", "sentence_transformers"}),
    "t5": (MONOT5, {"transformers"}),
    "mamba": ("mamba", {"sentence_transformers"}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a causal language model, of one with an encoder, and of a recurrent backbone."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("qwen3", "t5"):
        saved_language_model(kind, folder / ADAPTED[kind][0])
    model, tokenizer = tiny_recurrent_model("mamba")
    model.save_pretrained(folder / "mamba")
    tokenizer.save_pretrained(folder / "mamba")
    return folder


def trained(reranker: Reranker) -> Reranker:
    """The reranker with other values in all that is trained, as if it had been."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reranker.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    reranker.model.eval()
    return reranker


@pytest.mark.parametrize("kind", ADAPTED)
def test_an_adapter_opens_with_the_head_and_the_prompt_of_its_reranker_and_merges(bases, tmp_path, kind):
    name, loaders = ADAPTED[kind]
    plain = Reranker.from_pretrained(bases / name, max_length=256)
    before = plain.predict(SHORT)
    torch.manual_seed(0)
    reranker = trained(plain.with_adapter(default_lora(plain.model)))
    scores = reranker.predict(SHORT)
    assert (scores - before).abs().max() > 0.01

    reranker.save_pretrained(tmp_path / "adapter")
    reranker.save_merged(tmp_path / "merged")

    for folder in (tmp_path / "adapter", tmp_path / "merged"):
        assert set(verify_checkpoint(folder, reranker, SHORT)) == loaders
        again = Reranker.from_pretrained(folder)
        assert (again.head, again.prompt is None) == (reranker.head, reranker.prompt is None)
        torch.testing.assert_close(again.predict(SHORT), scores, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_peft_alone_is_scored_as_its_base_is_known_to_be(bases, tmp_path):
    plain = Reranker.from_pretrained(bases / QWEN3)
    model = get_peft_model(plain.model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)  # no tokenizer, and nothing of sentence-transformers

    adapted = Reranker.from_pretrained(tmp_path)

    assert adapted.prompt == FAMILIES["qwen3-reranker"].prompt
    assert isinstance(adapted.head, TokenLogitHead)
    torch.testing.assert_close(adapted.predict(SHORT), Reranker.from_pretrained(bases / QWEN3).predict(SHORT))


@pytest.mark.parametrize("kind", ADAPTED)
def test_prompt_tuning_of_a_score_at_one_token_is_refused(bases, kind):
    reranker = Reranker.from_pretrained(bases / ADAPTED[kind][0])

    with pytest.raises(ValueError, match="its score is read at the last token"):
        reranker.with_adapter(PromptTuningConfig(num_virtual_tokens=2))
