"""Bad input over HTTP: a clear error or a kept and flagged record; never a 500, and the neighbours are stored."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest
import zstandard

from tests.support.service import ServiceProcess

LINES = {
    "half JSON": b'{"message":"half',
    "not an object": b"[1,2",
    "wrong types": b'{"message":{"a":[1]},"level":["x"],"service":7,"@timestamp":{},"task":null,"labels":"x","tags":5}',
    "a 10 MB line": b'{"message":"' + b"x" * 10_000_000 + b'"}',
    "many fields": b"{" + b",".join(b'"f%d":%d' % (i, i) for i in range(50_000)) + b"}",
    "a million fields": b"{" + b",".join(b'"f%d":1' % i for i in range(1_000_000)) + b"}",
    "nested 1,000 deep": b'{"a":' * 1_000 + b"1" + b"}" * 1_000,
    "nested 100,000 deep": b"[" * 100_000,
    "invalid UTF-8": b'{"message":"caf\xe9 \xff\xfe"}',
    "NUL bytes": b'{"a\\u0000b":"x\\u0000y","message":"nul \\u0000"}',
    "a raw NUL": b'{"message":"a\x00b"}',
    "year 1": b'{"@timestamp":"0001-01-01T00:00:00Z","message":"d"}',
    "year 1969": b'{"@timestamp":"1969-12-31T23:59:59Z","message":"d"}',
    "year 9999": b'{"@timestamp":"9999-12-31T23:59:59Z","message":"d"}',
    "not a date": b'{"@timestamp":"25/12/2024","message":"d"}',
    "NaN": b'{"message":"n","duration_ms":NaN,"x":Infinity}',
    "a huge number": b'{"message":"n","pid":123456789012345678901234567890,"duration_ms":1e400}',
    "a negative duration": b'{"message":"n","duration_ms":-5}',
    "a 70,000-character token": b'{"message":"' + b"y" * 70_000 + b'","task":"' + b"z" * 70_000 + b'"}',
    "lone surrogates": b'{"message":"\\ud800","\\udfff":"\\udc00"}',
    "an empty object": b"{}",
    "dotted and nested": b'{"error":{"type":"A"},"error.type":"B","message":"m"}',
}


@pytest.mark.parametrize("name", LINES)
def test_one_bad_line_harms_no_neighbour(embedded_service: ServiceProcess, name: str) -> None:
    mark = f"m{random.Random(name).getrandbits(60)}"
    body = b"\n".join(
        [b'{"message":"before %s"}' % mark.encode(), LINES[name], b'{"message":"after %s"}' % mark.encode()]
    )
    answer = embedded_service.http.post("/api/v1/ingest", content=body)
    assert answer.status_code == 202, answer.text
    decoded = answer.json()
    assert decoded["accepted"] + len(decoded["rejected"]) == 3
    assert all(item["index"] == 1 and item["reason"] for item in decoded["rejected"])
    embedded_service.wait("the neighbours", lambda: embedded_service.count(mark) == 2)


def _zstd_bomb() -> bytes:
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        for _ in range(200):
            writer.write(b" " * (1 << 20))
    return out.getvalue()


BODIES: dict[str, tuple[bytes, str, set[int]]] = {
    "empty": (b"", "", {400}),
    "blank": (b" \n\n ", "", {400}),
    "half an object": (b'{"message":', "", {400}),
    "an empty array": (b"[]", "", {400}),
    "a scalar": (b"42", "", {400}),
    "binary": (bytes(range(256)) * 10, "", {400}),
    "says gzip, is plain": (b'{"message":"x"}', "gzip", {400, 202}),
    "says plain, is gzip": (gzip.compress(b'{"message":"x"}'), "", {400, 202}),
    "cut gzip": (gzip.compress(b'{"message":"xyz"}' * 100)[:-20], "gzip", {400}),
    "unknown encoding": (b'{"message":"x"}', "lzma", {415}),
    "a gzip bomb": (gzip.compress(b"\n" * (200 << 20)), "gzip", {413}),
    "a zstd bomb": (_zstd_bomb(), "zstd", {413}),
    "65 MiB": (b" " * (65 << 20), "", {413}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_with_a_reason(embedded_service: ServiceProcess, name: str) -> None:
    body, encoding, expected = BODIES[name]
    headers = {"Content-Encoding": encoding} if encoding else {}
    answer = embedded_service.http.post("/api/v1/ingest", content=body, headers=headers)
    assert answer.status_code in expected, answer.text
    if answer.status_code != 202:
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.json()["detail"]) > 10
    assert embedded_service.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd", "deflate"])
def test_every_shape_and_encoding_of_a_body_is_understood(embedded_service: ServiceProcess, encoding: str) -> None:
    import zlib

    compress = {
        "": bytes,
        "gzip": gzip.compress,
        "zstd": zstandard.ZstdCompressor().compress,
        "deflate": zlib.compress,
    }[encoding]
    records = [{"message": f"one {encoding}"}, {"message": f"two {encoding}"}]
    bodies = [
        b"\n".join(msgspec.json.encode(record) for record in records),
        b"\r\n".join(msgspec.json.encode(record) for record in records) + b"\r\n\r\n",
        msgspec.json.encode(records),
        msgspec.json.format(msgspec.json.encode(records), indent=2),
        msgspec.json.encode(records[0]),
        msgspec.json.format(msgspec.json.encode(records[0]), indent=2),
    ]
    headers = {"Content-Encoding": encoding} if encoding else {}
    counts = [
        embedded_service.http.post("/api/v1/ingest", content=compress(body), headers=headers).json()["accepted"]
        for body in bodies
    ]
    assert counts == [2, 2, 2, 2, 1, 1]


def test_large_bodies_that_come_together_are_all_taken(embedded_service: ServiceProcess) -> None:
    # More records than may wait for the journal.
    body = gzip.compress(b'{"message":"one of many","service":"large","k":"%s"}\n' % (b"x" * 60) * 60_000, 1)
    headers = {**embedded_service.http.headers, "Content-Encoding": "gzip"}

    def send(_: int) -> int:
        return httpx.post(
            f"{embedded_service.url}/api/v1/ingest", content=body, headers=headers, timeout=300
        ).status_code

    with ThreadPoolExecutor(3) as senders:
        assert list(senders.map(send, range(3))) == [202] * 3


def test_chunked_bodies_are_taken(embedded_service: ServiceProcess) -> None:
    answer = embedded_service.http.post("/api/v1/ingest", content=iter([b'{"message":', b'"chunked"}']))
    assert answer.json() == {"accepted": 1, "rejected": []}


def test_personal_data_reaches_no_disk(embedded_service: ServiceProcess) -> None:
    secrets = [
        "ann.other@example.org",
        "4111 1111 1111 1111",
        "hunter2hunter2",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
    ]
    # The own tenant keeps these records apart; the disk is everybody's.
    record = {
        "message": f"mail {secrets[0]} card {secrets[1]} password={secrets[2]}",
        "error": {"message": f"Bearer {secrets[3]}", "stack_trace": f"url https://u:{secrets[2]}@h/p"},
        "api_key": secrets[2],
        "note": secrets[0],
        "event.id": "masked-1",
    }
    embedded_service.ingest([record, {"@timestamp": f"bad {secrets[0]}", "message": "x"}])
    embedded_service.wait("the record", lambda: embedded_service.count("mail") >= 1)
    for path in embedded_service.data_dir.rglob("*"):
        if path.is_file():
            stored = path.read_bytes()
            for secret in secrets:
                assert secret.encode() not in stored, f"{secret} in {path.name}"


def test_a_dropped_connection_stores_nothing_half(embedded_service: ServiceProcess) -> None:
    with _connected(embedded_service) as raw:
        raw.sendall(_head(embedded_service, "Content-Length: 1000") + b'{"message":"cutoff"}\n')
    embedded_service.ingest([{"message": "after the cut"}])
    embedded_service.wait("the next record", lambda: embedded_service.count('"after the cut"') == 1)
    assert embedded_service.count("cutoff") == 0
    # Whoever hangs up is no failure of the service: not in its log, nor in what alerts look at.
    cut = 'http_requests_total{method="POST",route="/api/v1/ingest",status="400"}'
    admin = {"Authorization": f"Bearer {embedded_service.make_key('admin')}"}
    embedded_service.wait(
        "the cut to be counted", lambda: cut in embedded_service.http.get("/metrics", headers=admin).text
    )
    assert "ClientDisconnect" not in embedded_service.log


def test_a_body_is_read_although_its_client_offers_http_2(embedded_service: ServiceProcess) -> None:
    """Java's client offers it with each request, whose head and body may come in any pieces."""
    body = b'{"message":"offered"}'
    offer = (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nContent-Length: "
    )
    request = _head(embedded_service, f"{offer}{len(body)}") + body
    with _connected(embedded_service) as raw:
        reader = raw.makefile("rb")
        for cuts in ((), (10,), (len(request) - 5,), (request.index(b"\r\n\r\n") + 2,), ()):
            for start, end in itertools.pairwise((0, *cuts, len(request))):
                raw.sendall(request[start:end])
            assert reader.readline() == b"HTTP/1.1 202 Accepted\r\n"
            while reader.readline() != b"\r\n":
                pass
            answer = b'{"accepted":1,"rejected":[]}'
            assert reader.read(len(answer)) == answer


def _connected(service: ServiceProcess) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").partition(":")
    raw = socket.create_connection((host, int(port)), timeout=30)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return raw


def _head(service: ServiceProcess, more: str) -> bytes:
    auth = service.http.headers["Authorization"]
    return f"POST /api/v1/ingest HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n{more}\r\n\r\n".encode()


def test_the_service_answers_problems_to_wrong_methods_and_paths(embedded_service: ServiceProcess) -> None:
    for method, path, status in (("GET", "/api/v1/ingest", 405), ("GET", "/api/v1/nothing", 404), ("GET", "/x", 404)):
        answer = httpx.request(method, embedded_service.url + path, headers=dict(embedded_service.http.headers))
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
