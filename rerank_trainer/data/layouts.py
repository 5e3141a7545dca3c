"""Layouts: the row shapes that people already have, each with how it is recognised and how it becomes groups.

Adding a layout is adding one row to ``LAYOUTS``: a name, its columns in words, a function that recognises it by column
names and types (never by the order of columns), and a function that converts rows which have been checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from rerank_trainer.data.columns import GROUP_FEATURES, ROLES, describe, fits
from rerank_trainer.data.conversions import (
    Draw,
    Roles,
    from_bare_pairs,
    from_flag_embedding,
    from_labelled_pairs,
    from_n_tuples,
    names_of,
    rename,
)

_QUERY = ("query", "question", "anchor")
_PASSAGE = ("passage", "document", "doc", "text", "answer", "response", "positive")
# mine_hard_negatives of sentence-transformers leaves its lists of passages under the name of the positive column.
_PASSAGES = ("passages", "documents", "docs", *_PASSAGE)
_LABEL, _SCORE, _TEACHER_SCORE = ("labels", "label"), ("scores", "score"), ("teacher_scores", "teacher_score")
_RELEVANCE = (*_LABEL, *_SCORE, *_TEACHER_SCORE)
_NEGATIVE = re.compile(r"negative(?:_(\d+))?")

# What a query brings with it in any layout, and what else is kept where a row is already a list of passages.
_OF_QUERY = ("query_id", "instruction", "source", "weight")
_OF_LIST = ("passage_ids", "passage_weights", "missed_gains")


@dataclass(frozen=True)
class Layout:
    """A row shape.

    Attributes:
        name: What the log and the errors call it.
        columns: The columns that make it, in words.
        recognise: From features and ``scores_are`` to the role of each column, or None. It raises ``ValueError`` where
            the layout is certain but the role of a column is not.
        convert: From checked rows, the roles and a :class:`Draw` to groups.
        keeps: Optional columns of a group that are kept where the rows have them.
    """

    name: str
    columns: str
    recognise: Callable[[Mapping[str, Any], str | None], Roles | None]
    convert: Callable[[datasets.Dataset, Roles, Draw], datasets.Dataset]
    keeps: tuple[str, ...] = _OF_QUERY


def recognise(features: Mapping[str, Any], scores_are: str | None = None) -> tuple[Layout, Roles]:
    """The one layout that has these columns, and the role of each column that is used.

    Args:
        features: Column name to type, as in ``dataset.features``.
        scores_are: ``"labels"`` or ``"teacher_scores"``: the role of a column named ``score`` or ``scores``.

    Raises:
        ValueError: No layout or more than one matches; a column could play two roles, or two columns one role; or a
            column with the name of a group's column cannot be used as that.

    >>> layout, roles = recognise({"question": datasets.Value("string"), "answer": datasets.Value("string")})
    >>> layout.name, roles
    ('bare pairs', {'question': 'query', 'answer': 'positive'})
    """
    found = [(layout, roles) for layout in LAYOUTS if (roles := layout.recognise(features, scores_are)) is not None]
    if len(found) != 1:
        told = "more than one layout matches" if found else "no layout matches"
        candidates = [layout for layout, _ in found] or LAYOUTS
        raise ValueError(
            f"{told} the columns {_in_words(features)}. Rename columns with dataset.rename_columns({{...}}) and leave "
            "others out with dataset.remove_columns([...]), so that one of these is left:\n"
            + "\n".join(f"- {layout.name}: {layout.columns}" for layout in candidates)
        )
    layout, roles = found[0]
    roles |= {name: name for name in layout.keeps if name in features and fits(features[name], name)}
    _check_roles(layout, roles, features)
    return layout, roles


def _check_roles(layout: Layout, roles: Roles, features: Mapping[str, Any]) -> None:
    for role, count in Counter(roles.values()).items():
        if count > 1 and role != "negative":
            raise _two_for_one(role, names_of(roles, role))
    unused = [name for name in features if name in GROUP_FEATURES and name not in roles]
    if unused:
        name = unused[0]
        raise ValueError(
            f"column {name!r} has the name of a group's column, but the layout {layout.name!r} cannot use it as "
            f"{describe(features[name])} (columns {_in_words(features)}). A group's {name} is {_kind_in_words(name)}: "
            "convert, rename or remove the column."
        )


def _recognise_groups(features: Mapping[str, Any], scores_are: str | None) -> Roles | None:
    roles = {name: name for name in ("query", "passages", "labels", "teacher_scores") if _has(features, name, name)}
    if not {"query", "passages"} <= roles.keys() or not {"labels", "teacher_scores"} & roles.keys():
        return None
    # With `scores` beside them somebody has to say what those are: a labelled list.
    return None if any(_has(features, name, "teacher_scores") for name in _SCORE) else roles


def _recognise_labelled_list(features: Mapping[str, Any], scores_are: str | None) -> Roles | None:
    if _recognise_groups(features, scores_are) or not any(_has(features, n, "teacher_scores") for n in _RELEVANCE):
        return None
    if _one(features, _PASSAGES, "passages") is None or _one(features, _QUERY, "query") is None:
        return None
    roles = _taken(features, {"query": _QUERY, "passages": _PASSAGES})
    return roles | _relevance(features, "labels", "teacher_scores", scores_are)


def _recognise_labelled_pairs(features: Mapping[str, Any], scores_are: str | None) -> Roles | None:
    if _negatives(features) or not any(_has(features, name, "teacher_score") for name in _RELEVANCE):
        return None
    if _one(features, _PASSAGE, "passage") is None or _one(features, _QUERY, "query") is None:
        return None
    roles = _taken(features, {"query": _QUERY, "passage": _PASSAGE})
    return roles | _relevance(features, "label", "teacher_score", scores_are)


def _recognise_n_tuple(features: Mapping[str, Any], scores_are: str | None) -> Roles | None:
    negatives = [name for name in _negatives(features) if fits(features[name], "negative")]
    if not negatives or _one(features, _PASSAGE, "positive") is None or _one(features, _QUERY, "query") is None:
        return None
    roles = _taken(features, {"query": _QUERY, "positive": _PASSAGE}) | dict.fromkeys(negatives, "negative")
    for name in _RELEVANCE:
        if _has(features, name, "teacher_scores"):
            by_name = "labels" if name == "labels" else "teacher_scores"
            roles[name] = scores_are if scores_are and name in ("label", *_SCORE) else by_name
        elif _has(features, name, "margin"):
            roles[name] = _margin(name, len(negatives), scores_are)
    if {"margin", "teacher_scores"} <= set(roles.values()):
        raise _two_for_one("teacher_scores", names_of(roles, "margin") + names_of(roles, "teacher_scores"))
    return roles


def _margin(name: str, num_negatives: int, scores_are: str | None) -> str:
    """The role of a single number beside a positive and its negatives; refuses what is no margin of a teacher."""
    if num_negatives > 1:
        raise ValueError(
            f"column {name!r} holds one number, which can only be the margin between the positive and one negative, "
            f"but there are {num_negatives} columns of negatives. Give a list of teacher scores, one for each passage."
        )
    if scores_are == "labels" or (name not in _SCORE and scores_are is None):
        raise ValueError(
            f"column {name!r} holds one number beside a positive and a negative, which have labels already. If it is "
            "a teacher's margin say scores_are='teacher_scores', else leave it out with dataset.remove_columns([...])."
        )
    return "margin"


def _recognise_flag_embedding(features: Mapping[str, Any], scores_are: str | None) -> Roles | None:
    if not (_has(features, "pos", "pos") and _has(features, "neg", "neg")) or not _one(features, _QUERY, "query"):
        return None
    roles = _taken(features, {"query": _QUERY}) | {"pos": "pos", "neg": "neg"}
    scores = [name for name in ("pos_scores", "neg_scores") if _has(features, name, name)]
    if len(scores) == 1:
        raise ValueError(
            f"column {scores[0]!r} is there but not the other of pos_scores and neg_scores (columns "
            f"{_in_words(features)}). A teacher has to score every passage: add the other or remove {scores[0]!r}."
        )
    roles |= {name: name for name in scores}
    return roles | ({"prompt": "instruction"} if _has(features, "prompt", "instruction") else {})


def _recognise_bare_pairs(features: Mapping[str, Any], scores_are: str | None) -> Roles | None:
    if _negatives(features) or any(name in features for name in (*_RELEVANCE, "pos", "neg")):
        return None
    if _one(features, _PASSAGE, "positive") is None or _one(features, _QUERY, "query") is None:
        return None
    return _taken(features, {"query": _QUERY, "positive": _PASSAGE})


def _relevance(features: Mapping[str, Any], label: str, teacher_score: str, scores_are: str | None) -> Roles:
    """The columns that say how relevant the passages are; ``score`` and ``scores`` can be either, so they are asked."""
    roles = _taken(features, {label: _LABEL, teacher_score: _TEACHER_SCORE})
    score = _one(features, _SCORE, teacher_score)
    if score is not None and scores_are is None:
        raise ValueError(
            f"column {score!r} can be labels (given relevance, 0 or more) or teacher_scores (a teacher's outputs, any "
            f"scale), among the columns {_in_words(features)}. Say which with scores_are='labels' or "
            "scores_are='teacher_scores', or leave it out with dataset.remove_columns([...])."
        )
    role = label if scores_are == "labels" else teacher_score
    return roles | ({} if score is None else {score: role})


def _taken(features: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> Roles:
    found = {role: _one(features, candidates, role) for role, candidates in names.items()}
    return {name: role for role, name in found.items() if name is not None}


def _one(features: Mapping[str, Any], names: tuple[str, ...], role: str) -> str | None:
    found = [name for name in names if _has(features, name, role)]
    if len(found) > 1:
        raise _two_for_one(role, found)
    return found[0] if found else None


def _has(features: Mapping[str, Any], name: str, role: str) -> bool:
    return name in features and fits(features[name], role)


def _negatives(features: Mapping[str, Any]) -> list[str]:
    """The columns ``negative``, ``negative_1``, ... in the order of their numbers, whatever their type."""
    numbers = {name: int(match[1] or 0) for name in features if (match := _NEGATIVE.fullmatch(name))}
    return sorted(numbers, key=numbers.__getitem__)


def _in_words(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({describe(feature)})" for name, feature in features.items())


def _kind_in_words(role: str) -> str:
    return f"a list of {ROLES[role].holds}s" if ROLES[role].is_list else f"one {ROLES[role].holds}"


def _two_for_one(role: str, names: list[str]) -> ValueError:
    columns = " and ".join(repr(name) for name in names)
    return ValueError(
        f"columns {columns} could each be the {role}. Leave out those that are not, with dataset.remove_columns([...])."
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "groups",
        "query, passages (list of text), labels and/or teacher_scores (lists of numbers)",
        _recognise_groups,
        rename,
        keeps=(*_OF_QUERY, *_OF_LIST),
    ),
    Layout(
        "labelled list",
        "query, docs|documents|passages (list of text), labels|scores (list of numbers)",
        _recognise_labelled_list,
        rename,
        keeps=(*_OF_QUERY, *_OF_LIST),
    ),
    Layout(
        "labelled pairs",
        "query, passage (text), label|score (number); the rows of one query become one group",
        _recognise_labelled_pairs,
        from_labelled_pairs,
    ),
    Layout(
        "n-tuple",
        "query, positive (text), negative or negative_1, negative_2, ... (text), with one negative optionally score (a "
        "teacher's margin), or score|scores|label (list of teacher scores) or labels (list)",
        _recognise_n_tuple,
        from_n_tuples,
    ),
    Layout(
        "flag_embedding",
        "query, pos (list of text), neg (list of text), optionally pos_scores and neg_scores (lists of a teacher's "
        "scores), prompt (instruction)",
        _recognise_flag_embedding,
        from_flag_embedding,
    ),
    Layout(
        "bare pairs",
        "query, positive (text) and no labels, scores or negatives: negatives are drawn from the other rows",
        _recognise_bare_pairs,
        from_bare_pairs,
    ),
)
