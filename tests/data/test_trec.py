from __future__ import annotations

import json
import logging
import random

import ir_measures
import pytest
from datasets import Dataset

from rerank_trainer.data.formats import to_groups
from rerank_trainer.data.runs import write_run
from rerank_trainer.data.trec import load_beir, load_trec


def written(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


HEADER = "query-id\tcorpus-id\tscore"


# ---- BEIR folders


def json_lines(*rows):
    return [json.dumps(row) for row in rows]


@pytest.fixture
def folder(tmp_path):
    """Five passages; q1 has grades 2 and 1, q2 has grade 1 and a judged 0, q3 a relevant passage that no run finds."""
    written(
        tmp_path / "corpus.jsonl",
        *json_lines(
            {"_id": "p1", "title": "Cats", "text": "chase mice"},
            {"_id": "p2", "title": "", "text": " dogs chase cats "},
            {"_id": "p3", "text": "birds sing"},
            {"_id": "p4", "title": "Fish", "text": ""},
            {"_id": "p5", "title": None, "text": "trees grow"},
        ),
    )
    written(
        tmp_path / "queries.jsonl",
        *json_lines(*({"_id": f"q{i}", "text": text} for i, text in enumerate(["none", "cats", "birds", "stones"]))),
    )
    for split in ("train", "test"):
        lines = ["q1\tp4\t1", "q1\tp2\t2", "q2\tp3\t1", "q2\tp1\t0", "q3\tp5\t1"]
        written(tmp_path / "qrels" / f"{split}.tsv", HEADER, *lines)
    run = ["q1 Q0 p3 3 1.0 a", "q1 Q0 p1 1 3.0 a", "q1 Q0 p2 2 2.0 a", "q2 Q0 p1 1 3.0 a", "q9 Q0 p1 1 3.0 a"]
    written(tmp_path / "run.trec", *run)
    return tmp_path


def test_groups_for_evaluation_hold_the_candidates_in_their_order_and_the_gains_that_were_missed(folder):
    groups = load_beir(folder, "test", run=folder / "run.trec")

    assert list(groups) == [
        {
            "query": "cats",
            "query_id": "q1",
            "passages": ["Cats chase mice", "dogs chase cats", "birds sing"],
            "passage_ids": ["p1", "p2", "p3"],
            "labels": [0.0, 2.0, 0.0],
            "missed_gains": [1.0],
        },
        {
            "query": "birds",
            "query_id": "q2",
            "passages": ["Cats chase mice"],
            "passage_ids": ["p1"],
            "labels": [0.0],
            "missed_gains": [1.0],
        },
        {"query": "stones", "query_id": "q3", "passages": [], "passage_ids": [], "labels": [], "missed_gains": [1.0]},
    ]
    assert list(to_groups(groups)) == list(groups)


def test_for_training_relevant_passages_join_the_candidates_at_the_end(folder):
    groups = load_beir(folder, "train", run=folder / "run.trec")

    assert groups["passage_ids"][:] == [["p1", "p2", "p3", "p4"], ["p1", "p3"], ["p5"]]
    assert groups["labels"][:] == [[0.0, 2.0, 0.0, 1.0], [0.0, 1.0], [1.0]]
    assert groups["missed_gains"][:] == [[], [], []]
    assert groups["passages"][0] == ["Cats chase mice", "dogs chase cats", "birds sing", "Fish"]


def test_what_joins_the_candidates_can_be_said(folder):
    run = folder / "run.trec"

    assert list(load_beir(folder, "test", run=run, add_positives=True)) == list(load_beir(folder, "train", run=run))
    assert list(load_beir(folder, "train", run=run, add_positives=False)) == list(load_beir(folder, "test", run=run))


def test_candidates_below_the_depth_count_as_missed(folder):
    groups = load_beir(folder, "test", run=folder / "run.trec", depth=1)

    assert groups["passage_ids"][:] == [["p1"], ["p1"], []]
    assert groups["missed_gains"][:] == [[1.0, 2.0], [1.0], [1.0]]


def test_the_first_stage_is_bm25_when_no_run_is_given(folder, caplog):
    caplog.set_level(logging.INFO)

    groups = load_beir(folder, "test")

    assert groups["passage_ids"][:] == [["p1", "p2"], ["p3"], []]
    assert "top 100 of BM25" in caplog.text


def test_the_log_says_where_groups_come_from_and_what_was_missed(folder, caplog):
    caplog.set_level(logging.INFO)

    load_beir(folder, "test", run=folder / "run.trec")
    load_beir(folder, "train", run=folder / "run.trec")

    evaluation, training = (record.getMessage() for record in caplog.records)
    assert f"3 groups of the top 100 of the run {folder / 'run.trec'} for {folder / 'qrels' / 'test.tsv'}" in evaluation
    assert "of 4 relevant passages 3 are not among the candidates and stay out, as missed gains" in evaluation
    assert "(add_positives=False); 1 groups without passages" in evaluation
    assert "3 are not among the candidates and joined them (add_positives=True); 0 groups without" in training


def test_a_query_of_which_nothing_is_known_is_left_out_and_counted(folder, caplog):
    caplog.set_level(logging.INFO)
    written(folder / "qrels" / "test.tsv", HEADER, "q1\tp2\t1", "q3\tp5\t0")

    groups = load_beir(folder, "test", run=folder / "run.trec")

    assert groups["query_id"][:] == ["q1"]
    assert "left out: 1 queries with neither candidates nor a relevant passage" in caplog.text


def test_a_negative_grade_is_label_zero_and_counted(folder, caplog):
    caplog.set_level(logging.INFO)
    written(folder / "qrels" / "test.tsv", HEADER, "q1\tp2\t-2", "q1\tp1\t3", "q1\tp5\t-1")

    (group,) = load_beir(folder, "test", run=folder / "run.trec")

    assert (group["labels"], group["missed_gains"]) == ([3.0, 0.0, 0.0], [])
    assert "label 0 for 2 negative grades" in caplog.text


def test_queries_are_sampled_by_seed_in_the_order_of_the_qrels(folder):
    names = [f"q{i}" for i in range(40)]
    written(folder / "queries.jsonl", *json_lines(*({"_id": name, "text": "cats"} for name in names)))
    written(folder / "qrels" / "test.tsv", HEADER, *(f"{name}\tp1\t1" for name in names))

    def sampled(num_queries, seed):
        return load_beir(folder, "test", num_queries=num_queries, seed=seed)["query_id"][:]

    assert len(sampled(10, 0)) == len(set(sampled(10, 0))) == 10
    assert sampled(10, 0) == sampled(10, 0) == sorted(sampled(10, 0), key=names.index)
    assert sampled(10, 0) != sampled(10, 1)
    assert sampled(100, 0) == names


def test_grades_of_a_shuffled_run_give_the_metrics_of_the_qrels(folder):
    rng = random.Random(0)
    passages = [f"p{i}" for i in range(30)]
    written(folder / "corpus.jsonl", *json_lines(*({"_id": name, "text": name} for name in passages)))
    grades = {f"q{i}": {name: rng.randrange(4) for name in rng.sample(passages, 12)} for i in range(4)}
    lines = [f"{query}\t{name}\t{grade}" for query, of_query in grades.items() for name, grade in of_query.items()]
    written(folder / "qrels" / "test.tsv", HEADER, *lines)
    run = {query: [(name, rng.random()) for name in rng.sample(passages, 20)] for query in grades}
    write_run(folder / "run.trec", run, tag="random")

    groups = load_beir(folder, "test", run=folder / "run.trec", depth=10)

    # Ranked as the run has it; the missed passages are judged, but in no run.
    qrels, found = {}, {}
    for group in groups:
        gains = dict(zip(group["passage_ids"], group["labels"], strict=True))
        gains |= {f"missed {i}": gain for i, gain in enumerate(group["missed_gains"])}
        qrels[group["query_id"]] = {name: int(gain) for name, gain in gains.items()}
        found[group["query_id"]] = {name: -float(rank) for rank, name in enumerate(group["passage_ids"])}
    cut = {query: dict(sorted(of_query, key=lambda entry: -entry[1])[:10]) for query, of_query in run.items()}
    for measure in (ir_measures.nDCG @ 10, ir_measures.R @ 10, ir_measures.AP):
        expected = ir_measures.calc_aggregate([measure], grades, cut)
        assert ir_measures.calc_aggregate([measure], qrels, found) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("qrels/test.tsv", "q2\tp7\t1", r"test.tsv:7: passage 'p7' is not in .*corpus.jsonl \(1 such in all\)"),
        ("qrels/test.tsv", "q7\tp1\t1", "test.tsv:7: query 'q7' is not in .*queries.jsonl"),
        ("run.trec", "q2 Q0 p8 2 2.0 a", "run.trec:6: passage 'p8' is not in .*corpus.jsonl"),
        ("run.trec", "q2 Q0 p2 2 nan a", "run.trec:6: expected a finite number as score, found 'nan'"),
        ("corpus.jsonl", '{"_id": "p3", "text": "again"}', "corpus.jsonl:6: found _id 'p3' for the second time"),
        ("corpus.jsonl", '{"_id": "p9"', 'corpus.jsonl:6: expected one JSON object, found \'{"_id": "p9"\''),
        ("corpus.jsonl", '{"_id": "p9", "title": "t"}', "corpus.jsonl:6: expected a JSON object with _id and text"),
        ("corpus.jsonl", '{"_id": "p9", "title": 3, "text": "t"}', "corpus.jsonl:6: expected a JSON object with _id"),
        ("corpus.jsonl", '["p9", "t"]', "corpus.jsonl:6: expected a JSON object with _id and text"),
        ("queries.jsonl", '{"_id": null, "text": "t"}', "queries.jsonl:5: expected a JSON object with _id and text"),
    ],
)
def test_a_bad_line_of_the_folder_is_named(folder, file, line, message):
    path = folder / file
    written(path, *path.read_text().splitlines(), line)

    with pytest.raises(ValueError, match=message):
        load_beir(folder, "test", run=folder / "run.trec")


