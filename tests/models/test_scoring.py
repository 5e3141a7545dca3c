"""The engine: micro-batches under a budget, padding, and scores that land in their cells."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.data.templates import Row
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer, bind_row_forward, micro_batches, pad_rows, scatter_scores
from tests.tiny_models import PAIRS, tiny_model

ROWS = lay_rows(
    [Row([5, 6, 7], [0, 0, 1], 2), Row([8], [0], 1), Row([9, 10], [0, 1], 1)], cells=[(0, 0), (0, 1), (1, 0)]
)


def token_sum_head(forward, inputs):
    """A head whose score is the sum of the row's token ids: what a row scores is known by hand."""
    return (inputs["input_ids"] * inputs["attention_mask"]).sum(dim=1).float()


def test_every_row_is_in_one_micro_batch_within_the_budget():
    lengths = [random.Random(0).randint(1, 200) for _ in range(300)]
    plan = micro_batches(lengths, max_tokens=512)

    assert sorted(index for batch in plan for index in batch) == list(range(300))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 512 for batch in plan)


def test_a_row_longer_than_the_budget_runs_alone():
    assert micro_batches([3, 700, 4], max_tokens=64) == [[1], [2, 0]]


def test_lognormal_lengths_leave_little_padding():
    chance = random.Random(0)
    lengths = [max(4, min(256, round(chance.lognormvariate(4.1, 0.55)))) for _ in range(64)]
    plan = micro_batches(lengths, max_tokens=1024)
    padded = sum(len(batch) * lengths[batch[0]] for batch in plan)

    assert padded < 1.2 * sum(lengths) < 0.5 * len(lengths) * max(lengths)  # the right: one batch of all rows


def test_rows_are_padded_on_the_right():
    padded = pad_rows(ROWS, [0, 1], pad_token_id=0, padding_side="right")

    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_rows_are_padded_on_the_left():
    padded = pad_rows(ROWS, [2, 0], pad_token_id=1, padding_side="left")

    assert padded["input_ids"].tolist() == [[1, 9, 10], [5, 6, 7]]
    assert padded["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("max_tokens", [1, 4, 100])
def test_scores_come_back_in_the_order_of_the_rows(max_tokens):
    scorer = RowScorer(token_sum_head, pad_token_id=0, padding_side="right", max_tokens=max_tokens)

    assert scorer(lambda: None, ROWS).tolist() == [18, 8, 19]


def test_scores_are_scattered_to_their_cells_with_their_gradient():
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    scattered = scatter_scores(scores, ROWS["cells"], (2, 3))
    scattered[1, 0].backward()

    assert scattered.tolist() == [[1, 2, 0], [3, 0, 0]]
    assert scores.grad.tolist() == [0, 0, 1]


def test_a_batch_without_rows_scores_nothing():
    scorer = RowScorer(token_sum_head, pad_token_id=0, padding_side="right")

    assert scorer(lambda: None, lay_rows([], [])).shape == (0,)


@pytest.mark.parametrize("most", [3, 5])
def test_a_process_makes_up_for_forwards_that_others_have_more(most):
    seen = []

    def head(forward, inputs):
        seen.append(inputs["input_ids"].tolist())
        return token_sum_head(forward, inputs)

    scorer = RowScorer(head, pad_token_id=7, padding_side="right", max_tokens=1, agree=lambda own: max(own, most))
    assert scorer(lambda: None, ROWS).tolist() == [18, 8, 19]
    assert seen[3:] == [[[7]]] * (most - 3)


def test_a_process_without_rows_makes_up_for_all_forwards_with_a_gradient_of_zero():
    weight = torch.tensor(2.0, requires_grad=True)
    scorer = RowScorer(
        lambda forward, inputs: weight * inputs["input_ids"].sum(dim=1).float(),
        pad_token_id=7,
        padding_side="right",
        agree=lambda own: own + 2,
    )
    scores = scorer(lambda: None, lay_rows([], []))
    scores.sum().backward()

    assert scores.shape == (0,) and weight.grad == 0


def bound_model():
    reranker = Reranker(*tiny_model("bert"))
    bind_row_forward(reranker.model, reranker.row_scorer(max_tokens=200))
    encoded = [rows[0] for rows in reranker.template.encode([(query, [passage]) for query, passage in PAIRS])]
    return reranker, lay_rows(encoded, [(i, 0) for i in range(len(encoded))])


def test_a_bound_model_scores_rows_and_still_answers_plainly():
    reranker, rows = bound_model()
    with torch.no_grad():
        scores = reranker.model(rows=rows)
        plain = reranker.model(input_ids=torch.tensor([[1, 40, 2]])).logits

    torch.testing.assert_close(scores, reranker.predict(PAIRS), atol=1e-5, rtol=0)
    assert plain.shape == (1, 1)


def test_a_copy_of_a_bound_model_scores_with_its_own_weights():
    reranker, rows = bound_model()
    other = copy.deepcopy(reranker.model)
    torch.nn.init.zeros_(other.classifier.weight)
    torch.nn.init.ones_(other.classifier.bias)

    with torch.no_grad():
        assert other(rows=rows).unique().tolist() == [1.0]
        assert reranker.model(rows=rows).std() > 0.1


def test_micro_batches_do_not_change_the_gradient():
    gradients = []
    for max_tokens in (64, 100_000):
        reranker, rows = bound_model()
        bind_row_forward(reranker.model, reranker.row_scorer(max_tokens))
        reranker.model(rows=rows).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in reranker.model.parameters() if p.grad is not None]))

    assert gradients[0].abs().max() > 0.01
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4 * gradients[1].abs().max().item())
