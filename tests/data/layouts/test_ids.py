from __future__ import annotations

import pytest
from datasets import Dataset, List, Value

from rerank_trainer.data.formats import to_groups
from rerank_trainer.data.layouts import recognise

TEXT, TEXTS, NUMBER, NUMBERS = Value("string"), List(Value("string")), Value("float64"), List(Value("float64"))
ID = Value("int64")

QUERIES = Dataset.from_list([{"_id": name, "text": f"query {name}"} for name in ("1", "2", "3")])
CORPUS = Dataset.from_list([{"_id": name, "text": f"passage {name}"} for name in "abcd"])


def groups_of(rows, **options):
    return list(to_groups(Dataset.from_list(rows), **{"queries": QUERIES, "corpus": CORPUS, **options}))


@pytest.mark.parametrize(
    ("features", "name", "roles"),
    [
        (
            {"query_id": TEXT, "positive_id": ID, "negative_id_2": ID, "negative_id_1": ID, "scores": NUMBERS},
            "id n-tuple",
            {
                "query_id": "query_id",
                "positive_id": "positive_id",
                "negative_id_1": "negative_id",
                "negative_id_2": "negative_id",
                "scores": "teacher_scores",
            },
        ),
        (
            {"query_id": ID, "document_ids": TEXT, "scores": TEXT},
            "id list",
            {"query_id": "query_id", "document_ids": "candidate_ids", "scores": "teacher_scores"},
        ),
        (
            {"qid": ID, "passage_ids": List(ID), "labels": NUMBERS},
            "id list",
            {"qid": "query_id", "passage_ids": "candidate_ids", "labels": "labels"},
        ),
        (
            {"query": TEXT, "doc_ids": List(ID), "teacher_scores": NUMBERS},
            "id list",
            {"query": "query", "doc_ids": "candidate_ids", "teacher_scores": "teacher_scores"},
        ),
        (
            {"query_id": ID, "doc_id": ID, "rank": ID, "score": NUMBER, "relevance": ID},
            "id pairs",
            {"query_id": "query_id", "doc_id": "passage_id", "relevance": "label", "score": "teacher_score"},
        ),
        (
            {"question": TEXT, "question_id": TEXT, "pos_doc": List({"id": TEXT}), "neg_doc": List({"id": TEXT})},
            "nemo by id",
            {"question": "query", "question_id": "query_id", "pos_doc.id": "pos_ids", "neg_doc.id": "neg_ids"},
        ),
    ],
)
def test_columns_are_recognised_by_name_and_type(features, name, roles):
    reverse = dict(reversed(features.items()))

    assert recognise(features)[0].name == recognise(reverse)[0].name == name
    assert recognise(features)[1] == recognise(reverse)[1] == roles


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"positive_id": ID, "negative_id": ID}, "no layout matches"),
        ({"query_id": ID, "positive_id": ID}, "no layout matches"),
        ({"query_id": ID, "positive_id": ID, "negative_id": NUMBER}, "no layout matches"),
        (
            {"query_id": ID, "positive_id": ID, "negative_id_1": ID, "negative_id_2": ID, "score": NUMBER},
            "'score' holds one number.* there are 2 columns",
        ),
        ({"doc_ids": TEXTS}, "no layout matches"),
        ({"query_id": ID, "doc_ids": NUMBERS}, "no layout matches"),
        ({"query_id": ID, "doc_ids": TEXTS, "document_ids": TEXTS}, "'document_ids' and 'doc_ids' could each be"),
        ({"query_id": ID, "doc_ids": TEXTS, "document_ids": TEXT}, "'document_ids' and 'doc_ids' could each be"),
        ({"query_id": ID, "doc_ids": TEXTS, "labels": TEXTS}, "'labels' has the name of a group's column"),
        ({"query_id": ID, "doc_ids": TEXTS, "scores": NUMBERS, "teacher_scores": NUMBERS}, "'teacher_scores' and 's"),
        ({"query_id": ID, "doc_id": ID}, "no layout matches"),
        ({"query_id": ID, "doc_id": ID, "rank": ID}, "no layout matches"),
        ({"query_id": ID, "doc_id": ID, "score": NUMBER}, "'score' can be labels .* Say which with scores_are="),
        ({"query_id": ID, "doc_id": ID, "passage_id": ID, "label": ID}, "'passage_id' and 'doc_id' could each be the"),
        ({"pos_doc": List({"id": TEXT}), "neg_doc": List({"id": TEXT})}, "no layout matches"),
        ({"question": TEXT, "pos_doc": List({"id": TEXT}), "neg_doc": TEXTS}, "no layout matches"),
    ],
)
def test_columns_one_step_away_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        recognise(features)


@pytest.mark.parametrize("relevance", [{}, {"rank": ID}])
def test_candidates_with_texts_but_without_relevance_are_told_what_is_missing(relevance):
    # What Tevatron gives a reranker to score: as bare pairs every candidate would be a positive.
    features = {"query_id": TEXT, "query": TEXT, "docid": TEXT, "title": TEXT, "text": TEXT} | relevance

    with pytest.raises(ValueError, match="none says how relevant .* label, labels or relevance .* is missing. Add one"):
        recognise(features)
    assert recognise(features | {"label": ID})[0].name == "labelled pairs"


def test_rows_that_have_texts_and_ids_are_taken_by_their_texts():
    features = {"query_id": ID, "positive_id": ID, "negative_id": ID, "query": TEXT, "positive": TEXT, "negative": TEXT}

    assert recognise(features)[0].name == "n-tuple"


