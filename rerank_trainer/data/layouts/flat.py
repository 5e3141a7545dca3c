"""Flat layouts: texts and numbers in columns of their own, or in lists of their own."""

from __future__ import annotations

import re
from typing import Any

from rerank_trainer.data.columns import fits, is_of_named_teacher
from rerank_trainer.data.conversions import (
    Roles,
    from_bare_pairs,
    from_labelled_pairs,
    from_n_tuples,
    from_permutations,
    from_positives_and_negatives,
    names_of,
    rename,
)
from rerank_trainer.data.layouts.layout import (
    LABEL,
    OF_LIST,
    OF_QUERY,
    PASSAGE,
    PASSAGE_ID,
    PASSAGES,
    QUERY,
    RELEVANCE,
    SCORE,
    Features,
    Layout,
    both_scored,
    has,
    in_words,
    one,
    relevance,
    taken,
    two_for_one,
)
from rerank_trainer.data.leaves import is_json

_NEGATIVE = re.compile(r"negative(?:_(\d+))?")
# Lists of positives and of negatives, where `positive` and `negative` are those of collections for evaluation (MTEB).
_POSITIVES_AND_NEGATIVES = (("pos", "neg"), ("positive", "negative"), ("positives", "negatives"))
# What tells rows that hold negatives from bare pairs, whatever its type.
_WITH_NEGATIVES = (*RELEVANCE, "pos", "neg", "rejected_response", "negatives")


def _recognise_groups(features: Features, scores_are: str | None) -> Roles | None:
    roles = {name: name for name in ("query", "passages", "labels", "teacher_scores") if has(features, name, name)}
    scored = {"labels", "teacher_scores"} & roles.keys() or (
        any(is_of_named_teacher(name) and fits(feature, name) for name, feature in features.items())
        # by another name they belong to a labelled list
        and not any(has(features, name, "teacher_scores") for name in RELEVANCE)
    )
    if not {"query", "passages"} <= roles.keys() or not scored:
        return None
    # With `scores` beside them somebody has to say what those are: a labelled list.
    if any(has(features, name, "teacher_scores") for name in SCORE) or _recognise_permutation(features, scores_are):
        return None
    return roles


def _recognise_labelled_list(features: Features, scores_are: str | None) -> Roles | None:
    if _recognise_groups(features, scores_are) or _recognise_permutation(features, scores_are):
        return None
    if not any(has(features, name, "teacher_scores") for name in RELEVANCE):
        return None
    if one(features, PASSAGES, "passages") is None or one(features, QUERY, "query") is None:
        return None
    roles = taken(features, {"query": QUERY, "passages": PASSAGES})
    return roles | relevance(features, "labels", "teacher_scores", scores_are)


def _recognise_permutation(features: Features, scores_are: str | None) -> Roles | None:
    roles = taken(features, {"query": QUERY, "passages": PASSAGES, "labels": LABEL})
    if not {"query", "passages"} <= set(roles.values()) or not has(features, "permutation", "permutation"):
        return None
    return roles | {"permutation": "permutation"}


def _recognise_labelled_pairs(features: Features, scores_are: str | None) -> Roles | None:
    if _negatives(features) or not any(has(features, name, "teacher_score") for name in RELEVANCE):
        return None
    # RAG-Retrieval calls it `content`, a name that stands for other things beside a passage of another name.
    passages = PASSAGE if one(features, PASSAGE, "passage") else ("content",)
    if one(features, passages, "passage") is None or one(features, QUERY, "query") is None:
        return None
    roles = taken(features, {"query": QUERY, "passage": passages, "passage_id": PASSAGE_ID})
    if "text" in roles and has(features, "title", "title"):
        roles["title"] = "title"
    return roles | relevance_of_pair(features, scores_are)


def relevance_of_pair(features: Features, scores_are: str | None) -> Roles:
    """What says how relevant one passage is; beside a rank the score is a first stage's or a teacher's and no label."""
    ranked = has(features, "rank", "margin")
    return relevance(features, "label", "teacher_score", "teacher_scores" if ranked else scores_are)


def _recognise_n_tuple(features: Features, scores_are: str | None) -> Roles | None:
    negatives = [name for name in _negatives(features) if fits(features[name], "negative")]
    if not negatives or one(features, PASSAGE, "positive") is None or one(features, QUERY, "query") is None:
        return None
    roles = taken(features, {"query": QUERY, "positive": PASSAGE}) | dict.fromkeys(negatives, "negative")
    return roles | scores_of_n_tuple(features, len(negatives), scores_are)


def scores_of_n_tuple(features: Features, num_negatives: int, scores_are: str | None) -> Roles:
    """The scores beside a positive and its negatives: a list with one for each, or a margin over one negative."""
    roles: Roles = {}
    for name in RELEVANCE:
        if has(features, name, "teacher_scores"):
            by_name = "labels" if name in ("labels", "relevance") else "teacher_scores"
            roles[name] = scores_are if scores_are and name in ("label", *SCORE) else by_name
        elif has(features, name, "margin"):
            roles[name] = _margin(name, num_negatives, scores_are)
    if {"margin", "teacher_scores"} <= set(roles.values()):
        raise two_for_one("teacher_scores", names_of(roles, "margin") + names_of(roles, "teacher_scores"))
    return roles