def test_a_candidate_without_text_is_refused(folder):
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    corpus[0] |= {"title": " ", "text": ""}
    written(folder / "corpus.jsonl", *json_lines(*corpus))

    with pytest.raises(ValueError, match="passage 'p1', a candidate of query 'q1', has neither title nor text"):
        load_beir(folder, "test", run=folder / "run.trec")


def test_a_query_without_text_is_refused(folder):
    written(folder / "queries.jsonl", *json_lines(*({"_id": f"q{i}", "text": "  "} for i in range(4))))

    with pytest.raises(ValueError, match="queries.jsonl: query 'q1' has no text"):
        load_beir(folder, "test", run=folder / "run.trec")


def test_a_run_of_other_queries_is_refused(folder):
    written(folder / "run.trec", "x1 Q0 p1 1 1.0 a")

    with pytest.raises(ValueError, match="share no query: the run has 'x1' and 1 in all, the qrels have 'q1' and 3"):
        load_beir(folder, "test", run=folder / "run.trec")


def test_qrels_that_give_no_group_are_refused(folder):
    written(folder / "queries.jsonl", '{"_id": "q1", "text": "zebra"}')
    written(folder / "qrels" / "test.tsv", HEADER, "q1\tp1\t0")

    with pytest.raises(ValueError, match="test.tsv: expected a query with candidates or with a relevant .* found none"):
        load_beir(folder, "test")


