"""Ingest: the one ``accept`` in which every protocol ends.

A sender's object becomes a canonical, masked, fingerprinted record (RECORD.md's rules, fields.py's
table) whose time, id and bytes are fixed here for good; then the journal makes it durable; only
then is the sender answered.

What always holds:

- Every item is accepted or refused with a reason, alone; no item, however odd, harms a neighbour
  or raises. What is wrong with an accepted one is kept: the original text in ``labels`` under the
  field's name, the field in ``ingest.conflicts``.
- No string that a sender chose leaves this module unmasked, except ids that are hex by form.
- ``event.ingested`` never falls, and every record below ``settled_before_us()`` is in the journal
  or was refused.
- Work is bounded by an item's bytes: 1 MiB, 64 labels, 16 levels.

Not here: how bytes become items (protocols/), durability (journal.py), what a secret looks like
(shippers/redact.py), what a template is (fingerprint.py).
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import math
import os
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from logsvc import fields, fingerprint, timestamps
from logsvc.errors import BadInput
from logsvc.records import Entry, Record, stored_id
from logsvc.timestamps import NS_PER_US, Clock
from shippers import redact

MAX_RECORD_BYTES = 1024 * 1024
MAX_MESSAGE_BYTES = 32 * 1024
MAX_LABELS = 64
MAX_LABEL_CHARS = 1024
MAX_LABEL_KEY_CHARS = 256
MAX_DEPTH = 16
MAX_TASK_NAME_CHARS = 200
MAX_CONFLICTS = 64
SLICE_ITEMS = 1_000
PIPELINE_VERSION = "1"

_DAY_US = 86_400 * timestamps.US_PER_S
_END_OF_TIME_NS = timestamps.parse_rfc3339("2262-01-01T00:00:00Z")
_INT64 = 2**63

Item = Mapping[str, Any] | bytes | msgspec.Raw
"""A decoded object, or the JSON text of one."""

# ------------------------------------------------------------------------------------------ results


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
class Counters:
    """What ingest has done since the start."""

    accepted: int = 0
    flagged: int = 0
    redactions: int = 0
    dropped_fields: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by ItemResult.code


class Appends(Protocol):
    """The journal as ingest sees it: durable when it returns, all or nothing."""

    async def append(self, entries: Sequence[Entry]) -> int:
        """Make entries durable, in order, and return the first one's sequence."""
        ...


Runs = Callable[..., Awaitable[Any]]
"""Runs a function off the event loop and awaits its result, as ``asyncio.to_thread`` does."""


# ------------------------------------------------------------------------------------------ levels

_LEVEL_WORDS: dict[str, tuple[str, int]] = {level: (level, number) for level, number in fields.LEVELS.items()}
for _name, _words in {
    "trace": "finest finer t",
    "debug": "verbose fine dbg d",
    "info": "information informational inf i log",
    "warn": "warning wrn w",
    "error": "err severe eror failure e",
    "fatal": "critical crit alert emerg emergency panic dpanic f c",
}.items():
    _LEVEL_WORDS |= dict.fromkeys(_words.split(), (_name, fields.LEVELS[_name]))
_LEVEL_WORDS |= {"success": ("info", 10), "notice": ("info", 10)}
# Loguru's and logging's numbers; each begins its level.
_PYTHON_NUMBERS = ((50, "fatal"), (40, "error"), (30, "warn"), (20, "info"), (10, "debug"), (1, "trace"))
_SEVERITY_LEVELS = tuple(fields.LEVELS)


@lru_cache(maxsize=1024)
def _level(text: str) -> tuple[str, int, str | None] | None:
    """Return level, severity and, if it tells more, the original of a level's text; None if unknown."""
    word = text.strip().lower()
    known = _LEVEL_WORDS.get(word)
    if known is None and word.isascii() and word.isdigit() and len(word) < 4:
        known = _numeric_level(int(word))
    if known is None and word[:-1] in fields.LEVELS and word[-1] in "234":  # OpenTelemetry's INFO2
        known = (word[:-1], fields.LEVELS[word[:-1]] + int(word[-1]) - 1)
    if known is None:
        return None
    level, severity = known
    return level, severity, None if text in (level, level.upper()) else text


def _numeric_level(number: float) -> tuple[str, int] | None:
    if number == 25:  # loguru's SUCCESS
        return "info", 10
    for limit, level in _PYTHON_NUMBERS:
        if number >= limit:
            return level, fields.LEVELS[level]
    return None


