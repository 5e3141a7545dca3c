"""The metrics of an evaluation: the same however the groups are cut into batches, and handed to the user's own."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from rerank_trainer.evaluation.metrics import ranking_metrics
from rerank_trainer.objectives.naming import contrastive_objective
from rerank_trainer.objectives.objective import WeightedObjective
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.metrics import GroupMetrics
from tests.trainers.conftest import small_reranker, word_groups

NAMES = ["loss", "ndcg@10", "mrr@10", "map", "recall@10"]


def groups_to_judge() -> datasets.Dataset:
    """Seven groups of unlike size; two have no passages at all, one no positive, several miss gains."""
    rows = word_groups(7, seed=1).to_list()
    for index, row in enumerate(rows):
        size = [6, 0, 3, 5, 2, 4, 0][index]
        row.update({name: row[name][:size] for name in ("passages", "labels")})
        row["missed_gains"] = [[], [2.0, 1.0], [], [1.0], [3.0, 1.0, 1.0], [], [1.0]][index]
    rows[5]["labels"] = [0.0] * 4
    return datasets.Dataset.from_list(rows)


def evaluated(make_args, *, compute_metrics=None, **options):
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3),
        make_args(**options),
        eval_dataset=groups_to_judge(),
        compute_metrics=compute_metrics,
    )
    return trainer, trainer.evaluate()


@pytest.fixture(scope="module")
def expected():
    """By the slow definition: each group scored alone; the loss is the mean over the groups that define it."""
    reranker, groups = small_reranker(spread=0.3), groups_to_judge()
    scores = [reranker.predict([(g["query"], p) for p in g["passages"]]).numpy() for g in groups]
    losses = [
        np.log(np.exp(row).sum()) - row[np.argmax(g["labels"])]
        for row, g in zip(scores, groups, strict=True)
        if any(g["labels"]) and len(row) > 1
    ]
    figures = ranking_metrics(scores, groups["labels"], groups["missed_gains"])
    assert len(losses) >= 2 and 0 < figures["mrr@10"] < 1
    return {"loss": np.mean(losses), **figures}


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_eval_batch_size": 7},
        {"per_device_eval_batch_size": 3},
        {"per_device_eval_batch_size": 1},
        {"per_device_eval_batch_size": 2, "eval_accumulation_steps": 1},
        {"per_device_eval_batch_size": 2, "batch_eval_metrics": True},
        {"per_device_eval_batch_size": 2, "eval_do_concat_batches": False},
        {"per_device_eval_batch_size": 2, "include_for_metrics": ["loss"]},
    ],
    ids=str,
)
def test_figures_do_not_depend_on_how_the_groups_were_cut_into_batches(make_args, expected, options):
    _, figures = evaluated(make_args, **options)

    assert {name: figures[f"eval_{name}"] for name in NAMES} == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_the_users_own_is_averaged_as_transformers_does(make_args):
    class Own(ContrastiveRerankTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return inputs["labels"].shape[0] * torch.tensor(1.5), {"scores": self._scores(model, inputs)}

    trainer = Own(small_reranker(), make_args(per_device_eval_batch_size=4), eval_dataset=groups_to_judge())
    assert trainer.evaluate()["eval_loss"] == pytest.approx((4 * 6.0 + 3 * 4.5) / 7)


def test_only_the_loss_is_there_when_only_the_loss_is_asked_for(make_args, expected):
    _, figures = evaluated(make_args, prediction_loss_only=True, per_device_eval_batch_size=2)

    assert figures["eval_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert "eval_ndcg@10" not in figures


def test_each_part_of_a_mixture_is_averaged_over_the_groups_that_define_it(make_args):
    groups = groups_to_judge().remove_columns("missed_gains")
    groups = groups.select([0, 2, 3, 4, 5]).add_column("weight", [1.0, 2.0, 1.0, 0.5, 1.0])
    infonce, bce = (contrastive_objective(name, temperature=1.0) for name in ("infonce", "bce"))
    args = make_args(per_device_eval_batch_size=2)

    def loss_of(objective):
        trainer = RerankTrainer(small_reranker(spread=0.3), args, objective=objective, eval_dataset=groups)
        return trainer.evaluate()["eval_loss"]

    mixture = WeightedObjective([(0.25, infonce), (2.0, bce)])
    assert loss_of(mixture) == pytest.approx(0.25 * loss_of(infonce) + 2.0 * loss_of(bce), rel=1e-5)


def test_metrics_of_the_users_own_see_scores_labels_and_missed_gains_padded_alike(make_args):
    seen = []

    def own(prediction):
        seen.append(prediction)
        return {"mine": 7.0}

    _, figures = evaluated(make_args, compute_metrics=own, per_device_eval_batch_size=3)

    scores, (labels, missed) = seen[0].predictions, seen[0].label_ids
    assert figures["eval_mine"] == 7.0 and "eval_ndcg@10" not in figures
    assert scores.shape == labels.shape == (7, 6) and missed.shape == (7, 3)
    assert ((scores == -100) == (labels == -100)).all() and (labels[1] == -100).all()
    assert missed[4].tolist() == [3.0, 1.0, 1.0] and missed[1].tolist() == [2.0, 1.0, -100.0]


def test_an_evaluation_that_was_broken_off_leaves_nothing_behind(make_args, expected):
    trainer, _ = evaluated(make_args, batch_eval_metrics=True, per_device_eval_batch_size=2)
    step, steps = trainer.prediction_step, []

    def breaks(*args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("broken off")
        return step(*args, **kwargs)

    trainer.prediction_step = breaks
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.evaluate()
    figures = trainer.evaluate()

    assert {name: figures[f"eval_{name}"] for name in NAMES} == pytest.approx(expected, rel=1e-5)


def test_label_names_without_labels_or_missed_gains_are_refused(make_args):
    with pytest.raises(ValueError, match=r"label_names=\['labels'\]: ranking metrics need"):
        evaluated(make_args, label_names=["labels"])
    assert GroupMetrics(["map"], ["row", "labels", "missed_gains"]).label_names[0] == "row"


def test_more_label_names_are_taken_in_their_own_order(make_args, expected):
    _, figures = evaluated(make_args, label_names=["mask", "missed_gains", "labels"])

    assert figures["eval_map"] == pytest.approx(expected["map"], rel=1e-5)


def test_inputs_for_metrics_are_refused_before_the_model_is_loaded(make_args):
    with pytest.raises(ValueError, match=r"include_for_metrics=\['inputs'\] is not supported: a batch of groups"):
        ContrastiveRerankTrainer("no such model", make_args(include_for_metrics=["inputs"]))
