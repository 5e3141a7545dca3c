"""Evaluators: those of sentence-transformers, run on the model in training, with any number of processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerState, TrainingArguments

from rerank_trainer.models.reranker import Reranker

if TYPE_CHECKING:
    from sentence_transformers.base.evaluation import BaseEvaluator


def as_evaluator(evaluator: Any, *, eval_metrics: Sequence[str]) -> BaseEvaluator | None:
    """One evaluator: that given, or several in a row as sentence-transformers runs a list.

    Args:
        evaluator: An evaluator, a list of them, or None.
        eval_metrics: Names of the figures that stand beside those of the evaluator.

    Raises:
        ValueError: If it is something else, or figures would replace each other.
    """
    if evaluator is None:
        return None
    from sentence_transformers.base.evaluation import BaseEvaluator, SequentialEvaluator

    if not isinstance(evaluator, BaseEvaluator):
        if not isinstance(evaluator, Sequence) or not all(isinstance(one, BaseEvaluator) for one in evaluator):
            raise ValueError(
                f"evaluator={evaluator!r}: expected an evaluator of sentence-transformers or a list of them. A "
                "function of scores and labels is given as compute_metrics."
            )
        evaluator = SequentialEvaluator(evaluator)
    parts = evaluator.evaluators if isinstance(evaluator, SequentialEvaluator) else [evaluator]
    names = [(type(part).__name__, getattr(part, "name", None)) for part in parts]
    (kind, name), count = Counter(names).most_common(1)[0] if names else (("", None), 0)
    if count > 1 and name is not None:
        raise ValueError(
            f"{count} evaluators {kind} have the name {name!r}, so their figures would replace each other. "
            "Give each a name of its own: name=..."
        )
    for part in parts:
        figure = getattr(part, "primary_metric", None)
        if getattr(part, "name", None) == "" and figure in eval_metrics:
            raise ValueError(
                f"the figures of {type(part).__name__} without a name would replace the trainer's own, such as "
                f"eval_{figure}. Give it one: name=..."
            )
    return evaluator


def evaluator_figures(
    evaluator: BaseEvaluator, reranker: Reranker, args: TrainingArguments, state: TrainerState
) -> dict[str, float]:
    """What the evaluator finds, the same in every process.

    The main process runs the evaluator, and every process scores its share of the pairs. Scores are computed in the
    precision of training, the model is left in the mode it was in, and files go to the folder ``eval`` of the output.
    """
    from sentence_transformers.util.distributed import distributed_evaluation

    from rerank_trainer.evaluation.cross_encoder import LiveCrossEncoder

    autocast_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    max_tokens = getattr(args, "max_tokens_per_micro_batch", "auto")
    model = LiveCrossEncoder(reranker, autocast_dtype=autocast_dtype, max_tokens=max_tokens)
    was_training = reranker.model.training
    figures: Any = {}
    try:
        with distributed_evaluation(model) as runs_here:
            if runs_here:
                folder = os.path.join(args.output_dir, "eval")
                os.makedirs(folder, exist_ok=True)
                figures = evaluator(model, output_path=folder, epoch=state.epoch or 0, steps=state.global_step)
    finally:
        reranker.model.train(was_training)
    figures = broadcast_object_list([figures])[0]
    return figures if isinstance(figures, dict) else {"evaluator": figures}


def add_figures(metrics: dict[str, float], figures: dict[str, float], *, prefix: str) -> None:
    """Put an evaluator's figures among the metrics of an evaluation, as ``{prefix}_{name}``.

    Raises:
        ValueError: If a figure would replace one that is there.
    """
    named = {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": float(figures[name]) for name in figures}
    doubled = sorted(named.keys() & metrics.keys())
    if doubled:
        raise ValueError(
            f"the evaluator returns {doubled}, which the trainer measures on its own evaluation set. Give the "
            "evaluator a name of its own: name=..."
        )
    metrics.update(named)
