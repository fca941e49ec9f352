"""Normaliser: one item in, one canonical, masked, fingerprinted entry out, or the reason why not.

What always holds:

- Every item is accepted or refused with a reason, alone; no item, however odd, raises.
- No string that a sender chose leaves here unmasked, except ids that are hex by form.
- An entry's time, id and bytes are final: a replay writes the same document.
- Work is bounded by an item's bytes: 1 MiB.

Not here: what keys and values mean (drafts.py), what a secret looks like (shippers/redact.py), what
a template is (fingerprint.py), durability (journal.py).
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from logsvc import fields, fingerprint, timestamps
from logsvc.drafts import END_OF_TIME_NS, MAX_RECORD_BYTES, USER_FIELDS, Draft, Odd, Repaired, TooLarge, read
from logsvc.records import Entry, Record, stored_id
from logsvc.timestamps import NS_PER_US
from shippers import redact

MAX_MESSAGE_BYTES = 32 * 1024
PIPELINE_VERSION = "1"
DROP_ACTION = "shipper.dropped"  # event.action of a record in which a shipper tells what it lost
OTHER_REASON = "other"
MAX_DROP_COUNT = 10**9  # more in one report is a mistake or a lie

_DAY_US = 86_400 * timestamps.US_PER_S
_SEVERITY_LEVELS = tuple(fields.LEVELS)
_DROP_REASON = re.compile(r"[a-z_]{1,40}\Z")
_DROP_COUNT = re.compile(r"[0-9]{1,10}\Z")
_HEX = re.compile(r"[0-9a-f]+\Z")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_UUID7 = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?7[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}\Z")
_CROCKFORD = {char: value for value, char in enumerate("0123456789ABCDEFGHJKMNPQRSTVWXYZ")}
_OLDEST_ID_MS = 1_262_304_000_000  # 2010: before it, a number in an id is no time

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Item = Mapping[str, Any] | bytes | msgspec.Raw
"""A decoded object, or the JSON text of one."""


class ItemResult(msgspec.Struct, frozen=True, gc=False):
    """What became of one item.

    Attributes:
        id: Its ``event.id`` as stored; None if it was refused.
        reason: Why it was refused, for people; None if it was accepted.
        code: The reason's kind, for counters: not_json, not_object, too_large, too_deep.
    """

    id: str | None = None
    reason: str | None = None
    code: str | None = None

    @property
    def is_accepted(self) -> bool:
        return self.reason is None


@dataclass(slots=True)
class Tally:
    """What a slice of items added to the counters."""

    flagged: int = 0
    redactions: int = 0
    dropped_fields: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # records that shippers lost, by reason

    def add_drop_report(self, labels: Mapping[str, str]) -> None:
        """Count what a shipper's record says it dropped; a count that is none counts nothing."""
        count, reason = labels.get("count", ""), labels.get("reason", "")
        if _DROP_COUNT.match(count) and 0 < int(count) <= MAX_DROP_COUNT:
            self.dropped[reason if _DROP_REASON.match(reason) else OTHER_REASON] += int(count)

    def add(self, other: Tally) -> None:
        self.flagged += other.flagged
        self.redactions += other.redactions
        self.dropped_fields += other.dropped_fields
        self.dropped.update(other.dropped)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where items came from and when; the same for all of a call."""

    tenant: str
    source: str
    protocol: str
    key_id: str
    ingested_us: int


class Normaliser:
    """Turns items into entries; computation only, safe to call from several threads."""

    def __init__(self, user_key: bytes) -> None:
        self._user_key = user_key
        self._id_prefix = os.urandom(5).hex()
        self._ids = itertools.count()

    def normalise(self, items: Sequence[Item], origin: Origin) -> tuple[list[ItemResult], list[Entry], Tally]:
        """Return a result for each item, the entries of the accepted ones, and what to count."""
        results: list[ItemResult] = []
        entries: list[Entry] = []
        tally = Tally()
        constant = constants(origin)
        for item in items:
            outcome = self._entry(item, origin, constant, tally)
            if isinstance(outcome, ItemResult):
                results.append(outcome)
            else:
                entry, event_id = outcome
                entries.append(entry)
                results.append(ItemResult(event_id))
        return results, entries, tally

    def _entry(
        self, item: Item, origin: Origin, constant: dict[str, Any], tally: Tally
    ) -> tuple[Entry, str] | ItemResult:
        sent: Mapping[Any, Any]
        if isinstance(item, (bytes, msgspec.Raw)):
            decoded = decode_item(item)
            if isinstance(decoded, ItemResult):
                return decoded
            sent = decoded
        else:
            sent = item
        try:
            draft = read(sent, origin.ingested_us)
        except TooLarge as exc:
            return _too_large(exc.size)
        self.complete(draft, origin)
        set_template(draft, self.mask(draft, origin.tenant))
        entry, event_id = self.encode(draft, origin, constant)
        # Text was measured as it was sent: what masks and replaced bytes add never counts against the sender.
        if sent is item and len(entry.source) > MAX_RECORD_BYTES + 16_384:
            return _too_large(len(entry.source))
        if draft.conflicts:
            tally.flagged += 1
        tally.redactions += draft.secrets
        tally.dropped_fields += draft.dropped
        if draft.values.get("event_action") == DROP_ACTION:
            tally.add_drop_report(draft.labels)
        return entry, event_id

    def complete(self, draft: Draft, origin: Origin) -> None:
        """Set what every record has: message, level, time, service, environment, kind."""
        values = draft.values
        if "message" not in values:
            values["message"] = values.get("error_message") or values.get("event_action") or ""
        if "log_level" not in values:
            severity = values.setdefault("event_severity", 9)
            values["log_level"] = _SEVERITY_LEVELS[(severity - 1) // 4]
        if draft.user:
            self._hash_user(draft, origin.tenant)
        draft.time = self._fix_time(draft, origin.ingested_us)
        values.setdefault("service_name", "unknown_service")
        values.setdefault("service_environment", "unknown")
        values.setdefault("event_kind", "event")

    def encode(self, draft: Draft, origin: Origin, constant: dict[str, Any]) -> tuple[Entry, str]:
        """Return the entry of a draft that is complete, masked and has its template; and its ``event.id``."""
        values = draft.values
        assert draft.time is not None  # complete() has set it
        time_us = draft.time // NS_PER_US
        event_id: str | None = values.get("event_id")
        has_client_id = event_id is not None
        if event_id is None:
            event_id = f"{origin.ingested_us:014x}{self._id_prefix}{next(self._ids) & 0xFFFFFFFF:08x}"
            values["event_id"] = event_id
        service = values["event_dataset"] = values["data_stream_dataset"] = values["service_name"]
        values["ingest_late_ms"] = (origin.ingested_us - time_us) // 1_000
        if draft.labels:
            values["labels"] = draft.labels
        if draft.conflicts:
            values["ingest_conflicts"] = draft.conflicts
        if draft.dropped:
            values["ingest_dropped_fields"] = draft.dropped
        if draft.secrets or draft.shipped:
            values["ingest_redactions"] = draft.secrets + draft.shipped
        task = values.get("task_name")
        duration = values.get("event_duration")
        entry = Entry(
            origin.tenant,
            stored_id(origin.tenant, event_id),
            0,
            time_us,
            origin.ingested_us,
            f"task:{task}" if task else f"service:{service}",
            None if duration is None else math.floor(24 * math.log10(duration or 1)),
            has_client_id,
            _encode(Record(**values, **constant)),
        )
        return entry, event_id

    def _hash_user(self, draft: Draft, tenant: str) -> None:
        """Set ``user.hash`` from the most telling of the user's fields; none of them is stored."""
        if "user_hash" in draft.values:
            return
        raw = next(draft.user[name] for name in USER_FIELDS if name in draft.user)
        digest = hmac.new(self._user_key, f"{tenant}\0{raw}".encode("utf-8", "replace"), hashlib.sha256)
        draft.values["user_hash"] = digest.hexdigest()[:32]

    def _fix_time(self, draft: Draft, ingested_us: int) -> int:
        """Set ``@timestamp`` and return it in nanoseconds."""
        values = draft.values
        raw = values.get("timestamp")
        ns = draft.time
        if ns is not None:
            if 0 <= ns < END_OF_TIME_NS and ns <= (ingested_us + _DAY_US) * NS_PER_US:
                if not (type(raw) is str and _is_canonical(raw)):
                    values["timestamp"] = timestamps.format_ns(ns)
                return ns
            draft.set_aside("@timestamp", raw)
        elif raw is None:
            from_id = _time_of_id(values.get("event_id"), ingested_us)
            if from_id is not None:
                values["timestamp"] = timestamps.format_us(from_id)
                return from_id * NS_PER_US
        values["timestamp"] = timestamps.format_us(ingested_us)
        return ingested_us * NS_PER_US

    def mask(self, draft: Draft, tenant: str) -> tuple[str, str] | None:
        """Mask all that the sender wrote and cut the message to its bound.

        Returns:
            The message's template, if it came from the cache.
        """
        values = draft.values
        message: str = values["message"]
        template = None
        if len(message) <= _MAX_SHAPE_CHARS:
            is_suspect, *judged = _judge(fingerprint.shape(message))
            template = (judged[0], judged[1])
        else:
            is_suspect = True
        if is_suspect:
            message, count = redact.mask(message)
            if count:
                template = None
                draft.secrets += count
                values["message"] = message
        if draft.texts and redact.might_hold("\n".join(draft.texts)):
            self._mask_each(draft, tenant)
        if len(message) > MAX_MESSAGE_BYTES // 4:
            whole = message.encode()
            if len(whole) > MAX_MESSAGE_BYTES:
                values["message"] = whole[:MAX_MESSAGE_BYTES].decode(errors="ignore")
                draft.originals.insert(0, message[len(values["message"]) :])
        if draft.originals:
            if "event_original" in values:
                draft.originals.append(values["event_original"])
            values["event_original"] = "\n".join(draft.originals)
        return template

    def _mask_each(self, draft: Draft, tenant: str) -> None:
        values, labels = draft.values, draft.labels
        for attribute, value in values.items():
            if type(value) is str and attribute not in _FORMED:
                if attribute in _HEX_IDS and _HEX.match(value):
                    continue
                masked, count = redact.mask(value)
                if count:
                    draft.secrets += count
                    if attribute == "event_id":
                        # Two ids must not become one by losing what tells them apart.
                        masked = self._hashed_id(tenant, value)
                    values[attribute] = masked
        if "tags" in values:
            pairs = [redact.mask(tag) for tag in values["tags"]]
            values["tags"] = [tag for tag, _ in pairs]
            draft.secrets += sum(count for _, count in pairs)
        for key, value in labels.items():
            masked, count = redact.mask(value)
            if count:
                draft.secrets += count
                labels[key] = masked

    def _hashed_id(self, tenant: str, event_id: str) -> str:
        digest = hmac.new(self._user_key, f"{tenant}\0{event_id}".encode("utf-8", "replace"), hashlib.sha256)
        return f"hash:{digest.hexdigest()[:32]}"


