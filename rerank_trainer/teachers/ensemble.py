"""The ensemble: several teachers as one, each on a scale of its own, with weights that are given or fitted."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.teacher import Teacher, as_teacher, columns_read

Scores: TypeAlias = NDArray[np.float64]
NormalizeFn = Callable[[Scores], Scores]


def zscores(scores: Scores) -> Scores:
    """A group's scores with a mean of 0 and a standard deviation of 1; all 0 where they are equal, so for one passage.

    >>> zscores(np.array([1.0, 3.0])), zscores(np.array([7.0]))
    (array([-1.,  1.]), array([0.]))
    """
    if scores.min(initial=np.inf) >= scores.max(initial=-np.inf):  # not by the deviation, which rounding leaves above 0
        return np.zeros_like(scores)
    return (scores - scores.mean()) / scores.std()


def centred_ranks(scores: Scores) -> Scores:
    """The share of the other passages below each, less the share above it: from -1 to 1, 0 for one passage.

    >>> centred_ranks(np.array([5.0, 9.0, 5.0]))
    array([-0.5,  1. , -0.5])
    """
    above = np.sign(np.subtract.outer(scores, scores)).sum(axis=1)
    return above / max(1, len(scores) - 1)


NORMALIZATIONS: dict[str, NormalizeFn] = {"zscore": zscores, "rank": centred_ranks}


class EnsembleTeacher:
    """Several teachers as one: the weighted mean of their scores, each brought to a common scale in its group before.

    Each member's scores are stored under its own fingerprint, so a further member, other weights or another
    normalisation ask no other member again. A group's passages are compared with each other only: of a group of one
    passage, or where a member holds all alike, a normalised member says 0.

    Args:
        teachers: The members: Hub ids, folders, rerankers or teachers, of which
            :class:`~rerank_trainer.teachers.column.ColumnTeacher` reads scores that stand in the rows.
        weights: One a member, 0 or more, with the sum 1; see :func:`~rerank_trainer.teachers.weights.fit_weights`.
            None weighs all alike.
        normalize: "zscore" (mean 0, standard deviation 1), "rank" (:func:`centred_ranks`), None (members of one scale,
            as they are), or a function from the scores of a group, ``(num_passages,)``, to as many, which the
            fingerprint knows by its name; or a list of these, one a member.
        device: Where members given by name are put; by default on a GPU where there is one.

    Attributes:
        members: The members as teachers.
        weights: A number a member.
        scale: "logit"; without normalisation that of the members.

    Raises:
        ValueError: If there is no member, numbers differ, weights are negative or have another sum, a normalisation is
            not known, or members of unlike scales, or ranks, are to be averaged as they are.

    >>> from rerank_trainer.teachers.column import ColumnTeacher
    >>> ensemble = EnsembleTeacher([ColumnTeacher("of_a"), ColumnTeacher("of_b")], weights=[0.75, 0.25])
    >>> ensemble.score([{"query": "1 + 1", "passages": ["3", "2"], "of_a": [-1, 7], "of_b": [0.9, 0.1]}])
    {'scores': [[-0.5, 0.5]]}
    """

    def __init__(
        self,
        teachers: Sequence[str | Path | Reranker | Teacher],
        *,
        weights: Sequence[float] | None = None,
        normalize: str | NormalizeFn | None | Sequence[str | NormalizeFn | None] = "zscore",
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(teachers, str) or not len(teachers):
            raise ValueError(f"teachers={teachers!r}: expected a list with one teacher or more")
        self.normalizations = normalizations(normalize, len(teachers))
        self.weights = _checked_weights(weights, len(teachers))
        self.members = open_teachers(teachers, device=device)
        self.scale = _common_scale(self.members, self.normalizations)
        self.columns = tuple({column: None for member in self.members for column in columns_read(member)})
        settings = [self.weights, [_name(normalize_fn) for normalize_fn in self.normalizations]]
        own = json.dumps([[member.fingerprint for member in self.members], *settings])
        self.fingerprint = hashlib.sha256(own.encode()).hexdigest()

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """As :meth:`Teacher.score`."""
        return {"scores": self.combine([list(member.score(groups)["scores"]) for member in self.members])}

    def combine(self, of_members: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
        """The ensemble's scores of groups from those of its members.

        Args:
            of_members: For each member the scores of all groups, one a passage.

        Raises:
            ValueError: If members have unlike numbers of groups, or of scores in a group.
        """
        features = normalized(of_members, self.normalizations)
        return [(np.array(self.weights) @ of_group).tolist() for of_group in features]


def normalized(
    of_members: Sequence[Sequence[Sequence[float]]], normalize_fns: Sequence[NormalizeFn | None]
) -> list[Scores]:
    """The members' scores of each group on their common scale, ``(num_members, num_passages)`` float64 each.

    Raises:
        ValueError: If members have unlike numbers of groups, or of scores in a group.
    """
    nums_groups = [len(scores) for scores in of_members]
    if len(set(nums_groups)) > 1:
        raise ValueError(f"the ensemble's members scored {nums_groups} groups; each must score every group")
    groups = []
    for index, of_group in enumerate(zip(*of_members, strict=True)):
        counts = [len(scores) for scores in of_group]
        if len(set(counts)) > 1:
            raise ValueError(
                f"group {index}: the ensemble's members gave {counts} scores; each must give one for each passage"
            )
        rows = [np.asarray(scores, dtype=np.float64) for scores in of_group]
        rows = [row if fn is None else fn(row) for row, fn in zip(rows, normalize_fns, strict=True)]
        if any(row.shape != (counts[0],) for row in rows):
            raise ValueError(
                f"group {index}: normalize made {[row.shape for row in rows]} of {counts[0]} scores; expected as many"
            )
        groups.append(np.stack(rows))
    return groups


def normalizations(
    normalize: str | NormalizeFn | None | Sequence[str | NormalizeFn | None], num_teachers: int
) -> list[NormalizeFn | None]:
    """The function of each teacher that names and functions stand for.

    Raises:
        ValueError: If a name is not known, or there is another number of them than of teachers.
    """
    is_one_for_all = normalize is None or isinstance(normalize, str) or callable(normalize)
    given: list[Any] = [normalize] * num_teachers if is_one_for_all else list(cast(Sequence[Any], normalize))
    if len(given) != num_teachers:
        raise ValueError(f"normalize={normalize!r}: expected one for all or {num_teachers}, one a teacher")
    found: list[NormalizeFn | None] = []
    for name in given:
        if isinstance(name, str) and name not in NORMALIZATIONS:
            near = difflib.get_close_matches(name, NORMALIZATIONS, n=1, cutoff=0.3)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"normalize={name!r}: expected one of {[*NORMALIZATIONS]}, None, or a function of a group's scores."
                + meant
            )
        found.append(NORMALIZATIONS[name] if isinstance(name, str) else name)
    return found


def open_teachers(
    teachers: Sequence[str | Path | Reranker | Teacher], *, device: torch.device | str | None = None
) -> list[Teacher]:
    """Teachers from names, rerankers and teachers; names are opened on the device, as :func:`as_teacher` does."""
    return [as_teacher(teacher, device=device) for teacher in teachers]


def _checked_weights(weights: Sequence[float] | None, num_teachers: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / num_teachers,) * num_teachers
    given = [float(weight) for weight in weights]
    if len(given) != num_teachers:
        raise ValueError(f"weights={given}: expected {num_teachers}, one for each teacher")
    if not all(weight >= 0 for weight in given):
        raise ValueError(
            f"weights={given}: expected numbers of 0 or more. Leave out a teacher that orders passages the wrong way, "
            "or repair the sign of its scores."
        )
    total = sum(given)
    if not abs(total - 1.0) <= 1e-6:
        of_one = f" Divide them by it: {[round(weight / total, 4) for weight in given]}." if 0 < total < np.inf else ""
        raise ValueError(f"weights={given}: their sum is {total:g}, expected 1.{of_one}")
    return tuple(given)


def _common_scale(members: Sequence[Teacher], normalize_fns: Sequence[NormalizeFn | None]) -> str:
    if any(fn is not None for fn in normalize_fns):
        return "logit"
    scales = [member.scale for member in members]
    if len(set(scales)) > 1 or scales[0] == "rank":
        raise ValueError(
            f"normalize=None averages scores as they are, and the members' scales are {scales}: expected one scale, "
            'and no ranks. Take normalize="rank" or "zscore".'
        )
    return scales[0]


def _name(normalize_fn: NormalizeFn | None) -> str:
    return getattr(normalize_fn, "__qualname__", None) or repr(normalize_fn)
