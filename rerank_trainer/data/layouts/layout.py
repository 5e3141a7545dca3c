"""Layout: what one row shape has to say of itself, and the questions that recognising one asks of column types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from rerank_trainer.data.columns import describe, fits
from rerank_trainer.data.conversions import Draw, Roles

Features = Mapping[str, Any]

QUERY = ("query", "question", "anchor")
PASSAGE = ("passage", "document", "doc", "text", "answer", "response", "positive")
# mine_hard_negatives of sentence-transformers leaves its lists of passages under the name of the positive column.
PASSAGES = ("passages", "documents", "docs", *PASSAGE)
PASSAGE_ID = ("passage_id", "document_id", "doc_id", "docid", "corpus_id")
LABEL, SCORE, TEACHER_SCORE = ("labels", "label", "relevance"), ("scores", "score"), ("teacher_scores", "teacher_score")
RELEVANCE = (*LABEL, *SCORE, *TEACHER_SCORE)

# What a query brings with it in any layout, and what else is kept where a row is already a list of passages.
OF_QUERY = ("query_id", "instruction", "source", "weight")
OF_LIST = ("passage_ids", "passage_weights", "missed_gains")


@dataclass(frozen=True)
class Layout:
    """A row shape.

    Attributes:
        name: What the log and the errors call it.
        columns: The columns that make it, in words.
        recognise: From the types of columns and leaves and ``scores_are`` to the role of each column, or None. It
            raises ``ValueError`` where the layout is certain but the role of a column is not.
        convert: From checked rows, the roles and a :class:`Draw` to groups.
        row_wise: Whether each row becomes one group, for which no other row and no table of texts is needed.
        keeps: Optional columns of a group that are kept where the rows have them.
    """

    name: str
    columns: str
    recognise: Callable[[Features, str | None], Roles | None]
    convert: Callable[[datasets.Dataset, Roles, Draw], datasets.Dataset]
    row_wise: bool = True
    keeps: tuple[str, ...] = OF_QUERY


def has(features: Features, name: str, role: str) -> bool:
    """Whether there is such a column or leaf, of a type that can play the role."""
    return name in features and fits(features[name], role)


def one(features: Features, names: tuple[str, ...], role: str) -> str | None:
    """The one of these columns that can play the role, None if there is none; more than one are refused."""
    found = [name for name in names if has(features, name, role)]
    if len(found) > 1:
        raise two_for_one(role, found)
    return found[0] if found else None


def taken(features: Features, names: Mapping[str, tuple[str, ...]]) -> Roles:
    """The columns that play these roles: role to possible names in, column to role out."""
    found = {role: one(features, candidates, role) for role, candidates in names.items()}
    return {name: role for role, name in found.items() if name is not None}


def relevance(features: Features, label: str, teacher_score: str, scores_are: str | None) -> Roles:
    """The columns that say how relevant the passages are; ``score`` and ``scores`` can be either, so they are asked."""
    roles = taken(features, {label: LABEL, teacher_score: TEACHER_SCORE})
    score = one(features, SCORE, teacher_score)
    if score is not None and scores_are is None:
        raise ValueError(
            f"column {score!r} can be labels (given relevance, 0 or more) or teacher_scores (a teacher's outputs, any "
            f"scale), among the columns {in_words(features)}. Say which with scores_are='labels' or "
            "scores_are='teacher_scores', or leave it out with dataset.remove_columns([...])."
        )
    role = label if scores_are == "labels" else teacher_score
    return roles | ({} if score is None else {score: role})


def both_scored(features: Features, pos: str, neg: str) -> Roles:
    """A teacher's scores of the positives and of the negatives: both columns or none, one alone is refused."""
    scores = {name: role for name, role in ((pos, "pos_scores"), (neg, "neg_scores")) if has(features, name, role)}
    if len(scores) == 1:
        raise ValueError(
            f"column {next(iter(scores))!r} is there but not the other of {pos} and {neg} (columns "
            f"{in_words(features)}). A teacher has to score every passage: add the other or remove "
            f"{next(iter(scores))!r}."
        )
    return scores


def in_words(features: Features) -> str:
    """Columns with their types, for a message."""
    return ", ".join(f"{name} ({describe(feature)})" for name, feature in features.items())


def two_for_one(role: str, names: list[str]) -> ValueError:
    """The error about columns that could each play a role that only one may play."""
    columns = " and ".join(repr(name) for name in names)
    return ValueError(
        f"columns {columns} could each be the {role}. Leave out those that are not, with dataset.remove_columns([...])."
    )
