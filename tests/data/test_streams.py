"""Streams: the groups of a stream are those of the data set, each row is read once a pass, and choices repeat."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
from collections import Counter

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from rerank_trainer.data.formats import load_groups, to_groups
from rerank_trainer.data.streams import StreamGroups

LAYOUTS = {
    "groups": [
        {"query": f"q{i}", "passages": [f"p{i}", "r"][: i + 1], "labels": [1, 0][: i + 1], "query_id": 17 + i}
        for i in range(2)
    ],
    "labelled list": [{"question": f"q{i}", "docs": [f"p{i}", "r"], "labels": [i, 2]} for i in range(3)],
    "n-tuple": [{"anchor": f"q{i}", "positive": f"p{i}", "negative": "r", "score": 4 + i} for i in range(3)],
    "flag_embedding": [
        {"query": f"q{i}", "pos": [f"p{i}"], "neg": ["r", "s"], "pos_scores": [3], "neg_scores": [1, i], "prompt": ""}
        for i in range(3)
    ],
    "tevatron": [
        {
            "query_id": f"{i}",
            "query": f"q{i}",
            "positive_passages": [{"docid": "1", "title": "t", "text": f"p{i}"}],
            "negative_passages": [{"docid": "2", "title": "", "text": "r"}, {"docid": "3", "title": "u", "text": "s"}],
        }
        for i in range(3)
    ],
}


GOOD = {"query": "q", "passages": ["p", "r"], "labels": [1.0, 0.0]}


def generator(rows):
    """A stream that knows nothing of its features."""
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("make", [generator, lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset()])
@pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)
def test_a_stream_has_the_groups_of_the_data_set(rows, make):
    expected = to_groups(datasets.Dataset.from_list(rows))
    groups = to_groups(make(rows))

    assert isinstance(groups, datasets.IterableDataset)
    assert list(groups) == list(expected)
    assert groups.features == expected.features
    assert all(isinstance(label, float) for group in groups for label in group["labels"])


def test_a_column_that_the_first_row_lacks_is_not_overlooked():
    rows = [GOOD] + [GOOD | {"weight": 2.0}]

    with pytest.raises(ValueError, match="row 0, column 'weight': expected a finite number .* found None"):
        list(to_groups(generator(rows)))


def test_a_column_that_later_rows_lack_is_not_overlooked_and_one_that_only_they_have_is_left_out():
    rows = [GOOD | {"weight": 2.0}] * 100 + [GOOD]
    with pytest.raises(ValueError, match="row 100, column 'weight': expected a finite number .* found None"):
        list(to_groups(generator(rows)))

    assert list(to_groups(generator([GOOD] * 100 + [GOOD | {"note": 1}])))[100] == GOOD


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_is_read_as_a_stream(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    rows = datasets.Dataset.from_list(LAYOUTS["labelled list"])
    path.write_text("\n".join(map(json.dumps, rows))) if suffix == ".jsonl" else rows.to_parquet(path)

    assert list(load_groups(path, streaming=True)) == list(load_groups(path))


def test_a_log_line_says_what_the_stream_was_taken_for(caplog):
    with caplog.at_level(logging.INFO):
        to_groups(generator([{"question": "q", "docs": ["p"], "labels": [1], "note": 3}]))

    assert (
        "a stream of the layout 'labelled list': question as query, docs as passages, labels as labels; left out: note"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"query": "q", "passage": "p", "label": 1}],
            "the layout 'labelled pairs' makes a group of more than its row",
        ),
        ([{"question": "q", "answer": "p"}], "the layout 'bare pairs' makes a group of more than its row"),
        ([], "expected one row or more, found none in the stream"),
        ([{"query": "q", "docs": ["p"], "labels": 1}, {"query": 2}], "the first rows: values of unlike types"),
        ([{"query": "q", "text": 3}], r"no layout matches the columns query \(string\), text \(int64\)"),
    ],
)
def test_a_stream_that_cannot_be_taken_is_refused_before_it_is_read(rows, message):
    with pytest.raises(ValueError, match=message):
        to_groups(generator(rows))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"passages": ["p", " "]}, "row 150, column 'passages', entry 1: expected a text .* found ' '"),
        ({"labels": [1.0, -2.0]}, "row 150, column 'labels', entry 1: .* 0 or more, found -2.0"),
        ({"labels": [1.0]}, "row 150: column 'passages' has 2 entries but column 'labels' has 1"),
        ({"labels": None}, "row 150, column 'labels': expected a list .* found None"),
        ({"query": 7}, "rows 100 to 199: values of unlike types in a column"),
        ({"labels": "high"}, "rows 100 to 199: values of unlike types in a column"),
    ],
)
def test_a_fault_stops_the_iteration_and_names_the_row_of_the_stream(bad, message):
    groups = iter(to_groups(generator([GOOD] * 150 + [GOOD | bad] + [GOOD] * 100)))

    assert len(list(itertools.islice(groups, 100))) == 100
    with pytest.raises(ValueError, match=message):
        list(groups)


def test_a_column_that_changes_its_type_is_named():
    rows = [GOOD] * 100 + [GOOD | {"labels": ["high", "low"]}] * 100

    with pytest.raises(ValueError, match="rows 100 to 199, column 'labels': found list of string, which cannot be"):
        list(to_groups(generator(rows)))


def test_the_part_of_one_process_is_refused():
    part = split_dataset_by_node(generator([GOOD]), rank=0, world_size=2)

    with pytest.raises(ValueError, match="give every process the whole stream"):
        to_groups(part)


def test_streaming_is_refused_for_what_is_in_memory():
    with pytest.raises(ValueError, match="streaming=True is for a path or a Hub id, found a Dataset"):
        load_groups(datasets.Dataset.from_list([GOOD]), streaming=True)


def wide(name, size, num_shards=1, prepare=lambda rows: rows):
    rows = [
        {
            "query": f"{name}{i}",
            "passages": [f"{name}{i} {j}" for j in range(9)],
            "labels": [float(j == 0) for j in range(9)],
        }
        for i in range(size)
    ]
    return to_groups(prepare(datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=num_shards)))


def stream(sources, weights=(1.0,), **options):
    return StreamGroups(sources, weights=weights, passages_per_query=4, seed=3, **options)


def test_a_stream_that_is_used_up_begins_again_with_other_passages():
    rows = list(itertools.islice(stream({None: wide("a", 5)}), 15))

    assert [row["query"] for row in rows] == [f"a{i}" for i in range(5)] * 3
    assert all(len(row["passages"]) == 4 and row["labels"] == [1.0, 0.0, 0.0, 0.0] for row in rows)
    assert len({tuple(rows[start]["passages"]) for start in (0, 5, 10)}) == 3
    groups = wide("a", 5)
    assert rows == list(itertools.islice(stream({None: groups}), 15))
    assert groups.epoch == 0  # workers share the epoch of what they were given, and are not in the same pass


def shuffle(rows):
    return rows.shuffle(seed=1, buffer_size=10)


@pytest.mark.parametrize("shuffled", [shuffle(wide("a", 20)), wide("a", 20, prepare=shuffle)], ids=["groups", "rows"])
def test_a_shuffled_stream_has_another_order_in_each_pass_and_the_same_choices(shuffled):
    plain = wide("a", 20)
    rows = list(itertools.islice(stream({None: shuffled}), 40))

    assert [row["query"] for row in rows[:20]] != [row["query"] for row in rows[20:]]
    assert {row["query"] for row in rows[:20]} == {row["query"] for row in rows[20:]} == {f"a{i}" for i in range(20)}
    in_order = {row["query"]: row["passages"] for row in itertools.islice(stream({None: plain}), 20)}
    assert {row["query"]: row["passages"] for row in rows[:20]} == in_order


def test_sources_are_drawn_by_weight_in_runs_of_one():
    train_set = stream({"a": wide("a", 9), "b": wide("b", 30)}, (3.0, 1.0), one_source_size=4)
    rows = list(itertools.islice(train_set, 160))

    assert all(row["query"].startswith(row["source"]) for row in rows)
    assert all(len({row["source"] for row in rows[start : start + 4]}) == 1 for start in range(0, 160, 4))
    runs = [row["source"] for row in rows[::4]]
    assert [Counter(runs[:size])["b"] for size in (4, 8, 20, 40)] == [1, 2, 5, 10]
    of_b = [row["query"] for row in rows if row["source"] == "b"]
    assert of_b[:31] == [f"b{i}" for i in range(30)] + ["b0"]


def test_a_stream_without_groups_is_refused_and_not_waited_for():
    with pytest.raises(ValueError, match="expected groups, found none in the stream 'a'"):
        next(iter(stream({"a": wide("a", 4).take(0)})))


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [4, 1], ids=["2 shards each", "a worker without a shard"])
def test_workers_share_the_rows_of_each_pass(num_shards):
    train_set = stream({None: wide("a", 24, num_shards=num_shards)})

    alone = list(itertools.islice(train_set, 48))
    shared = list(itertools.islice(DataLoader(train_set, batch_size=None, num_workers=2), 48))

    for start in (0, 24):
        passes = [sorted(rows[start : start + 24], key=lambda row: row["query"]) for rows in (alone, shared)]
        assert passes[0] == passes[1]
    assert len({row["query"] for row in shared[:24]}) == 24


@pytest.mark.slow
def test_more_workers_than_shards_of_a_source_are_refused():
    train_set = stream({"a": wide("a", 24, num_shards=4), "b": wide("b", 4)}, (1.0, 1.0))

    with pytest.raises(ValueError, match="source 'b' has 1 shards for 2 data workers"):
        next(iter(DataLoader(train_set, batch_size=2, num_workers=2)))


def test_a_worker_that_is_not_forked_gets_the_stream():
    train_set = stream({None: to_groups(generator(LAYOUTS["n-tuple"]))})
    again = pickle.loads(pickle.dumps(train_set))

    assert list(itertools.islice(again, 5)) == list(itertools.islice(train_set, 5))