def test_empty_qrels_are_refused(folder):
    written(folder / "qrels" / "test.tsv", HEADER)

    with pytest.raises(ValueError, match="test.tsv: expected judged queries, found none"):
        load_beir(folder, "test", run=folder / "run.trec")


def test_missing_files_are_listed_by_name(folder):
    (folder / "queries.jsonl").unlink()

    with pytest.raises(
        FileNotFoundError, match=r"queries.jsonl, .*dev.tsv, .*bm25.trec. .* qrels for \['test', 'train'\]"
    ):
        load_beir(folder, "dev", run=folder / "bm25.trec")


@pytest.mark.parametrize("option", ["depth", "num_queries"])
def test_counts_below_one_are_refused(folder, option):
    with pytest.raises(ValueError, match=f"{option} must be 1 or more, found 0"):
        load_beir(folder, "test", **{option: 0})


# ---- sets on the Hub, here folders of their format


def hub_folder(path, configs):
    """A data set whose card names configurations, each with one file a split."""
    path.mkdir(parents=True)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            name = f"{config}-{split}.jsonl"
            written(path / name, *json_lines(*rows))
            lines += [f"  - split: {split}", f"    path: {name}"]
    written(path / "README.md", *lines, "---")


@pytest.fixture
def hub_rows(folder):
    tables = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "queries")
    }
    tables["corpus"] = [{"_id": r["_id"], "title": r.get("title") or "", "text": r["text"]} for r in tables["corpus"]]
    lines = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    qrels = [{"query-id": query, "corpus-id": passage, "score": int(grade)} for query, passage, grade in lines]
    return {name: {name: rows} for name, rows in tables.items()}, qrels


