"""The weights of an ensemble, fitted on labelled groups that nobody trains on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.ensemble import NormalizeFn, Scores, normalizations, normalized, open_teachers
from rerank_trainer.teachers.store import stored_scores
from rerank_trainer.teachers.teacher import Teacher

logger = logging.getLogger(__name__)

RIDGE = 1e-3  # of the squared coefficients: keeps them finite where a teacher makes no mistake
MAX_STEPS, TOLERANCE = 10_000, 1e-9


def fit_weights(
    teachers: Sequence[str | Path | Reranker | Teacher],
    groups: datasets.Dataset,
    *,
    normalize: str | NormalizeFn | None | Sequence[str | NormalizeFn | None] = "zscore",
    cache_dir: str | Path | None = None,
    show_progress_bar: bool | None = None,
) -> tuple[float, ...]:
    r"""The weights with which an ensemble of these teachers makes the labels of these groups most likely.

    One coefficient a teacher, 0 or more, minimises the mean cross-entropy between a group's labels, as shares, and the
    softmax of the weighted sum of the teachers' normalised scores:

    .. math:: \min_{c \ge 0} \frac{1}{N} \sum_g -\sum_i \frac{y_i}{\sum_j y_j}
              \log \operatorname{softmax} \Big( \sum_m c_m z_m \Big)_i + \frac{\lambda}{2} \|c\|^2, \quad
              w = c / \textstyle\sum_m c_m

    where each z is divided by its mean standard deviation within the groups, for the penalty to know no scale. This is
    McFadden's conditional logit (https://en.wikipedia.org/wiki/Discrete_choice) of the teachers' scores. It is convex,
    and strictly so by the small penalty, so there is one answer, whatever the start; it is found by an accelerated
    projected gradient method (https://en.wikipedia.org/wiki/Proximal_gradient_method) in float64, without chance. The
    sum of the coefficients is the sharpness of the ensemble and is left to the ``teacher_temperature``. A teacher that
    adds nothing to the others gets the weight 0, and teachers that say the same share theirs.

    Some hundred groups are enough for so few numbers. They must be others than those the teachers, or the student, are
    trained on.

    Args:
        teachers: As in :class:`~rerank_trainer.teachers.ensemble.EnsembleTeacher`.
        groups: Labelled groups; those without a label above 0, or with equal labels, say nothing and are left out.
        normalize: As there, and the same as there.
        cache_dir: See :func:`~rerank_trainer.teachers.store.add_teacher_scores`.
        show_progress_bar: See there.

    Returns:
        A weight a teacher, of 0 or more, with the sum 1.

    Raises:
        ValueError: If no group can be learned from, or no teacher ranks by relevance.

    >>> from rerank_trainer.teachers.column import ColumnTeacher
    >>> rows = {"query": ["a", "b"], "passages": [["x", "y"], ["x", "y"]], "labels": [[1, 0], [0, 1]]}
    >>> groups = datasets.Dataset.from_dict({**rows, "good": [[3, 1], [1, 2]], "bad": [[1, 5], [9, 2]]})
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit_weights([ColumnTeacher("good"), ColumnTeacher("bad")], groups, cache_dir=folder)
    (1.0, 0.0)
    """
    normalize_fns = normalizations(normalize, len(teachers))
    if "labels" not in groups.column_names:
        raise ValueError(f"weights are fitted on labels, and the groups have only the columns {groups.column_names}")
    members = open_teachers(teachers)
    options: dict[str, Any] = {"cache_dir": cache_dir, "show_progress_bar": show_progress_bar}
    of_members = [stored_scores(groups, member, **options) for member in members]
    pairs = zip(normalized(of_members, normalize_fns), map(np.asarray, groups["labels"]), strict=True)
    usable = [(features, labels / labels.sum()) for features, labels in pairs if labels.any() and np.ptp(labels) > 0]
    if not usable:
        raise ValueError(f"none of {len(groups)} groups has a label above 0 beside a lower one: nothing to fit on")
    coefficients = _fitted(usable)
    if not coefficients.any():
        raise ValueError(
            f"none of the {len(members)} teachers ranks the positives of {len(usable)} groups above the others, so no "
            "weight makes them likelier. Look at the sign of the scores, and at the labels."
        )
    weights = tuple((coefficients / coefficients.sum()).tolist())
    logger.info(
        "weights of the ensemble, fitted on %d of %d groups: %s",
        len(usable),
        len(groups),
        [f"{w:.3f}" for w in weights],
    )
    return weights


def _fitted(groups: Sequence[tuple[Scores, Scores]]) -> Scores:
    """The coefficients, from the features ``(num_members, num_passages)`` and the labels' shares of each group."""
    size = max(len(shares) for _, shares in groups)
    features = np.zeros((len(groups), len(groups[0][0]), size))
    shares = np.zeros((len(groups), size))
    real = np.arange(size) < np.array([[len(labels)] for _, labels in groups])
    for index, (of_group, labels) in enumerate(groups):
        features[index, :, : len(labels)], shares[index, : len(labels)] = of_group, labels
    # in units of each member's own spread, so that the penalty knows no scale
    deviations = np.stack([of_group.std(axis=1) for of_group, _ in groups])
    units = deviations.mean(axis=0)
    units[units == 0] = 1.0
    features /= units[:, None]
    wanted = np.einsum("gmk,gk->gm", features, shares)

    def gradient(coefficients: Scores) -> Scores:
        logits = np.where(real, np.einsum("gmk,m->gk", features, coefficients), -np.inf)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        expected = np.einsum("gmk,gk->gm", features, probabilities)
        return (expected - wanted).mean(axis=0) + RIDGE * coefficients

    # The curvature is a variance, which is at most a quarter of the squared range.
    ranges = np.stack([np.ptp(of_group, axis=1) for of_group, _ in groups]) / units
    step = 1.0 / (np.square(ranges).sum(axis=1).mean() / 4 + RIDGE)
    found = ahead = np.zeros(features.shape[1])
    momentum = 1.0
    for _ in range(MAX_STEPS):
        slope = gradient(ahead)
        new = np.maximum(ahead - step * slope, 0.0)
        if np.abs(new - found).max() < TOLERANCE and np.abs(new - ahead).max() < TOLERANCE:
            return new / units
        if slope @ (new - found) > 0:  # it has gone too far: begin anew from here
            momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        found, ahead, momentum = new, new + (momentum - 1) / grown * (new - found), grown
    logger.warning("the weights of the ensemble still change by more than %g after %d steps", TOLERANCE, MAX_STEPS)
    return found / units
