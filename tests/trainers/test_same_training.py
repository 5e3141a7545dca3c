"""The engine trains as plain code does: twenty SGD steps end with the weights of one padded forward a step.

What it is compared with knows nothing of the engine: the tokenizer's own pairs, all of a batch padded to one length, a
plain forward, the loss of each group by itself, and the optimizer of torch.
"""

from __future__ import annotations

import math
import random
from functools import cache
from itertools import cycle, islice

import datasets
import pytest
import torch

from rerank_trainer.losses import LOSSES
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.objectives.naming import LABEL_LOSSES, ORDER_LOSSES, TEACHER_LOSSES
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.tiny_models import TEXTS, tiny_model
from tests.trainers.runs import SGD

NUM_STEPS, BATCH_SIZE, MAX_LENGTH, LEARNING_RATE = 20, 4, 40, 0.01

# Each training: the trainer, its arguments, and its parts as (weight, loss, what the scores are compared with). Losses
# of an order, which both labels and teachers give, learn from a teacher here.
CASES = {
    **{
        f"labels {loss}": (ContrastiveRerankTrainer, {"objective": loss}, [(1.0, loss, "labels")])
        for loss in LABEL_LOSSES
        if loss not in ORDER_LOSSES
    },
    **{
        f"teacher {loss}": (DistillRerankTrainer, {"objective": loss}, [(1.0, loss, "teacher_scores")])
        for loss in TEACHER_LOSSES
    },
    "both": (
        DistillRerankTrainer,
        {"objective": "kl", "label_weight": 0.4},
        [(0.6, "kl", "teacher_scores"), (0.4, "infonce", "labels")],
    ),
}

# Each way to run: the kind of model and the engine's arguments. Losses see scores alone, so all of them run one way on
# an encoder, one of each kind on a decoder, and one of them every way.
ENGINES = {
    "encoder": ("bert", {"recompute_activations": False}),
    "encoder, recomputed": ("bert", {"recompute_activations": True}),
    "decoder": ("qwen3", {"share_prefix": False, "recompute_activations": False}),
    "decoder, shared": ("qwen3", {"share_prefix": True, "recompute_activations": False}),
    "decoder, shared, recomputed": ("qwen3", {"share_prefix": True, "recompute_activations": True}),
}
OF_EACH_KIND = ("labels bce", "labels lambdarank", "teacher kl", "teacher positive_margin_mse")
CASES_OF = {"encoder": list(CASES), "decoder, shared": [*OF_EACH_KIND, "both"]}
RUNS = [(engine, case) for engine in ENGINES for case in CASES_OF.get(engine, ["both"])]


def ragged_groups():
    """Ten groups of one to five passages of unlike lengths, every third of them without a positive."""
    chance = random.Random(1)
    words = " ".join(TEXTS).split()
    groups = []
    for index in range(10):
        size = 1 + index % 5
        labels = [0.0] * size if index % 3 == 0 else [1.0, *chance.choices([0.0, 0.5], k=size - 1)]
        groups.append(
            {
                "query": " ".join(chance.choices(words, k=7)),
                "passages": [" ".join(chance.choices(words, k=chance.choice([1, 3, 8, 20]))) for _ in range(size)],
                "labels": chance.sample(labels, k=size),
                "teacher_scores": [2 * math.sin(7.0 * index + i) for i in range(size)],
            }
        )
    return groups


def plain_loss(scores, groups, parts):
    """The weighted sum of each part's mean over the groups that define it; each group by itself, unpadded."""
    of_groups = scores.split([len(group["passages"]) for group in groups])
    loss = 0.0 * scores.sum()  # where no group of the batch defines any part
    for weight, name, column in parts:
        values = []
        for own, group in zip(of_groups, groups, strict=True):
            targets, mask = torch.tensor([group[column]]), torch.ones(1, len(own), dtype=torch.bool)
            teacher = {}
            if LOSSES[name].takes_teacher_scores:
                targets, teacher = torch.tensor([group["labels"]]), {"teacher_scores": targets}
            if LOSSES[name].counts(targets, mask):
                values.append(LOSSES[name](own[None], targets, mask=mask, **teacher))
        if values:
            loss = loss + weight * torch.cat(values).mean()
    return loss


