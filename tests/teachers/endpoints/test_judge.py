"""The judge: the score is what the log-probabilities of yes and no say; where they are missing, that is an error."""

from __future__ import annotations

import math

import pytest

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.teachers.endpoints.judge import ChatJudge


def answer(**probabilities):
    tokens = [{"token": token, "logprob": math.log(share)} for token, share in probabilities.items()]
    return named(tokens)


def named(tokens):
    return {"choices": [{"logprobs": {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": tokens}]}}]}


def test_the_score_is_the_log_of_yes_against_no():
    assert ChatJudge().read(answer(yes=0.6, no=0.2, maybe=0.1), 1) == pytest.approx([math.log(3)])


def test_spellings_of_a_word_count_together():
    shares = {"Yes": 0.3, " yes": 0.2, "\u2581YES": 0.1, "No": 0.1, "\u0120no": 0.05, "None": 0.04, "yesterday": 0.03}

    assert ChatJudge().read(answer(**shares), 1) == pytest.approx([math.log(0.6 / 0.15)])


def test_a_word_that_is_not_named_counts_as_the_least_likely_that_is():
    assert ChatJudge().read(answer(yes=0.9, Well=0.05, The=0.01), 1) == pytest.approx([math.log(90)])
    assert ChatJudge().read(answer(no=0.9, Well=0.05, The=0.01), 1) == pytest.approx([-math.log(90)])


def test_the_number_that_stands_for_very_unlikely_is_no_log_probability():
    tokens = [{"token": "yes", "logprob": -0.5}, {"token": "no", "logprob": -9999.0}, {"token": "a", "logprob": -4.0}]

    assert ChatJudge().read(named(tokens), 1) == [3.5]


def test_an_answer_with_neither_word_is_an_error_that_shows_what_was_said():
    with pytest.raises(ValueError, match=r"neither 'yes' nor 'no' is among the 2 most likely .*'<think>', 'Well'"):
        ChatJudge().read(answer(**{"<think>": 0.9, "Well": 0.1}), 1)


@pytest.mark.parametrize("said", [{}, {"choices": []}, {"choices": [{"logprobs": None}]}, None, named(None)])
def test_an_answer_without_log_probabilities_is_refused(said):
    with pytest.raises(ValueError, match="must support logprobs"):
        ChatJudge().read(said, 1)


@pytest.mark.parametrize("value", [0.5, math.nan, None, "-1", True])
def test_a_log_probability_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="expected log-probabilities, 0 at most, found"):
        ChatJudge().read(named([{"token": "yes", "logprob": value}]), 1)


def test_the_request_holds_prompt_and_system_message_and_asks_for_one_token():
    judge = ChatJudge(
        Prompt("{instruction} {query} {passage}", instruction="Judge."), system="Be strict.", yes="1", no="0"
    )

    assert judge.body("q", ["p"], None) == {
        "messages": [{"role": "system", "content": "Be strict."}, {"role": "user", "content": "Judge. q p"}],
        "max_completion_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert judge.body("q", ["p"], "Doubt.")["messages"][1]["content"] == "Doubt. q p"


def test_an_option_replaces_a_field_or_takes_it_out():
    body = ChatJudge(options={"max_completion_tokens": None, "max_tokens": 1, "seed": 3}).body("q", ["p"], None)

    assert (body["max_tokens"], body["seed"], "max_completion_tokens" in body) == (1, 3, False)


def test_an_instruction_is_not_dropped_in_silence():
    with pytest.raises(ValueError, match="the instruction 'Refute'"):
        ChatJudge().body("q", ["p"], "Refute")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"yes": "Yes", "no": " yes"}, "two words that differ"),
        ({"no": " "}, "two words that differ"),
        ({"top_logprobs": 1}, "top_logprobs must be 2 or more"),
        ({"options": {"n": 2}}, r"options has \['n'\]"),
    ],
)
def test_a_field_that_cannot_be_right_is_refused(fields, found):
    with pytest.raises(ValueError, match=found):
        ChatJudge(**fields)
