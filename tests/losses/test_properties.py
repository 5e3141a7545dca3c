"""One table of properties, and every loss goes through it: a new loss is a new row of ``CASES``."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rerank_trainer.losses import LOSSES, positive_margin_mse

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Case:
    """What the properties need to know of a loss.

    Attributes:
        labels: Three groups of four passages on which the loss is defined.
        value: The loss of the scores (2, 1, 3) with ``value_labels``, by hand.
        defined: Labels of small groups on which the loss is defined, beside those of ``labels``.
        undefined: Labels of groups that do not count (all passages real).
        extreme: A score whose loss float32 can hold.
        max_label: As the loss must state it.
        options: Further keyword arguments under which all properties must hold as well.
        jumps_at_ties: Whether it has no derivative where scores are equal.
        scale_free: Whether scores times a number have the same loss.
    """

    labels: list[list[float]]
    value_labels: list[float]
    value: float
    defined: list[list[float]]
    undefined: list[list[float]]
    extreme: float = 1e30
    max_label: float | None = None
    options: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    jumps_at_ties: bool = False
    scale_free: bool = False


BINARY = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
GRADED = [[0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 3.0, 3.0], [1.0, 2.0, 3.0, 4.0]]
TEACHER = [[-3.5, 8.25, 1.0, 0.5], [-12.0, -1.0, -1.0, -4.0], [0.1, 0.2, 0.3, 0.15]]

E1, E2, E3 = math.exp(1.0), math.exp(2.0), math.exp(3.0)


def log_share(score: float, *others: float) -> float:
    """The cross-entropy of one passage against these others."""
    return math.log(sum(math.exp(other - score) for other in (score, *others)))


def soft_rank(score: float, *others: float) -> float:
    return 1 + sum(1 / (1 + math.exp(score - other)) for other in others)


CASES = {
    "adr_mse": Case(
        labels=TEACHER,
        value_labels=[0.5, 5.0, 0.5],  # ranks 2.5, 1, 2.5
        value=(
            (soft_rank(2, 1, 3) - 2.5) ** 2 / math.log2(3.5)
            + (soft_rank(1, 2, 3) - 1) ** 2
            + (soft_rank(3, 1, 2) - 2.5) ** 2 / math.log2(3.5)
        )
        / 3,
        defined=[[-5.0, 3.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
    ),
    "approx_mrr": Case(
        labels=[[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
        value_labels=[2.0, 3.0, 0.0],  # the first is the best positive; the other one does not stand before it
        value=1 - 1 / soft_rank(2, 3),
        defined=[[1.0, 0.0], [2.0, 1.0, 0.0], [1e-40, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [1.0, 2.0, 1.0], [2.0, 2.0], [1.0], [0.0], [-1.0, 0.0]],
    ),
    "approx_ndcg": Case(
        labels=GRADED,
        value_labels=[1.0, 2.0, 0.0],
        value=1
        - (1 / math.log2(1 + soft_rank(2, 1, 3)) + 3 / math.log2(1 + soft_rank(1, 2, 3))) / (3 + 1 / math.log2(3)),
        defined=[[1.0, 0.0], [2.0, 1.0], [1e-30, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0], [1.0], [0.0], [-1.0, 0.0]],
        max_label=64.0,
    ),
    "bce": Case(
        labels=BINARY,
        value_labels=[1.0, 0.0, 0.25],
        value=(math.log(1 + 1 / E2) + math.log(1 + E1) + math.log(1 + E3) - 0.25 * 3.0) / 3,
        defined=[[0.0], [1.0, 1.0], [0.0, 0.0, 0.0]],
        undefined=[],
        max_label=1.0,
    ),
    "hinge": Case(
        labels=TEACHER,
        value_labels=[0.5, 5.0, -1.0],  # second over first, second over third, first over third
        value=(2.0 + 3.0 + 2.0) / 3,
        defined=[[3.0, -5.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
        options=[{}, {"margin": 0.25}, {"margin": 5.0}],
    ),
    "infonce": Case(
        labels=GRADED,
        value_labels=[1.0, 0.0, 3.0],
        value=math.log(E1 + E2 + E3) - (1 / 4) * 2.0 - (3 / 4) * 3.0,
        defined=[[1.0, 0.0], [2.0, 1.0], [1e-40, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0], [1.0], [0.0], [-1.0, 0.0]],
    ),
    "kl": Case(
        labels=TEACHER,
        value_labels=[0.0, math.log(2.0), 0.0],  # softmax: 1/4, 1/2, 1/4
        value=0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5) + math.log(E1 + E2 + E3) - (0.25 * (2 + 3) + 0.5 * 1),
        defined=[[-5.0, 3.0], [2.0, 2.0], [0.0, 0.0, 0.0]],
        undefined=[[7.0], [0.0]],
        options=[{}, {"teacher_temperature": 0.5}, {"teacher_temperature": 8.0}],
    ),
    "lambdarank": Case(
        labels=GRADED,
        value_labels=[
            1.0,
            2.0,
            0.0,
        ],  # ranks 2, 3, 1 and gains 1, 3, 0: second over first, over third, first over third
        value=(
            (10 * (1 - 1 / math.log2(3)) + 1 / math.log2(3) - 1 / 2) * 2 * math.log(1 + E1)
            + (10 * (1 / math.log2(3) - 1 / 2) + 1 - 1 / 2) * 3 * math.log(1 + E2)
            + (10 * (1 - 1 / math.log2(3)) + 1 - 1 / math.log2(3)) * 1 * math.log(1 + E1)
        )
        / (3 * (3 + 1 / math.log2(3))),
        defined=[[1.0, 0.0], [2.0, 1.0], [1e-30, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0], [1.0], [0.0], [-1.0, 0.0]],
        max_label=64.0,
        options=[
            {},
            {"mu": 0.5, "k": 2},
            {"weighting": "ndcg_loss1"},
            {"weighting": "ndcg_loss2", "k": 1},
            {"weighting": "lambdarank"},
        ],
        jumps_at_ties=True,
    ),
    "list_mle": Case(
        labels=GRADED,
        value_labels=[1.0, 2.0, 0.0],
        value=log_share(1, 2, 3) + log_share(2, 3),
        defined=[[-5.0, 3.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
    ),
    "listnet": Case(
        labels=GRADED,
        value_labels=[0.0, math.log(2.0), 0.0],  # softmax: 1/4, 1/2, 1/4
        value=math.log(E1 + E2 + E3) - (0.25 * (2 + 3) + 0.5 * 1),
        defined=[[-5.0, 3.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
        options=[{}, {"label_temperature": 0.2}, {"label_temperature": 8.0}],
    ),
    "margin_mse": Case(
        labels=TEACHER,
        value_labels=[0.5, 5.0, -1.0],  # the second passage is the best: margins -1 and -2, teacher's 4.5 and 6
        value=((-1.0 - 4.5) ** 2 + (-2.0 - 6.0) ** 2) / 2,
        defined=[[-5.0, 3.0], [2.0, 2.0], [0.0, 0.0, 0.0]],
        undefined=[[7.0], [0.0]],
        extreme=1e18,
        options=[{}, {"pairs": "all"}],
    ),
    "mse": Case(
        labels=TEACHER,
        value_labels=[0.5, 5.0, -1.0],
        value=(1.5**2 + 4.0**2 + 4.0**2) / 3,
        defined=[[-5.0, 3.0], [7.0], [0.0]],
        undefined=[],
        extreme=1e18,
    ),
    "p_list_mle": Case(
        labels=GRADED,
        value_labels=[1.0, 2.0, 0.0],  # weights 3, 1, 0
        value=(3 * log_share(1, 2, 3) + log_share(2, 3)) / 4,
        defined=[[-5.0, 3.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
    ),
    "pearson": Case(
        labels=TEACHER,
        value_labels=[0.5, 5.0, 0.5],  # deviations of the scores 0, -1, 1; of the targets -1.5, 3, -1.5
        value=1 - (-1 * 3 + 1 * -1.5) / math.sqrt(2 * (3**2 + 2 * 1.5**2)),
        defined=[[-5.0, 3.0, 1.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 1.0], [-3.0, -3.0, -3.0], [1.0]],
        scale_free=True,
    ),
    "positive_margin_mse": Case(
        labels=GRADED,
        value_labels=[1.0, 2.0, 0.0],  # the teacher's scores are the squares: 1, 4, 0
        value=((1 - 2 - (4 - 1)) ** 2 + (1 - 3 - (4 - 0)) ** 2 + (2 - 3 - (1 - 0)) ** 2) / 3,
        defined=[[-5.0, 3.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
        extreme=1e18,
    ),
    "ranknet": Case(
        labels=TEACHER,
        value_labels=[0.5, 5.0, -1.0],  # second over first, second over third, first over third
        value=(math.log(1 + E1) + math.log(1 + E2) + math.log(1 + E1)) / 3,
        defined=[[-5.0, 3.0], [1.0, 1.0, 0.0]],
        undefined=[[0.0, 0.0, 0.0], [2.0, 2.0], [-3.0, -3.0, -3.0], [1.0]],
    ),
}


def positive_margin_mse_of_squares(scores: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
    """A loss that takes labels and teacher scores, here of labels alone: the teacher's scores are their squares."""
    return positive_margin_mse(scores, labels, teacher_scores=labels.double().square(), **arguments)


