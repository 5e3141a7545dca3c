"""Options chosen once: the loss with them is called, counted and named as the loss itself."""

from __future__ import annotations

import pickle

import pytest
import torch

from rerank_trainer.losses import bce, hinge, lambdarank, listnet, margin_mse, positive_margin_mse, with_options

SCORES = torch.tensor([[2.0, 1.0, 3.0], [0.5, 1.5, -1.0]])
LABELS = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
MASK = torch.ones(2, 3, dtype=torch.bool)


def test_options_are_passed_to_every_call_and_arguments_of_the_call_with_them():
    loss_fn = with_options(lambdarank, k=1, weighting="lambdarank")

    values = loss_fn(SCORES, LABELS, mask=MASK, temperature=2.0)

    assert values.equal(lambdarank(SCORES, LABELS, mask=MASK, temperature=2.0, k=1, weighting="lambdarank"))
    assert not values.equal(lambdarank(SCORES, LABELS, mask=MASK, temperature=2.0))


def test_a_loss_with_options_is_named_counted_and_limited_as_the_loss_itself():
    loss_fn = with_options(lambdarank, k=1)

    assert loss_fn.__name__ == "lambdarank" and loss_fn.max_label == lambdarank.max_label
    assert loss_fn.counts(LABELS, MASK).tolist() == [True, False]
    assert not loss_fn.takes_teacher_scores and with_options(positive_margin_mse).takes_teacher_scores


def test_a_loss_without_options_is_the_loss_itself():
    assert with_options(hinge) is hinge


def test_options_can_be_added_and_chosen_again():
    loss_fn = with_options(with_options(lambdarank, k=1, mu=3.0), k=2)

    values = loss_fn(SCORES, LABELS, mask=MASK)

    assert values.equal(lambdarank(SCORES, LABELS, mask=MASK, k=2, mu=3.0))
    assert repr(loss_fn) == "lambdarank(k=2, mu=3.0)"


def test_a_loss_with_options_can_be_pickled():
    loss_fn = pickle.loads(pickle.dumps(with_options(hinge, margin=0.25)))

    assert loss_fn(SCORES, LABELS, mask=MASK).equal(hinge(SCORES, LABELS, mask=MASK, margin=0.25))


@pytest.mark.parametrize(
    ("loss_fn", "options", "message"),
    [
        (lambdarank, {"kk": 10}, r"lambdarank has no option 'kk'; it has \['weighting', 'k', 'mu'\]"),
        (bce, {"k": 10, "j": 1}, "bce has no option 'j', 'k'; it has none"),
        (hinge, {"temperature": 2.0}, r"hinge has no option 'temperature'; it has \['margin'\]"),
        (positive_margin_mse, {"teacher_scores": 2.0}, "positive_margin_mse has no option 'teacher_scores'"),
        (lambdarank, {"k": 0}, "k=0: expected how many passages"),
        (lambdarank, {"k": "ten"}, r"lambdarank\(k='ten'\): '>=' not supported between instances of 'str'"),
        (listnet, {"label_temperature": 0.0}, "label_temperature must be a positive finite number"),
        (margin_mse, {"pairs": "some"}, "pairs='some': expected one of"),
    ],
)
def test_an_option_that_the_loss_does_not_take_is_refused_at_once(loss_fn, options, message):
    with pytest.raises(ValueError, match=message):
        with_options(loss_fn, **options)
