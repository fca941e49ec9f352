"""Client: what the commands use to talk to a running service, and nothing else.

Address and key come from ``LOGSVC_URL`` and ``LOGSVC_API_KEY``. Whatever is not the answer of a
service of ours becomes ``ClientError``: one sentence, with the exit code of the command. The key is
in no message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NotRequired, TypedDict

import httpx
import msgspec

from logsvc.errors import BadInput
from logsvc.names import KEY_RULE, is_key
from logsvc.timestamps import format_us, parse_timestamp

_CHANGE_TIMEOUT_S = 600.0
_EXPORT_TRIES = 6  # in a row, without a record: about a minute, so that a restart is no end
DEFAULT_URL = "http://127.0.0.1:8080"


class Exit(IntEnum):
    """What a command ends with, for scripts; ``meaning`` is how help and README say it."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Exit:
        """Make a code of a number and its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    DONE = 0, "done"
    NO = 1, "the command's own no: doctor found something wrong, the demo no right ticket"
    INPUT = 2, "wrong input: an option, a query, a time"
    AWAY = 3, "the service or its store does not answer, or what answers is not logsvc"
    KEY = 4, "no key, not a key, or not allowed"
    MISSING = 5, "no such ticket, key or dead letter"
    REFUSED = 6, "a setting, the schema or the data directory stops the start"
    OUTPUT = 7, "the output could not be written: a full disk, say"
    INTERRUPTED = 130, "ended by Ctrl-C"
    UNREAD = 141, "who read the output wanted no more of it, as head does"


class Total(TypedDict):
    """How many records match."""

    value: int
    relation: str


class Completeness(TypedDict):
    """How much of what was emitted can be found; ``share`` is None where that is unknown."""

    share: float | None
    missing: dict[str, int]


class SearchPage(TypedDict):
    """What ``/api/v1/search`` answers."""

    records: list[dict[str, Any]]
    next_cursor: str | None
    total: Total
    data_completeness: NotRequired[Completeness]
    took_ms: int


class Status(TypedDict):
    """What ``/readyz`` answers."""

    status: str


class ClientError(Exception):
    """The service did not answer as wished. ``exit_code`` is what a command ends with."""

    def __init__(self, message: str, exit_code: Exit = Exit.NO, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.problem = dict(problem or {})


class Client:
    """Calls to one service with one key.

    Raises:
        ClientError: From every method, and if the address or the key cannot be one.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, timeout_s: float = 30.0) -> None:
        self.url = (url or os.environ.get("LOGSVC_URL") or DEFAULT_URL).rstrip("/")
        key = api_key or os.environ.get("LOGSVC_API_KEY") or ""
        if key and not is_key(key):
            raise ClientError(
                f"LOGSVC_API_KEY does not hold a key ({len(key)} characters); expected {KEY_RULE}, "
                "without spaces or line ends, as `logsvc keys create` printed it",
                Exit.KEY,
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        except (httpx.InvalidURL, ValueError) as exc:
            raise ClientError(
                f"cannot use the address {self.url}: {exc}; expected one such as {DEFAULT_URL}", Exit.INPUT
            ) from exc

    def get(self, path: str, shape: Any = dict[str, Any], /, **params: str | int | None) -> dict[str, Any]:
        """Return the JSON that ``path`` answers, checked to fit ``shape``; parameters that are None are left out."""
        return self._decoded(self._send(path, params), shape)

    def post(self, path: str, shape: Any = dict[str, Any], /, **params: str | int | None) -> dict[str, Any]:
        """Do as ``get`` does, with a request that changes something."""
        return self._decoded(self._send(path, params, method="POST", timeout_s=_CHANGE_TIMEOUT_S), shape)

    def _decoded(self, response: httpx.Response, shape: Any) -> dict[str, Any]:
        try:
            body = msgspec.json.decode(response.content, type=dict[str, Any])
            msgspec.convert(body, shape)
        except ValueError as exc:
            raise self._stranger(response) from exc
        return body

    def metrics(self) -> dict[str, float]:
        """Return the metrics that have no labels."""
        response = self._send("/metrics", {})
        values = {}
        try:
            for line in response.text.splitlines():
                if line and not line.startswith("#") and "{" not in line:
                    name, _, value = line.partition(" ")
                    values[name] = float(value)
        except ValueError as exc:
            raise self._stranger(response) from exc
        return values

    @contextmanager
    def events(self, path: str, **params: str | int | None) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the records of a server-sent stream, as they come; its end is an error."""
        chosen = {name: value for name, value in params.items() if value is not None}
        with (
            self._reached(),
            self._http.stream("GET", path, params=chosen, timeout=httpx.Timeout(30.0, read=60.0)) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
            self._check(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._stranger(response)
            yield self._records(response)

    def export(
        self, q: str, start: str | None, end: str | None, fields: str, *, wait: Callable[[float], None] = time.sleep
    ) -> Iterator[dict[str, Any]]:
        """Yield every hit, the oldest first, each once; when the connection breaks, go on where it did.

        Args:
            q: The query.
            start: From when on; RFC 3339, or relative.
            end: Until when; a moment, since what is relative would move.
            fields: Which to return, with commas between them; ``@timestamp`` and ``event.id`` among them.
            wait: Waits so many seconds before another try.
        """
        last_us, same = -1, set[str]()  # the newest time seen, and the ids that have it
        failures = 0
        while True:
            since = start if last_us < 0 else format_us(last_us)
            params = {"q": q, "from": since, "to": end, "fields": fields}
            try:
                for record in self._exported({name: value for name, value in params.items() if value is not None}):
                    try:
                        at_us, id = parse_timestamp(record["@timestamp"]) // 1000, str(record["event.id"])
                    except (KeyError, BadInput) as exc:
                        raise ClientError(f"a record without a usable {exc} in the export", Exit.AWAY) from exc
                    if at_us == last_us and id in same:
                        continue
                    if at_us != last_us:
                        last_us, same = at_us, set()
                    same.add(id)
                    failures = 0
                    yield record
                return
            except httpx.TransportError as exc:
                failures += 1
                if last_us < 0 or failures > _EXPORT_TRIES:
                    raise ClientError(f"no service answers at {self.url} ({exc}); nothing was kept", Exit.AWAY) from exc
            except ClientError as exc:
                failures += 1
                is_passing = exc.exit_code is Exit.AWAY or exc.problem.get("status") == httpx.codes.TOO_MANY_REQUESTS
                if last_us < 0 or failures > _EXPORT_TRIES or not is_passing:
                    raise
            wait(min(2.0 ** (failures - 1), 30.0))

    def _exported(self, params: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        timeout = httpx.Timeout(30.0, read=120.0)
        with self._http.stream("GET", "/api/v1/export", params=params, timeout=timeout) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
            self._check(response)
            if not response.headers.get("content-type", "").startswith("application/x-ndjson"):
                raise self._stranger(response)
            for line in _lines(response):
                if line:
                    yield msgspec.json.decode(line, type=dict[str, Any])

    def _records(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        try:
            for line in _lines(response):
                if line.startswith(b"data: "):
                    yield msgspec.json.decode(line[len(b"data: ") :], type=dict[str, Any])
        except ValueError as exc:
            raise self._stranger(response) from exc
        except httpx.RemoteProtocolError:
            pass  # cut off in the middle of the stream: the service is as gone as if it had said so
        raise ClientError(f"the service at {self.url} has ended, and the stream with it", Exit.AWAY)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _send(
        self, path: str, params: Mapping[str, str | int | None], method: str = "GET", timeout_s: float | None = None
    ) -> httpx.Response:
        chosen = {name: value for name, value in params.items() if value is not None}
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        with self._reached():
            response = self._http.request(method, path, params=chosen, timeout=timeout)
        self._check(response)
        return response

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
            raise ClientError(
                f"cannot use {self.url!r} as an address; expected one such as {DEFAULT_URL}", Exit.INPUT
            ) from exc
        except httpx.RequestError as exc:
            raise ClientError(
                f"no service answers at {self.url} ({exc}); start one with `logsvc serve`, or set LOGSVC_URL", Exit.AWAY
            ) from exc

    def _check(self, response: httpx.Response) -> None:
        """Raise what an answer that is no success says, if it is one of ours."""
        status = response.status_code
        if status == httpx.codes.OK:
            return
        try:
            problem = msgspec.json.decode(response.content, type=dict[str, Any])
            detail = msgspec.convert(problem["detail"], str)
        except (ValueError, KeyError) as exc:
            raise self._stranger(response) from exc
        codes = {401: Exit.KEY, 403: Exit.KEY, 404: Exit.MISSING}
        if status == httpx.codes.UNAUTHORIZED:
            detail += "; the commands take the key from LOGSVC_API_KEY"
        raise ClientError(detail, codes.get(status, Exit.INPUT if status < 500 else Exit.AWAY), problem)

    def _stranger(self, response: httpx.Response) -> ClientError:
        return ClientError(
            f"what answers at {self.url} is not logsvc, or another version of it (HTTP {response.status_code}); "
            "set LOGSVC_URL or --url to the address that `logsvc serve` prints",
            Exit.AWAY,
        )


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Yield the lines of a stream; not as ``iter_lines``, which also ends them where a message has a Unicode line end.

    Raises:
        httpx.RemoteProtocolError: If the stream ends within a line.
    """
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        raise httpx.RemoteProtocolError("the answer ends within a line")
