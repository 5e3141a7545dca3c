"""Two processes that torchrun starts do what one does; both run all of ``RUNS``, since a start takes longer than a run.

This file is the tests, and the script of each process. The processes are interpreters of their own, in which sets of
texts have unlike orders: what is judged, logged or drawn must not depend on one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from rerank_trainer.teachers.annotation.annotate import annotate
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.figures import FIGURES
from rerank_trainer.trainers.sources import TrainSource
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.runs import QUIET, SGD
from tests.trainers.test_evaluators import nano_beir_evaluator
from tests.trainers.test_hooks import ragged_groups
from tests.trainers.test_watch import Poisoned, poisoned_groups

ROOT = Path(__file__).parents[2]
NUM_PROCESSES, RANK = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))


def arguments(folder: Path, *, groups_per_batch: int, **options: Any) -> RerankTrainingArguments:
    """Arguments of a run whose batches all processes share."""
    return RerankTrainingArguments(
        str(folder / f"out-{NUM_PROCESSES}"),
        ddp_backend="gloo" if NUM_PROCESSES > 1 else None,
        per_device_train_batch_size=groups_per_batch // NUM_PROCESSES,
        **{**QUIET, **options},
    )


def keep(folder: Path, found: Any) -> None:
    """Keep what a run found in this process, for :func:`kept`."""
    (folder / f"{NUM_PROCESSES}-{RANK}.json").write_text(json.dumps(found))


def kept(folder: Path) -> tuple[Any, Any, Any]:
    """What one process alone found, and what the first and the second of two did."""
    return tuple(json.loads((folder / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))


# --- the runs --------------------------------------------------------------------------------------------------------


def uneven_groups() -> datasets.Dataset:
    """13 groups, so that two processes of batches of 2 do not divide them; sizes and missed gains fall with the index.

    Each process then pads to a width of its own; two groups have no passages.
    """
    rows = word_groups(13, seed=4, group_size=12).to_list()
    for index, row in enumerate(rows):
        size = 0 if index in (6, 12) else 12 - index
        row.update({name: row[name][:size] for name in ("passages", "labels")})
        row["missed_gains"] = [1.0, 2.0, 1.0, 3.0][: index % 5]
    rows[12]["missed_gains"] = [1.0]
    return datasets.Dataset.from_list(rows)


def evaluate(folder: Path) -> None:
    """Both evaluation sets and an evaluator judged, before and after a training."""
    args = arguments(
        folder,
        groups_per_batch=4,
        per_device_eval_batch_size=2,
        logging_strategy="no",
        eval_strategy="epoch",
        num_train_epochs=1,
        eval_metrics=["ndcg@10", "ndcg", "mrr@10", "map", "recall@5", "recall@100", "precision@3"],
        **{**SGD, "learning_rate": 0.01},
    )
    groups = uneven_groups()
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3),
        args,
        train_dataset=groups.select(range(4)).remove_columns("missed_gains"),
        # three groups are fewer than the processes take at once
        eval_dataset={"uneven": groups, "few": groups.select([3, 4, 6])},
        evaluator=nano_beir_evaluator(folder / f"nano-{NUM_PROCESSES}-{RANK}"),
    )
    before = trainer.evaluate()
    trainer.train()
    trained = [entry for entry in trainer.state.log_history if "eval_uneven_map" in entry][-1]
    found = {**before, **{f"trained_{name}": value for name, value in trained.items()}}
    uncompared = ("_runtime", "_per_second", "_time", "epoch", "step")
    keep(folder, {name: value for name, value in found.items() if not name.endswith(uncompared)})


def stream(folder: Path) -> None:
    """Seven steps of 8 groups, of a stream and of a data set; the queries of the batches and the log are kept."""
    args = arguments(
        folder,
        groups_per_batch=4,
        gradient_accumulation_steps=2,
        max_steps=7,
        **{**SGD, "learning_rate": 0.01},  # rounding, which differs between cuts, grows with the steps
        logging_steps=7,
    )
    reranker = small_reranker(spread=0.3)
    groups = [{**row, "query": f"{row['query']} {number}"} for number, row in enumerate(word_groups(28).to_list())]
    rows = {
        "web": TrainSource(datasets.Dataset.from_list(groups[:20]).to_iterable_dataset(num_shards=2), weight=3),
        "clicks": TrainSource(datasets.Dataset.from_list(groups[20:]), weight=1, objective="bce"),
    }
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=rows)
    batches = queries_of_batches(trainer)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    # the loader of accelerate makes one batch more than it hands out
    keep(folder, {"batches": batches[:14], "log": log})
    if trainer.is_world_process_zero():
        torch.save(reranker.model.state_dict(), folder / f"weights-{NUM_PROCESSES}.pt")


def queries_of_batches(trainer: RerankTrainer) -> list[list[str]]:
    """A list that fills with the queries of each batch, in the process that makes it."""
    batches, inner = [], trainer.data_collator

    def collate(groups):
        batches.append([group["query"] for group in groups])
        return inner(groups)

    collate.sources = inner.sources
    trainer.data_collator = collate
    return batches


def watch(folder: Path) -> None:
    """One run whose figures are kept, and one with a poisoned row whose error is."""
    # rows in their order and not exchanged between processes: the error names those of each process
    options = {"train_sampling_strategy": "sequential", "balance_processes": False}
    args = arguments(folder, groups_per_batch=8, optim="sgd", learning_rate=0.05, **options)
    trainer = DistillRerankTrainer(small_reranker(spread=0.3), args, train_dataset=ragged_groups())
    trainer.train()
    windows = [[entry[name] for name in FIGURES] for entry in trainer.state.log_history if "loss" in entry]
    trainer = RerankTrainer(small_reranker(spread=0.3), args, objective=Poisoned(), train_dataset=poisoned_groups(9))
    try:
        trainer.train()
    except FloatingPointError as error:
        keep(folder, {"windows": windows, "error": str(error)})


def scores(folder: Path) -> None:
    """25 groups of 6 passages scored by a reranker, four groups a shard, into a folder that the processes share."""
    output_dir = folder / f"scores-{NUM_PROCESSES}"
    report = annotate(word_groups(25), small_reranker(spread=0.3), output_dir, shard_size=4)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output_dir.iterdir())}
    keep(folder, {"num_scored": report.num_scored, "is_complete": report.is_complete, "files": files})


RUNS: dict[str, Callable[[Path], None]] = {run.__name__: run for run in (evaluate, stream, watch, scores)}


def run_all(folder: Path) -> None:
    for name, run in RUNS.items():
        (folder / name).mkdir(exist_ok=True)
        run(folder / name)


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which each run has one of its own, with what one process and two kept there."""
    folder = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    run_all(folder)
    return folder


