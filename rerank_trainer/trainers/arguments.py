"""Arguments: those of Transformers, and what training on groups adds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from rerank_trainer.evaluation.metrics import DEFAULT_METRICS, parse_metric
from rerank_trainer.models.hub import checked_repo_id
from rerank_trainer.models.token_budget import checked_max_tokens
from rerank_trainer.objectives.temperature import checked_temperature
from rerank_trainer.trainers.hub_hooks import repo_name

VERIFY_CHECKPOINTS = ("final", "every_save", "never")
NEGATIVES = {"random": 0.0, "top": 1.0}  # names for the share of negatives taken from the top of the list


@dataclass(repr=False)  # the parent's masks tokens; a generated one would show them
class RerankTrainingArguments(TrainingArguments):
    """Arguments of :class:`~transformers.TrainingArguments`, and these. Batch sizes count groups, not pairs.

    Args:
        objective: Name of what is minimised: a loss ("infonce", "bce", "ranknet", ...; distilling: "kl",
            "margin_mse", "mse", ...; see ``docs/choosing_a_loss.md``), "mixed" or "gated" (``docs/objectives.md``), or
            "paper" for plain InfoNCE or plain KL. None takes the trainer's default.
        loss_options: Options of that loss, such as ``{"k": 10}`` of "lambdarank"; on a command line as JSON. None takes
            the loss's own.
        temperature: Divides the student's scores in the loss.
        teacher_temperature: Divides the teacher's scores in the loss; "auto" measures before the training at which one
            the mean entropy of the teacher's targets is half of the highest possible (4 effective passages of 16).
        label_weight: Distilling: how much the labels count, from 0 to 1; the teacher counts the rest.
        label_loss: Distilling with a ``label_weight``: name of the loss of the labels; None takes "infonce".
        label_loss_options: Options of that loss, as ``loss_options``.
        passages_per_query: K, how many passages of each query train in a step; at least 2.
        negatives: Which negatives: "random", "top" (of the list), or the share taken from the top as a number, the
            others drawn: 0.5 takes half from the top.
        batch_sources: With several training sets: "mixed" takes the groups of a batch from any of them, "one" makes
            every batch of groups of one.
        balance_processes: Whether processes exchange groups of a step, so that each holds about as many tokens and
            none waits for long. The step keeps its groups; a stream and a single process have nothing to exchange.
        max_length: Tokens of a pair; None takes what the model allows, 512 for a fresh head.
        query_max_length: Tokens that a query keeps in a pair that does not fit; None cuts as the tokenizer does.
        max_tokens_per_micro_batch: Tokens of a micro-batch, padding included; "auto" takes what computes fastest on the
            device, less where that would not fit into memory. It changes speed and memory, never the gradient.
        recompute_activations: Whether the engine computes activations again in the backward, so that memory does not
            grow with the passages of a batch; None does so where they would not fit. The gradient stays the same.
        share_prefix: Whether a decoder runs what the passages of a query have in common once; None does so where it is
            exact and pays.
        step_report: Whether each logged loss comes with tokens per second, the share of padding, the seconds of a step
            by phase, and the share of the device's matmul peak, see ``docs/watching.md``.
        learning_rate: None follows the model's size (small models want large steps).
        head_learning_rate: For freshly initialised parameters; None takes ten times the learning rate, at most 1e-3.
        eval_metrics: Names such as "ndcg@10", "mrr@10", "map", "recall@100".
        teacher_cache_dir: Where teacher scores are kept; None takes the Hub cache's folder.
        check_teacher: Distilling: whether teacher scores that cannot be right are refused, and a teacher that ranks
            worse than what is there is warned of, before training.
        teacher_scale: Distilling: what the teacher's scores are, "logit", "probability" or "rank"; None takes what the
            teacher declares, nothing for a column of the rows.
        model_init_kwargs: For a model given by name: options of ``Reranker.from_pretrained``, but no token.
        verify_checkpoints: When a saved folder is opened again in Transformers and sentence-transformers to compare
            the scores of some pairs: "final" (what training ends with, what ``save_model`` writes, what is pushed),
            "every_save", or "never". It holds a second copy of the model in main memory for a moment.
        card_examples: How many training groups the model card shows; their texts stand in no other file.

    Raises:
        ValueError: If a value is out of its range, ``model_init_kwargs`` hold a token, the output folder cannot be
            written, or what would be pushed has a name that the Hub does not allow, or is more than the model.
    """

    objective: str | None = field(default=None, metadata={"help": "Name of the loss that is minimised, or 'paper'."})
    loss_options: dict[str, Any] | str | None = field(default=None, metadata={"help": "Options of that loss."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the student's scores in the loss."})
    # None is refused; beside it, HfArgumentParser reads what a command line gives as text
    teacher_temperature: float | str | None = field(
        default=1.0, metadata={"help": "Divides the teacher's scores in the loss; or 'auto'."}
    )
    label_weight: float = field(default=0.0, metadata={"help": "Distilling: weight of the labels, from 0 to 1."})
    label_loss: str | None = field(default=None, metadata={"help": "Distilling: name of the loss of the labels."})
    label_loss_options: dict[str, Any] | str | None = field(default=None, metadata={"help": "Options of that loss."})
    passages_per_query: int = field(default=16, metadata={"help": "K, passages of each query in a step."})
    # None is refused; beside it, HfArgumentParser reads what a command line gives as text
    negatives: float | str | None = field(
        default="random", metadata={"help": "'random', 'top', or the share from the top."}
    )
    batch_sources: str = field(default="mixed", metadata={"help": "Groups of a batch: 'mixed' or of 'one' source."})
    balance_processes: bool = field(default=True, metadata={"help": "Deal the groups of a step by their tokens."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a pair."})
    query_max_length: int | None = field(default=None, metadata={"help": "Tokens that a query keeps."})
    # None as above
    max_tokens_per_micro_batch: int | str | None = field(default="auto", metadata={"help": "Tokens, or 'auto'."})
    recompute_activations: bool | None = field(default=None, metadata={"help": "None: where they would not fit."})
    share_prefix: bool | None = field(default=None, metadata={"help": "Run what a query's rows share once."})
    step_report: bool = field(default=False, metadata={"help": "Log what a step's time goes into."})
    learning_rate: float | None = field(default=None, metadata={"help": "None follows the model's size."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "For freshly initialised parameters."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether the log leaves out losses that are not finite."}
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warmup; below 1, a share of all."})
    label_names: list[str] = field(
        default_factory=lambda: ["labels", "missed_gains"],
        metadata={"help": "What compute_metrics gets beside scores."},
    )
    eval_metrics: list[str] = field(
        default_factory=lambda: list(DEFAULT_METRICS), metadata={"help": "Ranking metrics of evaluation."}
    )
    teacher_cache_dir: str | None = field(default=None, metadata={"help": "Where teacher scores are kept."})
    check_teacher: bool = field(default=True, metadata={"help": "Check teacher scores before training."})
    teacher_scale: str | None = field(default=None, metadata={"help": "'logit', 'probability' or 'rank'."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of Reranker.from_pretrained for a model given by name."}
    )
    verify_checkpoints: str = field(
        default="final", metadata={"help": "'final', 'every_save' or 'never': reload what is saved, compare scores."}
    )
    card_examples: int = field(default=0, metadata={"help": "Training groups that the model card shows."})

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "loss_options",
        "label_loss_options",
        "model_init_kwargs",
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False  # groups hold texts, which no model's forward names
        if self.passages_per_query < 2:
            raise ValueError(
                f"passages_per_query={self.passages_per_query}: a ranking loss compares passages of one query, so give "
                "2 or more (16 is a good start)."
            )
        self.teacher_temperature = checked_temperature(self.teacher_temperature)
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: it divides scores, so give a number above 0")
        if self.batch_sources not in ("mixed", "one"):
            raise ValueError(f"batch_sources={self.batch_sources!r}: expected 'mixed' or 'one'")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(
                f"label_weight={self.label_weight}: give a number from 0 (teacher only) to 1 (labels only)"
            )
        for name in ("loss_options", "label_loss_options"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f'{name}={getattr(self, name)!r}: expected a mapping, as JSON such as {{"k": 10}}')
        self.max_tokens_per_micro_batch = checked_max_tokens(self.max_tokens_per_micro_batch)
        _refuse_tokens(self.model_init_kwargs)
        if self.verify_checkpoints not in VERIFY_CHECKPOINTS:
            raise ValueError(f"verify_checkpoints={self.verify_checkpoints!r}: expected one of {VERIFY_CHECKPOINTS}")
        if self.card_examples < 0:
            raise ValueError(
                f"card_examples={self.card_examples}: give how many training groups the card shows, 0 or more"
            )
        self.top_share  # noqa: B018  refuses an unknown name before any work
        for metric in self.eval_metrics:
            parse_metric(metric)
        _require_writable(self.output_dir)
        if self.push_to_hub or self.hub_model_id is not None:
            checked_repo_id(repo_name(self), what="hub_model_id")
        if self.push_to_hub:
            _refuse_to_push_all(self.output_dir)

    @property
    def top_share(self) -> float:
        """Share of the negatives that are taken from the top of the list, from 0 to 1."""
        given = "" if self.negatives is None else self.negatives
        try:
            share = NEGATIVES[given] if given in NEGATIVES else float(given)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError(f"negatives={self.negatives!r}: expected 'random', 'top', or a share from 0 to 1")
        return share


def _refuse_tokens(options: dict[str, Any] | str | None) -> None:
    """Refuse a secret among options that are logged and written to ``training_args.bin``; never shown in the error."""
    for name in options if isinstance(options, dict) else ():
        if name == "token" or name.endswith("_token"):
            raise ValueError(
                f"model_init_kwargs hold {name!r}, and arguments are written beside the model and logged. Log in with "
                "`hf auth login`, set the variable HF_TOKEN, or load the model yourself and pass it as model=."
            )


def _require_writable(folder: str | None) -> None:
    """Refuse an output folder that cannot be written, before hours of training are lost."""
    path = os.path.abspath(folder or ".")
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise ValueError(f"output_dir={folder!r} cannot be written: {path} is not a folder that this user may write to")


def _refuse_to_push_all(folder: str | None) -> None:
    """Refuse to push a folder around where one works: whatever lies in the output folder goes to the Hub."""
    for place in (os.getcwd(), os.path.expanduser("~")):
        if Path(place).resolve().is_relative_to(Path(folder or ".").resolve()):
            raise ValueError(
                f"push_to_hub=True with output_dir={folder!r}: all that lies there would be pushed, and {place} does. "
                "Give the model a folder of its own, such as output_dir='out'."
            )
