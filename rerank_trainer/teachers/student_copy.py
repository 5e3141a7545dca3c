"""The student's copy: other weights for the same model, held beside it, and the scores that it gives with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.live import Training, score_batch


class StudentCopy:
    """Weights for the parameters that the student trains; all others are the student's own.

    So a copy of an adapter takes an adapter's memory. Weights are held in float32, whatever the student's are: in
    bfloat16 an average would not move by a thousandth.

    Args:
        student: The model that is trained.
        training: How it computes.
        head: What reads the scores; None is the student's own head.

    Attributes:
        weights: By the parameters' names; empty until they are taken or loaded.
    """

    def __init__(self, student: Reranker, training: Training, *, head: Callable[..., Tensor] | None = None) -> None:
        self.weights: dict[str, Tensor] = {}
        self._model = student.model
        self._scorer = student.row_scorer(training.max_tokens, share_prefix=training.share_prefix, head=head)
        self._autocast_dtype = training.autocast_dtype

    def take(self) -> None:
        """Be as the student is now."""
        self.weights = {name: value.detach().float().clone() for name, value in self._trained().items()}

    def average(self, decay: float) -> None:
        """Move towards the student: ``decay`` of the copy is left, the rest becomes the student's."""
        of_student = [value.detach().float() for value in self._trained().values()]
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), of_student, None)

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """The scores of a batch's pairs, as of :func:`score_batch`."""
        weights = {name: self.weights[name].to(value.dtype) for name, value in self._trained().items()}

        def forward(**inputs: Any) -> Any:
            return functional_call(self._model, weights, (), inputs)

        forward.__wrapped__ = self._model  # type: ignore[attr-defined]
        return score_batch(self._scorer, self._model, batch, forward=forward, autocast_dtype=self._autocast_dtype)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights that were kept.

        Raises:
            ValueError: If they are of other parameters than the student trains.
        """
        trained = self._trained()
        own = {name: tuple(value.shape) for name, value in trained.items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        if wrong:
            raise ValueError(
                f"expected a teacher's weights for the {len(own)} parameters that the student trains, found "
                f"{len(found)}: {wrong[0]} is of shape {found.get(wrong[0])} and should be {own.get(wrong[0])}. Resume "
                "with the student and the teacher that the run began with."
            )
        # copied: tensors of a file may lie where matrix products round otherwise, and a resumed run must not
        self.weights = {name: weights[name].to(value.device, copy=True) for name, value in trained.items()}

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: value for name, value in self._model.named_parameters() if value.requires_grad}
