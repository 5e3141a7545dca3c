"""Refusals: arguments of Transformers that cannot work with groups, or would silently do something else, and why.

``docs/trainer_features.md`` says of every argument whether it is supported, passed through or refused; a test holds
that page and this table together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

_FUSED_OPTIMIZERS = ("lomo", "adalomo")


@dataclass(frozen=True)
class Refusal:
    """An argument, the values of it that are refused, and why.

    Attributes:
        name: Of the argument.
        refuses: Whether these arguments are refused for it.
        reason: Why, and what to do.
        part: What of the argument is refused, where other values of it are fine.
    """

    name: str
    refuses: Callable[[Any], bool]
    reason: str
    part: Callable[[Any], Any] | None = None

    def message(self, args: TrainingArguments) -> str:
        """The error's text: argument, value, reason."""
        value = getattr(args, self.name) if self.part is None else self.part(args)
        return f"{self.name}={getattr(value, 'value', value)!r} is not supported: {self.reason}"


REFUSALS = (
    Refusal(
        "accelerator_config",
        lambda args: args.accelerator_config.dispatch_batches is True,
        "one process would cut batches apart for the others, and rows of tokens do not say where a group ends. Leave "
        "dispatch_batches out: every process then makes its own batches.",
        part=lambda args: {"dispatch_batches": args.accelerator_config.dispatch_batches},
    ),
    Refusal(
        "accelerator_config",
        lambda args: args.accelerator_config.even_batches is not True,
        "processes with fewer batches than others would leave them waiting. Leave it out: groups that fill the last "
        "batch count nothing.",
        part=lambda args: {"even_batches": args.accelerator_config.even_batches},
    ),
    Refusal(
        "auto_find_batch_size",
        lambda args: args.auto_find_batch_size,
        "running out of memory would change the number of groups in a step, and the training with it. Lower "
        "max_tokens_per_micro_batch, which bounds the memory and leaves the gradient as it is.",
    ),
    Refusal(
        "average_tokens_across_devices",
        lambda args: not args.average_tokens_across_devices,
        "each process would count for itself, and training would depend on their number. Counts are those of the whole "
        "step; leave it at True.",
    ),
    Refusal(
        "bf16_full_eval",
        lambda args: args.bf16_full_eval,
        "it casts the weights themselves and leaves them so: what is saved afterwards would have lost digits. "
        "bf16=True evaluates in bfloat16 too and keeps the weights.",
    ),
    Refusal(
        "fp16",
        lambda args: args.fp16 and args.device.type == "cpu",
        "accelerate has no float16 on a CPU and would train in float32 without a word. Give bf16=True or neither.",
    ),
    Refusal(
        "fp16_full_eval",
        lambda args: args.fp16_full_eval,
        "it casts the weights themselves and leaves them so: what is saved afterwards would have lost digits. "
        "fp16=True evaluates in float16 too and keeps the weights.",
    ),
    Refusal(
        "dataloader_in_order",
        lambda args: not args.dataloader_in_order,
        "batches would train in the order in which workers finish, another one in each run. Leave it at True.",
    ),
    Refusal(
        "deepspeed",
        lambda args: args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage > 2,
        "ZeRO stage 3 cuts the weights apart and has not been tried with groups. Take stage 1 or 2, or fsdp=True.",
        part=lambda args: {"zero_optimization": {"stage": args.deepspeed_plugin.zero_stage}},
    ),
    Refusal(
        "eval_use_gather_object",
        lambda args: args.eval_use_gather_object,
        "scores and labels are padded tensors and are gathered as such. Leave it out.",
    ),
    Refusal(
        "fsdp_config",
        lambda args: args.fsdp and args.fsdp_plugin_args.get("fsdp_version") != 2,
        "FSDP 1 has not been tried with groups. Leave the version out: 2 is the default.",
        part=lambda args: {"version": args.fsdp_plugin_args.get("fsdp_version")},
    ),
    Refusal(
        "fsdp_config",
        lambda args: args.fsdp and args.fsdp_config.get("xla"),
        "only FSDP 2 of PyTorch has been tried. Leave xla out.",
        part=lambda args: {"xla": args.fsdp_config["xla"]},
    ),
    Refusal(
        "fsdp_config",
        lambda args: args.fsdp and args.fsdp_plugin_args.get("state_dict_type") != "FULL_STATE_DICT",
        "the saved folder would hold no weights that from_pretrained opens. Leave it out: FULL_STATE_DICT is the "
        "default.",
        part=lambda args: {"state_dict_type": args.fsdp_plugin_args.get("state_dict_type")},
    ),
    Refusal(
        "include_for_metrics",
        lambda args: "inputs" in args.include_for_metrics,
        "a batch of groups holds its tokens as rows laid end to end, which are not gathered. Leave 'inputs' out.",
    ),
    Refusal(
        "label_smoothing_factor",
        lambda args: args.label_smoothing_factor,
        "it smooths classes, and passages of a group are none. Choose an objective, or smooth the labels in the rows.",
    ),
    Refusal(
        "optim",
        lambda args: args.optim.value in _FUSED_OPTIMIZERS or args.optim.value.endswith("_layerwise"),
        "it steps inside the backward pass, before the other batches of the step are counted, and knows no "
        "head_learning_rate. Take another, such as adafactor.",
    ),
    Refusal(
        "parallelism_config",
        lambda args: args.parallelism_config is not None,
        "tensor, context and sequence parallelism cut rows of tokens apart. Use more processes, or fsdp=True.",
    ),
    Refusal(
        "torch_compile",
        lambda args: args.torch_compile,
        "micro-batches have a new shape each: PyTorch compiles for the first eight (recompile_limit) and runs the "
        "others as they are. Compiled once for all shapes, steps on a CPU were slower, not faster. Leave it out, and "
        "torch_compile_backend and torch_compile_mode, which turn it on.",
    ),
    Refusal(
        "train_sampling_strategy",
        lambda args: args.train_sampling_strategy not in ("random", "sequential"),
        "rows are ordered by length inside each batch already, and processes exchange groups by their tokens "
        "(balance_processes). Use 'random' or 'sequential'.",
    ),
    Refusal(
        "use_cache",
        lambda args: args.use_cache,
        "nothing is generated, and keys and values would only be kept. Leave it out.",
    ),
    Refusal(
        "use_liger_kernel",
        lambda args: args.use_liger_kernel,
        "it replaces forwards of the model, and its gains are in a language model's loss, which is not computed here. "
        "Leave it out.",
    ),
)


def refuse_unsupported(args: TrainingArguments) -> None:
    """Refuse arguments that cannot work with groups, before any work.

    Raises:
        ValueError: Naming the argument, its value, the reason and what to do.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would be used through DataParallel, which cuts batches of groups "
            "apart. Start one process a GPU: torchrun --nproc_per_node ..., or set CUDA_VISIBLE_DEVICES."
        )
    for refusal in REFUSALS:
        if refusal.refuses(args):
            raise ValueError(refusal.message(args))
