"""The step report: tokens per second, padding, the seconds of a step by phase, and the share of the matmul peak."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_trainer.models.work import Work, training_flops

logger = logging.getLogger(__name__)

T = TypeVar("T")

PHASES = ("data", "forward", "backward", "optimizer", "rest")
# Rows and columns of the matrices whose product is timed for the peak: large enough to keep the device busy.
PEAK_SIZE_CPU = 1024
PEAK_SIZE_GPU = 8192


class Clock:
    """Charges time to phases. One phase runs at any time: one that begins inside another interrupts it.

    Args:
        now: Returns seconds.

    Attributes:
        seconds: What each of :data:`PHASES` has taken since :meth:`start`.

    >>> clock = Clock(iter([0.0, 1.0, 3.0, 7.0]).__next__)
    >>> clock.start()
    >>> with clock.phase("data"):  # begins at 1
    ...     pass  # ends at 3
    >>> clock.turn("rest")  # at 7
    'rest'
    >>> clock.seconds["data"], clock.seconds["rest"]
    (2.0, 5.0)
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._phase = "rest"
        self._since = 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def start(self) -> None:
        """Begin to count anew."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._since = self._now()

    def turn(self, phase: str) -> str:
        """Begin a phase; returns the one that has run until now."""
        now = self._now()
        self.seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before

    def skip(self) -> None:
        """Charge to no phase what has passed since the last turn."""
        self._since = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The phase that runs inside; afterwards the one that was interrupted goes on."""
        before = self.turn(name)
        try:
            yield
        finally:
            self.turn(before)

    def during(self, name: str, iterator: Iterator[T]) -> Iterator[T]:
        """The iterator, whose work for each item is charged to a phase."""
        end = object()
        while True:
            with self.phase(name):
                item: Any = next(iterator, end)
            if item is end:
                return
            yield item


def device_clock(device: torch.device) -> Callable[[], float]:
    """A function that returns seconds, on a GPU once the device has done what it was given."""
    if device.type == "cpu":
        return time.perf_counter

    def now() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now


def matmul_peak(device: torch.device, dtype: torch.dtype, *, size: int | None = None, num_products: int = 20) -> float:
    """Floating-point operations per second of the fastest of some products of two square matrices.

    Args:
        device: Where they are multiplied.
        dtype: Type of the numbers.
        size: Rows and columns; None takes 1024 on a CPU and 8192 elsewhere.
        num_products: How many are timed, after one that is not.

    >>> matmul_peak(torch.device("cpu"), torch.float32, size=8) > 0
    True
    """
    size = size or (PEAK_SIZE_CPU if device.type == "cpu" else PEAK_SIZE_GPU)
    now = device_clock(device)
    # chance of its own, so that training draws what it would draw without the report
    chance = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=chance, device=device, dtype=dtype) for _ in range(2))
    product, fastest = left @ right, float("inf")
    for _ in range(num_products):
        begin = now()
        torch.mm(left, right, out=product)
        fastest = min(fastest, now() - begin)
    return 2 * size**3 / fastest


