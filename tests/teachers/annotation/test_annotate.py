"""Annotate: whatever holds groups becomes a data set with scores, which is refused where it is another or damaged."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import datasets
import pytest
import torch

from rerank_trainer.data.formats import load_groups
from rerank_trainer.data.shards import is_shard_folder
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.annotation import annotate as annotate_module
from rerank_trainer.teachers.annotation.annotate import annotate
from rerank_trainer.teachers.annotation.estimate import PaidTeacher
from rerank_trainer.teachers.endpoints.endpoint import EndpointTeacher
from rerank_trainer.teachers.ensemble import EnsembleTeacher
from tests.tiny_models import tiny_model

ROWS = [
    {
        "query": f"query {i}",
        "passages": [f"{'word ' * (i % 4)}one", "two"][: 1 + i % 2],
        "labels": [1.0, 0.0][: 1 + i % 2],
    }
    for i in range(25)
]
GROUPS = datasets.Dataset.from_list(ROWS)


class LengthTeacher:
    """A teacher whose score is the passage's length, and that keeps the groups it is asked about."""

    scale = "logit"

    def __init__(self, fingerprint="lengths"):
        self.fingerprint, self.asked = fingerprint, []

    def score(self, groups):
        self.asked += groups
        return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}


def lengths(rows):
    return [[float(len(passage)) for passage in row["passages"]] for row in rows]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_groups_come_back_with_scores_beside_their_passages(tmp_path):
    report = annotate(GROUPS, LengthTeacher(), tmp_path / "out", shard_size=10, batch_size=4)
    scored = load_groups(tmp_path / "out")

    assert scored["teacher_scores"][:] == lengths(ROWS)
    assert scored.remove_columns("teacher_scores").to_list() == ROWS
    assert (report.is_complete, report.num_pairs, report.num_scored) == (True, 37, 37)
    assert sorted(content(tmp_path / "out")) == ["manifest.json", *(f"train-0000{i}.parquet" for i in range(3))]


def test_the_folder_opens_as_a_stream_and_by_datasets_alone(tmp_path):
    annotate(GROUPS, LengthTeacher(), tmp_path / "out", shard_size=10)

    assert [row["teacher_scores"] for row in load_groups(tmp_path / "out", streaming=True)] == lengths(ROWS)
    assert datasets.load_dataset(str(tmp_path / "out"), split="train")["teacher_scores"][:] == lengths(ROWS)


def test_a_stream_and_a_file_leave_the_bytes_of_a_data_set(tmp_path):
    GROUPS.to_parquet(tmp_path / "rows.parquet")
    sources = {
        "set": GROUPS,
        "stream": GROUPS.to_iterable_dataset(num_shards=3),
        "generator": datasets.IterableDataset.from_generator(lambda: iter(ROWS)),
        "file": tmp_path / "rows.parquet",
        "read stream": load_groups(tmp_path / "rows.parquet", streaming=True),
    }
    for name, source in sources.items():
        annotate(source, LengthTeacher(), tmp_path / name, shard_size=10)

    for name in sources:
        assert content(tmp_path / name) == content(tmp_path / "set"), name


def test_groups_need_no_labels_and_keep_columns_of_their_own(tmp_path):
    rows = [{"query": "1 + 1", "passages": ["2", "three"], "topic": "sums", "teacher_scores_llm": [1, 0]}]
    for name, source in {
        "set": datasets.Dataset.from_list(rows),
        "stream": datasets.Dataset.from_list(rows).to_iterable_dataset(),
    }.items():
        annotate(source, LengthTeacher(), tmp_path / name)
        scored = datasets.load_dataset(str(tmp_path / name), split="train")
        assert scored.to_list() == [{**rows[0], "teacher_scores": [1.0, 5.0]}]


def test_a_second_teacher_adds_a_column_to_what_the_first_one_wrote(tmp_path):
    annotate(GROUPS, LengthTeacher(), tmp_path / "first")
    annotate(tmp_path / "first", LengthTeacher(), tmp_path / "second", column="teacher_scores_llm")
    scored = load_groups(tmp_path / "second")

    assert scored["teacher_scores"][:] == scored["teacher_scores_llm"][:] == lengths(ROWS)


def test_the_teacher_is_given_batches_of_one_shard_and_all_columns(tmp_path):
    sizes = []

    class Watched(LengthTeacher):
        def score(self, groups):
            sizes.append(len(groups))
            return super().score(groups)

    teacher = Watched()
    annotate(GROUPS, teacher, tmp_path / "out", shard_size=10, batch_size=4)

    assert sizes == [4, 4, 2, 4, 4, 2, 4, 1]
    assert teacher.asked == ROWS


