"""Checkpoints as teacher: the averaged scores of snapshots of one run, chosen by what they know of dev labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from rerank_trainer.data.formats import load_groups
from rerank_trainer.losses import infonce
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.ensemble import EnsembleTeacher
from rerank_trainer.teachers.teacher import RerankerTeacher

logger = logging.getLogger(__name__)

ALL, AUTO = "all", "auto"
NUM_CHOSEN = 3
_PREFIX = "checkpoint-"  # what Transformers calls the folders of a run


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a run.

    Attributes:
        folder: Where it is.
        bound: What its scores tell of the dev labels, in nats, see :func:`information_bound`; None if not measured.
        is_chosen: Whether it teaches.
    """

    folder: str
    bound: float | None
    is_chosen: bool

    def __str__(self) -> str:
        known = "" if self.bound is None else f": {self.bound:.4f} nats of the dev labels"
        return f"{'teaches' if self.is_chosen else 'left out'} {self.folder}{known}"


class CheckpointTeacher(EnsembleTeacher):
    r"""The mean score of several snapshots of one training run; its scores are logits.

    As far as snapshots err in ways of their own, the mean errs less than each. Adapted from Wang et al. (2022,
    https://arxiv.org/abs/2210.06458): of their image classifiers, an intermediate checkpoint often taught better than
    the last, and some snapshots of one run could teach better than several runs. They choose by what a checkpoint knows
    of labels and inputs; here it is labels alone (:func:`information_bound`), which favours the more accurate ones.

    Args:
        run: The output folder of a run, all of whose ``checkpoint-*`` folders are looked at; or several folders, each
            one that :meth:`Reranker.from_pretrained` opens.
        select: "auto" takes the ``num`` snapshots that tell most of the labels of ``dev_groups``; "all" takes all; a
            list takes those of these steps, or of these folder names. None is "auto" where there are dev groups and
            "all" where there are not.
        dev_groups: Labelled rows in any layout that :func:`load_groups` recognises, on which all snapshots are
            measured. Of queries that the run was not trained on: on its own the last snapshot looks best anyway.
        num: How many "auto" takes; those that teach are in memory together.
        device: Where they compute; by default on a GPU where there is one.
        autocast_dtype: Compute in this type, ``torch.bfloat16`` for instance; None computes in the weights' type.

    Attributes:
        snapshots: A :class:`Snapshot` for each folder that was looked at, in the order of the run; also in the log.

    Raises:
        ValueError: If there are no snapshots, one that was asked for is missing, "auto" has no dev groups, these have
            no positive, or ``num`` is not from 1 to the number of snapshots.
    """

    def __init__(
        self,
        run: str | Path | Sequence[str | Path],
        *,
        select: str | Sequence[int | str] | None = None,
        dev_groups: Any = None,
        num: int = NUM_CHOSEN,
        device: torch.device | str | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self._device = device
        self._autocast_dtype = autocast_dtype
        folders = _folders(run)
        if select is None:
            select = ALL if dev_groups is None else AUTO
        chosen = [] if select == AUTO else _asked(folders, select)
        if select == AUTO and dev_groups is None:
            raise ValueError(
                f'select="auto" chooses {num} of {len(folders)} snapshots by the labels of dev_groups, and there are '
                'none. Give dev_groups=labelled rows, or select="all".'
            )
        if select == AUTO and not 1 <= num <= len(folders):
            raise ValueError(f"num={num}: expected from 1 to {len(folders)}, the number of snapshots")
        bounds = {} if dev_groups is None else self._bounds(folders, load_groups(dev_groups, scores_are="labels"))
        if select == AUTO:
            chosen = sorted(folders, key=lambda folder: -bounds[folder])[:num]
        self.snapshots = [Snapshot(str(folder), bounds.get(folder), folder in chosen) for folder in folders]
        for snapshot in self.snapshots:
            logger.info("%s", snapshot)
        super().__init__([self._open(folder) for folder in folders if folder in chosen], normalize=None)

    def _open(self, folder: Path) -> RerankerTeacher:
        reranker = Reranker.from_pretrained(folder, dtype="auto", device=self._device)
        return RerankerTeacher(reranker, autocast_dtype=self._autocast_dtype)

    def _bounds(self, folders: Sequence[Path], groups: datasets.Dataset) -> dict[Path, float]:
        if "labels" not in groups.column_names:
            raise ValueError(f"dev_groups have the columns {groups.column_names} and no labels to choose snapshots by.")
        rows = groups.to_list()
        # one after the other: only those that are chosen will be in memory together
        scored = ((folder, self._open(folder).score(rows)["scores"]) for folder in folders)
        return {folder: information_bound(scores, groups["labels"]) for folder, scores in scored}


def information_bound(scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float]]) -> float:
    r"""How much scores tell of which passage is relevant, in nats: the mean of log K - L over groups with a positive.

    .. math:: \hat I = \frac{1}{N} \sum_g \left( \log K_g - \ell_g \right)

    with InfoNCE :math:`\ell_g` over the :math:`K_g` passages. It bounds the mutual information of scores and labels
    from below where the other passages are drawn independently of the query (van den Oord et al., 2018,
    https://arxiv.org/abs/1807.03748). Mined passages are not, so it is no bound there; it still orders models on the
    same groups, by how probable they hold the positives. 0 is a model that knows nothing, and a model that is sure and
    wrong is below.

    Args:
        scores: Of each group's passages, logits.
        labels: Their relevance, 0 or more.

    Raises:
        ValueError: If no group has a positive beside another passage.

    >>> bound = information_bound([[0.0, 0.0], [math.log(3), 0.0]], [[1.0, 0.0], [1.0, 0.0]])
    >>> round(bound, 4)  # of (log 2 - log 2) and (log 2 - log 4/3)
    0.2027
    """
    found = []
    for of_scores, of_labels in zip(scores, labels, strict=True):
        values, targets = torch.tensor([of_scores]).double(), torch.tensor([of_labels]).double()
        mask = torch.ones_like(values, dtype=torch.bool)
        if bool(infonce.counts(targets, mask)):
            found.append(math.log(len(of_scores)) - float(infonce(values, targets, mask=mask)))
    if not found:
        raise ValueError(
            f"none of the {len(labels)} dev groups has a passage with a label above 0 beside another one, so nothing "
            "can be measured. Give labelled groups."
        )
    return float(np.mean(found))


