"""Embeddings: the rows of a word embedding table that a batch needs are looked up once, not in every micro-batch.

The gradient of a lookup is as large as the table, whatever the number of tokens: made anew and added up for every
micro-batch, it took 8 % of a training step of MiniLM (30,522 words) on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def with_words_looked_up_once(
    forward: Callable[..., Any], module: nn.Module | None, input_ids: Tensor, *, pad_token_id: int
) -> Callable[..., Any]:
    """The forward, whose word embeddings look tokens up among those of the batch; the same values and gradient.

    For a plain, trainable table; anything else runs as it is, and so does a lookup of tokens that the batch does not
    hold.

    Args:
        forward: A forward of the module.
        module: The model; None changes nothing.
        input_ids: All tokens of the batch, ``(num_tokens,)``.
        pad_token_id: Fills short rows.
    """
    table = None if module is None else plain_table(module)
    if table is None or not torch.is_grad_enabled():
        return forward
    words = torch.cat([input_ids, input_ids.new_tensor([pad_token_id])]).unique()
    places = input_ids.new_full((table.num_embeddings,), -1)
    places[words] = torch.arange(len(words))
    padding = -1 if table.padding_idx is None else int(places[table.padding_idx])
    rows, whole = table.weight[words], table.forward

    def look_up(ids: Tensor) -> Tensor:
        found = places[ids]
        if bool((found < 0).any()):
            return whole(ids)
        return functional.embedding(found, rows, padding_idx=padding if padding >= 0 else None)

    def run(*args: Any, **kwargs: Any) -> Any:
        table.forward = look_up  # around each run, for one that is recomputed runs in the backward
        try:
            return forward(*args, **kwargs)
        finally:
            del table.forward

    run.__wrapped__ = forward  # type: ignore[attr-defined]
    return run


def plain_table(module: nn.Module) -> nn.Embedding | None:
    """The module's word embeddings, where they are an ordinary table that is trained; None otherwise."""
    try:
        table = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    is_plain = (
        isinstance(table, nn.Embedding)
        and type(table).forward is nn.Embedding.forward
        and "forward" not in vars(table)  # nobody else has put a forward of their own in its place
        and type(table.weight) is nn.Parameter
        and table.weight.requires_grad
        and table.max_norm is None
        and not (table.sparse or table.scale_grad_by_freq)
    )
    return table if is_plain else None
