"""Several data sets in one run: they train as one does, each with its own objective, and the log tells them apart."""

from __future__ import annotations

import logging

import pytest
import torch

from rerank_trainer.objectives.naming import contrastive_objective
from rerank_trainer.teachers.teacher import as_teacher
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.sources import TrainSource
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.test_hooks import ragged_groups

SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}


def scored(groups, scale=1.0):
    scores = [[scale * label + 0.1 * i for i, label in enumerate(row)] for row in groups["labels"]]
    return groups.add_column("teacher_scores", scores)


def trained(trainer_class, rows, args, **options):
    trainer = trainer_class(small_reranker(spread=0.3), args, train_dataset=rows, **options)
    trainer.train()
    return trainer


def distance(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def test_two_halves_of_a_data_set_train_as_the_whole_does(make_args):
    groups = ragged_groups()
    halves = {"first": groups.select(range(11)), "second": groups.select(range(11, 24))}
    options = {"label_weight": 0.4, "gradient_accumulation_steps": 2, **SGD}
    whole, parts = (trained(DistillRerankTrainer, rows, make_args(**options)) for rows in (groups, halves))

    assert distance(whole, small_reranker(spread=0.3)) > 1e-2  # it has learned something
    assert distance(whole, parts) < 1e-6


def test_unlike_objectives_minimise_the_mean_over_all_groups(make_args):
    rows = {
        "clicks": TrainSource(word_groups(5, seed=1), objective="infonce"),
        "taught": TrainSource(scored(word_groups(3, seed=2)).remove_columns("labels")),
    }
    args = make_args(per_device_train_batch_size=8, passages_per_query=6, **SGD)
    trainer = DistillRerankTrainer(small_reranker(spread=0.3), args, train_dataset=rows)
    batch = trainer.data_collator([trainer.train_dataset[0, index] for index in range(8)])
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)

    log_probs = outputs["scores"].log_softmax(dim=1)
    by_hand = [-log_probs[i][word_groups(5, seed=1)[i]["labels"].index(1.0)] for i in range(5)]
    for i, row in enumerate(scored(word_groups(3, seed=2)), start=5):
        target = torch.tensor(row["teacher_scores"]).log_softmax(dim=0)
        by_hand.append((target.exp() * (target - log_probs[i])).sum())
    assert trainer.objective.names == ("clicks/infonce", "taught/kl")
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())


def test_the_log_has_the_loss_and_the_number_of_groups_of_each_source(make_args):
    rows = {
        "clicks": TrainSource(word_groups(6), weight=3, objective="infonce"),
        "taught": TrainSource(scored(word_groups(10)), weight=1),
    }
    args = make_args(logging_strategy="steps", logging_steps=4, gradient_accumulation_steps=1, **SGD)
    trainer = trained(DistillRerankTrainer, rows, args)

    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["groups_clicks"] == 12 and entry["groups_taught"] == 4
    mean = (12 * entry["loss_clicks"] + 4 * entry["loss_taught"]) / 16
    assert entry["loss_clicks"] > 0 < entry["loss_taught"]
    # a step's loss weighs its groups alike, and all four steps have four groups
    assert entry["loss"] == pytest.approx(mean, abs=2e-4)


def sources_of_batches(trainer):
    """A list that fills with the sources of each batch that is trained on."""
    batches, inner = [], trainer.compute_loss

    def compute_loss(model, inputs, *rest, **options):
        batches.append(inputs["source"].tolist())
        return inner(model, inputs, *rest, **options)

    trainer.compute_loss = compute_loss
    return batches


@pytest.mark.parametrize(("batch_sources", "most"), [("one", 1), ("mixed", 2)])
def test_a_batch_holds_one_source_when_asked(make_args, batch_sources, most):
    rows = {"a": word_groups(7, seed=1), "b": word_groups(5, seed=2)}
    args = make_args(batch_sources=batch_sources, gradient_accumulation_steps=2)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=rows)
    kept = sources_of_batches(trainer)
    trainer.train()

    assert max(len(set(batch)) for batch in kept) == most
    assert {source for batch in kept for source in batch} == {0, 1}
    assert len(kept) == (4 if batch_sources == "one" else 3)


