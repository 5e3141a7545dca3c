"""Mixed targets: labels and teacher in one distribution over a group's passages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rerank_trainer.losses import infonce, kl
from rerank_trainer.losses.reduction import masked_log_softmax
from rerank_trainer.objectives.objective import Targets, TeacherObjective
from rerank_trainer.objectives.schedules import Constant, Schedule, as_schedule
from rerank_trainer.objectives.temperature import Temperature

if TYPE_CHECKING:
    from rerank_trainer.objectives.consistency import ScoreMap


class MixedObjective(TeacherObjective):
    r"""KL divergence of the student from one target made of labels and teacher; its part in the log is ``mixed``.

    .. math:: p_i = (1 - \alpha) \operatorname{softmax}(t / \tau_t)_i + \alpha \frac{y_i}{\sum_j y_j}, \quad
              \ell = \sum_i p_i (\log p_i - \log \operatorname{softmax}(s / \tau)_i)

    Adapted from AKD (Maroto et al., 2022, https://arxiv.org/abs/2203.07159), which mixes original labels with a
    teacher's outputs, there in adversarial training. In a group with a positive the gradient is that of
    :math:`(1 - \alpha)` KL and :math:`\alpha` InfoNCE added up. What differs from a
    :class:`~rerank_trainer.objectives.objective.WeightedObjective` of the two: a group without a positive follows its
    teacher alone with its full weight instead of :math:`1 - \alpha`; there is one count, so groups without a positive
    do not raise the weight of the labels of the others; and the loss is 0 where the target is met. While there is no
    teacher yet, groups with a positive follow their labels alone, and the others count nothing.

    Args:
        label_weight: :math:`\alpha`, from 0 (teacher only) to 1 (labels only, where there are positives), or a schedule
            of it; a changing one is logged as ``label_weight``.
        temperature: Divides the student's scores.
        teacher_temperature: As in :class:`~rerank_trainer.objectives.objective.TeacherObjective`.
        consistency: As there.

    Raises:
        ValueError: If ``label_weight`` is not from 0 to 1.

    >>> targets = Targets(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
    >>> MixedObjective(label_weight=0.5).target(targets)  # half of (1/2, 1/2) and half of (1, 0)
    tensor([[0.7500, 0.2500]])
    """

    def __init__(
        self,
        *,
        label_weight: float | Schedule,
        temperature: float = 1.0,
        teacher_temperature: float | str | Temperature = 1.0,
        consistency: ScoreMap | None = None,
    ) -> None:
        super().__init__(
            kl,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            consistency=consistency,
            name="mixed",
        )
        self.needs_labels = True
        self.schedule = as_schedule(label_weight)
        for progress in (0.0, 1.0):
            if not 0 <= self.schedule.at(progress) <= 1:
                raise ValueError(
                    f"label_weight={label_weight}: expected a weight from 0 (teacher only) to 1 (labels only)"
                )
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        self.label_weight = self.schedule.at(progress)

    def counts(self, targets: Targets) -> Tensor:
        if targets.teacher_scores is None:
            return infonce.counts(targets.labels, targets.mask)[None]
        return super().counts(targets)

    def target(self, targets: Targets) -> Tensor:
        """The distribution, ``(batch_size, group_size)``: a passage's probability, of one copy where it has several."""
        weights = targets.mask.float() if targets.weights is None else targets.weights.masked_fill(~targets.mask, 0.0)
        has_positive = infonce.counts(targets.labels, targets.mask)[:, None]
        labels = targets.labels.float().masked_fill(weights == 0, 0.0)
        total = (weights * labels).sum(dim=-1, keepdim=True)
        of_labels = has_positive * labels / total.masked_fill(total == 0, 1.0)
        if targets.teacher_scores is None:
            return of_labels
        teacher = masked_log_softmax(self.scaled(targets).float(), weights).exp().masked_fill(weights == 0, 0.0)
        share = self.label_weight * has_positive
        return (1 - share) * teacher + share * of_labels

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        target = self.target(targets)
        mask = targets.mask & self.counts(targets)[0, :, None]  # a group that does not count has no target
        # the softmax of logarithms gives the probabilities back; log 0 is a number low enough to stand for it
        log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log()
        return self.loss_fn(scores, log_target, mask=mask, weights=targets.weights)[None]

    def readings(self) -> dict[str, float]:
        changes = {} if isinstance(self.schedule, Constant) else {"label_weight": self.label_weight}
        return changes | super().readings()
