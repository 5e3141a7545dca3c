"""Prefix sharing: what a group's rows begin with runs once through a decoder, and its keys and values serve them all.

Exact: in a causal decoder the state at a token depends on the tokens before it alone, so scores and gradients are those
of whole rows. Whether a model is like that is tried on first use, not believed.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rerank_trainer.data.collator import TokenRows
from rerank_trainer.models.micro_batches import micro_batches, pad_spans, row_starts
from rerank_trainer.models.placement import put
from rerank_trainer.models.precision import rounds_float32
from rerank_trainer.models.recompute import Recomputation, recomputes_layers
from rerank_trainer.models.work import Work

logger = logging.getLogger(__name__)

# Sharing pays when it saves this share of the tokens; below it, more and smaller forwards cost as much as they save.
WORTH_SHARING = 0.1
_CACHE_NAMES = ("cache", "past_key_values")  # the argument's name in Transformers from 5.24 on, and before
# Scores behind a shared prefix may differ from those of whole rows by this share of the largest score, by rounding.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}
_ROUNDING_OF_HALVES = 0.05


class PrefixSharing:
    """Scores rows behind the prefixes that they share.

    Args:
        head: Turns one forward into one score a row.
        pad_token_id: Fills short rows.
        wanted: True raises where a model cannot share, False never shares, None shares where it is exact and pays.
    """

    def __init__(self, head: Callable[..., Tensor], *, pad_token_id: int, wanted: bool | None = None) -> None:
        self.head = head
        self.pad_token_id = pad_token_id
        self.wanted = wanted
        self._exact: bool | None = None  # not tried yet

    def choose(self, forward: Callable[..., Any], rows: TokenRows) -> list[int]:
        """The rows to score by :meth:`scores`: none where sharing is off, not exact, or does not pay.

        Raises:
            ValueError: If sharing is wanted and the model cannot share.
        """
        if self.wanted is False or self._exact is False or "prefixes" not in rows:
            return []
        members = sharing_rows(rows, self.pad_token_id)
        if not members or not (self.wanted or share_saved(rows, members) >= WORTH_SHARING):
            return []
        reason = reason_against(forward)
        if reason is None and self._exact is None and not self._try(forward, rows, members):
            reason = "its scores behind a shared prefix are not those of whole rows"
        if reason is None:
            self._exact = True
            return members
        if self.wanted:
            raise ValueError(f"share_prefix=True, but {reason}. Leave share_prefix out: every row is run whole then.")
        logger.info("prefixes are not shared: %s", reason)
        self._exact = False
        return []

    def scores(
        self,
        forward: Callable[..., Any],
        rows: TokenRows,
        members: Sequence[int],
        *,
        max_tokens: int,
        overhead: int,
        recomputation: Recomputation,
        work: Work | None = None,
    ) -> Tensor:
        """Scores of the member rows, in the order of ``members``, ``(num_members,)`` float32.

        Args:
            forward: The model's bound forward.
            rows: Token rows.
            members: Rows from :meth:`choose`.
            max_tokens: Tokens of a micro-batch, padding included.
            overhead: What a micro-batch costs beside its tokens, in tokens.
            recomputation: Runs what follows the prefixes.
            work: Counts what runs.
        """
        prefixes, prefix_lengths = rows["prefixes"].tolist(), rows["prefix_lengths"].tolist()
        suffix_lengths = (rows["lengths"] - rows["prefix_lengths"]).tolist()
        of_prefix: dict[int, list[int]] = {}
        for row in members:
            of_prefix.setdefault(prefixes[row], []).append(row)
        firsts = [of_same[0] for of_same in of_prefix.values()]
        scores: list[Tensor] = []
        order: list[int] = []
        for batch in micro_batches([prefix_lengths[row] for row in firsts], max_tokens, overhead=overhead):
            chosen = [firsts[i] for i in batch]
            mask, states = self._run_prefixes(forward, rows, chosen, longest=prefix_lengths[chosen[0]])
            if work is not None:
                work.add([prefix_lengths[row] for row in chosen])
            place = {prefixes[row]: i for i, row in enumerate(chosen)}
            followers = [row for first in chosen for row in of_prefix[prefixes[first]]]
            for part in micro_batches([suffix_lengths[row] for row in followers], max_tokens, overhead=overhead):
                behind = [followers[i] for i in part]
                longest = suffix_lengths[behind[0]]
                places = [place[prefixes[row]] for row in behind]
                run = self._runner(forward, rows, behind, mask, places, longest=longest)
                if work is not None:
                    behind_tokens = [prefix_lengths[row] for row in behind]
                    work.add([suffix_lengths[row] for row in behind], behind=behind_tokens)
                options: dict[str, Any] = {"num_tokens": len(behind) * longest, "longest": longest}
                scores.append(recomputation.run(run, *states, **options, parameters=_module(forward).parameters()))
                order += behind
        numbers = {row: i for i, row in enumerate(order)}
        return torch.cat(scores)[put([numbers[row] for row in members], scores[0].device)]

    def _run_prefixes(
        self, forward: Callable[..., Any], rows: TokenRows, chosen: list[int], *, longest: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The mask of some rows' prefixes, and the keys and values of each layer, one after the other."""
        index = put(chosen, rows["lengths"].device)
        # on the left, so that no padding stands between a prefix and what follows it: sliding windows see no gap
        inputs = pad_spans(
            rows,
            row_starts(rows)[index],
            rows["prefix_lengths"][index],
            pad_token_id=self.pad_token_id,
            padding_side="left",
            longest=longest,
        )
        mask, cache = inputs["attention_mask"], DynamicCache()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": inputs["input_ids"], "attention_mask": mask, "position_ids": positions}
        # by the head, which knows what need not be computed; its scores mean nothing here, so nobody counts them
        inspect.unwrap(self.head)(forward, {**inputs, **_with_cache(forward, cache)})
        return mask, [states for layer in cache.layers for states in (layer.keys, layer.values)]

    def _runner(
        self,
        forward: Callable[..., Any],
        rows: TokenRows,
        behind: list[int],
        prefix_mask: Tensor,
        places: list[int],
        *,
        longest: int,
    ) -> Callable[..., Tensor]:
        """A function of the prefixes' keys and values that scores the rows behind them."""
        index, of_prefix = put(behind, prefix_mask.device), put(places, prefix_mask.device)

        def run(*states: Tensor) -> Tensor:
            inputs = pad_spans(
                rows,
                row_starts(rows)[index] + rows["prefix_lengths"][index],
                (rows["lengths"] - rows["prefix_lengths"])[index],
                pad_token_id=self.pad_token_id,
                padding_side="right",
                longest=longest,
            )
            mask = torch.cat([prefix_mask[of_prefix], inputs["attention_mask"]], dim=1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, prefix_mask.shape[1] :]
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(zip(states[::2], states[1::2], strict=True)):
                cache.update(keys[of_prefix], values[of_prefix], layer)
            inputs = {"input_ids": inputs["input_ids"], "attention_mask": mask, "position_ids": positions}
            return self.head(forward, {**inputs, **_with_cache(forward, cache)})

        return run

    def _try(self, forward: Callable[..., Any], rows: TokenRows, members: list[int]) -> bool:
        """Whether two rows of one prefix score the same whole and behind it."""
        prefixes = rows["prefixes"].tolist()
        pair = [row for row in members if prefixes[row] == prefixes[members[0]]][:2]
        index = torch.tensor(pair, device=rows["lengths"].device)
        module = _module(forward)
        training = module.training
        module.eval()
        try:
            with torch.no_grad(), torch.autocast(index.device.type, enabled=False):
                starts, lengths = row_starts(rows)[index], rows["lengths"][index]
                inputs = pad_spans(rows, starts, lengths, pad_token_id=self.pad_token_id, padding_side="right")
                whole = self.head(forward, inputs)
                shared = self.scores(
                    forward, rows, pair, max_tokens=int(lengths.sum()), overhead=0, recomputation=Recomputation(False)
                )
        finally:
            module.train(training)
        dtype = next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
        share = _ROUNDING.get(dtype, _ROUNDING_OF_HALVES)
        if rounds_float32(index.device):
            share = max(share, _ROUNDING_OF_HALVES)
        tolerance = share * max(1.0, whole.abs().max().item())
        return bool((whole - shared).abs().max().item() <= tolerance)


