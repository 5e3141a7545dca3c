"""Sources of a run: what a user says of each of several training sets, and the set that they make together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from rerank_trainer.data.sampling import TrainGroups
from rerank_trainer.data.sources import SourceGroups, with_text
from rerank_trainer.data.streams import StreamGroups
from rerank_trainer.objectives.objective import Objective
from rerank_trainer.trainers.arguments import RerankTrainingArguments

SHUFFLE_BUFFER = 1000  # rows, in which a data set beside streams is shuffled

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


def as_train_set(
    groups: Mapping[str | None, Any], weights: list[float] | None, args: RerankTrainingArguments
) -> TrainGroups | StreamGroups:
    """What a trainer draws from: groups of one data set or of several, or streams as soon as one of them is a stream.

    Args:
        groups: Groups or streams of groups by name; the name None for a single data set.
        weights: The shares of the sources.
        args: For a stream they are changed in place: no process may cut the batches of another.

    Raises:
        ValueError: If there is a stream, and the arguments do not say when to stop or how to share.
    """
    settings: dict[str, Any] = {
        "passages_per_query": args.passages_per_query,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "top_share": args.top_share,
    }
    if not any(isinstance(part, datasets.IterableDataset) for part in groups.values()):
        if None in groups:
            return TrainGroups(groups[None], **settings)
        return SourceGroups({str(name): part for name, part in groups.items()}, weights=weights, **settings)
    if args.max_steps <= 0:
        raise ValueError(f"max_steps={args.max_steps}: a stream has no length, so say how many steps to train")
    if len(groups) > 1 and weights is None:
        raise ValueError(
            f"a stream has no size from which the shares of {list(groups)} could follow: give every source a weight"
        )
    args.accelerator_config = dataclasses.replace(args.accelerator_config, dispatch_batches=False)
    return StreamGroups(
        {name: _as_stream(part, args.dataloader_num_workers, settings["seed"]) for name, part in groups.items()},
        weights=weights or [1.0],
        one_source_size=args.train_batch_size if args.batch_sources == "one" else None,
        **settings,
    )


def _as_stream(groups: Any, num_workers: int, seed: int) -> datasets.IterableDataset:
    """A data set beside streams, as a stream that each pass shuffles anew."""
    if isinstance(groups, datasets.IterableDataset):
        return groups
    stream = groups.to_iterable_dataset(num_shards=max(1, min(num_workers, len(groups))))
    return stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


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
