"""Sharding: what FSDP 2, which gathers weights layer by layer, and DeepSpeed must be told about groups."""

from __future__ import annotations

import logging
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer, TrainingArguments

from rerank_trainer.models.recompute import Recomputation

logger = logging.getLogger(__name__)


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes that FSDP shards one by one: the model's own list, without what holds the embeddings.

    accelerate shards the embeddings for themselves, and fails where a class around them is sharded too, as it is for
    BERT and ModernBERT.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    embeddings = model.get_input_embeddings()
    return sorted(
        {
            type(module).__name__
            for module in model.modules()
            if type(module).__name__ in names and not any(inner is embeddings for inner in module.modules())
        }
    )


def name_layers(args: TrainingArguments, model: nn.Module) -> None:
    """Tell FSDP which layers to shard, in place, when it is on and the user has not."""
    options = getattr(args, "fsdp_plugin_args", None)
    if options is None or options.get("transformer_cls_names_to_wrap") or options.get("min_num_params"):
        return
    if names := layer_classes(model):
        args.fsdp_plugin_args = {**options, "transformer_cls_names_to_wrap": ",".join(names)}
        logger.info("FSDP shards the layers %s", names)


def agree_on_forwards(trainer: Trainer) -> None:
    """Let processes that share weights or gradients run alike: under FSDP as many forwards, under both no prefixes.

    Raises:
        ValueError: If FSDP was asked for and is not used, or is used and was not asked for.
    """
    asked, used = bool(trainer.args.fsdp), bool(trainer.is_fsdp_enabled)
    if asked and not used:
        raise ValueError(
            f"fsdp={trainer.args.fsdp!r}: accelerate does not shard on {trainer.args.device.type!r} and would keep all "
            "weights in every process. Leave fsdp out there."
        )
    if used and not asked:
        raise ValueError(
            "FSDP was turned on by `accelerate launch` alone (fsdp=None), where it is not checked. Set fsdp=True in "
            "the arguments, and fsdp_config for its options."
        )
    if used:
        scorer = trainer.model.row_scorer
        scorer.agree = partial(_greatest, device=trainer.args.device)
        # what a process would decide by its own memory, all have to do alike
        scorer.recomputation = Recomputation(bool(trainer.args.recompute_activations))
    if trainer.is_deepspeed_enabled:
        # ZeRO lays gradients into a buffer as the backward makes them, and adds up the buffers of all processes. Shared
        # prefixes change that order, so beside a process that shares none they would go to other parameters.
        trainer.model.row_scorer.prefix.wanted = False


def _greatest(number: int, device: torch.device) -> int:
    """The greatest of the numbers that the processes give."""
    numbers = torch.tensor(number, device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers)
