"""Training on streams: as on a data set in its order, by two processes as by one, and on from a checkpoint.

This file is the test, and the script that each of two processes runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.sources import TrainSource
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.test_hooks import ragged_groups
from tests.trainers.test_sources import distance, sources_of_batches

ROOT = Path(__file__).parents[2]
SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}


def as_stream(groups, num_shards=1):
    return groups.to_iterable_dataset(num_shards=num_shards)


def queries_of_batches(trainer):
    """A list that fills with the queries of each batch, in the process that makes it."""
    batches, inner = [], trainer.data_collator

    def collate(groups):
        batches.append([group["query"] for group in groups])
        return inner(groups)

    collate.sources = inner.sources
    trainer.data_collator = collate
    return batches


def numbered_groups(num_groups):
    rows = word_groups(num_groups).to_list()
    return datasets.Dataset.from_list([row | {"query": f"{row['query']} {i}"} for i, row in enumerate(rows)])


def train(folder: Path) -> None:
    """Train seven steps of 8 groups of a stream and of a data set, however many processes there are."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = RerankTrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        ddp_backend="gloo" if num_processes > 1 else None,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        passages_per_query=4,
        per_device_train_batch_size=4 // num_processes,
        gradient_accumulation_steps=2,
        max_steps=7,
        logging_steps=7,
        **{**SGD, "learning_rate": 0.01},  # rounding, which differs between cuts, grows with the steps
    )
    reranker = small_reranker(spread=0.3)
    groups = numbered_groups(28)
    rows = {
        "web": TrainSource(as_stream(groups.select(range(20)), num_shards=2), weight=3),
        "clicks": TrainSource(groups.select(range(20, 28)), weight=1, objective="bce"),
    }
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=rows)
    batches = queries_of_batches(trainer)
    trainer.train()
    # the loader of accelerate makes one batch more than it hands out
    (folder / f"queries-{num_processes}-{args.process_index}.json").write_text(json.dumps(batches[:14]))
    if trainer.is_world_process_zero():
        torch.save(reranker.model.state_dict(), folder / f"weights-{num_processes}.pt")
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        (folder / f"log-{num_processes}.json").write_text(json.dumps(entry))


@pytest.mark.slow
def test_two_processes_share_a_stream_and_train_and_log_as_one_does(tmp_path):
    train(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launch, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]

    alone, first, second = (json.loads((tmp_path / f"queries-{n}.json").read_text()) for n in ("1-0", "2-0", "2-1"))
    assert len(alone) == 14 and len({query for batch in alone for query in batch}) == 28
    assert [one + other for one, other in zip(first, second, strict=True)] == alone
    one, two = (torch.load(tmp_path / f"weights-{number}.pt") for number in (1, 2))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    log, log_of_two = (json.loads((tmp_path / f"log-{number}.json").read_text()) for number in (1, 2))
    assert (log["groups_web"], log["groups_clicks"]) == (42, 14)
    for name in ("loss", "loss_web", "loss_clicks", "groups_web", "groups_clicks"):
        assert log_of_two[name] == pytest.approx(log[name], abs=1e-4)


