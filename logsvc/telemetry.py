"""Telemetry: what the service tells about itself: metrics for Prometheus, and its own log.

``METRICS`` is the one table of metrics; the registry and docs/metrics.md are made from it. Parts of
the service keep plain counts and know nothing of Prometheus: the composition root hands their
readings to ``Telemetry.watch``, which calls them at each scrape.

The log goes to standard error, one JSON object a line with ECS names, or text on a terminal, and
never into the service's own ingest: a service that logs its trouble into itself makes more of it.
The standard library's loggers (uvicorn, SQLAlchemy, …) end in it too. Whatever is written passes
the masks first, so that no key or password gets out.

Not here: what the numbers are (each part), ``/metrics`` (api/health.py).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from logsvc import __version__
from logsvc.errors import LogsvcError
from logsvc.settings import LogSettings
from shippers.redact import mask

if TYPE_CHECKING:
    from loguru import Message, Record

Reading = float | Mapping[Any, float]
"""A number; or for a metric with labels, numbers by the label's value, or by a tuple of the labels' values."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric: its name with its unit, its kind, its labels, a sentence of help."""

    name: str
    kind: str  # counter, gauge or histogram
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, help: str, *labels: str) -> MetricInfo:
    return MetricInfo(name, "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> MetricInfo:
    return MetricInfo(name, "gauge", help, labels)


METRICS: tuple[MetricInfo, ...] = (
    _counter("ingest_records_total", "Records that senders were answered about: accepted or refused.", "outcome"),
    _counter("ingest_refused_records_total", "Records that could not be decoded; their senders were told.", "reason"),
    _counter("ingest_flagged_records_total", "Records stored although something about them was wrong.", "reason"),
    _counter("ingest_dropped_records_total", "Records lost, here or, as they report it, in a shipper.", "reason"),
    _counter(
        "ingest_throttled_requests_total",
        "Requests to ingest that were told to come again: quota, backlog, journal_full, memory …",
        "reason",
    ),
    _counter("ingest_duplicates_total", "Records whose id was stored already; the first stays."),
    _counter("ingest_masked_values_total", "Secrets and personal values masked before any disk."),
    _gauge("journal_size_bytes", "Bytes of the journal on disk."),
    _gauge("journal_max_bytes", "Bytes at which the journal is full and senders get 503."),
    _gauge("journal_is_pushing_back", "1 while senders are held back because the store is too far behind."),
    _counter("journal_records_total", "Records appended to the journal."),
    MetricInfo("journal_fsync_seconds", "histogram", "Time of one fsync of the journal."),
    _counter(
        "indexer_records_total", "Records taken to the store: appended, duplicate, skipped or refused.", "outcome"
    ),
    _gauge("indexer_lag_records", "Records in the journal that are not yet searchable."),
    _gauge("indexer_lag_seconds", "Age of the oldest record that is not yet searchable; 0 if all are."),
    _counter("dead_letters_total", "Records accepted that the store will never take; kept as dead letters."),
    _gauge("ledger_lost_records", "Numbered records that never arrived, of the shippers that are remembered."),
    _gauge("ledger_waiting_records", "Numbered records known to wait in shippers, or on the way."),
    _gauge("store_up", "1 if the store answers."),
    _gauge("store_size_bytes", "Bytes the store holds."),
    _counter("expired_days_total", "Days of records dropped at the end of their retention."),
    _gauge(
        "detection_cursor_lag_seconds",
        "How far judging is behind the newest record, for the tenant furthest behind.",
    ),
    _gauge("detection_is_blind", "1 if windows cannot be judged because records are missing."),
    _counter("detection_windows_total", "Windows judged."),
    _gauge("detection_tick_seconds", "Time the last tick of detection took."),
    _gauge("tickets_open", "Tickets that are open or acknowledged."),
    _gauge("outbox_pending", "Events of tickets that wait for delivery.", "channel"),
    _gauge("outbox_failed", "Events of tickets given up; they can be replayed.", "channel"),
    _counter("outbox_deliveries_total", "Attempts to deliver: delivered, retry or failed.", "channel", "outcome"),
    _gauge("logsvc_canary_up", "1 if the last planted burst became a delivered alert in time, not too long ago."),
    _gauge("logsvc_canary_last_success_timestamp_seconds", "When a planted burst last became a delivered alert."),
    _gauge("logsvc_canary_stage_seconds", "How long the last planted burst took to reach each stage.", "stage"),
    _counter("logsvc_canary_runs_total", "Planted bursts: delivered or failed.", "outcome"),
    _counter(
        "logsvc_dead_mans_switch_calls_total",
        "Calls of the dead man's switch: called, failed, or withheld because something was wrong.",
        "outcome",
    ),
    _counter("http_requests_total", "Requests answered.", "method", "route", "status"),
    MetricInfo("http_request_seconds", "histogram", "Time from a request's first byte to its answer's last."),
    _gauge("event_loop_longest_gap_seconds", "Longest time the event loop did not turn since the last scrape."),
    _gauge("clock_behind_seconds", "How far the clock is behind the newest record, after it was set back."),
    _gauge("logsvc_build_info", "1, with the version.", "version"),
)
"""Every metric of the service; those of its process (``process_*``) come on top."""

_BY_NAME = {metric.name: metric for metric in METRICS}


class Telemetry:
    """The registry of one service. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[str, Callable[[], Reading]] = {}
        self._counts: dict[str, dict[tuple[str, ...], float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(self))
        ProcessCollector(registry=self._registry)
        self._histograms = {
            metric.name: Histogram(metric.name, metric.help, registry=self._registry, buckets=_SECONDS)
            for metric in METRICS
            if metric.kind == "histogram"
        }
        self.watch("logsvc_build_info", lambda: {__version__: 1.0})

    def watch(self, name: str, read: Callable[[], Reading]) -> None:
        """Take a counter or gauge of ``METRICS`` from ``read``, called at each scrape.

        ``read`` may be slow only as a scrape may. If it raises a ``LogsvcError`` the metric is
        absent from that scrape.
        """
        if _BY_NAME[name].kind == "histogram":
            raise ValueError(f"{name} is a histogram; observe() it")
        self._watched[name] = read

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        """Add to a counter of ``METRICS``; ``labels`` in the order that the table gives."""
        if len(labels) != len(_BY_NAME[name].labels):
            raise ValueError(f"{name} has the labels {_BY_NAME[name].labels}, got {labels}")
        with self._lock:
            values = self._counts.setdefault(name, {})
            values[labels] = values.get(labels, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        """Add one observation to a histogram of ``METRICS``."""
        self._histograms[name].observe(seconds)

    def sources(self) -> frozenset[str]:
        """Return the metrics that are watched or have been counted, and the histograms."""
        with self._lock:
            return frozenset({*self._watched, *self._counts, *self._histograms})

    def render(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _read(self, name: str) -> dict[tuple[str, ...], float] | None:
        with self._lock:
            counts = dict(self._counts.get(name, {}))
        read = self._watched.get(name)
        if read is None:
            return counts or None
        try:
            reading = read()
        except LogsvcError:
            return None  # a store that is down must not hide every other number
        if isinstance(reading, Mapping):
            return counts | {key if isinstance(key, tuple) else (key,): value for key, value in reading.items()}
        return counts | {(): reading}


class _Collector(Collector):
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def describe(self) -> list[Metric]:
        return []  # or registering would read everything once

    def collect(self) -> Iterator[Metric]:
        for metric in METRICS:
            values = None if metric.kind == "histogram" else self._telemetry._read(metric.name)
            if values is not None:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = kind(metric.name, metric.help, labels=metric.labels)
                for labels, value in values.items():
                    family.add_metric(labels, value)
                yield family


_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RequestMetrics:
    """ASGI middleware that counts and times requests, by route and never by address.

    ``api.add_middleware(RequestMetrics, telemetry=telemetry)``
    """

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]], telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, watched_send)
        finally:
            # The router leaves its match in the scope; what matched nothing shares one name, or
            # any scanner could make as many series as it likes. So could made-up methods.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._telemetry.count("http_requests_total", method, route, str(status))
            self._telemetry.observe("http_request_seconds", time.perf_counter() - started)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})

# ------------------------------------------------------------------------------------------- the service's own log

_LEVELS = {"TRACE": "trace", "DEBUG": "debug", "INFO": "info", "SUCCESS": "info"}
_LEVELS |= {"WARNING": "warn", "ERROR": "error", "CRITICAL": "fatal"}

_OWN_KEY = re.compile(r"lsk_[A-Za-z0-9_]{4,}")

_CHATTY = ("alembic.runtime", "elastic_transport", "httpcore", "httpx", "uvicorn.access", "asyncio")
"""Loggers that say something about every request: heard from warning on, unless one debugs."""


def scrub(text: str) -> str:
    """Return ``text`` with every secret masked that is known by its form.

    >>> scrub("key lsk_0123456789abcdef0123456789abcdef is wrong")
    'key lsk_*** is wrong'
    """
    return mask(_OWN_KEY.sub("lsk_***", text))[0]


def configure_log(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send the log of this process, loguru's and the standard library's, to ``stream`` (standard error)."""
    stream = sys.stderr if stream is None else stream
    is_text = settings.format == "text" or (settings.format == "auto" and stream.isatty())

    def write(message: Message) -> None:
        # One write a line, so that lines of several threads never mix.
        stream.write(scrub(str(message)) if is_text else _json_line(message.record))
        stream.flush()

    level = settings.level.upper()
    logger.remove()
    logger.add(
        write,
        level=level,
        format="<dim>{time:HH:mm:ss.SSS}</> <level>{level: <8}</> {message}" if is_text else "{message}",
        colorize=is_text and stream.isatty(),
        backtrace=False,
        diagnose=False,  # values of variables: keys and records among them
    )
    is_debugging = level in {"TRACE", "DEBUG"}
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.DEBUG if is_debugging else level, force=True)
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if is_debugging else logging.WARNING)
    if not is_debugging:
        # It warns at every try; the indexer and the start say once what is away.
        logging.getLogger("elastic_transport").setLevel(logging.ERROR)


