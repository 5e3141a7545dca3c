"""Students: adapters and quantised weights in training, and every way in which they are asked for or refused."""

from __future__ import annotations

import logging
import re
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.tiny_models import PAIRS, tiny_model
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import SGD, furthest, outcome, train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

LEARNS = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_length": 48}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny rerankers by kind, as a user has them."""
    folders = {}
    for kind in ("bert", "qwen3"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        small_reranker(kind=kind).save_pretrained(folders[kind])
    return folders


def of(model, mark):
    return {name: value.detach().clone() for name, value in model.state_dict().items() if mark in name}


DECODER_IS_SLOW = ["bert", pytest.param("qwen3", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", DECODER_IS_SLOW)
def test_lora_learns_with_a_frozen_base_and_its_folder_scores_the_same(bases, make_args, tmp_path, caplog, kind):
    args = make_args(**LEARNS, save_strategy="epoch", save_total_limit=1)
    evaluation = word_groups(40, seed=9)
    trainer = ContrastiveRerankTrainer(
        bases[kind], args, lora=True, train_dataset=word_groups(96), eval_dataset=evaluation
    )
    before, base = trainer.evaluate(), of(trainer.model, ".base_layer.")
    with caplog.at_level(logging.INFO):
        trainer.train()

    assert trainer.evaluate()["eval_loss"] < before["eval_loss"] - 0.2
    assert base and furthest(base, of(trainer.model, ".base_layer.")) == 0.0
    assert re.search(r"checkpoint-48: 8 pairs score the same", caplog.text)  # the final verification opened the adapter
    again = Reranker.from_pretrained(tmp_path / "out" / "checkpoint-48")
    torch.testing.assert_close(again.predict(PAIRS), trainer.reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "out" / "checkpoint-48" / "model.safetensors").exists()


def test_the_log_says_what_was_trained_and_what_it_took(bases, make_args, caplog):
    trainer = ContrastiveRerankTrainer(
        bases["bert"], make_args(max_steps=1), peft_config=LoraConfig(r=4), train_dataset=word_groups(4)
    )
    with caplog.at_level(logging.INFO):
        trainer.train()

    # rank 4 on query and value of 2 layers of width 32, and the head of 32 weights and a bias
    trained = 2 * 2 * (4 * 32 + 32 * 4) + 33
    footprint = trainer.footprint
    assert (footprint.num_trained, footprint.adapter_bytes) == (trained, 4 * trained)
    plain = sum(parameter.numel() for parameter in small_reranker().model.parameters())
    assert footprint.num_parameters == plain + trained  # the head stands there twice
    line = rf"trained {trained:,} of {plain + trained:,} parameters .*, adapter 0\.0 MB, peak memory \d+\.\d\d GB"
    assert len(re.findall(line, caplog.text)) == 1
    assert 1e8 < footprint.peak_bytes < 1e11


def test_a_student_that_is_trained_as_a_whole_has_no_adapter_in_its_footprint(make_args):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(max_steps=1), train_dataset=word_groups(4))
    assert trainer.footprint is None
    trainer.train()

    assert trainer.footprint.adapter_bytes is None
    assert trainer.footprint.num_trained == trainer.footprint.num_parameters == trainer.model.num_parameters()


WAYS = (
    {},
    {"recompute_activations": True},
    {"activation_checkpointing": True},
    {"max_tokens_per_micro_batch": 60},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_recomputed_by_the_engine_by_the_layers_or_not_the_adapter_takes_the_same_steps(bases, make_args, kind):
    weights = []
    for options in WAYS:
        args = make_args(**{**SGD, "max_steps": 2, "max_length": 48, **options})
        trainer = ContrastiveRerankTrainer(bases[kind], args, lora=True, train_dataset=word_groups(8))
        start = of(trainer.model, "lora_B")
        trainer.train()
        weights.append(of(trainer.model, "lora_B"))

    assert furthest(start, weights[0]) > 1e-4
    for other in weights[1:]:
        assert furthest(weights[0], other) < 1e-6


def test_a_resumed_adapter_ends_as_the_whole_run(bases, make_args, tmp_path):
    ends = []
    for resume in (None, "checkpoint-3"):
        args = make_args(max_steps=6, save_steps=3, save_strategy="steps", max_length=48, seed=3)
        trainer = ContrastiveRerankTrainer(bases["bert"], args, lora=True, train_dataset=word_groups(24))
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "out" / resume))
        ends.append({name: value for name, value in trainer.model.state_dict().items()})

    assert furthest(*ends) == 0.0


@pytest.mark.slow
def test_an_adapter_takes_the_same_steps_in_two_processes_as_in_one(bases, tmp_path):
    options = {**SGD, "base": str(bases["bert"]), "num_groups": 21, "max_tokens_per_micro_batch": 100, "max_length": 16}
    for num_processes in (1, 2):
        options |= {"name": f"of {num_processes}", "per_device_train_batch_size": 8 // num_processes}
        launch(train, tmp_path, num_processes=num_processes, **options)
    one, two = (outcome(tmp_path, f"of {num_processes}")["weights"] for num_processes in (1, 2))

    assert max(value.abs().max() for name, value in one.items() if "lora_B" in name) > 1e-4
    assert furthest(one, two) < 1e-6


def test_the_best_adapter_is_loaded_at_the_end(bases, make_args, tmp_path):
    args = make_args(
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=0.5,
        warmup_steps=0,
        max_length=48,
    )
    trainer = ContrastiveRerankTrainer(
        bases["bert"], args, lora=True, train_dataset=word_groups(24), eval_dataset=word_groups(8, seed=1)
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint

    assert best is not None and not best.endswith("checkpoint-4")
    scores = Reranker.from_pretrained(best).predict(PAIRS)
    torch.testing.assert_close(trainer.reranker.predict(PAIRS), scores, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*bfloat16:UserWarning")
def test_mixed_precision_saves_an_adapter_and_merged_weights_that_verify(bases, make_args, tmp_path):
    args = make_args(max_steps=2, bf16=True, save_strategy="steps", save_steps=2, max_length=48)
    trainer = ContrastiveRerankTrainer(bases["bert"], args, lora=True, train_dataset=word_groups(8))
    trainer.train()
    trainer.save_merged(tmp_path / "merged")

    whole = Reranker.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(whole.predict(PAIRS), trainer.reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)
    assert not isinstance(whole.model, PeftModel)


def test_an_adapter_given_by_its_folder_goes_on_learning(bases, make_args, tmp_path):
    options = {"max_steps": 2, "max_length": 48}
    first = ContrastiveRerankTrainer(bases["bert"], make_args(**options), lora=True, train_dataset=word_groups(8))
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    second = ContrastiveRerankTrainer(tmp_path / "adapter", make_args(**options), train_dataset=word_groups(8, seed=2))
    before = of(second.model, "lora_")

    assert furthest(before, of(first.model, "lora_")) == 0.0
    second.train()
    assert furthest(before, of(second.model, "lora_")) > 1e-4
    assert furthest(of(first.model, ".base_layer."), of(second.model, ".base_layer.")) == 0.0
    with pytest.raises(ValueError, match="lora=True for a model that has an adapter already"):
        ContrastiveRerankTrainer(tmp_path / "adapter", make_args(**options), lora=True)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter beside a model", "model beside an adapter"])
def test_a_folder_that_holds_the_other_kind_is_refused_before_training(bases, make_args, tmp_path, lora):
    def begin(**options):
        return ContrastiveRerankTrainer(bases["bert"], make_args(), train_dataset=word_groups(4), **options)

    begin(lora=not lora).save_model()
    begin(lora=not lora)  # the same kind goes on
    file = "model.safetensors" if lora else "adapter_config.json"
    with pytest.raises(ValueError, match=rf"output_dir='.*out' holds an? .*, {file}, and .*Give another output_dir"):
        begin(lora=lora)


def test_a_peft_model_of_ones_own_trains(bases, make_args, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(bases["bert"])
    model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2))
    tokenizer = AutoTokenizer.from_pretrained(bases["bert"])
    trainer = ContrastiveRerankTrainer(
        model, make_args(max_steps=1), processing_class=tokenizer, train_dataset=word_groups(4)
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))

    assert trainer.model is model
    again = Reranker.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.predict(PAIRS), trainer.reranker.predict(PAIRS), atol=1e-5, rtol=1e-5)


def test_a_peft_model_that_was_opened_for_inference_is_refused(bases, make_args, tmp_path):
    trainer = ContrastiveRerankTrainer(bases["bert"], make_args(max_steps=1), lora=True, train_dataset=word_groups(4))
    trainer.save_model(str(tmp_path / "saved"))
    base = AutoModelForSequenceClassification.from_pretrained(bases["bert"])
    model = PeftModel.from_pretrained(base, tmp_path / "saved")

    with pytest.raises(ValueError, match="opened for inference. Give the adapter by name"):
        ContrastiveRerankTrainer(model, make_args(), processing_class=AutoTokenizer.from_pretrained(bases["bert"]))


def test_distillation_into_an_adapter_learns_the_fresh_head_as_well(make_args, tmp_path):
    model, tokenizer = tiny_model("bert")
    model.bert.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    args = make_args(max_steps=2, max_length=48, learning_rate=None)
    trainer = DistillRerankTrainer(
        tmp_path / "backbone", args, teacher=small_reranker(seed=3), lora=True, train_dataset=word_groups(8)
    )
    head = of(trainer.model, "classifier.modules_to_save")
    trainer.train()

    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert furthest(head, of(trainer.model, "classifier.modules_to_save")) > 0
    # 2.4e-4 is published for a model so small; an adapter takes ten times as much, at most 1e-3, and so does a head
    assert trainer.args.learning_rate == trainer.args.head_learning_rate == 1e-3
    assert len(rates) == 1


def test_fewer_layers_with_an_adapter_need_a_folder_of_their_own(bases, make_args, tmp_path):
    args = make_args(model_init_kwargs={"keep_layers": [1]}, max_length=48, max_steps=1)
    with pytest.raises(ValueError, match=r"was changed when it was loaded \(keep_layers=\[1\]\). Save it once"):
        ContrastiveRerankTrainer(bases["bert"], args, lora=True)

    Reranker.from_pretrained(bases["bert"], keep_layers=[1]).save_pretrained(tmp_path / "cut")
    trainer = ContrastiveRerankTrainer(
        tmp_path / "cut", make_args(max_steps=1, max_length=48), lora=True, train_dataset=word_groups(4)
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))  # verifies


