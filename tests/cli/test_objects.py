"""Objects: which function a mapping stands for, and with which arguments it is called."""

from __future__ import annotations

import datasets
import pytest

from rerank_trainer import Budget, EndpointTeacher, TrainSource
from rerank_trainer.cli import objects
from rerank_trainer.cli.objects import rows_of, sets_of, source_of, teacher_of


@pytest.mark.parametrize(
    ("given", "function"),
    [
        ({"source": "org/name", "split": "dev"}, "load_groups"),
        ({"folder": "scifact", "split": "test", "depth": 20}, "load_beir"),
        ({"qrels": "q", "run": "r", "queries": "t", "corpus": "c"}, "load_trec"),
        ({"name": "beir/scifact/test"}, "load_ir_dataset"),
        ({"source": "org/name", "name": "labeled-list"}, "load_groups"),
    ],
)
def test_a_mapping_is_the_arguments_of_the_function_that_its_keys_belong_to(given, function, monkeypatch):
    monkeypatch.setattr(objects, "called", lambda loader, arguments, where: (loader.__name__, arguments))

    assert rows_of(given, "dataset") == (function, given)


def test_names_are_left_to_the_function_called():
    assert rows_of("rows.jsonl", "dataset") == "rows.jsonl"
    assert sets_of("{a: x.jsonl, b: y.jsonl}", "dataset") == {"a": "x.jsonl", "b": "y.jsonl"}
    assert teacher_of("org/model", "teacher") == "org/model"
    assert source_of({"rows": "x.jsonl", "weight": 2}, "train_dataset") == TrainSource("x.jsonl", weight=2)


def test_a_mapping_that_fits_no_function_is_refused():
    with pytest.raises(ValueError, match=r"dataset: expected a path, a Hub id or a mapping with one of .*'folder'"):
        rows_of({"split": "test"}, "dataset")
    with pytest.raises(ValueError, match="dataset, dev: expected a path, a Hub id or a mapping, found a int"):
        sets_of({"dev": 3}, "dataset")


def test_a_teacher_behind_http_has_its_budget():
    teacher = teacher_of("{url: 'http://localhost/rerank', api: tei, budget: {max_requests: 3}}", "teacher")

    assert isinstance(teacher, EndpointTeacher) and teacher.budget == Budget(max_requests=3)
    with pytest.raises(ValueError, match="teacher, budget: unknown argument of Budget 'max_request'; did you mean"):
        teacher_of("{url: 'http://localhost/rerank', api: tei, budget: {max_request: 3}}", "teacher")


def test_groups_in_memory_are_counted():
    groups = datasets.Dataset.from_dict({"query": ["a", "b"], "passages": [["x", "y"], ["z"]]})

    assert objects.counted(groups) == "2 groups, 3 passages"
    assert objects.counted(groups.to_iterable_dataset()) == "a stream of groups"
