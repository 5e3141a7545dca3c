"""Training on streams: as on a data set in its order, and on from a checkpoint; by two processes: test_torchrun.py."""

from __future__ import annotations

import datasets
import pytest

from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.sources import TrainSource
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.runs import SGD
from tests.trainers.test_hooks import ragged_groups
from tests.trainers.test_sources import distance, sources_of_batches


def as_stream(groups, num_shards=1):
    return groups.to_iterable_dataset(num_shards=num_shards)


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
