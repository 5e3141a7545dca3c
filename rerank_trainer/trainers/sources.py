"""Sources of a run: what a user says of each of several training sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from rerank_trainer.data.sources import with_text
from rerank_trainer.objectives.objective import Objective

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset | str | Path


@dataclass(frozen=True)
class TrainSource:
    """One of several training sets, and what holds for it alone.

    Attributes:
        rows: Rows in any layout that :func:`load_groups` recognises: a data set, a stream, a path or a Hub id.
        weight: Its share of the groups that are drawn, in any unit; for all sources or for none. None: by size.
        instruction: Goes into the column ``instruction`` of its groups.
        objective: Its own objective, or a name as in ``args.objective``; None takes the trainer's.
        scores_are: What a column ``score`` or ``scores`` holds, see :func:`to_groups`; None takes the trainer's view.

    >>> TrainSource("clicks.jsonl", weight=0.2, objective="bce")
    TrainSource(rows='clicks.jsonl', weight=0.2, instruction=None, objective='bce', scores_are=None)
    """

    rows: Rows
    weight: float | None = None
    instruction: str | None = None
    objective: Objective | str | None = None
    scores_are: str | None = None


def is_several(rows: Any) -> bool:
    """Whether rows are a mapping from name to rows, and not the splits of one data set."""
    return isinstance(rows, Mapping) and not isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict)


def as_sources(rows: Mapping[str, Rows | TrainSource]) -> dict[str, TrainSource]:
    """The sources by name.

    Raises:
        ValueError: If there is none, a name is not a text, or weights are not given for all of them or none.
    """
    sources = {name: given if isinstance(given, TrainSource) else TrainSource(given) for name, given in rows.items()}
    if not sources or not all(isinstance(name, str) and name for name in sources):
        raise ValueError(f"train_dataset: expected a mapping from name to rows, found the names {list(sources)}")
    weights = {name: source.weight for name, source in sources.items()}
    given = [weight for weight in weights.values() if weight is not None]
    if given and (len(given) < len(sources) or not all(weight > 0 and math.isfinite(weight) for weight in given)):
        raise ValueError(
            f"the weights of the sources are {weights}: give each of them a number above 0, its share of the groups "
            "that are drawn, or none (then every group is drawn once an epoch). Leave out a source that has no share."
        )
    return sources


def with_instruction(groups: Any, instruction: str | None) -> Any:
    """The groups with the source's instruction in their column.

    Raises:
        ValueError: If they have that column already.
    """
    if instruction is None:
        return groups
    if "instruction" in groups.column_names:
        raise ValueError(
            f"the rows have a column instruction and the source says instruction={instruction!r}: which one counts? "
            'Leave out one of them; a column goes with rows.remove_columns("instruction").'
        )
    return with_text(groups, "instruction", instruction)
