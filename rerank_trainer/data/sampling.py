"""Sampling: which groups come in which order, and which passages of a group, by (seed, epoch, index) alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
from torch.utils.data import Dataset, Sampler

# What a training row takes over from its group besides the chosen passages.
_GROUP_COLUMNS = ("query", "weight", "instruction", "source")
_PASSAGE_COLUMNS = ("passages", "labels", "teacher_scores", "passage_weights")
FILLER = -1  # the index of a group that fills a batch and counts nothing


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index): the group to take and the epoch that decides its passages.

    The order depends on the seed and the epoch alone. The trainer calls :meth:`set_epoch` before each epoch; a data
    set that knew the epoch itself would be out of date in persistent workers and after a resume.

    Args:
        num_groups: How many groups there are.
        seed: Any integer.
        shuffle: Whether each epoch has an order of its own; otherwise the groups come as they stand.
        multiple_of: Fill an epoch up to a multiple of this with ``(epoch, FILLER)``. Several processes need whole
            batches, and would otherwise be given some groups twice.

    >>> sampler = EpochSampler(3, seed=0, shuffle=False)
    >>> sampler.set_epoch(5)
    >>> list(sampler)
    [(5, 0), (5, 1), (5, 2)]
    """

    def __init__(self, num_groups: int, *, seed: int, shuffle: bool = True, multiple_of: int = 1) -> None:
        self.num_groups = num_groups
        self.seed = seed
        self.shuffle = shuffle
        self.num_fillers = -num_groups % multiple_of
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration the given epoch's, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_groups + self.num_fillers

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._order() + [(self.epoch, FILLER)] * self.num_fillers)

    def _order(self) -> list[tuple[int, int]]:
        order = list(range(self.num_groups))
        if self.shuffle:
            random.Random(f"order-{self.seed}-{self.epoch}").shuffle(order)
        return [(self.epoch, index) for index in order]


class TrainGroups(Dataset[dict[str, Any]]):
    """Groups cut to K passages, chosen anew in each epoch; ``self[epoch, index]`` is always the same choice.

    ``self[epoch, FILLER]`` is one passage of the first group with a weight of 0.

    Args:
        groups: A data set of groups (see :mod:`rerank_trainer.data.formats`).
        passages_per_query: K. Shorter groups are taken whole.
        seed: Any integer.
        top_share: Share of the negatives taken from the top of the list; the others are drawn from the rest.
    """

    def __init__(self, groups: datasets.Dataset, *, passages_per_query: int, seed: int, top_share: float = 0.0) -> None:
        self.groups = groups
        self.passages_per_query = passages_per_query
        self.seed = seed
        self.top_share = top_share

    def __len__(self) -> int:
        return len(self.groups)

    def sampler(self, *, shuffle: bool, multiple_of: int = 1, one_source_size: int | None = None) -> EpochSampler:
        """The order of an epoch; groups of one data set are of one source anyway."""
        return EpochSampler(len(self), seed=self.seed, shuffle=shuffle, multiple_of=multiple_of)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        if index == FILLER:
            row = {name: values[:1] if name in _PASSAGE_COLUMNS else values for name, values in self[epoch, 0].items()}
            return {**row, "weight": 0.0, "row": FILLER}
        rng = random.Random(f"passages-{self.seed}-{epoch}-{index}")
        row = cut_to_passages(self.groups[index], self.passages_per_query, top_share=self.top_share, rng=rng)
        return {**row, "row": index}


class EvalGroups(Dataset[dict[str, Any]]):
    """Groups taken whole, in order, with the gains that their candidate lists miss."""

    def __init__(self, groups: datasets.Dataset) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = self.groups[index]
        row = {name: group[name] for name in _GROUP_COLUMNS + _PASSAGE_COLUMNS if group.get(name) is not None}
        return {**row, "missed_gains": group.get("missed_gains") or [], "row": index}


def cut_to_passages(
    group: Mapping[str, Any], num_passages: int, *, top_share: float, rng: random.Random
) -> dict[str, Any]:
    """The training row of a group: what :func:`choose_passages` takes of the passages whose weight is not 0.

    >>> group = {"query": "1 + 1", "passages": ["2", "3", "4"], "labels": [1.0, 0.0, 0.0], "passage_weights": [1, 0, 2]}
    >>> cut_to_passages(group, 2, top_share=0.0, rng=random.Random(0))["passages"]
    ['2', '4']
    """
    weights = group.get("passage_weights")
    present = [i for i in range(len(group["passages"])) if weights is None or weights[i] > 0]
    labels = group.get("labels")
    of_present = [0.0 if labels is None else labels[i] for i in present]
    chosen = [present[i] for i in choose_passages(of_present, num_passages, top_share=top_share, rng=rng)]
    row = {name: group[name] for name in _GROUP_COLUMNS if name in group}
    row.update({name: [group[name][i] for i in chosen] for name in _PASSAGE_COLUMNS if group.get(name) is not None})
    return row


def choose_passages(labels: Sequence[float], num_passages: int, *, top_share: float, rng: random.Random) -> list[int]:
    """Positions of the passages that train, in the group's own order.

    At least one positive and at most half the places go to positives (labels above 0), drawn when there are more.
    The negatives fill the other places: ``top_share`` of them from the top of the list, the rest drawn from the others.
    When the negatives run short, more positives take their place.

    Args:
        labels: Relevance of each passage, in the order of the first stage.
        num_passages: K, at least 2.
        top_share: 0 draws every negative, 1 takes them from the top.
        rng: The source of chance.

    >>> choose_passages([0, 1, 0, 0, 0, 0], 4, top_share=1.0, rng=random.Random(0))
    [0, 1, 2, 3]
    """
    if len(labels) <= num_passages:
        return list(range(len(labels)))
    positives = [i for i, label in enumerate(labels) if label > 0]
    negatives = [i for i, label in enumerate(labels) if label <= 0]
    num_positives = min(len(positives), max(1, num_passages // 2))
    num_positives = max(num_positives, num_passages - len(negatives))
    num_negatives = num_passages - num_positives
    num_top = round(top_share * num_negatives)
    top, others = negatives[:num_top], negatives[num_top:]
    return sorted([*rng.sample(positives, num_positives), *top, *rng.sample(others, num_negatives - num_top)])
