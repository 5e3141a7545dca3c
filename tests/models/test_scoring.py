"""The engine: scores in the order of their rows, and in their cells; the same gradient in any micro-batches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.data.templates import Row
from rerank_trainer.models.heads import counted
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer, bind_row_forward, scatter_scores
from tests.models.test_micro_batches import ROWS
from tests.tiny_models import PAIRS, tiny_model


def token_sum_head(forward, inputs):
    """A head whose score is the sum of the row's token ids: what a row scores is known by hand."""
    return (inputs["input_ids"] * inputs["attention_mask"]).sum(dim=1).float()


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


def bound_model(spread=0.3):
    reranker = Reranker(*tiny_model("bert", spread=spread))
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
        reranker, rows = bound_model(spread=0.1)  # wider, and float32 itself is off by more than 1e-6
        bind_row_forward(reranker.model, reranker.row_scorer(max_tokens))
        reranker.model(rows=rows).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in reranker.model.parameters() if p.grad is not None]))

    assert gradients[0].abs().max() > 0.01
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[1].norm()


class CountedReads(TorchDispatchMode):
    """Counts the tensors whose value Python reads: before each of them a GPU must have done all its work."""

    num_reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_micro_batches_follow_each_other_without_a_look_at_the_device():
    rows = lay_rows([Row([number] * (number % 7 + 1), None, 0) for number in range(40)], [(0, i) for i in range(40)])
    reads, num_run = [], []
    for max_tokens in (1000, 8):
        work: list[int] = []
        head = counted(token_sum_head, work.append)
        scorer = RowScorer(head, pad_token_id=0, padding_side="right", max_tokens=max_tokens)
        with CountedReads() as counts:
            scorer(lambda: None, rows)
        reads.append(counts.num_reads)
        num_run.append(len(work))

    assert num_run[0] < 10 < num_run[1]
    assert reads[0] == reads[1] <= 3