def test_a_second_run_asks_the_teacher_nothing(tmp_path):
    annotate(GROUPS, LengthTeacher(), tmp_path / "out", shard_size=10)
    before, teacher = content(tmp_path / "out"), LengthTeacher()
    report = annotate(GROUPS, teacher, tmp_path / "out", shard_size=10)

    assert teacher.asked == [] and report.num_scored == 0 and report.num_pairs == 37
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "one bit"])
@pytest.mark.parametrize("use", ["load_groups", "annotate"])
def test_a_damaged_shard_is_named_and_made_again_once_it_is_deleted(tmp_path, damage, use):
    annotate(GROUPS, LengthTeacher(), tmp_path, shard_size=10)
    before, path = content(tmp_path), tmp_path / "train-00001.parquet"
    bytes_of = bytearray(path.read_bytes())
    bytes_of[len(bytes_of) // 2] ^= 1
    path.write_bytes(bytes(bytes_of) if damage is None else damage)

    with pytest.raises(ValueError, match=r"train-00001.parquet is damaged: .*Delete the file and run annotate"):
        load_groups(tmp_path) if use == "load_groups" else annotate(GROUPS, LengthTeacher(), tmp_path, shard_size=10)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00001.parquet is missing. Run annotate"):
        load_groups(tmp_path)
    teacher = LengthTeacher()
    annotate(GROUPS, teacher, tmp_path, shard_size=10)
    assert teacher.asked == ROWS[10:20]
    assert content(tmp_path) == before


def test_a_damaged_manifest_is_named(tmp_path):
    annotate(GROUPS, LengthTeacher(), tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": ')

    for use in (load_groups, lambda folder: annotate(GROUPS, LengthTeacher(), folder)):
        with pytest.raises(ValueError, match=r"manifest.json is damaged \(Expecting value"):
            use(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"teacher": LengthTeacher("others")}, "teacher is 'lengths' there and 'others' here"),
        ({"shard_size": 5}, "shard_size is 10 there and 5 here"),
        ({"column": "teacher_scores_llm"}, "column is 'teacher_scores' there and 'teacher_scores_llm' here"),
        ({"dataset": GROUPS.select(range(20))}, "num_groups is 25 there and 20 here"),
        ({"dataset": GROUPS.add_column("weight", [1.0] * 25)}, r"columns is \['labels', 'passages', 'query'\] there"),
        (
            {"dataset": GROUPS.map(lambda row, i: {"query": f"{row['query']}{'?' * (i == 13)}"}, with_indices=True)},
            "it has other groups 10 to 19, in train-00001.parquet",
        ),
        ({"dataset": GROUPS.to_iterable_dataset().take(20)}, "it has 3 shards, and this data set 2"),
        (
            {"dataset": datasets.concatenate_datasets([GROUPS.select(range(20))] * 2).to_iterable_dataset()},
            "it has other groups 20 to 24, in train-00002.parquet",
        ),
    ],
    ids=[
        "teacher",
        "shard size",
        "column",
        "fewer groups",
        "columns",
        "a query",
        "a shorter stream",
        "a longer stream",
    ],
)
@pytest.mark.filterwarnings("ignore:Parameter 'function'")
def test_a_folder_made_otherwise_is_refused_with_the_difference(tmp_path, change, told):
    options = {"dataset": GROUPS, "teacher": LengthTeacher(), "shard_size": 10}
    annotate(output_dir=tmp_path, **options)
    before = content(tmp_path)

    with pytest.raises(ValueError, match=rf"(?s){told}.*another output_dir"):
        annotate(output_dir=tmp_path, **{**options, **change})
    assert content(tmp_path) == before


def test_a_stream_that_has_grown_by_whole_shards_is_refused_before_they_are_scored(tmp_path):
    annotate(GROUPS.select(range(20)).to_iterable_dataset(), LengthTeacher(), tmp_path, shard_size=10)
    before, teacher = content(tmp_path), LengthTeacher()

    with pytest.raises(ValueError, match="it is complete with 2 shards, and this data set has more"):
        annotate(GROUPS.to_iterable_dataset(), teacher, tmp_path, shard_size=10)
    assert content(tmp_path) == before
    assert teacher.asked == []


