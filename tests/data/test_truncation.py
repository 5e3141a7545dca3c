"""Truncation: what is cut is counted, token by token, where rows are made."""

from __future__ import annotations

import pytest
import torch

from rerank_trainer.data.collator import RerankCollator
from rerank_trainer.data.templates import PairTemplate
from rerank_trainer.data.truncation import Truncation
from tests.tiny_models import TEXTS, byte_tokenizer

TOKENIZER = byte_tokenizer(special=True)


def num_tokens(text):
    return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("query_length", "passage_length", "lost"), [(3, 6, 0), (3, 7, 1), (3, 30, 24), (20, 1, 0), (20, 20, None)]
)
def test_a_row_knows_what_it_lost_of_query_and_passage(query_length, passage_length, lost):
    row = PairTemplate(TOKENIZER, max_length=12).row([50] * query_length, [100] * passage_length)
    kept_query, kept_passage = row.input_ids.count(50), row.input_ids.count(100)

    assert row.num_pair_tokens == query_length + passage_length
    assert (row.num_query_lost, row.num_passage_lost) == (query_length - kept_query, passage_length - kept_passage)
    if query_length == 3:
        assert (row.num_query_lost, row.num_passage_lost) == (0, lost)


def test_the_counts_of_a_batch_are_those_of_its_groups():
    long, longer = TEXTS[1] * 4, TEXTS[2] * 9
    template = PairTemplate(TOKENIZER, max_length=40)
    batch = RerankCollator(template)(
        [
            {"query": "water", "passages": [TEXTS[1], long, longer], "row": 0},
            {"query": "fire", "passages": [], "row": 1},
            {"query": "rain", "passages": ["ship"], "row": 2},
        ]
    )
    room = 40 - 3
    tokens = 2 * num_tokens("water") + num_tokens(long) + num_tokens(longer)

    assert batch["truncation"].tolist() == [[3, 2, 0, tokens, tokens - 2 * room], [0] * 5, [1, 0, 0, 0, 0]]
    assert batch["truncation"].dtype == torch.int64


def test_a_pair_whose_query_is_cut_counts_once_as_pair_and_once_as_query():
    template = PairTemplate(TOKENIZER, max_length=12)
    rows = [template.row([50] * 30, [100] * 30), template.row([50], [100] * 30), template.row([50], [100])]
    counts = Truncation.of(rows)

    assert (counts.num_pairs, counts.num_cut, counts.num_queries_cut) == (3, 2, 1)
    assert (counts.num_tokens, counts.num_lost) == (91, 91 - 2 * 9)
    assert counts.share == 2 / 3
    assert counts.describe(12) == (
        "2 of 3 pairs were cut to max_length=12, 80 % of their tokens lost; in 1 of them the query was cut too"
    )


def test_no_pairs_are_a_share_of_nothing():
    assert Truncation.of([]).share == 0
