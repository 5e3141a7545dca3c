"""Formats: reading rows from a file, the Hub or memory, and turning whatever layout they have into checked groups.

A group is one query with its passages: ``query``, ``passages``, ``labels`` (0 or more) and/or ``teacher_scores``, and
optionally ``query_id``, ``passage_ids``, ``instruction``, ``source``, ``weight``, ``passage_weights`` and
``missed_gains``. The layouts that are recognised stand in :mod:`rerank_trainer.data.layouts`, each with an example in
``docs/data_formats.md``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import datasets
import pyarrow.compute as pc

from rerank_trainer.data.columns import check_rows
from rerank_trainer.data.conversions import Draw, Roles, names_of
from rerank_trainer.data.files import Source, cache_of, file_of, read_file, read_table, stream_file
from rerank_trainer.data.layouts import Layout, recognise
from rerank_trainer.data.leaves import unused_leaves
from rerank_trainer.data.streams import stream_to_groups
from rerank_trainer.data.texts import tables_for, with_texts

logger = logging.getLogger(__name__)


def load_groups(
    source: Source | datasets.IterableDataset,
    *,
    queries: Source | None = None,
    corpus: Source | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    streaming: bool = False,
    scores_are: str | None = None,
    num_negatives: int = 15,
    seed: int = 0,
) -> datasets.Dataset | datasets.IterableDataset:
    """Groups from a data set, a file or the Hub: reads the rows, then calls :func:`to_groups`.

    Args:
        source: A ``datasets.Dataset`` or ``IterableDataset``; the path of a ``.jsonl``, ``.json``, ``.parquet``,
            ``.csv`` or ``.tsv`` file, or of a folder that ``annotate`` wrote; or the id of a data set on the Hub.
        queries: See :func:`to_groups`.
        corpus: See :func:`to_groups`. Default: the one that a file of NeMo names inside its own folder.
        split: Which split of a data set on the Hub. The rows of a file are the split ``"train"``; parts such as
            ``"train[:1000]"`` can be asked of both.
        name: Which configuration of a data set on the Hub.
        revision: Which branch, tag or commit on the Hub.
        token: For a private data set on the Hub.
        streaming: Read the rows as they are asked for; the groups are a stream, too. Whole splits only.
        scores_are: See :func:`to_groups`.
        num_negatives: See :func:`to_groups`.
        seed: See :func:`to_groups`.

    Returns:
        Groups, as from :func:`to_groups`.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: The source is of another kind or cannot be read, or as in :func:`to_groups`.

    >>> rows = datasets.Dataset.from_list([{"query": "1 + 1", "positive": "2", "negative": "3"}])
    >>> load_groups(rows)[0]
    {'query': '1 + 1', 'passages': ['2', '3'], 'labels': [1.0, 0.0]}
    """
    if isinstance(source, str | os.PathLike):
        path = file_of(source)
        if path is not None:
            if any(option is not None for option in (name, revision, token)):
                raise ValueError(
                    f"name, revision and token are for a data set on the Hub, but {str(path)!r} is a file, found "
                    f"name={name!r}, revision={revision!r}. Leave them out."
                )
            if streaming:
                source = stream_file(path, split)
            else:
                source, corpus = read_file(path, split, corpus=corpus)
        else:
            source = datasets.load_dataset(
                str(source),
                name,
                split=split,
                revision=revision,
                token=token,
                streaming=streaming,
                cache_dir=cache_of(source),
            )
    elif streaming and not isinstance(source, datasets.IterableDataset):
        raise ValueError(f"streaming=True is for a path or a Hub id, found a {type(source).__name__}. Leave it out.")
    return to_groups(
        source,
        queries=None if queries is None else read_table(queries, "queries", token=token),
        corpus=None if corpus is None else read_table(corpus, "corpus", token=token),
        scores_are=scores_are,
        num_negatives=num_negatives,
        seed=seed,
    )


def to_groups(
    dataset: datasets.Dataset | datasets.IterableDataset,
    *,
    queries: Source | None = None,
    corpus: Source | None = None,
    scores_are: str | None = None,
    num_negatives: int = 15,
    seed: int = 0,
) -> datasets.Dataset | datasets.IterableDataset:
    """Groups from rows of any layout that :mod:`rerank_trainer.data.layouts` knows, every value of them checked.

    One log line says which layout was recognised and what each column was taken for. No row is dropped. Ids become text
    and numbers float; rows that are groups already come back as they are. A stream becomes a stream of groups, whose
    values are checked when they are read; its layout must make a group of each row.

    Args:
        dataset: The rows, or a stream of them.
        queries: Where the rows name queries by id alone: the table with their ids and texts, as a ``datasets.Dataset``,
            a path, or the id of a data set on the Hub, of which the configuration or split ``queries`` is taken.
        corpus: The same for passages, from the configuration or split ``corpus``, ``documents`` or ``passages``.
        scores_are: What a column ``score`` or ``scores`` holds, where its place does not say: ``"labels"`` (given
            relevance, 0 or more) or ``"teacher_scores"`` (a teacher's outputs, any scale).
        num_negatives: How many negatives each group gets when the rows have none; otherwise without effect. They are
            passages of other rows, distinct, and never a positive of the same query.
        seed: Decides those negatives, together with the index of the row.

    Returns:
        Groups, with the columns ``query``, ``passages``, ``labels`` and/or ``teacher_scores``, and those of
        ``query_id``, ``passage_ids``, ``instruction``, ``source``, ``weight``, ``passage_weights``,
        ``missed_gains`` that the rows have.

    Raises:
        ValueError: No layout is recognised, more than one is, or the role of a column is open; or a value is missing,
            empty, not finite, negative where that has no meaning, or one of lists that differ in length; or a table
            that is needed is not given, or lacks an id.

    >>> rows = [{"question": "1 + 1", "docs": ["3", "2"], "labels": [0, 1]}]
    >>> to_groups(datasets.Dataset.from_list(rows))[0]
    {'query': '1 + 1', 'passages': ['3', '2'], 'labels': [0.0, 1.0]}
    """
    _check_dataset(dataset)
    if scores_are not in (None, "labels", "teacher_scores"):
        raise ValueError(f"scores_are must be 'labels', 'teacher_scores' or None, found {scores_are!r}")
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be 1 or more, found {num_negatives}")

    if isinstance(dataset, datasets.IterableDataset):
        return stream_to_groups(dataset, scores_are=scores_are)
    layout, roles = recognise(dataset.features, scores_are)
    _log_layout(dataset, layout, roles)
    tables = tables_for(roles, queries=queries, corpus=corpus)
    check_rows(dataset, roles)
    groups = layout.convert(dataset, roles, Draw(num_negatives, seed))
    groups = with_texts(groups, dataset, roles, tables)
    _log_counts(groups)
    return groups


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = list(dataset)
        meant = "train" if "train" in splits or not splits else splits[0]
        raise ValueError(f"expected one split, found the splits {splits}. Did you mean dataset[{meant!r}]?")
    if isinstance(dataset, datasets.IterableDataset):
        return
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"expected a datasets.Dataset, found a {type(dataset).__name__}. Make one with "
            "datasets.Dataset.from_list([...]), or give load_groups a path or the id of a data set on the Hub."
        )
    if len(dataset) == 0:
        raise ValueError(f"expected one row or more, found none in a data set with the columns {dataset.column_names}")


def _log_layout(dataset: datasets.Dataset, layout: Layout, roles: Roles) -> None:
    logger.info(
        "%d rows of the layout %r: %s; left out: %s",
        len(dataset),
        layout.name,
        ", ".join(f"{' '.join(names_of(roles, role))} as {role}" for role in dict.fromkeys(roles.values())),
        ", ".join(unused_leaves(dataset.features, roles)) or "nothing",
    )


def _log_counts(groups: datasets.Dataset) -> None:
    num_passages, num_without_positive = 0, 0
    of_passages = groups.select_columns(["labels" if "labels" in groups.column_names else "passages"])
    for table in of_passages.with_format("arrow").iter(10_000):
        lists = table.column(0).combine_chunks()
        num_passages += pc.sum(pc.list_value_length(lists)).as_py()
        if "labels" in groups.column_names:
            positives = pc.greater(pc.list_flatten(lists), 0)
            num_without_positive += len(lists) - len(pc.unique(pc.list_parent_indices(lists).filter(positives)))
    without = f"{num_without_positive} groups have no positive label"
    logger.info(
        "%d groups with %d passages in all; %s",
        len(groups),
        num_passages,
        without if "labels" in groups.column_names else "they have no labels, only teacher scores",
    )
