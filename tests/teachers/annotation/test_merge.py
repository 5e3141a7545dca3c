"""Merge: several teachers' scores stand beside the passages they belong to, whatever the order of rows and passages."""

from __future__ import annotations

import datasets
import pytest

from rerank_trainer.teachers.annotation.merge import merge_teacher_scores

GROUPS = {
    "query": ["sum", "star"],
    "passages": [["2", "3"], ["sun", "moon", "sea"]],
    "labels": [[1.0, 0.0], [1.0, 0.0, 0.0]],
}
IDS = {"query_id": ["q1", "q2"], "passage_ids": [["p2", "p3"], ["s", "m", "o"]]}
ONE = {"teacher_scores": [[2.0, 3.0], [7.0, 8.0, 9.0]]}


def rows(*columns, order=(0, 1)):
    joined = {name: values for part in columns for name, values in part.items()}
    return datasets.Dataset.from_dict(joined).select(order)


OTHER = {  # rows and passages turned round, with a passage and a group more
    "query": ["moon", "star", "sum"],
    "passages": [["is far"], ["sea", "pond", "moon", "sun"], ["3", "2"]],
    "teacher_scores": [[0.0], [0.9, 0.1, 0.8, 0.7], [0.3, 0.2]],
}
OTHER_IDS = {"query_id": ["q3", "q2", "q1"], "passage_ids": [["f"], ["o", "p", "m", "s"], ["p3", "p2"]]}


@pytest.mark.parametrize("with_ids", [True, False])
def test_scores_follow_ids_or_texts(with_ids):
    first = rows(GROUPS, ONE, *([IDS] if with_ids else []))
    other = rows(OTHER, *([OTHER_IDS] if with_ids else []), order=(0, 1, 2))
    merged = merge_teacher_scores({"large": first, "llm": other})

    assert merged["teacher_scores_large"][:] == ONE["teacher_scores"]
    assert merged["teacher_scores_llm"][:] == [[0.2, 0.3], [0.7, 0.8, 0.9]]
    assert merged["labels"][:] == GROUPS["labels"] and "teacher_scores" not in merged.column_names


def test_ids_decide_where_texts_differ():
    spelt = {**OTHER, "query": ["Moon?", "Star?", "Sum?"], "passages": [["a"], ["A", "B", "C", "D"], ["E", "F"]]}
    merged = merge_teacher_scores({"large": rows(GROUPS, ONE, IDS), "llm": rows(spelt, OTHER_IDS, order=(0, 1, 2))})

    assert merged["teacher_scores_llm"][:] == [[0.2, 0.3], [0.7, 0.8, 0.9]]


def test_three_teachers_have_a_column_each():
    merged = merge_teacher_scores({name: rows(GROUPS, ONE, IDS) for name in "abc"})

    assert [name for name in merged.column_names if "scores" in name] == [f"teacher_scores_{name}" for name in "abc"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (rows(GROUPS, ONE, IDS, order=(1,)), r"'llm' lacks 1 of 2 groups, of which the first is \('q1',\)"),
        (rows(GROUPS, ONE, IDS, order=(0, 1, 0)), r"'llm': expected one group for each query_id, found rows 0 and 2"),
        (rows(GROUPS, IDS), "'llm': expected a column teacher_scores, found"),
        (
            rows(GROUPS, ONE, {**IDS, "passage_ids": [["p2", "p3"], ["s", "x", "o"]]}),
            "'llm', row 1: 1 of the 3 passage_ids of row 1 .* the first is 'm'",
        ),
    ],
    ids=["a group", "twice", "no scores", "a passage"],
)
def test_what_does_not_match_is_named(other, told):
    with pytest.raises(ValueError, match=told):
        merge_teacher_scores({"large": rows(GROUPS, ONE, IDS), "llm": other})


def test_one_teacher_is_nothing_to_merge():
    with pytest.raises(ValueError, match=r"expected the groups of two teachers or more, found \['a'\]"):
        merge_teacher_scores({"a": rows(GROUPS, ONE)})
