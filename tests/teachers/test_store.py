"""The store of teacher scores: paid once, tied to teacher and texts, never read damaged."""

from __future__ import annotations

import datasets
import pytest
import torch

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers import store
from rerank_trainer.teachers.store import add_teacher_scores
from rerank_trainer.teachers.teacher import RerankerTeacher, as_teacher
from tests.tiny_models import TEXTS, tiny_model

GROUPS = datasets.Dataset.from_dict({"query": TEXTS[:3], "passages": [TEXTS[:2], TEXTS[1:4], TEXTS[4:]]})


class LengthTeacher:
    """A teacher whose score is the passage's length, and that counts what it is asked."""

    scale = "logit"

    def __init__(self, fingerprint="lengths", answer=lambda passage: float(len(passage))):
        self.fingerprint, self.answer, self.asked = fingerprint, answer, 0

    def score(self, groups):
        self.asked += len(groups)
        return {"scores": [[self.answer(passage) for passage in group["passages"]] for group in groups]}


def test_scores_stand_beside_their_passages(tmp_path):
    scored = add_teacher_scores(GROUPS, LengthTeacher(), cache_dir=tmp_path)

    assert scored["teacher_scores"][:] == [[float(len(text)) for text in passages] for passages in GROUPS["passages"]]


def test_a_second_run_pays_nothing_and_reads_the_same(tmp_path):
    first = add_teacher_scores(GROUPS, LengthTeacher(), cache_dir=tmp_path)
    teacher = LengthTeacher()
    second = add_teacher_scores(GROUPS, teacher, cache_dir=tmp_path)

    assert teacher.asked == 0
    assert second["teacher_scores"][:] == first["teacher_scores"][:]


def test_another_teacher_or_other_texts_pay_again(tmp_path):
    add_teacher_scores(GROUPS, LengthTeacher(), cache_dir=tmp_path)
    other, more = LengthTeacher("other"), LengthTeacher()
    add_teacher_scores(GROUPS, other, cache_dir=tmp_path)
    add_teacher_scores(GROUPS.select([2, 1, 0]), more, cache_dir=tmp_path)

    assert (other.asked, more.asked) == (3, 3)


def test_a_killed_run_loses_at_most_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "GROUPS_PER_SHARD", 1)
    dying = LengthTeacher(answer=lambda passage: 1 / 0 if passage == TEXTS[4] else float(len(passage)))
    with pytest.raises(ZeroDivisionError):
        add_teacher_scores(GROUPS, dying, cache_dir=tmp_path)
    teacher = LengthTeacher()
    add_teacher_scores(GROUPS, teacher, cache_dir=tmp_path)

    assert teacher.asked == 1


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, damage):
    add_teacher_scores(GROUPS, LengthTeacher(), cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)

    with pytest.raises(ValueError, match=rf"{path.name} are damaged .*Delete the file"):
        add_teacher_scores(GROUPS, LengthTeacher(), cache_dir=tmp_path)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused_and_not_kept(tmp_path, score):
    teacher = LengthTeacher(answer=lambda passage: score if passage == TEXTS[3] else 0.0)

    with pytest.raises(ValueError, match=f"group 1: the teacher gave the score {score}"):
        add_teacher_scores(GROUPS, teacher, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_groups_with_teacher_scores_are_refused(tmp_path):
    scored = add_teacher_scores(GROUPS, LengthTeacher(), cache_dir=tmp_path)

    with pytest.raises(ValueError, match="teacher_scores already .*teacher=None"):
        add_teacher_scores(scored, LengthTeacher(), cache_dir=tmp_path)


def test_a_reranker_teaches_its_own_scores(tmp_path):
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    scored = add_teacher_scores(GROUPS, as_teacher(reranker), cache_dir=tmp_path)

    for group in scored:
        pairs = [(group["query"], passage) for passage in group["passages"]]
        torch.testing.assert_close(torch.tensor(group["teacher_scores"]), reranker.predict(pairs), atol=1e-5, rtol=0)


def test_the_fingerprint_follows_weights_and_settings_and_nothing_else():
    same = [RerankerTeacher(Reranker(*tiny_model("bert"), max_length=64)).fingerprint for _ in range(2)]
    others = [
        RerankerTeacher(Reranker(*tiny_model("bert", seed=1), max_length=64)).fingerprint,
        RerankerTeacher(Reranker(*tiny_model("bert"), max_length=63)).fingerprint,
        RerankerTeacher(Reranker(*tiny_model("bert"), max_length=64), autocast_dtype=torch.bfloat16).fingerprint,
    ]

    assert same[0] == same[1] and len({same[0], *others}) == 4


def test_a_teacher_with_an_untrained_head_is_refused():
    reranker = Reranker(*tiny_model("bert"), fresh_parameters=["classifier.weight"])

    with pytest.raises(ValueError, match="'classifier.weight'.* are freshly initialised"):
        as_teacher(reranker)


def test_what_is_no_teacher_is_refused():
    with pytest.raises(ValueError, match="teacher=3: expected a Hub id"):
        as_teacher(3)
