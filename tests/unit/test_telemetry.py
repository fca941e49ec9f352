"""Telemetry: metrics are those of the table and documented; the log is structured and holds no secret."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from logsvc.errors import StoreUnavailable
from logsvc.settings import LogSettings
from logsvc.telemetry import METRICS, RequestMetrics, Telemetry, configure_log, scrub

ROOT = Path(__file__).parents[2]
KEY = "lsk_" + "Ab3" * 14


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Return where the log goes, and put every logger back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    shown = warnings.showwarning
    root.handlers = []
    yield io.StringIO()
    logging.captureWarnings(False)
    warnings.showwarning = shown
    root.handlers, root.level = handlers, level
    logger.remove()
    logger.add(sys.stderr)


def rendered(telemetry: Telemetry) -> str:
    return telemetry.render()[0].decode()


def test_counts_readings_and_observations_come_out_under_their_names() -> None:
    telemetry = Telemetry()
    telemetry.count("ingest_records_total", "accepted", amount=3)
    telemetry.count("ingest_records_total", "accepted")
    telemetry.watch("store_up", lambda: 1)
    telemetry.watch("outbox_pending", lambda: {"file": 2, "webhook": 0})
    telemetry.watch("outbox_deliveries_total", lambda: {("file", "delivered"): 5})
    telemetry.observe("journal_fsync_seconds", 0.003)
    text = rendered(telemetry)
    for line in (
        'ingest_records_total{outcome="accepted"} 4.0',
        "store_up 1.0",
        'outbox_pending{channel="file"} 2.0',
        'outbox_deliveries_total{channel="file",outcome="delivered"} 5.0',
        "journal_fsync_seconds_count 1.0",
        'journal_fsync_seconds_bucket{le="0.0025"} 0.0',
        'logsvc_build_info{version="',
        "process_resident_memory_bytes",
    ):
        assert line in text
    assert telemetry.sources() >= {"store_up", "ingest_records_total", "http_request_seconds"}


def test_a_part_that_does_not_answer_hides_no_other_number() -> None:
    def fail() -> float:
        raise StoreUnavailable("away")

    telemetry = Telemetry()
    telemetry.watch("store_size_bytes", fail)
    telemetry.watch("store_up", lambda: 0)
    text = rendered(telemetry)
    assert "store_up 0.0" in text
    assert "\nstore_size_bytes " not in text


def test_only_metrics_of_the_table_exist_with_their_labels() -> None:
    telemetry = Telemetry()
    with pytest.raises(KeyError):
        telemetry.count("made_up_total")
    with pytest.raises(ValueError, match="labels"):
        telemetry.count("ingest_records_total")
    with pytest.raises(ValueError, match="histogram"):
        telemetry.watch("journal_fsync_seconds", lambda: 1)


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels) or "–", metric.help)
        for metric in METRICS
    ]


async def test_requests_are_counted_by_route_and_not_by_address() -> None:
    class Route:
        path = "/api/v1/records/{id}"

    async def app(scope, receive, send) -> None:
        if scope["path"] == "/boom":
            raise RuntimeError("boom")
        if scope["path"] != "/scan":
            scope["route"] = Route()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def send(_message) -> None: ...

    async def receive():
        return {}

    telemetry = Telemetry()
    middleware = RequestMetrics(app, telemetry)
    for method, path in [
        ("GET", "/api/v1/records/1"),
        ("GET", "/api/v1/records/2"),
        ("GET", "/scan"),
        ("EVIL", "/scan"),
    ]:
        await middleware({"type": "http", "method": method, "path": path}, receive, send)
    with pytest.raises(RuntimeError):
        await middleware({"type": "http", "method": "GET", "path": "/boom"}, receive, send)
    await middleware({"type": "lifespan", "path": ""}, receive, send)
    text = rendered(telemetry)
    assert 'http_requests_total{method="GET",route="/api/v1/records/{id}",status="200"} 2.0' in text
    assert 'http_requests_total{method="GET",route="other",status="200"} 1.0' in text
    assert 'http_requests_total{method="other",route="other",status="200"} 1.0' in text
    assert 'http_requests_total{method="GET",route="other",status="500"} 1.0' in text
    assert "http_request_seconds_count 5.0" in text


def test_a_json_line_has_ecs_names_and_one_line_whatever_the_message(stream: io.StringIO) -> None:
    configure_log(LogSettings(format="json"), stream)
    logger.bind(tenant="acme", n=3).warning("two\nlines of {}", "text")
    try:
        raise ValueError("no such column")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().split("\n")[:2])
    assert (first["log.level"], first["message"], first["service.name"]) == ("warn", "two\nlines of text", "logsvc")
    assert first["labels"] == {"tenant": "acme", "n": "3"}
    assert first["@timestamp"].endswith("Z")
    assert (second["log.level"], second["error.type"], second["error.message"]) == (
        "error",
        "builtins.ValueError",
        "no such column",
    )
    assert "Traceback" in second["error.stack_trace"]


def test_the_standard_librarys_loggers_end_in_it_under_their_names(stream: io.StringIO) -> None:
    configure_log(LogSettings(format="json"), stream)
    logging.getLogger("uvicorn.error").info("up on %s {} <b>", "port")
    logging.getLogger("some.library").debug("not heard")
    logging.getLogger("httpx").info("every request")
    (line,) = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (line["log.logger"], line["message"], line["log.level"]) == ("uvicorn.error", "up on port {} <b>", "info")


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_key_or_password_gets_out_by_any_way(stream: io.StringIO, format: str) -> None:
    configure_log(LogSettings(format=format, level="debug"), stream)
    logger.info("key {} refused; Authorization: Bearer {}", KEY, "abcDEF0123456789abcDEF0123456789")
    logger.bind(password="hunter2", header=KEY).info("bound")
    logging.getLogger("library").warning("connecting to postgresql://u:%s@db/x", "hunter2")
    try:
        local = f"password=hunter2 {KEY}"
        raise RuntimeError(local)
    except RuntimeError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "failed" in text
    assert "hunter2" not in text
    assert KEY not in text
    assert "abcDEF0123456789" not in text


def test_text_is_for_terminals_and_json_for_everything_else(stream: io.StringIO) -> None:
    configure_log(LogSettings(format="auto"), stream)
    logger.info("hello")
    assert json.loads(stream.getvalue())["message"] == "hello"


def test_below_its_level_nothing_is_written(stream: io.StringIO) -> None:
    configure_log(LogSettings(format="text", level="error"), stream)
    logger.warning("quiet")
    logging.getLogger("x").warning("quiet")
    logger.error("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_scrub_leaves_plain_text_alone() -> None:
    assert scrub("charged order 17 in 3 ms") == "charged order 17 in 3 ms"
