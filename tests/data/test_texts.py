from __future__ import annotations

import pytest
from datasets import Dataset
from sentence_transformers.util import resolve_ids

from rerank_trainer.data.formats import load_groups, to_groups
from rerank_trainer.data.texts import TextTable, read_texts


@pytest.mark.parametrize(
    ("row", "kind", "text"),
    [
        ({"query_id": 1, "query": "a"}, "queries", "a"),
        ({"qid": "1", "text": "a", "title": "t"}, "queries", "t a"),
        ({"id": "1", "question": "a"}, "queries", "a"),
        ({"document_id": "1", "text": "a", "title": None}, "corpus", "a"),
        ({"docid": "1", "title": "t", "text": "a"}, "corpus", "t a"),
        ({"passage_id": "1", "passage": "a", "title": "t"}, "corpus", "a"),
        ({"document_id": "1", "document": "a"}, "corpus", "a"),
    ],
)
def test_a_table_is_read_whatever_its_columns_are_called(row, kind, text):
    table = TextTable(Dataset.from_list([row, {name: None for name in row}]), kind)

    assert table.numbers(None) == {"1": 0}
    assert table.texts(["1"], {"1": 0}) == [text]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"corpus: expected a column of ids .*passage_id.* and one of texts .* found text \(string\)"),
        ({"_id": "1", "body": "a"}, r"found _id \(string\), body \(string\). Rename them"),
        ({"_id": "1", "docid": "1", "text": "a"}, "'_id' and 'docid' could each be the passage_id"),
        ({"_id": "1", "text": "a", "passage": "a"}, "'text' and 'passage' could each be the passage"),
    ],
)
def test_a_table_whose_columns_are_not_clear_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        TextTable(Dataset.from_list([row]), "corpus")


def test_an_id_that_stands_twice_is_refused_only_where_it_is_wanted():
    table = TextTable(Dataset.from_list([{"_id": name, "text": name} for name in "aba"]), "corpus")

    assert table.numbers({"b", "c"}) == {"b": 1}
    with pytest.raises(ValueError, match="corpus, row 2: found the id 'a' for the second time, as in row 0"):
        table.numbers({"a"})


@pytest.mark.parametrize("text", ["", " ", None])
def test_an_empty_text_is_named_with_its_row_where_it_is_wanted(text):
    rows = [{"_id": "a", "text": "x"}, {"_id": "b", "text": text}]
    table = TextTable(Dataset.from_list(rows), "corpus")

    assert table.texts(["a", "a"], {"a": 0}) == ["x", "x"]
    with pytest.raises(ValueError, match="corpus, row 1, column 'text': .* for passage 'b', found"):
        table.texts(["a", "b"], {"a": 0, "b": 1})


def test_texts_of_ids_are_those_that_sentence_transformers_resolves():
    queries = Dataset.from_list([{"query_id": str(i), "text": f"query {i}"} for i in range(30)])
    corpus = Dataset.from_list([{"document_id": str(i * 7 % 500), "text": f"passage {i}"} for i in range(500)])
    rows = [
        {
            "query_id": str(i % 30),
            "document_ids": [str(i * j % 500) for j in range(1, 6)],
            "scores": [float(j) for j in range(5)],
        }
        for i in range(1, 250)
    ]

    resolved = Dataset.from_list(rows)
    resolved.set_transform(resolve_ids({"query_id": queries, "document_ids": corpus}, output_format="lists"))
    groups = to_groups(Dataset.from_list(rows), queries=queries, corpus=corpus)

    assert groups["query"][:] == resolved[:]["query"]
    assert groups["passages"][:] == resolved[:]["documents"]


def test_tables_are_read_from_files_and_folders(tmp_path):
    Dataset.from_list([{"query_id": 1, "text": "q"}]).to_parquet(tmp_path / "queries.parquet")
    folder = tmp_path / "hub"
    folder.mkdir()
    Dataset.from_list([{"document_id": "a", "text": "p"}]).to_json(folder / "documents.jsonl")
    Dataset.from_list([{"query_id": 1, "text": "other"}]).to_json(folder / "queries.jsonl")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: documents\n  data_files: documents.jsonl\n"
        "- config_name: queries\n  data_files: queries.jsonl\n---\n"
    )
    rows = Dataset.from_list([{"query_id": 1, "doc_ids": ["a"]}])

    (group,) = load_groups(rows, queries=tmp_path / "queries.parquet", corpus=folder)
    (other,) = to_groups(rows, queries=str(folder), corpus=str(folder))

    assert (group["query"], group["passages"]) == ("q", ["p"])
    assert (other["query"], other["passages"]) == ("other", ["p"])


def test_the_texts_of_a_table_on_disk_are_not_held_in_memory(tmp_path):
    path = tmp_path / "corpus.parquet"
    Dataset.from_list([{"_id": str(i), "text": f"passage {i}"} for i in range(300)]).to_parquet(path)
    rows = Dataset.from_list([{"query": f"q{i}", "doc_ids": [str(i), str(i + 1)]} for i in range(299)])

    groups = to_groups(rows, corpus=path)

    assert groups.cache_files  # Rows and ids are in memory, the texts in a file that is mapped.
    assert groups[298]["passages"] == ["passage 298", "passage 299"]


def test_the_same_ids_are_filled_anew_when_the_table_changes():
    rows = Dataset.from_list([{"query": "q", "doc_ids": ["a"]}])

    def groups(text):
        return to_groups(rows, corpus=Dataset.from_list([{"_id": "a", "text": text}]))

    assert [groups(text)[0]["passages"] for text in ("one", "two", "one")] == [["one"], ["two"], ["one"]]
    # What later steps keep on disk is found by the fingerprint.
    assert groups("one")._fingerprint != groups("two")._fingerprint


@pytest.mark.parametrize("source", [{"a": "text"}, None, 3])
def test_what_can_be_no_table_is_refused(source):
    with pytest.raises(
        ValueError, match=f"corpus: expected a datasets.Dataset, a path .* found a {type(source).__name__}"
    ):
        read_texts(source, "corpus", None)


def test_splits_of_which_none_is_meant_are_refused(tmp_path):
    for split in ("one", "two"):
        Dataset.from_list([{"_id": "a", "text": "p"}]).to_json(tmp_path / f"{split}.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: one\n    path: one.jsonl\n  - split: two\n    path: two.jsonl\n---\n"
    )

    with pytest.raises(ValueError, match=r"corpus: expected a split .* found \['one', 'two'\]. Load the one"):
        read_texts(tmp_path, "corpus", None)
