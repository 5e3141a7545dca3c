"""Losses: pure functions of scores and labels, one value a group.

All are called alike, and what is said here holds for each of them (``tests/losses/test_properties.py`` checks it)::

    values = loss_fn(scores, labels, mask=mask, temperature=1.0, weights=None)   # (batch_size,)
    counted = loss_fn.counts(labels, mask)                         # (batch_size,) bool

* **Shapes.** ``scores``, ``labels`` and ``mask`` are ``(batch_size, group_size)``: a row is a group, the passages of
  one query. Other shapes are refused with a ``ValueError`` and never broadcast.
* **Scores** are a model's outputs, unbounded; higher is more relevant. **Labels** are the given relevance, 0 or more;
  for distillation the teacher's scores go in their place, and may be negative.
* **Mask.** True = real. A masked passage counts as absent: whatever its cells hold, -100 and NaN included, reaches
  neither the value nor the gradient. The order of the passages does not matter.
* **Weights**, ``(batch_size, group_size)``: a passage of the weight w counts as if it stood w times in its group, so 1
  is a passage as it is, and 0 a passage that is absent. For softmax losses that is log w added to its score in the
  denominator and its own term w times; for pairwise losses w_i * w_j for each pair, and w * (w - 1) pairs with its own
  copies where the loss counts equal passages; for pointwise losses the weighted mean. A fraction goes the same way,
  but below 1 there are no copies to pair with. Which groups count is asked without weights, except that 0 is absent:
  a lone passage of weight 2 is one passage, although two copies would make a pair (which has nothing to learn).
* **Temperature** divides the scores and does nothing else.
* **Which groups count.** A loss is defined on some groups only: a contrastive loss has nothing to say about a group
  without a positive. ``counts`` tells them from labels and mask alone. All others get exactly 0, in the value and in
  the gradient, never NaN. No loss divides by ``batch_size``: whoever sums the values divides by the number that count.
* **Precision.** Half precision and integers are computed and returned in float32; float64 stays float64.
  Cross-entropies are in nats.
* **Options** of a formula (``k``, ``margin``, ``label_temperature``, ...) are further keywords;
  ``with_options(loss_fn, k=10)`` is the loss with its options chosen.
* **Teacher scores beside labels.** A loss with ``takes_teacher_scores`` takes labels in their place, and the teacher's
  scores as the keyword ``teacher_scores``, ``(batch_size, group_size)``.
* **Labels of real passages are finite, and not above** ``loss_fn.max_label`` where that is not None. The losses do not
  look, because reading a value from an accelerator stalls it: check data where it enters. A NaN among the scores of
  a group that counts makes its value NaN.

A loss that a configuration names is looked up in ``LOSSES``. To add one, write its formula under
:func:`rerank_trainer.losses.reduction.defined_where`, add it here, and give it a row in the table of properties.
"""

from __future__ import annotations

from rerank_trainer.losses.distillation import kl, pearson
from rerank_trainer.losses.listwise import infonce, list_mle, listnet, p_list_mle
from rerank_trainer.losses.metric import adr_mse, approx_mrr, approx_ndcg, lambdarank
from rerank_trainer.losses.options import with_options
from rerank_trainer.losses.pairwise import hinge, margin_mse, positive_margin_mse, ranknet
from rerank_trainer.losses.pointwise import bce, mse
from rerank_trainer.losses.reduction import LossFn

__all__ = [
    "LOSSES",
    "LossFn",
    "adr_mse",
    "approx_mrr",
    "approx_ndcg",
    "bce",
    "hinge",
    "infonce",
    "kl",
    "lambdarank",
    "list_mle",
    "listnet",
    "margin_mse",
    "mse",
    "p_list_mle",
    "pearson",
    "positive_margin_mse",
    "ranknet",
    "with_options",
]

LOSSES: dict[str, LossFn] = {
    "adr_mse": adr_mse,
    "approx_mrr": approx_mrr,
    "approx_ndcg": approx_ndcg,
    "bce": bce,
    "hinge": hinge,
    "infonce": infonce,
    "kl": kl,
    "lambdarank": lambdarank,
    "list_mle": list_mle,
    "listnet": listnet,
    "margin_mse": margin_mse,
    "mse": mse,
    "p_list_mle": p_list_mle,
    "pearson": pearson,
    "positive_margin_mse": positive_margin_mse,
    "ranknet": ranknet,
}
