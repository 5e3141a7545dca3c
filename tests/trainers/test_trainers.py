"""Trainers end to end on tiny models: they learn, evaluate, stop, resume, distil, and refuse what cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback

from rerank_trainer.evaluation.metrics import ranking_metrics
from rerank_trainer.losses import infonce
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.objectives.naming import contrastive_objective
from rerank_trainer.teachers.teacher import as_teacher
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.sources import TrainSource
from tests.tiny_models import tiny_model
from tests.trainers.conftest import SILENT, small_reranker, word_groups


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher that has learned the word task, its trainer, and its figures before and after."""
    from rerank_trainer.trainers.arguments import RerankTrainingArguments

    args = RerankTrainingArguments(
        str(tmp_path_factory.mktemp("teacher")),
        **SILENT,
        passages_per_query=6,
        per_device_train_batch_size=8,
        num_train_epochs=6,
        learning_rate=4e-3,
    )
    evaluation = word_groups(60, seed=9)
    trainer = ContrastiveRerankTrainer(
        small_reranker(), args, train_dataset=word_groups(160), eval_dataset={"words": evaluation, "same": evaluation}
    )
    before = trainer.evaluate()
    trainer.train()
    return trainer, before, trainer.evaluate()


def test_contrastive_training_learns_the_task(taught):
    _, before, after = taught

    assert before["eval_words_ndcg@10"] < 0.75
    assert after["eval_words_ndcg@10"] > 0.9
    assert after["eval_words_loss"] < before["eval_words_loss"]


def test_evaluation_names_each_set_and_each_metric(taught):
    _, _, figures = taught

    for name in ("words", "same"):
        assert {f"eval_{name}_{metric}" for metric in ("ndcg@10", "mrr@10", "map", "recall@10", "loss")} <= set(figures)
    assert figures["eval_words_map"] == figures["eval_same_map"]


def test_evaluation_equals_metrics_of_predicted_scores(taught):
    trainer, _, figures = taught
    groups = word_groups(60, seed=9)
    scores = [trainer.reranker.predict([(g["query"], p) for p in g["passages"]]).tolist() for g in groups]
    expected = ranking_metrics(scores, groups["labels"], metrics=["ndcg@10", "mrr@10"])

    assert figures["eval_words_ndcg@10"] == pytest.approx(expected["ndcg@10"])
    assert figures["eval_words_mrr@10"] == pytest.approx(expected["mrr@10"])