def test_a_stream_that_has_shrunk_is_refused_while_shards_are_missing(tmp_path):
    options = {"shard_size": 5, "num_processes": 2, "wait": False}
    annotate(GROUPS.to_iterable_dataset(), LengthTeacher(), tmp_path, process_index=0, **options)  # shards 0, 2 and 4
    fewer = GROUPS.select(range(15))
    annotate(fewer.to_iterable_dataset(), LengthTeacher(), tmp_path, process_index=1, **options)  # shard 1

    with pytest.raises(ValueError, match="it has 5 shards, and this data set 3"):
        annotate(fewer.to_iterable_dataset(), LengthTeacher(), tmp_path, process_index=0, **options)


def test_a_damaged_line_is_named(tmp_path):
    annotate(GROUPS, LengthTeacher(), tmp_path, shard_size=10, process_index=0, num_processes=2, wait=False)
    line = tmp_path / ".unfinished" / "00002.json"
    line.write_text("{}")

    with pytest.raises(ValueError, match=r"00002.json is damaged .*Delete it: the shard is made again"):
        annotate(GROUPS, LengthTeacher(), tmp_path, shard_size=10)
    line.unlink()
    assert annotate(GROUPS, LengthTeacher(), tmp_path, shard_size=10).is_complete


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(
        ValueError, match=r"expected an empty folder, or one that annotate began, found \['thesis.txt'\]"
    ):
        annotate(GROUPS, LengthTeacher(), tmp_path)
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_folder_that_is_not_complete_is_refused_with_the_remedy(tmp_path):
    class Dying(LengthTeacher):
        def score(self, groups):
            if groups[0]["query"] == "query 10":
                raise RuntimeError("no more")
            return super().score(groups)

    with pytest.raises(RuntimeError, match="no more"):
        annotate(GROUPS, Dying(), tmp_path, shard_size=10)
    with pytest.raises(ValueError, match="its shards are not all there yet. Run annotate"):
        load_groups(tmp_path)
    teacher = LengthTeacher()
    annotate(GROUPS, teacher, tmp_path, shard_size=10)
    assert teacher.asked == ROWS[10:]


def test_a_manifest_of_others_does_not_send_a_reader_elsewhere(tmp_path):
    annotate(GROUPS, LengthTeacher(), tmp_path / "out")
    (tmp_path / "out" / "train-00000.parquet").rename(tmp_path / "elsewhere.parquet")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("train-00000.parquet", "../elsewhere.parquet"))

    with pytest.raises(ValueError, match=r"out.train-00000.parquet is missing"):
        load_groups(tmp_path / "out")


def test_a_manifest_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text('{"version": 3}')

    assert not is_shard_folder(tmp_path)
    with pytest.raises(ValueError, match=r"manifest.json is no manifest of shards. Give another output_dir"):
        annotate(GROUPS, LengthTeacher(), tmp_path)
    assert content(tmp_path) == {"manifest.json": b'{"version": 3}'}


def test_groups_that_have_the_column_are_refused_before_the_teacher_is_asked(tmp_path):
    teacher = LengthTeacher()
    with pytest.raises(ValueError, match="have a column teacher_scores already.*column='teacher_scores_"):
        annotate(GROUPS.add_column("teacher_scores", lengths(ROWS)), teacher, tmp_path)
    assert teacher.asked == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_bad_row_is_named(tmp_path, is_stream):
    rows = datasets.Dataset.from_list([*ROWS[:12], {"query": " ", "passages": ["a"], "labels": [1.0]}])

    with pytest.raises(ValueError, match="row 12, column 'query': expected a text that is not empty, found ' '"):
        annotate(rows.to_iterable_dataset() if is_stream else rows, LengthTeacher(), tmp_path, shard_size=5)


def test_no_groups_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one group or more, found none"):
        annotate(GROUPS.select([]), LengthTeacher(), tmp_path)


