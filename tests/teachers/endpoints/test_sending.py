"""One request: every way of failing is told apart, and the key of the service stands nowhere but in its request."""

from __future__ import annotations

import json
import logging
import pickle
import sqlite3
import time
from email.utils import formatdate

import pytest

from rerank_trainer.teachers.endpoints import sending
from rerank_trainer.teachers.endpoints.endpoint import EndpointTeacher
from rerank_trainer.teachers.endpoints.errors import EndpointError
from rerank_trainer.teachers.endpoints.sending import Failure, Sender
from tests.teachers.endpoints.service import Service

KEY = "sk-zircon/quail+0123456789=="
BODY = {"query": "q", "texts": ["a", "bb"], "raw_scores": True}
GROUPS = [{"query": "zephyrmark", "passages": ["a", "quartzmark"]}]


def ones(pairs):
    return [1.0 for _ in pairs]


def send(service, path="/tei", timeout=5.0, key=None):
    with Sender(service.url(path), api_key_env=key, timeout=timeout, max_concurrency=1) as sender:
        return sender.send(BODY)


@pytest.mark.parametrize(
    ("fault", "again", "is_charged", "is_busy", "reason"),
    [
        ("429", True, False, True, "status 429: not now"),
        ("503", True, False, False, "status 503: not now"),
        ("500", True, False, False, "status 500: not now"),
        ("cut", True, True, False, "RemoteProtocolError"),
        ("half", True, True, False, "an answer that is not JSON: [{"),
        ("hang", True, True, False, "no whole answer within 0.2 s"),
        ("drip", True, True, False, "no whole answer within 0.2 s"),
        ("408", True, False, False, "status 408: not now"),
        ("400", False, False, False, "status 400: not now"),
        ("302", False, False, False, "status 302: not now"),
    ],
)
def test_failures_are_told_apart(fault, again, is_charged, is_busy, reason):
    with Service(ones, [fault]) as service:
        failure = send(service, timeout=0.2 if fault in ("hang", "drip") else 10.0)

    assert isinstance(failure, Failure)
    assert (failure.again, failure.is_charged, failure.is_busy) == (again, is_charged, is_busy)
    assert reason in failure.reason
    assert failure.wait == (0.02 if fault == "429" else None)


def test_a_service_that_is_not_there_was_not_paid():
    with Service(ones) as service:
        url = service.url("/tei")
    with Sender(url, api_key_env=None, timeout=5.0, max_concurrency=1) as sender:
        failure = sender.send(BODY)

    assert (failure.again, failure.is_charged) == (True, False)
    assert "ConnectError" in failure.reason


def test_an_answer_that_has_no_end_is_given_up(monkeypatch):
    monkeypatch.setattr(sending, "MAX_ANSWER_BYTES", 20)
    with Service(ones) as service:
        failure = send(service)

    assert (failure.again, failure.reason) == (False, "an answer of more than 20 bytes")


def test_an_answer_is_json():
    with Service(ones) as service:
        assert send(service) == [{"index": 0, "score": 1.0}, {"index": 1, "score": 1.0}]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("3", 3.0), ("0.5", 0.5), ("soon", None), ("-1", None), ("nan", None), ("inf", None)],
)
def test_a_wait_is_read_in_seconds(header, seconds):
    assert sending._seconds(header) == seconds


def test_a_wait_is_read_as_a_date():
    assert sending._seconds(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=3)


def test_the_key_goes_to_the_service_alone(monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", KEY)
    with Service(ones) as service:
        send(service, key="SERVICE_KEY")
        send(service)

    assert service.keys == {f"Bearer {KEY}", None}


def test_a_key_that_stands_for_none_changes_no_score(monkeypatch):
    for key in ("0", "1.0", "score"):
        monkeypatch.setenv("SERVICE_KEY", key)
        with Service(ones) as service:
            assert send(service, key="SERVICE_KEY") == [{"index": 0, "score": 1.0}, {"index": 1, "score": 1.0}]


@pytest.mark.parametrize("value", ["", f"{KEY}\n", f"{KEY} x", f"{KEY}\u00e9"])
def test_what_can_be_no_key_is_refused_without_being_shown(value, monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", value)
    with pytest.raises(ValueError, match="environment variable SERVICE_KEY") as refused:
        Sender("https://localhost/x", api_key_env="SERVICE_KEY", timeout=1.0, max_concurrency=1)

    assert KEY not in str(refused.value)


class Keeper(logging.Handler):
    """Keeps every log line, with what formats it, of any library and level."""

    def __init__(self) -> None:
        super().__init__(level=logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.args!r}")


@pytest.fixture
def keeper():
    kept, root = Keeper(), logging.getLogger()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    yield kept
    root.removeHandler(kept)
    root.setLevel(level)


def chain(error):
    """An exception with all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "faults", [[], ["echo"], ["mirror"], ["400"], ["429"] * 9, ["cut"] * 9, ["half"] * 9, ["hang"] * 9, None]
)
def test_the_key_stands_in_no_file_no_log_line_no_error_and_no_attribute(faults, tmp_path, monkeypatch, keeper):
    monkeypatch.setenv("SERVICE_KEY", KEY)
    with Service(ones, faults or ()) as service:
        url = service.url("/tei") if faults is not None else "http://127.0.0.1:9/tei"  # where nothing listens
        timeout = 0.2 if "hang" in (faults or ()) else 10.0
        options = {"max_retries": 1, "backoff": 0.001, "timeout": timeout, "journal_dir": tmp_path}
        teacher = EndpointTeacher(url, api="tei", api_key_env="SERVICE_KEY", **options)
        shown = []
        try:
            teacher.score(GROUPS)
            assert faults == []
        except (EndpointError, ValueError) as error:
            assert faults != []
            for one in chain(error):
                shown += [repr(one), str(one), repr(vars(one))]
                assert not hasattr(one, "request")  # those of the HTTP library hold the key
    shown += [*keeper.lines, repr(teacher), repr(vars(teacher)), teacher.fingerprint]

    assert len(keeper.lines) > 3  # the HTTP library has said what it does
    for form in (KEY, KEY.replace("/", "\\/")):
        assert form not in "\n".join(shown)
    assert KEY.encode() not in pickle.dumps(teacher)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


def test_no_text_stands_in_the_journal(tmp_path):
    with Service(ones) as service:
        teacher = EndpointTeacher(service.url("/tei"), api="tei", journal_dir=tmp_path)
        teacher.score(GROUPS)

    content = teacher.journal_path.read_bytes()
    assert b"zephyrmark" not in content and b"quartzmark" not in content
    with sqlite3.connect(teacher.journal_path) as database:
        assert database.execute("SELECT score FROM answers").fetchall() == [(1.0,), (1.0,)]
    database.close()


def test_a_key_that_travels_without_encryption_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("SERVICE_KEY", KEY)
    for url in ("http://192.0.2.1/rerank", "https://192.0.2.1/rerank", "http://localhost/rerank"):
        Sender(url, api_key_env="SERVICE_KEY", timeout=1.0, max_concurrency=1).__exit__()

    assert [record.getMessage() for record in caplog.records] == [
        "the key of SERVICE_KEY goes to http://192.0.2.1/rerank without encryption"
    ]


def test_a_request_is_json_with_its_texts_as_they_are():
    with (
        Service(ones) as service,
        Sender(service.url("/tei"), api_key_env=None, timeout=5.0, max_concurrency=1) as sender,
    ):
        body = {"query": "\u201cq\u201d\n", "texts": ["\U0001f600"], "raw_scores": True}
        sender.send(body)

    assert json.loads(json.dumps(service.bodies)) == [body]
