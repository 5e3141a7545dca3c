"""The watch: a callback that stops at a loss that is not finite, and reports scores that collapse."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from accelerate.utils import broadcast_object_list, gather_object, reduce
from safetensors.torch import safe_open
from torch import Tensor
from torch.nn.functional import pad
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_trainer.data.collator import LABEL_PADDING
from rerank_trainer.objectives.objective import Targets
from rerank_trainer.trainers.figures import FIGURES, totals

if TYPE_CHECKING:
    from rerank_trainer.trainers.hooks import GroupHooks

logger = logging.getLogger(__name__)

OnCollapse = Literal["warn", "stop", "ignore"]
# Batches wait, as they are, until they hold this many pairs of passages; then their figures are computed at once.
PAIRS_PER_FOLD = 2**18
ROWS_NAMED = 10  # of each process, in an error


@dataclass(frozen=True)
class Seen:
    """What ``compute_loss`` has computed for one batch of B groups, on its device.

    Attributes:
        loss: The batch's loss, a scalar.
        values: Each part's value of each group, ``(num_parts, B)``.
        scores: ``(B, K)``.
        targets: What the scores were compared with.
        defined: Which groups define a part of the loss, ``(B,)`` bool.
        rows: The groups' indices in the training set, ``(B,)``.
    """

    loss: Tensor
    values: Tensor
    scores: Tensor
    targets: Targets
    defined: Tensor
    rows: Tensor


class RerankWatch(TrainerCallback):
    """Watches training; every :class:`RerankTrainer` has one, and takes yours when ``callbacks`` holds one.

    It stops before the optimizer step whose loss or gradient is not finite, on all processes, and saves the last finite
    weights. With each logged loss it logs the figures of ``docs/watching.md``. When scores collapse it warns once, or
    stops the training. To do without it: ``trainer.remove_callback(RerankWatch)``.

    Args:
        on_collapse: "warn" once, "stop" the training with a warning, or "ignore".
        min_std_share: Scores have collapsed when ``score_std`` is below this share of the highest that the run has
            seen, its first batch included (no unit, 0 to 1).
        max_tie_share: Or when more than this share of the pairs of a group have equal scores (no unit, 0 to 1).
        num_windows: For so many logging windows in a row, after the warmup. A run that ends after fewer is judged by
            those it has.

    Raises:
        ValueError: If a value is out of its range.
        FloatingPointError: In training, if the loss or the gradient is not finite. Not a ``ValueError``: no argument is
            wrong by itself, the arithmetic has failed.

    >>> RerankWatch(on_collapse="stop", num_windows=5).max_tie_share
    0.5
    """

    def __init__(
        self,
        *,
        on_collapse: OnCollapse = "warn",
        min_std_share: float = 0.02,
        max_tie_share: float = 0.5,
        num_windows: int = 3,
    ) -> None:
        if on_collapse not in get_args(OnCollapse):
            raise ValueError(f"on_collapse={on_collapse!r}: expected one of {get_args(OnCollapse)}")
        for name, share in (("min_std_share", min_std_share), ("max_tie_share", max_tie_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: give a share from 0 to 1")
        if num_windows < 1:
            raise ValueError(f"num_windows={num_windows}: give a number of logging windows, 1 or more")
        self.on_collapse = on_collapse
        self.min_std_share = min_std_share
        self.max_tie_share = max_tie_share
        self.num_windows = num_windows
        self.gradient_norm: Tensor | float | None = None
        self._trainer: GroupHooks | None = None
        self._forget()

    def _forget(self) -> None:
        self._step: list[Seen] = []
        self._waiting: list[Seen] = []
        self._num_waiting_pairs = 0
        self._totals: Tensor | None = None
        self._first: Tensor | None = None
        self._first_std = 0.0
        self._has_reported = False

    def attach(self, trainer: GroupHooks) -> None:
        """Begin to watch a run of this trainer."""
        self._trainer = trainer
        self._forget()

    def see(self, seen: Seen) -> None:
        """Take note of a training batch; nothing is read from the device."""
        self._step.append(seen)
        self._waiting.append(seen)
        self._num_waiting_pairs += seen.scores.numel() * seen.scores.shape[1]
        if self._num_waiting_pairs > PAIRS_PER_FOLD:
            self._fold()

    def figures(self, device: torch.device) -> dict[str, float]:
        """The figures since the last call, over all processes; those that no group defines are left out."""
        self._fold()
        nothing = torch.zeros(len(FIGURES), 2, device=device)
        ours = torch.stack([nothing if part is None else part for part in (self._totals, self._first)])
        window, first = reduce(ours, "sum").tolist()
        self._totals = None
        self._first_std = first[0][0] / max(1.0, first[0][1])
        named = zip(FIGURES, window, strict=True)
        return {name: float(f"{total / count:.4g}") for name, (total, count) in named if count}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before a step with a loss or gradient that is not finite.

        Raises:
            FloatingPointError: On all processes, naming step, rows and scores, and where the last finite weights are.
        """
        step, self._step = self._step, []
        if not step:
            return
        finite = torch.stack([seen.loss.isfinite() & seen.scores.isfinite().all() for seen in step]).all()
        # under fp16 the gradient scaler meets gradients that overflow, and repeats the step with a smaller scale
        if self.gradient_norm is not None and not args.fp16:
            finite = finite & torch.as_tensor(self.gradient_norm, device=finite.device).isfinite()
        if reduce((~finite).float(), "sum").item():
            self._stop_at(step, args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare the last windows with the run before them."""
        if logs and "score_std" in logs:
            self._judge(args, state, control, self.num_windows)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge a short run by the windows that it has."""
        self._judge(args, state, control, 1)
        self._forget()

    def _fold(self) -> None:
        if self._waiting and self._first is None:
            self._first = _totals_of(self._waiting[:1])
        for with_teacher in (True, False):
            batches = [seen for seen in self._waiting if (seen.targets.teacher_scores is not None) is with_teacher]
            if batches:
                summed = _totals_of(batches)
                self._totals = summed if self._totals is None else self._totals + summed
        self._waiting, self._num_waiting_pairs = [], 0

    def _judge(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, least: int) -> None:
        # from the log itself, so that a resumed run remembers what its first part has seen
        windows = [entry for entry in state.log_history if "score_std" in entry]
        # a fresh head scores all alike until it has learned something: not before the warmup is over
        warmup = args.get_warmup_steps(state.max_steps)
        last = [window for window in windows if window["step"] > warmup][-self.num_windows :]
        if self.on_collapse == "ignore" or self._has_reported or len(last) < least:
            return
        highest = max([self._first_std, *(window["score_std"] for window in windows)])
        if all(window["score_std"] < self.min_std_share * highest for window in last):
            found = (
                f"the standard deviation of the scores within a group is {last[-1]['score_std']:.3g} and was "
                f"{highest:.3g}; below {self.min_std_share:.0%} of that is a collapse"
            )
        elif all(window.get("tie_share", 0.0) > self.max_tie_share for window in last):
            found = (
                f"{last[-1]['tie_share']:.0%} of the pairs of passages of a query have equal scores; more than "
                f"{self.max_tie_share:.0%} is a collapse"
            )
        else:
            return
        self._has_reported = True
        logger.warning(
            "step %d: the scores have collapsed: %s, in the last %d logging windows. Likely causes: a learning rate "
            "that is too high (now %.2g) or without warmup; a teacher whose scores are almost equal, or targets "
            "flattened by a high teacher_temperature; groups without contrast (see undefined_share). Go back to a "
            "checkpoint before, and train on with a lower learning rate.%s",
            state.global_step,
            found,
            len(last),
            last[-1].get("learning_rate", math.nan),
            " Training stops here, as on_collapse='stop' asks." if self.on_collapse == "stop" else "",
        )
        if self.on_collapse == "stop":
            control.should_training_stop = True

    def _stop_at(self, step: Sequence[Seen], args: TrainingArguments, state: TrainerState) -> None:
        assert self._trainer is not None  # compute_loss is the trainer's, and train() attaches before it
        failed = f"step {state.global_step + 1} (epoch {state.epoch or 0:.2f})"
        lines = gather_object([f"process {args.process_index}: {_what_failed(step, self._trainer.objective.names)}"])
        found = f"{failed} was not taken, because its loss or gradient is not finite. " + "; ".join(lines) + "."
        logger.error(found)
        self._trainer.log({"loss": math.nan})  # the log must show it, not only the error
        raise FloatingPointError(
            f"{found} Rows are indices in the training set. {self._last_finite(args, state)} Look at these rows; then "
            "try a lower learning rate, more warmup, a smaller max_grad_norm, or bf16 in place of fp16."
        )

    def _last_finite(self, args: TrainingArguments, state: TrainerState) -> str:
        """Save the weights, or find the latest checkpoint that is finite; where they are, in a sentence."""
        trainer = self._trainer
        assert trainer is not None and args.output_dir is not None
        wrong = [name for name, weight in trainer.model.named_parameters() if not weight.isfinite().all()]
        any_wrong = gather_object(wrong[:1])
        if not any_wrong:
            folder = Path(args.output_dir) / f"last-finite-step-{state.global_step}"
            trainer.save_model(str(folder), _internal_call=True)  # internal: nothing is pushed
            return f"The weights after step {state.global_step} are finite and saved: {folder}."
        found = [_latest_finite_checkpoint(Path(args.output_dir)) if args.process_index == 0 else None]
        (folder,) = broadcast_object_list(found)
        return f"The weights are not finite already before this step ({any_wrong[0]} is not). " + (
            f"The latest checkpoint with finite weights is {folder}."
            if folder
            else f"No checkpoint in {args.output_dir} has finite weights."
        )


def _totals_of(batches: Sequence[Seen]) -> Tensor:
    """The totals of batches that all have teacher scores, or all have none."""
    width = max(seen.scores.shape[1] for seen in batches)

    def joined(tensors: Sequence[Tensor], fill: float) -> Tensor:
        return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])

    teacher_scores = [seen.targets.teacher_scores for seen in batches if seen.targets.teacher_scores is not None]
    targets = Targets(
        joined([seen.targets.labels for seen in batches], LABEL_PADDING),
        joined([seen.targets.mask for seen in batches], False),
        joined(teacher_scores, 0.0) if teacher_scores else None,
    )
    scores = joined([seen.scores for seen in batches], 0.0)
    return totals(scores, targets, torch.cat([seen.defined for seen in batches]))


