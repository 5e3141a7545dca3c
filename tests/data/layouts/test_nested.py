from __future__ import annotations

import json

import pytest
from datasets import Dataset, Features, List, Value

from rerank_trainer.data.columns import check_rows
from rerank_trainer.data.conversions import Draw
from rerank_trainer.data.formats import load_groups, to_groups
from rerank_trainer.data.layouts import recognise

TEXT, TEXTS, NUMBERS = Value("string"), List(Value("string")), List(Value("float64"))
MESSAGES = List({"role": TEXT, "content": TEXT})


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


TEVATRON = {
    "query_id": "q1",
    "query": "q",
    "positive_passages": [{"docid": "1", "title": "t", "text": "a", "score": 3.0}],
    "negative_passages": [
        {"docid": "2", "title": "", "text": "b", "score": 0.5},
        {"docid": "3", "title": "u", "text": "c", "score": -1.0},
    ],
}
DISTIL = {"query": "q", "passages": [{"title": "t", "text": "a"}, {"title": "u", "text": "b"}], "scores": [2.0, 1.0]}
HITS = {"query": "q", "hits": [{"content": "a", "label": 2}, {"content": "b", "label": 0}]}
MS_MARCO = {"query": "q", "query_id": 3, "passages": {"passage_text": ["a", "b"], "is_selected": [0, 1]}}
MS_SWIFT = {
    "messages": [{"role": "system", "content": "i"}, *user("q")],
    "positive_messages": [assistant("a"), user("b")],
    "negative_messages": [assistant("c")],
}
PREFERENCE = {"prompt": user("q"), "chosen": assistant("a"), "rejected": assistant("b")}
ALL = [TEVATRON, DISTIL, HITS, MS_MARCO, MS_SWIFT, PREFERENCE]


def groups_of(rows, **options):
    return list(to_groups(Dataset.from_list(rows), **options))


@pytest.mark.parametrize("row", ALL)
def test_the_order_of_columns_does_not_matter(row):
    reverse = dict(reversed(row.items()))

    assert groups_of([row]) == groups_of([reverse])


@pytest.mark.parametrize("row", ALL)
def test_a_row_becomes_its_own_group_also_in_a_batch_of_one(row):
    # What a stream does: recognise once, then check and convert batches.
    features = Dataset.from_list([row]).features
    layout, roles = recognise(features)
    batch = Dataset.from_list([row, row], features=features)

    check_rows(batch, roles)
    converted = layout.convert(batch, roles, Draw(num_negatives=1, seed=0))

    assert layout.row_wise
    assert list(converted) == groups_of([row]) * 2


def test_the_layouts_whose_rows_need_others_say_so():
    for features in (
        {"query": TEXT, "answer": TEXT},
        {"query": TEXT, "passage": TEXT, "label": Value("int64")},
        {"query_id": TEXT, "doc_ids": TEXTS},
    ):
        assert not recognise(features)[0].row_wise


def test_scores_inside_passages_are_a_teachers_and_docids_become_passage_ids():
    assert groups_of([TEVATRON]) == [
        {
            "query": "q",
            "query_id": "q1",
            "passages": ["t a", "b", "u c"],
            "passage_ids": ["1", "2", "3"],
            "labels": [1.0, 0.0, 0.0],
            "teacher_scores": [3.0, 0.5, -1.0],
        }
    ]


def test_a_passage_may_have_a_title_alone():
    row = DISTIL | {"passages": [{"title": "t", "text": ""}, {"title": None, "text": "b"}]}

    assert groups_of([row])[0]["passages"] == ["t", "b"]


@pytest.mark.parametrize("scores_are", [None, "labels"])
def test_scores_of_a_distilled_row_are_a_teachers_and_its_first_passage_is_the_positive(scores_are):
    assert groups_of([DISTIL], scores_are=scores_are) == [
        {"query": "q", "passages": ["t a", "u b"], "labels": [1.0, 0.0], "teacher_scores": [2.0, 1.0]},
    ]


def test_a_conversation_without_a_system_message_has_an_empty_instruction():
    assert [group["instruction"] for group in groups_of([MS_SWIFT, MS_SWIFT | {"messages": user("r")}])] == ["i", ""]


def test_messages_may_hold_more_than_role_and_content():
    row = MS_SWIFT | {"messages": [{"role": "user", "content": "q", "loss": None}]}

    assert groups_of([row])[0]["query"] == "q"


