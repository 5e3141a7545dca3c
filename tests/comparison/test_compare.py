"""A whole comparison of tiny models: what it writes and does not repeat, what it refuses, what a failure leaves."""

from __future__ import annotations

import csv
import errno
import json
import logging
import multiprocessing
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from rerank_trainer.comparison import cells
from rerank_trainer.comparison import compare as module
from rerank_trainer.comparison.budgets import Steps
from rerank_trainer.comparison.claims import claim
from rerank_trainer.comparison.compare import Comparison, compare
from rerank_trainer.comparison.plan import Cell
from rerank_trainer.comparison.planning import make_plan
from rerank_trainer.comparison.recipes import Recipe, Stage
from rerank_trainer.comparison.students import Student
from rerank_trainer.evaluation.evaluator import evaluate_groups
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.tiny_models import tiny_model
from tests.trainers.conftest import SILENT, small_reranker, word_groups

ARGS = {
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 4,
    "passages_per_query": 4,
    "learning_rate": 2e-3,
}
TRAIN = word_groups(10)
SETS = {"words": word_groups(8, seed=1), "far": word_groups(6, seed=2)}
BROKEN = Recipe("broken", [Stage("contrastive", arguments={"objective": "lambdarank", "loss_options": {"k": -1}})])


def run(folder, **options):
    given = {"recipes": ["cl", "kd", "cl>kd"], "seeds": 1, "budget": Steps(4), "out_of_domain": ["far"], "args": ARGS}
    students, teacher, train, sets = (
        options.pop(name, default)
        for name, default in (("students", STUDENTS), ("teacher", TEACHER), ("train", TRAIN), ("eval_sets", SETS))
    )
    return compare(students, teacher, train, sets, output_dir=folder, **{**given, **options})


