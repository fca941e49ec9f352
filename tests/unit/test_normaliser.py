"""Normalising: the rules of a record, one by one, and that no object whatsoever gets past them unmasked or raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logsvc import fields
from logsvc.normaliser import Item, ItemResult, Normaliser, Origin, decode_item
from logsvc.records import Entry, stored_id
from logsvc.timestamps import format_us

NOW_US = 1_764_000_000_000_000  # 2025-11-24T16:00:00Z
NOW = format_us(NOW_US)
ORIGIN = Origin("acme", "10.0.0.7", "native", "k1", NOW_US)
NORMALISER = Normaliser(b"user key of these tests")


def entry_of(item: Item) -> Entry:
    results, entries, _ = NORMALISER.normalise([item], ORIGIN)
    assert results[0].reason is None
    assert results[0].id is not None
    return entries[0]


def record_of(item: Item) -> dict[str, Any]:
    record = json.loads(entry_of(item).source)
    assert isinstance(record, dict)
    return record


def refusal_of(item: Item) -> ItemResult:
    results, entries, _ = NORMALISER.normalise([item], ORIGIN)
    assert entries == []
    assert results[0].reason
    return results[0]


def conflicts_of(item: Item) -> tuple[dict[str, str], list[str]]:
    record = record_of(item)
    return record.get("labels", {}), record.get("ingest.conflicts", [])


# ------------------------------------------------------------------------------------------ names


def test_a_record_of_short_names_becomes_one_of_ecs_names() -> None:
    record = record_of(
        {
            "ts": "2025-11-24T15:59:59.123456Z",
            "level": "INFO",
            "msg": "charged order 17",
            "logger": "billing",
            "service": "shop",
            "version": "1.4.2",
            "host": "h1",
            "env": "prod",
            "task": "billing.charge",
            "task_id": "run-1",
            "trace_id": "4BF92F3577B34DA6A3CE929D0E0E4736",
            "span_id": "00f067aa0ba902b7",
            "customer": "t-17",
            "duration_ms": 35.2,
            "region": "eu",
        }
    )
    assert record.pop("log.template.id").startswith("v1:")
    assert record.pop("event.id")
    assert record == {
        "@timestamp": "2025-11-24T15:59:59.123456Z",
        "event.ingested": NOW,
        "event.kind": "event",
        "event.dataset": "shop",
        "event.duration": 35_200_000,
        "event.severity": 9,
        "data_stream.type": "logs",
        "data_stream.dataset": "shop",
        "data_stream.namespace": "acme",
        "log.level": "info",
        "log.logger": "billing",
        "log.template.text": "charged order <num>",
        "message": "charged order 17",
        "service.name": "shop",
        "service.version": "1.4.2",
        "service.environment": "prod",
        "host.name": "h1",
        "trace.id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span.id": "00f067aa0ba902b7",
        "task.name": "billing.charge",
        "task.id": "run-1",
        "organization.id": "t-17",
        "labels": {"region": "eu"},
        "ingest.source": "10.0.0.7",
        "ingest.protocol": "native",
        "ingest.key_id": "k1",
        "ingest.pipeline_version": "1",
        "ingest.late_ms": 876,
        "ecs.version": fields.ECS_VERSION,
        "schema.version": fields.SCHEMA_VERSION,
    }


def test_an_empty_object_is_a_record_with_every_default() -> None:
    entry = entry_of({})
    record = json.loads(entry.source)
    assert record["@timestamp"] == NOW
    assert record["message"] == ""
    assert record["log.level"] == "info"
    assert record["service.name"] == "unknown_service"
    assert record["service.environment"] == "unknown"
    assert entry.unit == "service:unknown_service"
    assert entry.duration_bucket is None
    assert not entry.has_client_id


@pytest.mark.parametrize("alias", sorted(set(fields.ALIASES) - {"ingested", "template", "fingerprint"}))
def test_every_alias_sets_its_field(alias: str) -> None:
    value: object = "succeeded" if fields.ALIASES[alias] == "task.status" else "17"
    record = record_of({alias: value})
    name = fields.ALIASES[alias]
    assert name in record or name == "event.severity"
    assert alias not in record.get("labels", {})


def test_nested_and_dotted_names_mean_the_same() -> None:
    dotted = record_of({"event.id": "a", "error.type": "E", "log.level": "warn", "http.request.method": "GET"})
    nested = record_of(
        {"event": {"id": "a"}, "error": {"type": "E"}, "log": {"level": "warn"}, "http": {"request": {"method": "GET"}}}
    )
    assert dotted == nested


@pytest.mark.parametrize(
    ("item", "value", "label"),
    [
        ({"error": {"type": "nested"}, "error.type": "dotted"}, "dotted", {"error.type": "nested"}),
        ({"error.type": "dotted", "error": {"type": "nested"}}, "dotted", {"error.type": "nested"}),
        ({"exception.type": "alias", "error.type": "dotted"}, "dotted", {"exception.type": "alias"}),
        ({"exception.type": "alias", "error": {"type": "nested"}}, "nested", {"exception.type": "alias"}),
    ],
)
def test_of_two_keys_for_one_field_the_dotted_wins_and_the_other_is_a_label(
    item: dict[str, Any], value: str, label: dict[str, str]
) -> None:
    record = record_of(item)
    assert record["error.type"] == value
    assert record["labels"] == label
    assert record["ingest.conflicts"] == ["error.type"]


def test_two_keys_that_agree_are_no_conflict() -> None:
    assert conflicts_of({"message": "x", "msg": "x"}) == ({}, [])


def test_unknown_keys_become_labels_with_dots() -> None:
    assert conflicts_of({"a": {"b": {"c": 1}, "d": True}, "labels": {"e": "x"}, "labels.f": [1, "y"], "g": None}) == (
        {"a.b.c": "1", "a.d": "true", "e": "x", "f": '[1,"y"]'},
        [],
    )


@pytest.mark.parametrize(
    "name", ["event.ingested", "data_stream.namespace", "log.template.id", "error.id", "ingest.key_id"]
)
def test_what_only_the_service_sets_no_sender_can(name: str) -> None:
    record = record_of({name: "forged"})
    assert record.get(name) != "forged"
    assert "labels" not in record


# ------------------------------------------------------------------------------------------ levels


@pytest.mark.parametrize(
    ("level", "canonical", "severity", "original"),
    [
        ("INFO", "info", 9, None),
        ("info", "info", 9, None),
        ("Warning", "warn", 13, "Warning"),
        ("CRITICAL", "fatal", 21, "CRITICAL"),
        ("SUCCESS", "info", 10, "SUCCESS"),
        ("TRACE", "trace", 1, None),
        ("err", "error", 17, "err"),
        ("notice", "info", 10, "notice"),
        ("emerg", "fatal", 21, "emerg"),
        ("ERROR2", "error", 18, "ERROR2"),
        (10, "debug", 5, "10"),
        (40, "error", 17, "40"),
        ("50", "fatal", 21, "50"),
        (5, "trace", 1, "5"),
        (0, "fatal", 21, "0"),
        ("3", "error", 17, "3"),
        (4, "warn", 13, "4"),
        (6, "info", 9, "6"),
        (7.0, "debug", 5, "7.0"),
        ("<3>", "error", 17, "<3>"),
        ("[ERROR]", "error", 17, "[ERROR]"),
        (["error"], "error", 17, None),
        ({"name": "WARNING", "no": 30}, "warn", 13, "WARNING"),
    ],
)
def test_levels_are_read_as_senders_write_them(
    level: object, canonical: str, severity: int, original: str | None
) -> None:
    record = record_of({"level": level})
    assert (record["log.level"], record["event.severity"]) == (canonical, severity)
    assert record.get("log.level_original") == original
    assert "ingest.conflicts" not in record


def test_an_unknown_level_is_info_and_kept() -> None:
    record = record_of({"level": "loud"})
    assert (record["log.level"], record["log.level_original"]) == ("info", "loud")
    assert record["ingest.conflicts"] == ["log.level"]


def test_a_severity_number_gives_the_level_if_there_is_none() -> None:
    assert record_of({"severityNumber": 18})["log.level"] == "error"
    both = record_of({"severityNumber": 18, "level": "WARN"})
    assert (both["log.level"], both["event.severity"]) == ("warn", 18)
    assert conflicts_of({"severityNumber": 99}) == ({"event.severity": "99"}, ["event.severity"])


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("item", "name", "value"),
    [
        ({"pid": "123"}, "process.pid", 123),
        ({"pid": 123.0}, "process.pid", 123),
        ({"host": 17}, "host.name", "17"),
        ({"event.category": ["web"]}, "event.category", "web"),
        ({"duration_s": 1.5}, "event.duration", 1_500_000_000),
        ({"duration_ms": "35.2"}, "event.duration", 35_200_000),
        ({"event.duration": 7}, "event.duration", 7),
        ({"tags": "a"}, "tags", ["a"]),
        ({"tags": ["a", 1]}, "tags", ["a", "1"]),
        ({"task.status": "SUCCESS"}, "task.status", "succeeded"),
        ({"task.status": "timeout"}, "task.status", "timed_out"),
        ({"url.path": "/a/b?token=x#y"}, "url.path", "/a/b"),
        ({"task.scheduled_at": 1_764_000_000}, "task.scheduled_at", NOW),
        ({"msg": 17}, "message", "17"),
        ({"trace_id": "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"}, "trace.id", "4bf92f3577b34da6a3ce929d0e0e4736"),
    ],
)
def test_values_of_another_type_are_read_where_they_can_be(item: dict[str, Any], name: str, value: object) -> None:
    record = record_of(item)
    assert record[name] == value
    assert "ingest.conflicts" not in record


@pytest.mark.parametrize(
    ("item", "name", "text"),
    [
        ({"pid": "abc"}, "process.pid", "abc"),
        ({"pid": -1}, "process.pid", "-1"),
        ({"pid": 2**64}, "process.pid", str(2**64)),
        ({"pid": True}, "process.pid", "true"),
        ({"duration_ms": -1}, "event.duration", "-1"),
        ({"duration_ms": "fast"}, "event.duration", "fast"),
        ({"duration_s": 1e300}, "event.duration", "1e300"),
        ({"task.attempt": 0}, "task.attempt", "0"),
        ({"task.status": "dancing"}, "task.status", "dancing"),
        ({"event.outcome": "meh"}, "event.outcome", "meh"),
        ({"host": ["a", "b"]}, "host.name", '["a","b"]'),
        ({"tags": 17}, "tags", "17"),
        ({"labels": "x"}, "labels", "x"),
        ({"task.deadline": "tomorrow"}, "task.deadline", "tomorrow"),
        ({"@timestamp": "not-a-date"}, "@timestamp", "not-a-date"),
        ({"@timestamp": "2025-W60-1T15:00:00Z"}, "@timestamp", "2025-W60-1T15:00:00Z"),
        ({"@timestamp": "0001-01-01T00:00:00Z"}, "@timestamp", "0001-01-01T00:00:00Z"),
        ({"@timestamp": "1969-12-31T23:59:59Z"}, "@timestamp", "1969-12-31T23:59:59Z"),
        ({"@timestamp": "2262-01-01T00:00:00Z"}, "@timestamp", "2262-01-01T00:00:00Z"),
        ({"@timestamp": "9999-12-31T23:59:59Z"}, "@timestamp", "9999-12-31T23:59:59Z"),
        ({"@timestamp": "2025-11-25T16:00:01Z"}, "@timestamp", "2025-11-25T16:00:01Z"),
        ({"@timestamp": True}, "@timestamp", "true"),
        (b'{"duration_ms":NaN}', "event.duration", "NaN"),
        (b'{"pid":1e999}', "process.pid", "1e999"),
    ],
)
def test_a_value_that_does_not_fit_is_kept_as_a_label_and_flagged(item: Item, name: str, text: str) -> None:
    record = record_of(item)
    assert record["labels"] == {name: text}
    assert record["ingest.conflicts"] == [name]
    assert record.get(name) == {"@timestamp": NOW, "labels": {name: text}}.get(name)


def test_all_zero_ids_are_absent() -> None:
    record = record_of({"trace_id": "0" * 32, "span_id": "0" * 16})
    assert "trace.id" not in record
    assert "span.id" not in record
    assert "ingest.conflicts" not in record


def test_a_task_name_is_cut_at_200_characters() -> None:
    record = record_of({"task": "x" * 300})
    assert record["task.name"] == "x" * 200
    assert record["ingest.conflicts"] == ["task.name"]


def test_a_keyword_is_cut_at_8191_characters_and_kept_whole() -> None:
    record = record_of({"host": "h" * 70_000})
    assert record["host.name"] == "h" * 8_191
    assert record["event.original"] == "host.name: " + "h" * 70_000


def test_a_long_message_goes_on_in_event_original() -> None:
    message = "é" * 40_000
    record = record_of({"message": message})
    assert len(record["message"].encode()) <= 32 * 1024
    assert record["message"] + record["event.original"] == message


def test_labels_are_bounded_and_what_is_dropped_is_counted() -> None:
    results, entries, tally = NORMALISER.normalise([{f"k{i}": i for i in range(1_000)} | {"pid": "odd"}], ORIGIN)
    record = json.loads(entries[0].source)
    assert results[0].is_accepted
    assert len(record["labels"]) == 64
    assert record["labels"]["process.pid"] == "odd"  # what was set aside takes precedence
    assert record["ingest.dropped_fields"] == tally.dropped_fields == 937


def test_a_label_is_cut_at_1024_characters_and_flagged() -> None:
    labels, conflicts = conflicts_of({"note": "x" * 2_000})
    assert labels == {"note": "x" * 1_024}
    assert conflicts == ["labels.note"]


def test_text_is_nfc_without_nul_and_lone_surrogates() -> None:
    record = record_of(b'{"message":"cafe\\u0301","a\\u0000b\\nc":"x\\u0000y","host":"h\\ud800"}')
    assert record["message"] == "café"
    assert record["labels"] == {"a\ufffdb_c": "x\ufffdy"}
    assert record["host.name"] == "h\ufffd"
    assert record["ingest.conflicts"] == ["labels.a\ufffdb_c", "host.name"]


def test_what_is_deeper_than_16_levels_is_kept_as_text() -> None:
    deep: dict[str, Any] = {"end": 1}
    for _ in range(900):
        deep = {"n": deep}
    labels, conflicts = conflicts_of({"a": deep})
    (key,) = labels
    assert key.count(".") == 16
    assert conflicts == [f"labels.{key}"]


# ------------------------------------------------------------------------------------------ times and ids


@pytest.mark.parametrize(
    ("time", "stored"),
    [
        ("2025-11-24T15:00:00Z", "2025-11-24T15:00:00Z"),
        ("2025-11-24T15:00:00.123456789Z", "2025-11-24T15:00:00.123456789Z"),
        ("2025-11-24T16:00:00.5+01:00", "2025-11-24T15:00:00.500Z"),
        ("2025-11-24 15:00:00,25", "2025-11-24T15:00:00.250Z"),
        ("2025-11-24T14:59:60Z", "2025-11-24T15:00:00Z"),
        ("2025/11/24T15:00:00Z", "2025-11-24T15:00:00Z"),
        ("Mon, 24 Nov 2025 15:00:00 GMT", "2025-11-24T15:00:00Z"),
        (1_763_996_400, "2025-11-24T15:00:00Z"),
        (1_763_996_400_123, "2025-11-24T15:00:00.123Z"),
        ("1763996400", "2025-11-24T15:00:00Z"),
        ("2025-11-25T15:59:59Z", "2025-11-25T15:59:59Z"),
    ],
)
def test_event_time_is_stored_in_utc(time: object, stored: str) -> None:
    record = record_of({"time": time})
    assert record["@timestamp"] == stored
    assert "ingest.conflicts" not in record


@pytest.mark.parametrize(
    ("event_id", "time"),
    [
        ("01KATX2QG0ABCDEFGHJKMNPQRS", None),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "2016-07-30T23:54:10.259Z"),
        ("018bcfe5-6800-7abc-8def-0123456789ab", "2023-11-14T22:13:20Z"),
        ("018bcfe568007abc8def0123456789ab", "2023-11-14T22:13:20Z"),
        ("7ZZZZZZZZZTSV4RRFFQ69G5FAV", NOW),
        ("not-time-ordered", NOW),
    ],
)
def test_a_record_without_time_takes_it_from_a_time_ordered_id(event_id: str, time: str | None) -> None:
    record = record_of({"event.id": event_id})
    assert record["@timestamp"] == time or time is None
    assert "ingest.conflicts" not in record


def test_the_stored_id_is_of_the_tenant_and_the_senders_id() -> None:
    entry = entry_of({"event.id": "a1"})
    assert entry.id == stored_id("acme", "a1")
    assert entry.has_client_id


def test_ids_made_here_are_unique() -> None:
    _, entries, _ = NORMALISER.normalise([{}] * 1_000, ORIGIN)
    assert len({entry.id for entry in entries}) == 1_000


def test_two_long_or_personal_ids_never_become_one() -> None:
    items: list[Item] = [
        {"event.id": "x" * 9_000 + "1"},
        {"event.id": "x" * 9_000 + "2"},
        {"event.id": "ann@example.com"},
        {"event.id": "bob@example.com"},
    ]
    _, entries, _ = NORMALISER.normalise(items, ORIGIN)
    assert len({entry.id for entry in entries}) == 4
    assert b"@example" not in entries[2].source


def test_the_entry_says_unit_time_and_duration_bucket() -> None:
    entry = entry_of({"task": "billing.charge", "duration_s": 1, "@timestamp": "2025-11-24T15:00:00.123456789Z"})
    assert entry.unit == "task:billing.charge"
    assert entry.duration_bucket == 24 * 9
    assert entry.time_us == NOW_US - 3_600_000_000 + 123_456
    assert entry.ingested_us == NOW_US
    assert entry_of({"duration_ms": 0}).duration_bucket == 0


# ------------------------------------------------------------------------------------------ exceptions

TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/jobs.py", line 7, in run
    charge(order)
sqlite3.OperationalError: table execution_tasks has no column named ai_model"""