def test_texts_and_conversations_may_stand_beside_each_other():
    row = PREFERENCE | {"prompt": "q", "margin": 2}

    assert groups_of([row]) == [
        {"query": "q", "passages": ["a", "b"], "labels": [1.0, 0.0], "teacher_scores": [2.0, 0.0]}
    ]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"query": TEXT, "positive_passages": List({"docid": TEXT, "text": TEXT})}, "no layout matches"),
        (
            {"query": TEXT, "positive_passages": TEXTS, "negative_passages": TEXTS},
            r"no layout matches .* positive_passages \(list of string\)",
        ),
        (
            {"positive_passages": List({"text": TEXT}), "negative_passages": List({"text": TEXT})},
            "no layout matches",
        ),
        (
            {"query": TEXT, "positive_passages": {"text": TEXT}, "negative_passages": {"text": TEXT}},
            "no layout matches",
        ),
        (
            {
                "query": TEXT,
                "positive_passages": List({"text": TEXT, "score": Value("float64")}),
                "negative_passages": List({"text": TEXT}),
            },
            "'positive_passages.score' is there but not the other of positive_passages.score and negative_passages",
        ),
        ({"query": TEXT, "passages": List({"text": TEXT})}, "no layout matches"),
        ({"query": TEXT, "passages": List({"text": TEXT}), "scores": TEXTS}, "no layout matches"),
        ({"query": TEXT, "passages": List({"passage": TEXT}), "scores": NUMBERS}, "no layout matches"),
        ({"query": TEXT, "hits": List({"content": TEXT, "label": TEXT})}, "no layout matches"),
        ({"query": TEXT, "passages": {"passage_text": TEXTS}}, "no layout matches"),
        ({"query": TEXT, "passages": {"passage_text": TEXT, "is_selected": Value("int64")}}, "no layout matches"),
        ({"messages": MESSAGES, "positive_messages": List(MESSAGES)}, "no layout matches"),
        ({"messages": MESSAGES, "positive_messages": MESSAGES, "negative_messages": MESSAGES}, "no layout matches"),
        (
            {
                "messages": List({"from": TEXT, "value": TEXT}),
                "positive_messages": List(MESSAGES),
                "negative_messages": List(MESSAGES),
            },
            "no layout matches",
        ),
        (  # content in parts, as of models that see images
            {
                "messages": List({"role": TEXT, "content": List({"type": TEXT, "text": TEXT})}),
                "positive_messages": List(MESSAGES),
                "negative_messages": List(MESSAGES),
            },
            "no layout matches",
        ),
        ({"prompt": TEXT, "chosen": TEXT}, "no layout matches"),
        ({"chosen": TEXT, "rejected": TEXT}, "no layout matches"),
        ({"prompt": TEXT, "chosen": TEXTS, "rejected": TEXTS}, "no layout matches"),
        ({"query": TEXT, "prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "answer": TEXT}, "more than one layout"),
        (
            {"query": TEXT, "hits": List({"content": TEXT, "label": Value("int64")}), "weight": {"a": TEXT}},
            "column 'weight' has the name of a group's column, but the layout 'rag_retrieval' cannot use it as dict",
        ),
    ],
)
def test_columns_one_step_away_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        recognise(features)