@lru_cache(maxsize=16_384)
def _judge(shape: bytes) -> tuple[bool, str, str]:
    """Return of all messages of a shape whether they may hold secrets, and their template if not."""
    text = shape.decode("utf-8", "replace")
    return redact.might_hold(text), *fingerprint.fingerprint(text)


_MAX_SHAPE_CHARS = 1024  # longer messages rarely share a shape; they are judged each by itself


# Written in a form of their own, so nothing personal can be in them.
_FORMED = frozenset(
    {
        "timestamp",
        "event_created",
        "event_kind",
        "event_outcome",
        "log_level",
        "message",  # masked by itself
        "task_status",
        "task_scheduled_at",
        "task_started_at",
        "task_deadline",
    }
)
_HEX_IDS = frozenset({"trace_id", "span_id", "transaction_id", "user_hash"})


def constants(origin: Origin) -> dict[str, Any]:
    """Return the attributes that all records of a call share."""
    return {
        "event_ingested": timestamps.format_us(origin.ingested_us),
        "data_stream_type": "logs",
        "data_stream_namespace": origin.tenant,
        "ingest_source": origin.source,
        "ingest_protocol": origin.protocol,
        "ingest_key_id": origin.key_id,
        "ingest_pipeline_version": PIPELINE_VERSION,
        "ecs_version": fields.ECS_VERSION,
        "schema_version": fields.SCHEMA_VERSION,
    }


