"""Prompts: texts stand in their places, chat templates are read and written without a change, others are refused."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from rerank_trainer.data.prompts import Prompt, write_chat_template
from tests.tiny_tokenizers import byte_tokenizer

# as Qwen3-Reranker stores it: https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
QWEN3 = (
    '{%- set task = messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    '| default("Find passages") -%}\n'
    "<|im_start|>user\n<Instruct>: {{ task }}\n"
    '<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    '<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>\n'
    "<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def with_template(template):
    tokenizer = byte_tokenizer(special=False)
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer, query, passage, instruction=None):
    roles = {"system": instruction, "query": query, "document": passage}
    messages = [{"role": role, "content": text} for role, text in roles.items() if text is not None]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def test_texts_stand_where_their_places_are_even_if_they_look_like_places():
    prompt = Prompt("I: {instruction} Q: {query} P: {passage} {json} {{}}", instruction="find")

    assert prompt.fill("{passage}", "{query}") == "I: find Q: {passage} P: {query} {json} {{}}"
    assert prompt.fill("sun", "", "{query}") == "I: {query} Q: sun P:  {json} {{}}"
    assert prompt.fill("sun", "star", "") == "I: find Q: sun P: star {json} {{}}"


def test_the_spans_of_a_filled_prompt_hold_its_texts():
    laid = Prompt("{passage}?{instruction}!{query}", instruction="find").lay("what", "a star", "now")

    assert laid.text == "a star?now!what"
    assert (laid.text[slice(*laid.passage)], laid.text[slice(*laid.query)]) == ("a star", "what")


def test_rows_without_an_instruction_read_their_own_text():
    prompt = Prompt("do {instruction}: {query} | {passage}", without_instruction="{query} | {passage}")

    assert prompt.fill("sun", "star") == "sun | star"
    assert prompt.fill("sun", "star", "look") == "do look: sun | star"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "Q: {query}"}, r"'Q: \{query\}' has no place for the passage: write \{passage\}"),
        ({"text": "P: {passage}"}, "has no place for the query"),
        ({"text": "{query} {passage} {query}"}, r"has 2 places \{query\}; expected one"),
        ({"text": "{instruction} {query} {passage}"}, "give instruction=..., which fills it where a row has none"),
        ({"text": "{instruction} {query} {passage}", "instruction": ""}, "or without_instruction=..., the whole text"),
        ({"text": "{query} {passage}", "instruction": "find"}, "instruction='find', but the prompt .* has no place"),
        (
            {"text": "{query} {passage}", "without_instruction": "{query}{passage}"},
            "without_instruction='{query}{passage}', but",
        ),
        (
            {"text": "{instruction}{query}{passage}", "without_instruction": "{query}"},
            "'{query}' has no place for the pas",
        ),
        (
            {"text": "{instruction}{query}{passage}", "without_instruction": "{instruction}{query}{passage}"},
            "has a place",
        ),
        (
            {"text": "{instruction}{query}{passage}", "without_instruction": "{query}{passage}", "instruction": "a"},
            "one of them",
        ),
    ],
)
def test_a_prompt_that_leaves_something_out_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Prompt(**arguments)


def test_the_chat_template_of_a_reranker_is_read_with_its_default_instruction():
    prompt = Prompt.from_chat_template(with_template(QWEN3))

    assert prompt == Prompt(
        "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        instruction="Find passages",
    )


def test_a_chat_template_in_typed_parts_is_read_when_it_is_said():
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"

    prompt = Prompt.from_chat_template(with_template(template), structured=True)

    assert prompt.fill("sun", "star", "find") == "[system]find[query]sun[document]star"
    assert prompt.fill("sun", "star") == "[query]sun[document]star"


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("Query: {query} Document: {passage} Relevant:</s>"),
        Prompt("{passage}\n\n\tis it about {query}?\n"),
        Prompt('I\'d "say" {{ no }} {% raw %} \\n {instruction}: {query}\n{passage}\n\n', instruction='a "b"\n\\ß 😀'),
        Prompt("{instruction}{query}{passage}", instruction="in {query}"),
        Prompt("  {instruction} {query} {passage}", without_instruction="{query}: {passage}\n"),
    ],
    ids=range(5),
)
def test_a_prompt_written_as_a_chat_template_writes_the_same_texts_after_a_reload(prompt, tmp_path):
    tokenizer = with_template(None)
    write_chat_template(tokenizer, prompt)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)

    assert Prompt.from_chat_template(again) == prompt
    instructions = [None, "look\n\n"] if prompt.takes_instructions else [None]
    for instruction in instructions:
        for query, passage in ((" what?\n", "\n\n{{ 1 + 1 }} 'x' "), ("{query}", "")):
            assert rendered(again, query, passage, instruction) == prompt.fill(query, passage, instruction)


@pytest.mark.parametrize("how", [{"instruction": "Be strict."}, {"without_instruction": "{query} {passage}"}])
def test_an_instruction_that_vllm_gives_as_a_variable_of_the_template_counts(how):
    prompt = Prompt("{instruction} {query} {passage}", **how)
    tokenizer = with_template(prompt.chat_template())
    messages = [{"role": "query", "content": "sun"}, {"role": "document", "content": "a star"}]

    assert tokenizer.apply_chat_template(messages, tokenize=False, instruction="Look.") == "Look. sun a star"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == prompt.fill("sun", "a star")


def test_a_chat_template_that_writes_the_prompt_already_stays_as_its_authors_wrote_it():
    tokenizer = with_template(QWEN3)
    write_chat_template(tokenizer, Prompt.from_chat_template(tokenizer))

    assert tokenizer.chat_template == QWEN3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_SYSTEM.replace("'system'", "'document'"), "a message of the role 'document' 0 times"),
        ("{{ messages[0].content }}", "a message of the role 'document' 0 times"),
        ("{{ messages[-1].content }}", "a message of the role 'query' 0 times"),
        (CHATML + "{{ messages[-1].content }}", "a message of the role 'document' 2 times"),
        (CHATML.replace("message.content", "message.content | trim"), "changes texts: .*what heats"),
        ("{{ raise_exception('roles must alternate') }}", "cannot write .*: roles must alternate. Give a prompt"),
        (None, "cannot write .*chat_template"),
    ],
)
def test_a_chat_template_that_drops_a_role_or_changes_texts_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        Prompt.from_chat_template(with_template(template))


def test_a_chat_template_without_a_place_for_an_instruction_has_none():
    assert Prompt.from_chat_template(with_template(NO_SYSTEM)) == Prompt("[query]{query}[document]{passage}")


def test_a_model_s_own_chat_template_makes_a_prompt_of_messages():
    messages = [
        {"role": "system", "content": "{instruction}"},
        {"role": "user", "content": "<Query>: {query}\n<Document>: {passage}"},
    ]

    prompt = Prompt.from_messages(with_template(CHATML), messages, instruction="Find it.", suffix="<think>\n")

    assert prompt.fill("sun", "star") == (
        "<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n<Query>: sun\n<Document>: star<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_messages_whose_role_the_chat_template_drops_are_refused():
    messages = [{"role": "system", "content": "{passage}"}, {"role": "user", "content": "{query}"}]

    with pytest.raises(ValueError, match=r"made of .*'system'.*has no place for the passage"):
        Prompt.from_messages(with_template(NO_SYSTEM), messages)
