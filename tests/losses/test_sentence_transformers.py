"""Losses that sentence-transformers defines too: the same value where both mean the same, and the differences."""

from __future__ import annotations

import math

import pytest
import torch
from sentence_transformers.cross_encoder import CrossEncoder, losses
from torch import nn

from rerank_trainer.losses import LOSSES, adr_mse, infonce, lambdarank, list_mle, listnet, positive_margin_mse, ranknet

# Three groups of unlike size. Scores and labels are neither sorted nor alike; ORDERED has no ties, GRADED has.
SCORES = [[0.3, -1.2, 2.0, 0.7, 0.5], [1.5, -0.4, 0.2], [-2.0, 0.9]]
GRADED = [[0.0, 2.0, 1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [1.0, 0.0]]
ORDERED = [[0.5, 3.0, 1.0, 0.0, 2.0], [0.0, 1.0, 3.0], [1.0, 0.0]]
TEACHER = [[-3.5, 8.25, 1.0, 0.5, 2.5], [-12.0, -1.0, -4.0], [0.1, 0.2]]


class GivenScores(CrossEncoder):
    """A cross-encoder whose passages are named by their position among given scores."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.given = scores

    def preprocess(self, pairs, **_):
        return {"positions": torch.tensor([int(passage) for _, passage in pairs])}

    def forward(self, features):
        return {"scores": self.given[features["positions"], None]}


def theirs(loss_class, scores, labels, **options):
    """The loss of sentence-transformers for these groups, and its gradient for all scores laid end to end."""
    given = torch.tensor([score for group in scores for score in group], requires_grad=True)
    positions = iter(range(len(given)))
    passages = [[str(next(positions)) for _ in group] for group in scores]
    if loss_class in (losses.BinaryCrossEntropyLoss, losses.MSELoss):
        inputs = [["q"] * len(given), [passage for group in passages for passage in group]]
        targets = torch.tensor([label for group in labels for label in group])
    else:
        inputs, targets = [["q"] * len(scores), passages], [torch.tensor(group) for group in labels]
    value = loss_class(GivenScores(given), **options)(inputs, targets)
    (gradient,) = torch.autograd.grad(value, given)
    return value.detach(), gradient


def ours(loss_fn, scores, labels, **options):
    """Our loss of each group, padded to one size, and the gradient of their mean for all scores laid end to end."""
    size = max(map(len, scores))
    mask = torch.tensor([[i < len(group) for i in range(size)] for group in scores])
    padded, padded_labels = (
        torch.tensor([[*group, *[math.nan] * (size - len(group))] for group in cells]) for cells in (scores, labels)
    )
    padded.requires_grad_()
    values = loss_fn(padded, padded_labels, mask=mask, **options)
    (gradient,) = torch.autograd.grad(values.mean(), padded)
    return values.detach(), gradient[mask]


NATS = {"reduction_log": "natural"}
BY_LABEL = {"respect_input_order": False}
SCHEMES = {
    "ndcg_loss2": losses.NDCGLoss2Scheme(),
    "ndcg_loss2++": losses.NDCGLoss2PPScheme(mu=10.0),
    "lambdarank": losses.LambdaRankScheme(),
}
# Ours and its options, theirs and its options, labels.
SAME = [
    ("bce", {}, losses.BinaryCrossEntropyLoss, {}, [[label / 3 for label in group] for group in GRADED]),
    ("mse", {}, losses.MSELoss, {}, TEACHER),
    ("listnet", {}, losses.ListNetLoss, {}, GRADED),
    ("list_mle", {}, losses.ListMLELoss, BY_LABEL, ORDERED),
    ("p_list_mle", {}, losses.PListMLELoss, BY_LABEL, ORDERED),
    ("ranknet", {}, losses.RankNetLoss, NATS, GRADED),
    ("ranknet", {"temperature": 0.5}, losses.RankNetLoss, NATS | {"sigma": 2.0}, TEACHER),
    ("adr_mse", {}, losses.ADRMSELoss, {}, GRADED),
    ("adr_mse", {"temperature": 0.25}, losses.ADRMSELoss, {"alpha": 4.0}, TEACHER),
    ("lambdarank", {}, losses.LambdaLoss, NATS, GRADED),
    *[
        (
            "lambdarank",
            {"weighting": name, "k": k},
            losses.LambdaLoss,
            NATS | {"weighting_scheme": scheme, "k": k},
            labels,
        )
        for name, scheme in SCHEMES.items()
        for k in (None, 1, 2)
        for labels in (GRADED, ORDERED)
    ],
]


@pytest.mark.parametrize(("name", "options", "loss_class", "their_options", "labels"), SAME)
def test_a_group_has_the_value_and_the_gradient_of_sentence_transformers(
    name, options, loss_class, their_options, labels
):
    for row in range(3):
        group, own_labels = SCORES[row : row + 1], labels[row : row + 1]

        values, gradient = ours(LOSSES[name], group, own_labels, **options)

        expected, expected_gradient = theirs(loss_class, group, own_labels, **their_options)
        torch.testing.assert_close(values[0], expected)
        torch.testing.assert_close(gradient, expected_gradient)
        assert expected > 0


def test_a_group_has_the_margins_of_sentence_transformers_behind_its_labelled_positive():
    scores, teacher = [2.0, 0.3, -1.2, 0.7], [1.0, -3.5, 8.25, 0.5]  # the teacher prefers a negative
    given = torch.tensor(scores, requires_grad=True)
    theirs = losses.MarginMSELoss(GivenScores(given))([["q"], ["0"], ["1"], ["2"], ["3"]], [torch.tensor(teacher)])
    (expected_gradient,) = torch.autograd.grad(theirs, given)

    def loss_fn(scores, labels, **arguments):
        return positive_margin_mse(scores, labels, teacher_scores=torch.tensor([teacher]), **arguments)

    values, gradient = ours(loss_fn, [scores], [[1.0, 0.0, 0.0, 0.0]])

    torch.testing.assert_close(values[0], theirs.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_multiple_negatives_ranking_of_one_query_is_infonce_of_sigmoids_at_a_tenth():
    given = torch.tensor(SCORES[0])
    theirs = losses.MultipleNegativesRankingLoss(GivenScores(given))([["q"], *[[str(i)] for i in range(5)]], None)

    values = infonce(given.sigmoid()[None], torch.eye(5)[:1], mask=torch.ones(1, 5, dtype=torch.bool), temperature=0.1)

    torch.testing.assert_close(values[0], theirs)


@pytest.mark.parametrize(
    ("name", "loss_class", "options", "labels", "counts"),
    [
        ("bce", losses.BinaryCrossEntropyLoss, {}, [[label / 3 for label in group] for group in ORDERED], [5, 3, 2]),
        ("mse", losses.MSELoss, {}, TEACHER, [5, 3, 2]),  # passages
        ("adr_mse", losses.ADRMSELoss, {}, GRADED, [5, 3, 2]),
        ("ranknet", losses.RankNetLoss, NATS, GRADED, [8, 2, 1]),  # ordered pairs
        ("lambdarank", losses.LambdaLoss, NATS, GRADED, [8, 2, 1]),
        ("listnet", losses.ListNetLoss, {}, GRADED, [1, 1, 1]),  # groups
        ("list_mle", losses.ListMLELoss, BY_LABEL, ORDERED, [1, 1, 1]),
        ("p_list_mle", losses.PListMLELoss, BY_LABEL, ORDERED, [1, 1, 1]),
    ],
)
def test_a_batch_of_sentence_transformers_weighs_groups_by_their_size_where_ours_weigh_alike(
    name, loss_class, options, labels, counts
):
    values, _ = ours(LOSSES[name], SCORES, labels)

    batch, _ = theirs(loss_class, SCORES, labels, **options)

    torch.testing.assert_close(batch, (values * torch.tensor(counts)).sum() / sum(counts))
    assert len(set(counts)) == 1 or not math.isclose(batch.item(), values.mean().item(), rel_tol=0.01)


def test_logarithms_of_sentence_transformers_are_binary_unless_told_otherwise():
    for loss_fn, loss_class in ((ranknet, losses.RankNetLoss), (lambdarank, losses.LambdaLoss)):
        values, _ = ours(loss_fn, SCORES[:1], GRADED[:1])

        in_bits, _ = theirs(loss_class, SCORES[:1], GRADED[:1])

        torch.testing.assert_close(values[0], in_bits * math.log(2))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_ndcg_loss1_of_sentence_transformers_also_pairs_each_passage_with_itself(row):
    scores, labels = SCORES[row : row + 1], GRADED[row : row + 1]
    options = NATS | {"weighting_scheme": losses.NDCGLoss1Scheme()}

    values, gradient = ours(lambdarank, scores, labels, weighting="ndcg_loss1")

    size = len(scores[0])
    with_itself, their_gradient = theirs(losses.LambdaLoss, scores, labels, **options)
    ranks = [1 + sum(other > score for other in scores[0]) for score in scores[0]]
    dcg = sum((2**label - 1) / math.log2(1 + rank) for label, rank in zip(labels[0], ranks, strict=True))
    best = sum((2**label - 1) / math.log2(2 + i) for i, label in enumerate(sorted(labels[0], reverse=True)))
    torch.testing.assert_close(
        with_itself * size**2, values[0] * size * (size - 1) + math.log(2) * dcg / best, check_dtype=False
    )
    torch.testing.assert_close(their_gradient * size**2, gradient * size * (size - 1))


def test_sentence_transformers_takes_the_order_of_tied_passages_for_their_ranking():
    forth, back = [[0.3, -1.2, 2.0, 0.7]], [[0.3, 2.0, -1.2, 0.7]]  # the two in the middle are both labelled 1
    labels = [[2.0, 1.0, 1.0, 0.0]]

    assert theirs(losses.ListMLELoss, forth, labels)[0] != theirs(losses.ListMLELoss, back, labels)[0]
    assert ours(list_mle, forth, labels)[0] == ours(list_mle, back, labels)[0]


def test_sentence_transformers_takes_the_order_of_passages_with_equal_scores_for_their_ranking():
    scores, options = [[1.0, 1.0, 0.0]], {"weighting_scheme": losses.LambdaRankScheme()}
    forth, back = [[2.0, 0.0, 1.0]], [[0.0, 2.0, 1.0]]

    assert (
        theirs(losses.LambdaLoss, scores, forth, **options)[0] != theirs(losses.LambdaLoss, scores, back, **options)[0]
    )
    assert ours(lambdarank, scores, forth)[0] == ours(lambdarank, scores, back)[0]


@pytest.mark.parametrize(("loss_fn", "loss_class"), [(listnet, losses.ListNetLoss), (adr_mse, losses.ADRMSELoss)])
def test_sentence_transformers_draws_a_group_of_equal_labels_together_where_ours_says_nothing(loss_fn, loss_class):
    values, gradient = ours(loss_fn, SCORES[:1], [[0.0] * 5])

    value, their_gradient = theirs(loss_class, SCORES[:1], [[0.0] * 5])

    assert value > 0.01 and their_gradient.abs().sum() > 0.01
    assert values.tolist() == [0.0] and not gradient.any()