def _is_canonical(text: str) -> bool:
    """Tell whether a time that has been parsed is written as we would write it."""
    size = len(text)
    is_ours = size == 20 or (size in (24, 27, 30) and text[19] == ".")
    return is_ours and text[-1] == "Z" and text[4:17:3] == "--T::" and text[17:19] != "60"


def _time_of_id(event_id: str | None, now_us: int) -> int | None:
    """Return the microseconds since 1970 that a ULID or UUIDv7 carries; None for any other id."""
    if event_id is None:
        return None
    if len(event_id) == 26 and _ULID.match(event_id.upper()):
        ms = 0
        for char in event_id[:10].upper():
            ms = ms * 32 + _CROCKFORD[char]
    elif len(event_id) in (32, 36) and _UUID7.match(event_id.lower()):
        ms = int(event_id.replace("-", "")[:12], 16)
    else:
        return None
    return ms * 1_000 if _OLDEST_ID_MS <= ms <= (now_us + _DAY_US) // 1_000 else None


def set_template(draft: Draft, template: tuple[str, str] | None) -> None:
    """Set ``log.template.*`` and ``error.id``, from what is masked already."""
    values = draft.values
    message: str = values["message"]
    error_type, stack = values.get("error_type"), values.get("error_stack_trace", "")
    if error_type is None and not stack:
        template = template or fingerprint.fingerprint(message)
    else:
        error_message = values.get("error_message", "")
        template = fingerprint.exception_fingerprint(message, error_type or "error", error_message)
        # Without a stack of its own the message may hold one, printed.
        values["error_id"] = fingerprint.error_fingerprint(error_type or "error", stack or message, error_message)
    values["log_template_id"], values["log_template_text"] = template


