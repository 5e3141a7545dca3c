"""Objectives by source: each of a run's data sets may have its own, and is counted and logged by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rerank_trainer.objectives.objective import Objective, Targets


class SourceObjective(Objective):
    """Sends the groups of each source to the source's objective, and weighs all groups alike.

    The parts are named ``<source>/<loss>``. Sources with the same objective (the same object) are averaged together,
    as if they were one data set. Unlike objectives are weighted by their share of the step's groups:

    .. math:: L = \\sum_o \\frac{n_o}{\\sum_{o'} n_{o'}} L_o

    where L_o is the objective of the groups sent to it, and n_o the number of groups that define it (for an objective
    of several parts, that of the part which most groups define). So how much a source counts follows from how many
    groups of it are drawn, and from nothing else.

    Args:
        objectives: The objective of each source, in the order of the batch's integers ``source``.
    """

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        distinct = list({id(objective): objective for objective in objectives.values()}.values())
        self.parts = nn.ModuleList(distinct)
        self.sources = tuple(objectives)
        of_source = list(objectives.values())
        self.sources_of = [[i for i, own in enumerate(of_source) if own is objective] for objective in distinct]
        pairs = [(objective, source) for objective, members in self._blocks() for source in members]
        self.names = tuple(f"{self.sources[source]}/{name}" for objective, source in pairs for name in objective.names)
        self.source_of_part = [source for objective, source in pairs for _ in objective.names]
        self.needs_labels = any(objective.needs_labels for objective in distinct)
        self.needs_teacher = any(objective.needs_teacher for objective in distinct)
        self.max_label = min((own.max_label for own in distinct if own.max_label is not None), default=None)
        self.set_sources(len(self.sources))
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        self.part_weights = tuple(
            w for objective, members in self._blocks() for _ in members for w in objective.part_weights
        )

    def prepare(self, targets: Targets) -> None:
        for objective, members in self._blocks():
            objective.prepare(_sent(targets, members))

    def tally(self, scores: Tensor, targets: Targets) -> Tensor:
        blocks = [objective.tally(scores, _sent(targets, members)) for objective, members in self._blocks()]
        return torch.cat(blocks)

    def counts(self, targets: Targets) -> Tensor:
        blocks = [
            _by_source(objective.counts(_sent(targets, members)), targets, members)
            for objective, members in self._blocks()
        ]
        return torch.cat(blocks)

    def forward(self, scores: Tensor, targets: Targets) -> Tensor:
        blocks = [
            _by_source(objective(scores, _sent(targets, members)), targets, members)
            for objective, members in self._blocks()
        ]
        return torch.cat(blocks)

    def contributions(self, sums: Tensor, totals: Tensor) -> Tensor:
        sizes = [len(members) * len(objective.names) for objective, members in self._blocks()]
        by_block = list(zip(self._blocks(), totals.split(sizes), sums.split(sizes), strict=True))
        # (num_parts,) each: the counts of all sources that share the objective
        shared = [counts.view(len(members), -1).sum(dim=0) for (_, members), counts, _ in by_block]
        num_groups = torch.stack([counts.max() for counts in shared])
        shares = num_groups / num_groups.sum().clamp(min=torch.finfo(sums.dtype).tiny)
        blocks = []
        for ((objective, members), _, block_sums), counts, share in zip(by_block, shared, shares, strict=True):
            part_sums = block_sums.view(len(members), -1)
            blocks.append((objective.contributions(part_sums, counts) * share).flatten())
        return torch.cat(blocks)

    def figures(self, contributions: Tensor, sums: Tensor, counts: Tensor, groups: Tensor) -> dict[str, float]:
        """The mean loss of each source over its own groups, its parts where it has several, and how many groups."""
        weights = torch.tensor(self.part_weights, device=sums.device)
        means = (sums * weights / counts.clamp(min=torch.finfo(sums.dtype).tiny)).tolist()
        counted = counts.tolist()
        figures: dict[str, float] = {}
        for number, (source, num_groups) in enumerate(zip(self.sources, groups.tolist(), strict=True)):
            own = [part for part, owner in enumerate(self.source_of_part) if owner == number and counted[part]]
            if own:
                figures[f"loss_{source}"] = sum(means[part] for part in own)
            if self.source_of_part.count(number) > 1:
                figures.update({f"loss_{self.names[part]}": means[part] for part in own})
            figures[f"groups_{source}"] = int(num_groups)
        return figures | self.readings()

    def readings(self) -> dict[str, float]:
        """Those of each distinct objective; when there are several, under the names of its sources."""
        blocks = self._blocks()
        if len(blocks) == 1:
            return super().readings()
        named = [("+".join(self.sources[member] for member in members), objective) for objective, members in blocks]
        return {f"{name}/{key}": value for name, part in named for key, value in part.readings().items()}

    def _blocks(self) -> list[tuple[Objective, list[int]]]:
        """Each distinct objective with its sources; its parts stand together, source by source."""
        return list(zip(self.parts, self.sources_of, strict=True))


def _sent(targets: Targets, sources: list[int]) -> Targets:
    """The targets in which the passages of all other sources' groups are absent."""
    assert targets.source is not None  # the collator knows the names of the sources
    here = torch.stack([targets.source == source for source in sources]).any(dim=0)
    return dataclasses.replace(targets, mask=targets.mask & here[:, None])


def _by_source(values: Tensor, targets: Targets, sources: list[int]) -> Tensor:
    """``(num_parts, batch_size)`` to ``(num_sources * num_parts, batch_size)``: 0 for groups of other sources."""
    assert targets.source is not None
    return torch.cat([torch.where(targets.source == source, values, torch.zeros_like(values)) for source in sources])
