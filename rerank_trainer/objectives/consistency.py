"""Score consistency: a teacher's scores are brought to a scale that fits the student, before they are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from rerank_trainer.losses.reduction import weighted_mean
from rerank_trainer.objectives.adaptive import Adaptive

if TYPE_CHECKING:
    from rerank_trainer.objectives.objective import Targets

NUM_BINS = 64  # in which an isotonic map collects scores, of about equal numbers of teacher scores


class ScoreMap(Adaptive):
    """Maps a teacher's scores: ``score_map(targets)`` returns them, ``(batch_size, group_size)``, 0 at masked passages.

    Attributes:
        follows_student: Whether the map changes with the student's scores.
    """

    follows_student = False

    def forward(self, targets: Targets) -> Tensor:
        """The teacher's scores, mapped."""
        raise NotImplementedError


class ZScore(ScoreMap):
    """Each group's teacher scores with a mean of 0 and a standard deviation of 1; 0 where all are equal.

    Every group asks for the same spread then, also one whose passages the teacher holds for about equal.

    >>> from rerank_trainer.objectives.objective import Targets
    >>> ZScore()(Targets(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[10.0, 30.0]])))
    tensor([[-1.,  1.]])
    """

    def forward(self, targets: Targets) -> Tensor:
        scores, weights = _scores_and_weights(targets)
        deviations = (scores - weighted_mean(scores, weights)[:, None]).masked_fill(weights == 0, 0.0)
        std = weighted_mean(deviations.square(), weights).sqrt()[:, None]
        return deviations / std.masked_fill(std == 0, 1.0)


class AffineMap(ScoreMap):
    r"""The teacher's scores times a slope plus a constant, so that they have the student's spread and mean.

    .. math:: \hat t = a t + b, \quad a = \max(\sigma_s, \sigma_{min}) / \sigma_t, \quad b = \bar s - a \bar t

    with standard deviations within the groups (what losses of a group see) and means over all pairs since the last
    refresh. Adapted from KCD (Han et al., 2021, https://arxiv.org/abs/2103.16844), which makes a teacher's features
    consistent with its student. Not by least squares: that gives a slope smaller than the ratio of the spreads wherever
    the two disagree, and a student that follows it shrinks from refresh to refresh. For the same reason there is a
    least spread; an untrained student, whose scores are all alike, would otherwise be its own target.

    Until the first refresh the scores have a mean of 0 and the least spread, as measured before the training. The log
    has ``teacher_slope``; checkpoints keep the map and what has been collected for the next one.

    Args:
        refresh: Optimizer steps between two fits, 1 or more.
        least_spread: :math:`\sigma_{min}`, above 0, in the student's unit (logits).

    Raises:
        ValueError: If a value is out of its range.
    """

    follows_student = True
    slope: Tensor
    constant: Tensor
    moments: Tensor
    num_steps: Tensor

    def __init__(self, *, refresh: int = 100, least_spread: float = 1.0) -> None:
        super().__init__()
        if refresh < 1 or not least_spread > 0:
            raise ValueError(
                f"refresh={refresh}, least_spread={least_spread}: expected 1 optimizer step or more, and a standard "
                "deviation above 0"
            )
        self.refresh, self.least_spread = refresh, least_spread
        self.register_buffer("slope", torch.tensor(1.0))
        self.register_buffer("constant", torch.tensor(0.0))
        # of the pairs since the last fit: their number, sums of student and teacher, squares within the groups of each
        self.register_buffer("moments", torch.zeros(5))
        self.register_buffer("num_steps", torch.tensor(0))

    @property
    def needs_sample(self) -> bool:
        return True

    @property
    def num_tallies(self) -> int:
        return 5

    def prepare(self, targets: Targets) -> None:
        scores, _ = _scores_and_weights(targets)
        self._fit(_moments(torch.zeros_like(scores), targets).sum(dim=1))

    def forward(self, targets: Targets) -> Tensor:
        scores, weights = _scores_and_weights(targets)
        return (self.slope * scores + self.constant).masked_fill(weights == 0, 0.0)

    def tally(self, scores: Tensor, targets: Targets) -> Tensor:
        return _moments(scores, targets)

    def learn(self, sums: Tensor) -> None:
        self.moments.add_(sums)
        self.num_steps.add_(1)
        if int(self.num_steps) % self.refresh == 0:
            self._fit(self.moments)
            self.moments.zero_()

    def readings(self) -> dict[str, float]:
        return {"teacher_slope": float(self.slope)}

    def _fit(self, moments: Tensor) -> None:
        number, of_student, of_teacher, student_squares, teacher_squares = moments.tolist()
        if number == 0 or teacher_squares == 0:  # nothing to fit
            return
        spread = max((student_squares / number) ** 0.5, self.least_spread)
        slope = spread / (teacher_squares / number) ** 0.5
        self.slope.fill_(slope)
        self.constant.fill_((of_student - slope * of_teacher) / number)


