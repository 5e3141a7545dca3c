"""Windows: exact token ids by hand, scores of plain rows reduced by hand, and nothing new for passages that fit."""

from __future__ import annotations

from functools import partial

import datasets
import pytest
import torch

from rerank_trainer.data.templates import PairTemplate
from rerank_trainer.evaluation.evaluator import evaluate_groups
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.windows import Windows
from rerank_trainer.teachers.teacher import RerankerTeacher
from tests.tiny_models import TEXTS, byte_tokenizer, tiny_model

LONG = " ".join(TEXTS)
PAIRS = [(TEXTS[0], LONG), (TEXTS[0], TEXTS[1]), ("water", LONG + LONG), ("water", "")]
QUERY = [50, 51, 52]


def passage_parts(num_tokens, overlap, max_length=12):
    """The passage's part of each window's row, and what stands around it; the room is 12 - 3 - 3 = 6 tokens."""
    template = PairTemplate(byte_tokenizer(special=True), max_length=max_length)
    rows = Windows(overlap=overlap).rows(template, QUERY, list(range(100, 100 + num_tokens)))
    return [[i for i in row.input_ids if i >= 100] for row in rows], rows


@pytest.mark.parametrize(
    ("num_tokens", "overlap", "parts"),
    [
        (6, 2, [range(100, 106)]),
        (7, 2, [range(100, 106), range(101, 107)]),
        (10, 2, [range(100, 106), range(104, 110)]),
        (11, 2, [range(100, 106), range(104, 110), range(105, 111)]),
        (14, 2, [range(100, 106), range(104, 110), range(108, 114)]),
        (12, 0, [range(100, 106), range(106, 112)]),
        (8, 5, [range(100, 106), range(101, 107), range(102, 108)]),
        (0, 2, [range(0)]),
    ],
)
def test_windows_are_full_and_each_begins_in_the_one_before(num_tokens, overlap, parts):
    assert passage_parts(num_tokens, overlap)[0] == [list(part) for part in parts]


def test_a_windows_row_is_frame_query_frame_part_frame():
    _, rows = passage_parts(8, 1)
    cls, sep = 1, 2

    assert [row.input_ids for row in rows] == [
        [cls, 50, 51, 52, sep, 100, 101, 102, 103, 104, 105, sep],
        [cls, 50, 51, 52, sep, 102, 103, 104, 105, 106, 107, sep],
    ]
    assert [row.prefix_length for row in rows] == [5, 5]


def test_windows_lose_nothing_of_the_passage_and_count_what_the_query_lost():
    template = PairTemplate(byte_tokenizer(special=True), max_length=11, query_max_length=4)
    query, passage = [50 + i for i in range(9)], list(range(100, 112))
    cut, rows = template.row(query, passage), Windows(overlap=1).rows(template, query, passage)

    kept = [i for i in cut.input_ids if 50 <= i < 60]
    assert all([i for i in row.input_ids if 50 <= i < 60] == kept for row in rows)
    assert {i for row in rows for i in row.input_ids if i >= 100} == set(passage)
    assert {(row.num_pair_tokens, row.num_query_lost, row.num_passage_lost) for row in rows} == {(21, 9 - len(kept), 0)}
    assert cut.num_passage_lost > 0 and len(kept) < 9


def test_an_overlap_without_room_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="overlap=6, but a query of 3 tokens leaves windows of 6 tokens at max_length"):
        passage_parts(7, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"overlap": -1}, "overlap=-1"), ({"aggregate": "first"}, "aggregate='first'.*'max', 'mean'")],
)
def test_windows_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Windows(**options)


