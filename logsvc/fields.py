"""Fields: the one table of what a record may carry, and what each backend does with it.

The record (records.py), the query language (query.py), the Elasticsearch mapping and the tantivy
schema (store/), the native aliases (ingest.py) and the documentation all read this table, so a
field is added in one place. Names are ECS; ``otel`` names and ``aliases`` resolve to them.

Not here: how a value is coerced (ingest.py), how a type is indexed (store/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class FieldType(Enum):
    """How a field is compared. A backend maps each member to one index type."""

    KEYWORD = "keyword"  # exact, case-sensitive, byte order
    TEXT = "text"  # words: runs of letters, digits and underscore, lower-cased
    KEYWORD_TEXT = "keyword_text"  # exact as a keyword, and searched by its words (error.type)
    LONG = "long"  # signed 64-bit integer
    DATE = "date"  # RFC 3339 in the record; compared in microseconds since 1970
    LABELS = "labels"  # flat map of strings: term, prefix and exists only
    STORED = "stored"  # kept and returned, never searched


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its ECS name, its type, the other names that mean it, a sentence of help."""

    name: str
    type: FieldType
    help: str
    aliases: tuple[str, ...] = ()  # native short names and OpenTelemetry names
    is_list: bool = False
    values: tuple[str, ...] = ()  # the only values allowed, if it is an enumeration


LEVELS: Mapping[str, int] = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
"""Canonical levels with the lowest OpenTelemetry severity number of each."""

TASK_STATUSES = (
    "queued",
    "started",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
    "timed_out",
    "skipped",
    "lost",
)

K, T, L, D = FieldType.KEYWORD, FieldType.TEXT, FieldType.LONG, FieldType.DATE

