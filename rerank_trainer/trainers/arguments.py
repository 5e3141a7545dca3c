"""Arguments: those of Transformers, and what training on groups adds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from rerank_trainer.evaluation.metrics import DEFAULT_METRICS, parse_metric
from rerank_trainer.trainers.refusals import LABEL_NAMES

NEGATIVES = {"random": 0.0, "top": 1.0}  # names for the share of negatives taken from the top of the list


@dataclass
class RerankTrainingArguments(TrainingArguments):
    """Arguments of :class:`~transformers.TrainingArguments`, and these. Batch sizes count groups, not pairs.

    Args:
        objective: Name of what is minimised: a loss ("infonce", "bce", "ranknet", ...; distilling: "kl",
            "margin_mse", "mse", ...), or "paper" for plain InfoNCE or plain KL. None takes the trainer's default.
        temperature: Divides the student's scores in the loss.
        teacher_temperature: Divides the teacher's scores in the loss.
        label_weight: Distilling: how much the labels count, from 0 to 1; the teacher counts the rest.
        passages_per_query: K, how many passages of each query train in a step; at least 2.
        negatives: Which negatives: "random", "top" (of the list), or the share taken from the top as a number, the
            others drawn: 0.5 takes half from the top.
        max_length: Tokens of a pair; None takes what the model allows, 512 for a fresh head.
        query_max_length: Tokens that a query keeps in a pair that does not fit; None takes three quarters.
        max_tokens_per_micro_batch: Tokens of a micro-batch, padding included; None chooses by device. It changes
            speed and memory, never the gradient.
        learning_rate: None follows the model's size (small models want large steps).
        head_learning_rate: For freshly initialised parameters; None takes ten times the learning rate, at most 1e-3.
        eval_metrics: Names such as "ndcg@10", "mrr@10", "map", "recall@100".
        teacher_cache_dir: Where teacher scores are kept; None takes the Hub cache's folder.
        model_init_kwargs: For a model given by name: options of ``Reranker.from_pretrained``.

    Raises:
        ValueError: If a value is out of its range, or the output folder cannot be written.
    """

    objective: str | None = field(default=None, metadata={"help": "Name of the loss that is minimised, or 'paper'."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the student's scores in the loss."})
    teacher_temperature: float = field(default=1.0, metadata={"help": "Divides the teacher's scores in the loss."})
    label_weight: float = field(default=0.0, metadata={"help": "Distilling: weight of the labels, from 0 to 1."})
    passages_per_query: int = field(default=16, metadata={"help": "K, passages of each query in a step."})
    negatives: str | float = field(default="random", metadata={"help": "'random', 'top', or the share from the top."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a pair."})
    query_max_length: int | None = field(default=None, metadata={"help": "Tokens that a query keeps."})
    max_tokens_per_micro_batch: int | None = field(default=None, metadata={"help": "Tokens of a micro-batch."})
    learning_rate: float | None = field(default=None, metadata={"help": "None follows the model's size."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "For freshly initialised parameters."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warmup; below 1, a share of all."})
    label_names: list[str] = field(
        default_factory=lambda: list(LABEL_NAMES),
        metadata={"help": "What compute_metrics gets beside scores."},
    )
    eval_metrics: list[str] = field(
        default_factory=lambda: list(DEFAULT_METRICS), metadata={"help": "Ranking metrics of evaluation."}
    )
    teacher_cache_dir: str | None = field(default=None, metadata={"help": "Where teacher scores are kept."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of Reranker.from_pretrained for a model given by name."}
    )

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False  # groups hold texts, which no model's forward names
        if self.passages_per_query < 2:
            raise ValueError(
                f"passages_per_query={self.passages_per_query}: a ranking loss compares passages of one query, so give "
                "2 or more (16 is a good start)."
            )
        for name in ("temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it divides scores, so give a number above 0")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(
                f"label_weight={self.label_weight}: give a number from 0 (teacher only) to 1 (labels only)"
            )
        self.top_share  # noqa: B018  refuses an unknown name before any work
        for metric in self.eval_metrics:
            parse_metric(metric)
        _require_writable(self.output_dir)

    @property
    def top_share(self) -> float:
        """Share of the negatives that are taken from the top of the list, from 0 to 1."""
        try:
            share = NEGATIVES[self.negatives] if self.negatives in NEGATIVES else float(self.negatives)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError(f"negatives={self.negatives!r}: expected 'random', 'top', or a share from 0 to 1")
        return share


def _require_writable(folder: str | None) -> None:
    """Refuse an output folder that cannot be written, before hours of training are lost."""
    path = os.path.abspath(folder or ".")
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise ValueError(f"output_dir={folder!r} cannot be written: {path} is not a folder that this user may write to")
