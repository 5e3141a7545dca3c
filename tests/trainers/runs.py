"""Runs: small trainings that must agree, however many processes and workers there are, and after a kill."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import EarlyStoppingCallback, TrainerCallback

from rerank_trainer.evaluation.evaluator import RerankEvaluator
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.live import LiveTeacher
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.tiny_models import tiny_model
from tests.trainers.conftest import SILENT, small_reranker, word_groups

QUIET = {**SILENT, "logging_strategy": "steps", "logging_steps": 1, "passages_per_query": 4}
SGD = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "max_grad_norm": 0.0,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant",
}


def uneven_groups(num_groups: int) -> datasets.Dataset:
    """Groups of unlike size and length; every third without a positive, with teacher scores."""
    chance = random.Random(3)
    rows = word_groups(num_groups).to_list()
    for index, row in enumerate(rows):
        if index % 3 == 0:
            row["labels"] = [0.0] * len(row["labels"])
        size = 3 if index % 4 == 0 else 6
        row.update({name: row[name][:size] for name in ("passages", "labels")})
        row["passages"] = [" ".join([passage] * chance.randint(1, 5)) for passage in row["passages"]]
        row["teacher_scores"] = [math.sin(7.0 * index + i) for i in range(size)]
    return datasets.Dataset.from_list(rows)


class Kill(TrainerCallback):
    """Kills its own process once a step is done, before anything of it is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGKILL)


class Meter(TrainerCallback):
    """Counts what this process does in each optimizer step: its tokens, and its forwards, one a micro-batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.steps: list[tuple[int, int]] = []
        self.tokens = self.forwards = 0
        model.register_forward_pre_hook(self._see_batch, with_kwargs=True)
        model.get_input_embeddings().register_forward_pre_hook(self._see_forward)

    def _see_batch(self, model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.tokens += int(kwargs["rows"]["lengths"].sum()) if "rows" in kwargs else 0

    def _see_forward(self, module: torch.nn.Module, args: Any) -> None:
        self.forwards += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tokens = self.forwards = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append((self.tokens, self.forwards))


def train(
    folder: Path,
    *,
    name: str = "run",
    num_groups: int = 24,
    kind: str = "bert",
    dropout: float = 0.0,
    distil: bool = False,
    kill_at: int | None = None,
    resume_from: str | None = None,
    patience: int | None = None,
    pretend_gpus: bool = False,
    base: str | None = None,
    live: Callable[[], LiveTeacher] | None = None,
    **options: Any,
) -> RerankTrainer:
    """Train and keep in ``<name>.pt``, once a group of processes, what came of it: weights, losses, the state.

    With a ``base``, the folder of a reranker, an adapter is trained beside it. ``live`` makes a live teacher.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    options = {**QUIET, "ddp_backend": "gloo" if num_processes > 1 else None, **options}
    args = RerankTrainingArguments(str(folder / "out"), **options)
    if pretend_gpus:
        _pretend_gpus()
    reranker = small_reranker(spread=0.3) if kind == "bert" else Reranker(*tiny_model(kind, spread=0.3), max_length=48)
    reranker = reranker if base is None else Reranker.from_pretrained(base)
    for module in reranker.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    meter = Meter(reranker.model)
    callbacks: list[TrainerCallback] = [meter] if kill_at is None else [meter, Kill(kill_at)]
    callbacks += [] if patience is None else [EarlyStoppingCallback(patience)]
    groups, more = uneven_groups(num_groups), {}
    if live is not None:
        groups, more = groups.remove_columns("teacher_scores"), {"teacher": live()}
    trainer = (DistillRerankTrainer if distil or live else ContrastiveRerankTrainer)(
        reranker,
        args,
        train_dataset=groups,
        eval_dataset=word_groups(13, seed=4),
        callbacks=callbacks,
        lora=base is not None,
        **more,
    )
    trainer.train(resume_from_checkpoint=resume_from and str(folder / "out" / resume_from))
    steps = gather_object([meter.steps])
    if trainer.is_world_process_zero():
        torch.save({**_outcome(trainer), "steps": steps}, folder / f"{name}.pt")
    return trainer


def train_all(folder: Path, *, runs: dict[str, dict[str, Any]]) -> None:
    """Several runs one after the other, under their names."""
    for name, options in runs.items():
        train(folder, name=name, **options)


def judge_words(folder: Path, *, rank: int | None = None) -> None:
    """Judge an untrained model, and one that fails in the first process; each keeps in ``<rank>.json`` what it found.

    With a rank, without a group of processes.
    """
    folder.mkdir(exist_ok=True)
    rank = PartialState(cpu=True).process_index if rank is None else rank
    reranker, num_scored = small_reranker(spread=0.3), []

    def predict(pairs: list[tuple[str, str]]) -> torch.Tensor:
        num_scored.append(len(pairs))
        return reranker.predict(pairs)

    def fail(pairs: list[tuple[str, str]]) -> list[float]:
        if rank == 0:
            raise KeyError("boom")
        return [0.0] * len(pairs)

    evaluator = RerankEvaluator(word_groups(9, seed=5), metrics=["nDCG@10", "AP"], depths=(2, 5))
    evaluation = evaluator.evaluate(predict)
    found = {"figures": evaluation.figures, "by_query": evaluation.by_query("AP"), "num_scored": sum(num_scored)}
    try:
        evaluator.evaluate(fail)
    except (KeyError, RuntimeError) as error:
        found["failure"] = repr(error)
    args = RerankTrainingArguments(str(folder / "out"), **QUIET, eval_metrics=["nDCG@10", "AP"])
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3),
        args,
        eval_dataset=word_groups(9, seed=5),
        evaluator=RerankEvaluator(word_groups(9, seed=5), metrics=["nDCG@10", "AP"], name="words"),
    )
    found["trainer"] = {name: value for name, value in trainer.evaluate().items() if "nDCG" in name or "AP" in name}
    (folder / f"{rank}.json").write_text(json.dumps(found))


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """What :func:`train` kept under a name."""
    return torch.load(folder / f"{name}.pt", weights_only=False)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The greatest difference between two models' weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def _outcome(trainer: RerankTrainer) -> dict[str, Any]:
    timing = ("runtime", "per_second", "flos", "preparation_time")
    history = [
        {key: value for key, value in entry.items() if not any(word in key for word in timing)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    sharded = trainer.is_fsdp_enabled
    teacher = getattr(trainer, "teacher", None)
    return {
        "teacher": teacher.state_dict() if isinstance(teacher, LiveTeacher) else {},
        "weights": {} if sharded else {name: v.detach().clone() for name, v in trainer.model.state_dict().items()},
        "history": history,
        "best": (trainer.state.best_metric, trainer.state.best_global_step),
        "callbacks": trainer.state.stateful_callbacks,
    }


def _pretend_gpus() -> None:
    """Let accelerate take this gloo group for one of GPUs: it refuses to shard on CPUs, PyTorch does not."""
    from accelerate import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