@pytest.mark.parametrize(
    "exception",
    [
        TRACEBACK,
        {
            "type": "sqlite3.OperationalError",
            "message": "table execution_tasks has no column named ai_model",
            "stacktrace": TRACEBACK,
        },
        {
            "class": "sqlite3.OperationalError",
            "value": "table execution_tasks has no column named ai_model",
            "traceback": TRACEBACK,
        },
    ],
)
def test_an_exception_becomes_the_error_fields(exception: object) -> None:
    record = record_of({"level": "ERROR", "message": "task failed", "exception": exception})
    assert record["error.type"] == "sqlite3.OperationalError"
    assert record["error.message"] == "table execution_tasks has no column named ai_model"
    assert record["error.stack_trace"] == TRACEBACK
    assert record["log.template.text"] == (
        "task failed: sqlite3.OperationalError: table execution_tasks has no column named ai_model"
    )
    assert record["error.id"].startswith("v1:")


def test_error_fields_of_the_sender_win_over_the_exception() -> None:
    record = record_of({"error.type": "Mine", "exception": TRACEBACK})
    assert record["error.type"] == "Mine"
    assert record["error.stack_trace"] == TRACEBACK


def test_without_a_message_the_error_or_the_action_speaks() -> None:
    assert record_of({"exception": "ValueError: bad"})["message"] == "bad"
    assert record_of({"event.action": "task.failed"})["message"] == "task.failed"


