from __future__ import annotations

import pyarrow as pa
import pytest
from datasets import List, Value

from rerank_trainer.data.leaves import leaf_features, read_columns

TEXT = Value("string")


def test_a_column_with_a_point_in_its_name_goes_before_a_leaf():
    features = leaf_features({"hits": List({"content": TEXT}), "hits.content": TEXT})
    table = pa.table({"hits": [[{"content": "inside"}]], "hits.content": ["outside"]})

    assert features == {"hits.content": TEXT}
    assert read_columns(table, {"hits.content": "passage"})["hits.content"].to_pylist() == ["outside"]


def test_leaves_of_sliced_tables_and_of_rows_without_a_list_keep_their_rows():
    hits = [[{"content": "a"}], None, [], [{"content": "b"}, {"content": None}, None]]
    table = pa.table({"hits": hits})

    def read(start):
        return read_columns(table.slice(start), {"hits.content": "passages"})["hits.content"].to_pylist()

    assert read(0) == [["a"], None, [], ["b", None, None]]
    assert read(1) == [None, [], ["b", None, None]]
    assert read(3) == [["b", None, None]]


def test_a_title_is_joined_as_beir_does_and_a_missing_text_stays_missing():
    table = pa.table({"title": ["Sum", "", None, " A ", "t"], "text": ["1", "2", " 3 ", " b", None]})

    texts = read_columns(table, {"text": "passage", "title": "title"})

    assert list(texts) == ["text"]
    assert texts["text"].to_pylist() == ["Sum 1", "2", "3", "A   b", None]


@pytest.mark.parametrize(
    ("text", "role", "expected"),
    [
        ("[1, 'b', \"c\"]", "candidate_ids", ["1", "b", "c"]),
        ("('7', '8')", "candidate_ids", ["7", "8"]),
        ("[1, 2.5, -3e2]", "teacher_scores", [1.0, 2.5, -300.0]),
        ("[]", "labels", []),
        ("[null]", "labels", [None]),
        ("[None]", "candidate_ids", [None]),
    ],
)
def test_a_list_in_a_text_is_read_in_the_notation_of_json_or_python(text, role, expected):
    assert read_columns(pa.table({"a": [text, None]}), {"a": role})["a"].to_pylist() == [expected, None]


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("1; 2", "teacher_scores"),
        ("[1 2]", "candidate_ids"),
        ("[[1]]", "candidate_ids"),
        ("['1.5']", "teacher_scores"),
        ("[1.5]", "candidate_ids"),
        ("{'a': 1}", "candidate_ids"),
        ("7", "candidate_ids"),
        ("__import__('os').getcwd()", "candidate_ids"),
        ("[__import__('os').getcwd()]", "candidate_ids"),
        ("[" * 100_000, "candidate_ids"),
        ("", "labels"),
    ],
)
def test_a_text_that_holds_no_list_is_refused_and_nothing_in_it_is_run(text, role):
    table = pa.table({"a": ["[1]", text]})

    with pytest.raises(ValueError, match="^row 11, column 'a': expected a list of .* or a text that holds one"):
        read_columns(table, {"a": role}, first_row=10)