def sharing_rows(rows: TokenRows, pad_token_id: int) -> list[int]:
    """The rows that share their prefix with another one, and have a token behind it that is not padding's."""
    starts = row_starts(rows)
    real = (rows["input_ids"] != pad_token_id).long().cumsum(0)
    counted = real[starts + rows["lengths"] - 1] - real[(starts + rows["prefix_lengths"] - 1).clamp(min=0)]
    able = ((counted > 0) & (rows["prefix_lengths"] > 0)).tolist()
    prefixes = rows["prefixes"].tolist()
    num_rows: dict[int, int] = {}
    for prefix, ok in zip(prefixes, able, strict=True):
        num_rows[prefix] = num_rows.get(prefix, 0) + ok
    return [row for row, (prefix, ok) in enumerate(zip(prefixes, able, strict=True)) if ok and num_rows[prefix] > 1]


def share_saved(rows: TokenRows, members: Sequence[int]) -> float:
    """Which share of all tokens need not run when these rows share their prefixes, from 0 to 1."""
    prefixes, prefix_lengths = rows["prefixes"].tolist(), rows["prefix_lengths"].tolist()
    once = {prefixes[row]: prefix_lengths[row] for row in members}
    saved = sum(prefix_lengths[row] for row in members) - sum(once.values())
    return float(saved / max(1, int(rows["lengths"].sum())))


def reason_against(forward: Callable[..., Any]) -> str | None:
    """Why the model that a forward belongs to cannot share prefixes; None where it may."""
    module = module_of(forward)
    if module is None or cache_name(module) is None or _has_encoder(module):
        return f"{type(module).__name__} is no decoder that takes keys and values"
    if recomputes_layers(module):
        return "layer checkpointing (gradient_checkpointing=True) drops keys and values, and with them the query"
    return None


def _has_encoder(module: nn.Module) -> bool:
    """Whether an encoder reads the rows, and a decoder, which has the keys and values, an answer alone."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def cache_name(module: nn.Module) -> str | None:
    """The name of the model's argument for keys and values; None where it has none."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    parameters = inspect.signature(type(inner).forward).parameters
    return next((name for name in _CACHE_NAMES if name in parameters), None)


def module_of(forward: Callable[..., Any]) -> nn.Module | None:
    """The module that a forward is, or that it is a method of, also inside wrappers; None for any other function."""
    while not (isinstance(forward, nn.Module) or hasattr(forward, "__self__")) and hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    module = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def _with_cache(forward: Callable[..., Any], cache: DynamicCache) -> dict[str, Any]:
    name = cache_name(_module(forward))
    assert name is not None  # reason_against has refused the others
    return {"use_cache": True, name: cache}


def _module(forward: Callable[..., Any]) -> nn.Module:
    module = module_of(forward)
    assert module is not None  # reason_against has refused the others
    return module