_STATUSES = {status: status for status in fields.TASK_STATUSES} | {
    "success": "succeeded",
    "ok": "succeeded",
    "successful": "succeeded",
    "completed": "succeeded",
    "failure": "failed",
    "error": "failed",
    "timeout": "timed_out",
    "timedout": "timed_out",
    "in_progress": "started",
    "running": "started",
    "skip": "skipped",
    "retry": "retrying",
    "pending": "queued",
    "canceled": "cancelled",
    "revoked": "cancelled",
}

# ------------------------------------------------------------------------------------------ text

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HEX = re.compile(r"[0-9a-f]+\Z")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_UUID7 = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?7[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}\Z")
_CROCKFORD = {char: value for value, char in enumerate("0123456789ABCDEFGHJKMNPQRSTVWXYZ")}
_OLDEST_ID_MS = 1_262_304_000_000  # 2010: before it, a number in an id is no time
_ERROR_LINE = re.compile(r"([A-Za-z_][\w.]{0,255})(?::[ \t]+(.*))?\Z", re.DOTALL)
_TRACEBACK = "Traceback (most recent call last):"

_encode = msgspec.json.Encoder(enc_hook=str).encode
_decode = msgspec.json.Decoder().decode


class _Odd(str):
    """Text that stands for a JSON value which is none: NaN, Infinity, a number out of range."""

    __slots__ = ()


class _Repaired(str):
    """Text that was not UTF-8 and had bytes replaced."""

    __slots__ = ()


class _Collision(Exception):
    """Two keys of one object mean one field; no error, it asks for the thorough way."""


def _clean(text: str) -> tuple[str, bool]:
    """Return ``text`` as NFC without NUL and lone surrogates, and whether anything had to be replaced."""
    replaced = False
    if "\0" in text:
        text, replaced = text.replace("\0", "\ufffd"), True
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text, replaced = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
        text = unicodedata.normalize("NFC", text)
    return str(text), replaced


def _text_of(value: object) -> str:
    """Return any value as text: as JSON where that has a form."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return "true" if value else "false"
    try:
        return _encode(value).decode()
    except (RecursionError, TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        return _written(value)


def _written(value: object) -> str:
    """Return a text even for what has no JSON form, bounded in time."""
    if isinstance(value, int):
        return hex(value)
    try:
        return json.dumps(value, default=str)
    except (RecursionError, TypeError, ValueError, OverflowError):
        return f"[{type(value).__name__}]"


@lru_cache(maxsize=8192)
def _label_key(key: str) -> tuple[str, bool, bool]:
    """Return a label's key as stored, whether its values are secret, and whether it had to be changed."""
    clean, _ = _clean(key.removeprefix("labels."))
    clean = _CONTROLS.sub("_", clean)
    clean = redact.mask(clean)[0][:MAX_LABEL_KEY_CHARS].strip() or "_"
    return clean, redact.is_secret_key(clean[-128:]), clean != key.removeprefix("labels.")


@lru_cache(maxsize=16_384)
def _judge(shape: bytes) -> tuple[bool, str, str]:
    """Return of all messages of a shape whether they may hold secrets, and their template if not."""
    text = shape.decode("utf-8", "replace")
    return redact.might_hold(text), *fingerprint.fingerprint(text)


_MAX_SHAPE_CHARS = 1024  # longer messages rarely share a shape; they are judged each by itself


# ------------------------------------------------------------------------------------------ drafts