def changed(row, column, value):
    return [row, row, row | {column: value}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            changed(TEVATRON, "negative_passages", [{"docid": "2", "title": " ", "text": "", "score": 1.0}]),
            "row 2, column 'negative_passages.text', entry 0: expected a text that is not empty, found ''",
        ),
        (
            changed(TEVATRON, "positive_passages", [{"docid": None, "title": "t", "text": "a", "score": 1.0}]),
            "row 2, column 'positive_passages.docid', entry 0: expected an id, found None",
        ),
        (
            changed(TEVATRON, "positive_passages", [TEVATRON["positive_passages"][0], None]),
            "row 2, column 'positive_passages.text', entry 1: .* found None",
        ),
        (changed(TEVATRON, "positive_passages", None), "row 2, column 'positive_passages.text': .* found None"),
        (changed(TEVATRON, "negative_passages", []), "row 2, column 'negative_passages.text': expected a list that is"),
        (
            changed(TEVATRON, "negative_passages", [{"docid": "2", "title": "", "text": "b", "score": None}]),
            "row 2, column 'negative_passages.score', entry 0: expected a finite number, found None",
        ),
        (changed(DISTIL, "scores", [1.0]), "row 2: column 'passages.text' has 2 entries but column 'scores' has 1"),
        (
            changed(HITS, "hits", [{"content": "a", "label": 1}, {"content": "b", "label": -1}]),
            "row 2, column 'hits.label', entry 1: expected a finite number of 0 or more, found -1",
        ),
        (
            changed(MS_MARCO, "passages", {"passage_text": ["a"], "is_selected": [0, 1]}),
            "row 2: column 'passages.passage_text' has 1 entries but column 'passages.is_selected' has 2",
        ),
        (changed(MS_MARCO, "passages", None), "row 2, column 'passages.passage_text': .* found None"),
        (
            changed(MS_SWIFT, "messages", user("q") + user("r")),
            "row 2, column 'messages': expected one message of the role 'user' and .* found .*'r'",
        ),
        (
            changed(MS_SWIFT, "messages", user("q") + assistant("a")),
            "row 2, column 'messages': expected one message of the role 'user' and .* found .*'assistant'",
        ),
        (
            changed(MS_SWIFT, "messages", assistant("q")),
            "row 2, column 'messages': expected one .* found .*'assistant'",
        ),
        (changed(MS_SWIFT, "messages", user("")), "row 2, column 'messages.user': expected a text that is not .* ''"),
        (changed(MS_SWIFT, "messages", None), "row 2, column 'messages': .* found None"),
        (
            changed(MS_SWIFT, "negative_messages", [assistant("a"), assistant("b") + user("c")]),
            "row 2, column 'negative_messages', entry 1: expected one message, found .*'c'",
        ),
        (
            changed(MS_SWIFT, "positive_messages", [assistant("a"), assistant(None)]),
            "row 2, column 'positive_messages.content', entry 1: .* found None",
        ),
        (
            changed(PREFERENCE, "chosen", user("q") + assistant("a")),
            "row 2, column 'chosen': expected one message, found .*'q'",
        ),
        (changed(PREFERENCE, "rejected", []), r"row 2, column 'rejected': expected one message, found \[\]"),
    ],
)
def test_a_bad_value_is_named_with_its_row_column_and_entry(rows, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        groups_of(rows)


def test_rows_and_entries_are_counted_over_batches_and_in_a_selection():
    rows = [HITS | {"query": f"q{i}"} for i in range(2400)]
    rows[2100] = HITS | {
        "hits": [{"content": "a", "label": 1}, {"content": "b", "label": 1}, {"content": " ", "label": 0}]
    }

    with pytest.raises(ValueError, match="row 2100, column 'hits.content', entry 2: .* found ' '"):
        groups_of(rows)
    with pytest.raises(ValueError, match="row 1, column 'hits.content', entry 2"):
        to_groups(Dataset.from_list(rows).select([5, 2100, 7]))


def test_lists_that_the_older_readers_keep_as_a_dict_are_read():
    # `Sequence({...})` of the datasets library is a dict of lists in Python.
    features = Features({"query": TEXT, "passages": {"passage_text": TEXTS, "is_selected": List(Value("int32"))}})
    rows = Dataset.from_list([{name: MS_MARCO[name] for name in features}], features=features)

    assert list(to_groups(rows)) == [{"query": "q", "passages": ["a", "b"], "labels": [0.0, 1.0]}]


def test_leaves_that_are_left_out_are_named_in_the_log(caplog):
    caplog.set_level("INFO")

    groups_of([MS_MARCO | {"passages": MS_MARCO["passages"] | {"url": ["u", "v"]}, "answers": ["a"]}])
    groups_of([MS_SWIFT | {"tools": "none"}])

    assert "passages.is_selected as labels, query_id as query_id; left out: passages.url, answers" in caplog.text
    assert "negative_messages.content as neg; left out: tools" in caplog.text


def test_titles_that_are_null_in_every_row_of_a_file_are_no_titles(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = TEVATRON | {"positive_passages": [{"title": None, "text": "a"}], "negative_passages": [{"text": "b"}]}
    path.write_text(json.dumps(row))

    assert load_groups(path)[0]["passages"] == ["a", "b"]