@pytest.mark.parametrize("layout", ["qrels beside", "qrels inside", "default inside"])
def test_a_set_of_the_hub_gives_the_groups_of_its_folder(folder, hub_rows, tmp_path, monkeypatch, layout):
    tables, qrels = hub_rows
    inside = {
        "qrels beside": {},
        "qrels inside": {"qrels": {"test": qrels}},
        "default inside": {"default": {"test": qrels}},
    }
    hub_folder(tmp_path / "hub" / "BeIR" / "toy", tables | inside[layout])
    if layout == "qrels beside":
        hub_folder(tmp_path / "hub" / "BeIR" / "toy-qrels", {"default": {"test": qrels}})
    expected = list(load_beir(folder, "test", run=folder / "run.trec"))
    monkeypatch.chdir(tmp_path / "hub")

    assert list(load_beir("BeIR/toy", "test", run=folder / "run.trec")) == expected


def test_judgements_without_a_grade_have_grade_one_and_those_without_a_passage_are_refused(
    folder, hub_rows, tmp_path, monkeypatch
):
    tables, qrels = hub_rows
    bare = [{"query-id": row["query-id"], "corpus-id": row["corpus-id"]} for row in qrels[:3]]
    hub_folder(tmp_path / "hub" / "nano" / "toy", tables | {"qrels": {"test": bare}})
    hub_folder(tmp_path / "hub" / "nano" / "wrong", tables | {"qrels": {"test": [{"query-id": "q1", "doc": "p1"}]}})
    monkeypatch.chdir(tmp_path / "hub")
    groups = load_beir("nano/toy", "test", run=folder / "run.trec")

    assert groups["labels"][:] == [[0.0, 1.0, 0.0], [0.0]] and groups["missed_gains"][:] == [[1.0], [1.0]]
    with pytest.raises(ValueError, match=r"nano/wrong: expected qrels with the columns .*'corpus-id'.*found .*'doc'"):
        load_beir("nano/wrong", "test")


def test_a_split_that_the_qrels_of_a_set_lack_and_a_second_grade_are_refused(hub_rows, tmp_path, monkeypatch):
    tables, qrels = hub_rows
    hub_folder(tmp_path / "hub" / "BeIR" / "toy", tables | {"qrels": {"test": qrels}})
    monkeypatch.chdir(tmp_path / "hub")

    hub_folder(tmp_path / "hub" / "BeIR" / "torn", tables | {"qrels": {"test": [*qrels, qrels[0] | {"score": 2}]}})
    with pytest.raises(
        ValueError, match="BeIR/torn, row 5: query 'q1' has passage 'p4' for the second time, with grade 2"
    ):
        load_beir("BeIR/torn", "test")
    with pytest.raises(ValueError, match=r"expected a split of its qrels \(BeIR/toy\), one of \['test'\], found 'dev'"):
        load_beir("BeIR/toy", "dev")


# ---- runs and qrels outside a folder


@pytest.fixture
def tables(folder):
    """The texts of the folder under other names, as data sets; ids of the corpus are no longer those of BEIR."""
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    return {
        "queries": Dataset.from_list([{"query": row["text"], "query_id": row["_id"]} for row in queries]),
        "corpus": Dataset.from_list(
            [{"docid": row["_id"], "title": row.get("title"), "text": row["text"]} for row in corpus]
        ),
    }


