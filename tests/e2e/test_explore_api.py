"""Exploring over a real service: facets, values, fields, context and export, on both stores."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.support.service import ServiceProcess

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def _records() -> Iterator[dict[str, Any]]:
    """Yield a run of ten records among others of its service, host and time."""
    for n in range(40):
        yield {
            "event.id": f"e/{n:02d}",
            "time": (NOON + timedelta(milliseconds=n // 2)).isoformat(),
            "level": "error" if n % 8 == 0 else "info",
            "service": "billing" if n % 4 else 'web, "the" shop',
            "host": f"host-{n % 3}",
            "message": f"step {n},\nnext line",
            **({"task": "charge", "task_id": "run-1"} if n % 4 == 1 else {}),
            **({"trace_id": f"{7:032x}"} if n == 30 else {}),
            **({"order": str(n)} if n < 5 else {}),
        }


@pytest.fixture
def filled(service: ServiceProcess) -> ServiceProcess:
    service.ingest(list(_records()))
    service.wait("40 records", lambda: service.count() >= 40)
    return service


def test_facets_say_how_often_each_value_occurs(filled: ServiceProcess) -> None:
    found = filled.get("/facets", field="level")
    assert found == {
        "field": "log.level",
        "values": [{"value": "info", "count": 35}, {"value": "error", "count": 5}],
        "other": 0,
        "missing": 0,
        "exact": True,
    }
    found = filled.get("/facets", field="labels.order", q="level:info", limit=2)
    assert found["values"] == [{"value": "1", "count": 1}, {"value": "2", "count": 1}]
    assert (found["other"], found["missing"]) == (2, 31)
    answer = filled.http.get("/api/v1/facets?field=message")
    assert answer.status_code == 400
    assert "field=message: message is no keyword field" in answer.json()["detail"]
    assert filled.http.get("/api/v1/facets").json()["detail"] == "the parameter field is missing; add field=…"


def test_values_complete_what_is_typed(filled: ServiceProcess) -> None:
    assert filled.get("/values", field="host", prefix="host-")["values"] == [
        {"value": "host-0", "count": 14},
        {"value": "host-1", "count": 13},
        {"value": "host-2", "count": 13},
    ]
    assert filled.get("/values", field="service", prefix="bi")["values"] == [{"value": "billing", "count": 30}]
    assert filled.get("/values", field="service", prefix=".*")["values"] == []


def test_fields_are_those_of_the_table_and_the_labels_in_use(filled: ServiceProcess) -> None:
    found = filled.get("/fields")
    level = next(field for field in found["fields"] if field["name"] == "log.level")
    assert level["type"] == "keyword"
    assert "level" in level["aliases"]
    assert "error" in level["values"]
    assert found["labels"] == ["labels.order"]


def test_context_is_what_stands_around_a_record(filled: ServiceProcess) -> None:
    found = filled.get("/records/e/17/context", before=2, after=3)
    assert (found["by"], found["field"], found["value"]) == ("run", "task.id", "run-1")
    assert found["record"]["event.id"] == "e/17"
    assert [record["event.id"] for record in found["before"]] == ["e/09", "e/13"]
    assert [record["event.id"] for record in found["after"]] == ["e/21", "e/25", "e/29"]
    of_host = filled.get("/records/e/17/context", by="host", before=1, after=0)
    assert [record["event.id"] for record in of_host["before"]] == ["e/14"]
    assert of_host["after"] == []
    assert filled.get("/records/e/30/context")["by"] == "trace"
    assert filled.get("/records/e/31/context")["by"] == "service"
    answer = filled.http.get("/api/v1/records/e/31/context?by=run")
    assert answer.status_code == 400
    assert "the record has no task.id; take one of service, host" in answer.json()["detail"]
    assert filled.http.get("/api/v1/records/none/context").status_code == 404


def test_an_export_holds_every_hit(filled: ServiceProcess) -> None:
    answer = filled.http.get("/api/v1/export", params={"q": "service:billing"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"].endswith('.ndjson"')
    lines = [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert [line["event.id"] for line in lines] == [f"e/{n:02d}" for n in range(40) if n % 4]
    assert lines[0] == filled.get("/records/e/01")
    some = filled.http.get("/api/v1/export", params={"fields": "level,labels.order", "order": "desc"})
    assert [msgspec.json.decode(line) for line in some.content.splitlines()][-1] == {
        "log.level": "error",
        "labels.order": "0",
    }
    assert filled.http.get("/api/v1/export?q=level:").status_code == 400
    assert "no field 'colour'" in filled.http.get("/api/v1/export?fields=colour").json()["detail"]


def test_an_export_as_csv_reads_as_a_table(filled: ServiceProcess) -> None:
    answer = filled.http.get("/api/v1/export", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert len(rows) == 40
    assert rows[8]["service.name"] == 'web, "the" shop'
    assert rows[8]["message"] == "step 8,\nnext line"
    assert rows[0]["@timestamp"] == filled.get("/records/e/00")["@timestamp"]


def test_an_export_goes_on_over_many_pages(embedded_service: ServiceProcess) -> None:
    for start in range(0, 3_000, 1_000):
        embedded_service.ingest(
            [{"message": "a", "event.id": f"{n}", "time": NOON.isoformat()} for n in range(start, start + 1_000)]
        )
    embedded_service.wait("3,000 records", lambda: embedded_service.count() >= 3_000)
    answer = embedded_service.http.get("/api/v1/export?fields=event.id")
    assert sorted(int(msgspec.json.decode(line)["event.id"]) for line in answer.content.splitlines()) == list(
        range(3_000)
    )
