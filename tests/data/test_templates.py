"""Templates: the tokenizer's own ids for pairs that fit; only the passage is cut, after the query's budget."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from rerank_trainer.data.templates import PairTemplate
from tests.tiny_models import PAIRS, TEXTS, byte_tokenizer


@pytest.fixture(params=["encoder", "decoder", "minilm"])
def tokenizer(request, minilm_path):
    if request.param == "minilm":
        return AutoTokenizer.from_pretrained(minilm_path)
    return byte_tokenizer(special=request.param == "encoder")


def encode_pair(template, query, passage):
    return template.encode([(query, [passage])])[0][0]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_that_fits_gets_the_ids_of_the_tokenizer(tokenizer, pair):
    # as a batch of one: asked for a single pair, Transformers takes an empty passage for none
    encoded = tokenizer([pair[0]], [pair[1]], return_token_type_ids=True)
    row = encode_pair(PairTemplate(tokenizer, max_length=1000), *pair)

    assert row.input_ids == encoded["input_ids"][0]
    if row.token_type_ids is not None:
        assert row.token_type_ids == encoded["token_type_ids"][0]


def test_only_the_passage_of_a_long_pair_is_cut(tokenizer):
    query, passage = TEXTS[0], TEXTS[1] * 20
    expected = tokenizer(query, passage, truncation="only_second", max_length=40)["input_ids"]

    assert encode_pair(PairTemplate(tokenizer, max_length=40), query, passage).input_ids == expected


def test_a_query_longer_than_a_row_keeps_its_budget_and_leaves_room_for_the_passage(tokenizer):
    template = PairTemplate(tokenizer, max_length=40, query_max_length=12)
    row = encode_pair(template, TEXTS[0] * 20, TEXTS[1] * 20)
    query_ids = tokenizer(TEXTS[0] * 20, add_special_tokens=False)["input_ids"][:12]
    passage_ids = tokenizer(TEXTS[1] * 20, add_special_tokens=False)["input_ids"]
    ends = len(tokenizer("a", "b")["input_ids"]) - len(tokenizer(["a", "b"], add_special_tokens=False)["input_ids"])

    assert len(row.input_ids) == 40
    assert row.input_ids[row.prefix_length :][: 40 - 12 - ends] == passage_ids[: 40 - 12 - ends]
    assert query_ids == [i for i in row.input_ids[: row.prefix_length] if i not in tokenizer.all_special_ids]


def test_a_query_over_its_budget_stays_whole_in_a_pair_that_fits(tokenizer):
    row = encode_pair(PairTemplate(tokenizer, max_length=60, query_max_length=2), TEXTS[0], "fire")

    assert row.input_ids == tokenizer(TEXTS[0], "fire")["input_ids"]


def test_the_prefix_is_what_the_rows_of_a_group_share(tokenizer):
    rows = PairTemplate(tokenizer, max_length=100).encode([(TEXTS[0], TEXTS[1:])])[0]
    first = rows[0]

    assert first.prefix_length > 3
    assert all(row.input_ids[: first.prefix_length] == first.input_ids[: first.prefix_length] for row in rows)
    assert len({row.input_ids[first.prefix_length] for row in rows}) > 1


def test_groups_of_unlike_sizes_keep_their_rows(tokenizer):
    template = PairTemplate(tokenizer, max_length=100)
    groups = [(TEXTS[0], TEXTS[1:3]), (TEXTS[1], []), (TEXTS[2], [TEXTS[0]])]

    assert [len(rows) for rows in template.encode(groups)] == [2, 0, 1]
    assert template.encode(groups)[2][0] == encode_pair(template, TEXTS[2], TEXTS[0])


@pytest.mark.parametrize(("max_length", "query_max_length"), [(3, None), (20, 20), (20, 0)])
def test_lengths_without_room_for_a_passage_are_refused(max_length, query_max_length):
    with pytest.raises(ValueError, match=f"max_length={max_length} with query_max_length=.* leaves no room"):
        PairTemplate(byte_tokenizer(special=True), max_length=max_length, query_max_length=query_max_length)


def test_a_tokenizer_that_joins_the_texts_is_refused():
    class Joining(type(byte_tokenizer(special=True))):
        def __call__(self, text, pair=None, **options):
            return super().__call__(text if pair is None else text[:-1] + pair[1:], **options)

    joining = byte_tokenizer(special=True)
    joining.__class__ = Joining
    with pytest.raises(ValueError, match="expected a tokenizer that encodes a pair as both texts"):
        PairTemplate(joining, max_length=50)