def _margin(name: str, num_negatives: int, scores_are: str | None) -> str:
    """The role of a single number beside a positive and its negatives; refuses what is no margin of a teacher."""
    if num_negatives > 1:
        raise ValueError(
            f"column {name!r} holds one number, which can only be the margin between the positive and one negative, "
            f"but there are {num_negatives} columns of negatives. Give a list of teacher scores, one for each passage."
        )
    if scores_are == "labels" or (name not in SCORE and scores_are is None):
        raise ValueError(
            f"column {name!r} holds one number beside a positive and a negative, which have labels already. If it is "
            "a teacher's margin say scores_are='teacher_scores', else leave it out with dataset.remove_columns([...])."
        )
    return "margin"


def _recognise_flag_embedding(features: Features, scores_are: str | None) -> Roles | None:
    found = [(p, n) for p, n in _POSITIVES_AND_NEGATIVES if has(features, p, "pos") and has(features, n, "neg")]
    if not found or not one(features, QUERY, "query"):
        return None
    if len(found) > 1:
        raise two_for_one("pos", [pos for pos, _ in found])
    pos, neg = found[0]
    roles = taken(features, {"query": QUERY}) | {pos: "pos", neg: "neg"}
    roles |= both_scored(features, "pos_scores", "neg_scores")
    return roles | ({"prompt": "instruction"} if has(features, "prompt", "instruction") else {})


def _recognise_nemo(features: Features, scores_are: str | None) -> Roles | None:
    roles = taken(features, {"query": QUERY})
    for name, role in (("pos_doc", "pos"), ("neg_doc", "neg")):
        leaves = [leaf for leaf in (name, f"{name}.text") if leaf in features and _one_or_more(features[leaf])]
        roles |= dict.fromkeys(leaves, role)
    roles |= {"question_id": "query_id"} if has(features, "question_id", "query_id") else {}
    return roles if {"query", "pos", "neg"} <= set(roles.values()) else None


def _recognise_ms_swift_response(features: Features, scores_are: str | None) -> Roles | None:
    roles = taken(features, {"query": QUERY})
    names = ("response", "rejected_response")
    if not roles or not all(name in features and _one_or_more(features[name]) for name in names):
        return None
    return roles | {"response": "pos", "rejected_response": "neg"}


def _one_or_more(feature: Any) -> bool:
    """A text, a list of texts, or in some rows the one and in some the other."""
    return fits(feature, "positive") or fits(feature, "pos") or is_json(feature)


def _recognise_bare_pairs(features: Features, scores_are: str | None) -> Roles | None:
    if _negatives(features) or any(name in features for name in _WITH_NEGATIVES):
        return None
    if one(features, PASSAGE, "positive") is None or one(features, QUERY, "query") is None:
        return None
    roles = taken(features, {"query": QUERY, "positive": PASSAGE})
    if "text" in roles and any(name in features for name in ("docid", "doc_id", "rank")):
        raise ValueError(
            f"the columns {in_words(features)} are a query and its candidates, as rerankers get them, but none says "
            "how relevant a candidate is: label, labels or relevance (given relevance), score (say scores_are=...) or "
            "teacher_score is missing. Add one. If every passage answers its query, remove docid, doc_id and rank."
        )
    return roles


def _negatives(features: Features) -> list[str]:
    """The columns ``negative``, ``negative_1``, ... in the order of their numbers, whatever their type."""
    numbers = {name: int(match[1] or 0) for name in features if (match := _NEGATIVE.fullmatch(name))}
    return sorted(numbers, key=numbers.__getitem__)


FLAT = (
    Layout(
        "groups",
        "query, passages (list of text), labels and/or teacher_scores, or teacher_scores_<name> of several teachers "
        "(lists of numbers)",
        _recognise_groups,
        rename,
        keeps=(*OF_QUERY, *OF_LIST),
    ),
    Layout(
        "labelled list",
        "query, docs|documents|passages (list of text), labels|scores (list of numbers)",
        _recognise_labelled_list,
        rename,
        keeps=(*OF_QUERY, *OF_LIST),
    ),
    Layout(
        "permutation",
        "query, docs|documents|passages (list of text), permutation (a text such as '[2] > [1] > [3]', or a list of "
        "places counted from 1, best first), optionally labels",
        _recognise_permutation,
        from_permutations,
        keeps=(*OF_QUERY, *OF_LIST),
    ),
    Layout(
        "labelled pairs",
        "query, passage (text), label|relevance|score (number), optionally docid|doc_id (passage_ids) and, before a "
        "column text, title; the rows of one query become one group",
        _recognise_labelled_pairs,
        from_labelled_pairs,
        row_wise=False,
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
        "query, pos|positive (list of text), neg|negative (list of text), optionally pos_scores and neg_scores (lists "
        "of a teacher's scores), prompt (instruction)",
        _recognise_flag_embedding,
        from_positives_and_negatives,
    ),
    Layout(
        "nemo",
        "query, pos_doc, neg_doc (each a text, {text}, or a list of them)",
        _recognise_nemo,
        from_positives_and_negatives,
    ),
    Layout(
        "ms_swift response",
        "query, response, rejected_response (each a text or a list of texts)",
        _recognise_ms_swift_response,
        from_positives_and_negatives,
    ),
    Layout(
        "bare pairs",
        "query, positive (text) and no labels, scores or negatives: negatives are drawn from the other rows",
        _recognise_bare_pairs,
        from_bare_pairs,
        row_wise=False,
    ),
)
