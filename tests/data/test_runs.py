"""Runs and qrels: read as they are, written as they are read, and every malformed line named."""

from __future__ import annotations

import ir_measures
import pytest

from rerank_trainer.data.runs import as_qrels, as_run, read_qrels, read_run, write_run


def written(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# ---- runs


def test_a_run_is_ordered_by_score_then_rank_then_line(tmp_path):
    path = written(
        tmp_path / "a.trec",
        "q1 Q0 low 1 0.5 tag",
        "q2\tQ0\tother\t1\t-3e-1\ttag",
        "q1 Q0 late 3 2.0 tag",
        "",
        "q1 Q0 early 2 2.0 tag",
        "q1 Q0 same-rank 2 2.0 tag",
        "q1 Q0 best 9 10 tag",
    )

    assert read_run(path) == {
        "q1": [("best", 10.0), ("early", 2.0), ("same-rank", 2.0), ("late", 2.0), ("low", 0.5)],
        "q2": [("other", -0.3)],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 p2 2 1.5", r"run.trec:2: expected the six columns .*, found 5 in 'q1 Q0 p2 2 1.5'"),
        ("q1 Q0 p 2 2 1.5 tag", "run.trec:2: expected the six columns .*, found 7"),
        ("q1 Q0 p2 2 high tag", "run.trec:2: expected a finite number as score, found 'high'"),
        ("q1 Q0 p2 2 nan tag", "run.trec:2: expected a finite number as score, found 'nan'"),
        ("q1 Q0 p2 2 -inf tag", "run.trec:2: expected a finite number as score, found '-inf'"),
        ("q1 Q0 p2 second 1.5 tag", "run.trec:2: expected an integer as rank, found 'second'"),
        ("q1 Q0 p1 2 1.5 tag", "run.trec:2: query 'q1' has passage 'p1' for the second time"),
    ],
)
def test_a_malformed_line_of_a_run_is_named(tmp_path, line, message):
    path = written(tmp_path / "run.trec", "q1 Q0 p1 1 2.5 tag", line)

    with pytest.raises(ValueError, match=message):
        read_run(path)


def test_a_written_run_is_read_as_it_was(tmp_path):
    run = {"q2": [("p9", 0.1 + 0.2), ("p1", 0.3), ("p3", 0.3), ("p2", -1e-12)], "q1": [("p1", 7.0)]}

    write_run(tmp_path / "a.trec", run, tag="mine")

    assert read_run(tmp_path / "a.trec") == run


def test_a_written_run_is_what_ir_measures_reads(tmp_path):
    write_run(tmp_path / "a.trec", {"q1": [("p7", 3.5), ("p2", 4.25)]}, tag="mine")

    assert list(ir_measures.read_trec_run(str(tmp_path / "a.trec"))) == [
        ir_measures.ScoredDoc("q1", "p2", 4.25),
        ir_measures.ScoredDoc("q1", "p7", 3.5),
    ]


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q1": [("p1", float("nan"))]}, "mine", "query 'q1', passage 'p1': expected a finite score, found nan"),
        ({"q1": [("p 1", 1.0)]}, "mine", "without white space, found 'p 1'"),
        ({"": [("p1", 1.0)]}, "mine", "without white space, found ''"),
        ({"q1": [("p1", 1.0)]}, "my run", "without white space, found 'my run'"),
        ({"q1": [("p1", 1.0), ("p1", 0.5)]}, "mine", r"query 'q1': expected each passage once, found \['p1', 'p1'\]"),
    ],
)
def test_a_run_that_could_not_be_read_back_is_not_written(tmp_path, run, tag, message):
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "a.trec", {"q0": [("p1", 1.0)]} | run, tag=tag)

    assert not (tmp_path / "a.trec").exists()