def test_a_traceback_printed_in_the_message_names_its_error() -> None:
    record = record_of({"message": f"task failed\n{TRACEBACK}"})
    assert record["error.type"] == "sqlite3.OperationalError"
    assert record["error.message"] == "table execution_tasks has no column named ai_model"
    assert "error.stack_trace" not in record
    printed = record["error.id"], record["log.template.id"]
    separate = record_of({"message": "task failed", "exception": TRACEBACK})
    assert printed == (separate["error.id"], separate["log.template.id"])


# ------------------------------------------------------------------------------------------ people and secrets


def test_users_are_stored_as_a_hash_only() -> None:
    entry = entry_of({"user.email": "ann@example.com", "user": {"id": 17, "name": "Ann Example"}})
    record = json.loads(entry.source)
    assert len(record["user.hash"]) == 32
    assert b"ann" not in entry.source.lower()
    assert record["user.hash"] == record_of({"user.id": "17"})["user.hash"]
    assert record["user.hash"] != record_of({"user.id": "18"})["user.hash"]
    other_key = Normaliser(b"another").normalise([{"user.id": "17"}], ORIGIN)[1][0]
    assert json.loads(other_key.source)["user.hash"] != record["user.hash"]


SECRETS = ("ann@example.com", "4111111111111111", "hunter2-s3cret")
SAYS = "mail ann@example.com card 4111111111111111 password=hunter2-s3cret"