@pytest.mark.parametrize("add_positives", [True, False])
def test_tables_and_a_folder_with_the_same_texts_give_the_same_groups(folder, tables, tmp_path, add_positives):
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    qrels = written(tmp_path / "qrels.txt", "q1 0 p4 1", "q1 0 p2 2", "q2 0 p3 1", "q2 0 p1 0", "q3 0 p5 1")
    paths = {name: tmp_path / f"{name}.parquet" for name in tables}
    run, options = folder / "run.trec", {"depth": 2, "add_positives": add_positives}

    expected = list(load_beir(folder, "test", run=run, **options))

    assert list(load_trec(run, qrels, **tables, **options)) == expected
    assert list(load_trec(str(run), str(qrels), **paths, **options)) == expected


def test_queries_without_candidates_stay_groups_without_passages(folder, tables):
    groups = load_trec(folder / "run.trec", folder / "qrels" / "test.tsv", **tables)

    assert groups["query_id"][:] == ["q1", "q2", "q3"]
    assert (groups[2]["passages"], groups[2]["missed_gains"]) == ([], [1.0])


def test_lines_of_json_may_name_ids_and_texts_in_other_words(folder, tables, tmp_path):
    written(tmp_path / "c.jsonl", *json_lines(*tables["corpus"]))
    written(tmp_path / "q.jsonl", *json_lines(*tables["queries"]))
    qrels, run = folder / "qrels" / "test.tsv", folder / "run.trec"

    assert list(load_trec(run, qrels, queries=tmp_path / "q.jsonl", corpus=tmp_path / "c.jsonl")) == list(
        load_beir(folder, "test", run=run)
    )


def test_bm25_searches_a_table_where_no_run_is_given(folder, tables):
    qrels = folder / "qrels" / "test.tsv"

    assert list(load_trec(None, qrels, **tables)) == list(load_beir(folder, "test"))


def test_what_a_table_lacks_is_named_with_the_line_that_wants_it(folder, tables):
    qrels, run = folder / "qrels" / "test.tsv", folder / "run.trec"
    few = tables["corpus"].select([0, 1, 2])
    empty = tables["corpus"].map(lambda row: row | ({"title": "", "text": " "} if row["docid"] == "p1" else {}))

    with pytest.raises(ValueError, match=r"passage 'p\d' is not in the data set corpus= \(\d such in all\)"):
        load_trec(run, qrels, queries=tables["queries"], corpus=few)
    with pytest.raises(ValueError, match="test.tsv:2: query 'q1' is not in the data set queries="):
        load_trec(run, qrels, queries=tables["queries"].select([0]), corpus=tables["corpus"])
    with pytest.raises(ValueError, match="the data set corpus=: passage 'p1', a candidate of query 'q1', has neither"):
        load_trec(run, qrels, queries=tables["queries"], corpus=empty)


@pytest.mark.slow
def test_groups_of_a_real_collection_give_the_recall_of_its_run(rerank_data):
    groups = load_beir(rerank_data / "scifact", "test", run=rerank_data / "scifact" / "run.bm25.test.trec")

    recall = [
        sum(labels) / (sum(labels) + len(missed))
        for labels, missed in zip(groups["labels"], groups["missed_gains"], strict=True)
    ]
    assert len(groups) == 300
    assert sum(recall) / 300 == pytest.approx(0.9127, abs=5e-5)  # R@100 in the collection's README


def test_a_run_and_qrels_in_memory_give_the_groups_of_their_files(folder):
    options = {"queries": folder / "queries.jsonl", "corpus": folder / "corpus.jsonl"}
    run = {"q1": {"p3": 1.0, "p1": 3.0, "p2": 2.0}, "q2": {"p1": 3.0}, "q9": {"p1": 3.0}}
    qrels = {"q1": {"p4": 1, "p2": 2}, "q2": {"p3": 1, "p1": 0}, "q3": {"p5": 1}}

    assert list(load_trec(run, qrels, **options)) == list(load_beir(folder, "test", run=folder / "run.trec"))
    with pytest.raises(ValueError, match=r"run=: passage 'p9' is not in .*corpus.jsonl \(1 such"):
        load_trec({"q1": {"p9": 1.0}}, qrels, **options)
    with pytest.raises(ValueError, match="qrels=: query 'q8' is not in .*queries.jsonl"):
        load_trec(run, {"q8": {"p1": 1}}, **options)
    with pytest.raises(ValueError, match="run= and qrels= share no query: the run has 'q7' and 1 in all"):
        load_trec({"q7": {"p1": 1.0}}, qrels, **options)
