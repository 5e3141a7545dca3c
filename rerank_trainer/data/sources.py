"""Sources: several data sets of groups as one, and the order in which their groups are drawn."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import datasets

from rerank_trainer.data.columns import GROUP_FEATURES, group_features
from rerank_trainer.data.sampling import EpochSampler, TrainGroups

logger = logging.getLogger(__name__)


class SourceGroups(TrainGroups):
    """The groups of several data sets, one after the other, each with its name in the column ``source``.

    Args:
        sources: Groups by name.
        weights: The share of each source among the groups that are drawn, in any unit; None draws every group once an
            epoch.
        passages_per_query: As in :class:`TrainGroups`.
        seed: As there.
        top_share: As there.
    """

    def __init__(
        self,
        sources: Mapping[str, datasets.Dataset],
        *,
        weights: Sequence[float] | None = None,
        passages_per_query: int,
        seed: int,
        top_share: float = 0.0,
    ) -> None:
        super().__init__(join_sources(sources), passages_per_query=passages_per_query, seed=seed, top_share=top_share)
        sizes = {name: len(groups) for name, groups in sources.items()}
        self.sizes = list(sizes.values())
        self.num_draws = draw_counts(sizes, weights)
        self.has_weights = weights is not None
        for (name, size), num_draws in zip(sizes.items(), self.num_draws, strict=True):
            logger.info("source %r: %d groups; an epoch draws %d", name, size, num_draws)

    def sampler(self, *, shuffle: bool, multiple_of: int = 1, one_source_size: int | None = None) -> EpochSampler:
        """The order of an epoch: that of one data set unless there are weights, or batches of one source each."""
        if not self.has_weights and one_source_size is None:
            return super().sampler(shuffle=shuffle, multiple_of=multiple_of)
        return SourceSampler(
            self.sizes,
            self.num_draws,
            seed=self.seed,
            shuffle=shuffle,
            multiple_of=multiple_of,
            one_source_size=one_source_size,
        )


class SourceSampler(EpochSampler):
    """Yields (pass, index): the group to take, and how often its source was used up before, which decides its passages.

    Each source is walked through in an order of its own, and an epoch goes on where the last one ended: no group comes
    again before all of its source have come, and when it does its passages are chosen anew. Everything depends on the
    seed and the epoch alone.

    Args:
        sizes: How many groups each source has; their indices follow each other.
        num_draws: How many groups of each source an epoch draws.
        seed: Any integer.
        shuffle: Whether each pass has an order of its own, and the sources are mixed; otherwise they follow each other.
        multiple_of: As in :class:`EpochSampler`.
        one_source_size: Every run of so many groups is of one source, which makes batches of this size of one source
            each; the draws are rounded up to whole ones. None mixes the sources.

    >>> sampler = SourceSampler([4, 2], [3, 3], seed=0, shuffle=False)
    >>> list(sampler)
    [(0, 0), (0, 1), (0, 2), (0, 4), (0, 5), (1, 4)]
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [(0, 3), (1, 0), (1, 1), (1, 5), (2, 4), (2, 5)]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_draws: Sequence[int],
        *,
        seed: int,
        shuffle: bool = True,
        multiple_of: int = 1,
        one_source_size: int | None = None,
    ) -> None:
        self.sizes = sizes
        self.run_size = one_source_size or 1
        self.num_draws = [math.ceil(number / self.run_size) * self.run_size for number in num_draws]
        super().__init__(sum(self.num_draws), seed=seed, shuffle=shuffle, multiple_of=multiple_of)

    def _order(self) -> list[tuple[int, int]]:
        drawn = [key for source in range(len(self.sizes)) for key in self._draws(source)]
        runs = [drawn[start : start + self.run_size] for start in range(0, len(drawn), self.run_size)]
        if self.shuffle:
            random.Random(f"order-{self.seed}-{self.epoch}").shuffle(runs)
        return [key for run in runs for key in run]

    def _draws(self, source: int) -> Iterator[tuple[int, int]]:
        size, first = self.sizes[source], sum(self.sizes[:source])

        @cache
        def order(number: int) -> list[int]:
            indices = list(range(first, first + size))
            if self.shuffle:
                random.Random(f"source-{self.seed}-{source}-{number}").shuffle(indices)
            return indices

        start = self.epoch * self.num_draws[source]
        for draw in range(start, start + self.num_draws[source]):
            number, place = divmod(draw, size)
            yield number, order(number)[place]


def draw_counts(sizes: Mapping[str, int], weights: Sequence[float] | None) -> list[int]:
    """How many groups of each source an epoch draws: as many in all as there are groups, shared out by weight.

    Args:
        sizes: How many groups each source has, by name.
        weights: Shares in any unit; None draws each group once.

    Raises:
        ValueError: If a source would get none.

    >>> sizes = {"web": 900, "code": 100}
    >>> draw_counts(sizes, None), draw_counts(sizes, [1, 1]), draw_counts(sizes, [2, 1])
    ([900, 100], [500, 500], [667, 333])
    """
    if weights is None:
        return list(sizes.values())
    total = sum(sizes.values())
    shares = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in shares]
    largest_rests = sorted(range(len(sizes)), key=lambda source: counts[source] - shares[source])
    for source in largest_rests[: total - sum(counts)]:
        counts[source] += 1
    if 0 in counts:
        raise ValueError(
            f"the weights {list(weights)} leave the source {list(sizes)[counts.index(0)]!r} without a group in an "
            f"epoch of {total} groups: raise its weight, or leave the source out."
        )
    return counts


def join_sources(sources: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """The groups of all sources, one after the other; a column that a source lacks is None there, an instruction "".

    >>> one = datasets.Dataset.from_dict({"query": ["1 + 1"], "passages": [["2"]], "labels": [[1.0]]})
    >>> two = datasets.Dataset.from_dict({"query": ["sun"], "passages": [["star"]], "teacher_scores": [[3.5]]})
    >>> joined = join_sources({"sums": one, "words": two})
    >>> joined["source"][:], joined["labels"][:]
    (['sums', 'words'], [[1.0], None])
    """
    has_instruction = any("instruction" in groups.column_names for groups in sources.values())
    named = []
    for name, groups in sources.items():
        if "source" in groups.column_names:
            logger.info("source %r: its own column source gives way to this name", name)
            groups = groups.remove_columns("source")
        groups = with_text(groups, "source", name)
        if has_instruction and "instruction" not in groups.column_names:
            groups = with_text(groups, "instruction", "")
        named.append(groups)
    return datasets.concatenate_datasets(named)


def with_text(groups: Any, column: str, text: str) -> Any:
    """The groups, or the stream of groups, with one text in a new column."""
    if isinstance(groups, datasets.IterableDataset):
        features = group_features([*groups.column_names, column])
        return groups.map(partial(_text, column=column, text=text), features=features)
    return groups.add_column(column, [text] * len(groups), feature=GROUP_FEATURES[column])


def _text(group: dict[str, Any], *, column: str, text: str) -> dict[str, str]:
    return {column: text}
