"""Sources: how many groups of each are drawn, in which order, and what a joined data set holds."""

from __future__ import annotations

import logging
from collections import Counter

import datasets
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from rerank_trainer.data.sampling import EpochSampler
from rerank_trainer.data.sources import SourceGroups, SourceSampler, draw_counts, join_sources


def groups(name, size, **columns):
    passages = [[f"{name} {i} {j}" for j in range(8)] for i in range(size)]
    labels = [[float(j == 0) for j in range(8)] for _ in range(size)]
    return datasets.Dataset.from_dict(
        {"query": [f"{name} {i}" for i in range(size)], "passages": passages, "labels": labels, **columns}
    )


def epochs(sampler, number):
    drawn = []
    for epoch in range(number):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


def test_an_epoch_draws_as_many_groups_as_there_are_shared_out_by_weight():
    sizes = {"a": 70, "b": 20, "c": 10}
    assert draw_counts(sizes, None) == [70, 20, 10]
    assert draw_counts(sizes, [1, 1, 2]) == [25, 25, 50]
    assert draw_counts({"a": 5, "b": 5}, [1, 2]) == [3, 7]


def test_a_weight_that_leaves_a_source_without_a_group_is_refused():
    with pytest.raises(ValueError, match=r"weights \[1, 1000\] leave the source 'a' without a group .* of 20 "):
        draw_counts({"a": 10, "b": 10}, [1, 1000])


def test_a_small_source_repeats_only_when_all_its_groups_have_come_and_with_other_passages():
    train_set = SourceGroups(
        {"big": groups("big", 30), "small": groups("small", 4)}, weights=[1, 1], passages_per_query=4, seed=3
    )
    drawn = epochs(train_set.sampler(shuffle=True), 2)

    assert [Counter(index >= 30 for _, index in epoch) for epoch in drawn] == [{False: 17, True: 17}] * 2
    both = drawn[0] + drawn[1]
    # 34 draws of each: the small one is walked through 8 times and a half, the big one once and 4 groups of the next
    assert Counter(Counter(i for _, i in both if i >= 30).values()) == {8: 2, 9: 2}
    assert Counter(Counter(i for _, i in both if i < 30).values()) == {1: 26, 2: 4}
    assert len(set(both)) == 68
    passages = {tuple(train_set[key]["passages"]) for key in both if key[1] == 30}
    assert len(passages) >= 6


def test_the_order_depends_on_seed_and_epoch_alone():
    def sampler(seed):
        return SourceSampler([9, 4], [6, 7], seed=seed)

    whole = epochs(sampler(1), 3)
    late = sampler(1)
    late.set_epoch(2)

    assert list(late) == whole[2] and whole == epochs(sampler(1), 3)
    assert whole[0] != whole[1] and whole != epochs(sampler(2), 3)


def test_without_weights_the_order_is_that_of_one_data_set():
    sources = SourceGroups({"a": groups("a", 5), "b": groups("b", 3)}, passages_per_query=4, seed=7)

    assert list(sources.sampler(shuffle=True)) == list(EpochSampler(8, seed=7))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_a_batch_of_one_source_stays_one_when_processes_share_the_batches(num_processes):
    sources = SourceGroups({"a": groups("a", 11), "b": groups("b", 6)}, passages_per_query=4, seed=7)
    sampler = sources.sampler(shuffle=True, one_source_size=4)
    assert len(sampler) == 12 + 8
    ranks = [
        list(BatchSamplerShard(BatchSampler(sampler, 4, False), num_processes, rank)) for rank in range(num_processes)
    ]

    assert {len(batches) for batches in ranks} == {-(-5 // num_processes)}
    for batches in ranks:
        for batch in batches:
            assert len(batch) == 4 and len({index < 11 for _, index in batch}) == 1
    # the twelfth group of the first source is of its next pass
    assert {index for batches in ranks for batch in batches for _, index in batch} == set(range(17))
    whole = [index < 11 for _, index in sampler][::4]
    assert whole != sorted(whole) and whole != sorted(whole, reverse=True)


def test_joined_groups_know_their_source_and_lack_what_theirs_lacks(caplog):
    one = groups("a", 2).remove_columns("labels").add_column("teacher_scores", [[0.5] * 8] * 2)
    two = groups("b", 1, instruction=["find"], source=["web"], weight=[2.0])
    with caplog.at_level(logging.INFO):
        joined = join_sources({"a": one, "b": two})

    assert joined["source"][:] == ["a", "a", "b"]
    assert joined["instruction"][:] == ["", "", "find"]
    assert joined["labels"][:2] == [None, None] and joined["teacher_scores"][2] is None
    assert joined["weight"][:] == [None, None, 2.0]
    assert "source 'b': its own column source gives way" in caplog.text
    train_set = SourceGroups({"a": one, "b": two}, passages_per_query=4, seed=0)
    assert "labels" not in train_set[0, 0] and "teacher_scores" not in train_set[0, 2]