class IsotonicMap(ScoreMap):
    """A monotone curve from the teacher's scores to the student's, stretched to the student's spread within the groups.

    The curve is scikit-learn's isotonic regression (https://scikit-learn.org/stable/modules/isotonic.html) of the
    student's mean score on the teacher's score, over 64 bins of about equal numbers of teacher scores; between them it
    is a straight line, beyond them constant. Where the student does not order passages as the teacher does, the curve
    is flat: there the teacher's distinctions are dropped. Regression shrinks what it predicts, so the curve is
    stretched to the spread that :class:`AffineMap` would give, with its mean; all else is as there.

    Args:
        refresh: Optimizer steps between two fits, 1 or more.
        least_spread: The least standard deviation within the groups, above 0, in the student's unit (logits).

    Raises:
        ValueError: If a value is out of its range.
    """

    follows_student = True
    knots: Tensor
    heights: Tensor
    collected: Tensor
    sample: Tensor
    sample_weights: Tensor

    def __init__(self, *, refresh: int = 100, least_spread: float = 1.0) -> None:
        super().__init__()
        self.affine = AffineMap(refresh=refresh, least_spread=least_spread)
        self.register_buffer("knots", torch.linspace(-1.0, 1.0, NUM_BINS))  # teacher scores, rising
        self.register_buffer("heights", torch.linspace(-1.0, 1.0, NUM_BINS))  # what they are mapped to
        self.register_buffer("collected", torch.zeros(2, NUM_BINS))  # student scores and pairs, by the nearest knot

    @property
    def num_tallies(self) -> int:
        return 2 * NUM_BINS + super().num_tallies

    def prepare(self, targets: Targets) -> None:
        super().prepare(targets)
        scores, weights = _scores_and_weights(targets)
        if not (weights > 0).any():
            return
        knots = scores[weights > 0].double().quantile(torch.linspace(0.0, 1.0, NUM_BINS, dtype=torch.float64))
        self.knots.copy_(knots)
        self.heights.copy_(self.affine.slope * self.knots + self.affine.constant)
        # kept out of checkpoints: measured again when a run is resumed
        self.register_buffer("sample", scores, persistent=False)
        self.register_buffer("sample_weights", weights, persistent=False)

    def forward(self, targets: Targets) -> Tensor:
        scores, weights = _scores_and_weights(targets)
        return self._curve(scores).masked_fill(weights == 0, 0.0)

    def tally(self, scores: Tensor, targets: Targets) -> Tensor:
        teacher_scores, weights = _scores_and_weights(targets)
        middles = (self.knots[1:] + self.knots[:-1]) / 2
        nearest = torch.searchsorted(middles, teacher_scores.contiguous())  # (B, K)
        of_knot = torch.zeros(2, len(scores), NUM_BINS, device=scores.device)
        for own, values in zip(of_knot, (weights * scores.masked_fill(weights == 0, 0.0), weights), strict=True):
            own.scatter_add_(1, nearest, values)
        return torch.cat([of_knot[0].T, of_knot[1].T, super().tally(scores, targets)])

    def learn(self, sums: Tensor) -> None:
        own, inside = sums.split([2 * NUM_BINS, super().num_tallies])
        self.collected.add_(own.view(2, NUM_BINS))
        super().learn(inside)
        if int(self.affine.num_steps) % self.affine.refresh == 0:
            self._fit()
            self.collected.zero_()

    def _fit(self) -> None:
        of_student, numbers = self.collected.double().cpu().numpy()
        seen = numbers > 0
        if not seen.any():
            return
        knots = self.knots.double().cpu().numpy()
        curve = IsotonicRegression(out_of_bounds="clip")
        curve.fit(knots[seen], of_student[seen] / numbers[seen], sample_weight=numbers[seen])
        self.heights.copy_(torch.from_numpy(curve.predict(knots)))
        # stretch: the sample shall have the spread and the mean that the affine map gives it
        mapped, wanted = self._curve(self.sample), self.affine.slope * self.sample + self.affine.constant
        spread, wanted_spread = (_spread(side, self.sample_weights) for side in (mapped, wanted))
        if not spread > 1e-6 * wanted_spread:  # a student that cannot tell passages apart has no curve: the affine line
            self.heights.copy_(self.affine.slope * self.knots + self.affine.constant)
            return
        total = self.sample_weights.sum()
        mean, wanted_mean = ((self.sample_weights * side).sum() / total for side in (mapped, wanted))
        self.heights.copy_(wanted_spread / spread * (self.heights - mean) + wanted_mean)

    def _curve(self, scores: Tensor) -> Tensor:
        upper = torch.searchsorted(self.knots, scores.contiguous()).clamp(1, NUM_BINS - 1)
        low, high = self.knots[upper - 1], self.knots[upper]
        gap = high - low
        share = ((scores - low) / gap.masked_fill(gap == 0, 1.0)).clamp(0.0, 1.0)
        return torch.lerp(self.heights[upper - 1], self.heights[upper], share)


def _scores_and_weights(targets: Targets) -> tuple[Tensor, Tensor]:
    """The teacher's scores and how often each passage counts, both 0 where a passage is absent."""
    targets = targets.of_teacher()
    assert targets.teacher_scores is not None
    mask = targets.mask
    weights = mask.float() if targets.weights is None else targets.weights.float().masked_fill(~mask, 0.0)
    return targets.teacher_scores.float().masked_fill(weights == 0, 0.0), weights


def _moments(scores: Tensor, targets: Targets) -> Tensor:
    """Number of pairs, sums of student and teacher, squares within the group of each, ``(5, batch_size)``."""
    teacher_scores, weights = _scores_and_weights(targets)
    sides = [scores.float().masked_fill(weights == 0, 0.0), teacher_scores]
    number = weights.sum(dim=-1)
    deviations = [side - weighted_mean(side, weights)[:, None] for side in sides]
    sums = [(weights * side).sum(dim=-1) for side in sides]
    return torch.stack([number, *sums, *((weights * side.square()).sum(dim=-1) for side in deviations)])


def _spread(scores: Tensor, weights: Tensor) -> Tensor:
    """The standard deviation within the groups."""
    deviations = scores - weighted_mean(scores, weights)[:, None]
    return ((weights * deviations.square()).sum() / weights.sum()).sqrt()
