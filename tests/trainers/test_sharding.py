"""FSDP 2 and DeepSpeed ZeRO take the steps that one process takes, also with unlike numbers of micro-batches."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.sharding import agree_on_forwards, layer_classes
from tests.tiny_models import tiny_model
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import SGD, furthest, train, uneven_groups

# three steps of 8 groups; a micro-batch takes a few short passages or one long one
OPTIONS: dict[str, Any] = {
    **SGD,
    "num_groups": 24,
    "max_steps": 3,
    "max_tokens_per_micro_batch": 48,
    "save_strategy": "steps",
    "save_steps": 3,
    "distil": True,
    "label_weight": 0.4,
}
CUT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
ZERO = {
    "zero_optimization": {"stage": 2},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the checkpoint after three steps, as its reader opens them."""
    return Reranker.from_pretrained(folder / "out" / "checkpoint-3").model.state_dict()


def train_sharded(folder: Path, **options: Any) -> None:
    """Train under FSDP, see that weights were shards and counts unlike, and that evaluation does not hang."""
    from torch.distributed.tensor import DTensor

    counts: list[tuple[int, int]] = []
    call = RowScorer.__call__

    def noted(self: RowScorer, forward: Any, rows: Any) -> Any:
        agree = self.agree
        if agree is None:  # the check of the teacher, before anything is sharded
            return call(self, forward, rows)
        object.__setattr__(self, "agree", lambda own: (counts.append((own, agree(own))), counts[-1][1])[1])
        try:
            return call(self, forward, rows)
        finally:
            object.__setattr__(self, "agree", agree)

    RowScorer.__call__ = noted
    trainer = train(folder, pretend_gpus=True, fsdp=True, **options)
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    figures = trainer.evaluate()

    assert 0 < figures["eval_ndcg@10"] < 1
    (folder / f"fillers-{os.environ['RANK']}.txt").write_text(str(sum(most - own for own, most in counts)))


def train_zero(folder: Path, **options: Any) -> None:
    """Train under DeepSpeed on CPUs, without its kernel for shared memory, which it would compile first."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainer = train(folder, deepspeed=ZERO, **options)

    assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine"
    assert trainer.model_wrapped.zero_optimization_stage() == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_fsdp_takes_the_steps_of_one_process(tmp_path, kind):
    launch(train, tmp_path / "one", kind=kind, per_device_train_batch_size=8, **OPTIONS)
    launch(train_sharded, tmp_path / "two", num_processes=2, kind=kind, **CUT, **OPTIONS)

    assert furthest(saved(tmp_path / "one"), saved(tmp_path / "two")) < 1e-5
    # one process had fewer micro-batches than the other, and made up for them
    assert sum(int((tmp_path / "two" / f"fillers-{rank}.txt").read_text()) for rank in (0, 1)) > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
@pytest.mark.parametrize("kind", ["bert", "qwen3"])  # of the second, groups of one process alone are worth a prefix
def test_deepspeed_zero_2_takes_the_steps_of_one_process(tmp_path, kind):
    launch(train, tmp_path / "one", kind=kind, per_device_train_batch_size=8, **OPTIONS)
    launch(train_zero, tmp_path / "two", num_processes=2, kind=kind, **CUT, **OPTIONS)

    assert furthest(saved(tmp_path / "one"), saved(tmp_path / "two")) < 1e-5


@pytest.mark.parametrize(
    ("kind", "layers"), [("bert", ["BertLayer"]), ("modernbert", ["ModernBertEncoderLayer"]), ("qwen3", None)]
)
def test_the_classes_that_are_sharded_are_the_layers_and_not_what_holds_the_embeddings(kind, layers):
    assert layer_classes(tiny_model(kind)[0]) == (layers or ["Qwen3DecoderLayer"])


def test_fsdp_that_accelerate_would_leave_out_is_refused(make_args, monkeypatch):
    # as on CPUs, where accelerate makes it DistributedDataParallel and says nothing
    args = make_args()
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(4))
    monkeypatch.setattr(trainer.args, "fsdp", True)
    with pytest.raises(ValueError, match="fsdp=True: accelerate does not shard on 'cpu'"):
        agree_on_forwards(trainer)


def test_fsdp_of_the_launcher_alone_is_refused(make_args, monkeypatch):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(4))
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match=r"turned on by `accelerate launch` alone \(fsdp=None\)"):
        agree_on_forwards(trainer)


def test_labels_and_teacher_scores_keep_their_digits_under_deepspeed(make_args, monkeypatch):
    # Transformers would cast every input of floating point to the type of DeepSpeed's weights
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(4))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    rows = {"lengths": torch.tensor([3])}
    batch = trainer._prepare_inputs({"teacher_scores": torch.tensor([1.001]), "student": rows})

    assert batch["teacher_scores"].tolist() == torch.tensor([1.001]).tolist()
    assert batch["student"]["lengths"].tolist() == [3]


def test_the_groups_of_these_runs_make_unlike_numbers_of_micro_batches():
    lengths = [[len(passage) for passage in group["passages"]] for group in uneven_groups(24)]

    assert max(map(sum, lengths)) > 3 * min(map(sum, lengths))


def test_an_evaluator_is_refused_where_weights_are_sharded(make_args):
    args = make_args()
    args.fsdp, args.fsdp_config = True, {}
    args.fsdp_plugin_args = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}

    with pytest.raises(ValueError, match="fsdp=True with evaluator=.*Evaluate the saved folder afterwards"):
        ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(4), evaluator=object())
