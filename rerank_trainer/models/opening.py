"""Opening: all that makes a reranker, found from a Hub id or folder: model, tokenizer, head, prompt, lengths."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.families import family_of, instructed, prompt_of
from rerank_trainer.models.heads import Head
from rerank_trainer.models.loading import load_model, load_tokenizer
from rerank_trainer.models.peers import stored_max_length, stored_settings
from rerank_trainer.models.placement import place
from rerank_trainer.models.quantization import as_asked, log_other_bits
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.weight_files import refuse_pickled_adapter


def open_parts(
    name: str,
    *,
    head: str | Head,
    prompt: Prompt | None,
    instruction: str | None,
    load_in_4bit: bool,
    quantization_config: BitsAndBytesConfig | None,
    dtype: torch.dtype | str,
    device: torch.device | str | None,
    hub: dict[str, Any],
    trust_remote_code: bool,
    **loading: Any,
) -> dict[str, Any]:
    """The arguments of ``Reranker`` for a checkpoint; those of this function are of ``Reranker.from_pretrained``.

    Args:
        hub: What finds the checkpoint's files: revision, token...
        **loading: Options of ``load_model``.
    """
    quantization_config = as_asked(quantization_config, load_in_4bit=load_in_4bit, dtype=dtype)
    # before anything else is said of the adapter
    refuse_pickled_adapter(name, allow_pickle=loading.get("allow_pickle", False), hub=hub)
    family, stored_answer = family_of(name, head=head, hub=hub)
    model, fresh = load_model(
        name,
        is_language_model=isinstance(family.head, TokenLogitHead),
        quantization_config=quantization_config,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        **hub,
        **loading,
    )
    if "device_map" not in loading:
        place(model, device)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, **hub)
    limit = None if fresh else stored_max_length(name, hub)
    if limit is not None:
        tokenizer.model_max_length = limit
    settings = stored_settings(name, hub)
    if isinstance(model, PeftModel):
        log_other_bits(name, model, settings.get("num_bits"))
    stored = {**(getattr(model.config, "rerank_trainer", None) or {}), **settings}
    return {
        "model": model.eval(),
        "tokenizer": tokenizer,
        "head": family.head,
        "prompt": instructed(prompt or prompt_of(family, stored_answer, tokenizer), instruction),
        "query_max_length": stored.get("query_max_length"),
        "fresh_parameters": fresh,
    }
