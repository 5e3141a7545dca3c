"""Balance: a batch keeps its groups, each process its number of them, and their tokens come out even."""

from __future__ import annotations

import itertools
import random

import datasets
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from rerank_trainer.data.balance import BalancedSampler, TextSizes, TokenEstimate, deal
from rerank_trainer.data.sampling import FILLER, EpochSampler, TrainGroups
from rerank_trainer.data.sources import SourceGroups
from rerank_trainer.data.templates import PairTemplate
from tests.tiny_models import byte_tokenizer

CHANCE = random.Random(5)
SIZES = [min(2500, round(CHANCE.lognormvariate(6, 0.7))) for _ in range(96)]
TEMPLATE = PairTemplate(byte_tokenizer(special=True), max_length=40)


def num_tokens(key):
    return 0 if key[1] == FILLER else SIZES[key[1]]


def batches_of(sampler, num_processes, batch_size, *, split=False):
    """The batches of each process, as accelerate hands them out."""
    whole = BatchSampler(sampler, batch_size * num_processes if split else batch_size, drop_last=False)
    return [list(BatchSamplerShard(whole, num_processes, rank, split_batches=split)) for rank in range(num_processes)]


def loads_of(ranks):
    return [[sum(map(num_tokens, batch)) for batch in batches] for batches in ranks]


def unevenness(loads):
    """The most that one process holds, over the mean."""
    return max(loads) * len(loads) / sum(loads)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("num_processes", "batch_size"), [(2, 4), (4, 8), (3, 2)])
def test_every_batch_keeps_its_groups_and_its_tokens_come_out_even(num_processes, batch_size, split):
    sampler = EpochSampler(96, seed=1)
    balanced = BalancedSampler(sampler, num_tokens, num_processes=num_processes, batch_size=batch_size)
    plain, dealt = (batches_of(s, num_processes, batch_size, split=split) for s in (sampler, balanced))

    for before, after in zip(zip(*plain, strict=True), zip(*dealt, strict=True), strict=True):
        assert sorted(itertools.chain(*before)) == sorted(itertools.chain(*after))
        assert {len(batch) for batch in after} == {batch_size}
    mean = [sum(map(unevenness, zip(*loads_of(ranks), strict=True))) / len(ranks[0]) - 1 for ranks in (plain, dealt)]
    assert mean[0] > 0.05 and mean[1] < mean[0] / 2


def test_no_deal_of_equal_numbers_is_much_more_even():
    sizes = SIZES[:8]
    loads = [0, 0]
    dealt = deal(sizes, loads, num_each=4)

    assert sorted(dealt[0] + dealt[1]) == list(range(8)) and [len(items) for items in dealt] == [4, 4]
    assert loads == [sum(sizes[i] for i in items) for items in dealt]
    best = min(max(sum(one), sum(sizes) - sum(one)) for one in itertools.combinations(sizes, 4))
    assert best <= max(loads) < 1.05 * best


def test_batches_of_one_group_come_out_even_over_the_step_they_are_accumulated_in():
    sampler = EpochSampler(96, seed=1)
    balanced = BalancedSampler(sampler, num_tokens, num_processes=4, batch_size=1, batches_per_step=8)
    plain, dealt = (loads_of(batches_of(s, 4, 1)) for s in (sampler, balanced))

    for step in range(0, 24, 8):
        before, after = ([sum(loads[step : step + 8]) for loads in ranks] for ranks in (plain, dealt))
        assert sum(before) == sum(after)
        assert unevenness(after) - 1 < (unevenness(before) - 1) / 2


def test_what_a_step_leaves_uneven_is_not_made_up_for_in_the_next():
    sizes = dict(enumerate([90, 10, 50, 40]))
    sampler = EpochSampler(4, seed=0, shuffle=False)
    orders = [
        [i for _, i in BalancedSampler(sampler, lambda key: sizes[key[1]], num_processes=2, batch_size=1, **options)]
        for options in ({}, {"batches_per_step": 2})
    ]

    assert orders == [[0, 1, 2, 3], [0, 1, 3, 2]]


