from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shippers.testing import CapturingTransport
from shippers.transport import Batch, HttpTransport, Outcome, Transport, Verdict, parse_retry_after
from tests.unit.shippers.support import KEY, Service, free_port, hang, reply, serving

LINES = [json.dumps({"message": f"m{number}"}).encode() for number in range(5)]


class Rig:
    """A transport with the means to see and decide what happens at its other end."""

    def __init__(
        self, transport: Transport, records: Callable[[], list[dict[str, Any]]], fail: Callable[[Verdict], None]
    ) -> None:
        self.transport, self.records, self.fail = transport, records, fail


@pytest.fixture(params=["http", "capturing"])
def rig(request: pytest.FixtureRequest, service: Service) -> Iterator[Rig]:
    if request.param == "capturing":
        capturing = CapturingTransport()
        yield Rig(capturing, lambda: capturing.records, lambda verdict: capturing.answer_next(Outcome(verdict)))
        return
    statuses = {Verdict.RETRY: 503, Verdict.DENIED: 401, Verdict.TOO_LARGE: 413, Verdict.REFUSED: 400}
    transport = HttpTransport(service.url, KEY)
    yield Rig(transport, lambda: service.records, lambda verdict: service.answers.append(reply(statuses[verdict])))
    transport.close()


# --- the contract, over both -------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_accepted_records_arrive_in_order(rig: Rig, encoding: str) -> None:
    assert rig.transport.send(Batch.of(LINES, encoding)).verdict is Verdict.ACCEPTED
    assert [record["message"] for record in rig.records()] == ["m0", "m1", "m2", "m3", "m4"]


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.DENIED, Verdict.TOO_LARGE, Verdict.REFUSED])
def test_a_failed_attempt_says_why_and_keeps_nothing(rig: Rig, verdict: Verdict) -> None:
    rig.fail(verdict)
    assert rig.transport.send(Batch.of(LINES)).verdict is verdict
    assert rig.records() == []
    assert rig.transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
    assert len(rig.records()) == 5


def test_a_transport_sends_again_after_close_and_after_forget(rig: Rig) -> None:
    for end in (rig.transport.close, rig.transport.forget, rig.transport.close):
        assert rig.transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
        end()
    assert rig.transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
    assert len(rig.records()) == 20


# --- HTTP --------------------------------------------------------------------------------------


def test_the_request_names_key_type_and_encoding_below_the_path_of_the_url(service: Service) -> None:
    transport = HttpTransport(f"{service.url}/logs/", KEY)
    transport.send(Batch.of(LINES))
    transport.close()
    headers = service.headers[0]
    assert service.paths == ["/logs/api/v1/ingest"]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (headers["content-type"], headers["content-encoding"]) == ("application/x-ndjson", "gzip")


def test_the_connection_is_kept_alive(service: Service) -> None:
    transport = HttpTransport(service.url, KEY)
    for _ in range(5):
        assert transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
    transport.close()
    assert service.connections == 1


def test_a_connection_closed_while_idle_is_replaced_at_once() -> None:
    with serving() as first:
        transport = HttpTransport(first.url, KEY)
        first.answers.append(reply(202, Connection="keep-alive"))
        assert transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
        first.answers.append(lambda handler, _: handler.connection.shutdown(socket.SHUT_RDWR))
        assert transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
        transport.close()
        assert first.attempts == 3


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.ACCEPTED),
        (204, Verdict.ACCEPTED),
        (300, Verdict.DENIED),
        (301, Verdict.DENIED),
        (400, Verdict.REFUSED),
        (401, Verdict.DENIED),
        (403, Verdict.DENIED),
        (404, Verdict.DENIED),
        (405, Verdict.DENIED),
        (408, Verdict.RETRY),
        (410, Verdict.DENIED),
        (413, Verdict.TOO_LARGE),
        (415, Verdict.REFUSED),
        (422, Verdict.REFUSED),
        (425, Verdict.RETRY),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (502, Verdict.RETRY),
        (503, Verdict.RETRY),
    ],
)
def test_each_status_has_its_verdict(service: Service, status: int, verdict: Verdict) -> None:
    service.answers.append(reply(status, b"" if status == 204 else b"{}"))
    transport = HttpTransport(service.url, KEY)
    outcome = transport.send(Batch.of(LINES))
    transport.close()
    assert (outcome.verdict, outcome.reason) == (verdict, f"http_{status}")


