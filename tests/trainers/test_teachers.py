"""Teachers in the distillation trainer: ensembles, rankings and soft labels arrive, and ranks meet no distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.teachers.column import ColumnTeacher
from rerank_trainer.teachers.ensemble import EnsembleTeacher
from rerank_trainer.teachers.ranking import RankingTeacher
from rerank_trainer.teachers.similarity import SimilarityTeacher, TfidfEncoder
from rerank_trainer.trainers.distill import DistillRerankTrainer, warn_of_cpu
from tests.trainers.conftest import small_reranker, word_groups


def test_an_ensemble_of_a_reranker_and_the_rows_own_scores_teaches(make_args):
    groups = word_groups(8)
    own = np.random.default_rng(0).normal(size=(8, 6))
    rows = groups.add_column("teacher_scores", own.tolist())
    member = small_reranker(seed=1)
    teacher = EnsembleTeacher([member, ColumnTeacher()], weights=[0.25, 0.75])
    trainer = DistillRerankTrainer(small_reranker(), make_args(), teacher=teacher, train_dataset=rows)

    of_member = np.array([member.predict([(g["query"], p) for p in g["passages"]]).tolist() for g in groups])
    expected = 0.25 * zscore(of_member, axis=1) + 0.75 * zscore(own, axis=1)
    np.testing.assert_allclose(trainer.train_dataset.groups["teacher_scores"], expected, atol=1e-4)
    assert trainer.train().training_loss > 0


def test_columns_of_several_teachers_reach_an_ensemble(make_args):
    own = np.random.default_rng(0).normal(size=(2, 8, 6))
    rows = (
        word_groups(8).add_column("teacher_scores_a", own[0].tolist()).add_column("teacher_scores_b", own[1].tolist())
    )
    teacher = EnsembleTeacher([ColumnTeacher("teacher_scores_a"), ColumnTeacher("teacher_scores_b")], normalize=None)
    trainer = DistillRerankTrainer(small_reranker(), make_args(), teacher=teacher, train_dataset=rows)

    np.testing.assert_allclose(trainer.train_dataset.groups["teacher_scores"], own.mean(axis=0), atol=1e-6)
    assert trainer.train().training_loss > 0


def test_soft_labels_teach_beside_the_labels(make_args):
    groups = word_groups(8)
    encoder = TfidfEncoder(passage for passages in groups["passages"] for passage in passages)
    objective = MixedObjective(label_weight=0.9, teacher_temperature="auto")
    trainer = DistillRerankTrainer(
        small_reranker(), make_args(), teacher=SimilarityTeacher(encoder), objective=objective, train_dataset=groups
    )

    assert trainer.train().training_loss > 0
    assert trainer.teacher_reports[0].agreement == 1.0


class PaidTeacher(RankingTeacher):
    """Fails the test as soon as it is asked."""

    def score(self, groups):
        raise AssertionError("it was asked")


def test_ranks_are_refused_before_the_teacher_is_asked_where_the_objective_reads_distances(make_args):
    with pytest.raises(ValueError, match=r"\['kl'\] reads the distances between teacher scores, and these are ranks"):
        DistillRerankTrainer(small_reranker(), make_args(), teacher=PaidTeacher({}), train_dataset=word_groups(4))


def test_a_ranking_teaches_a_loss_of_an_order(make_args):
    groups = word_groups(8)
    rankings = {g["query"]: "[1] > [2]" for g in groups}
    trainer = DistillRerankTrainer(
        small_reranker(),
        make_args(objective="ranknet", check_teacher=False),
        teacher=RankingTeacher(rankings, by="text"),
        train_dataset=groups,
    )

    assert trainer.train_dataset.groups["teacher_scores"][:] == [[-1.0, -2.0, -3.0, -3.0, -3.0, -3.0]] * 8
    assert trainer.train().training_loss > 0


def test_rows_that_hold_their_ranking_are_known_as_ranks_until_said_otherwise(make_args):
    rows = word_groups(8).add_column("permutation", ["[2] > [1] > [3] > [6] > [5] > [4]"] * 8)
    options = {"train_dataset": rows.remove_columns("labels")}

    with pytest.raises(ValueError, match="these are ranks"):
        DistillRerankTrainer(small_reranker(), make_args(), **options)
    DistillRerankTrainer(small_reranker(), make_args(objective="adr_mse"), **options)
    DistillRerankTrainer(small_reranker(), make_args(teacher_scale="logit"), **options)


def test_a_teacher_that_is_left_on_the_cpu_beside_an_accelerator_is_named(caplog):
    on_cpu = EnsembleTeacher([small_reranker(), ColumnTeacher()])
    warn_of_cpu(on_cpu, torch.device("cpu"))
    assert not caplog.text
    warn_of_cpu(on_cpu, torch.device("meta"))  # a device that every machine has and that is not the CPU
    assert "the teacher BertForSequenceClassification is on the CPU" in caplog.text and "to('meta')" in caplog.text
