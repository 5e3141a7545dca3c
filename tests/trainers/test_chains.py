"""Chains in training: both trainers train recurrent backbones, and save, resume and choose the whole chain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from torch.distributed.tensor import DTensor

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.tiny_models import PAIRS, RECURRENT, tiny_recurrent_model
from tests.trainers import runs
from tests.trainers.conftest import word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import QUIET, SGD, furthest, uneven_groups

SHORT = PAIRS[:6]
HEAD = "chain.1.linear.weight"


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A folder with a tiny language model of each kind."""
    folder = tmp_path_factory.mktemp("backbones")
    for kind in RECURRENT:
        model, tokenizer = tiny_recurrent_model(kind, spread=0.1)
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


def reranker_of(folder: Path, *, seed: int = 0) -> Reranker:
    torch.manual_seed(seed)  # of the head
    return Reranker.from_pretrained(folder, max_length=48)


@pytest.mark.parametrize("trainer_class", [ContrastiveRerankTrainer, DistillRerankTrainer])
@pytest.mark.parametrize("kind", RECURRENT)
def test_training_changes_backbone_and_head_and_saves_both(make_args, tmp_path, backbones, kind, trainer_class):
    reranker = reranker_of(backbones / kind)
    before = {name: value.clone() for name, value in reranker.model.state_dict().items()}
    args = make_args(max_steps=2, save_strategy="steps", save_steps=2)
    trainer_class(reranker, args, train_dataset=uneven_groups(8)).train()  # which also verifies the last checkpoint

    after = reranker.model.state_dict()
    assert all((after[name] - before[name]).abs().max() > 1e-4 for name in (HEAD, *list(before)[:2]))
    again = Reranker.from_pretrained(Path(args.output_dir, "checkpoint-2"))
    torch.testing.assert_close(again.predict(SHORT), reranker.predict(SHORT), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["mamba", "recurrent_gemma"])
def test_a_resumed_run_ends_as_the_whole_run_with_the_head_of_the_checkpoint(
    make_args, tmp_path, backbones, kind, caplog
):
    def run(seed: int, **options) -> dict[str, torch.Tensor]:
        args = make_args(output_dir=str(tmp_path / "out"), save_strategy="steps", save_steps=2, num_train_epochs=2)
        trainer = ContrastiveRerankTrainer(
            reranker_of(backbones / kind, seed=seed), args, train_dataset=uneven_groups(8)
        )
        trainer.train(**options)
        assert trainer.state.global_step == 4
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    whole = run(0)
    resumed = run(5, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))

    assert furthest(whole, resumed) == 0
    assert "missing keys" not in caplog.text and "unexpected keys" not in caplog.text


def test_the_best_model_has_the_head_of_its_checkpoint(make_args, tmp_path, backbones):
    reranker = reranker_of(backbones / "mamba2")
    args = make_args(
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="falling",
    )
    values = iter([2.0, 1.0])  # so the first checkpoint is the best
    trainer = ContrastiveRerankTrainer(
        reranker,
        args,
        train_dataset=word_groups(8),
        eval_dataset=word_groups(6, seed=4),
        compute_metrics=lambda prediction: {"falling": next(values)},
    )
    trainer.train()

    heads = [load_file(tmp_path / "out" / f"checkpoint-{step}" / "2_Dense" / "model.safetensors") for step in (2, 4)]
    assert trainer.state.best_global_step == 2
    assert not torch.equal(heads[0]["linear.weight"], heads[1]["linear.weight"])
    assert torch.equal(reranker.model.state_dict()[HEAD], heads[0]["linear.weight"])


def train_three_steps(folder: Path, *, backbone: Path, batch_size: int, shard: bool) -> None:
    args = RerankTrainingArguments(
        str(folder / "out"),
        **{**QUIET, **SGD, "save_strategy": "steps", "save_steps": 3, "max_steps": 3},
        per_device_train_batch_size=batch_size,
        max_tokens_per_micro_batch=48,
        fsdp=shard,
    )
    if shard:
        runs._pretend_gpus()
    trainer = ContrastiveRerankTrainer(reranker_of(backbone), args, train_dataset=uneven_groups(24))
    trainer.train()
    assert any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters()) == shard


@pytest.mark.slow
def test_a_chain_whose_weights_are_sharded_is_trained_and_saved_as_a_whole_one(tmp_path, backbones):
    train_three_steps(tmp_path / "one", backbone=backbones / "mamba2", batch_size=4, shard=False)
    options = {"backbone": backbones / "mamba2", "batch_size": 2, "shard": True}
    launch(train_three_steps, tmp_path / "two", num_processes=2, **options)

    one, two = (Reranker.from_pretrained(tmp_path / name / "out" / "checkpoint-3") for name in ("one", "two"))
    assert furthest(one.model.state_dict(), two.model.state_dict()) < 1e-6
    assert furthest(one.model.state_dict(), reranker_of(backbones / "mamba2").model.state_dict()) > 1e-3


def test_layers_recomputed_in_the_backward_give_the_same_training(make_args, backbones):
    weights = []
    for recompute in (False, True):
        reranker = reranker_of(backbones / "recurrent_gemma")
        args = make_args(max_steps=2, activation_checkpointing=recompute, optim="sgd", learning_rate=0.05)
        ContrastiveRerankTrainer(reranker, args, train_dataset=uneven_groups(8)).train()
        weights.append(reranker.model.state_dict())

    assert furthest(*weights) < 1e-6


# PEFT asks Transformers by a name that is going away
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["mamba2", "recurrent_gemma"])
def test_an_adapter_on_a_chain_opens_in_sentence_transformers_and_merges_to_the_same_scores(tmp_path, backbones, kind):
    reranker = reranker_of(backbones / kind)
    targets = {"mamba2": ["in_proj"], "recurrent_gemma": ["q_proj", "linear_x", "gate_proj"]}[kind]
    config = LoraConfig(r=4, target_modules=targets, modules_to_save=["chain.1.linear"])
    model = get_peft_model(reranker.model, config)
    batch = reranker.tokenizer(*map(list, zip(*SHORT, strict=True)), padding=True, return_tensors="pt")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    before = model(**batch).logits
    before.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        trained = model(**batch).logits[:, 0]
    reranker.model = model
    reranker.save_pretrained(tmp_path / "adapter")
    adapted = CrossEncoder(str(tmp_path / "adapter"), device="cpu").predict(SHORT, convert_to_tensor=True)
    reranker.model = model.merge_and_unload()
    reranker.save_pretrained(tmp_path / "merged")
    merged = Reranker.from_pretrained(tmp_path / "merged").predict(SHORT)

    assert (trained - before[:, 0]).abs().max() > 0.01
    torch.testing.assert_close(adapted, trained, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(merged, trained, atol=1e-5, rtol=1e-6)
