"""Columns of several teachers in rows that are groups, or lists of passages, already."""

from __future__ import annotations

import pytest
from datasets import Dataset

from rerank_trainer.data.formats import to_groups

ROW = {"query": "q", "passages": ["a", "b"], "teacher_scores_large": [1, 2], "teacher_scores_llm": [0.5, 0.25]}
SCORES = {"teacher_scores_large": [1.0, 2.0], "teacher_scores_llm": [0.5, 0.25]}


@pytest.mark.parametrize("more", [{}, {"labels": [1.0, 0.0]}, {"teacher_scores": [3.0, 4.0]}], ids=str)
def test_groups_keep_the_scores_of_each_teacher(more):
    rows = Dataset.from_list([ROW | more])

    assert list(to_groups(rows)) == [ROW | more | SCORES]
    assert list(to_groups(rows.to_iterable_dataset())) == [ROW | more | SCORES]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "docs": ["a", "b"], "labels": [1, 0], "teacher_scores_": "x"},
        {"query": "q", "passages": ["a", "b"], "label": [1, 0]},
    ],
    ids=str,
)
def test_a_labelled_list_keeps_them_too(row):
    row = {**row, "teacher_scores_large": [1, 2]}

    assert list(to_groups(Dataset.from_list([row]))) == [
        {"query": "q", "passages": ["a", "b"], "labels": [1.0, 0.0], "teacher_scores_large": [1.0, 2.0]}
    ]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "row 0: column 'passages' has 2 entries but column 'teacher_scores_llm' has 1"),
        ([1.0, float("nan")], "row 0, column 'teacher_scores_llm', entry 1: expected a finite number"),
        (None, "row 0, column 'teacher_scores_llm': expected a list"),
    ],
    ids=["too few", "not a number", "missing"],
)
def test_each_is_checked_as_a_teachers_scores(scores, message):
    with pytest.raises(ValueError, match=message):
        to_groups(Dataset.from_list([{**ROW, "teacher_scores_llm": scores}]))
