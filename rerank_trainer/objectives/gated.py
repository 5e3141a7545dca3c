"""Teacher-trust gating: each query follows its teacher as far as that is better than the student, else its labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rerank_trainer.losses import infonce, kl
from rerank_trainer.objectives.objective import LabelObjective, Objective, Targets, TeacherObjective, distinct_names
from rerank_trainer.objectives.utilities import UTILITIES, UtilityFn

TRUSTED = 0.5  # a query counts as trusting its teacher above this


class GatedObjective(Objective):
    r"""Distillation where the teacher is better than the student, contrastive learning where it is not.

    .. math:: L = \frac{1}{N_t} \sum_q g_q \ell^{teacher}_q + \frac{1}{N_y} \sum_q (1 - g_q) \ell^{labels}_q, \quad
              g_q = \operatorname{clip}(a_q / a^*, 0, 1)

    The advantage :math:`a_q` is what the labels say that the teacher's scores are better than the student's of this
    step, mixed with the mean of the query's source over the last steps, because one query is a noisy judge. A query
    whose labels say nothing (no positive) takes that mean; before anything is known, the teacher is trusted. While
    there is no teacher yet, labels are alone. The gate has no gradient. Gates multiply the values and leave the counts
    :math:`N_t, N_y` alone.

    That distillation pays when the teacher is the more performant model, and not otherwise, is the finding of Xu et al.
    (2025, https://arxiv.org/abs/2507.08336); this applies it query by query. It is our own form, not a published one.

    The log has ``teacher_trusted``, the share of queries whose gate was above one half, and ``teacher_advantage``, the
    mean over the last steps. The means by source are summed over all processes after each step and kept in checkpoints:
    every process has the same, and a resumed run goes on with them.

    What can go wrong: the labels are the judge. A student is judged by groups that it has not learned yet, as long as
    each comes once; from the second epoch on it knows their labels by heart and would look better than any teacher, so
    set ``measured_until`` to one epoch's share (the name "gated" does it). And a teacher that has seen these labels
    itself looks as good as they are, whatever it says of the other passages.

    Args:
        teacher: A loss of teacher scores; by default KL.
        labels: A loss of the labels; by default InfoNCE.
        utility: What is compared: "ndcg" (it sees the order alone), "log_probability" of the positives (in nats; it
            sees how sure scores are, so it takes a soft teacher for a bad one, and both temperatures matter), or
            ``utility_fn(scores, labels, mask) -> (batch_size,)``.
        full_trust_at: :math:`a^*`, the advantage from which the teacher is trusted fully, in the utility's unit; None
            takes 0.02 nDCG, or 0.5 nats.
        source_share: How much the mean of the source counts in the advantage of a query, from 0 (the query alone) to 1.
        decay: How much of that mean's past is left after a step with new groups, from 0 to below 1.
        measured_until: The share of the optimizer steps, above 0, after which the means stay as they are and decide
            alone.

    Raises:
        ValueError: If a value is out of its range, a utility of one's own comes without ``full_trust_at``, or the two
            losses have the same name.

    >>> scores, targets = torch.zeros(1, 2), Targets(
    ...     torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[9.0, 0.0]]))
    >>> GatedObjective().trust(scores, targets)  # the teacher is sure and right, the student knows nothing
    tensor([1.])
    """

    needs_labels = True
    needs_teacher = True
    part_weights = (1.0, 1.0)
    sums: Tensor
    counted: Tensor
    window: Tensor

    def __init__(
        self,
        teacher: TeacherObjective | None = None,
        labels: LabelObjective | None = None,
        *,
        utility: str | UtilityFn = "ndcg",
        full_trust_at: float | None = None,
        source_share: float = 0.5,
        decay: float = 0.9,
        measured_until: float = 1.0,
    ) -> None:
        super().__init__()
        self.teacher = teacher or TeacherObjective(kl)
        self.labels = labels or LabelObjective(infonce, name="label_infonce")
        if isinstance(utility, str):
            if utility not in UTILITIES:
                raise ValueError(f"utility={utility!r}: expected one of {[*UTILITIES]}, or a function")
            self.utility_fn, usual = UTILITIES[utility]
            self.full_trust_at = usual if full_trust_at is None else full_trust_at
        else:
            self.utility_fn, self.full_trust_at = utility, full_trust_at or 0.0
        if not self.full_trust_at > 0:
            raise ValueError(f"full_trust_at={full_trust_at}: expected a number above 0, in the unit of the utility")
        if not (0 <= source_share <= 1 and 0 <= decay < 1 and 0 < measured_until <= 1):
            raise ValueError(
                f"source_share={source_share}, decay={decay}, measured_until={measured_until}: expected a share from 0 "
                "to 1, a number from 0 to below 1, and a share of the optimizer steps above 0"
            )
        self.source_share, self.decay, self.measured_until = source_share, decay, measured_until
        self.names = distinct_names(self.teacher.names + self.labels.names)
        self.max_label = self.labels.max_label
        self.set_sources(1)
        self.set_progress(0.0)
        self.register_buffer("window", torch.zeros(2), persistent=False)  # trusting queries and all, since the last log

    def set_sources(self, num_sources: int) -> None:
        super().set_sources(num_sources)
        for name in ("sums", "counted"):  # of the advantages by source, fading
            self.register_buffer(name, torch.zeros(num_sources))

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        self.is_measuring = progress < self.measured_until

    @property
    def num_tallies(self) -> int:
        return 2 * len(self.sums) + 2 + super().num_tallies

    def counts(self, targets: Targets) -> Tensor:
        return torch.cat([self.teacher.counts(targets), self.labels.counts(targets)])

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        trust = self.trust(scores.detach(), targets)
        return torch.cat([trust * self.teacher(scores, targets), (1 - trust) * self.labels(scores, targets)])

    def trust(self, scores: Tensor, targets: Targets) -> Tensor:
        """How far each query follows its teacher, ``(batch_size,)`` from 0 to 1.

        Args:
            scores: Student scores without gradient, ``(batch_size, group_size)``.
            targets: What they are compared with.
        """
        if targets.teacher_scores is None:
            return scores.new_zeros(len(scores))
        own, is_judged = self._advantages(scores, targets)
        sums, counted = self._of_source(self.sums, targets), self._of_source(self.counted, targets)
        is_known = counted > 0
        mean = sums / counted.masked_fill(~is_known, 1.0)
        # a query judges for itself where its source is not known yet, and its source where it cannot
        share = (is_known * (self.source_share if self.is_measuring else 1.0)).masked_fill(~is_judged, 1.0)
        trust = (((1 - share) * own + share * mean) / self.full_trust_at).clamp(0.0, 1.0)
        return trust.masked_fill(~is_judged & ~is_known, 1.0)

    def tally(self, scores: Tensor, targets: Targets) -> Tensor:
        own, is_judged = self._advantages(scores, targets)
        source = torch.zeros_like(own, dtype=torch.long) if targets.source is None else targets.source
        of_source = (source == torch.arange(len(self.sums), device=own.device)[:, None]) & is_judged
        is_present = targets.mask.any(dim=-1)
        is_trusting = is_present & (self.trust(scores, targets) > TRUSTED)
        mine = [of_source * own, of_source.float(), is_trusting.float()[None], is_present.float()[None]]
        return torch.cat([*mine, super().tally(scores, targets)])

    def learn(self, sums: Tensor) -> None:
        num_sources = len(self.sums)
        new_sums, new_counted, window, inside = sums.split([num_sources, num_sources, 2, super().num_tallies])
        if self.is_measuring:
            # a source that a step has no groups of keeps its mean
            left = torch.where(new_counted > 0, self.decay, 1.0)
            self.sums.mul_(left).add_(new_sums)
            self.counted.mul_(left).add_(new_counted)
        self.window.add_(window)
        super().learn(inside)

    def readings(self) -> dict[str, float]:
        """The figures of the gate; those of the queries are since the last call."""
        (num_trusting, num_queries), sums, counted = self.window.tolist(), float(self.sums.sum()), self.counted.sum()
        self.window.zero_()
        figures: dict[str, Any] = {}
        if num_queries:
            figures["teacher_trusted"] = num_trusting / num_queries
        if counted > 0:
            figures["teacher_advantage"] = sums / float(counted)
        return figures | super().readings()

    def _advantages(self, scores: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """What the teacher is better by, ``(batch_size,)``, and for which queries the labels can tell."""
        is_judged = infonce.counts(targets.labels, targets.mask)
        if targets.teacher_scores is None:
            return scores.new_zeros(len(scores)), torch.zeros_like(is_judged)
        of_teacher = self.utility_fn(self.teacher.scaled(targets).float(), targets.labels, targets.mask)
        of_student = self.utility_fn(scores.float() / self.teacher.temperature, targets.labels, targets.mask)
        return (of_teacher - of_student).masked_fill(~is_judged, 0.0), is_judged

    def _of_source(self, by_source: Tensor, targets: Targets) -> Tensor:
        """The value of each group's source, ``(batch_size,)``; of all together for groups of none, as in evaluation."""
        total = by_source.sum()
        if targets.source is None:
            return total.expand(len(targets.mask))
        return torch.where(targets.source < 0, total, by_source[targets.source.clamp(min=0)])
