"""Predict: what plain Transformers gives for each pair alone, by as little work as the pairs need."""

from __future__ import annotations

import random
from collections.abc import Sequence

import datasets
import numpy as np
import pytest
import torch

from rerank_trainer.evaluation.evaluator import evaluate_groups
from rerank_trainer.mining.filters import RerankerScores
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.windows import Windows
from rerank_trainer.teachers.check import check_teacher
from rerank_trainer.teachers.teacher import RerankerTeacher
from tests.tiny_models import PAIRS, TEXTS, tiny_model

REPEATED = random.Random(0).sample([pair for pair in PAIRS for _ in range(3)], 3 * len(PAIRS))


class Work:
    """What a reranker's model and tokenizer are asked for."""

    def __init__(self, reranker: Reranker):
        self.num_rows = self.num_tokens = 0
        self.texts: list[str] = []
        reranker.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._tokenizer = reranker.template.tokenizer
        reranker.template.tokenizer = self

    def _count(self, module, args, inputs):
        self.num_rows += len(inputs["input_ids"])
        self.num_tokens += int(inputs["attention_mask"].sum())

    def __call__(self, texts, **options):
        self.texts += texts
        return self._tokenizer(texts, **options)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def plain_scores(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Each pair alone through tokenizer and model, by nothing of ours."""
    scores = []
    for query, passage in pairs:
        inputs = reranker.tokenizer([query], [passage], truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            scores.append(reranker.model(**inputs).logits[0, 0])
    return torch.stack(scores)


@pytest.fixture(params=["bert", "qwen3"])
def reranker(request):
    return Reranker(*tiny_model(request.param), max_length=64)


@pytest.mark.parametrize("pairs_per_chunk", [1, 7, 1000])
def test_repeated_pairs_in_any_order_score_as_plain_transformers_scores_each(reranker, pairs_per_chunk):
    expected = plain_scores(reranker, REPEATED)

    scores = reranker.predict(REPEATED, pairs_per_chunk=pairs_per_chunk)

    assert expected.std() > 0.1 and scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_repetitions_run_no_token_and_each_text_is_tokenised_once():
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    expected = plain_scores(reranker, REPEATED)
    lengths = [len(reranker.tokenizer([q], [p], truncation=True, max_length=64)["input_ids"][0]) for q, p in PAIRS]
    work = Work(reranker)

    scores = reranker.predict(REPEATED)

    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert (work.num_rows, work.num_tokens) == (len(PAIRS), sum(lengths))
    assert sorted(work.texts) == sorted({text for pair in PAIRS for text in pair})


def test_repetitions_run_no_window():
    reranker = Reranker(*tiny_model("bert"), max_length=40)
    long = (TEXTS[0], TEXTS[1] * 6)
    alone, work = reranker.predict([long], windows=Windows(overlap=4)), Work(reranker)

    scores = reranker.predict([long, ("water", "fire"), long], windows=Windows(overlap=4))
    num_rows = work.num_rows
    reranker.predict([long, ("water", "fire")], windows=Windows(overlap=4))

    assert work.num_rows == 2 * num_rows > 4
    assert scores[0] == scores[2] == pytest.approx(alone.item(), abs=1e-5)


class Made(Sequence):
    """Pairs made when asked for, that notes how many are asked for at a time."""

    def __init__(self, num_pairs: int):
        self.num_pairs, self.most = num_pairs, 0

    def __len__(self):
        return self.num_pairs

    def __getitem__(self, index):
        if not isinstance(index, slice):
            return ("water", f"fire {index % 4}")
        places = range(*index.indices(self.num_pairs))
        self.most = max(self.most, len(places))
        return [self[place] for place in places]


def test_pairs_made_on_demand_are_asked_for_in_small_slices():
    reranker, pairs = Reranker(*tiny_model("bert"), max_length=64), Made(5000)
    work = Work(reranker)

    scores = reranker.predict(pairs, pairs_per_chunk=2000, show_progress_bar=False)

    assert pairs.most <= 1024
    assert work.num_rows == 4 * 3  # the four pairs, in each of the three chunks
    expected = plain_scores(reranker, [pairs[place] for place in range(4)])
    torch.testing.assert_close(scores, expected.repeat(1250), atol=1e-5, rtol=0)


def test_a_chunk_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match="pairs_per_chunk=0"):
        Reranker(*tiny_model("bert")).predict(PAIRS, pairs_per_chunk=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_may_be_asked_for_by_the_weights_or_by_the_call(tmp_path, dtype):
    exact = Reranker(*tiny_model("bert", spread=0.1), max_length=64)
    exact.save_pretrained(tmp_path)
    expected = plain_scores(exact, PAIRS)

    by_call = exact.predict(PAIRS, autocast_dtype=dtype)
    by_weights = Reranker.from_pretrained(tmp_path, dtype=dtype).predict(PAIRS)

    for scores in (by_call, by_weights):
        assert scores.dtype == torch.float32
        assert 0 < (scores - expected).abs().max() < 0.05
    assert torch.equal(exact.predict(PAIRS), exact.predict(PAIRS)) and exact.model.dtype == torch.float32


GROUPS = datasets.Dataset.from_dict(
    {
        "query": [TEXTS[0], TEXTS[1], TEXTS[0]],
        "passages": [[TEXTS[2], TEXTS[3], TEXTS[2]], [TEXTS[2], TEXTS[4]], [TEXTS[3], TEXTS[4]]],
        "labels": [[0.0, 1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
        "teacher_scores": [[0.0, 1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
    }
)
NUMBERS = np.array([[0, 2], [0, 3], [0, 2], [1, 2], [1, 4], [0, 3], [0, 4]])  # the same pairs, by their texts' numbers


@pytest.mark.parametrize(
    "score",
    [
        lambda it: evaluate_groups(GROUPS, it.predict),
        lambda it: RerankerTeacher(it).score(GROUPS.to_list()),
        lambda it: check_teacher(GROUPS, predict=it.predict),
        lambda it: RerankerScores(it).score_pairs(TEXTS, TEXTS, NUMBERS),
    ],
    ids=["evaluation", "teacher", "check of a teacher", "mining"],
)
def test_whoever_scores_pays_for_each_pair_once(score):
    reranker = Reranker(*tiny_model("bert"), max_length=64)
    work = Work(reranker)

    score(reranker)

    assert work.num_rows == len({(query, passage) for query, passage in NUMBERS.tolist()}) == 5
    assert len(work.texts) == len(set(work.texts)) == 5