@pytest.mark.parametrize(
    "name", sorted(set(fields.FIELDS) | set(fields.ALIASES) | {"exception", "note", "user.id", "url.query", "url.full"})
)
@pytest.mark.parametrize("shape", ["text", "list", "object", "long"])
def test_no_field_carries_a_secret_to_disk(name: str, shape: str) -> None:
    value: object = {
        "text": SAYS,
        "list": [SAYS, SAYS],
        "object": {"a": SAYS, SAYS: "b", "type": SAYS, "message": SAYS, "password": "hunter2-s3cret"},
        "long": "x " * 20_000 + SAYS,
    }[shape]
    entry = entry_of({name: value})
    for secret in SECRETS:
        assert secret.encode() not in entry.source
        assert secret not in entry.unit


def test_a_value_under_a_secret_key_is_masked_whole() -> None:
    record = record_of({"password": "plain words", "headers": {"Authorization": "abc", "X-Api-Key": 17}})
    assert set(record["labels"].values()) == {"[secret]"}
    assert record["ingest.redactions"] == 3


def test_what_the_shipper_masked_is_counted_too() -> None:
    assert record_of({"message": "mail ann@example.com", "ingest.redactions": 2})["ingest.redactions"] == 3


@pytest.mark.parametrize("key", ["tags", "level", "note"])
def test_a_secret_at_the_cut_of_a_short_value_is_masked_before_the_cut(key: str) -> None:
    stored = entry_of({key: "x " * 509 + "ann.other@example.org"}).source
    assert b"ann.other" not in stored
    assert b"[emai" in stored