def _folders(run: str | Path | Sequence[str | Path]) -> list[Path]:
    """The folders of the snapshots, those of a run in the order of their steps."""
    if not isinstance(run, str | Path):
        folders = [Path(folder) for folder in run]
    else:
        found = {path.name.removeprefix(_PREFIX): path for path in Path(run).glob(f"{_PREFIX}*")}
        folders = [found[step] for step in sorted((step for step in found if step.isdigit()), key=int)]
    if not folders:
        raise ValueError(
            f"run={str(run)!r} holds no folders {_PREFIX}*. Give the output folder of a training with "
            "save_strategy='steps' or 'epoch' (and no save_total_limit of 1), or a list of folders."
        )
    return folders


def _asked(folders: Sequence[Path], select: str | Sequence[int | str]) -> list[Path]:
    """Those that are asked for: all, or by step or folder name."""
    if select == ALL:
        return list(folders)
    if isinstance(select, str):
        raise ValueError(f"select={select!r}: expected {AUTO!r}, {ALL!r}, or a list of steps or folder names")
    names = [f"{_PREFIX}{each}" if isinstance(each, int) else str(each) for each in select]
    missing = [name for name in names if name not in [folder.name for folder in folders]]
    if missing or not names:
        raise ValueError(f"select={list(select)}: expected some of {[folder.name for folder in folders]}")
    return [folder for folder in folders if folder.name in names]
