"""What of an objective changes in training: it follows the progress, measures a sample before, learns from steps.

:class:`Adaptive` is the one protocol for all of it; the trainer calls the outermost objective, which passes on to the
parts inside. Nothing is remembered in the forward: what is learned comes as sums over a whole optimizer step and all
processes, so that every process knows the same, and a batch that runs twice counts once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rerank_trainer.objectives.objective import Targets


class Adaptive(nn.Module):
    """A part of an objective that may change in training. What it does not override, it passes on to the parts inside.

    What it learns is kept in buffers; they are what a checkpoint holds of an objective, so they are finite.

    Attributes:
        needs_sample: Whether :meth:`prepare` has something to measure.
        num_tallies: How many numbers :meth:`tally` keeps of a group.
    """

    @property
    def needs_sample(self) -> bool:
        return any(part.needs_sample for part in self._inside())

    @property
    def num_tallies(self) -> int:
        return sum(part.num_tallies for part in self._inside())

    def set_sources(self, num_sources: int) -> None:
        """Told once, before anything else, when a run has several training sets."""
        for part in self._inside():
            part.set_sources(num_sources)

    def set_progress(self, progress: float) -> None:
        """Told before each optimizer step: the share of the steps that are done, from 0 to 1."""
        for part in self._inside():
            part.set_progress(progress)

    def prepare(self, targets: Targets) -> None:
        """Measure what must be known before training.

        Args:
            targets: Those of a sample of the training groups, on the CPU.
        """
        for part in self._inside():
            part.prepare(targets)

    def tally(self, scores: Tensor, targets: Targets) -> Tensor:
        """What is to be learned from each group, ``(num_tallies, batch_size)`` float32.

        Args:
            scores: Student scores without gradient, ``(batch_size, group_size)``.
            targets: What they are compared with.
        """
        tallies = [part.tally(scores, targets) for part in self._inside() if part.num_tallies]
        return torch.cat(tallies) if tallies else scores.new_zeros(0, len(scores))

    def learn(self, sums: Tensor) -> None:
        """Learn from an optimizer step.

        Args:
            sums: The tallies of its groups, summed over them, their weights and all processes, ``(num_tallies,)``.
        """
        inside = self._inside()
        for part, own in zip(inside, sums.split([part.num_tallies for part in inside]), strict=True):
            if part.num_tallies:
                part.learn(own)

    def readings(self) -> dict[str, float]:
        """What the log says of the parts that change; the same in all processes."""
        return {name: value for part in self._inside() for name, value in part.readings().items()}

    def _inside(self) -> list[Adaptive]:
        """The parts right inside, also those in lists."""
        lists = [child if isinstance(child, nn.ModuleList) else [child] for child in self.children()]
        return [part for parts in lists for part in parts if isinstance(part, Adaptive)]