def test_a_secret_at_the_cut_of_a_message_is_masked_before_the_cut() -> None:
    entry = entry_of({"message": "x" * (32 * 1024 - 5) + " password=hunter2-s3cret"})
    assert b"hunter2" not in entry.source


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"a":1', "not_json"),
        (b"plain text", "not_json"),
        (b"[1]", "not_object"),
        (b"17", "not_object"),
        (b'"x"', "not_object"),
        (b"null", "not_object"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b'{"a":"' + b"x" * (1024 * 1024) + b'"}', "too_large"),
        ({"message": "x" * (2 * 1024 * 1024)}, "too_large"),
        ({"error": {"message": "x" * (2 * 1024 * 1024)}}, "too_large"),
        (b"{" + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}", "too_large"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(item: Item, code: str) -> None:
    refusal = refusal_of(item)
    assert refusal.code == code
    assert not refusal.is_accepted


@pytest.mark.parametrize("unit", [b"pin=1 ", b"a@b.co ", "漢".encode(), b"\xff", b"\t", b'\\"'])
def test_a_record_within_its_bound_is_taken_however_long_masks_and_repairs_make_it(unit: bytes) -> None:
    room = 1024 * 1024 - len(b'{"message":""}')
    entry = entry_of(b'{"message":"' + unit * (room // len(unit)) + b'"}')
    assert len(entry.source) < 4 * 1024 * 1024


def test_a_refusal_never_repeats_what_was_sent() -> None:
    assert "hunter2" not in str(refusal_of(b'{"password": "hunter2'))


def test_the_neighbours_of_a_refused_item_are_accepted() -> None:
    results, entries, _ = NORMALISER.normalise([{"msg": "a"}, b"{", b'{"msg":"c"}'], ORIGIN)
    assert [result.is_accepted for result in results] == [True, False, True]
    assert len(entries) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":"\xff"}', "\ufffd"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":"\x01"}', "\x01"),
        (b'\xef\xbb\xbf{"a":"x"}', "x"),
        (b'{"a":' + b"9" * 5_000 + b"}", "9" * 1_024),
    ],
)
def test_what_is_nearly_json_is_kept(text: bytes, value: str) -> None:
    assert record_of(text)["labels"]["a"] == value