def test_negatives_by_id_stand_in_the_order_of_their_numbers():
    row = {"query_id": 1, "positive_id": "b", "negative_id_10": "c", "negative_id_2": "a", "score": [3.0, 2.0, 1.0]}

    assert groups_of([row]) == [
        {
            "query": "query 1",
            "query_id": "1",
            "passages": ["passage b", "passage a", "passage c"],
            "passage_ids": ["b", "a", "c"],
            "labels": [1.0, 0.0, 0.0],
            "teacher_scores": [3.0, 2.0, 1.0],
        }
    ]


def test_scores_of_listed_ids_can_be_labels():
    (group,) = groups_of([{"query_id": 1, "doc_ids": ["a"], "scores": [2]}], scores_are="labels")

    assert (group["labels"], "teacher_scores" in group) == ([2.0], False)


def test_an_order_without_scores_is_said_to_be_ranks_and_no_logits(caplog):
    caplog.set_level("INFO")

    groups = groups_of([{"query_id": 2, "doc_ids": ["d", "a", "b"]}, {"query_id": 1, "doc_ids": ["c"]}])

    assert [group["teacher_scores"] for group in groups] == [[-1.0, -2.0, -3.0], [-1.0]]
    assert "the order of doc_ids becomes teacher_scores -1, -2, ...: minus the rank, which are no logits" in caplog.text


def test_rows_of_one_query_become_one_group_also_by_id():
    rows = [
        {"query_id": 1, "doc_id": "a", "label": 1},
        {"query_id": 2, "doc_id": "b", "label": 0},
        {"query_id": 1, "doc_id": "c", "label": 0},
    ]

    assert [(group["query"], group["passages"]) for group in groups_of(rows)] == [
        ("query 1", ["passage a", "passage c"]),
        ("query 2", ["passage b"]),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"query_id": 1, "doc_ids": ["a", "x"]}, {"query_id": 1, "doc_ids": ["y", "x", "a"]}],
            r"row 0, column 'doc_ids': passage 'x' is not in corpus= \(2 such ids in all\)",
        ),
        (
            [{"query_id": 1, "positive_id": "a", "negative_id": n} for n in "bcz"],
            r"row 2, column 'negative_id': passage 'z' is not in corpus= \(1 such ids in all\)",
        ),
        (
            [{"query_id": q, "doc_id": "a", "label": 1} for q in (1, 9, 8)],
            r"row 1, column 'query_id': query '9' is not in queries= \(2 such ids in all\)",
        ),
        (
            [{"query_id": 1, "document_ids": "['a']", "scores": "[1.0]"}] * 2
            + [{"query_id": 1, "document_ids": "['a', 'b']", "scores": "[1.0]"}],
            "row 2: column 'document_ids' has 2 entries but column 'scores' has 1",
        ),
        (
            [{"query_id": 1, "document_ids": "['a']", "scores": "[1.0]"}] * 2
            + [{"query_id": 1, "document_ids": "['a']", "scores": "[nan]"}],
            r"row 2, column 'scores': expected a list of numbers .* found '\[nan\]'",
        ),
        (
            [{"query_id": 1, "document_ids": "['a']", "scores": "[NaN]"}],
            "row 0, column 'scores', entry 0: expected a finite number, found nan",
        ),
        ([{"query_id": 1, "doc_ids": ["a"]}, {"query_id": 1, "doc_ids": []}], "row 1, column 'doc_ids': .* not empty"),
        ([{"query_id": 1, "doc_ids": ["a", None]}], "row 0, column 'doc_ids', entry 1: expected an id, found None"),
        ([{"query_id": None, "doc_ids": ["a"]}], "row 0, column 'query_id': expected an id, found None"),
        (
            [{"query_id": 1, "positive_id": "a", "negative_id": "b", "scores": [1.0]}],
            "row 0: column 'scores' has 1 entries, expected 2: one for the positive and one for each of the 1",
        ),
    ],
)
def test_a_bad_or_absent_id_is_named_with_its_row(rows, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        groups_of(rows)


def test_the_first_row_with_an_absent_id_is_named_over_batches_and_columns():
    rows = [{"query_id": 1, "positive_id": "a", "negative_id": "b"} for _ in range(2300)]
    rows[2100]["positive_id"] = "z"
    rows[2050]["negative_id"] = "y"

    with pytest.raises(ValueError, match=r"^row 2050, column 'negative_id': passage 'y' .* \(2 such"):
        groups_of(rows)


def test_tables_that_are_needed_or_not_needed_are_asked_for_and_refused():
    by_id = [{"query_id": 1, "doc_ids": ["a"]}]
    with_query = [{"query": "q", "doc_ids": ["a"]}]
    with_texts = [{"query": "q", "positive": "a", "negative": "b"}]

    with pytest.raises(ValueError, match="the rows name their queries by id alone .* as queries=, .* found None"):
        groups_of(by_id, queries=None)
    with pytest.raises(ValueError, match="the rows name their passages by id alone .* as corpus=, .* found None"):
        groups_of(by_id, corpus=None)
    with pytest.raises(ValueError, match="the rows hold the texts of their queries .* but queries= is given"):
        groups_of(with_query)
    with pytest.raises(ValueError, match="the rows hold the texts of their passages .* but corpus= is given"):
        groups_of(with_texts, queries=None)
    assert groups_of(with_query, queries=None)[0]["passages"] == ["passage a"]