class _Draft:
    """A record in the making, and what was wrong with it."""

    __slots__ = (
        "conflicts",
        "dropped",
        "exception",
        "labels",
        "originals",
        "secrets",
        "shipped",
        "texts",
        "time",
        "user",
        "values",
    )

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}  # Record's attributes
        self.labels: dict[str, str] = {}
        self.conflicts: list[str] = []
        self.texts: list[str] = []  # all the sender's strings, for one look whether any needs masking
        self.originals: list[str] = []  # for event.original
        self.user: dict[str, str] = {}
        self.exception: object = None
        self.time: int | None = None  # nanoseconds
        self.dropped = 0
        self.secrets = 0  # masked here
        self.shipped = 0  # masked by the shipper

    def flag(self, name: str) -> None:
        if name not in self.conflicts and len(self.conflicts) < MAX_CONFLICTS:
            self.conflicts.append(name)

    def set_aside(self, name: str, value: object) -> None:
        """Keep a value that its field cannot take: as a label under the field's name."""
        self.flag(name)
        if len(self.labels) >= MAX_LABELS and name not in self.labels:
            self.labels.popitem()
            self.dropped += 1
        self.label(name, value if type(value) is not dict else _text_of(value))

    def label(self, key: str, value: object) -> None:
        """Attach a value under a key; an object becomes several, with dots."""
        if value is None:
            return
        if type(value) is dict:
            self.nested(key, value)
            return
        if len(self.labels) >= MAX_LABELS:
            self.dropped += 1
            return
        if type(key) is not str:
            key = str(key)
        name, is_secret, is_changed = _label_key(key if len(key) < 512 else key[:512])
        text = value if type(value) is str else _text_of(value)
        if not text.isascii() or "\0" in text:
            text, is_replaced = _clean(text)
            if is_replaced:
                self.flag(f"labels.{name}")
        if is_changed or type(value) in (_Odd, _Repaired):
            self.flag(f"labels.{name}")
        if name in self.labels:
            if self.labels[name] != text:
                self.flag(f"labels.{name}")
                self.dropped += 1
            return
        if is_secret:
            text, count = redact.mask_value(name, text)
            self.secrets += count
        elif name in _URLS:
            text = text.partition("?")[0]
        if len(text) > MAX_LABEL_CHARS:
            # Masked before it is cut, so that the cut cannot hide half a secret from the pattern.
            text, count = redact.mask(text)
            self.secrets += count
            text = text[:MAX_LABEL_CHARS]
            self.flag(f"labels.{name}")
        self.texts.append(text)
        self.labels[name] = text

    def nested(self, prefix: str, value: Mapping[Any, Any]) -> None:
        """Read an object under ``prefix`` as if its keys had been written with dots."""
        for path, leaf in _leaves(prefix, value):
            found = _KEYS.get(path) if "." in path else None
            if found is None:
                self.label(path, leaf)
            elif leaf is not None:
                if found.attribute in self.values:
                    raise _Collision
                found.handler(self, found, leaf)

    def put(self, name: str, attribute: str, text: str) -> None:
        """Set a keyword."""
        if not text.isascii() or "\0" in text:
            text, replaced = _clean(text)
            if replaced:
                self.flag(name)
        if len(text) > fields.MAX_TOKEN_CHARS:
            text, count = redact.mask(text)
            self.secrets += count
            self.originals.append(f"{name}: {text}")
            text = text[: fields.MAX_TOKEN_CHARS]
            self.flag(name)
        if text:
            self.values[attribute] = text
            self.texts.append(text)