def plain_scores(reranker, query, passage, *, max_length, overlap):
    """Scores of the windows by plain Transformers: one row at a time, cut by the definition, token after token."""
    tokenizer = reranker.tokenizer
    query_ids, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query, passage))
    ends = [[tokenizer.cls_token_id], [tokenizer.sep_token_id], [tokenizer.sep_token_id]]
    before, between, after = ends if tokenizer.cls_token else [[], [], []]
    head = [*before, *query_ids, *between]
    size = max_length - len(head) - len(after)
    starts = [0]
    while starts[-1] + size < len(ids):
        starts.append(min(starts[-1] + size - overlap, len(ids) - size))
    scores = []
    for start in starts:
        row = torch.tensor([[*head, *ids[start : start + size], *after]])
        segments = {}
        if "token_type_ids" in tokenizer.model_input_names:
            segments["token_type_ids"] = (torch.arange(row.shape[1]) >= len(head)).long()[None]
        with torch.no_grad():
            scores.append(reranker.model(input_ids=row, attention_mask=torch.ones_like(row), **segments).logits.item())
    return scores


@pytest.fixture(scope="module", params=["bert", "qwen3", "minilm"])
def reranker(request, minilm_path):
    if request.param != "minilm":
        return Reranker(*tiny_model(request.param), max_length=40)
    reranker = Reranker.from_pretrained(minilm_path, max_length=40, keep_layers=2)
    torch.manual_seed(0)
    torch.nn.init.normal_(reranker.model.classifier.weight, std=1.0)
    return reranker


def test_a_score_is_the_greatest_or_the_mean_of_its_windows_as_transformers_scores_them(reranker):
    expected = [plain_scores(reranker, *pair, max_length=40, overlap=5) for pair in PAIRS]
    assert [len(scores) > 1 for scores in expected] == [True, False, True, False]

    for aggregate, reduce in (("max", max), ("mean", lambda scores: sum(scores) / len(scores))):
        scores = reranker.predict(PAIRS, windows=Windows(overlap=5, aggregate=aggregate))
        torch.testing.assert_close(scores, torch.tensor(list(map(reduce, expected))), atol=1e-5, rtol=0)


def test_windows_change_only_the_scores_of_passages_that_do_not_fit(reranker):
    cut, windowed = reranker.predict(PAIRS), reranker.predict(PAIRS, windows=Windows(overlap=5), pairs_per_chunk=2)

    torch.testing.assert_close(windowed[[1, 3]], cut[[1, 3]], atol=1e-5, rtol=0)
    assert (windowed[[0, 2]] >= cut[[0, 2]] - 1e-5).all()
    means = reranker.predict(PAIRS, windows=Windows(overlap=5, aggregate="mean"))
    assert (means[[0, 2]] - cut[[0, 2]]).abs().min() > 1e-4


def test_rank_and_evaluation_take_windows(reranker):
    windows = Windows(overlap=5, aggregate="mean")
    passages = [LONG, TEXTS[1], LONG + TEXTS[3]]
    scores = [plain_scores(reranker, TEXTS[0], passage, max_length=40, overlap=5) for passage in passages]
    means = [sum(values) / len(values) for values in scores]
    best = means.index(max(means))

    assert reranker.rank(TEXTS[0], passages, windows=windows)[0]["corpus_id"] == best
    labels = [float(index == best) for index in range(3)]
    groups = datasets.Dataset.from_dict({"query": [TEXTS[0]], "passages": [passages], "labels": [labels]})
    assert evaluate_groups(groups, partial(reranker.predict, windows=windows), metrics=["mrr@10"]) == {"mrr@10": 1.0}


def test_a_teacher_scores_with_its_windows_and_its_fingerprint_follows_them():
    reranker = Reranker(*tiny_model("bert"), max_length=40)
    given = [None, Windows(overlap=5), Windows(overlap=6), Windows(overlap=5, aggregate="mean")]
    teachers = [RerankerTeacher(reranker, windows=windows) for windows in given]
    group = {"query": TEXTS[0], "passages": [LONG, TEXTS[1]]}
    expected = [max(plain_scores(reranker, TEXTS[0], text, max_length=40, overlap=5)) for text in group["passages"]]

    assert len({teacher.fingerprint for teacher in teachers}) == 4
    assert teachers[1].score([group])["scores"][0] == pytest.approx(expected, abs=1e-5)
