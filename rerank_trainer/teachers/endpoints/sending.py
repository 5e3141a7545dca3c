"""One request to a service: sent with the key, its answer read whole within a time, or the reason why there is none."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rerank_trainer.teachers.endpoints.apis import shortened

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 16 * 2**20
SHORTEST_SECRET = 8  # characters; less stands for a key where none is needed, such as "EMPTY" or "0"
_SECRET_NAMES = ("key", "token", "secret", "password", "signature", "sig")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    Attributes:
        reason: In words, without the key.
        again: Whether the same request may be answered another time.
        is_charged: Whether the service may have charged it all the same.
        is_busy: Whether the service asks for fewer requests.
        wait: Seconds after which the service asks to be asked again; None if it does not say.
    """

    reason: str
    again: bool = True
    is_charged: bool = False
    is_busy: bool = False
    wait: float | None = None


class Sender:
    """Sends requests to one address, from any number of threads, for use in ``with``.

    The key is read from the environment when the sender is made and dies with it. No failure shows it: exceptions of
    the HTTP library hold their request, so none leaves this class.

    Args:
        url: The address.
        api_key_env: Name of the environment variable with the key; None sends none.
        timeout: Seconds for an answer.
        max_concurrency: Connections that are kept.

    Raises:
        ImportError: If the extra ``endpoint`` is not installed.
        ValueError: If the variable is not set, or holds what no key can be.
    """

    def __init__(self, url: str, *, api_key_env: str | None, timeout: float, max_concurrency: int) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise ImportError(
                f'endpoints need httpx2 ({error}). Install it with pip install "rerank_trainer[endpoint]".'
            ) from error
        self._http = httpx2
        self._url, self._timeout = url, timeout
        self._key = _read_key(api_key_env)
        parts = urlsplit(url)
        if self._key is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            logger.warning("the key of %s goes to %s without encryption", api_key_env, shown(url))
        self._client = httpx2.Client(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=timeout,
            limits=httpx2.Limits(max_connections=max_concurrency, max_keepalive_connections=max_concurrency),
        )

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, body: Mapping[str, Any]) -> Any | Failure:
        """The JSON of the answer, or why there is none."""
        http = self._http
        try:
            return self._exchange(body)
        except http.ConnectTimeout:
            return Failure(f"no connection within {self._timeout:g} s")
        except http.TimeoutException:
            return self._late()
        except (http.ConnectError, http.ProxyError) as error:
            return Failure(self._told(error))
        except (http.LocalProtocolError, http.UnsupportedProtocol, http.InvalidURL) as error:
            return Failure(self._told(error), again=False)
        except http.RequestError as error:  # cut, or not to be decoded
            return Failure(self._told(error), is_charged=True)

    def _exchange(self, body: Mapping[str, Any]) -> Any | Failure:
        latest = time.monotonic() + self._timeout
        with self._client.stream("POST", self._url, json=body) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    return Failure(f"an answer of more than {MAX_ANSWER_BYTES} bytes", again=False, is_charged=True)
                if time.monotonic() > latest:  # the library's own limit is for each part
                    return self._late()
        text = self._hidden(content.decode("utf-8", errors="replace"))
        status = response.status_code
        if response.is_success:
            try:
                return json.loads(text)
            except ValueError:
                return Failure(f"an answer that is not JSON: {shortened(text)}", is_charged=True)
        is_busy = status == 429
        return Failure(
            f"status {status}: {shortened(text)}",
            again=is_busy or status == 408 or status >= 500,
            is_busy=is_busy,
            wait=_seconds(response.headers.get("retry-after")),
        )

    def _late(self) -> Failure:
        return Failure(f"no whole answer within {self._timeout:g} s", is_charged=True)

    def _told(self, error: Exception) -> str:
        return f"{type(error).__name__}: {shortened(self._hidden(str(error)))}"

    def _hidden(self, text: str) -> str:
        """A text without the key: services repeat it in errors, and some repeat whole requests."""
        if self._key is None or len(self._key) < SHORTEST_SECRET:
            return text
        return text.replace(self._key, "***").replace(self._key.replace("/", "\\/"), "***")  # JSON may escape a slash


def check_url(url: str) -> None:
    """Refuse an address that cannot be right, or that holds a secret: addresses stand in errors and logs.

    Raises:
        ValueError: If it is so.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path in ("", "/"):
        raise ValueError(
            f"url={shown(url)!r}: expected the whole address, with its path, such as "
            "https://api.cohere.com/v2/rerank or http://localhost:8000/rerank"
        )
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secrets = [name for name in names if any(word in name.lower() for word in _SECRET_NAMES)]
    if secrets or parts.username is not None:
        raise ValueError(
            f"the address {shown(url)} holds a secret ({', '.join(secrets) or 'a user name'}): put it into an "
            "environment variable and name that with api_key_env"
        )


def shown(url: str) -> str:
    """An address without what stands before its host and behind its path."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _read_key(api_key_env: str | None) -> str | None:
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env)
    if not key:
        raise ValueError(
            f"the environment variable {api_key_env} is not set. Set it to the key of the service; the key itself "
            "must not be passed as an argument"
        )
    if not all("!" <= sign <= "~" for sign in key):
        raise ValueError(
            f"the environment variable {api_key_env} holds white space or a character that is not ASCII, so it is no "
            "key; was a line break copied with it?"
        )
    return key


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a ``Retry-After``, which gives them or a date; None if it makes no sense."""
    if retry_after is None:
        return None
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return wait if 0 <= wait < float("inf") else None