def test_retry_after_is_read_from_seconds_and_from_a_date(service: Service) -> None:
    service.answers.append(reply(503, Retry_After="17"))
    service.answers.append(reply(429, Retry_After="Thu, 01 Jan 1970 00:02:00 GMT"))
    transport = HttpTransport(service.url, KEY, clock=lambda: 100.0)
    assert transport.send(Batch.of(LINES)).retry_after_s == 17.0
    assert transport.send(Batch.of(LINES)).retry_after_s == 20.0
    transport.close()


@pytest.mark.parametrize("value", [None, "", "soon", "nan", "inf", "-3", "Thu, 99 Foo 1970"])
def test_a_senseless_retry_after_is_no_error(value: str | None) -> None:
    assert parse_retry_after(value, 0.0) in (None, 0.0)


def test_rejected_records_of_an_accepted_batch_are_told(service: Service) -> None:
    body = {"accepted": 3, "rejected": [{"index": 1, "reason": "not JSON"}, {"index": 2, "reason": "x"}]}
    service.answers.append(reply(202, json.dumps(body).encode()))
    transport = HttpTransport(service.url, KEY)
    outcome = transport.send(Batch.of(LINES))
    transport.close()
    assert (outcome.verdict, outcome.rejected, outcome.detail) == (Verdict.ACCEPTED, 2, "not JSON")


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b'{"rejected": 3}', b'{"rejected": [7]}', b"\xff"])
def test_an_unexpected_body_of_an_accepted_batch_is_an_acknowledgement(service: Service, body: bytes) -> None:
    service.answers.append(reply(202, body))
    transport = HttpTransport(service.url, KEY)
    assert transport.send(Batch.of(LINES)) == Outcome(Verdict.ACCEPTED, "http_202")
    transport.close()


@pytest.mark.parametrize(
    ("status", "kind"), [(200, "text/html; charset=utf-8"), (400, "text/html"), (422, "text/plain")]
)
def test_an_answer_that_is_not_the_services_own_neither_takes_nor_condemns_a_batch(
    service: Service, status: int, kind: str
) -> None:
    service.answers.append(reply(status, b"<html>sign in</html>", Content_Type=kind))
    transport = HttpTransport(service.url, KEY)
    assert transport.send(Batch.of(LINES)).verdict is Verdict.DENIED
    transport.close()


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_reply_that_comes_byte_by_byte_is_left_after_the_timeout(service: Service, part: str) -> None:
    released = threading.Event()

    def trickle(handler: Any, _: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        handler.wfile.write(b"Content-Length: 900000\r\n\r\n" if part == "body" else b"X-Slow: ")
        with contextlib.suppress(OSError):
            while not released.wait(0.01):
                handler.wfile.write(b"x")

    service.answers.append(trickle)
    transport = HttpTransport(service.url, KEY, timeout_s=0.3)
    outcome = transport.send(Batch.of(LINES))
    released.set()
    assert (outcome.verdict, outcome.reason) == (Verdict.RETRY, "timeout")
    assert transport.send(Batch.of(LINES)).verdict is Verdict.ACCEPTED
    transport.close()


def test_nobody_listening_is_a_reason_to_retry() -> None:
    outcome = HttpTransport(f"http://127.0.0.1:{free_port()}", KEY).send(Batch.of(LINES))
    assert (outcome.verdict, outcome.reason) == (Verdict.RETRY, "connection_refused")


def test_a_service_that_does_not_answer_is_left_after_the_timeout(service: Service) -> None:
    released = threading.Event()
    service.answers.append(hang(released))
    outcome = HttpTransport(service.url, KEY, timeout_s=0.1).send(Batch.of(LINES))
    released.set()
    assert (outcome.verdict, outcome.reason) == (Verdict.RETRY, "timeout")


@pytest.mark.parametrize("url", ["", "logs.example", "ftp://x", "http://", "http://key@host", "http://host/?key=1"])
def test_an_address_that_cannot_work_is_an_error_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        HttpTransport(url, KEY)


@pytest.mark.parametrize("key", ["", "two words", "k\r\nX: y", "schlüssel"])
def test_a_key_that_cannot_stand_in_a_header_is_an_error_that_does_not_tell_it(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        HttpTransport("http://host", key)
    assert not key or key not in str(caught.value)


def test_the_key_is_not_in_the_representation() -> None:
    assert KEY not in repr(HttpTransport("http://host", KEY))


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
def test_a_batch_gives_its_lines_back_whole_and_in_halves(encoding: str) -> None:
    batch = Batch.of(LINES, encoding)
    first, second = batch.halves()
    assert batch.lines() == LINES == first.lines() + second.lines()
    assert (first.records, second.records) == (2, 3)


def test_a_body_that_is_not_what_its_encoding_says_is_an_error() -> None:
    with pytest.raises(ValueError, match="not gzip"):
        Batch(b"nonsense", "gzip", 1).lines()
