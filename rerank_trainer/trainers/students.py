"""Students: the reranker that a trainer trains, as a whole or as an adapter, on full or on quantised weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from rerank_trainer.models.adapters import default_lora, describe, require_base
from rerank_trainer.models.attention import choose_attention
from rerank_trainer.models.quantization import four_bit, num_bits, require_bitsandbytes
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments

logger = logging.getLogger(__name__)


def as_student(
    model: str | Path | PreTrainedModel | PeftModel | Reranker,
    args: RerankTrainingArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    peft_config: PeftConfig | None = None,
    lora: bool = False,
    quantization_config: BitsAndBytesConfig | None = None,
    load_in_4bit: bool = False,
) -> Reranker:
    """The reranker that is trained: loaded by name, put together from model and tokenizer, or taken as it is.

    Args:
        model: What to train; an adapter's name or a PEFT model goes on with that adapter.
        args: Lengths, device and precision.
        tokenizer: Other than the model's own.
        peft_config: A new adapter, as in :meth:`Reranker.with_adapter`.
        lora: The same with the defaults for the architecture.
        quantization_config: How the weights of a model given by name are quantised.
        load_in_4bit: The same with nf4.

    Raises:
        ValueError: If a Transformers model comes without its tokenizer, a reranker with other lengths than asked, an
            adapter cannot be saved so that it opens again, or quantised weights cannot be trained.
        ImportError: If the weights are to be quantised and bitsandbytes is missing.
    """
    if lora and peft_config is not None:
        raise ValueError(f"lora=True beside peft_config={type(peft_config).__name__}(...): give one of them")
    if load_in_4bit and quantization_config is not None:
        raise ValueError("load_in_4bit=True beside quantization_config: give one of them")
    options: dict[str, Any] = {}
    if load_in_4bit or quantization_config is not None:
        _refuse_quantizing(model, args)
        if quantization_config is None:
            quantization_config = four_bit(_computed_in(args))
        options = {"quantization_config": quantization_config, "device_map": {"": args.device}}
    reranker = _as_reranker(model, args, tokenizer, **options)
    if lora or peft_config is not None:
        if isinstance(reranker.model, PeftModel):
            raise ValueError(
                f"{'lora=True' if lora else 'peft_config'} for a model that has an adapter already. Leave it out to go "
                "on training that one, or merge it first (Reranker.save_merged) and give the merged folder."
            )
        reranker = reranker.with_adapter(peft_config or default_lora(reranker.model))
    if isinstance(reranker.model, PeftModel):
        require_base(reranker.model)
        _require_trained(reranker.model)
        logger.info("%s", describe(reranker.model))
    elif num_bits(reranker.model) is not None:
        raise ValueError(
            f"weights of {num_bits(reranker.model)} bits cannot be trained themselves. Put an adapter beside them: "
            "lora=True, or peft_config=LoraConfig(...)."
        )
    return reranker


def _as_reranker(
    model: str | Path | PreTrainedModel | PeftModel | Reranker,
    args: RerankTrainingArguments,
    tokenizer: PreTrainedTokenizerBase | None,
    **loading: Any,
) -> Reranker:
    lengths: dict[str, Any] = {"max_length": args.max_length, "query_max_length": args.query_max_length}
    if isinstance(model, Reranker):
        return model.with_lengths(**lengths) if any(lengths.values()) else model
    if isinstance(model, str | Path):
        options = args.model_init_kwargs or {}
        assert isinstance(options, dict)  # TrainingArguments has parsed the text
        # on the CPU: the Trainer moves it, or shards it
        loaded = Reranker.from_pretrained(model, **{"device": "cpu", **lengths, **loading, **options})
        if "attn_implementation" not in options:
            precision = torch.bfloat16 if args.bf16 else None
            choose_attention(loaded.model, device=args.device, autocast_dtype=precision, max_length=loaded.max_length)
        if tokenizer is None:
            return loaded
        how: dict[str, Any] = {"head": loaded.head, "prompt": loaded.prompt, **lengths}
        return Reranker(loaded.model, tokenizer, **how, fresh_parameters=loaded.fresh_parameters)
    if tokenizer is None:
        raise ValueError(
            f"model is a {type(model).__name__} without its tokenizer. Pass processing_class=tokenizer, or give the "
            "model by name."
        )
    return Reranker(model, tokenizer, **lengths)


def _refuse_quantizing(model: Any, args: RerankTrainingArguments) -> None:
    """Refuse to quantise what is loaded already, where it cannot work, or under what has not been tried."""
    if not isinstance(model, str | Path):
        raise ValueError(
            f"the model is a {type(model).__name__}, and weights are quantised when they load. Give it by name, or "
            "load it yourself: Reranker.from_pretrained(name, load_in_4bit=True)."
        )
    if args.fsdp or args.deepspeed:
        raise ValueError("quantised weights under FSDP or DeepSpeed have not been tried. Leave one of them out.")
    require_bitsandbytes(args.device)


def _require_trained(model: PeftModel) -> None:
    """Refuse an adapter that nothing of is trained, as one that was opened for inference."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the PEFT model is trained: it was opened for inference. Give the adapter by name, or open "
            "it with PeftModel.from_pretrained(..., is_trainable=True)."
        )


def _computed_in(args: RerankTrainingArguments) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
