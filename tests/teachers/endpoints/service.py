"""A rerank service on loopback: it gives the scores of a function in the shapes of known services, and has faults."""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The message that the judge's tests send; its parts are found again by the words around them.
JUDGE_PROMPT = "Query: {query}\nPassage: {passage}\nRelevant? yes or no"
_JUDGED = re.compile(r"Query: (.*)\nPassage: (.*)\nRelevant\? yes or no", re.DOTALL)
_FIELDS = {"/score": ("text_1", "text_2"), "/tei": ("query", "texts")}


class Service:
    """Serves scores on a port of its own, for use in ``with``.

    A pair is paid for when its answer is sent whole. Faults befall the first requests, one each, in their order:
    "429", "500" and "503" (refused), "cut" (half of the announced answer), "half" (half of an answer whose length was
    not announced), "drip" (a byte now and then), "hang" (no answer before ``release``), "echo" (refused by a text that
    repeats the key), "mirror" (answered by JSON that repeats it), "400", "408", "302".

    Args:
        score: Logits of (query, passage) pairs.
        faults: What befalls the first requests.

    Attributes:
        paid: How often each pair was answered.
        bodies: The requests.
        keys: The headers that brought a key, or None.
        num_hanging: Requests that hang.
    """

    def __init__(self, score: Callable[[list[tuple[str, str]]], list[float]], faults: Iterable[str] = ()) -> None:
        self.score, self.faults = score, deque(faults)
        self.paid: Counter[tuple[str, str]] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.num_hanging = 0
        self.release, self.lock = threading.Event(), threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"service": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def next_fault(self) -> str | None:
        with self.lock:
            fault = self.faults.popleft() if self.faults else None
            self.num_hanging += fault == "hang"
            return fault

    def answer(self, path: str, body: dict[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
        """The answer of a path, and the pairs that it is about."""
        if path == "/v1/chat/completions":
            found = _JUDGED.fullmatch(body["messages"][-1]["content"])
            assert found and body["logprobs"] is True and body["max_completion_tokens"] == 1
            pairs = [(found[1], found[2])]
            return {"choices": [{"logprobs": {"content": [_said(self.logits(pairs)[0])]}}]}, pairs
        query, passages = _FIELDS.get(path, ("query", "documents"))
        pairs = [(body[query], passage) for passage in body[passages]]
        logits = self.logits(pairs)
        values = logits if body.get("raw_scores") else [1 / (1 + math.exp(-logit)) for logit in logits]
        name = "score" if path in ("/score", "/tei") else "relevance_score"
        results: list[dict[str, Any]] = [{"index": index, name: value} for index, value in enumerate(values)]
        if path != "/score":
            results.sort(key=lambda result: -result[name])  # the best first, as these services do
        return {"/tei": results, "/score": {"object": "list", "data": results}}.get(path, {"results": results}), pairs

    def logits(self, pairs: list[tuple[str, str]]) -> list[float]:
        with self.lock:
            return self.score(pairs)


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        service = self.service
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with service.lock:
            service.bodies.append(body)
            service.keys.add(self.headers["Authorization"])
        self.befall(service.next_fault(), body)

    def befall(self, fault: str | None, body: dict[str, Any]) -> None:
        service = self.service
        refusals = {"429": 429, "500": 500, "503": 503, "400": 400, "408": 408, "302": 302, "echo": 401}
        if fault in refusals:
            text = f"wrong key {self.headers['Authorization']} in the request" if fault == "echo" else "not now"
            return self.reply(refusals[fault], text.encode())
        if fault == "mirror":
            return self.reply(200, json.dumps(dict(self.headers)).replace("/", "\\/").encode())
        if fault == "hang":
            service.release.wait()
        if fault == "drip":
            self.reply(200, b"", length=1000)
            while not service.release.wait(0.02):
                self.wfile.write(b" ")
        if fault in ("hang", "drip"):
            self.close_connection = True
            return None
        answer, pairs = service.answer(self.path, body)
        content = json.dumps(answer).encode()
        if fault in ("cut", "half"):
            self.close_connection = True
            return self.reply(200, content[: len(content) // 2], length=len(content) if fault == "cut" else None)
        with service.lock:
            service.paid.update(pairs)
        return self.reply(200, content, length=len(content))

    def reply(self, status: int, content: bytes, length: int | None = -1) -> None:
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.02")
        if status == 302:
            self.send_header("Location", self.service.url("/elsewhere"))
        if length is not None:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
        self.end_headers()
        self.wfile.write(content)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client has gone
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _said(logit: float) -> dict[str, Any]:
    """What a model says that is relevant with this logit: 0.8 of its answers are "Yes" or "No", the others vary."""
    sure = 0.8 / (1 + math.exp(-logit))
    shares = {"Yes": 0.75 * sure, " yes": 0.25 * sure, "No": 0.8 - sure, "Well": 0.15, "The": 0.05}
    tokens = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    return {"token": "Yes", "logprob": math.log(shares["Yes"]), "top_logprobs": tokens}
