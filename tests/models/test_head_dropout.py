"""Head dropout: the samples of one forward are the scores under each noise alone, for every head there is."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.models.head_dropout import HeadDropout
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import scores_in_evaluation
from rerank_trainer.models.token_logits import TokenLogitHead
from tests.tiny_language_models import tiny_language_model
from tests.tiny_models import PAIRS, tiny_model, tiny_recurrent_model

SOME = PAIRS[:5]
# The layer that makes the score, by its name in Transformers.
LAST = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "electra": "classifier.out_proj",
    "deberta-v2": "classifier",
    "modernbert": "classifier",
    "qwen2": "score",
    "gemma2": "score",
}
# Those with a soft cap or a scale behind the output layer among them.
LANGUAGE_MODELS = ["qwen3", "gemma2", "granite", "t5"]


def samples_of(reranker: Reranker, noises: torch.Tensor) -> torch.Tensor:
    head = HeadDropout(reranker)
    head.noises = noises
    rows = reranker.template.encode([(query, [passage]) for query, passage in SOME])
    laid = lay_rows([row for (row,) in rows], [(i, 0) for i in range(len(rows))])
    return scores_in_evaluation(reranker.row_scorer(head=head), reranker.model, laid)


def one_by_one(reranker: Reranker, layer: torch.nn.Module, noises: torch.Tensor) -> torch.Tensor:
    """The slow definition: for each noise a forward of its own, in which a hook multiplies what the layer reads."""
    scores = []
    for noise in noises:
        hook = layer.register_forward_pre_hook(lambda _, states, noise=noise: (states[0] * noise,))
        scores.append(reranker.predict(SOME))
        hook.remove()
    return torch.stack(scores, dim=-1)


def noises_for(layer: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(4, layer.in_features, generator=generator) > 0.3) / 0.7


def require_equal(reranker: Reranker, layer: torch.nn.Module) -> None:
    noises = noises_for(layer)
    found, expected = samples_of(reranker, noises), one_by_one(reranker, layer, noises)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.shape == (len(SOME), 4) and found.std(dim=1).min() > 0.01
    torch.testing.assert_close(samples_of(reranker, torch.ones_like(noises[:1]))[:, 0], reranker.predict(SOME))


@pytest.mark.parametrize("kind", LAST)
def test_samples_of_a_classifier_are_its_scores_under_each_noise(kind):
    reranker = Reranker(*tiny_model(kind), max_length=48)

    require_equal(reranker, reranker.model.get_submodule(LAST[kind]))


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("no", ["no", None])
def test_samples_of_an_answer_are_its_scores_under_each_noise_also_behind_a_soft_cap(kind, no):
    yes, no = ("true", no and "false") if kind == "t5" else ("yes", no)
    reranker = Reranker(*tiny_language_model(kind), head=TokenLogitHead(yes, no), max_length=64)

    require_equal(reranker, reranker.model.lm_head)


def test_samples_of_a_chain_are_its_scores_under_each_noise(tmp_path):
    model, tokenizer = tiny_recurrent_model("mamba")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    reranker = Reranker.from_pretrained(tmp_path, max_length=48)

    require_equal(reranker, reranker.model.chain[1].linear)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("options", [{}, {"target_modules": ["query", "classifier"]}], ids=["beside", "on the head"])
def test_samples_of_an_adapted_model_are_its_scores_under_each_noise(tmp_path, options):
    Reranker(*tiny_model("bert"), max_length=48).save_pretrained(tmp_path)
    reranker = Reranker.from_pretrained(tmp_path).with_adapter(LoraConfig(r=2, **options))
    with torch.no_grad():
        for name, parameter in reranker.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    (layer,) = [
        module
        for name, module in reranker.model.named_modules()
        if name.endswith("classifier" if options else "classifier.modules_to_save.default")
    ]

    require_equal(reranker, layer)


def test_the_backbone_runs_once_a_row_however_many_samples_there_are():
    reranker = Reranker(*tiny_model("bert"), max_length=48)
    head, ran = HeadDropout(reranker), []
    reranker.model.bert.register_forward_hook(lambda module, inputs, output: ran.append(len(output[0])))
    rows = [row for (row,) in reranker.template.encode([(query, [passage]) for query, passage in SOME])]
    laid = lay_rows(rows, [(i, 0) for i in range(len(rows))])
    for num_samples in (1, 30):
        ran.clear()
        head.draw(num_samples, rate=0.1, generator=torch.Generator().manual_seed(0))
        samples = scores_in_evaluation(reranker.row_scorer(head=head), reranker.model, laid)

        assert samples.shape == (len(SOME), num_samples) and sum(ran) == len(SOME)


def test_samples_are_the_same_however_rows_share_micro_batches_and_prefixes():
    reranker = Reranker(*tiny_model("llama"), max_length=48)
    head = HeadDropout(reranker)
    head.draw(3, rate=0.2, generator=torch.Generator().manual_seed(0))
    rows = reranker.template.encode([(SOME[0][0], [passage for _, passage in SOME])])[0]
    laid = lay_rows(rows, [(0, i) for i in range(len(rows))])

    whole, shared = (
        scores_in_evaluation(reranker.row_scorer(*size, head=head, share_prefix=share), reranker.model, laid)
        for size, share in (((), False), ((60,), True))
    )
    torch.testing.assert_close(whole, shared, atol=1e-5, rtol=1e-5)


def test_a_noise_drops_its_share_and_keeps_the_mean():
    head = HeadDropout(Reranker(*tiny_model("bert"), max_length=48))
    head.draw(3000, rate=0.2, generator=torch.Generator().manual_seed(0))

    assert sorted(head.noises.unique().tolist()) == [0.0, pytest.approx(1.25)]
    assert (head.noises == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)  # of 96,000 draws


def test_a_model_that_mixes_what_stands_behind_its_last_layer_is_refused():
    reranker = Reranker(*tiny_model("bert"), max_length=48)
    reranker.model.register_forward_hook(lambda module, inputs, output: _softened(output))

    with pytest.raises(
        ValueError, match="BertForSequenceClassification cannot be sampled: what follows its last layer"
    ):
        HeadDropout(reranker)


def _softened(output):
    output.logits = output.logits - output.logits.mean(dim=-1, keepdim=True)
    return output


def test_a_model_without_a_layer_of_one_output_is_refused():
    reranker = Reranker(*tiny_model("bert"), max_length=48)
    reranker.model.classifier = Lookup(reranker.model.classifier)

    with pytest.raises(ValueError, match="no linear layer with one output makes its score"):
        HeadDropout(reranker)


class Lookup(torch.nn.Module):
    """A score that is the cosine with a vector."""

    def __init__(self, layer):
        super().__init__()
        self.direction = layer.weight

    def forward(self, states):
        return torch.nn.functional.cosine_similarity(states, self.direction)[:, None]
