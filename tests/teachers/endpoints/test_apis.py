"""Shapes of rerank services: what is sent, and that no passage gets another's score."""

from __future__ import annotations

import math

import pytest

from rerank_trainer.teachers.endpoints.apis import RerankApi

ANSWERS = {
    "cohere": {"id": "1", "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.25}]},
    "jina": {"usage": {}, "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.25}]},
    "vllm": {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.25, "document": {}}]},
    "vllm-score": {"data": [{"index": 0, "object": "score", "score": 0.25}, {"index": 1, "score": 0.9}]},
    "tei": [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.25}],
}
BODIES = {
    "cohere": {"query": "q", "documents": ["a", "b"]},
    "jina": {"query": "q", "documents": ["a", "b"], "return_documents": False},
    "vllm": {"query": "q", "documents": ["a", "b"]},
    "vllm-score": {"text_1": "q", "text_2": ["a", "b"]},
    "tei": {"query": "q", "texts": ["a", "b"], "raw_scores": True, "truncate": True},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_known_service_is_asked_and_read_in_its_own_words(name):
    api = RerankApi.named(name)

    assert api.body("q", ["a", "b"], None) == BODIES[name]
    assert api.read(ANSWERS[name], 2) == [0.25, 0.9]


def result(index, score=0.5):
    return {"index": index, "relevance_score": score}


@pytest.mark.parametrize(
    ("results", "found"),
    [
        ([result(0)], "1 of 2 passages have no score, the first is number 1"),
        ([result(0), result(0)], "two results have the index 0"),
        ([result(0), result(2)], r"an index from 0 to 1, found \{'index': 2"),
        ([result(0), result(-1)], "an index from 0 to 1"),
        ([result(0), result(True)], "an index from 0 to 1"),
        ([result(0), result("1")], "an index from 0 to 1"),
        ([0.5, 0.5], "an index from 0 to 1, found 0.5"),
        ([result(0), result(1, math.nan)], "finite number, found .*nan"),
        ([result(0), result(1, math.inf)], "finite number, found .*inf"),
        ([result(0), result(1, 10**400)], "finite number"),
        ([result(0), result(1, None)], "finite number, found .*None"),
        ([result(0), result(1, "0.5")], "finite number"),
        ([result(0), result(1, True)], "finite number"),
        ([result(0), result(1, 1.5)], r'1.5 is no probability.*scale="logit"'),
        ("none", "to be a list of results, found"),
    ],
)
def test_an_answer_that_loses_a_passage_or_a_score_is_refused_with_what_it_holds(results, found):
    with pytest.raises(ValueError, match=found):
        RerankApi.named("cohere").read({"results": results}, 2)


@pytest.mark.parametrize("answer", [None, [], 3, {"error": "no"}])
def test_an_answer_of_another_shape_is_refused(answer):
    with pytest.raises(ValueError, match="expected its 'results' to be a list"):
        RerankApi.named("cohere").read(answer, 1)


def test_logits_have_no_bounds():
    assert RerankApi.named("vllm", scale="logit").read({"results": [result(0, -7.5)]}, 1) == [-7.5]


def test_texts_with_braces_are_sent_as_they_are():
    api = RerankApi(query_template="{instruction}: {query}", passage_template="<{passage}>", instruction="Find")

    body = api.body("what is {passage}", ["{query}", "{}"], None)

    assert body == {"query": "Find: what is {passage}", "documents": ["<{query}>", "<{}>"]}


def test_an_instruction_of_a_row_goes_before_that_of_the_service():
    api = RerankApi(query_template="{instruction}: {query}", instruction="Find")

    assert api.body("q", ["a"], "Refute")["query"] == "Refute: q"


def test_an_instruction_is_not_dropped_in_silence():
    with pytest.raises(ValueError, match="the instruction 'Refute', and the service has no place for it"):
        RerankApi.named("cohere").body("q", ["a"], "Refute")
    with pytest.raises(ValueError, match="the query 'q' has none"):
        RerankApi(query_template="{instruction}: {query}").body("q", ["a"], None)


def test_options_are_added_to_those_of_the_service():
    api = RerankApi.named("tei", options={"truncate": False, "truncation_direction": "left"})

    assert api.options == {"raw_scores": True, "truncate": False, "truncation_direction": "left"}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"scale": "rank"}, "scale='rank'"),
        ({"max_passages": 0}, "max_passages must be 1 or more, found 0"),
        ({"query_template": "nothing"}, "query_template='nothing': expected {query} once"),
        ({"query_template": "{query} {passage}"}, "no other place than {instruction} and {query}"),
        ({"passage_template": "{passage}{passage}"}, "expected {passage} once"),
        ({"instruction": "Find"}, "has no place {instruction}"),
        ({"options": {"documents": []}}, r"options has \['documents'\]"),
    ],
)
def test_a_field_that_cannot_be_right_is_refused(fields, found):
    with pytest.raises(ValueError, match=found):
        RerankApi(**fields)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="api='bing' is not known; expected one of .*'cohere', 'jina'"):
        RerankApi.named("bing")