STUDENTS = {"a": small_reranker(0), "b": small_reranker(1)}
TEACHER = small_reranker(2, spread=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two students by three recipes, depths 3 and 6, and a recipe that breaks; with models and texts."""
    folder = tmp_path_factory.mktemp("compare")
    options = {"depths": (3, 6), "save_models": True, "show_texts": True}
    recipes = ["cl", "kd", "cl>kd", BROKEN]
    run(folder, recipes=recipes, **options)
    return folder


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the folder for a test that writes into it."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def without_writing(monkeypatch):
    """Tables, charts and report are left out, which one test looks at and which take the most time here."""
    monkeypatch.setattr(Comparison, "write", lambda self, **options: None)


@pytest.fixture
def ran(monkeypatch):
    """The cells that were run."""
    found = []

    def seen(plan, cell, on_share):
        found.append(cell)
        cells.run_cell(plan, cell, on_share)

    monkeypatch.setattr(module, "run_cell", seen)
    return found


def again(folder, **options):
    return run(folder, **{"recipes": ["cl", "kd", "cl>kd", BROKEN], "depths": (3, 6), **options})


@pytest.mark.slow
def test_every_cell_is_there_and_the_broken_ones_with_their_error(folder):
    results = Comparison.read(folder).results
    cells_of = {outcome.cell: outcome.error for outcome in results.outcomes}

    trained = {Cell(recipe, student, 0) for student in "ab" for recipe in ("cl", "kd", "cl>kd", "broken")}
    assert set(cells_of) == {Cell("teacher"), Cell("untrained", "a"), Cell("untrained", "b")} | trained
    assert {cell for cell, error in cells_of.items() if error} == {Cell("broken", student, 0) for student in "ab"}
    assert "k=-1" in cells_of[Cell("broken", "a", 0)]


@pytest.mark.slow
def test_all_recipes_spend_the_same_budget(folder):
    results = Comparison.read(folder).results
    spent = {o.cell.recipe: o.facts["num_steps"] for o in results.outcomes if o.cell.seed == 0 and o.error is None}

    assert spent == {"cl": 4, "kd": 4, "cl>kd": 4}
    assert {o.facts["num_groups"] for o in results.of("cl", "a") + results.of("cl>kd", "a")} == {16}


@pytest.mark.slow
def test_a_cell_is_what_the_trainer_makes_of_the_same_groups(folder, tmp_path):
    order = list(range(len(TRAIN)))
    random.Random("compare-0").shuffle(order)
    order = [order[place % len(order)] for place in range(16)]  # 4 steps of 4 groups
    quiet = {"output_dir": str(tmp_path), "logging_strategy": "no", "train_sampling_strategy": "sequential"}
    args = RerankTrainingArguments(**{**SILENT, **ARGS, **quiet, "seed": 0, "max_steps": 4})
    trainer = ContrastiveRerankTrainer(small_reranker(0), args, train_dataset=TRAIN.select(order))
    trainer.train()
    expected = evaluate_groups(SETS["words"], trainer.reranker, metrics=["nDCG@10"])

    assert Comparison.read(folder).results.mean("cl", "words", student="a") == pytest.approx(expected["nDCG@10"])


@pytest.mark.slow
def test_saved_models_score_as_the_report_says(folder):
    results = Comparison.read(folder).results
    for recipe in ("kd", "cl>kd"):
        model = Reranker.from_pretrained(folder / "cells" / Cell(recipe, "a", 0).key / "model")

        expected = evaluate_groups(SETS["far"], model, metrics=["nDCG@10"])["nDCG@10"]
        assert results.mean(recipe, "far", student="a") == pytest.approx(expected)


@pytest.mark.slow
def test_teacher_and_untrained_students_are_judged_too(folder):
    results = Comparison.read(folder).results

    for name, model, who in (("untrained", small_reranker(1), "b"), ("teacher", TEACHER, "")):
        expected = evaluate_groups(SETS["words"], model, metrics=["nDCG@10"])["nDCG@10"]
        assert results.mean(name, "words", student=who) == pytest.approx(expected)
    expected = evaluate_groups(SETS["words"], metrics=["nDCG@10"])["nDCG@10"]
    assert results.mean("first stage", "words") == pytest.approx(expected)


@pytest.mark.slow
def test_tables_charts_and_figures_by_query_are_written(folder):
    names = {path.name for path in folder.iterdir()}
    endings = {f"table.{ending}" for ending in ("md", "tex", "csv", "json")}
    charts = {f"{chart}.{ending}" for chart in ("gain", "seconds", "depth") for ending in ("png", "svg")}

    assert names >= endings | charts | {"report.html", "compare.json"}
    with (folder / "table.csv").open() as file:
        assert {line["recipe"] for line in csv.DictReader(file)} >= {"first stage", "teacher", "cl", "broken"}
    by_query = pq.read_table(folder / "cells" / Cell("cl", "a", 0).key / "words.parquet")
    assert by_query.num_rows == 2 * len(SETS["words"])  # two depths
    assert not [path for path in folder.rglob("*") if path.suffix in (".lock", ".tmp") or path.name == "work"]


@pytest.mark.slow
def test_finished_cells_are_not_run_again_and_more_seeds_are_added(own, ran, without_writing):
    before = {path: path.stat().st_mtime_ns for path in own.rglob("result.json")}
    again(own)
    assert ran == []

    again(own, students={"a": STUDENTS["a"]}, recipes=["cl"], seeds=2)
    assert ran == [Cell("cl", "a", 1)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(Comparison.read(own).results.of("cl", "a")) == 2


@pytest.mark.slow
def test_failed_cells_are_run_again_if_asked(own, ran, without_writing):
    again(own, retry_failed=True)

    assert ran == [Cell("broken", "a", 0), Cell("broken", "b", 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": Steps(5)}, r"budget\.steps: 4 in the folder, 5 asked"),
        ({"args": {**ARGS, "learning_rate": 1e-3}}, r"arguments\.learning_rate: 0\.002 in the folder, 0\.001 asked"),
        ({"train": TRAIN.select(range(9))}, r"train\.num_groups: 10 in the folder, 9 asked"),
        ({"students": {"a": small_reranker(5)}}, r"students\.a\.model\.digest"),
        ({"recipes": [Recipe("cl", [Stage("distill")])]}, r"recipes\.cl\.kind: contrast in the folder, distil asked"),
        ({"out_of_domain": []}, r"eval_sets\.far\.domain: out of domain in the folder, in domain asked"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_the_difference_shown(folder, changed, message):
    with pytest.raises(ValueError, match=message):
        again(folder, **changed)


@pytest.mark.slow
def test_a_full_disk_leaves_what_is_finished_readable(own, monkeypatch, without_writing):
    write = cells.write_whole

    def full(path, content, **options):
        if "seed2" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, **options)

    monkeypatch.setattr(cells, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        again(own, students={"a": STUDENTS["a"]}, recipes=["cl"], seeds=[1, 2])

    results = Comparison.read(own).results
    assert [outcome.cell.seed for outcome in results.of("cl", "a")] == [0, 1]
    assert not list(own.rglob("*.lock"))


def _job(folder, number):
    run_cell = module.run_cell

    def noted(plan, cell, on_share):
        with (folder / f"ran-{number}").open("a") as file:
            file.write(f"{cell}\n")
        run_cell(plan, cell, on_share)

    module.run_cell = noted
    run(folder, students={"a": STUDENTS["a"]}, recipes=["cl", "kd"], seeds=2, budget=Steps(2))


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["seconds", "tokens"])
def test_other_budgets_are_spent_by_both_stages_together(tmp_path, unit, without_writing):
    amount = {"seconds": 0.3, "tokens": 1500}[unit]
    comparison = run(tmp_path, students={"a": STUDENTS["a"]}, recipes=["cl", "cl>kd"], budget={unit: amount})

    for recipe in ("cl", "cl>kd"):
        (outcome,) = comparison.results.of(recipe, "a")
        facts = outcome.facts
        spent = facts["seconds"] if unit == "seconds" else facts["num_tokens"]
        most = amount * 3 if unit == "seconds" else amount + 4 * 4 * 48
        assert amount <= spent < most, facts


@pytest.mark.slow
def test_jobs_that_share_a_folder_divide_the_cells(tmp_path, without_writing, monkeypatch):
    monkeypatch.setattr(module, "_WAIT", 0.1)
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_job, args=(tmp_path, number)) for number in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)

    assert [job.exitcode for job in jobs] == [0, 0]
    results = Comparison.read(tmp_path).results
    assert len(results.outcomes) == 6 and not results.failures
    ran = [cell for path in tmp_path.glob("ran-*") for cell in path.read_text().splitlines()]
    assert sorted(ran) == sorted(str(outcome.cell) for outcome in results.outcomes)  # each of them once


def test_settings_are_written_by_one_job_after_the_other(tmp_path):
    written = []
    plan = SimpleNamespace(folder=tmp_path / "out", write_settings=lambda: written.append("settings"))
    plan.folder.mkdir()
    with claim(plan.folder / "compare.json.lock"):
        job = threading.Thread(target=module._write_settings, args=(plan, 60.0))
        job.start()
        job.join(0.5)
        assert written == []
    job.join(10)

    assert written == ["settings"] and list(plan.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, r"the recipes \['kd', 'cl>kd'\] need a teacher"),
        ({"recipes": ["cd"]}, r"recipe 'cd' is not known; nearest"),
        ({"out_of_domain": ["near"]}, r"out_of_domain=\['near'\]: expected names of eval_sets, \['words', 'far'\]"),
        ({"args": {"max_steps": 5}}, r"max_steps=5 is decided by budget"),
        ({"args": {"colour": 5}}, r"'colour' is no argument"),
        ({"eval_sets": {}, "out_of_domain": []}, r"expected a dict from name to groups"),
        ({"metrics": ["ndcg@x"]}, r"metric"),
        ({"seeds": 0}, r"seeds=0: expected how many"),
        ({"students": {"teacher": STUDENTS["a"]}}, r"'teacher' is a row of its own"),
        ({"budget": {"hours": 1}}, r"budget="),
        ({"students": [STUDENTS["a"]]}, r"a student that is a Reranker needs a name"),
        (
            {"eval_sets": {"words": SETS["words"].map(lambda row: {"labels": [0.0] * 6})}, "out_of_domain": []},
            r"eval_sets, 'words': .*nothing to judge",
        ),
        ({"train": TRAIN.remove_columns("labels").add_column("teacher_scores", [[0.0] * 6] * 10)}, r"which one counts"),
        (
            {"students": {"a": Student(STUDENTS["a"], "a", arguments={"seed": 1})}},
            r"student 'a': seed=1 is decided by seeds",
        ),
        (
            {"budget": {"seconds": 1}, "args": {"lr_scheduler_type": "cosine"}},
            r"lr_scheduler_type needs the number of steps",
        ),
        ({"budget": {"seconds": 1}, "args": {"warmup_steps": 5}}, r"warmup_steps=5: how many steps"),
        ({"students": {"a": "no/such-model"}}, r"student 'a', no/such-model: "),
        ({"teacher": "no/such-model"}, r"teacher, no/such-model: "),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **given)

    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_teacher_worse_than_the_first_stage_is_warned_of(tmp_path, caplog, without_writing):
    ordered = word_groups(6).map(_best_first)

    class Wrong:
        scale, fingerprint = "logit", "by length"

        def score(self, groups):
            return {"scores": [[float(len(p) % 3) for p in group["passages"]] for group in groups]}

    one = {"students": {"a": STUDENTS["a"]}, "recipes": ["cl"], "out_of_domain": []}
    with caplog.at_level(logging.WARNING):
        run(tmp_path, teacher=Wrong(), eval_sets={"words": ordered}, **one)

    assert "words: the teacher ranks worse than the first stage" in caplog.text


def _best_first(row):
    order = sorted(range(6), key=lambda i: -row["labels"][i])
    return {"passages": [row["passages"][i] for i in order], "labels": [row["labels"][i] for i in order]}


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a comparison, found no compare\.json"):
        Comparison.read(tmp_path)


def test_settings_name_no_path_and_no_machine(tmp_path):
    path = tmp_path / "secret place" / "m"
    small_reranker(0).save_pretrained(path)
    with pytest.raises(ValueError, match="decided"):
        run(tmp_path / "out", students=[str(path)], args={"seed": 1})
    assert "secret" not in json.dumps(Student(str(path)).settings)


@pytest.mark.slow
def test_a_fresh_head_is_the_same_under_every_recipe_and_is_not_judged_untrained(tmp_path, without_writing):
    model, tokenizer = tiny_model("bert")
    model.base_model.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    still = {**ARGS, "learning_rate": 1e-12, "head_learning_rate": 1e-12, "max_length": 48}
    still["model_init_kwargs"] = {"keep_layers": [1]}  # a second stage must not cut again
    one = {"students": str(tmp_path / "backbone"), "recipes": ["cl", "cl>kd"], "seeds": 2, "budget": Steps(2)}
    comparison = run(tmp_path / "out", args=still, **one)

    results = comparison.results
    assert results.left_out == {"backbone": "its head is freshly initialised, so its scores would be random"}
    for seed in (0, 1):
        by_recipe = [results.by_query(r, "words", student="backbone", seed=seed) for r in ("cl", "cl>kd")]
        assert by_recipe[0] == by_recipe[1]
    assert results.by_query("cl", "words", student="backbone", seed=0) != results.by_query(
        "cl", "words", student="backbone", seed=1
    )


def test_a_plan_says_what_would_be_done_and_writes_nothing(tmp_path):
    given = {"recipes": ["cl", "kd"], "seeds": [3, 5], "budget": {"tokens": 10**6}, "out_of_domain": "far"}
    given |= {"metrics": ["nDCG@10"], "depths": None, "args": ARGS, "save_models": False}
    plan = make_plan(STUDENTS, TEACHER, TRAIN, SETS, output_dir=tmp_path / "out", **given)

    assert plan.describe() == {
        "students": "a, b",
        "recipes": "cl, kd",
        "teacher": "BertForSequenceClassification",
        "train": "10 groups",
        "eval_sets": "words: 8 queries to depth 6; far: 6 queries to depth 6 (out of domain)",
        "budget": "1,000,000 tokens of each recipe",
        "cells": "11, seeds 3, 5",  # teacher, two untrained, two students by two recipes and seeds
        "output_dir": str(tmp_path / "out"),
    }
    assert not (tmp_path / "out").exists()


def test_a_machine_with_several_gpus_is_refused_before_any_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(RerankTrainingArguments, "n_gpu", 8)
    given = {"recipes": ["cl"], "seeds": 1, "budget": Steps(1), "metrics": ["nDCG@10"], "depths": None}
    given |= {"out_of_domain": (), "args": ARGS, "save_models": False, "output_dir": tmp_path}
    with pytest.raises(ValueError, match="on one device, found 8. .*CUDA_VISIBLE_DEVICES"):
        make_plan(STUDENTS, TEACHER, TRAIN, SETS, **given)