_TABLE = (
    Field("@timestamp", D, "When it happened, UTC.", ("timestamp", "time", "ts", "timeUnixNano")),
    Field("event.ingested", D, "When the service accepted it, UTC.", ("ingested",)),
    Field("event.created", D, "When a shipper read it, UTC.", ("observedTimeUnixNano",)),
    Field("event.id", K, "The sender's id, or one made at ingest.", ("log.record.uid",)),
    Field("event.sequence", L, "Position in the sending process's epoch."),
    Field("event.kind", K, "What kind of event.", values=("event", "alert", "metric", "state")),
    Field("event.category", K, "ECS category."),
    Field("event.type", K, "ECS type."),
    Field("event.outcome", K, "How it ended.", values=("success", "failure", "unknown")),
    Field("event.action", K, "What happened, such as task.failed.", ("eventName",)),
    Field("event.dataset", K, "The service's name, as Elastic names data sets."),
    Field("event.duration", L, "Duration in nanoseconds."),
    Field("event.severity", L, "OpenTelemetry severity number, 1 to 24.", ("severityNumber", "severity_number")),
    Field("event.original", FieldType.STORED, "What did not fit into the message; never searched."),
    Field("data_stream.type", K, "Always logs."),
    Field("data_stream.dataset", K, "The service's name."),
    Field("data_stream.namespace", K, "The tenant."),
    Field("log.level", K, "Canonical level.", ("level", "severityText", "severity_text"), values=tuple(LEVELS)),
    Field("log.level_original", K, "The level as the sender wrote it."),
    Field("log.logger", K, "Name of the logger.", ("logger",)),
    Field("log.origin.file.name", K, "Source file.", ("code.file.path",)),
    Field("log.origin.file.line", L, "Source line.", ("code.line.number",)),
    Field("log.origin.function", K, "Source function.", ("code.function.name",)),
    Field("log.file.path", K, "File the line was read from."),
    Field("log.offset", L, "Byte offset in that file."),
    Field("log.iostream", K, "stdout or stderr."),
    Field("log.template.id", K, "Fingerprint of the message (v1:…).", ("template", "fingerprint")),
    Field("log.template.text", K, "The message with its variables masked."),
    Field("message", T, "The rendered message.", ("msg", "body")),
    Field("service.name", K, "The program.", ("service",)),
    Field("service.version", K, "Its release.", ("version", "release")),
    Field("service.environment", K, "Its environment.", ("env", "deployment.environment.name")),
    Field("service.node.name", K, "Its instance.", ("service.instance.id",)),
    Field("service.namespace", K, "Its group of services."),
    Field("host.name", K, "The machine.", ("host",)),
    Field("container.id", K, "The container."),
    Field("process.pid", L, "Process id.", ("pid",)),
    Field("process.thread.name", K, "Thread.", ("thread.name", "thread")),
    Field("trace.id", K, "Trace, 32 hex digits.", ("trace_id", "traceId")),
    Field("span.id", K, "Span, 16 hex digits.", ("span_id", "spanId")),
    Field("transaction.id", K, "Transaction.", ("transaction_id",)),
    Field("error.type", FieldType.KEYWORD_TEXT, "Qualified class of the exception.", ("exception.type",)),
    Field("error.message", T, "The exception's message.", ("exception.message",)),
    Field("error.stack_trace", T, "The exception's stack.", ("exception.stacktrace",)),
    Field("error.id", K, "Fingerprint of the exception (v1:…)."),
    Field("task.name", K, "The task, as the application names it.", ("task", "cicd.pipeline.task.name")),
    Field("task.id", K, "One run of the task.", ("task_id", "cicd.pipeline.task.run.id")),
    Field("task.attempt", L, "Which attempt, from 1."),
    Field("task.max_attempts", L, "How many attempts at most."),
    Field("task.status", K, "State of the run.", ("cicd.pipeline.task.run.result",), values=TASK_STATUSES),
    Field("task.type", K, "Kind of task."),
    Field("task.queue", K, "Queue it came from.", ("messaging.destination.name",)),
    Field("task.parent.id", K, "Run that started this one."),
    Field("task.root.id", K, "First run of the chain."),
    Field("task.scheduled_at", D, "When it was due."),
    Field("task.started_at", D, "When it started."),
    Field("task.deadline", D, "When it must have ended."),
    Field("user.hash", K, "Keyed hash of the user; the raw id is never stored."),
    Field("http.request.method", K, "HTTP method."),
    Field("http.response.status_code", L, "HTTP status."),
    Field("url.path", K, "Path without the query string."),
    Field("organization.id", K, "The application's own customer.", ("tenant", "customer")),
    Field("tags", K, "Words attached by the sender.", is_list=True),
    Field("labels", FieldType.LABELS, "Everything else the sender attached."),
    Field("anomaly.id", K, "The anomaly."),
    Field("anomaly.score", K, "0 to 1, higher is stranger."),
    Field("anomaly.detector.name", K, "What judged it."),
    Field("anomaly.detector.version", K, "Its version."),
    Field("rule.id", K, "Rule that fired."),
    Field("rule.name", K, "Its name."),
    Field("rule.version", K, "Its version."),
    Field("ingest.source", K, "Address or name of the sender."),
    Field("ingest.protocol", K, "Protocol it came by."),
    Field("ingest.key_id", K, "Id of the key it came with."),
    Field("ingest.epoch", K, "Sending process's epoch."),
    Field("ingest.redactions", L, "How many values were masked."),
    Field("ingest.conflicts", K, "Fields whose value had to be replaced or set aside.", is_list=True),
    Field("ingest.dropped_fields", L, "Labels beyond the limit, dropped."),
    Field("ingest.pipeline_version", K, "Version of the normaliser."),
    Field("ingest.late_ms", L, "event.ingested minus @timestamp, in milliseconds."),
    Field("ecs.version", K, "ECS version of the names."),
    Field("schema.version", K, "Version of this table."),
)

FIELDS: Mapping[str, Field] = {field.name: field for field in _TABLE}

ALIASES: Mapping[str, str] = {alias: field.name for field in _TABLE for alias in field.aliases}
"""Every other name of a field, to its ECS name."""

WORD_FIELDS = ("message", "error.type", "error.message", "error.stack_trace")
"""What plain words search."""

MAX_TOKEN_CHARS = 8191
"""Tokens and keyword values are cut here before either store sees them."""

SCHEMA_VERSION = "1"
ECS_VERSION = "9.0.0"


def resolve(name: str) -> Field | None:
    """Return the field that ``name`` means, by its ECS name or an alias; None if there is none.

    ``labels.KEY`` resolves to a field of type LABELS that carries the full name.

    >>> resolve("level").name
    'log.level'
    """
    if name.startswith("labels.") and len(name) > len("labels."):
        return Field(name, FieldType.LABELS, "A label.")
    return FIELDS.get(name) or FIELDS.get(ALIASES.get(name, ""))
