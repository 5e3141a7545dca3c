"""The check of teacher scores before training: are they whole, and is the teacher better than what is there?

Everything is measured on scores that are there: the teacher is not asked again.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
from sklearn.metrics import ndcg_score

SCALES = ("logit", "probability", "rank")
NUM_GROUPS = 256  # labelled groups that are looked at
NUM_STUDENT_GROUPS, NUM_STUDENT_PAIRS = 64, 1024  # of them, the most that the untrained student scores
NDCG_AT = 10
SAME_PLACE_SHARE = 0.9  # of the groups with their positives first (or last): then their order says nothing

# What must come together before training is refused. z counts standard deviations of scores in random order.
REFUSED_Z = 4.0  # by chance in 1 of 30,000 data sets
REVERSED_AGREEMENT = -0.4  # the teacher puts the less relevant passage first in 70 % of the pairs or more
SHIFTED_GAIN = 0.2  # by so much the neighbour's labels fit better
SHIFTED_GAIN_Z = 3.0
SIGMOID_ENDS, SIGMOID_SCORES = (0.1, 0.9), 64  # "logits" that stay in [0, 1] and reach both ends, and so many of them

FLAT_TARGET, SHARP_TARGET = 0.9, 0.6  # width of the softmax of a group's scores, as a share of its passages
_TEMPERATURES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
_CHUNK = 1000  # rows whose labels are read at once


@dataclass(frozen=True)
class TeacherReport:
    """What is known of a teacher's scores before training.

    Attributes:
        num_groups: Labelled groups of the sample, those that the figures are means over.
        agreement: How far the teacher orders passages as their labels do, from -1 to 1, 0 is chance (see
            :func:`agreement`); None without labelled groups.
        teacher_ndcg: The teacher's nDCG@10; passages with equal scores count with the mean over their orders.
        chance_ndcg: The nDCG@10 of passages in random order.
        first_stage_ndcg: That of the passages as they stand; None where their order says nothing, because positives
            stand first (or last) in nearly all groups.
        student_ndcg: That of the untrained student, on the first ``num_student_groups``; None if it was not asked.
        teacher_ndcg_beside_student: The teacher's on the same groups.
        num_student_groups: Groups that the student has scored.
        target_width: Width of the softmax of the teacher's scores (exp of its entropy) as a share of the passages, 1 is
            uniform; None where the loss takes no softmax.
        warnings: What is dubious, in sentences.
    """

    num_groups: int
    agreement: float | None = None
    teacher_ndcg: float | None = None
    chance_ndcg: float | None = None
    first_stage_ndcg: float | None = None
    student_ndcg: float | None = None
    teacher_ndcg_beside_student: float | None = None
    num_student_groups: int = 0
    target_width: float | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.num_groups:
            return "no labelled groups to compare the teacher on"
        figures = {"the teacher": self.teacher_ndcg, "the passages as they stand": self.first_stage_ndcg}
        text = f"nDCG@{NDCG_AT} on {self.num_groups} labelled training groups: " + ", ".join(
            f"{name} {'not available' if value is None else f'{value:.3f}'}"
            for name, value in {**figures, "random order": self.chance_ndcg}.items()
        )
        if self.student_ndcg is not None:
            text += (
                f"; on {self.num_student_groups} of them the untrained student {self.student_ndcg:.3f}, the teacher "
                f"{self.teacher_ndcg_beside_student:.3f}"
            )
        return text


def check_teacher(
    groups: datasets.Dataset,
    *,
    scale: str | None = None,
    temperature: float | None = None,
    predict: Callable[[list[tuple[str, str]]], Any] | None = None,
    seed: int = 0,
) -> TeacherReport:
    """What the teacher's scores are worth on the labelled groups among these; the rules are in ``docs/watching.md``.

    Args:
        groups: Groups with ``teacher_scores``; what needs ``labels`` is left out without them.
        scale: What the scores are declared to be: "logit", "probability" or "rank"; None = not declared.
        temperature: What divides them before a softmax; None = the loss takes no softmax of them.
        predict: The untrained student's scores of (query, passage) pairs, ``(num_pairs,)``; None leaves it out.
        seed: Of the choice of groups.

    Raises:
        ValueError: If the scores are reversed in sign, belong to the row before or after, or are on another scale than
            declared; or if ``scale`` is not known.

    >>> rows = {"query": ["1 + 1", "2 + 2"], "passages": [["3", "2", "5"], ["4", "3", "2"]]}
    >>> rows |= {"labels": [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], "teacher_scores": [[-1.0, 4.0, -3.0], [2.0, 3.0, 0.0]]}
    >>> report = check_teacher(datasets.Dataset.from_dict(rows))
    >>> print(report)
    nDCG@10 on 2 labelled training groups: the teacher 0.815, the passages as they stand 0.815, random order 0.710
    """
    if scale is not None and scale not in SCALES:
        raise ValueError(f"the teacher's scale is {scale!r}; expected one of {SCALES}")
    order = list(range(len(groups)))
    random.Random(f"teacher-check-{seed}").shuffle(order)
    sample = _labelled(groups, order)
    rows = _with_neighbours(groups, sample or order[:NUM_GROUPS])
    findings = (_off_scale(groups, scale), _reversed(rows, sample), _shifted(rows, sample or order[:NUM_GROUPS]))
    if refusals := [found for found in findings if found is not None]:
        raise ValueError(
            f"the teacher's scores cannot be right: {' Also: '.join(refusals)} To train on them all the same, set "
            "check_teacher=False."
        )
    report = _measured(rows, sample, predict)
    warnings = _worse(report)
    if temperature is not None:
        some = groups.select(sorted(order[:NUM_GROUPS]))["teacher_scores"]
        width = _target_width(some, temperature)
        warnings += _flat(some, width, temperature)
        report = replace(report, target_width=width)
    return replace(report, warnings=tuple(warnings))


def agreement(scores: Sequence[float], reference: Sequence[float]) -> tuple[float, float] | None:
    """How far scores order passages as a reference does, and the variance of that for scores in random order.

    Somers' D: of the pairs that the reference does not tie, those in its order less those in the opposite order, as a
    share (https://en.wikipedia.org/wiki/Somers%27_D). The variance is that of Kendall's S with ties in the reference
    (https://en.wikipedia.org/wiki/Kendall_rank_correlation_coefficient#Significance_tests); ties in the scores make the
    true one smaller.

    Args:
        scores: One a passage.
        reference: One a passage.

    Returns:
        The agreement, from -1 to 1, and its variance; None where the reference is all ties.

    >>> agreement([3.0, 2.0, 1.0], [0.0, 1.0, 0.0])
    (0.0, 0.6666666666666666)
    """
    wanted = np.sign(np.subtract.outer(reference, reference))
    num_pairs = int(np.count_nonzero(wanted)) / 2
    if not num_pairs:
        return None
    total = float((np.sign(np.subtract.outer(scores, scores)) * wanted).sum()) / 2
    num_tied = np.unique(reference, return_counts=True)[1].tolist()
    variance = _variance_of_s(len(reference)) - sum(map(_variance_of_s, num_tied))
    return total / num_pairs, variance / num_pairs**2


def _variance_of_s(size: int) -> float:
    return size * (size - 1) * (2 * size + 5) / 18


def _labelled(groups: datasets.Dataset, order: Sequence[int]) -> list[int]:
    """The indices of the first rows, in this order, whose labels differ."""
    found: list[int] = []
    if "labels" in groups.column_names:
        labels = groups.select_columns("labels")
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            values = zip(chunk, labels.select(chunk)["labels"], strict=True)
            found += [index for index, row in values if row and min(row) < max(row)]
            if len(found) >= NUM_GROUPS:
                break
    return found[:NUM_GROUPS]


def _with_neighbours(groups: datasets.Dataset, sample: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The rows of the sample and those beside them, by their index."""
    around = sorted({near for index in sample for near in (index - 1, index, index + 1) if 0 <= near < len(groups)})
    return dict(zip(around, groups.select(around).to_list(), strict=True))


def _off_scale(groups: datasets.Dataset, scale: str | None) -> str | None:
    if scale is None:
        return None
    number, low, high = 0, math.inf, -math.inf
    for index, scores in enumerate(groups["teacher_scores"]):
        if not scores:
            continue
        number, low, high = number + len(scores), min(low, *scores), max(high, *scores)
        if scale == "probability" and not (min(scores) >= 0 and max(scores) <= 1):
            wrong = min(scores) if min(scores) < 0 else max(scores)
            return (
                f"row {index} has the teacher score {wrong:g}, and the declared scale is 'probability', from 0 to 1. "
                "Declare scale='logit' for scores without bounds."
            )
        if scale == "rank" and not _are_ranks(scores):
            return (
                f"row {index} has the teacher scores {_shortened(scores)}, and the declared scale is 'rank': whole "
                "numbers that span fewer than there are passages. Declare 'logit' or 'probability'."
            )
    if scale == "logit" and number >= SIGMOID_SCORES and 0 <= low <= SIGMOID_ENDS[0] and SIGMOID_ENDS[1] <= high <= 1:
        return (
            f"all {number} teacher scores lie from {low:.3g} to {high:.3g}, as probabilities do, and the declared "
            "scale is 'logit'. A softmax of probabilities is almost uniform: give the logits, log(p / (1 - p)), or "
            "declare scale='probability' and choose a teacher_temperature for it."
        )
    return None


def _are_ranks(scores: Sequence[float]) -> bool:
    return all(float(score).is_integer() for score in scores) and max(scores) - min(scores) < len(scores)


def _reversed(rows: dict[int, dict[str, Any]], sample: Sequence[int]) -> str | None:
    found = _agreements((rows[index]["teacher_scores"], rows[index]["labels"]) for index in sample)
    if not found or _z(found) > -REFUSED_Z or _mean(found) > REVERSED_AGREEMENT:
        return None
    ndcg, opposite = (
        _ndcg([[sign * score for score in rows[i]["teacher_scores"]] for i in sample], rows, sample) for sign in (1, -1)
    )
    return (
        f"they are reversed in sign. Of two passages with unlike labels, the less relevant one has the higher score in "
        f"{(1 - _mean(found)) / 2:.0%} of the pairs, over {len(found)} groups; nDCG@{NDCG_AT} is {ndcg:.3f}, and "
        f"{opposite:.3f} with the opposite sign. Higher must mean more relevant: give -score where the scores are "
        "distances, losses or ranks with 1 for the best."
    )


def _shifted(rows: dict[int, dict[str, Any]], sample: Sequence[int]) -> str | None:
    """By labels, and where positives stand at the same place in each group, by words that query and passage share."""
    for reference_of, name in ((_labels_of, "labels"), (_overlaps_of, "shared words of query and passage")):
        for offset, place in ((-1, "before"), (1, "after")):
            own, near = [], []
            for index in sample:
                other = rows.get(index + offset)
                if other is None or len(other["passages"]) != len(rows[index]["passages"]):
                    continue
                scores = rows[index]["teacher_scores"]
                pair = agreement(scores, reference_of(rows[index])), agreement(scores, reference_of(other))
                if pair[0] is not None and pair[1] is not None:
                    own.append(pair[0])
                    near.append(pair[1])
            gains = [(b - a, var_a + var_b) for (a, var_a), (b, var_b) in zip(own, near, strict=True)]
            if gains and _z(near) >= REFUSED_Z and _z(gains) >= SHIFTED_GAIN_Z and _mean(gains) >= SHIFTED_GAIN:
                return (
                    f"they are shifted by a row. The scores of a row fit the {name} of the row {place} it better than "
                    f"its own: agreement {_mean(near):.2f} against {_mean(own):.2f} (from -1 to 1, 0 is chance) over "
                    f"{len(gains)} groups. Join scores and rows by an id, not by their order."
                )
    return None


def _labels_of(row: dict[str, Any]) -> list[float]:
    return row.get("labels") or [0.0] * len(row["passages"])


def _overlaps_of(row: dict[str, Any]) -> list[float]:
    query = set(re.findall(r"\w+", row["query"].lower()))
    return [float(len(query & set(re.findall(r"\w+", passage.lower())))) for passage in row["passages"]]


def _measured(
    rows: dict[int, dict[str, Any]], sample: Sequence[int], predict: Callable[[list[tuple[str, str]]], Any] | None
) -> TeacherReport:
    if not sample:
        return TeacherReport(0)
    report = TeacherReport(
        num_groups=len(sample),
        agreement=_mean(_agreements((rows[index]["teacher_scores"], rows[index]["labels"]) for index in sample)),
        teacher_ndcg=_ndcg([rows[index]["teacher_scores"] for index in sample], rows, sample),
        chance_ndcg=_ndcg([[0.0] * len(rows[index]["labels"]) for index in sample], rows, sample),
    )
    if not stand_at_one_end([rows[index]["labels"] for index in sample]):
        places = [[-float(place) for place in range(len(rows[index]["labels"]))] for index in sample]
        report = replace(report, first_stage_ndcg=_ndcg(places, rows, sample))
    if predict is None:
        return report
    num_pairs = accumulate(len(rows[index]["passages"]) for index in sample[:NUM_STUDENT_GROUPS])
    asked = sample[: max(1, sum(number <= NUM_STUDENT_PAIRS for number in num_pairs))]
    flat = predict([(rows[index]["query"], passage) for index in asked for passage in rows[index]["passages"]])
    scores = iter([float(score) for score in flat])
    return replace(
        report,
        num_student_groups=len(asked),
        student_ndcg=_ndcg([[next(scores) for _ in rows[index]["passages"]] for index in asked], rows, asked),
        teacher_ndcg_beside_student=_ndcg([rows[index]["teacher_scores"] for index in asked], rows, asked),
    )


def stand_at_one_end(labels: Sequence[Sequence[float]]) -> bool:
    """Whether in nearly all groups the most relevant passages stand first, or in nearly all last."""
    num_first = num_last = 0
    for values in labels:
        best = [value == max(values) for value in values]
        num_first += best == sorted(best, reverse=True)
        num_last += best == sorted(best)
    return max(num_first, num_last) >= SAME_PLACE_SHARE * len(labels)


def _worse(report: TeacherReport) -> list[str]:
    """Warnings where the teacher ranks worse than what it should improve on."""
    pairs = (
        (report.teacher_ndcg, report.chance_ndcg, "passages in random order", report.num_groups),
        (report.teacher_ndcg, report.first_stage_ndcg, "the passages as they stand", report.num_groups),
        (
            report.teacher_ndcg_beside_student,
            report.student_ndcg,
            "the student before training",
            report.num_student_groups,
        ),
    )
    return [
        f"the teacher ranks worse than {name}: nDCG@{NDCG_AT} {teacher:.3f} against {other:.3f} on {number} labelled "
        "training groups. A student learns its teacher's order: take a stronger teacher, or train on the labels."
        for teacher, other, name, number in pairs
        if teacher is not None and other is not None and teacher < other
    ]


def _flat(scores: Sequence[Sequence[float]], width: float, temperature: float) -> list[str]:
    if width <= FLAT_TARGET:
        return []
    lower = next((t for t in _TEMPERATURES if t < temperature and _target_width(scores, t) <= SHARP_TARGET), None)
    return [
        f"the softmax of the teacher's scores at teacher_temperature={temperature:g} is almost uniform (as wide as "
        f"{width:.0%} of the passages), so the student learns to score all alike. "
        + ("No temperature sharpens scores that are equal." if lower is None else f"Try teacher_temperature={lower:g}.")
    ]


def _target_width(scores: Sequence[Sequence[float]], temperature: float) -> float:
    widths = []
    for values in scores:
        if len(values) > 1:
            weights = np.exp((np.array(values) - max(values)) / temperature)
            shares = weights / weights.sum()
            entropy = -(shares * np.log(np.maximum(shares, np.finfo(float).tiny))).sum()
            widths.append(float(np.exp(entropy)) / len(values))
    return float(np.mean(widths)) if widths else 0.0


def _ndcg(scores: Sequence[Sequence[float]], rows: dict[int, dict[str, Any]], sample: Sequence[int]) -> float:
    return float(
        np.mean([ndcg_score([rows[i]["labels"]], [s], k=NDCG_AT) for i, s in zip(sample, scores, strict=True)])
    )


def _agreements(pairs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> list[tuple[float, float]]:
    return [found for scores, reference in pairs if (found := agreement(scores, reference)) is not None]


def _mean(found: Sequence[tuple[float, float]]) -> float:
    return sum(value for value, _ in found) / len(found)


def _z(found: Sequence[tuple[float, float]]) -> float:
    """Sum of the values in standard deviations of such a sum under random order."""
    variance = sum(variance for _, variance in found)
    return sum(value for value, _ in found) / math.sqrt(variance) if variance else 0.0


def _shortened(scores: Sequence[float]) -> str:
    return str(list(scores[:6]))[:-1] + (", ...]" if len(scores) > 6 else "]")