def test_evaluation_of_ragged_groups_counts_missed_gains_and_ignores_padding(taught):
    trainer, _, _ = taught
    rows = word_groups(5, seed=3).to_list()
    for index, row in enumerate(rows):
        row.update({name: row[name][: 6 - index] for name in ("passages", "labels")})
        row["missed_gains"] = [] if any(row["labels"]) else [1.0]
    groups = datasets.Dataset.from_list(rows)
    scores = [trainer.reranker.predict([(g["query"], p) for p in g["passages"]]).tolist() for g in groups]
    expected = ranking_metrics(scores, groups["labels"], groups["missed_gains"])

    figures = trainer.evaluate(groups)
    assert {name: figures[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert any(groups["missed_gains"])


def test_predict_returns_scores_labels_and_missed_gains(taught):
    trainer, _, _ = taught
    output = trainer.predict(word_groups(5, seed=3))

    assert output.predictions.shape == (5, 6)
    assert np.array_equal(output.label_ids[0], word_groups(5, seed=3)["labels"])
    assert "test_ndcg@10" in output.metrics


@pytest.mark.parametrize("options", [{}, {"label_weight": 0.3}, {"objective": "margin_mse"}], ids=str)
def test_a_student_learns_from_a_teacher(taught, make_args, options):
    teacher, _, _ = taught
    args = make_args(
        num_train_epochs=6, per_device_train_batch_size=8, learning_rate=4e-3, passages_per_query=6, **options
    )
    groups = word_groups(160)
    student = DistillRerankTrainer(
        small_reranker(seed=5),
        args,
        teacher=teacher.reranker,
        train_dataset=groups,
        eval_dataset=word_groups(60, seed=9),
    )
    before = student.evaluate()["eval_ndcg@10"]
    student.train()

    assert student.evaluate()["eval_ndcg@10"] > max(0.85, before + 0.1)


def test_a_precomputed_teacher_trains_as_the_teacher_does(taught, make_args):
    teacher, _, _ = taught
    groups = word_groups(24)
    scores = [teacher.reranker.predict([(g["query"], p) for p in g["passages"]]).tolist() for g in groups]
    weights = []
    for options, rows in (({"teacher": teacher.reranker}, groups), ({}, groups.add_column("teacher_scores", scores))):
        args = make_args(optim="sgd", learning_rate=0.05)
        student = DistillRerankTrainer(small_reranker(seed=5), args, train_dataset=rows, **options)
        student.train()
        weights.append(torch.cat([p.detach().flatten() for p in student.model.parameters()]))

    start = torch.cat([p.detach().flatten() for p in small_reranker(seed=5).model.parameters()])
    assert (weights[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


def test_a_model_with_a_fresh_head_may_teach_once_it_is_trained(make_args, minilm_path):
    options = {"model_init_kwargs": {"keep_layers": 1}, "max_length": 32, "max_steps": 1}
    trainer = ContrastiveRerankTrainer(minilm_path, make_args(**options), train_dataset=word_groups(4))
    with pytest.raises(ValueError, match="freshly initialised"):
        as_teacher(trainer.reranker)
    trainer.train()

    assert as_teacher(trainer.reranker).scale == "logit"


def test_distillation_needs_no_labels(make_args):
    groups = word_groups(8).remove_columns("labels").add_column("teacher_scores", [[0.1 * i for i in range(6)]] * 8)
    trainer = DistillRerankTrainer(small_reranker(), make_args(), train_dataset=groups)

    assert trainer.train().training_loss > 0


def test_early_stopping_and_the_best_model_follow_a_ranking_metric(make_args):
    args = make_args(
        num_train_epochs=8,
        learning_rate=1e-8,  # nothing improves, so patience runs out
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="ndcg@10",
    )
    trainer = ContrastiveRerankTrainer(
        small_reranker(),
        args,
        train_dataset=word_groups(8),
        eval_dataset=word_groups(20, seed=2),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()

    assert trainer.state.epoch == 3
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.args.greater_is_better is True


def weights_at_the_end(make_args, *, resume_from=None):
    args = make_args(num_train_epochs=2, save_strategy="steps", save_steps=1, seed=11)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(16))
    trainer.train(resume_from_checkpoint=resume_from and str(Path(args.output_dir) / resume_from))
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("step", [2, 4, 6], ids=["mid epoch 0", "between epochs", "mid epoch 1"])
def test_a_resumed_run_ends_with_the_weights_of_the_whole_run(make_args, step):
    whole = weights_at_the_end(make_args)

    assert torch.equal(whole, weights_at_the_end(make_args, resume_from=f"checkpoint-{step}"))


def test_bfloat16_training_leaves_a_model_that_scores_as_its_files_do(make_args, tmp_path):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(bf16=True), train_dataset=word_groups(8))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    pairs = [("water", "fire and rain"), ("ship", "the ship sailed north")]

    again = Reranker.from_pretrained(tmp_path / "saved").predict(pairs)
    torch.testing.assert_close(trainer.reranker.predict(pairs), again, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_other_architectures_train_and_save(make_args, tmp_path, kind):
    trainer = ContrastiveRerankTrainer(small_reranker(kind=kind), make_args(), train_dataset=word_groups(8))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    pairs = [("water", "fire and rain"), ("ship", "the ship sailed north")]

    again = Reranker.from_pretrained(tmp_path / "saved").predict(pairs)
    torch.testing.assert_close(trainer.reranker.predict(pairs), again, atol=1e-6, rtol=0)


def test_a_model_given_by_name_draws_its_head_from_the_seed(make_args, minilm_path):
    options = {"model_init_kwargs": {"keep_layers": 1}, "max_length": 32}
    first, again, other = (
        ContrastiveRerankTrainer(minilm_path, make_args(seed=seed, **options)).model.classifier.weight
        for seed in (1, 1, 2)
    )

    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_plain_model_needs_its_tokenizer(make_args):
    model, tokenizer = tiny_model("bert")

    with pytest.raises(ValueError, match="BertForSequenceClassification without its tokenizer"):
        ContrastiveRerankTrainer(model, make_args())
    assert (
        ContrastiveRerankTrainer(model, make_args(max_length=32), processing_class=tokenizer).reranker.max_length == 32
    )


def test_rows_in_any_layout_train(make_args, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"query": g["query"], "pos": g["passages"][:1], "neg": g["passages"][1:]} for g in word_groups(8)]
    path.write_text("\n".join(map(str, rows)).replace("'", '"'))

    assert ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=str(path)).train().global_step == 2


def test_graded_labels_are_refused_by_a_loss_that_takes_probabilities(make_args):
    groups = word_groups(3).map(lambda row: {"labels": [2 * label for label in row["labels"]]})

    with pytest.raises(ValueError, match="row 0, column labels: 2.0 is above 1.0"):
        ContrastiveRerankTrainer(small_reranker(), make_args(objective="bce"), train_dataset=groups)


@pytest.mark.parametrize(
    ("trainer_class", "groups", "message"),
    [
        (DistillRerankTrainer, word_groups(2), "compares with teacher_scores, .*Pass teacher="),
        (
            ContrastiveRerankTrainer,
            word_groups(2).remove_columns("labels").add_column("teacher_scores", [[1.0] * 6] * 2),
            "compares with labels",
        ),
    ],
)
def test_rows_without_what_the_objective_needs_are_refused(make_args, trainer_class, groups, message):
    with pytest.raises(ValueError, match=message):
        trainer_class(small_reranker(), make_args(), train_dataset=groups)


def test_an_evaluation_set_without_labels_is_refused(make_args):
    groups = word_groups(2).remove_columns("labels").add_column("teacher_scores", [[1.0] * 6] * 2)

    with pytest.raises(ValueError, match="no labels, so nothing can be measured"):
        ContrastiveRerankTrainer(small_reranker(), make_args(), eval_dataset=groups)


def test_two_teachers_are_refused(taught, make_args):
    groups = word_groups(2).add_column("teacher_scores", [[1.0] * 6] * 2)

    with pytest.raises(ValueError, match="column teacher_scores already"):
        DistillRerankTrainer(small_reranker(), make_args(), teacher=taught[0].reranker, train_dataset=groups)


@pytest.mark.parametrize(
    "options",
    [{"label_weight": 0.5}, {"label_loss": "hinge"}, {"label_loss_options": {"k": 3}}, {"teacher_temperature": 2.0}],
    ids=lambda o: next(iter(o)),
)
def test_settings_that_only_a_teacher_gives_a_meaning_are_refused(make_args, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* needs a teacher"):
        ContrastiveRerankTrainer(small_reranker(), make_args(**options))


@pytest.mark.parametrize("options", [{"label_loss": "hinge"}, {"label_loss_options": {"margin": 2.0}}], ids=str)
def test_a_loss_of_the_labels_without_weight_is_refused(make_args, options):
    groups = word_groups(2).add_column("teacher_scores", [[1.0] * 6] * 2)

    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* would do nothing at label_weight=0"):
        DistillRerankTrainer(small_reranker(), make_args(**options), train_dataset=groups)


def test_options_of_losses_reach_the_named_objectives(make_args):
    options = {"objective": "hinge", "loss_options": {"margin": 2.0}}
    contrastive = ContrastiveRerankTrainer(small_reranker(), make_args(**options))
    mixture = {"label_weight": 0.5, "label_loss": "lambdarank", "label_loss_options": {"k": 3}}
    distill = DistillRerankTrainer(small_reranker(), make_args(**options, **mixture))

    assert repr(contrastive.objective.loss_fn.func) == "hinge(margin=2.0)"
    assert [repr(part.loss_fn.func) for part in distill.objective.parts] == ["hinge(margin=2.0)", "lambdarank(k=3)"]
    sources = {
        "a": TrainSource(word_groups(3), objective="infonce"),
        "b": TrainSource(word_groups(3), objective="hinge"),
    }
    by_source = ContrastiveRerankTrainer(small_reranker(), make_args(**options), train_dataset=sources).objective
    losses = [part.loss_fn.func for part in by_source.parts]
    assert losses[0] is infonce and repr(losses[1]) == "hinge(margin=2.0)"  # those of hinge are of no other loss


def test_options_beside_an_objective_that_is_an_object_are_refused(make_args):
    with pytest.raises(ValueError, match=r"loss_options=\{'k': 3\} go with an objective that is named"):
        RerankTrainer(small_reranker(), make_args(loss_options={"k": 3}), objective=contrastive_objective("infonce"))


@pytest.mark.parametrize("setting", [{"temperature": 2.0}, {"teacher_temperature": "auto"}, {"label_weight": 0.3}])
def test_settings_that_would_do_nothing_beside_an_object_are_refused(make_args, setting):
    with pytest.raises(ValueError, match=re.escape(f"{setting} go with an objective that is named")):
        RerankTrainer(small_reranker(), make_args(**setting), objective=contrastive_objective("infonce"))


def test_settings_beside_an_object_reach_the_sources_that_are_named(make_args):
    sources = {"a": TrainSource(word_groups(3), objective="infonce"), "b": TrainSource(word_groups(3))}
    options = {"objective": contrastive_objective("hinge"), "train_dataset": sources}
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(temperature=2.0), **options)

    assert [part.loss_fn.keywords["temperature"] for part in trainer.objective.parts] == [2.0, 1.0]


def test_two_objectives_are_refused(make_args):
    with pytest.raises(ValueError, match="two objectives: args.objective='bce'"):
        RerankTrainer(small_reranker(), make_args(objective="bce"), objective=contrastive_objective("infonce"))


def test_a_trainer_without_objective_names_its_two_subclasses(make_args):
    with pytest.raises(ValueError, match="use ContrastiveRerankTrainer or DistillRerankTrainer"):
        RerankTrainer(small_reranker(), make_args())