def _leaves(prefix: str, value: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Return the values of a nested object with their dotted paths, in order."""
    found: list[tuple[str, Any]] = []
    # Depth first with a stack of its own: a sender's nesting never becomes ours.
    stack = [(prefix, iter(value.items()), 1)]
    while stack:
        path, items, depth = stack[-1]
        for key, leaf in items:
            inner = f"{path}.{key}" if path else str(key)
            if type(leaf) is dict and leaf and depth < MAX_DEPTH:
                stack.append((inner, iter(leaf.items()), depth + 1))
                break
            # Too deep, or empty: kept as text, and the former flagged.
            found.append((inner, (_Odd(_text_of(leaf)) if leaf else None) if type(leaf) is dict else leaf))
        else:
            stack.pop()
    return found


class _Target(NamedTuple):
    """What a sender's key means.

    Attributes:
        handler: What reads the value.
        key: The key itself: a field's name, or another name of it.
        name: The field's name.
        attribute: Its attribute of ``Record``, or a name of its own for what is none.
    """

    handler: _Handler
    key: str
    name: str
    attribute: str


_Handler = Callable[[_Draft, _Target, Any], None]

# ---------------------------------------------------------------------------------- handlers of fields
# Each takes a draft, what the sender's key means, and a value that is not None.


def _keyword(draft: _Draft, target: _Target, value: Any) -> None:
    kind = type(value)
    if kind is dict:
        draft.nested(target.key, value)
    elif isinstance(value, str):
        if kind is _Odd:
            draft.set_aside(target.name, value)
        else:
            if kind is not str:
                draft.flag(target.name)
            draft.put(target.name, target.attribute, str(value))
    elif kind is int or kind is float or kind is bool:
        draft.put(target.name, target.attribute, _text_of(value))
    elif kind is list and len(value) == 1 and type(value[0]) is str:
        draft.put(target.name, target.attribute, value[0])  # ECS writes some keywords as lists
    elif value != []:
        draft.set_aside(target.name, value)


def _task_name(draft: _Draft, target: _Target, value: Any) -> None:
    if type(value) is str and len(value) > MAX_TASK_NAME_CHARS:
        value, count = redact.mask(_clean(value)[0])
        draft.secrets += count
        if len(value) > MAX_TASK_NAME_CHARS:
            draft.set_aside(target.name, value)
        value = value[:MAX_TASK_NAME_CHARS]
    _keyword(draft, target, value)


def _text(draft: _Draft, target: _Target, value: Any) -> None:
    if isinstance(value, str):
        text, replaced = (value, False) if value.isascii() and "\0" not in value else _clean(value)
        if replaced or type(value) is not str:
            draft.flag(target.name)
            text = str(text)
    else:
        # Nothing is lost: any value has a text.
        text = _clean(_text_of(value))[0]
        if isinstance(value, (dict, list)):
            draft.flag(target.name)
    draft.values[target.attribute] = text
    draft.texts.append(text)


def _message(draft: _Draft, target: _Target, value: Any) -> None:
    _text(draft, target, value)
    draft.texts.pop()  # looked at by itself, by its shape


def _event_id(draft: _Draft, target: _Target, value: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_LABEL_CHARS:
        # Cut, two ids could become one.
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        draft.set_aside(target.name, value)
        value = f"hash:{digest}"
    _keyword(draft, target, value)


def _long(draft: _Draft, target: _Target, value: Any) -> None:
    number = _integer(value)
    low, high = _RANGES.get(target.name, (-_INT64, _INT64 - 1))
    if number is None or not low <= number <= high:
        if type(value) is dict:
            draft.nested(target.key, value)
        else:
            draft.set_aside(target.name, value)
    else:
        draft.values[target.attribute] = number


_RANGES = {
    "event.severity": (1, 24),
    "task.attempt": (1, 32_767),
    "task.max_attempts": (1, 32_767),
    "event.duration": (0, _INT64 - 1),
    "process.pid": (0, _INT64 - 1),
    "log.offset": (0, _INT64 - 1),
    "log.origin.file.line": (0, _INT64 - 1),
}


def _integer(value: Any) -> int | None:
    """Return the integer that a number or its text is; None if it is none."""
    kind = type(value)
    if kind is int:
        return cast(int, value)
    if kind is float:
        return int(value) if value.is_integer() else None
    if kind is str:
        text = value.strip()
        if text.removeprefix("-").isdigit() and text.isascii() and len(text) < 20:
            return int(text)
    return None


def _timestamp(draft: _Draft, target: _Target, value: Any) -> None:
    draft.values[target.attribute] = ""
    try:
        draft.time = timestamps.parse_timestamp(value)
    except BadInput:
        draft.set_aside(target.name, value)
        return
    draft.values[target.attribute] = value


def _date(draft: _Draft, target: _Target, value: Any) -> None:
    try:
        ns = timestamps.parse_timestamp(value)
    except BadInput:
        draft.set_aside(target.name, value)
        return
    if 0 <= ns < _END_OF_TIME_NS:
        draft.values[target.attribute] = timestamps.format_ns(ns)
    else:
        draft.set_aside(target.name, value)


def _log_level(draft: _Draft, target: _Target, value: Any) -> None:
    kind = type(value)
    if kind is dict:
        # loguru writes {"name": …, "no": …}
        value = value.get("name") or value.get("no")
        kind = type(value)
    known = None
    if kind is str:
        known = _level(value) if len(value) <= 32 else None
    elif kind is int or kind is float:
        numeric = _numeric_level(value)
        known = (*numeric, str(value)) if numeric else None
    if known is None:
        if value == "" or value is None:
            return
        draft.put("log.level_original", "log_level_original", _clean(_text_of(value))[0][:MAX_LABEL_CHARS])
        draft.flag(target.name)
        return
    level, severity, original = known
    draft.values[target.attribute] = level
    draft.values.setdefault("event_severity", severity)
    if original is not None:
        draft.values.setdefault("log_level_original", original)


def _severity(draft: _Draft, target: _Target, value: Any) -> None:
    number = _integer(value)
    if number == 0 and type(value) is int:
        return  # OpenTelemetry's "unspecified"
    draft.values.pop(target.attribute, None)  # a level's number gives way to the sender's own
    _long(draft, target, value)


def _duration(scale: int) -> _Handler:
    def handle(draft: _Draft, target: _Target, value: Any) -> None:
        kind = type(value)
        number: float | None = value if kind is float or kind is int else None
        if kind is str and len(value) < 40:
            try:
                number = float(value)
            except ValueError:
                number = None
        if number is None or (kind is not int and not math.isfinite(number)) or not 0 <= number < _INT64 / scale:
            draft.set_aside(target.name, value)
        else:
            draft.values[target.attribute] = round(number * scale)

    return handle


def _hex_id(digits: int) -> _Handler:
    def handle(draft: _Draft, target: _Target, value: Any) -> None:
        if type(value) is str:
            text = value.lower()
            if len(text) == 2 * digits + 4 and "-" in text:
                text = text.replace("-", "")
            if _HEX.match(text) and len(text) <= 64:
                # Other lengths than OpenTelemetry's are an older tracer's, and serve as well.
                if text.strip("0"):
                    draft.values[target.attribute] = text
                return
            if not text:
                return
        _keyword(draft, target, value)

    return handle


def _status(draft: _Draft, target: _Target, value: Any) -> None:
    status = _STATUSES.get(value.strip().lower().replace("-", "_")) if type(value) is str else None
    if status is None:
        draft.set_aside(target.name, value)
    else:
        draft.values[target.attribute] = status


def _enumeration(allowed: frozenset[str]) -> _Handler:
    def handle(draft: _Draft, target: _Target, value: Any) -> None:
        text = value.strip().lower() if type(value) is str else None
        if text in allowed:
            draft.values[target.attribute] = text
        elif value != "":
            draft.set_aside(target.name, value)

    return handle


def _tags(draft: _Draft, target: _Target, value: Any) -> None:
    tags = [value] if isinstance(value, str) else value
    if not isinstance(tags, (list, tuple)):
        draft.set_aside(target.name, value)
        return
    kept: list[str] = []
    for tag in tags:
        if len(kept) == MAX_LABELS:
            draft.dropped += len(tags) - MAX_LABELS
            draft.flag(target.name)
            break
        text, _ = _clean(_text_of(tag)[:MAX_LABEL_CHARS])
        if text:
            kept.append(text)
    draft.values[target.attribute] = kept
    draft.texts += kept


def _labels(draft: _Draft, target: _Target, value: Any) -> None:
    if type(value) is not dict:
        draft.set_aside(target.name, value)
        return
    for path, leaf in _leaves("", value):
        draft.label(path, leaf)


def _url_path(draft: _Draft, target: _Target, value: Any) -> None:
    if type(value) is str:
        value = value.partition("?")[0].partition("#")[0]
    _keyword(draft, target, value)


def _as_label(draft: _Draft, target: _Target, value: Any) -> None:
    draft.label(target.name, value)


def _url_query(draft: _Draft, _target: _Target, _value: Any) -> None:
    draft.dropped += 1  # never stored: queries are where secrets and people are


def _user(draft: _Draft, target: _Target, value: Any) -> None:
    if isinstance(value, (dict, list)):
        draft.dropped += 1
    elif value != "":
        draft.user.setdefault(target.name, _clean(_text_of(value))[0])


def _exception(draft: _Draft, _target: _Target, value: Any) -> None:
    draft.exception = value


def _redactions(draft: _Draft, _target: _Target, value: Any) -> None:
    number = _integer(value)
    if number is not None and 0 <= number < 1_000_000:
        draft.shipped += number


def _ignored(_draft: _Draft, _target: _Target, _value: Any) -> None:
    """Leave out what only the service sets."""


_URLS = frozenset({"url", "url.full", "url.original", "http.url", "http.target", "request.url"})
_USER_FIELDS = ("user.id", "user.email", "user.name", "user.full_name")
_SERVER_FIELDS = frozenset(
    {
        "event.ingested",
        "data_stream.type",
        "data_stream.dataset",
        "data_stream.namespace",
        "log.template.id",
        "log.template.text",
        "error.id",
        "ingest.source",
        "ingest.protocol",
        "ingest.key_id",
        "ingest.conflicts",
        "ingest.dropped_fields",
        "ingest.pipeline_version",
        "ingest.late_ms",
        "ecs.version",
        "schema.version",
    }
)

_BY_TYPE: dict[fields.FieldType, _Handler] = {
    fields.FieldType.KEYWORD: _keyword,
    fields.FieldType.KEYWORD_TEXT: _keyword,
    fields.FieldType.TEXT: _text,
    fields.FieldType.LONG: _long,
    fields.FieldType.DATE: _date,
    fields.FieldType.STORED: _text,
    fields.FieldType.LABELS: _labels,
}
_BY_NAME: dict[str, _Handler] = {
    "@timestamp": _timestamp,
    "event.duration": _duration(1),
    "event.severity": _severity,
    "log.level": _log_level,
    "trace.id": _hex_id(16),
    "span.id": _hex_id(8),
    "transaction.id": _hex_id(8),
    "task.name": _task_name,
    "task.status": _status,
    "url.path": _url_path,
    "tags": _tags,
    "message": _message,
    "event.id": _event_id,
    "ingest.redactions": _redactions,
}


def _table() -> dict[str, _Target]:
    """Return what each key of a sender means."""
    attributes = dict(zip(Record.__struct_encode_fields__, Record.__struct_fields__, strict=True))
    table: dict[str, _Target] = {}
    for name, spec in fields.FIELDS.items():
        handler = _BY_NAME.get(name) or (_enumeration(frozenset(spec.values)) if spec.values else _BY_TYPE[spec.type])
        if name in _SERVER_FIELDS:
            handler = _ignored
        for key in (name, *spec.aliases):
            table[key] = _Target(handler, key, name, attributes[name])
    # These find what the service sets; a sender's key of that name is a label.
    for key in ("template", "fingerprint", "ingested"):
        del table[key]
    others: dict[str, tuple[_Handler, str, str]] = {
        "duration_ms": (_duration(1_000_000), "event.duration", "event_duration"),
        "duration_s": (_duration(1_000_000_000), "event.duration", "event_duration"),
        "exception": (_exception, "error", "exception"),
        "event.dataset": (_as_label, "event.dataset", "sent dataset"),
        "url.query": (_url_query, "url.query", "url query"),
        **{name: (_user, name, name) for name in _USER_FIELDS},
    }
    return table | {key: _Target(handler, key, name, attribute) for key, (handler, name, attribute) in others.items()}


_KEYS = _table()


# ------------------------------------------------------------------------------------------ ingest


class Ingest:
    """Normalises, masks and fingerprints what senders send, and has it made durable.

    Args:
        journal: Where entries become durable.
        clock: Gives ``event.ingested``; must never go back (``timestamps.MonotonicClock``).
        run: Runs CPU work off the event loop, such as ``asyncio.to_thread``.
        user_key: Secret with which users' ids are hashed; the same on every node.
        counters: What is counted; a new one if left out.
    """

    def __init__(
        self,
        journal: Appends,
        *,
        clock: Clock,
        run: Runs,
        user_key: bytes,
        counters: Counters | None = None,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._run = run
        self._normaliser = Normaliser(user_key)
        self.counters = counters or Counters()
        self._in_flight: dict[int, int] = {}  # call → its event.ingested
        self._calls = itertools.count()
        self._lock = threading.Lock()

    async def accept(
        self, tenant: str, items: Sequence[Item], *, source: str, protocol: str, key_id: str
    ) -> list[ItemResult]:
        """Make items durable and return what became of each, in their order.

        All accepted items of a call are in the journal, or, if this raises, none is.

        Args:
            tenant: Whose they are.
            items: Decoded objects, or the JSON text of one each.
            source: Address or name of the sender.
            protocol: What it came by: native, elasticsearch, otlp, …
            key_id: Id of the key it came with; never the key.

        Raises:
            JournalFull: If nothing could be kept; the sender shall send it again.
        """
        with self._lock:
            # Stamped and registered in one step, so that settled_before_us() never overtakes it.
            ingested_us = self._clock()
            call = next(self._calls)
            self._in_flight[call] = ingested_us
        try:
            origin = Origin(tenant, source, protocol, key_id, ingested_us)
            results: list[ItemResult] = []
            entries: list[Entry] = []
            tally = Tally()
            if len(items) <= 8 and all(type(item) is bytes and len(item) < 4_096 for item in items):
                # A thread's hand-over costs more than this.
                parts = [self._normaliser.normalise(items, origin)]
            else:
                parts = []
                for start in range(0, len(items), SLICE_ITEMS):
                    part = await self._run(self._normaliser.normalise, items[start : start + SLICE_ITEMS], origin)
                    parts.append(part)
            for part_results, part_entries, part_tally in parts:
                results += part_results
                entries += part_entries
                tally.add(part_tally)
            if entries:
                await self._journal.append(entries)
            self._count(results, len(entries), tally)
            return results
        finally:
            with self._lock:
                del self._in_flight[call]

    def settled_before_us(self) -> int:
        """Return a time: every record with a lower ``event.ingested`` is in the journal, or was refused."""
        with self._lock:
            return min(self._in_flight.values()) if self._in_flight else self._clock()

    def _count(self, results: list[ItemResult], accepted: int, tally: Tally) -> None:
        counters = self.counters
        counters.accepted += accepted
        counters.flagged += tally.flagged
        counters.redactions += tally.redactions
        counters.dropped_fields += tally.dropped_fields
        if accepted < len(results):
            counters.refused.update(result.code for result in results if result.code is not None)


@dataclass(slots=True)
class Tally:
    """What a slice of items added to the counters."""

    flagged: int = 0
    redactions: int = 0
    dropped_fields: int = 0

    def add(self, other: Tally) -> None:
        self.flagged += other.flagged
        self.redactions += other.redactions
        self.dropped_fields += other.dropped_fields


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
        constant = {
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
            size = sum(len(value) for value in sent.values() if isinstance(value, str))
            if size > MAX_RECORD_BYTES:
                return _too_large(size)
        draft = _Draft()
        try:
            _read(draft, sent)
        except _Collision:
            draft = _Draft()
            _read_ranked(draft, sent)
        entry, event_id = self._finish(draft, origin, constant)
        if len(entry.source) > MAX_RECORD_BYTES + 16_384:  # what we add never counts against the sender
            return _too_large(len(entry.source))
        if draft.conflicts:
            tally.flagged += 1
        tally.redactions += draft.secrets
        tally.dropped_fields += draft.dropped
        return entry, event_id

    def _finish(self, draft: _Draft, origin: Origin, constant: dict[str, Any]) -> tuple[Entry, str]:
        values = draft.values
        if draft.exception is not None:
            _read_exception(draft)
        if "message" not in values:
            values["message"] = values.get("error_message") or values.get("event_action") or ""
        if "log_level" not in values:
            severity = values.get("event_severity", 9)
            values["log_level"] = _SEVERITY_LEVELS[(severity - 1) // 4]
            values.setdefault("event_severity", severity)
        if draft.user:
            self._hash_user(draft, origin.tenant)
        time_us = self._fix_time(draft, origin.ingested_us) // NS_PER_US
        _set_template(draft, self._mask(draft, origin.tenant))
        has_client_id = "event_id" in values
        if not has_client_id:
            values["event_id"] = f"{origin.ingested_us:014x}{self._id_prefix}{next(self._ids) & 0xFFFFFFFF:08x}"
        event_id: str = values["event_id"]
        service = values.setdefault("service_name", "unknown_service")
        values["event_dataset"] = values["data_stream_dataset"] = service
        values.setdefault("service_environment", "unknown")
        values.setdefault("event_kind", "event")
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

    def _hash_user(self, draft: _Draft, tenant: str) -> None:
        """Set ``user.hash`` from the most telling of the user's fields; none of them is stored."""
        if "user_hash" in draft.values:
            return
        raw = next(draft.user[name] for name in _USER_FIELDS if name in draft.user)
        digest = hmac.new(self._user_key, f"{tenant}\0{raw}".encode("utf-8", "replace"), hashlib.sha256)
        draft.values["user_hash"] = digest.hexdigest()[:32]

    def _fix_time(self, draft: _Draft, ingested_us: int) -> int:
        """Set ``@timestamp`` and return it in nanoseconds."""
        values = draft.values
        raw = values.get("timestamp")
        ns = draft.time
        if ns is not None:
            if 0 <= ns < _END_OF_TIME_NS and ns <= (ingested_us + _DAY_US) * NS_PER_US:
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

    def _mask(self, draft: _Draft, tenant: str) -> tuple[str, str] | None:
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

    def _mask_each(self, draft: _Draft, tenant: str) -> None:
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


def _is_canonical(text: str) -> bool:
    """Tell whether a time that has been parsed is written as we would write it."""
    size = len(text)
    if size == 20:
        is_ours = text[-1] == "Z" and text[10] == "T"
    else:
        is_ours = size in (24, 27, 30) and text[-1] == "Z" and text[10] == "T" and text[19] == "."
    return is_ours and text[17:19] != "60"


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


def _set_template(draft: _Draft, template: tuple[str, str] | None) -> None:
    """Set ``log.template.*`` and ``error.id``, from what is masked already."""
    values = draft.values
    message: str = values["message"]
    error_type, stack = values.get("error_type"), values.get("error_stack_trace", "")
    if error_type is None and not stack:
        template = template or fingerprint.fingerprint(message)
    else:
        error_message = values.get("error_message", "")
        template = fingerprint.exception_fingerprint(message, error_type or "error", error_message)
        values["error_id"] = fingerprint.error_fingerprint(error_type or "error", stack, error_message or message)
    values["log_template_id"], values["log_template_text"] = template


def _read(draft: _Draft, item: Mapping[Any, Any]) -> None:
    """Read a sender's object in its own order; most are read in this one pass.

    Raises:
        _Collision: If two of its keys mean one field.
    """
    values, texts = draft.values, draft.texts
    for key, value in item.items():
        found = _KEYS.get(key)
        if found is None:
            draft.label(key, value)
            continue
        if value is None:
            continue
        handler, _, _, attribute = found
        if attribute in values and attribute != "event_severity":
            raise _Collision
        if (
            handler is _keyword
            and type(value) is str
            and value.isascii()
            and 0 < len(value) <= fields.MAX_TOKEN_CHARS
            and "\0" not in value
        ):
            values[attribute] = value
            texts.append(value)
        else:
            handler(draft, found, value)


def _read_ranked(draft: _Draft, item: Mapping[Any, Any]) -> None:
    """Read an object in which two keys mean one field: the better name wins, the other becomes a label."""
    ranked: list[tuple[int, str, Any]] = []
    for key, value in item.items():
        key = str(key)
        found = _KEYS.get(key)
        if type(value) is dict and (found is None or found.handler not in _TAKE_OBJECTS):
            for path, leaf in _leaves(key, value):
                ranked.append((_rank(path, is_nested=True), path, leaf))
        else:
            ranked.append((_rank(key, is_nested=False), key, value))
    ranked.sort(key=lambda entry: entry[0])
    values = draft.values
    winners: dict[str, Any] = {}
    for _, key, value in ranked:
        found = _KEYS.get(key)
        if found is None:
            draft.label(key, value)
        elif value is not None:
            attribute = found.attribute
            if attribute in winners:
                if winners[attribute] != value:
                    draft.label(key, value if type(value) is not dict else _text_of(value))
                    draft.flag(found.name)
                continue
            found.handler(draft, found, value)
            if attribute in values:
                winners[attribute] = value


def _rank(key: str, *, is_nested: bool) -> int:
    """Who wins when two keys mean one field: the dotted ECS name, then the nested one, then any alias."""
    found = _KEYS.get(key)
    if found is None or key != found.name:
        return 2
    return 1 if is_nested else 0


def _read_exception(draft: _Draft) -> None:
    """Spread ``exception`` (a traceback, a line, or an object) over ``error.*``; what is set already stays."""
    value = draft.exception
    found: dict[str, object] = {}
    if type(value) is dict:
        for names, attribute in (
            (("type", "class", "name"), "error_type"),
            (("message", "value", "msg"), "error_message"),
            (("stacktrace", "stack_trace", "traceback", "stack"), "error_stack_trace"),
        ):
            found[attribute] = next((value[name] for name in names if isinstance(value.get(name), str)), None)
    elif isinstance(value, str):
        found = dict(_parsed_error(value))
    else:
        draft.label("exception", value)
        return
    for attribute, part in found.items():
        if isinstance(part, str) and part and attribute not in draft.values:
            target = _KEYS[_ATTRIBUTE_NAMES[attribute]]
            target.handler(draft, target, part)


def _parsed_error(text: str) -> dict[str, str]:
    """Return what a printed exception says: its stack, and from the last line its type and message."""
    found = {}
    last = text.rstrip()
    if _TRACEBACK in text:
        found["error_stack_trace"] = text
        # The last line that is not indented begins "Type: message"; the message may have more lines.
        lines = last.split("\n")
        start = max((i for i, line in enumerate(lines) if line.startswith("  File ")), default=0) + 1
        at = next((i for i in range(start, len(lines)) if lines[i][:1] not in (" ", "\t", "")), len(lines) - 1)
        last = "\n".join(lines[at:])
    elif "\n" in last:
        found["error_stack_trace"] = text
        last = last.partition("\n")[0]
    match = _ERROR_LINE.match(last)
    if match is not None:
        found["error_type"] = match.group(1)
        found["error_message"] = match.group(2) or ""
    else:
        found["error_message"] = last
    return found


_ATTRIBUTE_NAMES = dict(zip(Record.__struct_fields__, Record.__struct_encode_fields__, strict=True))
_TAKE_OBJECTS: frozenset[_Handler] = frozenset({_labels, _exception, _log_level, _text})
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
            value[key] = _Repaired(leaf)
    return value


def _lenient_int(text: str) -> int | str:
    return int(text) if len(text) < 40 else _Odd(text)


def _lenient_float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else _Odd(text)


_LENIENT = json.JSONDecoder(
    object_hook=_lenient_object,
    parse_constant=_Odd,
    parse_int=_lenient_int,
    parse_float=_lenient_float,
    strict=False,
)
