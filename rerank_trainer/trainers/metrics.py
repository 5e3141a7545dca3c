"""The metrics of an evaluation: what Transformers gathered from batches and processes, judged as groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from rerank_trainer.evaluation.metrics import ranking_metrics
from rerank_trainer.evaluation.spread import score_spread


class GroupMetrics:
    """A ``compute_metrics`` of ranking metrics, also for ``batch_eval_metrics`` and batches left apart.

    Args:
        metrics: Names such as "ndcg@10".
        label_names: What ``label_ids`` hold, in order.

    Raises:
        ValueError: If ``label_names`` lacks the labels or the missed gains.
    """

    def __init__(self, metrics: Sequence[str], label_names: Sequence[str]) -> None:
        if not {"labels", "missed_gains"} <= set(label_names):
            raise ValueError(
                f"label_names={list(label_names)}: ranking metrics need 'labels' and 'missed_gains' among them. Add "
                "them, or give metrics of your own as compute_metrics."
            )
        self.metrics = metrics
        self.label_names = label_names
        self.reset()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """The metrics and the spread of all groups since the last result; nothing yet without ``compute_result``."""
        batches = [(prediction.predictions, prediction.label_ids)]
        if isinstance(prediction.predictions, list):  # eval_do_concat_batches=False
            batches = list(zip(prediction.predictions, prediction.label_ids, strict=True))
        for scores, label_ids in batches:
            of_name = dict(zip(self.label_names, label_ids, strict=True))
            rows = (scores, of_name["labels"], of_name["missed_gains"])
            self._groups.extend(zip(*(_array(values) for values in rows), strict=True))
        if not compute_result:
            return {}
        scores, labels, missed_gains = zip(*self._groups, strict=True) if self._groups else ((), (), ())
        self.reset()
        return ranking_metrics(scores, labels, missed_gains, metrics=self.metrics) | score_spread(scores, labels)

    def reset(self) -> None:
        """Forget the groups of an evaluation that was broken off."""
        self._groups: list[tuple[Any, ...]] = []


def _array(values: Any) -> np.ndarray[Any, Any]:
    return values.float().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