def test_fields_that_were_not_utf_8_are_flagged() -> None:
    assert record_of(b'{"message":"caf\xe9","host":"h"}')["ingest.conflicts"] == ["message"]


# ------------------------------------------------------------------------------------------ anything at all

_KEYS = (
    st.sampled_from(
        [*fields.FIELDS, *fields.ALIASES, "exception", "user", "user.id", "error", "log", "labels.x", "url"]
    )
    | st.text(max_size=20)
    | st.just("password")
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["2025-11-24T15:00:00Z", "ERROR", "ok", "-1", SAYS, "\ud800", "\0"])
)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
)
_OBJECTS = st.dictionaries(_KEYS, _JSON, max_size=8)


def _check(item: Item) -> None:
    results, entries, _ = NORMALISER.normalise([item], ORIGIN)
    assert len(results) == 1
    assert results[0].is_accepted == (len(entries) == 1)
    for entry in entries:
        record = json.loads(entry.source)
        assert set(record) <= set(fields.FIELDS)
        assert record["event.id"] == results[0].id
        assert len(record.get("labels", {})) <= 64
        assert all(isinstance(value, str) and len(value) <= 1_024 for value in record.get("labels", {}).values())
        assert 0 <= entry.time_us < NOW_US + 86_400_000_000 + 1
        assert record["log.level"] in fields.LEVELS
        for secret in SECRETS[:2]:
            assert secret.encode() not in entry.source


@given(_OBJECTS)
@example({"level": 0, "severityNumber": []})
def test_any_object_is_accepted_or_refused(item: dict[str, Any]) -> None:
    _check(item)


@given(_OBJECTS)
def test_any_object_is_read_from_json_as_from_memory(item: dict[str, Any]) -> None:
    _check(json.dumps(item).encode())


@given(st.binary(max_size=60) | _OBJECTS.map(lambda item: json.dumps(item).encode()[:-1]))
def test_any_bytes_are_an_object_or_a_refusal(text: bytes) -> None:
    decoded = decode_item(text)
    assert isinstance(decoded, dict) or decoded.reason
    _check(text)


@given(_OBJECTS)
def test_normalising_is_a_function_of_the_item_and_its_origin(item: dict[str, Any]) -> None:
    item["event.id"] = "fixed"
    first, second = (NORMALISER.normalise([dict(item)], ORIGIN)[1] for _ in range(2))
    assert first == second