@pytest.mark.slow
def test_two_processes_find_the_figures_of_one(ran):
    one, *both = kept(ran / "evaluate")

    for two in both:
        assert two == pytest.approx(one, rel=1e-4)
    assert {"eval_few_loss", "eval_uneven_loss", "eval_uneven_ndcg@10", "eval_NanoBEIR_R100_mean_ndcg@10"} <= set(one)
    assert one["trained_eval_uneven_loss"] != one["eval_uneven_loss"]


@pytest.mark.slow
def test_two_processes_share_a_stream_and_train_and_log_as_one_does(ran):
    alone, first, second = kept(ran / "stream")

    assert len(alone["batches"]) == 14 and len({query for batch in alone["batches"] for query in batch}) == 28
    assert [one + other for one, other in zip(first["batches"], second["batches"], strict=True)] == alone["batches"]
    one, two = (torch.load(ran / "stream" / f"weights-{number}.pt") for number in (1, 2))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    assert (alone["log"]["groups_web"], alone["log"]["groups_clicks"]) == (42, 14)
    for name in ("loss", "loss_web", "loss_clicks", "groups_web", "groups_clicks"):
        assert first["log"][name] == pytest.approx(alone["log"][name], abs=1e-4)


@pytest.mark.slow
def test_two_processes_log_the_figures_of_one_and_stop_together(ran):
    one, first, second = kept(ran / "watch")

    assert first["error"] == second["error"]
    assert "process 0: row 9: poisoned is nan" in first["error"]
    assert "process 1: all scores and losses are finite, of rows 12, 13, 14, 15" in first["error"]
    assert "row 9: poisoned is nan" in one["error"] and "step 2 " in one["error"]
    assert len(one["windows"]) == 9 and first["windows"] == second["windows"]
    np.testing.assert_allclose(first["windows"], one["windows"], rtol=1e-3)
    assert (ran / "watch" / "out-2" / "last-finite-step-1" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_write_the_teacher_scores_of_one_into_one_folder(ran):
    alone, first, second = kept(ran / "scores")

    # shards of 4, 4, 4, 4, 4, 4, 1 groups by turns
    assert (alone["num_scored"], first["num_scored"], second["num_scored"]) == (150, 78, 72)
    assert alone["is_complete"] and len(alone["files"]) == 8
    assert first["files"] == second["files"] == alone["files"]


if __name__ == "__main__":
    logging.disable()
    run_all(Path(sys.argv[1]))