# ------------------------------------------------------------------------------------------ decoding


def decode_item(text: bytes | msgspec.Raw) -> dict[str, Any] | ItemResult:
    """Return the object that a JSON text holds, or why it cannot be used.

    Strict JSON is read fast. What is nearly JSON (invalid UTF-8, NaN, raw control characters, lone
    surrogates, numbers out of range) is read a second time, leniently, and its fields get flagged.
    """
    if len(raw := bytes(text)) > MAX_RECORD_BYTES:
        return _too_large(len(raw))
    try:
        value = _decode(raw)
    except RecursionError:
        return _TOO_DEEP
    except (msgspec.MsgspecError, UnicodeDecodeError):
        try:
            value = _LENIENT.decode(raw.decode("utf-8", "replace").lstrip("\ufeff"))
        except RecursionError:
            return _TOO_DEEP
        except json.JSONDecodeError as exc:
            return ItemResult(
                reason=f"not JSON: {exc.msg} at column {exc.pos}; expected one JSON object", code="not_json"
            )
    if type(value) is dict:
        return value
    kind = {list: "an array", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
    return ItemResult(reason=f"expected a JSON object, got {kind}", code="not_object")


def _too_large(size: int) -> ItemResult:
    return ItemResult(
        reason=f"the record has {size} bytes; at most {MAX_RECORD_BYTES} are taken, so shorten or split it",
        code="too_large",
    )


_TOO_DEEP = ItemResult(reason="the record is nested too deeply; send it flatter", code="too_deep")


def _lenient_object(value: dict[str, Any]) -> dict[str, Any]:
    for key, leaf in value.items():
        if type(leaf) is str and "\ufffd" in leaf:
            value[key] = Repaired(leaf)
    return value


def _lenient_int(text: str) -> int | str:
    return int(text) if len(text) < 40 else Odd(text)


def _lenient_float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else Odd(text)


_LENIENT = json.JSONDecoder(
    object_hook=_lenient_object,
    parse_constant=Odd,
    parse_int=_lenient_int,
    parse_float=_lenient_float,
    strict=False,
)
