"""Templates: the tokenizer's own ids, for pairs that fit and pairs that are cut; a budget for the query if asked."""

from __future__ import annotations

import logging
import random

import pytest
from tokenizers import pre_tokenizers, processors
from transformers import AutoTokenizer

from rerank_trainer.data.templates import PairTemplate, longest_first
from tests.tiny_models import PAIRS, TEXTS
from tests.tiny_tokenizers import TOKENIZERS, WordTokenizer, byte_tokenizer, joining_tokenizer


def reversed_tokenizer():
    """One that puts the passage before the query."""
    tokenizer = byte_tokenizer(special=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $B [SEP] $A", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def first_word_tokenizer():
    """A Metaspace that marks the first word of a text alone."""
    tokenizer = TOKENIZERS["deberta-v2"]()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def hyphen_tokenizer():
    """One of a class of its own that joins the texts at a hyphen alone: ordinary pairs do not show it."""
    kind = type(byte_tokenizer(special=True))

    class HyphenTokenizer(kind):
        def _encode_plus(self, text, text_pair=None, **options):
            if text_pair is not None and not isinstance(text, str):
                joins = [a.endswith("-") for a in text]
                text_pair = [a + b if join else b for a, b, join in zip(text, text_pair, joins, strict=True)]
            return super()._encode_plus(text, text_pair, **options)

    tokenizer = byte_tokenizer(special=True)
    tokenizer.__class__ = HyphenTokenizer
    return tokenizer


MADE = {
    **TOKENIZERS,
    "words in Python": WordTokenizer,
    "joining": joining_tokenizer,
    "hyphen": hyphen_tokenizer,
    "reversed": reversed_tokenizer,
    "first word": first_word_tokenizer,
}
WHOLE = ["joining", "hyphen", "reversed"]


@pytest.fixture(scope="module", params=[*MADE, "minilm"])
def tokenizer(request, minilm_path):
    return AutoTokenizer.from_pretrained(minilm_path) if request.param == "minilm" else MADE[request.param]()


@pytest.fixture(scope="module", params=[name for name in MADE if name not in WHOLE])
def separable(request):
    return MADE[request.param]()


def encode_pair(template, query, passage):
    return template.encode([(query, [passage])])[0][0]


def expected(tokenizer, query, passage, **options):
    """The tokenizer's own encoding, as a batch of one: asked for one pair, it takes an empty passage for none."""
    return {key: value[0] for key, value in tokenizer([query], [passage], **options).items()}


def test_a_pair_that_fits_gets_the_ids_of_the_tokenizer(tokenizer):
    template = PairTemplate(tokenizer, max_length=1000)
    for pair in [*PAIRS, ("a well-", "known kettle")]:
        encoded = expected(tokenizer, *pair)
        row = encode_pair(template, *pair)

        assert row.input_ids == encoded["input_ids"], pair
        assert row.token_type_ids == encoded.get("token_type_ids")


def random_pairs(number):
    """Texts of unlike lengths, with odd spaces, empty ones, and words of no vocabulary."""
    chance = random.Random(number)
    words = [*" ".join(TEXTS).split(), "Zürich", "\t", " ", "a-b"]
    return [
        tuple(" ".join(chance.choices(words, k=chance.choice([0, 1, 2, 5, 12, 40]))) for _ in range(2))
        for _ in range(25)
    ]


def test_a_pair_that_does_not_fit_is_cut_as_the_tokenizer_cuts_it(tokenizer):
    for max_length in (7, 20, 33, 64):
        template = PairTemplate(tokenizer, max_length=max_length)
        for pair in [*PAIRS, *random_pairs(max_length)]:
            encoded = expected(tokenizer, *pair, truncation=True, max_length=max_length)
            row = encode_pair(template, *pair)

            assert row.input_ids == encoded["input_ids"], (max_length, pair)
            assert row.token_type_ids == encoded.get("token_type_ids")


def test_a_tokenizer_that_cuts_at_the_left_cuts_here_at_the_left():
    tokenizer = byte_tokenizer(special=True)
    tokenizer.truncation_side = "left"
    template = PairTemplate(tokenizer, max_length=24)
    for pair in PAIRS:
        encoded = expected(tokenizer, *pair, truncation=True, max_length=24)
        assert encode_pair(template, *pair).input_ids == encoded["input_ids"]


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        ((3, 100, 20), (3, 17)),  # the passage alone
        ((10, 100, 20), (10, 10)),
        ((11, 100, 20), (10, 10)),  # a query of more than half the room
        ((100, 3, 21), (18, 3)),
        ((50, 100, 21), (10, 11)),  # an odd token stays with the longer text
        ((100, 50, 21), (11, 10)),
        ((50, 50, 21), (10, 11)),
        ((5, 5, 1), (0, 1)),
    ],
)
def test_the_longer_text_is_cut_first_then_both(lengths, kept):
    assert longest_first(*lengths) == kept


def test_a_tokenizer_written_in_python_leaves_an_odd_token_to_the_query():
    assert longest_first(50, 100, 21, odd_to_query=True) == longest_first(50, 50, 21, odd_to_query=True) == (11, 10)


