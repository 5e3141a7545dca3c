"""Nested layouts: passages that are objects, conversations or lists inside an object; their leaves play the roles."""

from __future__ import annotations

from rerank_trainer.data.conversions import (
    Roles,
    from_best_first,
    from_n_tuples,
    from_positive_first,
    from_positives_and_negatives,
    rename,
)
from rerank_trainer.data.layouts.layout import (
    OF_LIST,
    OF_QUERY,
    QUERY,
    SCORE,
    Features,
    Layout,
    both_scored,
    has,
    one,
    taken,
)


def _recognise_tevatron(features: Features, scores_are: str | None) -> Roles | None:
    pos, neg = "positive_passages", "negative_passages"
    texts = {f"{pos}.text": "pos", f"{neg}.text": "neg"}
    if not all(has(features, name, role) for name, role in texts.items()) or not one(features, QUERY, "query"):
        return None
    roles = taken(features, {"query": QUERY}) | texts
    titles = {f"{pos}.title": "pos_titles", f"{neg}.title": "neg_titles"}
    roles |= {name: role for name, role in titles.items() if has(features, name, role)}
    ids = {f"{pos}.docid": "pos_ids", f"{neg}.docid": "neg_ids"}
    roles |= ids if all(has(features, name, role) for name, role in ids.items()) else {}
    return roles | both_scored(features, f"{pos}.score", f"{neg}.score")


def _recognise_tevatron_distil(features: Features, scores_are: str | None) -> Roles | None:
    texts, scores = has(features, "passages.text", "passages"), one(features, SCORE, "teacher_scores")
    if not texts or scores is None or one(features, QUERY, "query") is None:
        return None
    roles = taken(features, {"query": QUERY}) | {"passages.text": "passages", scores: "teacher_scores"}
    optional = {"passages.title": "titles", "passages.docid": "passage_ids"}
    return roles | {name: role for name, role in optional.items() if has(features, name, role)}


def _recognise_hits(features: Features, scores_are: str | None) -> Roles | None:
    leaves = {"hits.content": "passages", "hits.label": "labels"}
    if not all(has(features, name, role) for name, role in leaves.items()) or not one(features, QUERY, "query"):
        return None
    return taken(features, {"query": QUERY}) | leaves


def _recognise_rankgpt(features: Features, scores_are: str | None) -> Roles | None:
    if "hits.label" in features or not has(features, "hits.content", "passages") or not one(features, QUERY, "query"):
        return None
    ids = {"hits.docid": "passage_ids"} if has(features, "hits.docid", "passage_ids") else {}
    return taken(features, {"query": QUERY}) | {"hits.content": "passages"} | ids


def _recognise_ms_marco(features: Features, scores_are: str | None) -> Roles | None:
    leaves = {"passages.passage_text": "passages", "passages.is_selected": "labels"}
    if not all(has(features, name, role) for name, role in leaves.items()) or not one(features, QUERY, "query"):
        return None
    return taken(features, {"query": QUERY}) | leaves


def _recognise_ms_swift(features: Features, scores_are: str | None) -> Roles | None:
    roles = {
        "messages.user": "query",
        "messages.system": "instruction",
        "positive_messages.content": "pos",
        "negative_messages.content": "neg",
    }
    return roles if all(has(features, name, role) for name, role in roles.items()) else None


def _recognise_preference(features: Features, scores_are: str | None) -> Roles | None:
    roles: Roles = {}
    for name, role in (("prompt", "query"), ("chosen", "positive"), ("rejected", "negative")):
        # The leaf of a conversation is the text of its only message.
        found = one(features, (name, f"{name}.content"), role)
        if found is None:
            return None
        roles[found] = role
    return roles | ({"margin": "margin"} if has(features, "margin", "margin") else {})


NESTED = (
    Layout(
        "tevatron",
        "query, positive_passages and negative_passages (lists of {text}, optionally with title, docid, score)",
        _recognise_tevatron,
        from_positives_and_negatives,
    ),
    Layout(
        "tevatron distil",
        "query, passages (list of {text}, optionally with title, docid; the first is the positive), scores (list of a "
        "teacher's scores)",
        _recognise_tevatron_distil,
        from_positive_first,
    ),
    Layout(
        "rag_retrieval",
        "query, hits (list of {content, label})",
        _recognise_hits,
        rename,
        keeps=(*OF_QUERY, *OF_LIST),
    ),
    Layout(
        "rankgpt",
        "query, hits (list of {content}, optionally with docid) in the order of a teacher, best first; rank and score "
        "of a hit are those of the first stage and not used",
        _recognise_rankgpt,
        from_best_first,
    ),
    Layout(
        "ms_marco",
        "query, passages ({passage_text, is_selected}, each a list)",
        _recognise_ms_marco,
        rename,
        keeps=(*OF_QUERY, *OF_LIST),
    ),
    Layout(
        "ms_swift",
        "messages (one of role user, optionally one of role system before it), positive_messages and "
        "negative_messages (lists of conversations of one message)",
        _recognise_ms_swift,
        from_positives_and_negatives,
    ),
    Layout(
        "preference",
        "prompt, chosen, rejected (each a text or a conversation of one message), optionally margin (number)",
        _recognise_preference,
        from_n_tuples,
    ),
)
