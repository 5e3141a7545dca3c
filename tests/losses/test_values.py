"""Values of single losses: by hand, and by libraries that know nothing of ours."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.nn import functional

from rerank_trainer.losses import (
    LOSSES,
    bce,
    hinge,
    infonce,
    kl,
    list_mle,
    listnet,
    margin_mse,
    mse,
    p_list_mle,
    pearson,
    positive_margin_mse,
    ranknet,
)
from rerank_trainer.losses.reduction import defined_where, has_two_passages, weighted_mean

SCORES = torch.tensor([[1.5, -0.5, 0.25, 3.0, 0.0], [-2.0, 4.0, 1.0, -1.0, 0.5]])
TEACHER = torch.tensor([[9.0, -7.0, 2.0, 8.5, -11.0], [3.0, 1.0, -2.0, 0.0, 2.5]])
ALL = torch.ones(2, 5, dtype=torch.bool)


def one_group(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def all_real(size: int) -> torch.Tensor:
    return torch.ones(1, size, dtype=torch.bool)


def test_infonce_with_one_positive_is_cross_entropy_with_its_index():
    labels = functional.one_hot(torch.tensor([3, 0]), 5)

    values = infonce(SCORES, labels, mask=ALL, temperature=0.5)

    expected = functional.cross_entropy(SCORES / 0.5, torch.tensor([3, 0]), reduction="none")
    torch.testing.assert_close(values, expected)


def test_infonce_of_graded_labels_is_cross_entropy_with_their_shares():
    labels = torch.tensor([[3.0, 0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 2.0, 4.0]])

    values = infonce(SCORES, labels, mask=ALL)

    shares = torch.tensor([[0.75, 0.0, 0.25, 0.0, 0.0], [0.0, 0.25, 0.0, 0.25, 0.5]])
    torch.testing.assert_close(values, functional.cross_entropy(SCORES, shares, reduction="none"))


@pytest.mark.parametrize("factor", [8.0, 1 / 64])
def test_infonce_sees_only_the_proportions_of_labels(factor):
    labels = torch.tensor([[3.0, 0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 2.0, 4.0]])

    torch.testing.assert_close(infonce(SCORES, factor * labels, mask=ALL), infonce(SCORES, labels, mask=ALL))


def test_infonce_of_equal_scores_is_the_logarithm_of_the_group_size():
    values = infonce(one_group(2.0, 2.0, 2.0), one_group(0.0, 1.0, 0.0), mask=all_real(3))

    assert values.item() == pytest.approx(math.log(3))


def test_infonce_of_several_positives_is_lowest_at_the_entropy_of_their_shares():
    labels = one_group(3.0, 1.0, 0.0)
    best_scores = one_group(math.log(3.0), 0.0, -200.0)

    values = infonce(best_scores, labels, mask=all_real(3))

    assert values.item() == pytest.approx(scipy.stats.entropy([0.75, 0.25]), rel=1e-6)


def test_bce_is_binary_cross_entropy_of_the_sigmoid():
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0, 0.0]])

    values = bce(SCORES, labels, mask=ALL, temperature=2.0)

    probabilities = scipy.special.expit(SCORES.double().numpy() / 2.0)
    expected = -np.log(np.where(labels == 1, probabilities, 1 - probabilities)).mean(axis=-1)
    torch.testing.assert_close(values, torch.as_tensor(expected).float())


def test_bce_takes_probabilities_between_zero_and_one():
    values = bce(one_group(2.0), one_group(0.25), mask=all_real(1))

    assert values.item() == pytest.approx(0.25 * math.log(1 + math.exp(-2.0)) + 0.75 * math.log(1 + math.exp(2.0)))


def test_bce_of_a_sure_and_wrong_score_is_the_score():
    assert bce(one_group(1e30), one_group(0.0), mask=all_real(1)).item() == pytest.approx(1e30)


def test_mse_is_the_mean_over_real_passages():
    mask = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])

    values = mse(SCORES, TEACHER, mask=mask, temperature=0.5)

    expected = [
        functional.mse_loss(2 * SCORES[0, :4], TEACHER[0, :4]),
        functional.mse_loss(2 * SCORES[1, :2], TEACHER[1, :2]),
    ]
    torch.testing.assert_close(values, torch.stack(expected))


def test_ranknet_of_two_passages_is_the_logistic_loss_of_their_margin():
    right = ranknet(one_group(3.0, 1.0), one_group(1.0, 0.0), mask=all_real(2))
    wrong = ranknet(one_group(3.0, 1.0), one_group(0.0, 1.0), mask=all_real(2))

    assert right.item() == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert wrong.item() == pytest.approx(math.log(1 + math.exp(2.0)))


def test_ranknet_is_binary_cross_entropy_over_the_ordered_pairs():
    values = ranknet(SCORES, TEACHER, mask=ALL)

    for row in range(2):
        first, second = np.nonzero(np.greater.outer(TEACHER[row].numpy(), TEACHER[row].numpy()))
        margins = SCORES[row, first] - SCORES[row, second]
        expected = functional.binary_cross_entropy_with_logits(margins, torch.ones(10))
        torch.testing.assert_close(values[row], expected)


def test_ranknet_leaves_ties_out_of_its_mean():
    labels = one_group(1.0, 0.0, 0.0)

    values = ranknet(one_group(0.0, 2.0, -1.0), labels, mask=all_real(3))

    assert values.item() == pytest.approx((math.log(1 + math.exp(2.0)) + math.log(1 + math.exp(-1.0))) / 2)


@pytest.mark.parametrize("name", ["adr_mse", "hinge", "list_mle", "p_list_mle", "ranknet"])
def test_losses_of_an_order_see_only_the_order_of_targets(name):
    ranks = TEACHER.argsort(dim=-1).argsort(dim=-1)

    assert LOSSES[name](SCORES, ranks, mask=ALL).equal(LOSSES[name](SCORES, TEACHER, mask=ALL))


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.75])
def test_hinge_is_torch_margin_ranking_loss_over_the_ordered_pairs(margin):
    values = hinge(SCORES, TEACHER, mask=ALL, margin=margin, temperature=0.5)

    for row in range(2):
        first, second = np.nonzero(np.greater.outer(TEACHER[row].numpy(), TEACHER[row].numpy()))
        scores = SCORES[row] / 0.5
        expected = functional.margin_ranking_loss(scores[first], scores[second], torch.ones(10), margin=margin)
        torch.testing.assert_close(values[row], expected)


def test_hinge_leaves_alone_a_pair_that_keeps_its_margin():
    scores = one_group(3.0, 1.5, 1.0).requires_grad_()

    values = hinge(scores, one_group(1.0, 0.0, 0.0), mask=all_real(3), margin=1.75)
    values.backward()

    assert values.item() == (0.25 + 0.0) / 2
    assert scores.grad.tolist() == [[-0.5, 0.5, 0.0]]


@pytest.mark.parametrize("margin", [-0.5, math.inf, math.nan])
def test_hinge_refuses_a_margin_that_is_no_distance(margin):
    with pytest.raises(ValueError, match=f"margin={margin}: expected a distance"):
        hinge(SCORES, TEACHER, mask=ALL, margin=margin)


def test_margin_mse_is_the_mean_over_triplets_when_the_positive_is_the_teachers_best():
    values = margin_mse(SCORES, TEACHER, mask=ALL, temperature=2.0)

    student_margins = (SCORES[:, :1] - SCORES[:, 1:]) / 2.0  # the first passage is the best of both groups
    teacher_margins = TEACHER[:, :1] - TEACHER[:, 1:]
    expected = functional.mse_loss(student_margins, teacher_margins, reduction="none").mean(dim=-1)
    torch.testing.assert_close(values, expected)


def test_margin_mse_takes_margins_from_each_of_the_tied_best():
    values = margin_mse(one_group(1.0, 4.0, 0.0), one_group(2.0, 2.0, -1.0), mask=all_real(3))

    # (first, second), (first, third), (second, first), (second, third); the teacher's margins are 0, 3, 0, 3
    assert values.item() == ((-3 - 0) ** 2 + (1 - 3) ** 2 + (3 - 0) ** 2 + (4 - 3) ** 2) / 4


def test_margin_mse_of_equal_targets_draws_scores_together():
    scores = one_group(1.0, 3.0).requires_grad_()

    values = margin_mse(scores, one_group(5.0, 5.0), mask=all_real(2))
    values.backward()

    assert values.item() == 4.0
    assert scores.grad.tolist() == [[-4.0, 4.0]]


def test_margin_mse_finds_the_best_among_negative_targets_beside_padding():
    mask = torch.tensor([[True, True, False]])

    values = margin_mse(one_group(0.0, 1.0, 9.0), one_group(-5.0, -3.0, -1.0), mask=mask)

    assert values.item() == (1 - 2) ** 2


def test_margin_mse_of_all_pairs_is_the_mean_over_every_two_passages():
    values = margin_mse(SCORES, TEACHER, mask=ALL, pairs="all", temperature=2.0)

    for row in range(2):
        scores, teacher = (SCORES[row] / 2).tolist(), TEACHER[row].tolist()
        two = list(itertools.combinations(range(5), 2))
        expected = sum((scores[i] - scores[j] - (teacher[i] - teacher[j])) ** 2 for i, j in two) / len(two)
        assert values[row].item() == pytest.approx(expected)
        assert values[row].item() == pytest.approx(2 * np.var(np.subtract(scores, teacher), ddof=1))


def test_margin_mse_refuses_pairs_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"pairs='positive': expected one of \('best', 'all'\)"):
        margin_mse(SCORES, TEACHER, mask=ALL, pairs="positive")


def test_positive_margin_mse_takes_the_labelled_positive_and_not_the_teachers_best():
    labels = functional.one_hot(torch.tensor([2, 4]), 5)

    values = positive_margin_mse(SCORES, labels, teacher_scores=TEACHER, mask=ALL, temperature=2.0)

    for row, (positive, others) in enumerate([(2, [0, 1, 3, 4]), (4, [0, 1, 2, 3])]):
        student = (SCORES[row, positive] - SCORES[row, others]) / 2.0
        teacher = TEACHER[row, positive] - TEACHER[row, others]
        torch.testing.assert_close(values[row], functional.mse_loss(student, teacher))


def test_positive_margin_mse_is_margin_mse_where_the_positive_is_the_teachers_best():
    labels = functional.one_hot(torch.tensor([0, 0]), 5)

    values = positive_margin_mse(SCORES, labels, teacher_scores=TEACHER, mask=ALL)

    torch.testing.assert_close(values, margin_mse(SCORES, TEACHER, mask=ALL))


def test_positive_margin_mse_of_graded_labels_takes_each_pair_that_they_order():
    scores, teacher, labels = [1.0, 4.0, 0.0], [2.0, 3.0, -1.0], [2.0, 1.0, 1.0]

    values = positive_margin_mse(
        one_group(*scores), one_group(*labels), teacher_scores=one_group(*teacher), mask=all_real(3)
    )

    assert values.item() == ((-3 - -1) ** 2 + (1 - 3) ** 2) / 2


def test_positive_margin_mse_does_not_see_the_teachers_score_of_a_masked_passage():
    mask, labels = torch.tensor([[True, True, False]]), one_group(0.0, 1.0, 0.0)
    teacher_scores = one_group(2.0, 3.0, math.nan)

    values = positive_margin_mse(one_group(0.0, 4.0, 1.0), labels, teacher_scores=teacher_scores, mask=mask)

    assert values.item() == (4 - 1) ** 2


def test_teacher_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must have one shape .* teacher_scores \(2, 1\), mask \(2, 5\)"):
        positive_margin_mse(SCORES, TEACHER, teacher_scores=TEACHER[:, :1], mask=ALL)


def test_listnet_is_kl_and_the_entropy_of_its_target():
    values = listnet(SCORES, TEACHER, mask=ALL, temperature=0.5, label_temperature=4.0)

    target = scipy.special.softmax(TEACHER.double().numpy() / 4.0, axis=-1)
    entropy = torch.as_tensor(scipy.stats.entropy(target, axis=-1)).float()
    torch.testing.assert_close(
        values, kl(SCORES, TEACHER, mask=ALL, temperature=0.5, teacher_temperature=4.0) + entropy
    )


@pytest.mark.parametrize(("size", "temperature", "share"), [(8, 1.0, 0.28), (100, 1.0, 0.027), (8, 0.2, 0.955)])
def test_listnet_gives_a_lone_positive_the_share_that_its_documentation_says(size, temperature, share):
    scores = torch.zeros(1, size, requires_grad=True)

    listnet(scores, torch.eye(size)[:1], mask=all_real(size), label_temperature=temperature).backward()

    # the gradient of a cross-entropy is the softmax of the scores less the target
    assert (1 / size - scores.grad[0, 0]).item() == pytest.approx(share, abs=0.001)


def test_list_mle_is_the_probability_of_drawing_the_passages_in_their_order():
    orders = list(itertools.permutations([4.0, 3.0, 2.0, 1.0]))
    scores, labels = SCORES[:1, :4].expand(len(orders), -1), torch.tensor(orders)

    probabilities = (-list_mle(scores, labels, mask=torch.ones(24, 4, dtype=torch.bool))).exp()

    assert probabilities.sum().item() == pytest.approx(1.0)
    drawn = scipy.special.softmax(SCORES[0, :4].double().numpy())
    first = [sum(p for p, order in zip(probabilities.tolist(), orders, strict=True) if order[i] == 4) for i in range(4)]
    assert first == pytest.approx(drawn.tolist())
    a, b, c, d = np.exp(SCORES[0, :4].double().numpy())
    assert probabilities[0].item() == pytest.approx(a / (a + b + c + d) * b / (b + c + d) * c / (c + d))


def test_list_mle_lets_equal_labels_not_compete():
    scores = one_group(1.5, -0.5, 0.25, 3.0).requires_grad_()

    values = list_mle(scores, one_group(1.0, 1.0, 0.0, 0.0), mask=all_real(4))
    values.backward()

    alone = [
        functional.cross_entropy(torch.tensor([[positive, 0.25, 3.0]]), torch.tensor([0])) for positive in (1.5, -0.5)
    ]
    torch.testing.assert_close(values[0], sum(alone))
    # a negative is pushed down in proportion to its own exponential alone, as in a softmax of the negatives
    ratio = scores.grad[0, 2] / scores.grad[0, 3]
    torch.testing.assert_close(ratio, torch.tensor(math.exp(0.25 - 3.0)))


@pytest.mark.parametrize("size", [3, 60, 200])
def test_p_list_mle_weights_places_by_powers_of_two_without_overflow(size):
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(1, size, generator=generator)
    labels = torch.randperm(size, generator=generator)[None].float()

    values = p_list_mle(scores, labels, mask=all_real(size))

    in_order = scores[0, labels[0].argsort(descending=True)].double()
    terms = [(in_order[place:].logsumexp(0) - in_order[place]).item() for place in range(size)]
    powers = [2 ** (size - 1 - place) - 1 for place in range(size)]  # integers, however large
    expected = sum(term * (power / sum(powers)) for term, power in zip(terms, powers, strict=True))
    assert values.item() == pytest.approx(expected, rel=1e-5)


def test_p_list_mle_shares_the_weights_of_tied_places():
    scores = [1.5, -0.5, 0.25]

    values = p_list_mle(one_group(*scores), one_group(1.0, 1.0, 0.0), mask=all_real(3))

    # places 1 and 2 weigh 3 and 1, so 2 each; place 3 weighs 0
    alone = [math.log(1 + math.exp(0.25 - positive)) for positive in (1.5, -0.5)]
    assert values.item() == pytest.approx((2 * alone[0] + 2 * alone[1]) / 4)


def test_pearson_is_one_minus_the_correlation():
    mask = torch.tensor([[True, True, True, True, True], [True, True, False, True, False]])

    values = pearson(SCORES, TEACHER, mask=mask)

    expected = [
        1 - scipy.stats.pearsonr(SCORES[row][mask[row]].numpy(), TEACHER[row][mask[row]].numpy()).statistic
        for row in range(2)
    ]
    torch.testing.assert_close(values, torch.tensor(expected))


@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_pearson_squares_no_large_and_no_tiny_number(factor):
    torch.testing.assert_close(pearson(factor * SCORES, TEACHER, mask=ALL), pearson(SCORES, TEACHER, mask=ALL))


def test_pearson_sees_neither_place_nor_spread_of_scores_and_teacher():
    values = pearson(5.0 * SCORES - 3.0, 0.125 * TEACHER + 100.0, mask=ALL)

    torch.testing.assert_close(values, pearson(SCORES, TEACHER, mask=ALL), rtol=1e-4, atol=0)


@pytest.mark.parametrize("score", [0.0, 0.1, -1e30])
def test_pearson_draws_equal_scores_to_the_teachers_order_with_a_gradient_of_moderate_size(score):
    scores = torch.full((1, 3), score).requires_grad_()

    values = pearson(scores, one_group(1.0, -2.0, 1.0), mask=all_real(3))
    values.backward()

    assert values.item() == 1.0
    # minus the teacher's deviations over n times their standard deviation, sqrt(2)
    expected = [[-1 / (3 * math.sqrt(2)), 2 / (3 * math.sqrt(2)), -1 / (3 * math.sqrt(2))]]
    torch.testing.assert_close(scores.grad, torch.tensor(expected))


def test_kl_is_the_relative_entropy_of_the_two_softmaxes():
    values = kl(SCORES, TEACHER, mask=ALL, temperature=0.5, teacher_temperature=4.0)

    teacher = scipy.special.softmax(TEACHER.double().numpy() / 4.0, axis=-1)
    student = scipy.special.softmax(SCORES.double().numpy() / 0.5, axis=-1)
    torch.testing.assert_close(values, torch.as_tensor(scipy.stats.entropy(teacher, student, axis=-1)).float())


def test_kl_is_torch_kl_div_without_a_factor_for_temperature():
    values = kl(SCORES, TEACHER, mask=ALL, temperature=3.0, teacher_temperature=3.0)

    student, teacher = (SCORES / 3.0).log_softmax(dim=-1), (TEACHER / 3.0).log_softmax(dim=-1)
    expected = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    torch.testing.assert_close(values, expected)


def test_kl_of_the_teachers_own_scores_is_zero_with_zero_gradient():
    scores = (TEACHER + 7.0).requires_grad_()

    values = kl(scores, TEACHER, mask=ALL)
    values.sum().backward()

    torch.testing.assert_close(values, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.grad, torch.zeros(2, 5), atol=1e-6, rtol=0)


def test_kl_takes_a_teacher_that_is_sure_beyond_float32():
    values = kl(one_group(0.0, 1.0), one_group(1e30, -1e30), mask=all_real(2))

    assert values.item() == pytest.approx(math.log(1 + math.e))


def test_kl_at_the_end_of_float32_does_not_see_padding():
    largest = torch.finfo(torch.float32).max
    mask = torch.tensor([[True, True, False]])

    values = kl(one_group(largest, largest, 0.0), one_group(largest, largest, 0.0), mask=mask)

    assert values.item() == 0.0


@pytest.mark.parametrize("temperature", [0.0, -2.0, math.nan, math.inf])
def test_kl_refuses_a_teacher_temperature_that_is_not_positive_and_finite(temperature):
    with pytest.raises(ValueError, match=rf"teacher_temperature must be a positive finite number .*got {temperature}"):
        kl(SCORES, TEACHER, mask=ALL, teacher_temperature=temperature)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"bce", "mse"}))
def test_constant_added_to_the_scores_of_a_group_changes_nothing(name):
    labels = torch.tensor([[1.0, 0, 0, 2, 0], [0, 0, 3, 0, 0]])
    teacher = {"teacher_scores": TEACHER} if LOSSES[name].takes_teacher_scores else {}

    moved = SCORES + torch.tensor([[100.0], [-7.0]])

    values = LOSSES[name](SCORES, labels, mask=ALL, **teacher)
    torch.testing.assert_close(LOSSES[name](moved, labels, mask=ALL, **teacher), values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss_fn", [hinge, kl, list_mle, listnet, margin_mse, p_list_mle, pearson, ranknet])
def test_constant_added_to_the_teacher_scores_of_a_group_changes_nothing(loss_fn):
    moved = TEACHER + torch.tensor([[64.0], [-32.0]])

    torch.testing.assert_close(loss_fn(SCORES, moved, mask=ALL), loss_fn(SCORES, TEACHER, mask=ALL))


@pytest.mark.parametrize("loss_fn", [mse, bce])
def test_pointwise_losses_tie_the_scores_to_a_place(loss_fn):
    labels = torch.full_like(SCORES, 0.5)

    assert (loss_fn(SCORES + 10.0, labels, mask=ALL) > loss_fn(SCORES, labels, mask=ALL)).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_better_ranking_has_a_lower_loss(name):
    labels = one_group(1.0, 0.0, 0.0)
    teacher = {"teacher_scores": labels} if LOSSES[name].takes_teacher_scores else {}

    better = LOSSES[name](one_group(0.8, 0.3, 0.1), labels, mask=all_real(3), **teacher)
    worse = LOSSES[name](one_group(0.1, 0.3, 0.8), labels, mask=all_real(3), **teacher)

    assert better < worse


def test_labels_that_only_float64_tells_apart_define_no_pair():
    labels = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)

    assert ranknet.counts(labels, all_real(2)).tolist() == [False]
    assert ranknet(torch.zeros(1, 2, dtype=torch.float64), labels, mask=all_real(2)).tolist() == [0.0]


def test_weighted_mean_of_pairs_goes_over_all_but_the_first_axis():
    values = torch.arange(8.0).reshape(2, 2, 2)
    weights = torch.tensor([[[True, False], [False, True]], [[True, True], [True, True]]])

    assert weighted_mean(values, weights).tolist() == [(0 + 3) / 2, (4 + 5 + 6 + 7) / 4]


def test_weighted_mean_without_any_weight_is_zero_also_for_infinite_values():
    values = torch.tensor([[math.inf, math.nan]], requires_grad=True)

    mean = weighted_mean(values, torch.zeros(1, 2))
    mean.backward()

    assert mean.tolist() == [0.0]
    assert values.grad.tolist() == [[0.0, 0.0]]


def test_formula_and_counts_see_zeros_where_there_is_nothing_to_see():
    seen = {}

    def first_is_positive(labels, mask):
        seen["labels of counts"] = labels.tolist()
        return labels[:, 0] > 0

    @defined_where(first_is_positive)
    def loss_fn(scores, labels, *, weights, temperature=1.0):
        seen.update(scores=scores.tolist(), labels=labels.tolist(), weights=weights.tolist())
        return scores.sum(dim=-1)

    loss_fn(
        torch.tensor([[1.0, math.nan], [2.0, 3.0]]),
        torch.tensor([[5.0, -100.0], [0.0, 6.0]]),
        mask=torch.tensor([[True, False], [True, True]]),
        weights=torch.tensor([[3.0, math.nan], [4.0, 5.0]]),
    )

    assert seen["labels of counts"] == [[5.0, 0.0], [0.0, 6.0]]
    assert seen["scores"] == [[1.0, 0.0], [0.0, 0.0]]
    assert seen["labels"] == [[5.0, 0.0], [0.0, 0.0]]
    assert seen["weights"] == [[3.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("formula_value", [5.0, math.nan, math.inf])
def test_group_that_does_not_count_is_zero_whatever_the_formula_says(formula_value):
    @defined_where(has_two_passages)
    def loss_fn(scores, labels, *, weights, temperature=1.0):
        return scores.sum(dim=-1) + formula_value

    scores = torch.ones(2, 2, requires_grad=True)
    values = loss_fn(scores, torch.zeros(2, 2), mask=torch.tensor([[True, False], [True, True]]))
    values[0].backward()

    assert values[0].item() == 0.0
    torch.testing.assert_close(values[1].item(), 2.0 + formula_value, equal_nan=True)
    assert scores.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_doctest_finds_the_example_of_a_decorated_loss(name):
    module = importlib.import_module(LOSSES[name].__module__)

    examples = {test.name: test.examples for test in doctest.DocTestFinder().find(module)}

    assert examples[f"{module.__name__}.{name}"]