@cache
def trained_plainly(kind, case):
    """The weights before and after twenty steps."""
    model, tokenizer = tiny_model(kind, spread=0.2)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    groups = ragged_groups()
    batches = [groups[i : i + BATCH_SIZE] for i in range(0, len(groups), BATCH_SIZE)]
    model.train()
    for batch in islice(cycle(batches), NUM_STEPS):
        queries = [group["query"] for group in batch for _ in group["passages"]]
        passages = [passage for group in batch for passage in group["passages"]]
        limits = {"padding": True, "truncation": True, "max_length": MAX_LENGTH}
        scores = model(**tokenizer(queries, passages, **limits, return_tensors="pt")).logits[:, 0]
        optimizer.zero_grad()
        plain_loss(scores, batch, CASES[case][2]).backward()
        optimizer.step()
    return start, model.state_dict()


def trained(make_args, engine, case, *, dropout=0.0, **options):
    """The weights after twenty steps of our trainer, and the tokens of each forward, padding included."""
    kind, named = ENGINES[engine]
    trainer_class, objective, _ = CASES[case]
    args = make_args(
        **{**SGD, "learning_rate": LEARNING_RATE, "max_steps": NUM_STEPS, **named, **objective, **options},
        per_device_train_batch_size=BATCH_SIZE,
        passages_per_query=5,
        train_sampling_strategy="sequential",
        max_tokens_per_micro_batch=48,
        check_teacher=False,
    )
    model, tokenizer = tiny_model(kind, spread=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    ran = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: ran.append(given[0].numel()))
    reranker = Reranker(model, tokenizer, max_length=MAX_LENGTH)
    trainer_class(reranker, args, train_dataset=datasets.Dataset.from_list(ragged_groups())).train()
    return model.state_dict(), ran


def distance(one, other):
    """The Euclidean distance between two models' weights."""
    assert one.keys() == other.keys()
    return math.sqrt(sum((one[name].double() - other[name].double()).square().sum().item() for name in one))


@pytest.mark.parametrize(("engine", "case"), RUNS)
def test_twenty_steps_end_with_the_weights_of_plain_training(make_args, engine, case):
    start, expected = trained_plainly(ENGINES[engine][0], case)
    weights, _ = trained(make_args, engine, case)

    for name, weight in expected.items():
        assert (weights[name] - weight).norm() <= 1e-5 * weight.norm(), name
    # the weights moved by less than a tenth of their size, so this says ten times as much and more
    assert distance(weights, expected) <= 1e-4 * distance(start, expected)
    assert distance(start, expected) > 0.02


def test_these_ways_cut_batches_small_run_them_twice_and_share_prefixes(make_args):
    ran = {engine: trained(make_args, engine, "both", max_steps=3)[1] for engine in ENGINES}
    tokens = {engine: sum(forwards) for engine, forwards in ran.items()}

    assert all(len(forwards) > 3 * 3 for forwards in ran.values())
    assert tokens["encoder, recomputed"] == 2 * tokens["encoder"]
    assert tokens["decoder, shared"] < 0.9 * tokens["decoder"]
    assert tokens["decoder, shared, recomputed"] > 1.5 * tokens["decoder, shared"]


@pytest.mark.parametrize("engine", ["encoder", "decoder, shared"])
def test_recomputation_trains_to_the_same_digits_with_dropout_on(make_args, engine):
    options = {"case": "both", "max_steps": 6}
    kept, _ = trained(make_args, engine, dropout=0.2, **options)
    recomputed, _ = trained(make_args, engine, dropout=0.2, recompute_activations=True, **options)
    without, _ = trained(make_args, engine, **options)

    assert distance(kept, recomputed) == 0
    assert distance(kept, without) > 0.05