def _what_failed(step: Sequence[Seen], names: Sequence[str]) -> str:
    """Which rows of this process have scores or losses that are not finite, in words."""
    found, rows = [], []
    for seen in step:
        finite = seen.scores.isfinite()
        for index, row in enumerate(seen.rows.tolist()):
            rows.append(row)
            num_wrong, num_scores = int((~finite[index]).sum()), int(seen.targets.mask[index].sum())
            values = dict(zip(names, seen.values[:, index].tolist(), strict=True))
            parts = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
            if num_wrong:
                parts.insert(0, f"{num_wrong} of {num_scores} scores are not finite")
            if parts:
                found.append(f"row {row}: {', '.join(parts)}")
    if not found:
        return f"all scores and losses are finite, of rows {_shortened(rows)}"
    return _shortened(found)


def _shortened(entries: Sequence[Any]) -> str:
    more = f" and {len(entries) - ROWS_NAMED} more" if len(entries) > ROWS_NAMED else ""
    return ", ".join(map(str, entries[:ROWS_NAMED])) + more


def _latest_finite_checkpoint(output_dir: Path) -> Path | None:
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for folder in sorted(folders, key=lambda path: -int(path.name.rpartition("-")[2])):
        if (files := list(folder.glob("*.safetensors"))) and all(map(_is_finite, files)):
            return folder
    return None


def _is_finite(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return all(bool(file.get_tensor(name).isfinite().all()) for name in file.keys())  # noqa: SIM118  no mapping
