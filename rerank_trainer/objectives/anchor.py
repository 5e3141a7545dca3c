"""The anchor: a small pointwise term that gives absolute scores a meaning."""

from __future__ import annotations

from torch import Tensor

from rerank_trainer.losses import bce
from rerank_trainer.objectives.objective import Objective, Targets


class Anchor(Objective):
    r"""Binary cross-entropy of each passage with "its label is above 0"; its part in the log is ``anchor``.

    Losses that compare passages of one query (InfoNCE, KL, RankNet, ...) do not change when a constant is added to a
    group's scores, so nothing holds a score in its place: a threshold that fits one query fits no other, and none after
    more training. Beside such a loss, a small weight of this one (0.05 to 0.2) makes a score of 0 mean "as likely
    relevant as not, among such candidates", for all queries alike.

    Drawing each group's mean score to 0 would be cheaper and is worse: it gives the same mean to a query with many
    relevant passages and to one without any, so a threshold still could not tell them apart.

    Without labels, a small weight of ``mse`` on the teacher's logits anchors the scores where the teacher's are.

    Args:
        temperature: Divides the scores.

    >>> from rerank_trainer.losses import infonce
    >>> from rerank_trainer.objectives.objective import LabelObjective, WeightedObjective
    >>> WeightedObjective([(1.0, LabelObjective(infonce)), (0.1, Anchor())]).names
    ('infonce', 'anchor')
    """

    names = ("anchor",)
    part_weights = (1.0,)
    needs_labels = True

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def counts(self, targets: Targets) -> Tensor:
        return bce.counts(targets.labels, targets.mask)[None]

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        relevant = (targets.labels > 0).to(scores.dtype)
        values = bce(scores, relevant, mask=targets.mask, temperature=self.temperature, weights=targets.weights)
        return values[None]
