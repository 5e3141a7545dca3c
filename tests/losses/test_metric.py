"""Values of the metric losses: the metrics themselves where smooth ranks are sharp, and definitions the slow way."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import dcg_score, ndcg_score

from rerank_trainer.losses import adr_mse, approx_mrr, approx_ndcg, lambdarank
from rerank_trainer.losses.ranks import gains, ideal_dcg, label_ranks, soft_ranks

SCORES = torch.tensor([[1.5, -0.5, 0.25, 3.0, 0.0], [-2.0, 4.0, 1.0, -1.0, 0.5]])
GRADES = torch.tensor([[3.0, 0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 4.0, 1.0]])
ALL = torch.ones(2, 5, dtype=torch.bool)


def one_group(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def all_real(size: int) -> torch.Tensor:
    return torch.ones(1, size, dtype=torch.bool)


@pytest.mark.parametrize("k", [None, 1, 2, 4, 9])
def test_ideal_dcg_is_that_of_sklearn(k):
    own = ideal_dcg(gains(GRADES), torch.ones(2, 5), k=k)

    expected = [dcg_score([row], [row], k=k) for row in (2**GRADES - 1).tolist()]
    torch.testing.assert_close(own, torch.tensor(expected).float())


def test_ideal_dcg_of_a_weight_is_that_of_so_many_passages():
    weighted = ideal_dcg(one_group(1.0, 3.0, 0.0), one_group(400.0, 600.0, 9.0))

    assert weighted.item() == pytest.approx(dcg_score([[1.0] * 400 + [3.0] * 600], [[1.0] * 400 + [3.0] * 600]))


def test_ideal_dcg_of_a_part_of_a_passage_is_that_part_of_its_discount():
    values = ideal_dcg(one_group(1.0, 0.0), torch.tensor([[0.75, 1.0]]))

    assert values.item() == 0.75
    assert ideal_dcg(one_group(1.0, 0.0), torch.tensor([[1.75, 1.0]])).item() == pytest.approx(1 + 0.75 / math.log2(3))


def test_ideal_dcg_beyond_a_thousand_relevant_passages_goes_on_with_the_last_discount():
    thousand, more = (ideal_dcg(one_group(1.0, 0.0), one_group(weight, 1.0)) for weight in (1024.0, 3024.0))

    assert (more - thousand).item() == pytest.approx(2000 / math.log2(1 + 1024), rel=1e-4)


def test_ranks_are_counted_from_the_highest_label_and_ties_share_their_mean():
    assert label_ranks(one_group(5.0, -1.0, 7.0, 5.0, 5.0), torch.ones(1, 5)).tolist() == [[3.0, 5.0, 1.0, 3.0, 3.0]]


def test_ranks_give_a_passage_as_many_places_as_its_weight():
    assert label_ranks(one_group(5.0, 1.0, 7.0), one_group(1.0, 1.0, 3.0)).tolist() == [[4.0, 5.0, 2.0]]


def test_soft_ranks_far_apart_are_ranks_and_sum_to_those_of_any_order():
    assert soft_ranks(one_group(50.0, -50.0, 900.0), torch.ones(1, 3)).tolist() == [[2.0, 3.0, 1.0]]
    torch.testing.assert_close(soft_ranks(SCORES, torch.ones(2, 5)).sum(dim=-1), torch.tensor([15.0, 15.0]))


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_approx_ndcg_at_a_low_temperature_is_one_minus_ndcg(factor):
    values = approx_ndcg(factor * SCORES, GRADES, mask=ALL, temperature=0.001)

    of_each = zip((2**GRADES - 1).tolist(), (factor * SCORES).tolist(), strict=True)
    expected = [1 - ndcg_score([gain], [scores]) for gain, scores in of_each]
    torch.testing.assert_close(values, torch.tensor(expected).float())


@pytest.mark.parametrize("label", [1.0, 3.0])
def test_approx_ndcg_has_the_value_that_a_test_of_tensorflow_ranking_states(label):
    """``test_approx_ndcg_loss_should_handle_mask`` of its ``losses_impl_test.py``."""
    mask = torch.tensor([[True, False, True]])

    values = approx_ndcg(one_group(1.0, 3.0, 2.0), one_group(0.0, 0.0, label), mask=mask)

    rank = 1 + 1 / (1 + math.exp(-(1 - 2)))
    assert values.item() == pytest.approx(1 - math.log(1 + 1) / math.log(1 + rank))


def test_gains_are_finite_up_to_the_highest_label_that_is_allowed():
    scores, labels = one_group(0.0, 1.0), one_group(lambdarank.max_label, 0.0)

    assert lambdarank.max_label == approx_ndcg.max_label
    assert lambdarank(scores, labels, mask=all_real(2)).isfinite().all()
    assert 0 < approx_ndcg(scores, labels, mask=all_real(2)).item() < 1


@pytest.mark.parametrize(
    ("labels", "rank"), [([0, 0, 1, 0, 0], 3), ([0, 2, 0, 0, 0], 5), ([0, 1, 3, 0, 1], 3), ([1, 0, 0, 1, 0], 1)]
)
def test_approx_mrr_at_a_low_temperature_is_one_minus_the_reciprocal_rank_of_the_first_positive(labels, rank):
    values = approx_mrr(SCORES[:1], torch.tensor([labels]), mask=ALL[:1], temperature=0.001)

    assert values.item() == pytest.approx(1 - 1 / rank, abs=1e-6)


def test_approx_mrr_moves_the_best_positive_up_and_no_other():
    scores = one_group(1.0, 0.5, 2.0).requires_grad_()

    approx_mrr(scores, one_group(1.0, 1.0, 0.0), mask=all_real(3)).backward()

    assert scores.grad[0, 0] < 0 < scores.grad[0, 2]
    assert scores.grad[0, 1] == 0


def lambda_loss_by_loops(scores, labels, weighting, k, mu):
    """The LambdaLoss of one group without ties among its scores, from its definition."""
    size = len(scores)
    ranks = [1 + sum(other > score for other in scores) for score in scores]
    ideal = sum((2**y - 1) / math.log2(2 + i) for i, y in enumerate(sorted(labels, reverse=True)[:k]))
    own_gains = [(2**y - 1) / ideal for y in labels]
    losses = []
    for i in range(size):
        for j in range(size):
            if i == j or (weighting != "ndcg_loss1" and labels[i] <= labels[j]):
                continue
            if k is not None and min(ranks[i], ranks[j]) > k:
                continue
            apart = abs(ranks[i] - ranks[j])
            swapped = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j]))
            bound = 1 / math.log2(1 + apart) - 1 / math.log2(2 + apart)
            gap = abs(own_gains[i] - own_gains[j])
            weight = {
                "ndcg_loss1": own_gains[i] / math.log2(1 + ranks[i]),
                "ndcg_loss2": bound * gap,
                "ndcg_loss2++": (mu * bound + swapped) * gap,
                "lambdarank": swapped * gap,
            }[weighting]
            losses.append(weight * math.log(1 + math.exp(scores[j] - scores[i])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("weighting", ["ndcg_loss1", "ndcg_loss2", "ndcg_loss2++", "lambdarank"])
def test_lambdarank_is_its_definition(weighting, k):
    values = lambdarank(SCORES, GRADES, mask=ALL, weighting=weighting, k=k, mu=7.0)

    groups = zip(SCORES.tolist(), GRADES.tolist(), strict=True)
    expected = [lambda_loss_by_loops(scores, labels, weighting, k, 7.0) for scores, labels in groups]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_lambdarank_of_equal_scores_places_the_less_relevant_first():
    scores = one_group(1.0, 1.0, 0.0).requires_grad_()

    values = lambdarank(scores, one_group(3.0, 0.0, 1.0), mask=all_real(3), weighting="lambdarank")
    values.backward()

    # places 2, 1, 3 and gains 7, 0, 1: first over second, first over third, third over second
    first, second, third = 1 / math.log2(3), 1.0, 1 / 2
    losses = [
        (second - first) * 7 * math.log(2),
        (first - third) * 6 * math.log(1 + math.exp(-1)),
        (second - third) * 1 * math.log(1 + math.exp(1)),
    ]
    assert values.item() == pytest.approx(sum(losses) / 3 / (7 + 1 / math.log2(3)))
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]


def test_lambdarank_takes_equally_relevant_passages_of_one_score_for_neighbours():
    values = lambdarank(one_group(1.0, 1.0, 0.0), one_group(0.0, 0.0, 1.0), mask=all_real(3), weighting="ndcg_loss2")

    # both stand at 1.5, the positive at 3: 1.5 apart, gains 1 apart
    weight = 1 / math.log2(2.5) - 1 / math.log2(3.5)
    assert values.item() == pytest.approx(weight * math.log(1 + math.e))


def test_lambdarank_counts_a_pair_when_one_of_the_two_is_at_the_top():
    scores, labels = one_group(3.0, 2.0, 1.0, 0.0), one_group(0.0, 0.0, 1.0, 0.0)
    scores.requires_grad_()

    lambdarank(scores, labels, mask=all_real(4), k=1).backward()

    assert (scores.grad != 0).tolist() == [[True, False, True, False]]


def test_lambdarank_has_no_gradient_through_the_ranks():
    """A pair far in order has no loss to change, though a swap would cost much."""
    scores = one_group(90.0, 0.0).requires_grad_()

    lambdarank(scores, one_group(1.0, 0.0), mask=all_real(2)).backward()

    assert scores.grad.abs().max() < 1e-30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "ndcg"}, r"weighting='ndcg': expected one of \('ndcg_loss1', "),
        ({"k": 0}, "k=0: expected how many passages"),
        ({"mu": -1.0}, "mu=-1.0: expected a weight of 0 or more"),
        ({"mu": math.nan}, "mu=nan: expected a weight of 0 or more"),
    ],
)
def test_lambdarank_refuses_options_out_of_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        lambdarank(SCORES, GRADES, mask=ALL, **options)


def test_adr_mse_of_the_right_order_far_apart_is_zero_also_with_ties():
    values = adr_mse(one_group(90.0, 0.0, 0.0, -90.0), one_group(3.0, 1.0, 1.0, 0.0), mask=all_real(4))

    assert values.item() == pytest.approx(0.0, abs=1e-12)


def test_adr_mse_of_the_reverse_order_is_the_discounted_square_of_how_far_each_is_off():
    values = adr_mse(one_group(-90.0, 0.0, 90.0), one_group(3.0, 2.0, 1.0), mask=all_real(3))

    assert values.item() == pytest.approx((2**2 / math.log2(2) + 0 + 2**2 / math.log2(4)) / 3)


def test_metric_losses_of_two_hundred_passages_are_finite():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(2, 200, generator=generator), torch.randint(0, 5, (2, 200), generator=generator)

    for loss_fn in (adr_mse, approx_mrr, approx_ndcg, lambdarank):
        assert loss_fn(scores, labels, mask=torch.ones(2, 200, dtype=torch.bool)).isfinite().all()