def test_groups_that_fill_the_last_batch_are_shared_out():
    sampler = EpochSampler(21, seed=1, multiple_of=8)
    balanced = BalancedSampler(sampler, num_tokens, num_processes=2, batch_size=4)
    ranks = batches_of(balanced, 2, 4)

    assert len(balanced) == 24 and sorted(itertools.chain(*ranks[0], *ranks[1])) == sorted(sampler)
    assert [[key[1] for key in batches[-1]].count(FILLER) for batches in ranks] in ([1, 2], [2, 1])


def test_a_batch_that_is_not_whole_stays_as_it_is():
    sampler = EpochSampler(13, seed=1)
    balanced = list(BalancedSampler(sampler, num_tokens, num_processes=2, batch_size=4))

    assert balanced[8:] == list(sampler)[8:] and balanced[:8] != list(sampler)[:8]


def test_each_epoch_has_its_own_order_and_repeats_it():
    sampler = EpochSampler(24, seed=1)
    balanced = BalancedSampler(sampler, num_tokens, num_processes=2, batch_size=4)
    first = list(balanced)
    sampler.set_epoch(1)
    second = list(balanced)
    sampler.set_epoch(0)

    assert list(balanced) == first != second


def test_batches_of_one_source_stay_whole_and_come_out_even_over_the_step():
    rows = datasets.Dataset.from_list([{"query": "q", "passages": ["p"], "labels": [1.0]}] * 16)
    sampler = SourceGroups({"a": rows, "b": rows}, passages_per_query=2, seed=3).sampler(
        shuffle=True, one_source_size=4
    )
    options = {"num_processes": 2, "batch_size": 4, "run_size": 4, "batches_per_step": 2}
    ranks = batches_of(BalancedSampler(sampler, num_tokens, **options), 2, 4)

    assert all(len({index < 16 for _, index in batch}) == 1 for batches in ranks for batch in batches)
    before, after = (loads_of(each) for each in (batches_of(sampler, 2, 4), ranks))
    for step in (0, 2):
        assert max(sum(loads[step : step + 2]) for loads in after) <= max(
            sum(loads[step : step + 2]) for loads in before
        )
    assert before != after


def test_sizes_are_the_bytes_of_selected_groups_also_where_labels_are_missing():
    rows = [
        {"query": "é", "passages": ["a" * i for i in range(1, 5)], "labels": None},
        {"query": "left out", "passages": ["x"], "labels": [1.0]},
        {"query": "abc", "passages": ["", "äöü"], "labels": [0.0, 2.0]},
    ]
    sizes = TextSizes(datasets.Dataset.from_list(rows).select([2, 0]))

    assert len(sizes) == 2
    assert sizes[0] == {"query": 3, "passages": [0, 6], "labels": [0.0, 2.0]}
    assert sizes[1] == {"query": 2, "passages": [1, 2, 3, 4], "labels": None}


def test_the_estimate_is_that_of_the_passages_that_are_drawn_as_they_are_cut():
    chance = random.Random(2)
    rows = [
        {
            "query": "w" * chance.randint(3, 9),
            "passages": ["p" * chance.randint(1, 60) for _ in range(10)],
            "labels": [float(j == 3) for j in range(10)],
            "passage_weights": [float(chance.random() < 0.8) for _ in range(10)],
        }
        for _ in range(30)
    ]
    train_set = TrainGroups(datasets.Dataset.from_list(rows), passages_per_query=4, seed=1)
    estimate = TokenEstimate(train_set, TEMPLATE)

    # this tokenizer makes a token of each of these letters, so the estimate is exact
    for key in [*itertools.product((0, 1), range(30)), (0, FILLER)]:
        drawn = train_set[key]
        pairs = [(drawn["query"], passage) for passage in drawn["passages"]]
        exact = [len(TEMPLATE.tokenizer(*pair, truncation=True, max_length=40)["input_ids"]) for pair in pairs]
        assert estimate(key) == sum(exact)
