"""Layouts of an order without scores: permutations and ranked hits."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset, List, Value

from rerank_trainer.data.formats import to_groups
from rerank_trainer.data.layouts import recognise

TEXT, TEXTS, NUMBERS, INTEGERS = Value("string"), List(Value("string")), List(Value("float64")), List(Value("int64"))
PERMUTATION = {"query": "q", "passages": ["a", "b", "c"], "permutation": "[3] > [1] > [2]"}
HITS = {"query": "q", "hits": [{"content": "a", "rank": 1, "score": 0.5}, {"content": "b", "rank": 2, "score": 0.25}]}


def groups_of(rows):
    return list(to_groups(Dataset.from_list(rows)))


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"query": TEXT, "passages": TEXTS, "permutation": TEXT}, "permutation"),
        ({"permutation": INTEGERS, "documents": TEXTS, "question": TEXT, "labels": NUMBERS}, "permutation"),
        ({"query": TEXT, "passages": TEXTS, "permutation": TEXTS, "labels": NUMBERS}, "groups"),  # none of ours
        ({"query": TEXT, "hits": List({"content": TEXT})}, "rankgpt"),
        ({"query": TEXT, "hits": List({"content": TEXT, "label": Value("int64")})}, "rag_retrieval"),
    ],
)
def test_columns_are_recognised_by_name_and_type(features, name):
    assert recognise(features)[0].name == name


@pytest.mark.parametrize(
    "features",
    [
        {"query": TEXT, "passages": TEXTS, "permutation": TEXTS},
        {"query": TEXT, "permutation": TEXT},
        {"query": TEXT, "hits": List({"text": TEXT})},
        {"hits": List({"content": TEXT})},
    ],
)
def test_columns_one_step_away_are_refused(features):
    with pytest.raises(ValueError, match="no layout matches"):
        recognise(features)


def test_a_column_of_teacher_scores_beside_a_permutation_is_refused():
    with pytest.raises(ValueError, match="'teacher_scores' has the name of a group's column"):
        groups_of([{**PERMUTATION, "teacher_scores": [1.0, 2.0, 3.0]}])


@pytest.mark.parametrize("permutation", ["[3] > [1] > [2]", "3 > 1 > 2", " [3]>[1]>[2] ", [3, 1, 2]], ids=str)
def test_places_become_minus_the_ranks_beside_the_labels(permutation):
    row = {**PERMUTATION, "permutation": permutation, "labels": [0, 2, 0], "query_id": 7}

    assert groups_of([row]) == [
        {
            "query": "q",
            "query_id": "7",
            "passages": ["a", "b", "c"],
            "labels": [0.0, 2.0, 0.0],
            "teacher_scores": [-2.0, -3.0, -1.0],
        }
    ]


def test_the_order_of_hits_counts_and_neither_their_rank_nor_their_score(caplog):
    caplog.set_level(logging.INFO)
    swapped = {"query": "q", "hits": [{**HITS["hits"][1], "score": 9.0}, HITS["hits"][0]]}

    assert groups_of([swapped]) == [{"query": "q", "passages": ["b", "a"], "teacher_scores": [-1.0, -2.0]}]
    assert "the order of hits.content becomes teacher_scores -1, -2, ..." in caplog.text


@pytest.mark.parametrize(
    ("permutation", "message"),
    [
        ("[1] > [2] > [1]", "row 1, column 'permutation': found the place 1 for the second time"),
        ([1, 2, 4], "row 1, column 'permutation': found the place 4 of 3 passages, counted from 1"),
        ([0, 1, 2], "found the place 0 of 3 passages, counted from 1"),
        ([1.5], r"found the place 1\.5 of 3"),
        ("The second is best.", "row 1, column 'permutation': expected a list of places .*'The second is best.'"),
        ("", "expected a list of places or a text such as"),
        ([], "row 1, column 'permutation': expected a list that is not empty"),
        (None, "row 1, column 'permutation': expected a list"),
    ],
    ids=str,
)
def test_what_is_no_permutation_is_named_with_its_row(permutation, message):
    first = "[1] > [2]" if isinstance(permutation, str | None) else [1.0, 2.0]
    rows = [{**PERMUTATION, "permutation": first}, {**PERMUTATION, "permutation": permutation}]

    with pytest.raises(ValueError, match=message):
        groups_of(rows)


@pytest.mark.parametrize(
    "row", [PERMUTATION, {**PERMUTATION, "permutation": [2, 1]}, HITS], ids=["text", "list", "hits"]
)
def test_a_stream_of_rankings_has_the_groups_of_the_data_set(row):
    rows = Dataset.from_list([row, row])

    assert list(to_groups(rows.to_iterable_dataset())) == list(to_groups(rows))
