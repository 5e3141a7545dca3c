"""The endpoint teacher against a service on loopback: the true scores, no pair lost, none paid for twice."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from sentence_transformers import CrossEncoder

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.teachers.check import check_teacher
from rerank_trainer.teachers.endpoints.apis import RerankApi
from rerank_trainer.teachers.endpoints.budget import Budget
from rerank_trainer.teachers.endpoints.endpoint import EndpointTeacher
from rerank_trainer.teachers.endpoints.errors import BudgetError, EndpointError
from rerank_trainer.teachers.endpoints.judge import ChatJudge
from rerank_trainer.teachers.store import add_teacher_scores
from tests.teachers.endpoints.service import JUDGE_PROMPT, Service
from tests.tiny_models import TEXTS, tiny_model

ROOT = Path(__file__).parents[3]
# Unlike sizes, a pair twice in a group, a query twice, no passages.
GROUPS = [
    {"query": TEXTS[0], "passages": [*TEXTS, TEXTS[1]]},
    {"query": TEXTS[1], "passages": TEXTS[2:]},
    {"query": TEXTS[0], "passages": [TEXTS[3], "a map\nof \u201cthe north\u201d", TEXTS[1]]},
    {"query": TEXTS[2], "passages": []},
]
PAIRS = {(group["query"], passage) for group in GROUPS for passage in group["passages"]}
PAID_ONCE = Counter(PAIRS)
QUICK = {"backoff": 0.001, "timeout": 10.0}


def lengths(pairs):
    return [(len(query) - len(passage)) / 10 for query, passage in pairs]


def expected(score_fn, groups=GROUPS):
    return [score_fn([(group["query"], passage) for passage in group["passages"]]) for group in groups]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """Logits of pairs by a real cross-encoder that sentence-transformers runs, a pair at a time."""
    folder = tmp_path_factory.mktemp("served")
    for part in tiny_model("bert"):
        part.save_pretrained(folder)
    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    return lambda pairs: model.predict(pairs, batch_size=1, show_progress_bar=False).tolist() if pairs else []


SHAPES = {
    "cohere": ("/v2/rerank", "cohere"),
    "jina": ("/v1/rerank", "jina"),
    "vllm": ("/rerank", "vllm"),
    "vllm-score": ("/score", "vllm-score"),
    "tei": ("/tei", "tei"),
    "judge": ("/v1/chat/completions", ChatJudge(Prompt(JUDGE_PROMPT))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cross_encoder_behind_a_faulty_service_gives_its_scores_and_is_paid_once(shape, cross_encoder, tmp_path):
    path, api = SHAPES[shape]
    faults = ["429", "503", "cut", "half", "500", "429", "429"]
    # the client gives up after its timeout, which a busy machine must not reach otherwise: once is enough
    faults += ["hang"] if shape == "tei" else []
    with Service(cross_encoder, faults) as service:
        teacher = EndpointTeacher(
            service.url(path), api=api, backoff=0.001, timeout=2.0, max_concurrency=3, journal_dir=tmp_path
        )
        scores = teacher.score(GROUPS)["scores"]

    logits = expected(cross_encoder)
    assert torch.tensor(logits[0]).std() > 0.1
    if teacher.scale == "probability":
        logits = [torch.tensor(row, dtype=torch.float64).sigmoid().tolist() for row in logits]
    assert teacher.scale == ("logit" if shape in ("tei", "judge") else "probability")
    for row, wanted in zip(scores, logits, strict=True):
        assert row == pytest.approx(wanted, rel=1e-9)
    assert service.paid == PAID_ONCE
    assert not service.faults


@pytest.mark.parametrize("max_passages", [1, 2, 100])
def test_requests_hold_one_query_and_so_many_passages(max_passages, tmp_path):
    with Service(lengths) as service:
        api = RerankApi.named("tei", max_passages=max_passages)
        scores = EndpointTeacher(service.url("/tei"), api=api, journal_dir=tmp_path, **QUICK).score(GROUPS)["scores"]

    assert scores == expected(lengths)
    assert max(len(body["texts"]) for body in service.bodies) == min(max_passages, 6)
    assert len(service.bodies) == {1: 9, 2: 5, 100: 2}[max_passages]
    assert service.paid == PAID_ONCE


def test_pairs_of_another_data_set_and_another_teacher_object_are_not_paid_again(tmp_path):
    more = [*GROUPS[:2], {"query": TEXTS[1], "passages": [TEXTS[4], "something new"]}]
    with Service(lengths) as service:
        options = {"api": "tei", "journal_dir": tmp_path, **QUICK}
        EndpointTeacher(service.url("/tei"), **options).score(GROUPS)
        scores = EndpointTeacher(service.url("/tei"), **options).score(more)["scores"]

    assert scores == expected(lengths, more)
    assert service.paid == PAID_ONCE + Counter([(TEXTS[1], "something new")])


@pytest.mark.parametrize(
    "other", [{"model": "another"}, {"api": RerankApi.named("tei", options={"truncate": False})}, {"url": "/tei?a=b"}]
)
def test_another_model_or_other_settings_are_asked_anew(other, tmp_path):
    with Service(lambda pairs: lengths(pairs)) as service:
        options = {"url": "/tei", "api": "tei", "model": None, "journal_dir": tmp_path, **QUICK}
        teachers = []
        for changes in ({}, other):
            given = {**options, **changes}
            teachers.append(EndpointTeacher(service.url(given.pop("url")), **given))
        assert teachers[0].fingerprint != teachers[1].fingerprint
        assert teachers[0].estimate(GROUPS).num_pairs == teachers[1].estimate(GROUPS).num_pairs == len(PAIRS)
        assert teachers[0].journal_path != teachers[1].journal_path


def test_the_model_stands_in_every_request(tmp_path):
    with Service(lengths) as service:
        for model in ("a-model", None):
            EndpointTeacher(service.url("/tei"), api="tei", model=model, journal_dir=tmp_path, **QUICK).score(GROUPS)

    assert [body.get("model") for body in service.bodies] == ["a-model", "a-model", None, None]


def test_a_row_that_cannot_be_asked_about_is_refused_before_anything_is_sent(tmp_path):
    rows = [*GROUPS, {"query": "q", "passages": ["p"], "instruction": "Refute"}]
    with Service(lengths) as service:
        teacher = EndpointTeacher(service.url("/tei"), api="tei", journal_dir=tmp_path, **QUICK)
        with pytest.raises(ValueError, match="the instruction 'Refute', and the service has no place for it"):
            teacher.score(rows)
        assert service.bodies == []


def test_a_pair_with_another_instruction_is_asked_anew(tmp_path):
    api = RerankApi.named("tei", query_template="{instruction}{query}", instruction="")
    rows = [
        {"query": "q", "passages": ["p"], "instruction": text} for text in ("Find: ", "Refute it: ", None, "Find: ")
    ]
    with Service(lengths) as service:
        scores = EndpointTeacher(service.url("/tei"), api=api, journal_dir=tmp_path, **QUICK).score(rows)["scores"]

    assert scores == [[0.6], [1.1], [0.0], [0.6]]
    assert len(service.bodies) == 3


def test_answers_are_not_paid_again_because_they_are_declared_otherwise(tmp_path):
    apis = [
        RerankApi.named("tei", scale=scale, max_passages=size) for scale, size in (("logit", 3), ("probability", 9))
    ]
    one, other = (EndpointTeacher("http://localhost/x", api=api, journal_dir=tmp_path) for api in apis)

    assert one.journal_path == other.journal_path
    assert list(one._pairs(GROUPS[0])) == list(other._pairs(GROUPS[0]))


def test_the_store_and_the_journal_pay_once_between_them(tmp_path):
    groups = datasets.Dataset.from_list(GROUPS[:3])
    with Service(lengths) as service:
        teacher = EndpointTeacher(service.url("/tei"), api="tei", journal_dir=tmp_path / "journal", **QUICK)
        for store in ("one", "one", "another"):
            scored = add_teacher_scores(groups, teacher, cache_dir=tmp_path / store)
            for row, wanted in zip(scored["teacher_scores"], expected(lengths, GROUPS[:3]), strict=True):
                assert row == pytest.approx(wanted, rel=1e-6)  # the store keeps float32

    assert service.paid == PAID_ONCE


def test_probabilities_become_logits_without_being_paid_again(tmp_path):
    with Service(lengths) as service:
        options = {"api": "vllm", "journal_dir": tmp_path, **QUICK}
        as_given = EndpointTeacher(service.url("/rerank"), **options)
        teacher = EndpointTeacher(service.url("/rerank"), to_logits=True, **options)
        as_given.score(GROUPS)
        scores = teacher.score(GROUPS)["scores"]

    assert (as_given.scale, teacher.scale) == ("probability", "logit")
    assert as_given.fingerprint != teacher.fingerprint
    assert sum(scores, []) == pytest.approx(sum(expected(lengths), []), rel=1e-6)
    assert service.paid == PAID_ONCE


@pytest.mark.parametrize(("probability", "logit"), [(1.0, 16.118), (0.0, -16.118)])
def test_a_probability_that_was_rounded_to_its_end_has_a_finite_logit(probability, logit, tmp_path):
    teacher = EndpointTeacher("http://localhost/rerank", api="vllm", to_logits=True, journal_dir=tmp_path)

    assert teacher._scaled(probability) == pytest.approx(logit, abs=1e-3)


def test_the_declared_scale_is_one_that_the_check_before_training_knows(tmp_path):
    rows = {"query": ["q"] * 4, "passages": [["a", "b"]] * 4, "labels": [[1.0, 0.0]] * 4}
    rows["teacher_scores"] = [[0.9, 0.1]] * 4
    for api in ("cohere", "tei"):
        check_teacher(datasets.Dataset.from_dict(rows), scale=EndpointTeacher("http://localhost/x", api=api).scale)


def test_passages_that_are_scored_together_are_asked_for_together(tmp_path):
    rows = [{"query": "q", "passages": texts} for texts in (["a", "b"], ["b", "a"], ["a", "b"], ["a"], ["c", "c"])]
    with Service(lambda pairs: [10.0 * len(pairs) + place for place in range(len(pairs))]) as service:
        api = RerankApi.named("tei", together=True, max_passages=2)
        teacher = EndpointTeacher(service.url("/tei"), api=api, journal_dir=tmp_path, **QUICK)
        for _ in range(2):
            assert teacher.score(rows)["scores"] == [[20, 21], [20, 21], [20, 21], [10], [20, 21]]

    assert sorted(body["texts"] for body in service.bodies) == [["a"], ["a", "b"], ["b", "a"], ["c", "c"]]
    with pytest.raises(ValueError, match="a group has 3 passages, and a request takes 2"):
        teacher.score([{"query": "q", "passages": ["a", "b", "c"]}])


def test_an_estimate_asks_nothing_and_counts_what_is_left(tmp_path):
    with Service(lengths) as service:
        budget = Budget(price_per_request=0.002)
        api = RerankApi.named("tei", max_passages=4)
        teacher = EndpointTeacher(service.url("/tei"), api=api, budget=budget, journal_dir=tmp_path, **QUICK)
        before = teacher.estimate(GROUPS)
        assert service.bodies == []
        assert (before.num_pairs, before.num_requests, before.cost) == (9, 3, pytest.approx(0.006))
        teacher.score(GROUPS[1:2])
        after = teacher.estimate(GROUPS)

    assert (after.num_pairs, after.num_requests) == (6, 2)
    assert EndpointTeacher("http://localhost/x", api="tei", journal_dir=tmp_path).estimate(GROUPS).cost is None


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(tmp_path):
    with Service(lengths) as service:
        options = {"api": RerankApi.named("tei", max_passages=2), "journal_dir": tmp_path, **QUICK}
        teacher = EndpointTeacher(service.url("/tei"), budget=Budget(max_requests=3), **options)
        for _ in range(2):
            with pytest.raises(BudgetError, match=r"budget is spent: 3 requests.*is kept in .*start again to go on"):
                teacher.score(GROUPS)
            assert len(service.bodies) == 3
        scores = EndpointTeacher(service.url("/tei"), budget=Budget(max_requests=5), **options).score(GROUPS)["scores"]

    assert scores == expected(lengths)
    assert service.paid == PAID_ONCE


def test_a_refused_request_is_not_repeated_and_its_text_is_told(tmp_path):
    with Service(lengths, ["400"]) as service:
        teacher = EndpointTeacher(service.url("/tei"), api="tei", max_concurrency=1, journal_dir=tmp_path, **QUICK)
        with pytest.raises(EndpointError, match=r"127.0.0.1:\d+/tei: status 400: not now") as refused:
            teacher.score(GROUPS)
        assert len(service.bodies) == 1
    # the row can be found: services refuse texts that are too long, or that a filter does not like
    assert f"asked about the query {TEXTS[0]!r} and the passage {TEXTS[0]!r} with 5 more" in str(refused.value)


def test_a_pair_that_a_judge_does_not_answer_is_named(tmp_path):
    api = ChatJudge(Prompt(JUDGE_PROMPT), yes="of course", no="never")
    with Service(lengths) as service:
        teacher = EndpointTeacher(service.url("/v1/chat/completions"), api=api, journal_dir=tmp_path, **QUICK)
        with pytest.raises(ValueError, match="neither 'of course' nor 'never'.*the query 'q' and the passage 'p'"):
            teacher.score([{"query": "q", "passages": ["p"]}])


def test_a_redirection_is_not_followed(tmp_path):
    with Service(lengths, ["302"]) as service:
        teacher = EndpointTeacher(service.url("/tei"), api="tei", max_concurrency=1, journal_dir=tmp_path, **QUICK)
        with pytest.raises(EndpointError, match="status 302"):
            teacher.score(GROUPS)
        assert len(service.bodies) == 1


CHILD = """
import json, sys
from rerank_trainer.teachers.endpoints.endpoint import EndpointTeacher
url, journal, groups = json.loads(sys.argv[1])
EndpointTeacher(url, api="tei", max_concurrency=2, journal_dir=journal).score(groups)
"""


def test_a_run_that_is_killed_pays_only_for_the_rest_when_it_starts_again(tmp_path):
    groups = [{"query": f"q{number}", "passages": TEXTS} for number in range(12)]
    # the last two hang until the process is dead, so that all others are answered before
    with Service(lengths, [""] * 7 + ["hang", "hang"]) as service:
        arguments = json.dumps([service.url("/tei"), str(tmp_path), groups])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, "-c", CHILD, arguments], env=environment)
        latest = time.monotonic() + 60
        while service.num_hanging < 2 and time.monotonic() < latest and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        service.release.set()
        assert sum(service.paid.values()) == 35
        teacher = EndpointTeacher(service.url("/tei"), api="tei", journal_dir=tmp_path, **QUICK)
        assert teacher.estimate(groups).num_pairs == 25
        scores = teacher.score(groups)["scores"]

    assert scores == expected(lengths, groups)
    assert service.paid == Counter((group["query"], text) for group in groups for text in TEXTS)


def test_asking_a_service_needs_no_torch():
    code = "import sys, rerank_trainer.teachers.endpoints.endpoint; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "False"


def test_a_teacher_can_be_sent_to_other_processes(tmp_path):
    with Service(lengths) as service:
        teacher = EndpointTeacher(service.url("/tei"), api="tei", journal_dir=tmp_path, **QUICK)
        copy = pickle.loads(pickle.dumps(teacher))
        assert copy.score(GROUPS)["scores"] == expected(lengths)
    assert copy.fingerprint == teacher.fingerprint


def test_a_progress_bar_counts_pairs_where_it_is_asked_for(tmp_path, capsys):
    with Service(lengths) as service:
        for shown in (True, False):
            options = {"journal_dir": tmp_path / str(shown), "show_progress_bar": shown, **QUICK}
            EndpointTeacher(service.url("/tei"), api="tei", **options).score(GROUPS)
            assert ("127.0.0.1" in capsys.readouterr().err) is shown


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"api": "bing"}, "api='bing' is not known"),
        ({"to_logits": True}, "to_logits=True, but the scores are declared as 'logit'"),
        ({"max_concurrency": 0}, "expected max_concurrency of 1 or more"),
        ({"timeout": math.nan}, "a timeout above 0"),
        ({"url": "localhost:8080"}, "expected the whole address, with its path"),
        ({"url": "https://api.cohere.com"}, "expected the whole address, with its path"),
        ({"url": "https://api.example.com/rerank?api_key=abc"}, r"holds a secret \(api_key\)"),
        ({"url": "https://me:abc@api.example.com/rerank"}, r"holds a secret \(a user name\)"),
    ],
)
def test_an_argument_that_cannot_be_right_is_refused(options, found):
    with pytest.raises(ValueError, match=found) as refused:
        EndpointTeacher(**{"url": "http://localhost/rerank", "api": "tei", **options})
    assert "abc" not in str(refused.value)
