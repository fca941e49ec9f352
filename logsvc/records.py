"""Record: the canonical form of one log event, and the entry that carries it through the service.

Every protocol ends here. A ``Record`` is made once, at ingest, already masked; from then on its
bytes (``Entry.source``) are what the journal, the store and the API hand on, so a replay writes
the same document with the same id.

Times in a record are RFC 3339 in UTC with up to nine digits and a final ``Z``; comparisons use
``Entry.time_us``.

Not here: how a sender's fields become a record (ingest.py), what each field means (fields.py).
"""

from __future__ import annotations

import hashlib

import msgspec


class Record(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One log event with ECS names (``rename``d fields); fields.py says what each means."""

    timestamp: str = msgspec.field(name="@timestamp")
    event_ingested: str = msgspec.field(name="event.ingested")
    event_created: str | None = msgspec.field(name="event.created", default=None)
    event_id: str = msgspec.field(name="event.id")
    event_sequence: int | None = msgspec.field(name="event.sequence", default=None)
    event_kind: str | None = msgspec.field(name="event.kind", default=None)
    event_category: str | None = msgspec.field(name="event.category", default=None)
    event_type: str | None = msgspec.field(name="event.type", default=None)
    event_outcome: str | None = msgspec.field(name="event.outcome", default=None)
    event_action: str | None = msgspec.field(name="event.action", default=None)
    event_dataset: str | None = msgspec.field(name="event.dataset", default=None)
    event_duration: int | None = msgspec.field(name="event.duration", default=None)
    event_severity: int = msgspec.field(name="event.severity")
    event_original: str | None = msgspec.field(name="event.original", default=None)
    data_stream_type: str | None = msgspec.field(name="data_stream.type", default=None)
    data_stream_dataset: str | None = msgspec.field(name="data_stream.dataset", default=None)
    data_stream_namespace: str = msgspec.field(name="data_stream.namespace")
    log_level: str = msgspec.field(name="log.level")
    log_level_original: str | None = msgspec.field(name="log.level_original", default=None)
    log_logger: str | None = msgspec.field(name="log.logger", default=None)
    log_origin_file_name: str | None = msgspec.field(name="log.origin.file.name", default=None)
    log_origin_file_line: int | None = msgspec.field(name="log.origin.file.line", default=None)
    log_origin_function: str | None = msgspec.field(name="log.origin.function", default=None)
    log_file_path: str | None = msgspec.field(name="log.file.path", default=None)
    log_offset: int | None = msgspec.field(name="log.offset", default=None)
    log_iostream: str | None = msgspec.field(name="log.iostream", default=None)
    log_template_id: str = msgspec.field(name="log.template.id")
    log_template_text: str | None = msgspec.field(name="log.template.text", default=None)
    message: str = msgspec.field(name="message")
    service_name: str = msgspec.field(name="service.name")
    service_version: str | None = msgspec.field(name="service.version", default=None)
    service_environment: str | None = msgspec.field(name="service.environment", default=None)
    service_node_name: str | None = msgspec.field(name="service.node.name", default=None)
    service_namespace: str | None = msgspec.field(name="service.namespace", default=None)
    host_name: str | None = msgspec.field(name="host.name", default=None)
    container_id: str | None = msgspec.field(name="container.id", default=None)
    process_pid: int | None = msgspec.field(name="process.pid", default=None)
    process_thread_name: str | None = msgspec.field(name="process.thread.name", default=None)
    trace_id: str | None = msgspec.field(name="trace.id", default=None)
    span_id: str | None = msgspec.field(name="span.id", default=None)
    transaction_id: str | None = msgspec.field(name="transaction.id", default=None)
    error_type: str | None = msgspec.field(name="error.type", default=None)
    error_message: str | None = msgspec.field(name="error.message", default=None)
    error_stack_trace: str | None = msgspec.field(name="error.stack_trace", default=None)
    error_id: str | None = msgspec.field(name="error.id", default=None)
    task_name: str | None = msgspec.field(name="task.name", default=None)
    task_id: str | None = msgspec.field(name="task.id", default=None)
    task_attempt: int | None = msgspec.field(name="task.attempt", default=None)
    task_max_attempts: int | None = msgspec.field(name="task.max_attempts", default=None)
    task_status: str | None = msgspec.field(name="task.status", default=None)
    task_type: str | None = msgspec.field(name="task.type", default=None)
    task_queue: str | None = msgspec.field(name="task.queue", default=None)
    task_parent_id: str | None = msgspec.field(name="task.parent.id", default=None)
    task_root_id: str | None = msgspec.field(name="task.root.id", default=None)
    task_scheduled_at: str | None = msgspec.field(name="task.scheduled_at", default=None)
    task_started_at: str | None = msgspec.field(name="task.started_at", default=None)
    task_deadline: str | None = msgspec.field(name="task.deadline", default=None)
    user_hash: str | None = msgspec.field(name="user.hash", default=None)
    http_request_method: str | None = msgspec.field(name="http.request.method", default=None)
    http_response_status_code: int | None = msgspec.field(name="http.response.status_code", default=None)
    url_path: str | None = msgspec.field(name="url.path", default=None)
    organization_id: str | None = msgspec.field(name="organization.id", default=None)
    tags: list[str] = msgspec.field(name="tags", default_factory=list)
    labels: dict[str, str] = msgspec.field(name="labels", default_factory=dict)
    anomaly_id: str | None = msgspec.field(name="anomaly.id", default=None)
    anomaly_score: str | None = msgspec.field(name="anomaly.score", default=None)
    anomaly_detector_name: str | None = msgspec.field(name="anomaly.detector.name", default=None)
    anomaly_detector_version: str | None = msgspec.field(name="anomaly.detector.version", default=None)
    rule_id: str | None = msgspec.field(name="rule.id", default=None)
    rule_name: str | None = msgspec.field(name="rule.name", default=None)
    rule_version: str | None = msgspec.field(name="rule.version", default=None)
    ingest_source: str | None = msgspec.field(name="ingest.source", default=None)
    ingest_protocol: str | None = msgspec.field(name="ingest.protocol", default=None)
    ingest_key_id: str | None = msgspec.field(name="ingest.key_id", default=None)
    ingest_epoch: str | None = msgspec.field(name="ingest.epoch", default=None)
    ingest_redactions: int | None = msgspec.field(name="ingest.redactions", default=None)
    ingest_conflicts: list[str] = msgspec.field(name="ingest.conflicts", default_factory=list)
    ingest_dropped_fields: int | None = msgspec.field(name="ingest.dropped_fields", default=None)
    ingest_pipeline_version: str | None = msgspec.field(name="ingest.pipeline_version", default=None)
    ingest_late_ms: int | None = msgspec.field(name="ingest.late_ms", default=None)
    ecs_version: str | None = msgspec.field(name="ecs.version", default=None)
    schema_version: str | None = msgspec.field(name="schema.version", default=None)


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An accepted record on its way from the journal to the store.

    Attributes:
        tenant: Whose it is; ``data_stream.namespace``.
        id: Stored id, ``stored_id(tenant, event.id)``.
        seq: Position in the journal, from 1, strictly rising, never used twice; 0 before the
            journal has set it.
        time_us: ``@timestamp`` in microseconds since 1970.
        ingested_us: ``event.ingested`` in microseconds since 1970.
        unit: What detection watches: ``task:NAME``, or ``service:NAME`` without a task.
        duration_bucket: ``floor(24 * log10(duration in ns))`` or None without a duration.
        has_client_id: Whether the sender chose ``event.id``, so that a duplicate is possible.
        source: JSON object of the ``Record``: dotted keys, ``labels`` an object, ``tags`` and
            ``ingest.conflicts`` arrays.
    """

    tenant: str
    id: str
    seq: int
    time_us: int
    ingested_us: int
    unit: str
    duration_bucket: int | None
    has_client_id: bool
    source: bytes


def stored_id(tenant: str, event_id: str) -> str:
    """Return the id under which a record is stored: 32 hex digits of a hash of tenant and id.

    >>> stored_id("default", "a1") == stored_id("default", "a1") != stored_id("other", "a1")
    True
    """
    return hashlib.blake2b(f"{tenant}\0{event_id}".encode(), digest_size=16).hexdigest()


def flatten(source: bytes) -> dict[str, object]:
    """Return a record as the API shows it: flat dotted keys, each label as ``labels.KEY``.

    >>> flatten(b'{"message": "hi", "labels": {"order": "17"}}')
    {'message': 'hi', 'labels.order': '17'}
    """
    record: dict[str, object] = msgspec.json.decode(source)
    labels = record.pop("labels", None)
    if isinstance(labels, dict):
        record.update((f"labels.{key}", value) for key, value in labels.items())
    return record
