"""Head dropout: the scores of one forward under many dropouts of what the last layer reads.

The backbone runs once a row. Whatever stands between it and the last layer (pooler, dense layers) runs once as well,
without a dropout of its own, so that any head can be sampled, also one that has no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rerank_trainer.data.collator import TokenRows, lay_rows
from rerank_trainer.models.layers import computing_by
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import scores_in_evaluation
from rerank_trainer.models.token_logits import TokenLogitHead

_REMEDY = "Take EmaTeacher, PreviousEpochTeacher or CheckpointTeacher, which need no particular head."


class HeadDropout:
    """A reranker's head that gives the scores under several noises, ``(num_rows, num_samples)``.

    A noise multiplies the features that the last layer reads, and is the same for all rows: one noise makes one scoring
    function of the reranker, and the difference of two passages under it is that function's own.

    Args:
        reranker: Whose head it is.

    Attributes:
        num_features: What the last layer reads of a row.
        noises: ``(num_samples, num_features)``; with one noise of ones the scores are the reranker's own.

    Raises:
        ValueError: If no linear layer with one output makes the score, or what follows it mixes samples.
    """

    def __init__(self, reranker: Reranker) -> None:
        self._head = self.__wrapped__ = reranker.head  # it alone runs where scores mean nothing, as for a shared prefix
        self._layer = last_layer(reranker)
        self.num_features = int(self._layer.in_features)
        self.noises = torch.ones(1, self.num_features)
        self._require_samples(reranker)

    def draw(self, num_samples: int, *, rate: float, generator: torch.Generator) -> None:
        """Take new noises: dropout that keeps the mean.

        Args:
            num_samples: How many.
            rate: The share of the features that is dropped, from 0 to below 1.
            generator: Source of chance, on the CPU, so that every device draws the same.
        """
        is_kept = torch.rand(num_samples, self.num_features, generator=generator) >= rate
        self.noises = is_kept / (1 - rate)

    def __call__(self, forward: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
        device = inputs["input_ids"].device
        noises = self.noises.to(device, non_blocking=device.type == "cuda")

        def run(**inputs: Any) -> Any:
            whole = self._layer.forward  # looked up here: a head may have put its own in the layer's place

            def sample(states: Tensor) -> Tensor:
                # side by side in a new last place, which whatever picks rows and positions afterwards leaves alone
                return torch.stack([whole(states * noise) for noise in noises.to(states.dtype)], dim=-1)

            with computing_by(self._layer, sample):
                return forward(**inputs)

        run.__wrapped__ = forward  # type: ignore[attr-defined]
        return self._head(run, inputs)

    def _require_samples(self, reranker: Reranker) -> None:
        """Try what is believed of the model: each sample is the score under its own noise alone."""
        scorer, row = reranker.row_scorer(head=self), _a_row(reranker)
        ones = self.noises
        half = torch.arange(self.num_features)[None] % 2 * 2.0
        found = {}
        for name, noises in {"both": torch.cat([ones, half]), "ones": ones, "half": half}.items():
            self.noises = noises
            found[name] = scores_in_evaluation(scorer, reranker.model, row)
        self.noises = ones
        own = scores_in_evaluation(reranker.row_scorer(), reranker.model, row)
        expected = torch.stack([own, found["half"].flatten()], dim=-1)
        tolerance = 1e-4 if reranker.model.dtype == torch.float32 else 0.05
        if found["both"].shape != (1, 2) or not torch.allclose(found["both"], expected, rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"{type(reranker.model).__name__} cannot be sampled: what follows its last layer "
                f"{self._layer} does not keep the samples apart ({found['both'].tolist()} under two noises, "
                f"{expected.tolist()} under each alone). {_REMEDY}"
            )


def last_layer(reranker: Reranker) -> nn.Module:
    """The linear layer that makes the score: the last one with one output that a forward runs, or that of all tokens.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(reranker.head, TokenLogitHead):
        layer: nn.Module = reranker.model.get_output_embeddings()
        return layer
    ran: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):  # a module of a chain, around such a layer, hands a dictionary on
            ran.append(module)

    hooks = [
        module.register_forward_hook(note)
        for module in reranker.model.modules()
        if getattr(module, "out_features", None) == 1 and hasattr(module, "in_features")
    ]
    try:
        scores_in_evaluation(reranker.row_scorer(), reranker.model, _a_row(reranker))
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ValueError(
            f"{type(reranker.model).__name__} cannot be sampled: no linear layer with one output makes its score, so "
            f"there are no features to drop. {_REMEDY}"
        )
    return ran[-1]  # an adapter's layer runs around its base's


def _a_row(reranker: Reranker) -> TokenRows:
    instructions = [None] if reranker.template.takes_instructions else None
    laid: Any = lay_rows(reranker.template.encode([("a query", ["a passage"])], instructions)[0], [(0, 0)])
    placed: Any = {name: value.to(reranker.model.device) for name, value in laid.items()}
    return placed
