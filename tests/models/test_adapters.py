"""Adapters: what is trained and saved, that every loader scores the folder alike, and what cannot work is refused."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rerank_trainer.models.adapters import default_lora
from rerank_trainer.models.layers import stacked_linear_layers
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.verify import verify_checkpoint
from tests.tiny_models import PAIRS, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

OTHERS = ["deberta-v2", "electra", "gemma2", "llama", "mpnet", "roberta"]
KINDS = ["bert", "modernbert", "qwen3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
SHORT = PAIRS[:6]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a trained reranker and of the backbone under it, made once for each kind."""
    made = {}

    def make(kind: str, *, backbone: bool = False):
        if (kind, backbone) not in made:
            model, tokenizer = tiny_model(kind)
            folder = tmp_path_factory.mktemp(kind)
            if backbone:
                model.base_model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            else:
                Reranker(model, tokenizer, max_length=64).save_pretrained(folder)
            made[kind, backbone] = folder
        return made[kind, backbone]

    return make


def trained(reranker: Reranker, seed: int = 1) -> Reranker:
    """The reranker with other values in all that is trained, as if it had been."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reranker.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    reranker.model.eval()
    return reranker


def with_lora(folder, **options) -> Reranker:
    reranker = Reranker.from_pretrained(folder, max_length=64, **options)
    torch.manual_seed(0)
    return trained(reranker.with_adapter(default_lora(reranker.model)))


def edit_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_a_backbone_scores_alike_in_every_loader_with_the_head_that_it_brings(folders, tmp_path, kind):
    reranker = with_lora(folders(kind, backbone=True))
    reranker.save_pretrained(tmp_path)

    assert reranker.fresh_parameters
    scores = reranker.predict(PAIRS)
    assert scores.std() > 0.01
    differences = verify_checkpoint(tmp_path, reranker, PAIRS)
    assert set(differences) == {"transformers", "sentence_transformers"}
    torch.testing.assert_close(Reranker.from_pretrained(tmp_path).predict(PAIRS), scores, atol=1e-5, rtol=1e-5)


LINEAR = {
    "bert": {
        *(f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")),
        *("intermediate.dense", "output.dense"),
    },
    "qwen3": {*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))},
    "modernbert": {"attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"},
}


@pytest.mark.parametrize("kind", sorted(LINEAR))
def test_the_defaults_adapt_every_linear_layer_of_the_stack_and_none_around_it(kind):
    model, _ = tiny_model(kind)
    names = stacked_linear_layers(model)

    assert {re.split(r"\.\d\.", name)[1] for name in names} == LINEAR[kind]
    assert len(names) == 2 * len(LINEAR[kind])
    config = default_lora(model)
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (16, 32, set(names))


def test_what_no_checkpoint_has_trained_is_trained_and_saved_as_a_whole(folders, tmp_path):
    reranker = with_lora(folders("bert", backbone=True))
    reranker.save_pretrained(tmp_path)

    whole = {name for name in load_file(tmp_path / "adapter_model.safetensors") if "lora" not in name}
    assert whole == {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    model, tokenizer = tiny_model("bert")
    del model.bert.pooler  # as in checkpoints that were saved without it
    shutil.copytree(folders("bert", backbone=True), tmp_path / "no pooler")
    model.bert.save_pretrained(tmp_path / "no pooler")
    reranker = with_lora(tmp_path / "no pooler")
    reranker.save_pretrained(tmp_path / "other")
    whole = {name for name in load_file(tmp_path / "other" / "adapter_model.safetensors") if "lora" not in name}
    assert whole == {
        f"base_model.model.{name}.{kind}" for name in ("classifier", "bert.pooler.dense") for kind in ("weight", "bias")
    }
    assert all(parameter.requires_grad for name, parameter in reranker.model.named_parameters() if "modules_to" in name)
    assert max(verify_checkpoint(tmp_path / "other", reranker, SHORT).values()) < 1e-5


def test_a_configuration_without_a_task_type_works_as_meant_and_stays_as_it_was(folders, caplog):
    config = LoraConfig(r=4)
    before = config.to_dict()
    reranker = Reranker.from_pretrained(folders("bert", backbone=True))
    with caplog.at_level(logging.INFO):
        adapted = reranker.with_adapter(config)

    assert config.to_dict() == before
    assert "task_type='SEQ_CLS', so that the head is trained and saved" in caplog.text
    by_name = dict(adapted.model.named_parameters())
    assert all(by_name[name].requires_grad for name in adapted.fresh_parameters)
    assert {name.rsplit(".", 1)[1] for name in adapted.fresh_parameters} == {"weight", "bias"}
    assert adapted.model.peft_config["default"].target_modules == {"query", "value"}  # what PEFT knows stays


def test_an_architecture_that_peft_knows_no_targets_of_gets_every_linear_layer(folders, caplog):
    with caplog.at_level(logging.INFO):
        adapted = Reranker.from_pretrained(folders("modernbert")).with_adapter(LoraConfig(r=4))

    assert "PEFT knows no target_modules for modernbert" in caplog.text
    assert sum("lora_A" in name for name, _ in adapted.model.named_parameters()) == 8


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("config", [LoraConfig(r=4, use_dora=True), IA3Config()], ids=["dora", "ia3"])
def test_dora_and_ia3_train_and_score_alike_everywhere_also_merged(folders, tmp_path, kind, config):
    reranker = trained(Reranker.from_pretrained(folders(kind)).with_adapter(config))
    reranker.save_pretrained(tmp_path / "adapter")
    reranker.save_merged(tmp_path / "merged")

    assert max(verify_checkpoint(tmp_path / "adapter", reranker, PAIRS).values()) < 1e-4
    assert max(verify_checkpoint(tmp_path / "merged", reranker, PAIRS).values()) < 1e-4


def test_prompt_tuning_of_an_encoder_keeps_room_for_its_tokens_and_opens_in_peft(folders, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=5, task_type="SEQ_CLS")
    plain = Reranker.from_pretrained(folders("bert", backbone=True), max_length=128)
    reranker = trained(plain.with_adapter(config))

    assert reranker.max_length == 123  # of 128 positions
    assert sum("prompt" in name for name, p in reranker.model.named_parameters() if p.requires_grad) == 1
    reranker.save_pretrained(tmp_path)
    assert set(verify_checkpoint(tmp_path, reranker, PAIRS)) == {"peft"}
    again = Reranker.from_pretrained(tmp_path)
    torch.testing.assert_close(again.predict(PAIRS), reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)
    assert any("prompt" in name and parameter.requires_grad for name, parameter in again.model.named_parameters())
    with pytest.raises(ValueError, match="prompt tuning puts tokens before the texts, which cannot be merged"):
        reranker.save_merged(tmp_path / "merged")


REFUSED = [
    ("bert", AdaLoraConfig(total_step=9), "AdaLoraConfig: only LoRA .* have been tried"),
    ("bert", LoraConfig(task_type="CAUSAL_LM"), "task_type='CAUSAL_LM': BertForSequenceClassification needs 'SEQ_CLS'"),
    (
        "bert",
        LoraConfig(target_modules=["nowhere"]),
        "cannot give BertForSequenceClassification LoRA: No modules were targeted",
    ),
    ("qwen3", PromptTuningConfig(num_virtual_tokens=2), "score is read at the last token, .* Take LoRA or IA3"),
    ("modernbert", IA3Config(), "PEFT cannot give ModernBertForSequenceClassification IA3: Please specify"),
]


@pytest.mark.parametrize(("kind", "config", "message"), REFUSED)
def test_what_peft_does_not_give_for_a_family_is_refused_with_a_remedy(folders, kind, config, message):
    with pytest.raises(ValueError, match=message):
        Reranker.from_pretrained(folders(kind)).with_adapter(config)


def test_merged_weights_are_those_of_the_base_plus_the_scaled_product(folders, tmp_path):
    reranker = with_lora(folders("bert"))
    reranker.save_pretrained(tmp_path / "adapter")
    before = {name: value.clone() for name, value in reranker.model.state_dict().items()}
    reranker.save_merged(tmp_path / "merged")

    base = load_file(folders("bert") / "model.safetensors")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    name = "bert.encoder.layer.1.attention.self.query"
    down, up = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = base[f"{name}.weight"] + 2.0 * up @ down  # alpha 32 over rank 16
    torch.testing.assert_close(merged[f"{name}.weight"], expected)
    assert merged.keys() == base.keys()
    whole = Reranker.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(whole.predict(PAIRS), reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in reranker.model.state_dict().items())


def test_a_reranker_without_an_adapter_has_nothing_to_merge(folders, tmp_path):
    with pytest.raises(ValueError, match="BertForSequenceClassification has no adapter to merge"):
        Reranker.from_pretrained(folders("bert")).save_merged(tmp_path)


def test_what_other_loaders_must_be_told_is_enough_to_open_a_decoder_whose_config_has_no_pad_token(folders, tmp_path):
    folder = folders("qwen3", backbone=True)
    assert json.loads((folder / "config.json").read_text()).get("pad_token_id") is None
    reranker = with_lora(folder)
    reranker.save_pretrained(tmp_path)

    tokenizer = reranker.tokenizer
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    batch = tokenizer(*map(list, zip(*SHORT, strict=True)), padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model.eval()(**batch).logits[:, 0]
    torch.testing.assert_close(scores, reranker.predict(SHORT), atol=1e-5, rtol=1e-5)


def test_lengths_and_query_budget_come_back_with_the_adapter(folders, tmp_path):
    plain = Reranker.from_pretrained(folders("bert"), max_length=40, query_max_length=11)
    plain.with_adapter(default_lora(plain.model)).save_pretrained(tmp_path)

    again = Reranker.from_pretrained(tmp_path)
    assert (again.max_length, again.query_max_length) == (40, 11)


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(folders, tmp_path):
    reranker = with_lora(folders("bert"))
    reranker.model.save_pretrained(tmp_path)  # as PEFT alone writes it

    again = Reranker.from_pretrained(tmp_path, max_length=64)
    torch.testing.assert_close(again.predict(PAIRS), reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # two matrices for query and for value
        ({"num_hidden_layers": 1}, r"it has for parts that are not there 4 tensors \(.*layer.1.*\)"),
        ({"num_hidden_layers": 3}, r"it lacks 4 tensors \(.*layer.2.*\)"),
        ({"hidden_size": 16}, r"it has in another shape \d+ tensors \(.*layer.0.*\)"),
    ],
)
def test_an_adapter_whose_base_differs_is_refused(folders, tmp_path, change, message):
    reranker = Reranker.from_pretrained(folders("bert")).with_adapter(LoraConfig(r=2))
    reranker.save_pretrained(tmp_path / "adapter")
    shutil.copytree(folders("bert"), tmp_path / "other")
    config = reranker.model.config.to_dict() | change
    other = type(reranker.model.get_base_model())(type(reranker.model.config)(**config))
    other.save_pretrained(tmp_path / "other")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    edit_json(tmp_path / "adapter" / "config_sentence_transformers.json", rerank_trainer={})  # as others save it

    with pytest.raises(ValueError, match=f"does not fit .*other: .*({message}).* It was trained on another model"):
        Reranker.from_pretrained(tmp_path / "adapter")


def test_a_base_of_the_same_shape_that_was_trained_further_is_refused_and_one_in_bfloat16_is_not(folders, tmp_path):
    shutil.copytree(folders("bert"), tmp_path / "base")
    with_lora(tmp_path / "base").save_pretrained(tmp_path / "adapter")

    assert Reranker.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][3] += 0.01
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit .*base: its base had other norms and biases \(digest"):
        Reranker.from_pretrained(tmp_path / "adapter")


def test_an_adapter_that_names_no_base_is_refused(folders, tmp_path):
    with_lora(folders("bert")).save_pretrained(tmp_path)
    edit_json(tmp_path / "adapter_config.json", base_model_name_or_path=None)

    with pytest.raises(ValueError, match="is an adapter that names no base"):
        Reranker.from_pretrained(tmp_path)


def test_a_folder_with_a_model_and_an_adapter_is_refused(folders, tmp_path):
    with_lora(folders("bert")).save_pretrained(tmp_path)
    shutil.copy(folders("bert") / "model.safetensors", tmp_path)

    with pytest.raises(ValueError, match="holds a whole model, model.safetensors, and an adapter"):
        Reranker.from_pretrained(tmp_path)


def test_an_adapter_that_leaves_an_untrained_head_is_refused(folders, tmp_path):
    model = Reranker.from_pretrained(folders("bert", backbone=True)).model
    get_peft_model(model, LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"neither the adapter .* nor its base .* holds \['classifier.bias'"):
        Reranker.from_pretrained(tmp_path)


@pytest.mark.parametrize("changed", ["layers", "two logits", "no name"])
def test_a_base_that_no_checkpoint_holds_is_refused_before_training(folders, tmp_path, changed):
    if changed == "no name":
        reranker, message = Reranker(*tiny_model("bert")), "it has no name"
    elif changed == "layers":
        reranker, message = Reranker.from_pretrained(folders("bert"), keep_layers=1), r"\(keep_layers=1\)"
    else:
        model, tokenizer = tiny_model("bert", num_labels=2)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        reranker, message = Reranker.from_pretrained(tmp_path), r"\(its two logits became one\)"

    with pytest.raises(ValueError, match=f"{message}. Save it once"):
        reranker.with_adapter(LoraConfig(r=2))
    if changed == "no name":
        reranker.save_pretrained(tmp_path)
        Reranker.from_pretrained(tmp_path).with_adapter(LoraConfig(r=2))


def test_a_second_adapter_is_refused(folders):
    with pytest.raises(ValueError, match="has an adapter already"):
        with_lora(folders("bert")).with_adapter(LoraConfig(r=2))
