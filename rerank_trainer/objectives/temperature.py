"""The temperature of a teacher: a number, or one at which its targets are as wide as asked."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rerank_trainer.losses.reduction import has_unequal_labels, masked_log_softmax
from rerank_trainer.objectives.adaptive import Adaptive

if TYPE_CHECKING:
    from rerank_trainer.objectives.objective import Targets

logger = logging.getLogger(__name__)

AUTO = "auto"
NUM_HALVINGS = 60  # of an interval of 18 powers of ten: far below what float64 tells apart


class Temperature(Adaptive):
    """Divides a teacher's scores.

    Args:
        value: A number above 0, or "auto": the one at which the mean entropy of the teacher's targets is a given share
            of the highest possible, measured once, on training groups before the training. It stands in the log as
            ``teacher_temperature`` and in every checkpoint, so that a resumed run keeps it.
        entropy_share: For "auto": the share, above 0 and below 1. One half means 4 effective passages of 16.

    Raises:
        ValueError: If a value is out of its range.

    >>> Temperature(2.0)(torch.tensor([[4.0, 0.0]]))
    tensor([[2., 0.]])
    """

    measured: Tensor

    def __init__(self, value: float | str, *, entropy_share: float = 0.5) -> None:
        super().__init__()
        value = checked_temperature(value)
        self.is_auto = isinstance(value, str)
        if not 0 < entropy_share < 1:
            raise ValueError(f"entropy_share={entropy_share}: expected a share above 0 and below 1, such as 0.5")
        self.entropy_share = entropy_share
        self.fixed = 1.0 if isinstance(value, str) else value
        self._is_known = not self.is_auto
        if self.is_auto:
            self.register_buffer("measured", torch.tensor(0.0))  # 0 = not yet

    @property
    def needs_sample(self) -> bool:
        return self.is_auto

    def prepare(self, targets: Targets) -> None:
        if not self.is_auto or targets.teacher_scores is None:
            return
        value = entropy_temperature(
            targets.teacher_scores, targets.mask, weights=targets.weights, entropy_share=self.entropy_share
        )
        self.measured.fill_(value)
        logger.info(
            "teacher_temperature %.4g: mean entropy of the teacher's targets on %d training groups is %.2f of log K",
            value,
            int(targets.mask.any(dim=-1).sum()),
            self.entropy_share,
        )

    def forward(self, teacher_scores: Tensor) -> Tensor:
        """The teacher's scores, divided.

        Raises:
            ValueError: If the temperature has not been measured.
        """
        if not self._is_known:
            self._is_known = bool(self.measured > 0)  # read once: reading a value stalls an accelerator
            if not self._is_known:
                raise ValueError(
                    'teacher_temperature="auto" is measured on the teacher scores of training groups before the '
                    "training, and there were none. Give a number, or train_dataset with teacher scores."
                )
        return teacher_scores / (self.measured if self.is_auto else self.fixed)

    def readings(self) -> dict[str, float]:
        return {"teacher_temperature": float(self.measured)} if self.is_auto else {}


def entropy_temperature(
    teacher_scores: Tensor, mask: Tensor, *, entropy_share: float = 0.5, weights: Tensor | None = None
) -> float:
    r"""The temperature at which the mean entropy of the teacher's targets is this share of the highest possible.

    .. math:: \frac{1}{N} \sum_g \frac{H(\operatorname{softmax}(t_g / \tau))}{\log K_g} = \text{entropy\_share}

    over the N groups of K_g >= 2 passages whose scores are not all equal (no temperature changes those). The entropy
    rises with the temperature, so the interval is halved until nothing is left of it. A constant temperature fits one
    teacher: scores over [-12, 22] at 16 passages make 2.1 effective passages at 1 and 9.9 at 8, probabilities at 1 are
    almost uniform.

    Args:
        teacher_scores: Any scale, ``(num_groups, group_size)``.
        mask: True = a passage, same shape.
        entropy_share: Above 0 and below 1.
        weights: How often each passage counts, same shape; None counts each once.

    Returns:
        The temperature to four digits.

    Raises:
        ValueError: If all scores of each group are equal, or ties at the top keep the entropy above what is asked.

    >>> scores, mask = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> entropy_temperature(scores, mask)  # 1 / log(p / (1 - p)) at p = 0.89, where two passages have half a bit
    0.4784
    """
    counted = mask.double() if weights is None else weights.double().masked_fill(~mask, 0.0)
    scores = teacher_scores.double().masked_fill(counted == 0, 0.0)
    num_passages = counted.sum(dim=-1)
    usable = has_unequal_labels(scores, counted > 0) & (num_passages >= 2)
    if not usable.any():
        raise ValueError(
            f'teacher_temperature="auto": of {len(scores)} training groups none has two passages with unlike teacher '
            "scores, so there is nothing to measure. Give a number."
        )
    scores, counted, num_passages = scores[usable], counted[usable], num_passages[usable]

    def share(temperature: float) -> float:
        log_probs = masked_log_softmax(scores / temperature, counted)
        entropies = -(counted * log_probs.exp() * log_probs.masked_fill(counted == 0, 0.0)).sum(dim=-1)
        return float((entropies / num_passages.log()).mean())

    spread = float((scores.amax(dim=-1) - scores.amin(dim=-1)).max())
    low, high = math.log(spread) - math.log(1e9), math.log(spread) + math.log(1e9)
    if (least := share(math.exp(low))) >= entropy_share:
        raise ValueError(
            f'teacher_temperature="auto": the entropy of the targets is {least:.2f} of log K at any temperature, '
            f"because the highest teacher scores are tied, and {entropy_share} was asked for. Ask for more "
            '(Temperature("auto", entropy_share=...)), or give a number.'
        )
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(math.exp(middle)) < entropy_share else (low, middle)
    return float(f"{math.exp(low):.4g}")


def checked_temperature(value: float | str | None) -> float | str:
    """A temperature above 0, or "auto"; digits, as a command line gives them, become a number.

    Raises:
        ValueError: If it is something else.
    """
    if value == AUTO:
        return AUTO
    try:
        number = math.nan if value is None else float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f'teacher_temperature={value!r}: it divides scores, so give a number above 0, or "auto"')
    return number
