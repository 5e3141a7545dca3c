from __future__ import annotations

import math

import pytest
from datasets import Dataset, Features, List, Value

from rerank_trainer.data.formats import to_groups

GROUP = {"query": "q", "passages": ["a", "b"], "labels": [1.0, 0.0]}
LISTS = {"question": "q", "docs": ["a", "b"], "labels": [1, 0]}
PAIR = {"query": "q", "text": "a", "label": 1}
TRIPLET = {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c"}
FLAG = {"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [1.0], "neg_scores": [0.5, -2.0]}
BARE = {"anchor": "q", "answer": "a"}
FULL = GROUP | {
    "teacher_scores": [1.0, 2.0],
    "query_id": "1",
    "passage_ids": ["1", "2"],
    "instruction": "i",
    "source": "s",
    "weight": 1.0,
    "passage_weights": [1.0, 0.5],
    "missed_gains": [1.0],
}

TEXT = "expected a text that is not empty, found"
FINITE = "expected a finite number, found"
GAIN = "expected a finite number of 0 or more, found"

BAD_VALUES = [
    (GROUP, "query", None, f"column 'query': {TEXT} None"),
    (GROUP, "query", "", f"column 'query': {TEXT} ''"),
    (GROUP, "query", " \n\t", rf"column 'query': {TEXT} ' \\n\\t'"),
    (
        GROUP,
        "passages",
        None,
        "column 'passages': expected a list with a text that is not empty as each entry, found None",
    ),
    (GROUP, "passages", [], r"column 'passages': expected a list that is not empty, found \[\]"),
    (GROUP, "passages", ["a", None], f"column 'passages', entry 1: {TEXT} None"),
    (GROUP, "passages", ["", "b"], f"column 'passages', entry 0: {TEXT} ''"),
    (GROUP, "passages", ["a", "b", "c"], "column 'passages' has 3 entries but column 'labels' has 2"),
    (GROUP, "labels", None, "column 'labels': expected a list with .* found None"),
    (GROUP, "labels", [], "column 'passages' has 2 entries but column 'labels' has 0"),
    (GROUP, "labels", [1.0, None], f"column 'labels', entry 1: {GAIN} None"),
    (GROUP, "labels", [math.nan, 0.0], f"column 'labels', entry 0: {GAIN} nan"),
    (GROUP, "labels", [1.0, math.inf], f"column 'labels', entry 1: {GAIN} inf"),
    (GROUP, "labels", [1.0, -0.5], f"column 'labels', entry 1: {GAIN} -0.5"),
    (FULL, "teacher_scores", None, "column 'teacher_scores': expected a list with .* found None"),
    (FULL, "teacher_scores", [1.0], "column 'passages' has 2 entries but column 'teacher_scores' has 1"),
    (FULL, "teacher_scores", [1.0, math.nan], f"column 'teacher_scores', entry 1: {FINITE} nan"),
    (FULL, "teacher_scores", [-math.inf, 0.0], f"column 'teacher_scores', entry 0: {FINITE} -inf"),
    (FULL, "teacher_scores", [None, 0.0], f"column 'teacher_scores', entry 0: {FINITE} None"),
    (FULL, "weight", -1.0, f"column 'weight': {GAIN} -1.0"),
    (FULL, "weight", math.nan, f"column 'weight': {GAIN} nan"),
    (FULL, "weight", None, f"column 'weight': {GAIN} None"),
    (FULL, "missed_gains", [0.0], "column 'missed_gains', entry 0: expected a finite number above 0, found 0.0"),
    (FULL, "passage_weights", [1.0, -0.5], "column 'passage_weights', entry 1: expected a finite number of 0 or more"),
    (FULL, "passage_weights", [1.0], "column 'passages' has 2 entries but column 'passage_weights' has 1"),
    (FULL, "missed_gains", None, "column 'missed_gains': expected a list .* found None"),
    (FULL, "query_id", None, "column 'query_id': expected an id, found None"),
    (FULL, "passage_ids", ["1"], "column 'passages' has 2 entries but column 'passage_ids' has 1"),
    (FULL, "passage_ids", ["1", None], "column 'passage_ids', entry 1: expected an id, found None"),
    (FULL, "instruction", None, """column 'instruction': expected a text, found None. Fill it in \\(with "" """),
    (FULL, "source", None, "column 'source': expected a text, found None"),
    (LISTS, "question", " ", f"column 'question': {TEXT} ' '"),
    (LISTS, "docs", ["a", " "], f"column 'docs', entry 1: {TEXT} ' '"),
    (LISTS, "labels", [1, -1], f"column 'labels', entry 1: {GAIN} -1"),
    (LISTS, "labels", [1], "column 'docs' has 2 entries but column 'labels' has 1"),
    (PAIR, "text", None, f"column 'text': {TEXT} None"),
    (PAIR, "label", None, f"column 'label': {GAIN} None"),
    (PAIR, "label", -2, f"column 'label': {GAIN} -2"),
    (TRIPLET, "negative_2", "", f"column 'negative_2': {TEXT} ''"),
    (TRIPLET | {"scores": [1.0, 2.0, 3.0]}, "scores", [1.0, 2.0], "column 'scores' has 2 entries, expected 3: one for"),
    (TRIPLET | {"scores": [1.0, 2.0, 3.0]}, "scores", [1.0, 2.0, None], f"column 'scores', entry 2: {FINITE} None"),
    ({"query": "q", "positive": "a", "negative": "b", "score": 1.0}, "score", math.nan, f"'score': {FINITE} nan"),
    (FLAG, "pos", [], r"column 'pos': expected a list that is not empty, found \[\]"),
    (FLAG, "neg", [], r"column 'neg': expected a list that is not empty, found \[\]"),
    (FLAG, "neg_scores", [0.5], "column 'neg' has 2 entries but column 'neg_scores' has 1"),
    (FLAG, "pos_scores", None, "column 'pos_scores': expected a list .* found None"),
    (BARE, "anchor", "", f"column 'anchor': {TEXT} ''"),
    (BARE, "answer", None, f"column 'answer': {TEXT} None"),
]


@pytest.mark.parametrize(("row", "column", "value", "message"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_row_and_column(row, column, value, message):
    rows = Dataset.from_list([row, row, row | {column: value}, row])

    with pytest.raises(ValueError, match=f"^row 2[,:] .*{message}"):
        to_groups(rows)


@pytest.mark.parametrize("row", [GROUP, LISTS, PAIR, TRIPLET, FLAG, BARE, FULL])
def test_the_rows_are_accepted_without_the_bad_value(row):
    assert len(to_groups(Dataset.from_list([row]))) == 1


def test_rows_are_counted_on_over_batches():
    rows = [{"query": f"q{i}", "docs": ["a", "b"], "labels": [1.0, 0.0]} for i in range(2500)]
    rows[2345]["labels"] = [1.0, math.nan]

    with pytest.raises(ValueError, match="row 2345, column 'labels', entry 1: .* found nan"):
        to_groups(Dataset.from_list(rows))


def test_rows_are_counted_as_the_caller_sees_them():
    rows = Dataset.from_list([GROUP, GROUP | {"query": ""}, GROUP]).select([2, 0, 1])

    with pytest.raises(ValueError, match="row 2, column 'query'"):
        to_groups(rows)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("query", None, "row 0, column 'query': .* found None"),
        ("passages", None, "row 0, column 'passages': .* found None"),
        ("passages", [None, None], "row 0, column 'passages', entry 0: .* found None"),
        ("labels", [None, None], "row 0, column 'labels', entry 0: .* found None"),
    ],
)
def test_a_column_of_nothing_but_none_is_a_missing_value(column, value, message):
    with pytest.raises(ValueError, match=message):
        to_groups(Dataset.from_list([GROUP | {column: value}]))


@pytest.mark.parametrize(
    ("column", "value", "remedy"),
    [
        ("query", "", "Fill it in or leave it out, together with what belongs to it."),
        ("passages", [], "Fill it or leave the row out."),
        ("weight", -1.0, "Give such a number or leave the row out."),
        ("source", None, 'Fill it in (with "" where there is none) or remove the column.'),
        ("labels", [1.0], "Give one for each passage, or leave the row out."),
    ],
)
def test_a_message_says_what_to_do(column, value, remedy):
    with pytest.raises(ValueError, match="row 1") as error:
        to_groups(
            Dataset.from_list(
                [GROUP | {"source": "s", "weight": 1.0}, GROUP | {"source": "s", "weight": 1.0, column: value}]
            )
        )
    assert remedy in str(error.value)


def test_a_long_value_is_cut_short_in_the_message():
    rows = Dataset.from_list([GROUP | {"query": " " * 5000}])

    with pytest.raises(ValueError, match=r"row 0, column 'query'.*\.\.\.") as error:
        to_groups(rows)
    assert len(str(error.value)) < 300


def test_a_group_may_have_no_passages_when_it_knows_what_was_missed():
    missed = {"query": "q", "passages": [], "labels": [], "missed_gains": [2.0]}
    features = Features(
        {
            "query": Value("string"),
            "passages": List(Value("string")),
            "labels": List(Value("float64")),
            "missed_gains": List(Value("float64")),
        }
    )

    assert list(to_groups(Dataset.from_list([missed], features=features))) == [missed]
    with pytest.raises(ValueError, match="row 1, column 'passages': .* Only a group with missed_gains"):
        to_groups(Dataset.from_list([missed, missed | {"missed_gains": []}], features=features))


def test_a_format_of_the_data_set_does_not_change_what_is_checked():
    rows = Dataset.from_list([LISTS, LISTS | {"labels": [1, -1]}]).with_format("numpy")

    with pytest.raises(ValueError, match="row 1, column 'labels', entry 1"):
        to_groups(rows)


def test_lists_of_a_fixed_length_are_checked_too():
    features = Features(
        {
            "query": Value("string"),
            "passages": List(Value("string"), length=2),
            "labels": List(Value("float32"), length=2),
        }
    )

    assert to_groups(Dataset.from_list([GROUP], features=features))[0] == GROUP
    with pytest.raises(ValueError, match="row 1, column 'labels', entry 0: .* found -1.0"):
        to_groups(Dataset.from_list([GROUP, GROUP | {"labels": [-1.0, 0.0]}], features=features))