def test_a_run_in_memory_is_that_of_the_file(tmp_path):
    path = written(tmp_path / "a.trec", "q1 Q0 p1 1 0.5 tag", "q1 Q0 p2 2 2.0 tag", "q1 Q0 p3 3 2.0 tag")
    expected = read_run(path)

    assert as_run({"q1": [("p1", 0.5), ("p2", 2.0), ("p3", 2.0)]}) == expected
    assert as_run({"q1": {"p1": 0.5, "p2": 2.0, "p3": 2.0}}) == as_run(path) == expected


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([("p1", 1.0), ("p1", 0.5)], "run=, query 'q1': has passage 'p1' for the second time"),
        ([("p1", "high")], "run=, query 'q1', passage 'p1': expected a finite number as score, found 'high'"),
        ([("p1", None)], "passage 'p1': expected a finite number as score, found None"),
        ({"p1": float("nan")}, "passage 'p1': expected a finite number as score, found nan"),
        (["p1"], r"query 'q1': expected \(passage id, score\) pairs, found 'p1'"),
    ],
)
def test_a_malformed_entry_of_a_run_in_memory_is_named(passages, message):
    with pytest.raises(ValueError, match=message):
        as_run({"q1": passages})


# ---- qrels

HEADER = "query-id\tcorpus-id\tscore"


def test_qrels_of_trec_and_of_beir_are_equal(tmp_path):
    trec = written(tmp_path / "a.txt", "q1 0 p1 2", "q1 0 p2 -1", "q2\t0\tp1\t1")
    beir = written(tmp_path / "b.tsv", HEADER, "q1\tp1\t2", "q1\tp2\t-1", "", "q2\tp1\t1")

    assert read_qrels(trec) == read_qrels(beir) == {"q1": {"p1": 2, "p2": -1}, "q2": {"p1": 1}}


def test_ids_of_beir_may_have_spaces(tmp_path):
    assert read_qrels(written(tmp_path / "a.tsv", HEADER, "my query\ta passage\t1")) == {"my query": {"a passage": 1}}


def test_the_same_line_twice_is_one_judgement(tmp_path):
    assert read_qrels(written(tmp_path / "a.txt", "q1 0 p1 2", "q1 0 p1 2")) == {"q1": {"p1": 2}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["q1 0 p1 2", "q1 p2 1"], "a.tsv:2: expected the four columns .* found 3 in 'q1 p2 1'. Files with three"),
        (["q1\tp1\t2"], "a.tsv:1: expected the four columns"),
        ([HEADER, "q1 0 p1 2"], "a.tsv:2: expected the three columns query-id corpus-id score, found 4"),
        ([HEADER, "q1\tp1\t1", HEADER], "a.tsv:3: expected an integer as grade, found 'score'"),
        (["q1 0 p1 high"], "a.tsv:1: expected an integer as grade, found 'high'"),
        ([HEADER, "q1\tp1\t1.5"], "a.tsv:2: expected an integer as grade, found '1.5'"),
        (
            ["q1 0 p1 2", "q1 0 p1 0"],
            "a.tsv:2: query 'q1' has passage 'p1' for the second time, with grade 0 instead of 2",
        ),
    ],
)
def test_a_malformed_line_of_qrels_is_named(tmp_path, lines, message):
    path = written(tmp_path / "a.tsv", *lines)

    with pytest.raises(ValueError, match=message):
        read_qrels(path)


def test_qrels_in_memory_are_those_of_the_file(tmp_path):
    path = written(tmp_path / "a.txt", "q1 0 p1 2", "q1 0 p2 -1")

    assert as_qrels({"q1": {"p1": 2, "p2": -1.0}}) == as_qrels(path) == {"q1": {"p1": 2, "p2": -1}}


@pytest.mark.parametrize("grade", [0.5, "1", None, float("nan")])
def test_a_grade_in_memory_that_is_no_integer_is_named(grade):
    with pytest.raises(ValueError, match=r"query 'q1', passage 'p1': expected an integer as grade, found"):
        as_qrels({"q1": {"p1": grade}})


def test_qrels_without_grades_are_refused():
    with pytest.raises(ValueError, match=r"query 'q1': expected \{passage_id: grade\}, found"):
        as_qrels({"q1": ["p1"]})
