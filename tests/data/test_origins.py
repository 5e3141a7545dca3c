"""Origins: a Hub id is told from a path, and of a path no more than its last part is kept."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from rerank_trainer.data.origins import Origin

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["bert-base-uncased", "BAAI/bge-reranker-v2-m3"])
def test_what_can_be_an_id_and_is_no_path_is_one(name):
    assert Origin.of_name(name) == Origin(name, name)


@pytest.mark.parametrize("name", ["/data/of/somebody/model", "../model", "some/where/else/model", Path("some/model")])
def test_of_a_path_the_last_part_is_kept(name):
    assert Origin.of_name(name) == Origin("model", is_local=True)


def test_a_folder_that_is_there_is_no_id(tmp_path, monkeypatch):
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert Origin.of_name("some/model") == Origin("model", is_local=True)
    assert Origin.of_name(".") == Origin(tmp_path.name, is_local=True)


def test_rows_from_the_hub_know_where_they_came_from():
    source = f"hf://datasets/some/words@{REVISION}/data/train.parquet"
    info = datasets.DatasetInfo(download_checksums={source: {"num_bytes": 1}}, config_name="large")
    rows = datasets.Dataset.from_dict({"query": ["a"]}, info=info, split=datasets.Split.TEST)

    assert Origin.of_rows(rows) == Origin("some/words", "some/words", "large", "test")


def test_rows_given_by_name_are_a_file_or_on_the_hub(tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}")

    assert Origin.of_rows(tmp_path / "secret.jsonl") == Origin("secret.jsonl", is_local=True)
    assert Origin.of_rows("some/words.jsonl") == Origin("words.jsonl", is_local=True)
    assert Origin.of_rows("some/words") == Origin("some/words", "some/words")
    assert Origin.of_rows(datasets.Dataset.from_dict({"query": ["a"]})) == Origin("")