class _ToLoguru(logging.Handler):
    """Hands the standard library's records to loguru, under the name of their logger."""

    def emit(self, record: logging.LogRecord) -> None:
        level: str | int = record.levelname if record.levelname in _LEVELS else record.levelno

        def name(own: Record) -> None:
            own["name"], own["function"], own["line"] = record.name, record.funcName, record.lineno

        logger.patch(name).opt(exception=record.exc_info).log(level, "{}", record.getMessage())


def _json_line(record: Record) -> str:
    fields: dict[str, object] = {
        "@timestamp": record["time"].astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "log.level": _LEVELS.get(record["level"].name, record["level"].name.lower()),
        "message": scrub(record["message"]),
        "log.logger": record["name"],
        "log.origin.function": record["function"],
        "log.origin.file.line": record["line"],
        "process.pid": os.getpid(),
        "process.thread.name": record["thread"].name,
        "service.name": "logsvc",
        "service.version": __version__,
    }
    if (exception := record["exception"]) is not None and exception.type is not None:
        fields["error.type"] = f"{exception.type.__module__}.{exception.type.__qualname__}"
        fields["error.message"] = scrub(str(exception.value))
        fields["error.stack_trace"] = scrub(
            "".join(traceback.format_exception(exception.type, exception.value, exception.traceback))
        )
    if record["extra"]:
        fields["labels"] = {
            str(key): scrub(f"{key}={value}")[len(str(key)) + 1 :] for key, value in record["extra"].items()
        }
    return json.dumps(fields, ensure_ascii=False) + "\n"
