"""Collections of ir_datasets: local files under an id, by the library where it is installed and by a stand-in."""

from __future__ import annotations

import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest

from rerank_trainer.data.ir_collections import load_ir_dataset
from rerank_trainer.data.trec import load_beir

PASSAGES = {"p1": "cats chase mice", "p2": "dogs chase cats", "p3": "birds sing"}
QUERIES = {"q1": "cats", "q2": "birds", "q9": "not judged"}
QRELS = [("q1", "p2", 2), ("q1", "p3", 1), ("q2", "p3", 1), ("q2", "p1", 0)]
RUN = {"q1": [("p1", 3.0), ("p2", 5.0)], "q2": [("p3", 1.0)], "q9": [("p1", 1.0)]}

Judged = namedtuple("Judged", "query_id doc_id relevance")
Scored = namedtuple("Scored", "query_id doc_id score")


class Text(namedtuple("Text", "name text")):
    """A query or a passage."""

    query_id = doc_id = property(lambda self: self.name)

    def default_text(self):
        return self.text


class StandIn:
    """What ir_datasets makes of a collection, as far as it is used."""

    def __init__(self, passages=PASSAGES, qrels=QRELS, kinds=("docs", "queries", "qrels", "scoreddocs")):
        self.passages, self.qrels, self.kinds, self.asked = passages, qrels, kinds, []

    def has(self, kind):
        return kind in self.kinds

    def docs_iter(self):
        return (Text(*item) for item in self.passages.items())

    def queries_iter(self):
        return (Text(*item) for item in QUERIES.items())

    def qrels_iter(self):
        return (Judged(*row) for row in self.qrels)

    def scoreddocs_iter(self):
        return (Scored(query, *entry) for query, entries in RUN.items() for entry in entries)

    def docs_store(self):
        def get_many_iter(ids):
            self.asked.append(set(ids))
            return (Text(name, self.passages[name]) for name in ids if name in self.passages)

        return SimpleNamespace(get_many_iter=get_many_iter)


def put_in_place(monkeypatch, **collections):
    """ir_datasets that knows these collections alone."""
    monkeypatch.setitem(sys.modules, "ir_datasets", SimpleNamespace(load=collections.__getitem__))


@pytest.fixture
def folder(tmp_path):
    """The same as a BEIR folder, which says what is expected."""
    (tmp_path / "qrels").mkdir()
    rows = [f'{{"_id": "{name}", "text": "{text}"}}\n' for name, text in PASSAGES.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(rows))
    rows = [f'{{"_id": "{name}", "text": "{text}"}}\n' for name, text in QUERIES.items()]
    (tmp_path / "queries.jsonl").write_text("".join(rows))
    (tmp_path / "qrels" / "test.tsv").write_text("".join(f"{q} 0 {p} {grade}\n" for q, p, grade in QRELS))
    return tmp_path


@pytest.fixture(params=["stand-in", "library"])
def toy(request, monkeypatch, tmp_path):
    """The id of the collection."""
    if request.param == "stand-in":
        put_in_place(monkeypatch, toy=StandIn())
        return "toy"
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    ir_datasets = pytest.importorskip("ir_datasets")
    files = {"docs_tsv": PASSAGES.items(), "queries_tsv": QUERIES.items()}
    for name, rows in files.items():
        (tmp_path / name).write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "qrels_trec").write_text("".join(f"{q} 0 {p} {grade}\n" for q, p, grade in QRELS))
    collection = ir_datasets.create_dataset(**{name: str(tmp_path / name) for name in [*files, "qrels_trec"]})
    name = f"toy-{tmp_path.name}"
    ir_datasets.registry.register(name, collection)
    return name


def test_a_collection_gives_the_groups_of_the_same_beir_folder(toy, folder):
    assert list(load_ir_dataset(toy)) == list(load_beir(folder, "test"))  # by BM25
    assert list(load_ir_dataset(toy, run=RUN, depth=1)) == list(load_beir(folder, "test", run=RUN, depth=1))
    options = {"run": RUN, "add_positives": True, "num_queries": 1, "seed": 3}
    assert list(load_ir_dataset(toy, **options)) == list(load_beir(folder, "test", **options))


def test_the_collections_own_first_stage_can_be_asked_for(monkeypatch, folder):
    collection = StandIn()
    put_in_place(monkeypatch, toy=collection)

    assert list(load_ir_dataset("toy", run="scoreddocs")) == list(load_beir(folder, "test", run=RUN))
    assert collection.asked == [{"p1", "p2", "p3"}]


def test_with_a_run_only_the_passages_that_are_needed_are_read(monkeypatch):
    collection = StandIn(qrels=[("q1", "p2", 1)])
    put_in_place(monkeypatch, toy=collection)
    load_ir_dataset("toy", run=RUN, depth=1)

    assert collection.asked == [{"p2"}]


def test_what_is_missing_is_named(monkeypatch, toy):
    with pytest.raises(ValueError, match="ir_datasets knows no collection 'no-such'.*load_beir"):
        load_ir_dataset("no-such")
    put_in_place(monkeypatch, part=StandIn(kinds=("docs", "queries")))
    with pytest.raises(ValueError, match="part: expected a collection with queries, docs, qrels, but it has no qrels"):
        load_ir_dataset("part")
    put_in_place(monkeypatch, part=StandIn(kinds=("docs", "queries", "qrels")))
    with pytest.raises(ValueError, match="it has no scoreddocs"):
        load_ir_dataset("part", run="scoreddocs")
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "rerank_trainer\[ir-datasets\]"'):
        load_ir_dataset("part")


def test_two_grades_of_one_passage_and_a_run_of_other_queries_are_refused(monkeypatch):
    put_in_place(monkeypatch, toy=StandIn(qrels=[*QRELS, ("q1", "p2", 1)]))
    with pytest.raises(
        ValueError, match="toy: query 'q1' has passage 'p2' for the second time, with grade 1 instead of 2"
    ):
        load_ir_dataset("toy")
    put_in_place(monkeypatch, toy=StandIn())
    with pytest.raises(ValueError, match="run= and qrels= share no query"):
        load_ir_dataset("toy", run={"x1": [("p1", 1.0)]})
    put_in_place(monkeypatch, toy=StandIn(passages={"p1": "cats"}))
    with pytest.raises(ValueError, match="passage 'p2' is not in the data set corpus="):
        load_ir_dataset("toy", run={"q1": [("p1", 1.0)]})
