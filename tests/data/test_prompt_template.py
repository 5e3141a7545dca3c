"""The template of a prompt: ids of the whole text, whatever merges; what is cut, and what never is."""

from __future__ import annotations

import pickle

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rerank_trainer.data.prompt_template import PromptTemplate
from rerank_trainer.data.prompts import Prompt
from tests.tiny_tokenizers import TEXTS, WordTokenizer

PROMPT = Prompt("Do: {instruction}\nQ: {query}\nP: {passage}\nIs it so? Answer:", instruction="Find it.")
AROUND = "\nIs it so? Answer:"


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without words, in which each edge between the prompt and its texts can merge."""
    space, line = "Ġ", "Ċ"  # as byte-level vocabularies write them
    merges = [(space, "w"), (space, "a"), ("?", line), (".", line), (line, "P"), (space, "t"), ("h", "e")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = merging_tokenizer()
QUERIES = ["what boils water?", "who?", " a\n", "?", TEXTS[1]]
PASSAGES = [f"{TEXTS[0]}.", ".", "", "\n\n", " two\nlines ", "émigré 東京 😀"]


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def template(max_length=400, prompt=PROMPT, **options):
    return PromptTemplate(TOKENIZER, prompt, max_length=max_length, **options)


def test_tokens_merge_across_every_edge_of_these_prompts():
    parts = PROMPT.text.replace("{instruction}", "Find it.").replace("{query}", "|what?|").replace("{passage}", "|a.|")
    before, query, between, passage, after = parts.split("|")

    for left, right in ((before, query), (query, between), (between, passage), (passage, after)):
        assert ids_of(left) + ids_of(right) != ids_of(left + right)


def test_ids_are_those_of_the_whole_text():
    groups = [(query, PASSAGES) for query in QUERIES]
    instructions = ["Look.", None, "", "Find it.\n", "x"]
    rows = template().encode(groups, instructions)

    for (query, passages), instruction, of_group in zip(groups, instructions, rows, strict=True):
        for passage, row in zip(passages, of_group, strict=True):
            assert row.input_ids == ids_of(PROMPT.fill(query, passage, instruction))
            assert row.token_type_ids is None and not row.num_query_lost and not row.num_passage_lost


def test_the_prefix_ends_before_the_first_token_that_holds_a_part_of_the_passage():
    whole = f"{TEXTS[0]}."
    row = template().encode([("what?", [whole])])[0][0]

    head = TOKENIZER.decode(row.input_ids[: row.prefix_length])
    through = TOKENIZER.decode(row.input_ids[: row.prefix_length + 1])
    before = PROMPT.fill("what?", "").removesuffix(AROUND)
    assert before.startswith(head) and len(through) > len(before)


def tokens_of(query: str, passage: str, part: str) -> list[int]:
    """The tokens that hold something of a part, found by the characters of each token."""
    laid = PROMPT.lay(query, passage)
    first, behind = getattr(laid, part)
    encoded = TOKENIZER(laid.text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token for token, (begin, end) in tokens if begin < behind and end > first]


@pytest.mark.parametrize("max_length", [90, 91, 100, 125])
def test_the_passage_alone_is_cut_and_what_stands_behind_it_is_whole(max_length):
    passage = f"{TEXTS[0]}. " * 9
    row = template(max_length).encode([("what?", [passage])])[0][0]

    before = PROMPT.fill("what?", "").removesuffix(AROUND)
    text = TOKENIZER.decode(row.input_ids)
    num_kept = max_length - len(ids_of(f"0{AROUND}")[1:])
    assert len(row.input_ids) == max_length
    assert text.startswith(before) and text.endswith(AROUND)
    assert row.input_ids[:num_kept] == ids_of(PROMPT.fill("what?", passage))[:num_kept]
    num_passage, num_query = (len(tokens_of("what?", passage, part)) for part in ("passage", "query"))
    assert row.num_pair_tokens == num_query + num_passage
    assert (row.num_query_lost, row.num_passage_lost) == (0, num_passage - (num_kept - row.prefix_length))


@pytest.mark.parametrize("query_max_length", [5, None])
def test_a_query_that_does_not_fit_is_cut_at_a_token_and_the_text_is_tokenised_anew(query_max_length):
    query, passage = " ".join(TEXTS), f"{TEXTS[0]}. " * 4
    row = template(120, query_max_length=query_max_length).encode([(query, [passage])])[0][0]

    text = TOKENIZER.decode(row.input_ids)
    shorter = text.split("\nQ: ")[1].split("\nP: ")[0]
    assert len(row.input_ids) == 120 and text.endswith(AROUND)
    assert query.startswith(shorter) and len(shorter) < len(query)
    assert row.input_ids[: row.prefix_length] == ids_of(PROMPT.fill(shorter, passage))[: row.prefix_length]
    num_kept = len(tokens_of(query, passage, "query")) - row.num_query_lost
    around = ids_of(PROMPT.fill(query, passage))
    room = 120 - (len(around) - sum(len(tokens_of(query, passage, part)) for part in ("query", "passage")))
    assert num_kept == (query_max_length or room // 2)  # both texts take more than half: each keeps half


def test_a_query_that_fits_is_never_cut_by_its_budget():
    rows = [template(400, query_max_length=n).encode([(TEXTS[1], [TEXTS[0]])]) for n in (2, 300)]

    assert rows[0] == rows[1] and rows[0][0][0].input_ids == ids_of(PROMPT.fill(TEXTS[1], TEXTS[0]))


def test_a_passage_that_stands_before_the_query_is_the_one_that_is_cut():
    prompt = Prompt("P: {passage}\nQ: {query}\nIs it so? Answer:")
    row = template(80, prompt).encode([("what boils?", [f"{TEXTS[0]}. " * 9])])[0][0]

    assert len(row.input_ids) == 80
    assert TOKENIZER.decode(row.input_ids).endswith("\nQ: what boils?\nIs it so? Answer:")
    assert TOKENIZER.decode(row.input_ids[: row.prefix_length + 1]).startswith("P: h")


def test_no_room_for_a_passage_is_refused_with_what_the_prompt_takes():
    with pytest.raises(ValueError, match=r"max_length=20 .* no room for a passage: the prompt .* takes \d+ tokens"):
        template(20)
    with pytest.raises(ValueError, match="query_max_length=390 leaves no room"):
        template(query_max_length=390)
    with pytest.raises(ValueError, match="shorten the instruction"):
        template(200).encode([("what?", ["a kettle"])], [" ".join(TEXTS)])


def test_a_tokenizer_without_places_of_tokens_is_refused():
    with pytest.raises(ValueError, match="WordTokenizer is written in Python"):
        PromptTemplate(WordTokenizer(), PROMPT, max_length=400)


def test_a_data_worker_gets_the_template_whole():
    again = pickle.loads(pickle.dumps(template(90)))

    groups = [("what?", [TEXTS[0] * 9])]
    assert again.encode(groups) == template(90).encode(groups)
