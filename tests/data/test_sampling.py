"""Sampling: the choice depends on (seed, epoch, index) alone, and keeps what a loss needs."""

from __future__ import annotations

import random

import datasets
import pytest
from torch.utils.data import DataLoader

from rerank_trainer.data.sampling import FILLER, EpochSampler, EvalGroups, TrainGroups, choose_passages

GROUPS = datasets.Dataset.from_dict(
    {
        "query": [f"query {i}" for i in range(6)],
        "passages": [[f"passage {i} {j}" for j in range(10)] for i in range(6)],
        "labels": [[float(j == i) for j in range(10)] for i in range(6)],
        "teacher_scores": [[float(10 * i + j) for j in range(10)] for i in range(6)],
        "missed_gains": [[1.0] * (i % 2) for i in range(6)],
    }
)


def choose(labels, num_passages, top_share=0.0, seed=0):
    return choose_passages(labels, num_passages, top_share=top_share, rng=random.Random(seed))


def test_a_positive_is_always_chosen():
    labels = [0.0] * 50 + [1.0]

    assert all(50 in choose(labels, 4, seed=seed) for seed in range(50))


def test_the_top_negatives_are_the_first_of_the_list():
    assert choose([0, 0, 1, 0, 0, 0, 0], 4, top_share=1.0) == [0, 1, 2, 3]


def test_a_mix_takes_the_stated_share_from_the_top():
    labels = [1.0] + [0.0] * 100
    chosen = [choose(labels, 9, top_share=0.5, seed=seed) for seed in range(30)]

    assert all(row[:5] == [0, 1, 2, 3, 4] and len(row) == 9 for row in chosen)
    assert len({tuple(row[5:]) for row in chosen}) > 20


def test_random_negatives_are_spread_over_the_whole_list():
    labels = [1.0] + [0.0] * 20
    seen = {position for seed in range(200) for position in choose(labels, 4, seed=seed)}

    assert seen == set(range(21))


def test_positives_take_at_most_half_the_places_unless_negatives_run_short():
    many = [1.0] * 10 + [0.0] * 10
    assert sum(position < 10 for position in choose(many, 8)) == 4

    short = [1.0] * 10 + [0.0] * 2
    assert len(choose(short, 8)) == 8 and {10, 11} <= set(choose(short, 8))


def test_a_short_group_is_taken_whole():
    assert choose([0.0, 1.0, 0.0], 8) == [0, 1, 2]


def test_labels_and_teacher_scores_go_with_their_passages():
    row = TrainGroups(GROUPS, passages_per_query=4, seed=1)[0, 2]

    positions = [int(passage.split()[-1]) for passage in row["passages"]]
    assert row["query"] == "query 2" and row["row"] == 2
    assert row["labels"] == [float(position == 2) for position in positions]
    assert row["teacher_scores"] == [20.0 + position for position in positions]


def test_a_passage_of_weight_zero_is_never_chosen_and_the_others_as_if_it_were_not_there():
    weights = [[float((i + j) % 3) for j in range(10)] for i in range(6)]
    rows = [dict(row, passage_weights=w) for row, w in zip(GROUPS, weights, strict=True)]
    bare = []
    for row in rows:
        kept = [j for j in range(10) if row["passage_weights"][j]]
        bare.append({"query": row["query"], **{n: [row[n][j] for j in kept] for n in ("passages", "labels")}})
    weighted, without = (TrainGroups(datasets.Dataset.from_list(r), passages_per_query=4, seed=1) for r in (rows, bare))

    for index in range(6):
        row = weighted[2, index]
        assert row["passages"] == without[2, index]["passages"]
        assert row["passage_weights"] == [weights[index][int(p.split()[-1])] for p in row["passages"]]


def test_each_epoch_has_its_own_order_and_passages_and_repeats_them():
    def epoch(number):
        sampler = EpochSampler(6, seed=7)
        sampler.set_epoch(number)
        groups = TrainGroups(GROUPS, passages_per_query=4, seed=7)
        return [(key, groups[key]["passages"]) for key in sampler]

    assert epoch(0) == epoch(0)
    assert [key[1] for key, _ in epoch(0)] != [key[1] for key, _ in epoch(1)]
    passages = [dict((key[1], tuple(texts)) for key, texts in epoch(number)) for number in (0, 1)]
    assert sum(passages[0][i] != passages[1][i] for i in range(6)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_follow_the_epoch(context):
    def passages(num_workers):
        sampler = EpochSampler(6, seed=3)
        loader = DataLoader(
            TrainGroups(GROUPS, passages_per_query=4, seed=3),
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            multiprocessing_context=context if num_workers else None,
        )
        epochs = []
        for number in (0, 1):
            sampler.set_epoch(number)
            epochs.append([row["passages"] for row in loader])
        return epochs

    alone = passages(0)
    assert alone[0] != alone[1]
    assert passages(2) == alone


def test_evaluation_takes_groups_whole_with_their_missed_gains():
    row = EvalGroups(GROUPS)[3]

    assert len(row["passages"]) == 10 and row["missed_gains"] == [1.0] and row["row"] == 3


@pytest.mark.parametrize(("multiple_of", "num_fillers"), [(1, 0), (3, 0), (4, 2), (8, 2)])
def test_an_epoch_is_filled_up_behind_all_groups(multiple_of, num_fillers):
    sampler = EpochSampler(6, seed=0, multiple_of=multiple_of)
    keys = list(sampler)

    assert len(sampler) == len(keys) == 6 + num_fillers
    assert sorted(keys[:6]) == [(0, i) for i in range(6)]
    assert keys[6:] == [(0, FILLER)] * num_fillers


def test_a_filler_is_one_passage_of_weight_zero_and_of_no_group():
    groups = GROUPS.add_column("weight", [3.0] * 6)
    filler = TrainGroups(groups, passages_per_query=4, seed=0)[1, FILLER]

    assert filler["weight"] == 0.0 and filler["row"] == FILLER
    assert [len(filler[name]) for name in ("passages", "labels", "teacher_scores")] == [1, 1, 1]
