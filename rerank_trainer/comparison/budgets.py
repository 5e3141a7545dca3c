"""Budgets: how much training each recipe may spend, in steps, seconds or tokens, and the callback that spends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Steps of a training whose end only seconds or tokens decide.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class Steps:
    """A budget in optimizer steps.

    Raises:
        ValueError: If it is no number above 0; of all budgets.
    """

    amount: int
    unit = "steps"

    def __post_init__(self) -> None:
        _require_positive(self, int)


@dataclass(frozen=True)
class Seconds:
    """A budget in seconds of training on this machine; a step that has begun is finished."""

    amount: float
    unit = "seconds"

    def __post_init__(self) -> None:
        _require_positive(self, int | float)


@dataclass(frozen=True)
class Tokens:
    """A budget in training tokens, without padding; a step that has begun is finished."""

    amount: int
    unit = "tokens"

    def __post_init__(self) -> None:
        _require_positive(self, int)


Budget = Steps | Seconds | Tokens
_UNITS: dict[str, type[Budget]] = {"steps": Steps, "seconds": Seconds, "tokens": Tokens}


def as_budget(budget: Budget | Mapping[str, Any]) -> Budget:
    """A budget from an object, or from a mapping such as ``{"steps": 500}``.

    Raises:
        ValueError: If it is neither.

    >>> as_budget({"seconds": 600})
    Seconds(amount=600)
    """
    if isinstance(budget, Mapping) and len(budget) == 1 and next(iter(budget)) in _UNITS:
        ((unit, amount),) = budget.items()
        return _UNITS[unit](amount)
    if not isinstance(budget, Budget):
        raise ValueError(f'budget={budget!r}: expected Steps(500), Seconds(600) or Tokens(10**6), or {{"steps": 500}}')
    return budget


class Spending(TrainerCallback):
    """Stops one stage when its budget is spent, and counts what was.

    Of a budget in steps the trainer knows the end, and the learning rate follows its own schedule. Where seconds or
    tokens decide, nobody knows how many steps there will be: the learning rate then rises and falls linearly with the
    share of the budget that is spent, and objectives that follow the progress are told of it likewise.

    Args:
        budget: Of the whole recipe.
        spent: What stages before this one have spent of it.
        until: The amount at which this stage ends.
        warmup: The share of the stage in which the learning rate rises.
        on_share: Told after each step which share of the whole budget is spent.
    """

    def __init__(
        self, budget: Budget, *, spent: float, until: float, warmup: float, on_share: Callable[[float], None]
    ) -> None:
        self.budget, self.spent, self.until, self.warmup, self.on_share = budget, spent, until, warmup, on_share
        self.num_steps, self.num_tokens, self.seconds = 0, 0, 0.0
        self._hook: Any = None
        self._start = 0.0

    @property
    def own(self) -> float:
        """What this stage has spent, in the budget's unit."""
        return {"steps": self.num_steps, "seconds": self.seconds, "tokens": self.num_tokens}[self.budget.unit]

    @property
    def share(self) -> float:
        """Which share of the stage is spent."""
        return min(1.0, self.own / (self.until - self.spent))

    @property
    def knows_steps(self) -> bool:
        """Whether the number of steps is known before."""
        return isinstance(self.budget, Steps)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the trainer must be given for this stage.

        Raises:
            ValueError: If the stage has less than one step.
        """
        if not self.knows_steps:
            return {"max_steps": _NO_LIMIT, "lr_scheduler_type": "constant", "warmup_steps": 0}
        num_steps = int(self.until - self.spent)
        if num_steps < 1:
            raise ValueError(f"{self.budget}: a stage would have {num_steps} steps. Give more steps, or equal shares.")
        return {"max_steps": num_steps}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hook = kwargs["model"].register_forward_pre_hook(self._count, with_kwargs=True)
        self._start = time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.knows_steps:
            return
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = group["initial_lr"] * rate_at(self.share, self.warmup)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.num_steps += 1
        self.seconds = time.perf_counter() - self._start
        self.on_share((self.spent + min(self.own, self.until - self.spent)) / self.budget.amount)
        if self.knows_steps:
            return
        # both ways: the trainer itself stops where the number of steps was estimated too low
        control.should_training_stop = self.share >= 1
        state.max_steps = max(state.global_step + 1, round(state.global_step / max(self.share, 1e-9)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hook.remove()

    def _count(self, model: Any, args: Any, kwargs: Any) -> None:
        if "rows" in kwargs:
            self.num_tokens += int(kwargs["rows"]["lengths"].sum())


def rate_at(share: float, warmup: float) -> float:
    """The learning rate as a share of its peak: it rises over the first part of a stage and falls to 0 over the rest.

    >>> [rate_at(share, warmup=0.2) for share in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return share / warmup if share < warmup else (1 - share) / (1 - warmup)


def _require_positive(budget: Any, kind: Any) -> None:
    if isinstance(budget.amount, bool) or not isinstance(budget.amount, kind) or not budget.amount > 0:
        raise ValueError(f"{type(budget).__name__}({budget.amount!r}): expected a number of {budget.unit} above 0")
