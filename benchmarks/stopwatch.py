"""Stopwatch: a callback that times a training run from the end of its first step, and counts what ran meanwhile.

It is given to every side's trainer alike and looks at the model alone, so it measures all of them by one measure.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback


class Stopwatch(TrainerCallback):
    """Seconds and counts of the steps after the first one.

    Attributes:
        seconds: From the end of the first step to the end of training.
        forward_backward: The part of it from the begin of a step to its last gradient: the forward, the loss, the
            backward, and tokenising where a trainer does that inside its loss.
        optimizer: The part of it from there to the end of the optimizer's step, clipping included.
        tokens: Tokens that ran through the model, without padding.
        padded_tokens: The same with padding.
    """

    def __init__(self) -> None:
        self.begin = self.seconds = self.forward_backward = self.optimizer = 0.0
        self.tokens = self.padded_tokens = 0
        self.is_timed = False
        self.settings: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = next(module for module in kwargs["model"].modules() if isinstance(module, PreTrainedModel))
        # the body: engines may call the forward of the whole model past its hooks
        model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)
        linear = next(module for module in model.base_model.modules() if isinstance(module, nn.Linear))
        linear.register_forward_hook(self._note_type)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
        self.settings["attention"] = model.config._attn_implementation

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_begin = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_timed:
            self.forward_backward += self.last_gradient - self.step_begin

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_timed:
            self.optimizer += time.perf_counter() - self.last_gradient

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.is_timed:
            self.is_timed, self.begin = True, time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.begin

    def report(self) -> dict[str, Any]:
        """What a side of a benchmark prints: times, counts, and the settings that must be alike."""
        return {
            "seconds": self.seconds,
            "forward_backward": self.forward_backward,
            "optimizer": self.optimizer,
            "share_outside": 1 - (self.forward_backward + self.optimizer) / self.seconds,
            "tokens": self.tokens,
            "padded_tokens": self.padded_tokens,
            "threads": torch.get_num_threads(),
            "transformers": transformers.__version__,
            **self.settings,
        }

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_timed:
            input_ids = args[0] if args else kwargs["input_ids"]
            mask = kwargs["attention_mask"]
            # behind a shared prefix the mask is longer than the input: it begins with the prefix's
            self.tokens += int(mask[:, -input_ids.shape[1] :].sum())
            self.padded_tokens += input_ids.numel()

    def _note_type(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.settings["computed_in"] = str(output.dtype)

    def _note_gradient(self, parameter: Tensor) -> None:
        self.last_gradient = time.perf_counter()
