"""The API over a real service: shipping, searching, walking, following, on both stores."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest

from tests.support.service import ServiceProcess

MOMENT = "2026-01-31T12:00:00.123456Z"


def _wait_for(service: ServiceProcess, n: int, q: str = "") -> None:
    service.wait(f"{n} records", lambda: service.count(q) >= n)


def test_a_record_is_found_by_its_words_fields_and_id(service: ServiceProcess) -> None:
    service.ingest(
        [
            {
                "time": MOMENT,
                "level": "ERROR",
                "service": "billing",
                "task": "billing.charge",
                "msg": "charge of order 17 failed",
                "order": 17,
                "event.id": "order-17",
                "duration_ms": 12.5,
            },
            {"time": MOMENT, "level": "INFO", "service": "web", "message": "all is well"},
        ]
    )
    _wait_for(service, 2)
    for q in (
        "order failed",
        '"order 17"',
        "level:error",
        "task:billing.charge",
        "labels.order:17",
        "level:>=warn",
        "duration_ms:>12",
        "service:bill* AND NOT level:info",
    ):
        page = service.get("/search", q=q)
        assert [record["event.id"] for record in page["records"]] == ["order-17"], q
        assert page["total"] == {"value": 1, "relation": "eq"}
    record = service.get("/records/order-17")
    assert record["@timestamp"] == MOMENT
    assert record["labels.order"] == "17"
    assert record["event.duration"] == 12_500_000
    assert record["log.template.id"].startswith("v1:")


def test_a_histogram_splits_by_a_field_and_sums_to_the_count(service: ServiceProcess) -> None:
    start = datetime(2026, 1, 31, 12, tzinfo=UTC)
    service.ingest(
        {
            "time": (start + timedelta(seconds=20 * i)).isoformat(),
            "level": "error" if i % 3 == 0 else "info",
            "msg": "x",
        }
        for i in range(90)
    )
    _wait_for(service, 90)
    body = service.get("/histogram", interval="5m", by="level")
    assert body["buckets"][0] == {"start": "2026-01-31T12:00:00Z", "count": 15, "by": {"error": 5, "info": 10}}
    assert sum(bucket["count"] for bucket in body["buckets"]) == 90
    narrowed = service.get(
        "/histogram", interval="1m", **{"from": "2026-01-31T12:00:00Z", "to": "2026-01-31T12:02:00Z"}
    )
    assert [bucket["count"] for bucket in narrowed["buckets"]] == [3, 3]


_WALKS = [(97, "asc"), (500, "desc")]


@pytest.mark.slow(seconds=20)
@pytest.mark.timeout(300)
def test_records_with_one_timestamp_are_walked_once_each_under_writes(service: ServiceProcess) -> None:
    ids = [f"r-{i}" for i in range(12_000)]  # more than one request to Elasticsearch may look through
    for at in range(0, len(ids), 4_000):
        service.ingest({"time": MOMENT, "message": "same", "event.id": id} for id in ids[at : at + 4_000])
    _wait_for(service, len(ids))
    stop = threading.Event()

    def write() -> None:
        with httpx.Client(base_url=service.url, headers=dict(service.http.headers), trust_env=False) as http:
            serial = 0
            while not stop.is_set():
                body = msgspec.json.encode([{"time": MOMENT, "message": "late", "event.id": f"w-{serial}"}])
                assert http.post("/api/v1/ingest", content=body).status_code == 202
                serial += 1
                stop.wait(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        walks = [[r["event.id"] for r in service.walk(limit=limit, order=order)] for limit, order in _WALKS]
    finally:
        stop.set()
        writer.join()
    for walked in walks:
        assert len(walked) == len(set(walked))
        assert set(ids) <= set(walked)


def test_a_tail_goes_on_after_the_last_event_that_was_seen(service: ServiceProcess) -> None:
    headers = dict(service.http.headers)

    def followed(n: int, last_id: str | None = None) -> tuple[list[str], str]:
        """Return the messages of a stream that breaks after ``n`` records, and its last id."""
        more = {} if last_id is None else {"Last-Event-ID": last_id}
        seen: list[str] = []
        with (
            httpx.Client(base_url=service.url, headers=headers, timeout=30, trust_env=False) as http,
            http.stream("GET", "/api/v1/tail", headers=more) as stream,
        ):
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    last_id = line[4:]
                if last_id is not None and n == 0:
                    break
                if line.startswith("data: "):
                    seen.append(msgspec.json.decode(line[6:])["message"])
                    if len(seen) == n:
                        break
        assert last_id is not None
        return seen, last_id

    _, start = followed(0)
    service.ingest([{"message": f"while away {n}", "time": f"2026-01-31T12:00:0{9 - n}Z"} for n in range(5)])
    _wait_for(service, 5)
    seen, last = followed(3, start)
    assert seen == [f"while away {n}" for n in (4, 3, 2)]
    seen, _ = followed(5, last)
    assert set(seen) == {f"while away {n}" for n in range(5)}, "the walk had not ended, so all of it comes again"
    answer = service.http.get("/api/v1/tail", headers={"Last-Event-ID": "yesterday"})
    assert answer.status_code == 400


def test_a_tail_shows_a_record_within_two_seconds(service: ServiceProcess) -> None:
    seen: list[tuple[float, str]] = []
    ready, done = threading.Event(), threading.Event()

    def follow() -> None:
        headers = dict(service.http.headers)
        with (
            httpx.Client(base_url=service.url, headers=headers, timeout=30, trust_env=False) as http,
            http.stream("GET", "/api/v1/tail", params={"q": "level:error"}) as stream,
        ):
            for line in stream.iter_lines():
                ready.set()
                if line.startswith("data: "):
                    seen.append((time.monotonic(), msgspec.json.decode(line[6:])["message"]))
                    if len(seen) == 3:
                        done.set()
                        return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert ready.wait(10)
    sent = []
    for i in range(3):
        sent.append(time.monotonic())
        service.ingest([{"level": "error", "message": f"boom {i}"}, {"level": "info", "message": "calm"}])
    assert done.wait(20)
    assert [message for _, message in seen] == ["boom 0", "boom 1", "boom 2"]


def test_a_tenant_never_sees_anothers_records(service: ServiceProcess) -> None:
    service.ingest([{"message": "mine", "event.id": "same-id"}])
    other = service.make_key(tenant="other")
    headers = {"Authorization": f"Bearer {other}"}
    sent = service.http.post("/api/v1/ingest", json={"message": "theirs", "event.id": "same-id"}, headers=headers)
    assert sent.status_code == 202
    _wait_for(service, 1)
    service.wait("theirs", lambda: service.http.get("/api/v1/count", headers=headers).json()["count"] == 1)
    assert service.get("/records/same-id")["message"] == "mine"
    assert service.http.get("/api/v1/records/same-id", headers=headers).json()["message"] == "theirs"
    assert service.http.get("/api/v1/search", params={"q": "mine"}, headers=headers).json()["records"] == []


@pytest.mark.parametrize(
    ("path", "params", "expected"),
    [
        ("/search", {"q": "levle:error"}, "did you mean level?"),
        ("/search", {"q": "level:eror"}, "error"),
        ("/search", {"q": "(a OR"}, ""),
        ("/search", {"limit": "5000"}, "1000"),
        ("/search", {"cursor": "rubbish"}, "next_cursor"),
        ("/search", {"from": "yesterday-ish"}, "RFC 3339"),
        ("/search", {"q": "x" * 5000}, "4"),
        ("/histogram", {"interval": "1s", "from": "2020-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "2000"),
        ("/histogram", {"by": "message"}, "keyword"),
    ],
)
def test_a_wrong_parameter_is_a_problem_that_says_the_way_out(
    embedded_service: ServiceProcess, path: str, params: dict[str, str], expected: str
) -> None:
    answer = embedded_service.http.get(f"/api/v1{path}", params=params)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == 400
    assert expected in problem["detail"] + str(problem.get("hint"))


def test_keys_scopes_and_addresses_are_denied_by_default(embedded_service: ServiceProcess) -> None:
    service = embedded_service
    with httpx.Client(base_url=service.url, trust_env=False) as anonymous:
        for path in ("/api/v1/search", "/api/v1/tickets", "/metrics", "/openapi.json"):
            refused = anonymous.get(path)
            assert refused.status_code == 401
            assert "WWW-Authenticate" in refused.headers
        assert anonymous.get("/healthz").status_code == anonymous.get("/readyz").status_code == 200
        writer = {"Authorization": f"Bearer {service.make_key('ingest')}"}
        assert anonymous.post("/api/v1/ingest", json={"message": "x"}, headers=writer).status_code == 202
        assert anonymous.get("/api/v1/search", headers=writer).status_code == 403
        reader = service.make_key("read")
        assert anonymous.get("/api/v1/search", auth=("anyone", reader)).status_code == 200
        assert anonymous.post("/api/v1/ingest", json={"message": "x"}, auth=("", reader)).status_code == 403
        assert "lsk_" not in service.log


def test_a_service_that_others_could_reach_without_tls_does_not_start(embedded_service: ServiceProcess) -> None:
    done = embedded_service.run("serve", check=False, LOGSVC_HOST="0.0.0.0")
    assert done.returncode == 6
    assert "LOGSVC_TLS_CERT" in done.stderr


def test_a_second_service_on_a_data_directory_names_the_first(embedded_service: ServiceProcess) -> None:
    assert embedded_service.process is not None
    done = embedded_service.run("serve", check=False)
    assert done.returncode == 6
    assert str(embedded_service.process.pid) in done.stderr