positive_margin_mse_of_squares.counts = positive_margin_mse.counts

LOSS_FNS = LOSSES | {"positive_margin_mse": positive_margin_mse_of_squares}

each_loss = pytest.mark.parametrize("name", sorted(LOSSES))
each_loss_and_option = pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, case in CASES.items() for options in case.options]
)
each_garbage = pytest.mark.parametrize("garbage", [NAN, INF, -INF, -100.0, 1e30, 0.0])

# Neither sorted nor alike, with a tie in the second group.
SCORES = [[0.3, -1.2, 2.0, 0.7], [1.5, 1.5, -0.4, 0.0], [-2.0, 0.1, 0.9, 3.1]]


def example(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Scores that want a gradient, labels on which the loss is defined, and a mask of real passages only."""
    scores = torch.tensor(SCORES, dtype=dtype, requires_grad=True)
    labels = torch.tensor(CASES[name].labels, dtype=dtype)
    return scores, labels, torch.ones(scores.shape, dtype=torch.bool)


def padded(scores: list[float], labels: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """One group, twice: with a masked passage in front whose score is high and label NaN, and with it at the end."""
    real = [True] * len(labels)
    return (
        torch.tensor([[9.0, *scores], [*scores, 9.0]]),
        torch.tensor([[NAN, *labels], [*labels, NAN]]),
        torch.tensor([[False, *real], [*real, False]]),
    )


def value_and_gradient(
    name: str, scores: Tensor, labels: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The groups' values, and the gradient of their sum with respect to the scores."""
    scores = scores.detach().clone().requires_grad_()
    values = LOSS_FNS[name](scores, labels, mask=mask, **options)
    (gradient,) = torch.autograd.grad(values.sum(), scores)
    return values.detach(), gradient


def test_every_loss_has_a_row():
    assert set(CASES) == set(LOSSES)


@each_loss
def test_value_is_the_one_by_hand(name):
    case = CASES[name]
    mask = torch.ones(1, 3, dtype=torch.bool)

    values = LOSS_FNS[name](torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([case.value_labels]), mask=mask)

    torch.testing.assert_close(values, torch.tensor([case.value]))


@each_loss
def test_gradient_is_not_zero_and_a_step_against_it_lowers_the_loss(name):
    scores, labels, mask = example(name)
    values, gradient = value_and_gradient(name, scores, labels, mask)

    lower, _ = value_and_gradient(name, scores - 0.01 * gradient, labels, mask)

    assert (gradient.abs().sum(dim=-1) > 0).all()
    assert (lower < values).all()


@each_garbage
@each_loss_and_option
def test_masked_passage_counts_as_absent(name, options, garbage):
    scores, labels, mask = example(name)
    real = torch.tensor([0, 2, 3, 5])  # columns 1 and 4 are padding
    wide = {what: torch.full((3, 6), garbage) for what in ("scores", "labels")}
    wide_mask = torch.zeros(3, 6, dtype=torch.bool)
    wide["scores"][:, real], wide["labels"][:, real], wide_mask[:, real] = scores.detach(), labels, True

    values, gradient = value_and_gradient(name, wide["scores"], wide["labels"], wide_mask, **options)

    expected_values, expected_gradient = value_and_gradient(name, scores, labels, mask, **options)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(gradient[:, real], expected_gradient)
    assert (gradient[:, [1, 4]] == 0).all()
    assert (LOSS_FNS[name].counts(wide["labels"], wide_mask) == LOSS_FNS[name].counts(labels, mask)).all()


WEIGHTS = [[1, 2, 3, 1], [2, 0, 1, 3], [1, 1, 4, 2]]


def repeated(cells: Tensor, times: list[int]) -> Tensor:
    """One group in which each passage stands so many times, ``(1, sum of times)``."""
    return cells.repeat_interleave(torch.tensor(times))[None]


@each_loss_and_option
def test_an_integer_weight_counts_as_the_passage_repeated(name, options):
    scores, labels, mask = example(name, torch.float64)
    weights = torch.tensor(WEIGHTS)
    if name in ("margin_mse", "kl"):  # with two best passages, of which one is there three times
        labels[1] = torch.tensor([0.5, 2.0, -1.0, 0.5])

    values, gradient = value_and_gradient(name, scores, labels, mask, weights=weights, **options)

    for row, times in enumerate(WEIGHTS):
        copies = repeated(scores[row], times), repeated(labels[row], times)
        value, of_copies = value_and_gradient(name, *copies, torch.ones_like(copies[0], dtype=torch.bool), **options)
        summed = torch.stack([part.sum() for part in of_copies[0].split(times)])
        torch.testing.assert_close(values[row : row + 1], value)
        torch.testing.assert_close(gradient[row], summed)
    assert not values.equal(value_and_gradient(name, scores, labels, mask, **options)[0])


@each_garbage
@each_loss_and_option
def test_a_weight_of_zero_counts_as_masked(name, options, garbage):
    scores, labels, mask = example(name)
    scores, labels, absent = scores.detach(), labels, mask.clone()
    weights = torch.ones(3, 4)
    for row, column in ((0, 3), (1, 0), (2, 1)):
        scores[row, column] = labels[row, column] = garbage
        weights[row, column], absent[row, column] = 0.0, False

    values, gradient = value_and_gradient(name, scores, labels, mask, weights=weights, **options)

    expected_values, expected_gradient = value_and_gradient(name, scores, labels, absent, **options)
    torch.testing.assert_close(values, expected_values, equal_nan=True)
    torch.testing.assert_close(gradient, expected_gradient)
    assert (gradient[~absent] == 0).all()


@each_loss_and_option
def test_weights_of_one_change_nothing(name, options):
    scores, labels, mask = example(name)
    mask[0, 2] = False
    weights = torch.ones(3, 4).masked_fill(~mask, NAN)  # what stands at a masked passage is not seen

    values, gradient = value_and_gradient(name, scores, labels, mask, weights=weights, **options)

    expected_values, expected_gradient = value_and_gradient(name, scores, labels, mask, **options)
    assert values.equal(expected_values)
    assert gradient.equal(expected_gradient)


def without_ties(name: str, scores: Tensor) -> Tensor:
    """The scores, with no two equal in a group if the loss jumps there."""
    untied = scores.detach() + torch.tensor([0.0, 0.25, 0.0, 0.0], dtype=scores.dtype)
    return untied.requires_grad_() if CASES[name].jumps_at_ties else scores


@each_loss_and_option
def test_gradient_under_weights_is_the_derivative_of_the_value(name, options):
    scores, labels, mask = example(name, torch.float64)
    scores = without_ties(name, scores)
    weights = torch.tensor([[0.5, 0.0, 1.5, 2.0], [0.1, 0.2, 0.3, 0.0], [1.0, 7.0, 0.25, 1.0]], dtype=torch.float64)

    def loss(scores):
        return LOSS_FNS[name](scores, labels, mask=mask, weights=weights, **options)

    assert torch.autograd.gradcheck(loss, scores)


@each_loss
def test_fractional_weights_give_a_value_between_those_of_the_integers_around(name):
    scores, labels, mask = example(name)
    weights = torch.ones(3, 4)
    around = []
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        weights[0, 0] = weight
        around.append(LOSS_FNS[name](scores, labels, mask=mask, weights=weights)[0].item())

    assert around == sorted(around) or around == sorted(around, reverse=True)
    assert len(set(around)) == 5 and all(map(math.isfinite, around))


@each_loss
def test_extreme_scores_under_weights_give_a_finite_value_and_gradient(name):
    size = CASES[name].extreme
    scores = torch.tensor([[size, 0.0, -size, size], [-size, -size, size, -size], [size, size, size, size]])
    _, labels, mask = example(name)

    values, gradient = value_and_gradient(name, scores, labels, mask, weights=torch.tensor(WEIGHTS))

    assert values.isfinite().all() and gradient.isfinite().all()


@each_loss
def test_weights_of_another_shape_are_refused(name):
    scores, labels, mask = example(name)

    with pytest.raises(ValueError, match=r"must have one shape .* weights \(3, 1\), mask \(3, 4\)"):
        LOSS_FNS[name](scores, labels, mask=mask, weights=torch.ones(3, 1))


@each_loss
def test_groups_of_unequal_size_are_worth_what_each_is_alone(name):
    scores, labels, mask = example(name)
    sizes = [4, 3, 2]
    for row, size in enumerate(sizes):
        mask[row, size:] = False

    values, _ = value_and_gradient(name, scores, labels, mask)

    for row, size in enumerate(sizes):
        alone, _ = value_and_gradient(
            name, scores[row : row + 1, :size], labels[row : row + 1, :size], mask[row : row + 1, :size]
        )
        torch.testing.assert_close(values[row : row + 1], alone)


@each_loss_and_option
def test_order_of_passages_does_not_matter(name, options):
    scores, labels, mask = example(name)
    mask[0, 2] = False
    order = torch.tensor([2, 0, 3, 1])

    values, gradient = value_and_gradient(name, scores[:, order], labels[:, order], mask[:, order], **options)

    expected_values, expected_gradient = value_and_gradient(name, scores, labels, mask, **options)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(gradient, expected_gradient[:, order])


@each_loss
def test_groups_of_a_batch_do_not_see_each_other(name):
    scores, labels, mask = example(name)
    broken = scores.detach().clone()
    broken[1] = NAN

    values, gradient = value_and_gradient(name, broken, labels, mask)

    expected_values, expected_gradient = value_and_gradient(name, scores[[0, 2]], labels[[0, 2]], mask[[0, 2]])
    torch.testing.assert_close(values[[0, 2]], expected_values)
    torch.testing.assert_close(gradient[[0, 2]], expected_gradient)


@each_loss
def test_a_nan_score_of_a_real_passage_is_not_hidden(name):
    scores, labels, mask = example(name)
    for column in range(4):
        broken = scores.detach().clone()
        broken[0, column] = NAN

        values, _ = value_and_gradient(name, broken, labels, mask)

        assert values[0].isnan()


@each_garbage
@each_loss_and_option
def test_fully_masked_group_gives_zero_and_zero_gradient(name, options, garbage):
    scores, labels = torch.full((2, 3), garbage), torch.full((2, 3), garbage)
    mask = torch.zeros(2, 3, dtype=torch.bool)

    values, gradient = value_and_gradient(name, scores, labels, mask, **options)

    assert (values == 0).all()
    assert (gradient == 0).all()
    assert not LOSS_FNS[name].counts(labels, mask).any()


@pytest.mark.parametrize(
    ("name", "labels"), [(name, labels) for name, case in CASES.items() for labels in case.undefined]
)
@pytest.mark.parametrize("score", [0.5, 1e30, -1e38, INF, NAN])
def test_group_that_does_not_count_gives_zero_and_zero_gradient(name, labels, score):
    scores = torch.linspace(0.0, 1.0, len(labels)).tolist()
    scores[-1] = score
    scores, labels, mask = padded(scores, labels)

    values, gradient = value_and_gradient(name, scores, labels, mask)

    assert LOSS_FNS[name].counts(labels, mask).tolist() == [False, False]
    assert values.tolist() == [0.0, 0.0]
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("name", "labels"), [(name, labels) for name, case in CASES.items() for labels in case.defined]
)
def test_group_that_counts_gives_a_value_above_zero_and_the_same_beside_padding(name, labels):
    scores = torch.linspace(-1.0, 1.1, len(labels)).tolist()
    bare, gradient = value_and_gradient(
        name, torch.tensor([scores]), torch.tensor([labels]), torch.ones(1, len(labels), dtype=torch.bool)
    )

    scores, labels, mask = padded(scores, labels)
    values, _ = value_and_gradient(name, scores, labels, mask)

    assert bare.item() > 0
    assert (gradient != 0).any()
    torch.testing.assert_close(values, bare.repeat(2))
    assert LOSS_FNS[name].counts(labels, mask).tolist() == [True, True]


