"""Facts for the card: the settings of a training, what it saw and what it took, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rerank_trainer.models.loading import dtype_of
from rerank_trainer.models.quantization import num_bits

if TYPE_CHECKING:
    from rerank_trainer.trainers.base import RerankTrainer


def training_facts(trainer: RerankTrainer) -> dict[str, str]:
    """The settings and measurements of a training, by what they are called in the card; empty ones are left out."""
    args, state, model = trainer.args, trainer.state, trainer.reranker.model
    reports = dict.fromkeys(str(report) for report in getattr(trainer, "teacher_reports", ()))
    facts = {
        "architecture": type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__,
        "teacher, before training": "; ".join(reports),
        "passages per query (K)": f"{args.passages_per_query}, {_negatives(args.top_share)}",
        "training groups": _num_groups(trainer.train_dataset),
        "groups seen": _num_seen(trainer),
        "steps": f"{state.global_step:,}{'' if state.epoch is None else f' ({state.epoch:.4g} epochs)'}",
        "groups a step": _batch(trainer),
        "learning rate": _learning_rate(trainer),
        "precision": _precision(trainer),
        "seed": f"{args.seed}{'' if args.data_seed is None else f', of the data {args.data_seed}'}",
        "device": _device(trainer),
    }
    footprint = trainer.footprint
    if footprint is not None:
        share = footprint.num_trained / footprint.num_parameters
        trained = f"{footprint.num_trained:,} of {footprint.num_parameters:,} ({share:.2%})"
        facts["trained parameters"] = trained
        if footprint.adapter_bytes is not None:
            facts["adapter"] = f"{footprint.adapter_bytes / 1e6:.1f} MB"
        if footprint.peak_bytes is not None:
            whose = "of the GPU" if args.device.type == "cuda" else "of the whole process"
            facts["peak memory"] = f"{footprint.peak_bytes / 1e9:.2f} GB {whose}"
    return {name: value for name, value in facts.items() if value}


def _negatives(top_share: float) -> str:
    if top_share in (0, 1):
        return f"negatives {'from the top of the list' if top_share else 'drawn at random'}"
    return f"{top_share:.0%} of the negatives from the top of the list"


def _num_groups(dataset: Any) -> str:
    if dataset is None:
        return ""
    return f"{len(dataset):,}" if hasattr(dataset, "__len__") else "a stream"


def _num_seen(trainer: RerankTrainer) -> str:
    """How many groups the steps so far were made of; each pass over a data set counts."""
    epoch, dataset = trainer.state.epoch, trainer.train_dataset
    if not trainer.state.global_step or dataset is None:
        return ""
    if hasattr(dataset, "__len__") and epoch is not None:
        return f"{round(epoch * len(dataset)):,}"
    return f"{trainer.state.global_step * _groups_a_step(trainer):,}"


def _groups_a_step(trainer: RerankTrainer) -> int:
    args = trainer.args
    return trainer._groups_each() * args.world_size * args.gradient_accumulation_steps


def _batch(trainer: RerankTrainer) -> str:
    args, each = trainer.args, trainer._groups_each()
    factors = {"": each, " processes": args.world_size, " accumulated": args.gradient_accumulation_steps}
    shown = [f"{number}{name}" for name, number in factors.items() if number > 1 or not name]
    cut = f" ({' × '.join(shown)})" if len(shown) > 1 else ""
    return f"{_groups_a_step(trainer):,}{cut}"


def _learning_rate(trainer: RerankTrainer) -> str:
    args, optimizer = trainer.args, trainer.optimizer
    # what the schedule began with: the optimizer may be the user's own
    groups = [] if optimizer is None else optimizer.param_groups
    rates = dict.fromkeys(f"{float(group.get('initial_lr', group['lr'])):g}" for group in groups)
    rate = " and ".join(rates) or f"{args.learning_rate:g}"
    warmup = args.warmup_steps or 0
    of_steps = f"{warmup:.0%} of the steps" if warmup < 1 else f"{warmup:g} steps"
    kind = type(getattr(optimizer, "optimizer", optimizer)).__name__ if optimizer is not None else ""
    parts = [rate, str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)), f"warmup {of_steps}", kind]
    return ", ".join(part for part in parts if part)


def _precision(trainer: RerankTrainer) -> str:
    args, model = trainer.args, trainer.reranker.model
    weights = str(dtype_of(model)).removeprefix("torch.")
    mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else ""
    bits = num_bits(model)
    return ", ".join(
        part
        for part in (
            f"weights in {weights}",
            f"computed in {mixed} (mixed)" if mixed else "",
            f"the base in {bits} bits" if bits else "",
        )
        if part
    )


def _device(trainer: RerankTrainer) -> str:
    device, number = trainer.args.device, trainer.args.world_size
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{number} × {name}" if number > 1 else name
