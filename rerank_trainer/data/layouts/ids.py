"""Layouts by id: rows that name queries or passages, whose texts stand in other tables (``queries=``, ``corpus=``)."""

from __future__ import annotations

import re

from rerank_trainer.data.columns import fits
from rerank_trainer.data.conversions import (
    Roles,
    from_candidate_ids,
    from_labelled_pairs,
    from_n_tuples,
    from_positives_and_negatives,
)
from rerank_trainer.data.layouts.flat import relevance_of_pair, scores_of_n_tuple
from rerank_trainer.data.layouts.layout import (
    LABEL,
    OF_QUERY,
    PASSAGE_ID,
    PASSAGES,
    QUERY,
    RELEVANCE,
    SCORE,
    TEACHER_SCORE,
    Features,
    Layout,
    has,
    one,
    taken,
    two_for_one,
)

_QUERY_ID = ("query_id", "qid", "question_id")
_LISTED_IDS = ("passage_ids", "document_ids", "doc_ids", "docids", "corpus_ids")
_NEGATIVE_ID = re.compile(r"negative_id(?:_(\d+))?|negative_(\d+)_id")


def _query(features: Features) -> Roles:
    """The query's id, and its text where the rows have it; nothing where they have the passages' texts themselves."""
    if any(has(features, name, "passage") or has(features, name, "passages") for name in PASSAGES):
        return {}
    return taken(features, {"query_id": _QUERY_ID, "query": QUERY})


def _recognise_id_n_tuple(features: Features, scores_are: str | None) -> Roles | None:
    numbers = {name: int(match[1] or match[2] or 0) for name in features if (match := _NEGATIVE_ID.fullmatch(name))}
    negatives = [n for n in sorted(numbers, key=numbers.__getitem__) if fits(features[n], "negative_id")]
    roles = _query(features)
    if not roles or not negatives or not has(features, "positive_id", "positive_id"):
        return None
    roles |= {"positive_id": "positive_id"} | dict.fromkeys(negatives, "negative_id")
    return roles | scores_of_n_tuple(features, len(negatives), scores_are)


def _recognise_id_list(features: Features, scores_are: str | None) -> Roles | None:
    ids = _one_list(features, _LISTED_IDS, "candidate_ids")
    roles = _query(features)
    if ids is None or not roles:
        return None
    roles[ids] = "candidate_ids"
    for names, role in ((LABEL, "labels"), (TEACHER_SCORE, "teacher_scores"), (SCORE, scores_are or "teacher_scores")):
        name = _one_list(features, names, role)
        roles |= {} if name is None else {name: role}
    return roles


def _recognise_id_pairs(features: Features, scores_are: str | None) -> Roles | None:
    if not one(features, PASSAGE_ID, "passage_id") or not any(has(features, n, "teacher_score") for n in RELEVANCE):
        return None
    roles = _query(features)
    if not roles:
        return None
    return roles | taken(features, {"passage_id": PASSAGE_ID}) | relevance_of_pair(features, scores_are)


def _recognise_nemo_by_id(features: Features, scores_are: str | None) -> Roles | None:
    leaves = {"pos_doc.id": "pos_ids", "neg_doc.id": "neg_ids"}
    if "query" not in (roles := _query(features)).values() or not all(has(features, n, r) for n, r in leaves.items()):
        return None
    texts = ("pos_doc.text", "neg_doc.text")
    return None if any(has(features, name, "pos") for name in texts) else roles | leaves


def _one_list(features: Features, names: tuple[str, ...], role: str) -> str | None:
    """As :func:`one`, and lists may be written out as texts, as PyLate and LightOn do."""
    found = [name for name in names if has(features, name, role) or has(features, name, "positive")]
    if len(found) > 1:
        raise two_for_one(role, found)
    return found[0] if found else None


IDS = (
    Layout(
        "id n-tuple",
        "query_id, positive_id, negative_id or negative_id_1, ..., with scores as in n-tuple; needs queries=, corpus=",
        _recognise_id_n_tuple,
        from_n_tuples,
        row_wise=False,
    ),
    Layout(
        "id list",
        "query_id, doc_ids|document_ids|passage_ids (list of ids, or a text that holds one), optionally labels or "
        "scores (the same of numbers; without them the order counts); needs queries=, corpus=",
        _recognise_id_list,
        from_candidate_ids,
        row_wise=False,
        keeps=(*OF_QUERY, "missed_gains"),
    ),
    Layout(
        "id pairs",
        "query_id, doc_id|docid|passage_id, score|label|relevance (number), optionally rank; the rows of one query "
        "become one group; needs queries=, corpus=",
        _recognise_id_pairs,
        from_labelled_pairs,
        row_wise=False,
    ),
    Layout(
        "nemo by id",
        "question|query, pos_doc and neg_doc (lists of {id}); needs corpus=",
        _recognise_nemo_by_id,
        from_positives_and_negatives,
        row_wise=False,
    ),
)