@each_loss
def test_no_nan_arises_on_the_way_back_from_a_group_that_does_not_count(name):
    """PyTorch's anomaly mode, by which users look for the source of a NaN, must not point at a loss."""
    scores, labels, mask = example(name)
    mask[1] = False
    mask[2, 1:] = False

    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        LOSS_FNS[name](scores, labels, mask=mask).sum().backward()

    assert scores.grad.isfinite().all()


@each_loss_and_option
def test_extreme_scores_give_a_finite_value_and_gradient(name, options):
    size = CASES[name].extreme
    scores = torch.tensor([[size, 0.0, -size, size], [-size, -size, size, -size], [size, size, size, size]])
    _, labels, mask = example(name)

    values, gradient = value_and_gradient(name, scores, labels, mask, **options)

    assert values.isfinite().all()
    assert gradient.isfinite().all()
    assert values.max() > 0


@each_loss
def test_gradient_stays_finite_where_the_value_overflows(name):
    scores, labels, mask = example(name)

    values, gradient = value_and_gradient(name, torch.sign(scores) * 1e30, labels, mask)

    assert not values.isnan().any()
    assert gradient.isfinite().all()


@each_loss
def test_extreme_scores_at_masked_passages_are_not_seen(name):
    scores, labels, mask = example(name)
    mask[:, 3] = False
    extreme = scores.detach().clone()
    extreme[:, 3] = torch.finfo(torch.float32).max

    values, gradient = value_and_gradient(name, extreme, labels, mask)

    expected_values, expected_gradient = value_and_gradient(name, scores, labels, mask)
    assert values.equal(expected_values)
    assert gradient.equal(expected_gradient)


