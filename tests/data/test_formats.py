from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from rerank_trainer.data.formats import load_groups, to_groups
from rerank_trainer.data.layouts import LAYOUTS

PAGE = Path(__file__).parents[2] / "docs" / "data_formats.md"
ROWS = [
    {"query": "q", "docs": ["a", "b"], "labels": [1, 0]},
    {"query": "r", "docs": ["c"], "labels": [0]},
]
GROUPS = [
    {"query": "q", "passages": ["a", "b"], "labels": [1.0, 0.0]},
    {"query": "r", "passages": ["c"], "labels": [0.0]},
]


def examples():
    """(name of the layout, heading of the example, its JSON blocks); under ``####`` stand further examples."""
    page = PAGE.read_text(encoding="utf-8").split("## Files")[0]
    parts = re.split(r"^(####?) (.+)$", page, flags=re.MULTILINE)[1:]
    found, layout = [], ""
    for level, heading, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        layout = heading if level == "###" else layout
        blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
        found.append((layout, heading, blocks))
    return found


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("layout", "blocks"), [pytest.param(layout, blocks, id=heading) for layout, heading, blocks in examples()]
)
def test_the_example_on_the_page_is_recognised_and_converted_as_shown(layout, blocks, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    rows, *tables, groups = blocks
    names = ["queries", "corpus"][2 - len(tables) :]

    converted = load_groups(
        jsonl(tmp_path / "rows.jsonl", rows),
        **{name: jsonl(tmp_path / f"{name}.jsonl", table) for name, table in zip(names, tables, strict=True)},
    )

    assert list(converted) == groups
    assert f"rows of the layout {layout!r}" in caplog.text


def test_the_page_shows_every_layout_and_no_other():
    headings = list(dict.fromkeys(layout for layout, _, _ in examples()))

    assert headings == [layout.name for layout in LAYOUTS]
    assert re.findall(r"^\| \[(.+?)\]", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == headings


def test_one_line_says_what_each_column_was_taken_for(caplog):
    caplog.set_level(logging.INFO)
    row = {
        "anchor": "q",
        "answer": "a",
        "negative_1": "b",
        "negative_2": "c",
        "scores": [1.0, 2.0, 3.0],
        "id": 1,
        "url": "",
    }

    to_groups(Dataset.from_list([row]))

    lines = [record.getMessage() for record in caplog.records if "layout" in record.getMessage()]
    assert lines == [
        "1 rows of the layout 'n-tuple': anchor as query, answer as positive, negative_1 negative_2 as negative, "
        "scores as teacher_scores; left out: id, url"
    ]


def test_groups_without_a_positive_are_counted_in_the_log_and_kept(caplog):
    caplog.set_level(logging.INFO)

    assert list(to_groups(Dataset.from_list(ROWS))) == GROUPS
    assert "labels as labels; left out: nothing" in caplog.text
    assert "2 groups with 3 passages in all; 1 groups have no positive label" in caplog.text


def test_groups_with_teacher_scores_alone_are_counted_without_positives(caplog):
    caplog.set_level(logging.INFO)

    to_groups(Dataset.from_list([{"query": "q", "passages": ["a", "b"], "teacher_scores": [0.5, -1.0]}]))

    assert "1 groups with 2 passages in all; they have no labels, only teacher scores" in caplog.text


def test_the_given_data_set_is_not_changed():
    rows = Dataset.from_list(ROWS)

    to_groups(rows)

    assert list(rows) == ROWS


@pytest.mark.parametrize("function", [to_groups, load_groups])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DatasetDict({"dev": Dataset.from_list(ROWS)}), r"the splits \['dev'\]. Did you mean dataset\['dev'\]\?"),
        (DatasetDict({"test": Dataset.from_list(ROWS), "train": Dataset.from_list(ROWS)}), r"dataset\['train'\]"),
        (DatasetDict({}), r"found the splits \[\]"),
        (ROWS, r"found a list. Make one with datasets.Dataset.from_list"),
        (Dataset.from_list(ROWS).select([]), r"expected one row or more, found none .* \['query', 'docs', 'labels'\]"),
    ],
)
def test_what_is_no_data_set_of_rows_is_refused(function, source, message):
    with pytest.raises(ValueError, match=message):
        function(source)


def test_a_jsonl_file_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    assert list(load_groups(path)) == list(load_groups(str(path))) == GROUPS


def test_a_json_file_is_read(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))

    assert list(load_groups(path)) == GROUPS


def test_a_parquet_file_is_read(tmp_path):
    path = tmp_path / "rows.parquet"
    Dataset.from_list(ROWS).to_parquet(path)

    assert list(load_groups(path)) == GROUPS


def test_a_part_of_a_file_can_be_asked_for(tmp_path):
    path = tmp_path / "rows.parquet"
    Dataset.from_list(ROWS).to_parquet(path)

    assert list(load_groups(path, split="train[:1]")) == GROUPS[:1]


def test_words_that_pandas_takes_for_missing_are_texts_in_a_csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('query,passage,label\nNA,None,1\nNA,"null, void",0\n')

    assert list(load_groups(path)) == [{"query": "NA", "passages": ["None", "null, void"], "labels": [1.0, 0.0]}]


def test_an_empty_cell_of_a_csv_file_is_missing(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,passage,label\nq,a,1\nq,,0\n")

    with pytest.raises(ValueError, match="row 1, column 'passage': .* found None"):
        load_groups(path)


def test_options_are_passed_on(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"query": f"q{i}", "answer": f"a{i}", "score": i} for i in range(5)]))
    bare = Dataset.from_list([{"query": f"q{i}", "answer": f"a{i}"} for i in range(5)])

    assert load_groups(path, scores_are="labels")[4]["labels"] == [4.0]
    assert list(load_groups(bare, num_negatives=2, seed=5)) == list(to_groups(bare, num_negatives=2, seed=5))
    assert list(load_groups(bare, num_negatives=2, seed=5)) != list(to_groups(bare, num_negatives=2))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.jsonl is not there"):
        load_groups(tmp_path / "absent.jsonl")


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q", "docs": ["a"], "labels": [1}\n')

    with pytest.raises(ValueError, match="rows.jsonl could not be read as json: JSON parse error: Missing a comma"):
        load_groups(path)


def test_rows_of_unlike_types_in_a_file_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q", "docs": ["a"], "labels": [1]}\n{"query": "q", "docs": "a", "labels": [1]}\n')

    with pytest.raises(ValueError, match=r"no layout matches .* docs \(unlike types\)"):
        load_groups(path)


def test_hub_options_beside_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="name, revision and token are for a data set on the Hub.*revision='main'"):
        load_groups(tmp_path / "rows.jsonl", revision="main")


def test_a_data_set_on_the_hub_is_asked_for_with_its_options(monkeypatch):
    asked = []

    def fake(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)

    assert list(load_groups("org/rows", name="lists", split="dev", revision="v2", token="t")) == GROUPS
    options = {"split": "dev", "revision": "v2", "token": "t", "streaming": False, "cache_dir": None}
    assert asked == [(("org/rows", "lists"), options)]


def test_a_folder_of_the_hub_without_a_split_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: DatasetDict({"dev": Dataset.from_list(ROWS)}))

    with pytest.raises(ValueError, match=r"found the splits \['dev'\]"):
        load_groups("org/rows")