class StepReport(TrainerCallback):
    """Adds to each logged loss what ``docs/watching.md`` lists under "Where the time goes".

    While a training runs, it stands around some methods of the trainer and of its accelerator; without a report nothing
    of it is there. Add it last, so that what other callbacks do before the optimizer's step counts as rest.

    Attributes:
        dtype: The precision that the training computes in.
        peak: The matmul peak of this process in it, measured before the training, in operations per second.
    """

    def __init__(self) -> None:
        self.dtype = torch.float32
        self.peak = 0.0
        self._forget()

    def _forget(self) -> None:
        self._trainer: Trainer | None = None
        self._clock: Clock | None = None
        self._work, self._num_tokens, self._num_steps = Work(), 0, 0

    @contextmanager
    def running(self, trainer: Trainer) -> Iterator[None]:
        """Measures the peak, then times the training that runs inside."""
        accelerator, device = trainer.accelerator, trainer.args.device
        precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self.dtype = precisions.get(accelerator.mixed_precision, trainer.model.dtype)
        accelerator.wait_for_everyone()  # processes that share a machine measure what each has while all work
        self.peak = matmul_peak(device, self.dtype)
        logger.info("matmul peak on %s in %s: %.4g operations a second", device, self.dtype, self.peak)
        self._trainer, self._clock = trainer, (clock := Clock(device_clock(device)))
        try:
            with (
                replaced(trainer, "get_batch_samples", _around_batches(trainer, clock)),
                replaced(trainer, "training_step", self._around_step(trainer, clock)),
                replaced(accelerator, "backward", clock.phase("backward")(accelerator.backward)),
                replaced(accelerator, "clip_grad_norm_", clock.phase("optimizer")(accelerator.clip_grad_norm_)),
            ):
                yield
        finally:
            self._forget()

    def figures(self, device: torch.device) -> dict[str, float]:
        """The figures of the steps since the last call, over all processes; none outside of a training."""
        trainer, clock, work, num_steps = self._trainer, self._clock, self._work, self._num_steps
        if trainer is None or clock is None or not num_steps:
            return {}
        clock.turn("rest")
        seconds = sum(clock.seconds.values())
        own = [
            *(clock.seconds[name] for name in PHASES),
            seconds,
            self._num_tokens,
            work.num_tokens,
            work.num_padding,
            training_flops(trainer.model, work),
            self.peak * seconds,
        ]
        summed = reduce(torch.tensor(own, dtype=torch.float32, device=device), "sum").tolist()
        *of_phases, seconds, num_tokens, num_run, num_padding, flops, possible_flops = summed
        self._work, self._num_tokens, self._num_steps = Work(), 0, 0
        clock.start()
        num_processes = trainer.accelerator.num_processes
        per_step = {"step": seconds, **dict(zip(PHASES, of_phases, strict=True))}
        figures = {
            "tokens_per_second": num_tokens * num_processes / seconds,
            "padding_share": num_padding / max(1.0, num_run + num_padding),
            "peak_share": flops / possible_flops,
            **{f"seconds_{name}": value / num_processes / num_steps for name, value in per_step.items()},
        }
        return {name: float(f"{value:.4g}") for name, value in figures.items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first step begins."""
        if self._clock is not None:
            self._clock.start()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer begins."""
        if self._clock is not None:
            self._clock.turn("optimizer")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The optimizer has stepped, the schedule too, and the gradients are cleared."""
        if self._clock is not None:
            self._clock.turn("rest")
            self._num_steps += 1

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluation is no part of a step."""
        if self._clock is not None:
            self._clock.skip()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Nor is saving."""
        if self._clock is not None:
            self._clock.skip()

    def _around_step(self, trainer: Trainer, clock: Clock) -> Callable[..., Any]:
        training_step = trainer.training_step

        @wraps(training_step)
        def timed(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._num_tokens += int(inputs["student"]["lengths"].sum())
            scorer = trainer.model.row_scorer
            scorer.work = self._work  # here alone: evaluation runs through the same scorer
            try:
                with clock.phase("forward"):
                    return training_step(model, inputs, *args, **kwargs)
            finally:
                scorer.work = None

        return timed


def _around_batches(trainer: Trainer, clock: Clock) -> Callable[..., Any]:
    get_batch_samples = trainer.get_batch_samples

    @wraps(get_batch_samples)
    def timed(epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        return get_batch_samples(clock.during("data", epoch_iterator), *args, **kwargs)

    return timed


def reporting(trainer: Trainer) -> AbstractContextManager[None]:
    """In which a trainer trains: timed if there is a :class:`StepReport` among its callbacks."""
    report = next((each for each in trainer.callback_handler.callbacks if isinstance(each, StepReport)), None)
    return nullcontext() if report is None else report.running(trainer)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of this object has another value inside, and afterwards what it had."""
    own = vars(owner).get(name)  # None where the class has it
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)