@each_loss_and_option
def test_gradient_is_the_derivative_of_the_value(name, options):
    scores, labels, mask = example(name, torch.float64)
    scores = without_ties(name, scores)
    mask[0, 3], mask[1, 0] = False, False

    assert torch.autograd.gradcheck(lambda scores: LOSS_FNS[name](scores, labels, mask=mask, **options), scores)


@each_loss_and_option
def test_temperature_divides_the_scores_and_nothing_else(name, options):
    scores, labels, mask = example(name)

    warm, gradient = value_and_gradient(name, scores, labels, mask, temperature=2.0, **options)
    halved, half_gradient = value_and_gradient(name, scores / 2.0, labels, mask, **options)

    assert warm.equal(halved)
    torch.testing.assert_close(gradient, half_gradient / 2.0)
    if CASES[name].scale_free:
        torch.testing.assert_close(warm, value_and_gradient(name, scores, labels, mask, **options)[0])
    else:
        assert not warm.equal(value_and_gradient(name, scores, labels, mask, **options)[0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
@each_loss
def test_temperature_that_is_not_positive_and_finite_is_refused(name, temperature):
    scores, labels, mask = example(name)

    with pytest.raises(ValueError, match=rf"^temperature must be a positive finite number .*got {temperature}"):
        LOSS_FNS[name](scores, labels, mask=mask, temperature=temperature)


@pytest.mark.parametrize(
    ("scores", "labels", "mask"),
    [((4, 1), (4,), (4, 1)), ((4, 3), (4, 1), (4, 3)), ((4, 3), (4, 3), (1, 3)), ((3,), (3,), (3,)), ((), (), ())],
)
@each_loss
def test_shapes_that_would_broadcast_are_refused(name, scores, labels, mask):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared below
        LOSS_FNS[name](torch.zeros(scores), torch.zeros(labels), mask=torch.ones(mask, dtype=torch.bool))

    assert "must have one shape (batch_size, group_size)" in str(error.value)
    assert all(found in str(error.value) for found in (f"got scores {scores}, labels {labels}, ", f", mask {mask}. "))


@each_loss
def test_counts_refuses_labels_and_mask_of_unlike_shapes(name):
    with pytest.raises(ValueError, match=r"labels and mask must have one shape .* got labels \(4, 1\), mask \(4, 3\)"):
        LOSS_FNS[name].counts(torch.zeros(4, 1), torch.ones(4, 3, dtype=torch.bool))


@each_loss
def test_mask_that_is_not_bool_is_refused(name):
    scores, labels, mask = example(name)

    with pytest.raises(ValueError, match=r"mask must be a bool tensor .*got torch\.int64"):
        LOSS_FNS[name](scores, labels, mask=mask.long())


@each_loss
def test_group_size_zero_is_refused(name):
    with pytest.raises(ValueError, match=r"group_size must be at least 1, got tensors of shape \(2, 0\)"):
        LOSS_FNS[name](torch.zeros(2, 0), torch.zeros(2, 0), mask=torch.zeros(2, 0, dtype=torch.bool))


@each_loss
def test_batch_without_groups_gives_no_values(name):
    assert LOSS_FNS[name](torch.zeros(0, 4), torch.zeros(0, 4), mask=torch.zeros(0, 4, dtype=torch.bool)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_loss
def test_half_precision_scores_are_computed_in_float32(name, dtype):
    scores, labels, mask = example(name)
    half, half_labels = scores.to(dtype), labels.to(dtype)

    values, gradient = value_and_gradient(name, half, half_labels, mask)

    expected, _ = value_and_gradient(name, half.float(), half_labels.float(), mask)
    assert values.dtype == torch.float32
    assert values.equal(expected)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("labels_dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
@each_loss
def test_type_of_the_scores_and_not_of_the_labels_sets_the_precision(name, labels_dtype):
    scores = torch.tensor(SCORES)
    labels = torch.tensor(BINARY).to(labels_dtype)
    mask = torch.ones(3, 4, dtype=torch.bool)

    values = LOSS_FNS[name](scores, labels, mask=mask)

    assert values.dtype == torch.float32
    assert values.equal(LOSS_FNS[name](scores, torch.tensor(BINARY), mask=mask))
    assert LOSS_FNS[name](scores.double(), labels, mask=mask).dtype == torch.float64


@each_loss
def test_inputs_are_left_as_they_are(name):
    scores, labels, mask = example(name)
    mask[0, 1] = False
    labels[0, 1] = -100.0
    before = [tensor.detach().clone() for tensor in (scores, labels, mask)]

    LOSS_FNS[name].counts(labels, mask)
    LOSS_FNS[name](scores, labels, mask=mask).sum().backward()

    assert all(tensor.equal(copy) for tensor, copy in zip((scores, labels, mask), before, strict=True))


@each_loss
def test_no_value_is_read_so_that_no_accelerator_waits(name):
    """A tensor on the meta device has no values: whoever asks for one fails."""
    cells, mask = torch.empty(3, 4, device="meta"), torch.empty(3, 4, device="meta", dtype=torch.bool)

    assert LOSS_FNS[name](cells, cells, mask=mask).shape == (3,)
    assert LOSS_FNS[name].counts(cells, mask).shape == (3,)


@each_loss
def test_contract_is_visible_on_the_function(name):
    loss_fn = LOSSES[name]
    parameters = inspect.signature(loss_fn).parameters

    assert list(parameters)[:5] == ["scores", "labels", "mask", "temperature", "weights"]
    assert parameters["weights"].default is None
    own = set(list(parameters)[5:])
    assert own - {"teacher_scores"} == {option for options in CASES[name].options for option in options}
    assert loss_fn.takes_teacher_scores == ("teacher_scores" in own)
    assert all(parameters[option].kind is inspect.Parameter.KEYWORD_ONLY for option in list(parameters)[2:])
    assert parameters["temperature"].default == 1.0
    assert loss_fn.__name__ == name
    assert loss_fn.max_label == CASES[name].max_label
    assert ">>>" in loss_fn.__doc__ and "https://" in loss_fn.__doc__