def test_a_run_of_several_sources_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(make_args):
    rows = {"a": TrainSource(word_groups(12), weight=1), "b": TrainSource(word_groups(3, seed=5), weight=1)}
    args = make_args(num_train_epochs=2, save_strategy="steps", save_steps=5, batch_sources="one", seed=11)
    whole, resumed = (ContrastiveRerankTrainer(small_reranker(), args, train_dataset=rows) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-5")

    assert distance(whole, resumed) == 0.0 and whole.state.global_step == 8


def test_the_teacher_scores_the_sources_that_compare_with_it(make_args):
    asked = []

    class Teacher:
        scale, fingerprint = "logit", "the number of letters"

        def score(self, groups):
            asked.extend((group["query"], group.get("instruction")) for group in groups)
            return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}

    labelled, bare = word_groups(3, seed=1), word_groups(2, seed=2)
    rows = {
        "clicks": TrainSource(labelled, objective="infonce"),
        "taught": TrainSource(bare, instruction="Find the word."),
    }
    trainer = DistillRerankTrainer(small_reranker(), make_args(), teacher=as_teacher(Teacher()), train_dataset=rows)

    assert asked == [(query, "Find the word.") for query in bare["query"]]
    groups = trainer.train_dataset.groups
    assert groups["teacher_scores"][:3] == [None] * 3
    assert groups["teacher_scores"][3] == [float(len(passage)) for passage in bare["passages"][0]]
    assert groups["instruction"][:] == [""] * 3 + ["Find the word."] * 2


def test_a_column_scores_is_what_its_source_says(make_args):
    groups = word_groups(2).rename_columns({"labels": "scores", "passages": "docs"})
    rows = {
        "given": TrainSource(groups, objective="infonce"),
        "said": TrainSource(groups, scores_are="labels", objective=contrastive_objective("ranknet")),
        "taught": TrainSource(groups),
    }
    found = DistillRerankTrainer(small_reranker(), make_args(), train_dataset=rows).train_dataset.groups

    assert [labels is None for labels in found["labels"]] == [False] * 4 + [True] * 2
    assert [scores is None for scores in found["teacher_scores"]] == [True] * 4 + [False] * 2


def test_evaluation_measures_the_trainers_own_objective(make_args):
    rows = {"clicks": TrainSource(word_groups(6), objective="bce"), "web": word_groups(6)}
    evaluation = word_groups(9, seed=4).add_column("source", ["clicks"] * 9)
    with_sources, alone = (
        ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=train_set, eval_dataset=evaluation)
        for train_set in (rows, word_groups(6))
    )

    assert with_sources.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"] > 0.1
    assert with_sources.objective.names == ("clicks/bce", "web/infonce")


def test_an_unused_instruction_is_said_once(make_args, caplog):
    rows = {name: TrainSource(word_groups(3), instruction=f"Find {name}.") for name in ("a", "b", "c")}
    with caplog.at_level(logging.WARNING):
        ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=rows)

    assert caplog.text.count("the column instruction is not used") == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, r"expected a mapping from name to rows, found the names \[\]"),
        (
            {"a": TrainSource(word_groups(2), weight=0.5), "b": word_groups(2)},
            r"weights of the sources are \{'a': 0.5, 'b': None\}",
        ),
        ({"a": TrainSource(word_groups(2), weight=0.0)}, r"weights of the sources are \{'a': 0.0\}: .* above 0"),
        (
            {"a": word_groups(2), "b": TrainSource(word_groups(2), objective="kl")},
            "objective 'kl' is not known here",
        ),
        (
            {"a": word_groups(2), "b": scored(word_groups(2)).remove_columns("labels")},
            r"source 'b': objective \('infonce',\) compares with labels",
        ),
        (
            {"a": word_groups(2), "b": word_groups(2).remove_columns("query")},
            "source 'b': no layout matches the columns",
        ),
        (
            {"a": TrainSource(word_groups(2).add_column("instruction", ["x", "y"]), instruction="z")},
            "source 'a': the rows have a column instruction and the source says instruction='z'",
        ),
    ],
)
def test_sources_that_do_not_fit_are_refused_by_name(make_args, rows, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=rows)


def test_a_loss_that_takes_probabilities_looks_at_its_own_source_only(make_args):
    graded = word_groups(3).map(lambda row: {"labels": [2 * label for label in row["labels"]]})
    rows = {"graded": graded, "clicks": TrainSource(word_groups(3), objective=contrastive_objective("bce"))}
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=rows)
    assert trainer.train().training_loss > 0

    rows = {"graded": TrainSource(graded, objective="bce"), "clicks": word_groups(3)}
    with pytest.raises(ValueError, match="source 'graded': row 0, column labels: 2.0 is above 1.0"):
        ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=rows)


def test_an_unknown_word_for_the_sources_of_a_batch_is_refused(make_args):
    with pytest.raises(ValueError, match="batch_sources='each': expected 'mixed' or 'one'"):
        make_args(batch_sources="each")