def test_fewer_layers_trained_as_a_whole_are_saved_as_a_plain_model(bases, make_args, tmp_path):
    args = make_args(model_init_kwargs={"keep_layers": [1]}, max_length=48, max_steps=1)
    trainer = ContrastiveRerankTrainer(bases["bert"], args, train_dataset=word_groups(4))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 1
    saved, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", bases["bert"]))
    words = "bert.embeddings.word_embeddings.weight"
    assert saved[words].shape == base[words].shape
    layers = [{name for name in weights if ".layer." in name} for weights in (saved, base)]
    assert layers[0] == {name for name in layers[1] if ".layer.0." in name}
    with pytest.raises(ValueError, match="keep_layers=.*from 0 to 1"):
        ContrastiveRerankTrainer(bases["bert"], make_args(model_init_kwargs={"keep_layers": [2]}))


@pytest.mark.parametrize(("kind", "bf16"), [("bert", False), pytest.param("qwen3", True, marks=pytest.mark.slow)])
def test_weights_of_4_bits_learn_an_adapter_that_verifies_as_it_is_and_merged(bases, make_args, tmp_path, kind, bf16):
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    args = make_args(**LEARNS, save_strategy="epoch", save_total_limit=1, recompute_activations=True, bf16=bf16)
    evaluation = word_groups(24, seed=9)
    trainer = ContrastiveRerankTrainer(
        bases[kind], args, load_in_4bit=True, lora=True, train_dataset=word_groups(96), eval_dataset=evaluation
    )
    before = trainer.evaluate()
    trainer.train()
    trainer.save_merged(tmp_path / "merged")

    assert trainer.evaluate()["eval_loss"] < before["eval_loss"] - 0.2
    plain = sum(parameter.numel() for parameter in Reranker.from_pretrained(bases[kind]).model.parameters())
    assert trainer.footprint.num_parameters == plain + trainer.footprint.num_trained
    whole = Reranker.from_pretrained(tmp_path / "merged")
    rounding = 5e-2 if bf16 else 1e-4  # layers of 4 bits multiply in bfloat16 there
    torch.testing.assert_close(whole.predict(PAIRS), trainer.reranker.predict(PAIRS), atol=rounding, rtol=rounding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": True, "peft_config": LoraConfig()}, r"lora=True beside peft_config=LoraConfig\(...\)"),
        ({"load_in_4bit": True, "quantization_config": object()}, "load_in_4bit=True beside quantization_config"),
    ],
)
def test_two_ways_to_say_the_same_are_refused(bases, make_args, options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveRerankTrainer(bases["bert"], make_args(), **options)


def test_quantising_a_model_that_is_loaded_already_is_refused(make_args):
    with pytest.raises(ValueError, match="the model is a Reranker, and weights are quantised when they load"):
        ContrastiveRerankTrainer(small_reranker(), make_args(), load_in_4bit=True, lora=True)


def test_quantised_weights_without_an_adapter_are_refused(bases, make_args):
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    with pytest.raises(ValueError, match="weights of 4 bits cannot be trained themselves. Put an adapter beside"):
        ContrastiveRerankTrainer(bases["bert"], make_args(), load_in_4bit=True)


def test_a_missing_bitsandbytes_is_named_with_its_extra(bases, make_args, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r'need bitsandbytes .* pip install "rerank_trainer\[qlora\]"'):
        ContrastiveRerankTrainer(bases["bert"], make_args(), load_in_4bit=True, lora=True)


def test_a_device_without_bitsandbytes_is_refused_before_loading(make_args, monkeypatch, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    monkeypatch.setattr("bitsandbytes.supported_torch_devices", {"cuda"})
    with pytest.raises(ValueError, match=r"on the device 'cpu': bitsandbytes .* knows \['cuda'\]"):
        ContrastiveRerankTrainer(tmp_path / "nowhere", make_args(), load_in_4bit=True, lora=True)
