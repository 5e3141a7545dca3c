"""The live cross-encoder: a reranker as the sentence-transformers model that evaluators call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.model_card import CrossEncoderModelCardData
from torch import Tensor, nn

from rerank_trainer.models.reranker import Reranker


class LiveCrossEncoder(CrossEncoder):
    """A sentence-transformers ``CrossEncoder`` around a reranker in memory: it shares the weights and copies none.

    ``predict`` and ``rank`` score with :meth:`Reranker.predict`, so that a model in training can be judged between two
    steps; scores are raw logits, as those of the saved folder. The model stays where it is, in the mode it is in.

    Args:
        reranker: What scores.
        autocast_dtype: Compute in this type, as mixed-precision training does; None computes in the weights' type.
        max_tokens: Tokens of a micro-batch, padding included, or "auto". ``batch_size`` has no effect.
    """

    def __init__(
        self, reranker: Reranker, *, autocast_dtype: torch.dtype | None = None, max_tokens: int | str = "auto"
    ) -> None:
        super().__init__(
            modules=[reranker.model],
            device=str(reranker.model.device),
            activation_fn=nn.Identity(),
            model_card_data=CrossEncoderModelCardData(local_files_only=True),
        )
        self.reranker = reranker
        self.autocast_dtype = autocast_dtype
        self.max_tokens = max_tokens

    @property
    def tokenizer(self) -> Any:
        """The reranker's tokenizer."""
        return self.reranker.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a pair."""
        return self.reranker.max_length

    def to(self, *args: Any, **kwargs: Any) -> LiveCrossEncoder:
        """Itself, unmoved: whoever trains the model has placed it."""
        return self

    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None = None,
        show_progress_bar: bool = False,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        **_options: Any,  # batch_size, device, apply_softmax: with one logit and a token budget they mean nothing
    ) -> Tensor:
        if prompt and not self.reranker.template.takes_instructions:
            raise ValueError(f"prompt {prompt!r}: a reranker's template has no place for it; evaluate without prompt")
        scores = self.reranker.predict(
            inputs,
            instruction=prompt or None,
            show_progress_bar=bool(show_progress_bar),
            autocast_dtype=self.autocast_dtype,
            max_tokens=self.max_tokens,
        )
        return scores if activation_fn is None else activation_fn(scores)