def test_each_process_takes_its_own_shards_and_the_first_finishes(tmp_path):
    second, first = LengthTeacher(), LengthTeacher()
    options = {"shard_size": 10, "num_processes": 2, "wait": False}
    annotate(GROUPS, LengthTeacher(), tmp_path / "whole", shard_size=10)
    begun = annotate(GROUPS, first, tmp_path / "shared", process_index=0, **options)
    annotate(GROUPS, second, tmp_path / "shared", process_index=1, **options)
    ended = annotate(GROUPS, first, tmp_path / "shared", process_index=0, **options)

    assert (begun.is_complete, ended.is_complete) == (False, True)
    assert second.asked == ROWS[10:20] and first.asked == [*ROWS[:10], *ROWS[20:]]
    assert content(tmp_path / "shared") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"process_index": 1}, "give both, or none"),
        ({"process_index": 2, "num_processes": 2}, "process 2 of 2: expected a number from 0 to 1"),
        ({"shard_size": 0}, "shard_size=0: expected 1 or more"),
        ({"column": "llm"}, "column='llm': expected 'teacher_scores' or 'teacher_scores_...'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        annotate(GROUPS, LengthTeacher(), tmp_path, **options)


def test_torchruns_variables_say_which_process_this_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    annotate(GROUPS, LengthTeacher(), tmp_path, shard_size=10, process_index=0, num_processes=2, wait=False)
    teacher = LengthTeacher()
    annotate(GROUPS, teacher, tmp_path, shard_size=10, wait=False)

    assert teacher.asked == ROWS[10:20]


def test_an_estimate_of_time_and_cost_stands_before_long_work(tmp_path, caplog, monkeypatch):
    class Paid(LengthTeacher):
        def estimate(self, groups):
            assert self.asked == []  # a teacher that keeps its answers has none to pay afterwards
            num_pairs = sum(len(group["passages"]) for group in groups)
            return SimpleNamespace(num_pairs=num_pairs, cost=0.25 * num_pairs)

    caplog.set_level(logging.INFO, logger=annotate_module.__name__)
    groups = datasets.concatenate_datasets([GROUPS] * 32)  # 32 * 37 pairs
    annotate(groups, Paid(), tmp_path / "out")
    (line,) = [text for text in caplog.messages if "before the start" in text]

    assert "by a sample of 8 groups: 1,184 pairs at " in line
    assert line.endswith("; cost about 296")  # 1184 / 4
    caplog.clear()
    annotate(groups, Paid(), tmp_path / "out")  # nothing is left
    annotate(GROUPS, Paid(), tmp_path / "short")  # not worth it
    assert not [text for text in caplog.messages if "before the start" in text]


class Priced(LengthTeacher):
    """Says that a pair costs so much."""

    def __init__(self, price):
        super().__init__(f"lengths for {price}")
        self.price = price

    def estimate(self, groups):
        assert self.asked == []
        num_pairs = sum(len(group["passages"]) for group in groups)
        return SimpleNamespace(num_pairs=num_pairs, cost=self.price * num_pairs)


def test_an_ensemble_costs_what_its_paid_members_cost(tmp_path, caplog):
    ensemble = EnsembleTeacher([Priced(0.25), EnsembleTeacher([LengthTeacher(), Priced(0.5)])])
    annotate(datasets.concatenate_datasets([GROUPS] * 32), ensemble, tmp_path)
    (line,) = [record for record in caplog.records if "before the start" in record.message]

    assert line.message.endswith("; cost about 888")  # 1184 pairs at 0.75
    assert line.levelno == logging.WARNING


def test_a_stream_says_before_what_a_thousand_of_its_pairs_cost(tmp_path, caplog):
    teacher = Priced(0.25)
    annotate(GROUPS.to_iterable_dataset(), teacher, tmp_path / "out")
    (line,) = caplog.messages

    assert line == "before the start, by the first 25 groups of a stream: cost about 250 for every 1,000 pairs"
    assert teacher.asked == ROWS  # once: nothing is asked for the price
    caplog.clear()
    annotate(GROUPS.to_iterable_dataset(), Priced(0.25), tmp_path / "out")  # nothing is left
    annotate(GROUPS.to_iterable_dataset(), LengthTeacher(), tmp_path / "free")
    assert caplog.messages == []


def test_a_service_says_before_what_it_costs(tmp_path):
    assert isinstance(EndpointTeacher("http://localhost/x", api="tei", journal_dir=tmp_path), PaidTeacher)
    assert not isinstance(LengthTeacher(), PaidTeacher)


def test_a_sample_whose_answers_are_kept_says_nothing(tmp_path, caplog):
    class Kept(LengthTeacher):
        def estimate(self, groups):
            return SimpleNamespace(num_pairs=0, cost=0.0)

    caplog.set_level(logging.INFO, logger=annotate_module.__name__)
    assert annotate(datasets.concatenate_datasets([GROUPS] * 32), Kept(), tmp_path).num_scored == 1184
    assert not [text for text in caplog.messages if "before the start" in text]


def test_a_reranker_scores_as_it_predicts(tmp_path):
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    annotate(GROUPS, reranker, tmp_path, shard_size=10, batch_size=4)

    for group in load_groups(tmp_path):
        pairs = [(group["query"], passage) for passage in group["passages"]]
        torch.testing.assert_close(torch.tensor(group["teacher_scores"]), reranker.predict(pairs), atol=1e-5, rtol=0)