def test_a_short_query_is_never_cut(separable):
    query, passage = TEXTS[0], TEXTS[1] * 20
    only_second = separable(query, passage, truncation="only_second", max_length=100)["input_ids"]

    assert encode_pair(PairTemplate(separable, max_length=100), query, passage).input_ids == only_second


def test_a_query_longer_than_a_row_keeps_its_budget_and_leaves_room_for_the_passage(separable):
    template = PairTemplate(separable, max_length=40, query_max_length=12)
    row = encode_pair(template, TEXTS[0] * 20, TEXTS[1] * 20)
    query_ids = separable(TEXTS[0] * 20, add_special_tokens=False)["input_ids"][:12]
    passage_ids = separable(TEXTS[1] * 20, add_special_tokens=False)["input_ids"]
    ends = separable.num_special_tokens_to_add(pair=True)

    assert len(row.input_ids) == 40
    assert row.input_ids[row.prefix_length :][: 40 - 12 - ends] == passage_ids[: 40 - 12 - ends]
    # a word that is unknown is a special token too, but part of the text
    around = set(separable.all_special_ids) - {separable.unk_token_id}
    assert query_ids == [i for i in row.input_ids[: row.prefix_length] if i not in around]


def test_a_query_over_its_budget_stays_whole_in_a_pair_that_fits(separable):
    row = encode_pair(PairTemplate(separable, max_length=90, query_max_length=2), TEXTS[0], "fire")

    assert row.input_ids == separable(TEXTS[0], "fire")["input_ids"]


def test_the_prefix_is_what_the_rows_of_a_group_share(separable):
    rows = PairTemplate(separable, max_length=200).encode([(TEXTS[0], TEXTS[1:])])[0]
    first = rows[0]

    assert first.prefix_length > 3
    assert all(row.input_ids[: first.prefix_length] == first.input_ids[: first.prefix_length] for row in rows)
    assert len({tuple(row.input_ids[first.prefix_length :]) for row in rows}) == len(rows)


def test_groups_of_unlike_sizes_keep_their_rows(tokenizer):
    template = PairTemplate(tokenizer, max_length=100)
    groups = [(TEXTS[0], TEXTS[1:3]), (TEXTS[1], []), (TEXTS[2], [TEXTS[0]])]

    assert [len(rows) for rows in template.encode(groups)] == [2, 0, 1]
    assert template.encode(groups)[2][0] == encode_pair(template, TEXTS[2], TEXTS[0])
    assert template.encode([]) == []


@pytest.mark.parametrize(("max_length", "query_max_length"), [(3, None), (4, None), (20, 20), (20, 0)])
def test_lengths_without_room_for_a_passage_are_refused(max_length, query_max_length):
    with pytest.raises(ValueError, match=f"max_length={max_length} with query_max_length=.* leaves no room"):
        PairTemplate(byte_tokenizer(special=True), max_length=max_length, query_max_length=query_max_length)


def test_only_tokenizers_that_can_be_taken_apart_are(tokenizer, request):
    taken_apart = PairTemplate(tokenizer, max_length=50).frame is not None

    assert taken_apart == (request.node.callspec.params["tokenizer"] not in WHOLE)


def test_merges_across_the_edge_of_a_joined_pair_are_kept():
    joining = joining_tokenizer()
    apart = joining(["the sh", "ip sailed"], add_special_tokens=False)["input_ids"]
    row = encode_pair(PairTemplate(joining, max_length=50), "the sh", "ip sailed")

    assert row.input_ids == joining("the ship sailed")["input_ids"] != [*apart[0], *apart[1]]
    assert row.prefix_length == 0  # nothing is known to be shared


def test_a_query_budget_is_refused_where_the_tokenizer_joins_the_texts():
    with pytest.raises(ValueError, match="query_max_length=12 needs .*; JoiningTokenizer encodes them together"):
        PairTemplate(joining_tokenizer(), max_length=50, query_max_length=12)


def test_pairs_tokenised_whole_are_said_in_the_log(caplog):
    with caplog.at_level(logging.WARNING, logger="rerank_trainer"):
        PairTemplate(joining_tokenizer(), max_length=50)

    assert "JoiningTokenizer encodes query and passage together" in caplog.text


def test_a_tokenizer_that_leaves_the_passage_out_is_refused():
    class Deaf(type(byte_tokenizer(special=True))):
        def __call__(self, text, pair=None, **options):
            return super().__call__(text, **options)

    deaf = byte_tokenizer(special=True)
    deaf.__class__ = Deaf
    with pytest.raises(ValueError, match="leaves the passage out"):
        PairTemplate(deaf, max_length=50)


def test_a_batch_of_texts_is_tokenised_alike_whatever_the_number_of_calls(monkeypatch):
    template = PairTemplate(byte_tokenizer(special=True), max_length=60)
    groups = [(query, TEXTS) for query in TEXTS]
    whole = template.encode(groups)
    monkeypatch.setattr("rerank_trainer.data.templates._TEXTS_AT_ONCE", 2)

    assert template.encode(groups) == whole
    assert whole[0][1] == encode_pair(template, TEXTS[0], TEXTS[1])