def trained(rows, args, trainer_class=None, *, resume_from=None):
    trainer = (trainer_class or ContrastiveRerankTrainer)(small_reranker(spread=0.3), args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def test_a_stream_trains_as_the_data_set_does_in_its_order(make_args):
    groups = ragged_groups()  # with teacher scores
    options = {"passages_per_query": 6, "max_steps": 8, "label_weight": 0.4, **SGD}
    whole = trained(groups, make_args(train_sampling_strategy="sequential", **options), DistillRerankTrainer)
    stream = trained(as_stream(groups), make_args(**options), DistillRerankTrainer)

    assert distance(whole, small_reranker(spread=0.3)) > 1e-2
    assert distance(whole, stream) < 1e-6


@pytest.mark.parametrize("step", [2, 5], ids=["in the first pass", "in the second"])
def test_a_resumed_run_ends_with_the_weights_of_the_whole_run(make_args, step):
    # 3 steps of 4 groups are a pass of 12
    stream = as_stream(word_groups(12)).shuffle(seed=5, buffer_size=6)
    args = make_args(max_steps=6, save_strategy="steps", save_steps=1, **SGD)
    whole = trained(stream, args)
    resumed = trained(stream, args, resume_from=f"{args.output_dir}/checkpoint-{step}")

    assert distance(whole, resumed) == 0.0 and resumed.state.global_step == 6


def test_a_stream_and_a_data_set_train_together_by_their_weights(make_args):
    rows = {
        "web": TrainSource(as_stream(word_groups(10)), weight=1, instruction="Find it."),
        "clicks": TrainSource(word_groups(6, seed=3), weight=1, objective="bce"),
    }
    args = make_args(max_steps=6, batch_sources="one", logging_strategy="steps", logging_steps=6)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=rows)
    batches = sources_of_batches(trainer)
    trainer.train()

    assert all(len(batch) == 4 and len(set(batch)) == 1 for batch in batches)
    assert {batch[0] for batch in batches} == {0, 1}
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["groups_web"] == 4 * sum(batch[0] == 0 for batch in batches)
    assert entry["loss_clicks"] > 0 < entry["loss_web"]


def test_the_batches_of_a_stream_are_not_joined_and_cut_by_accelerate(make_args):
    args = make_args(max_steps=1)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=as_stream(word_groups(8)))

    assert trainer.accelerator.dispatch_batches is False
    assert args.accelerator_config.dispatch_batches is None  # the caller's arguments stay as they were


def test_a_label_that_the_loss_cannot_take_stops_the_stream_where_it_comes(make_args):
    groups = word_groups(8).to_list()
    groups[5]["labels"] = [2.0] + [0.0] * 5
    trainer = ContrastiveRerankTrainer(
        small_reranker(),
        make_args(max_steps=4, objective="bce"),
        train_dataset=as_stream(datasets.Dataset.from_list(groups)),
    )

    with pytest.raises(ValueError, match="row 5, column labels: 2.0 is above 1.0"):
        trainer.train()


class Teacher:
    scale, fingerprint = "logit", "nothing"

    def score(self, groups):
        raise AssertionError("asked")


@pytest.mark.parametrize(
    ("rows", "options", "trainer_options", "message"),
    [
        (as_stream(word_groups(4)), {}, {}, "max_steps=-1: a stream has no length"),
        (
            {"a": as_stream(word_groups(4)), "b": word_groups(4)},
            {"max_steps": 2},
            {},
            r"shares of \['a', 'b'\] could follow: give every source a weight",
        ),
        (
            as_stream(word_groups(4)),
            {"max_steps": 2, "accelerator_config": {"dispatch_batches": True}},
            {},
            "one process would cut batches apart",
        ),
        (as_stream(word_groups(4)), {"max_steps": 2}, {"teacher": Teacher()}, "these rows are a stream"),
        (
            {"a": as_stream(word_groups(4))},
            {"max_steps": 2},
            {},
            r"source 'a': objective \('kl',\) compares with teacher_scores",
        ),
    ],
)
def test_streams_that_cannot_be_trained_on_are_refused(make_args, rows, options, trainer_options, message):
    trainer_class = DistillRerankTrainer if "kl" in message or trainer_options else ContrastiveRerankTrainer
    with pytest.raises(ValueError, match=message):
        trainer_class(small_reranker(), make_args(**options), train_dataset=rows, **trainer_options)


def test_an_evaluation_stream_is_refused(make_args):
    stream = as_stream(word_groups(4))
    with pytest.raises(ValueError, match="the evaluation set is a stream"):
        ContrastiveRerankTrainer(small_reranker(), make_args(), eval_dataset={"web": stream})


if __name__ == "__main__":
    train(Path(sys.argv[1]))
