"""Checkpoints as teacher: snapshots planted around a true scoring function, averaged, ranked, and dropped."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import pytest
import torch

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.checkpoints import CheckpointTeacher, information_bound
from rerank_trainer.teachers.store import add_teacher_scores
from tests.tiny_models import TEXTS, tiny_model

# The last layer of each snapshot is the true one with noise of its own; of the bad one it is reversed.
NOISY = (10, 200, 20)
BAD = 40


def true_reranker() -> Reranker:
    return Reranker(*tiny_model("bert"), max_length=48)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, datasets.Dataset, torch.Tensor]:
    """A run with three noisy snapshots and a bad one, groups that are labelled by the truth, and its scores."""
    run = tmp_path_factory.mktemp("run")
    truth = true_reranker()
    weight = truth.model.classifier.weight.detach().clone()
    for step in (*NOISY, BAD):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            truth.model.classifier.weight.copy_(-weight if step == BAD else weight + 0.5 * weight.std() * noise)
        truth.save_pretrained(run / f"checkpoint-{step}")
    (run / "checkpoint-best").mkdir()
    truth = true_reranker()
    scores = truth.predict([(query, passage) for query in TEXTS for passage in TEXTS]).view(len(TEXTS), -1)
    labels = [[float(i == int(row.argmax())) for i in range(len(TEXTS))] for row in scores]
    rows = {"query": TEXTS, "passages": [TEXTS] * len(TEXTS), "labels": labels}
    return run, datasets.Dataset.from_dict(rows), scores


def scores_of(teacher, groups) -> torch.Tensor:
    return torch.tensor(teacher.score(groups.to_list())["scores"])


def test_the_mean_of_snapshots_is_nearer_to_the_truth_than_each_of_them(planted):
    run, groups, truth = planted
    error = {}
    for select in [(step,) for step in NOISY] + [NOISY]:
        teacher = CheckpointTeacher(run, select=select)
        error[select] = (scores_of(teacher, groups) - truth).square().mean().item()

    assert error[NOISY] < 0.7 * min(error[step,] for step in NOISY)
    assert error[NOISY] > 0


def test_the_mean_is_that_of_what_the_snapshots_score_alone(planted):
    run, groups, _ = planted
    pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
    alone = [Reranker.from_pretrained(run / f"checkpoint-{step}").predict(pairs) for step in (*NOISY, BAD)]

    found = scores_of(CheckpointTeacher(run), groups)

    torch.testing.assert_close(found.flatten(), torch.stack(alone).mean(dim=0), atol=1e-5, rtol=1e-5)


def test_auto_leaves_out_a_bad_snapshot_and_says_what_it_has_measured(planted, caplog):
    run, groups, _ = planted
    caplog.set_level("INFO", "rerank_trainer.teachers.checkpoints")

    teacher = CheckpointTeacher(run, dev_groups=groups, num=3)

    found = {Path(snapshot.folder).name: snapshot for snapshot in teacher.snapshots}
    assert [*found] == ["checkpoint-10", "checkpoint-20", "checkpoint-40", "checkpoint-200"]  # by their steps
    assert [name for name, snapshot in found.items() if not snapshot.is_chosen] == [f"checkpoint-{BAD}"]
    assert found[f"checkpoint-{BAD}"].bound < 0 < min(found[f"checkpoint-{step}"].bound for step in NOISY)
    lines = [record.getMessage() for record in caplog.records]
    bad = found[f"checkpoint-{BAD}"]
    assert len(lines) == 4 and lines[2] == f"left out {bad.folder}: {bad.bound:.4f} nats of the dev labels"


def test_auto_takes_the_snapshots_that_hold_the_positives_for_most_probable(planted):
    run, groups, _ = planted
    teacher = CheckpointTeacher(run, dev_groups=groups, num=1)

    def log_loss(step: int) -> float:
        scores = scores_of(CheckpointTeacher(run, select=[step]), groups)
        return torch.nn.functional.cross_entropy(scores, torch.tensor(groups["labels"])).item()

    losses = {step: log_loss(step) for step in (*NOISY, BAD)}
    (chosen,) = [snapshot for snapshot in teacher.snapshots if snapshot.is_chosen]
    best = min(losses, key=losses.__getitem__)
    assert Path(chosen.folder).name == f"checkpoint-{best}"
    assert chosen.bound == pytest.approx(math.log(len(TEXTS)) - losses[best], abs=1e-5)


def test_the_bound_is_log_k_for_one_that_knows_all_and_0_for_one_that_knows_nothing():
    labels = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0] * 4]

    assert information_bound([[40.0, 0, 0, 0], [0, 40.0, 0, 0], [0.0] * 4], labels) == pytest.approx(math.log(4))
    assert information_bound([[1.0] * 4] * 3, labels) == pytest.approx(0.0)
    assert information_bound([[0.0, 40.0, 0, 0], [40.0, 0, 0, 0], [0.0] * 4], labels) < -30


def test_the_fingerprint_is_that_of_the_snapshots_that_teach(planted, tmp_path):
    run, groups, _ = planted
    fingerprints = {CheckpointTeacher(run, select=select).fingerprint for select in (["checkpoint-10"], [20], [10, 20])}
    assert len(fingerprints) == 3
    assert CheckpointTeacher([run / "checkpoint-10"]).fingerprint in fingerprints

    scored = add_teacher_scores(groups, CheckpointTeacher(run, select=[10]), cache_dir=tmp_path)
    again = add_teacher_scores(groups, CheckpointTeacher(run, select=[10]), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and scored["teacher_scores"][:] == again["teacher_scores"][:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "auto"}, "chooses 3 of 4 snapshots by the labels of dev_groups, and there are none"),
        ({"select": "best"}, "select='best': expected 'auto', 'all', or a list"),
        ({"select": [10, 11]}, r"select=\[10, 11\]: expected some of \['checkpoint-10', 'checkpoint-20'"),
        ({"select": []}, r"select=\[\]: expected some of"),
    ],
    ids=str,
)
def test_what_cannot_be_selected_is_refused_with_what_there_is(planted, options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointTeacher(planted[0], **options)


def test_a_number_beyond_the_snapshots_is_refused(planted):
    run, groups, _ = planted

    with pytest.raises(ValueError, match="num=5: expected from 1 to 4"):
        CheckpointTeacher(run, dev_groups=groups, num=5)


def test_dev_groups_without_a_positive_are_refused(planted):
    run, groups, _ = planted
    without = groups.map(lambda row: {"labels": [0.0] * len(row["labels"])})

    with pytest.raises(ValueError, match="none of the 5 dev groups has a passage with a label above 0"):
        CheckpointTeacher(run, dev_groups=without, num=1)


def test_snapshots_that_are_asked_for_are_measured_too_where_there_are_dev_groups(planted):
    run, groups, _ = planted
    teacher = CheckpointTeacher(run, select=[BAD], dev_groups=groups)

    assert [snapshot.is_chosen for snapshot in teacher.snapshots] == [False, False, True, False]
    assert teacher.snapshots[2].bound == min(snapshot.bound for snapshot in teacher.snapshots)
    with pytest.raises(ValueError, match=r"dev_groups have the columns \[.*\] and no labels"):
        CheckpointTeacher(run, select=[BAD], dev_groups=groups.rename_column("labels", "teacher_scores"))


def test_a_folder_without_snapshots_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no folders checkpoint-"):
        CheckpointTeacher(tmp_path)
