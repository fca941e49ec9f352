"""Drafts: what a sender's object says, read field by field into the names and types of a record.

A sender writes nested or dotted keys, ECS names, OpenTelemetry's or the short ones, numbers as text
and text as numbers. All of that ends here; what a field cannot take is kept as a label under the
field's name and the field is flagged. The table of keys is made from fields.py.

What always holds: any object is read, in time proportional to it; recursion never follows a
sender's nesting; at most 64 labels and 16 levels are kept, the rest is counted.

Not here: masking beyond what must precede a cut, times and ids, templates (normaliser.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgspec

from logsvc import fields, timestamps
from logsvc.errors import BadInput
from logsvc.records import Record
from shippers import redact

MAX_RECORD_BYTES = 1024 * 1024
MAX_LABELS = 64
MAX_LABEL_CHARS = 1024
MAX_LABEL_KEY_CHARS = 256
MAX_DEPTH = 16
MAX_TASK_NAME_CHARS = 200
MAX_CONFLICTS = 64
END_OF_TIME_NS = timestamps.parse_rfc3339("2262-01-01T00:00:00Z")
"""Times from here on are not believed, nor are those before 1970."""

_INT64 = 2**63

# ------------------------------------------------------------------------------------------ levels

_LEVEL_WORDS: dict[str, tuple[str, int]] = {level: (level, number) for level, number in fields.LEVELS.items()}
for _name, _words in {
    "trace": "finest finer silly t",
    "debug": "verbose fine config dbg debu debug1 debug5 d",
    "info": "information informational inf i log note http",
    "warn": "warning wrn w",
    "error": "err severe eror erro failure e",
    "fatal": "critical crit alert emerg emergency panic dpanic f c",
}.items():
    _LEVEL_WORDS |= dict.fromkeys(_words.split(), (_name, fields.LEVELS[_name]))
_LEVEL_WORDS |= {"success": ("info", 10), "notice": ("info", 10)}
# Below ten stand syslog's numbers (RFC 5424); only 5, its notice, is left to loguru's TRACE.
_SYSLOG_NUMBERS = {0: "fatal", 1: "fatal", 2: "fatal", 3: "error", 4: "warn", 6: "info", 7: "debug"}
# Loguru's, logging's and pino's numbers; each begins its level.
_PYTHON_NUMBERS = ((50, "fatal"), (40, "error"), (30, "warn"), (20, "info"), (10, "debug"), (1, "trace"))


@lru_cache(maxsize=1024)
def _level(text: str) -> tuple[str, int, str | None] | None:
    """Return level, severity and, if it tells more, the original of a level's text; None if unknown."""
    word = text.strip(" \t[]<>():").lower()
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
    if number in _SYSLOG_NUMBERS:
        level = _SYSLOG_NUMBERS[int(number)]
        return level, fields.LEVELS[level]
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
_ERROR_LINE = re.compile(r"([A-Za-z_][\w.]{0,255})(?::[ \t]+(.*))?\Z", re.DOTALL)
_TRACEBACK = "Traceback (most recent call last):"

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Odd(str):
    """Text that stands for a JSON value which is none: NaN, Infinity, a number out of range."""

    __slots__ = ()


class Repaired(str):
    """Text that was not UTF-8 and had bytes replaced."""

    __slots__ = ()


class TooLarge(Exception):
    """One value alone exceeds what a record may have; ``size`` is its length."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Collision(Exception):
    """Two keys of one object mean one field; no error, it asks for the thorough way."""


def _clean(text: str) -> tuple[str, bool]:
    """Return ``text`` as NFC without NUL and lone surrogates, and whether anything had to be replaced.

    Raises:
        TooLarge: If it alone exceeds a record.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise TooLarge(len(text))
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
        return str(value)
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
    return clean, redact.may_hold_secrets(clean[-128:]), clean != key.removeprefix("labels.")


# ------------------------------------------------------------------------------------------ drafts


class Draft:
    """A record in the making, and what was wrong with it."""

    __slots__ = (
        "conflicts",
        "dropped",
        "exception",
        "labels",
        "near_us",
        "originals",
        "secrets",
        "shipped",
        "texts",
        "time",
        "user",
        "values",
    )

    def __init__(self, near_us: int | None = None) -> None:
        self.values: dict[str, Any] = {}  # Record's attributes
        self.near_us = near_us
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
        self.label(name, _text_of(value))

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
        if len(text) > MAX_LABEL_CHARS or not text.isascii() or "\0" in text:
            text, is_replaced = _clean(text)
            if is_replaced:
                self.flag(f"labels.{name}")
        if is_changed or type(value) in (Odd, Repaired):
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
            text = self.shortened(text)
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

    def shortened(self, text: str) -> str:
        """Return a label's text within its bound."""
        if len(text) > MAX_LABEL_CHARS:
            # Masked before it is cut, so that the cut cannot hide half a secret from the pattern.
            text, count = redact.mask(text)
            self.secrets += count
        return text[:MAX_LABEL_CHARS]

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
            found.append((inner, (Odd(_text_of(leaf)) if leaf else None) if type(leaf) is dict else leaf))
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


_Handler = Callable[[Draft, _Target, Any], None]

# ---------------------------------------------------------------------------------- handlers of fields
# Each takes a draft, what the sender's key means, and a value that is not None.


def _keyword(draft: Draft, target: _Target, value: Any) -> None:
    kind = type(value)
    if kind is dict:
        draft.nested(target.key, value)
    elif isinstance(value, str):
        if kind is Odd:
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


def _task_name(draft: Draft, target: _Target, value: Any) -> None:
    if type(value) is str and len(value) > MAX_TASK_NAME_CHARS:
        value, count = redact.mask(_clean(value)[0])
        draft.secrets += count
        if len(value) > MAX_TASK_NAME_CHARS:
            draft.set_aside(target.name, value)
        value = value[:MAX_TASK_NAME_CHARS]
    _keyword(draft, target, value)


def _text(draft: Draft, target: _Target, value: Any) -> None:
    if isinstance(value, str):
        is_plain = len(value) <= MAX_RECORD_BYTES and value.isascii() and "\0" not in value
        text, replaced = (value, False) if is_plain else _clean(value)
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


def _message(draft: Draft, target: _Target, value: Any) -> None:
    _text(draft, target, value)
    draft.texts.pop()  # looked at by itself, by its shape


def _event_id(draft: Draft, target: _Target, value: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_LABEL_CHARS:
        # Cut, two ids could become one.
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        draft.set_aside(target.name, value)
        value = f"hash:{digest}"
    _keyword(draft, target, value)


def _long(draft: Draft, target: _Target, value: Any) -> None:
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


def _timestamp(draft: Draft, target: _Target, value: Any) -> None:
    draft.values[target.attribute] = ""
    try:
        draft.time = timestamps.parse_timestamp(value, draft.near_us)
    except BadInput:
        draft.set_aside(target.name, value)
        return
    draft.values[target.attribute] = value


def _date(draft: Draft, target: _Target, value: Any) -> None:
    try:
        ns = timestamps.parse_timestamp(value, draft.near_us)
    except BadInput:
        draft.set_aside(target.name, value)
        return
    if 0 <= ns < END_OF_TIME_NS:
        draft.values[target.attribute] = timestamps.format_ns(ns)
    else:
        draft.set_aside(target.name, value)


def _log_level(draft: Draft, target: _Target, value: Any) -> None:
    kind = type(value)
    if kind is dict:
        # loguru writes {"name": …, "no": …}
        value = value.get("name") or value.get("no")
        kind = type(value)
    elif kind is list and len(value) == 1:
        value = value[0]
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
        draft.put("log.level_original", "log_level_original", draft.shortened(_clean(_text_of(value))[0]))
        draft.flag(target.name)
        return
    level, severity, original = known
    draft.values[target.attribute] = level
    draft.values.setdefault("event_severity", severity)
    if original is not None:
        draft.values.setdefault("log_level_original", original)


def _severity(draft: Draft, target: _Target, value: Any) -> None:
    number = _integer(value)
    if number == 0 and type(value) is int:
        return  # OpenTelemetry's "unspecified"
    of_level = draft.values.pop(target.attribute, None)  # gives way to the sender's own number
    _long(draft, target, value)
    if of_level is not None:
        draft.values.setdefault(target.attribute, of_level)


def _duration(scale: int) -> _Handler:
    def handle(draft: Draft, target: _Target, value: Any) -> None:
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
    def handle(draft: Draft, target: _Target, value: Any) -> None:
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


def _status(draft: Draft, target: _Target, value: Any) -> None:
    status = _STATUSES.get(value.strip().lower().replace("-", "_")) if type(value) is str else None
    if status is None:
        draft.set_aside(target.name, value)
    else:
        draft.values[target.attribute] = status


def _enumeration(allowed: frozenset[str]) -> _Handler:
    def handle(draft: Draft, target: _Target, value: Any) -> None:
        text = value.strip().lower() if type(value) is str else None
        if text in allowed:
            draft.values[target.attribute] = text
        elif value != "":
            draft.set_aside(target.name, value)

    return handle


def _tags(draft: Draft, target: _Target, value: Any) -> None:
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
        text = draft.shortened(_clean(_text_of(tag))[0])
        if text:
            kept.append(text)
    draft.values[target.attribute] = kept
    draft.texts += kept


def _labels(draft: Draft, target: _Target, value: Any) -> None:
    if type(value) is not dict:
        draft.set_aside(target.name, value)
        return
    for path, leaf in _leaves("", value):
        draft.label(path, leaf)


def _url_path(draft: Draft, target: _Target, value: Any) -> None:
    if type(value) is str:
        value = value.partition("?")[0].partition("#")[0]
    _keyword(draft, target, value)


def _as_label(draft: Draft, target: _Target, value: Any) -> None:
    draft.label(target.name, value)


def _url_query(draft: Draft, _target: _Target, _value: Any) -> None:
    draft.dropped += 1  # never stored: queries are where secrets and people are


def _user(draft: Draft, target: _Target, value: Any) -> None:
    if isinstance(value, (dict, list)):
        draft.dropped += 1
    elif value != "":
        draft.user.setdefault(target.name, _clean(_text_of(value))[0])


def _exception(draft: Draft, _target: _Target, value: Any) -> None:
    draft.exception = value


def _redactions(draft: Draft, _target: _Target, value: Any) -> None:
    number = _integer(value)
    if number is not None and 0 <= number < 1_000_000:
        draft.shipped += number


def _ignored(_draft: Draft, _target: _Target, _value: Any) -> None:
    """Leave out what only the service sets."""


_URLS = frozenset({"url", "url.full", "url.original", "http.url", "http.target", "request.url"})
USER_FIELDS = ("user.id", "user.email", "user.name", "user.full_name")
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
        **{name: (_user, name, name) for name in USER_FIELDS},
    }
    return table | {key: _Target(handler, key, name, attribute) for key, (handler, name, attribute) in others.items()}


_KEYS = _table()


def keys_of(*attributes: str) -> frozenset[str]:
    """Return the keys under which a sender may write these attributes of a record."""
    return frozenset(key for key, target in _KEYS.items() if target.attribute in attributes)


# ------------------------------------------------------------------------------------------ reading


def read(item: Mapping[Any, Any], near_us: int | None = None) -> Draft:
    """Return what a sender's object says; ``near_us`` is when it came, which gives a time without a year its year."""
    draft = Draft(near_us)
    try:
        _read(draft, item)
    except _Collision:
        draft = Draft(near_us)
        _read_ranked(draft, item)
    if draft.exception is not None:
        _read_exception(draft)
    elif "message" in draft.values and _TRACEBACK in draft.values["message"]:
        _read_printed(draft)
    return draft


def _read(draft: Draft, item: Mapping[Any, Any]) -> None:
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


def _read_ranked(draft: Draft, item: Mapping[Any, Any]) -> None:
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


def _read_exception(draft: Draft) -> None:
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


def _read_printed(draft: Draft) -> None:
    """Take type and message of an exception that is printed within the message, as files have them."""
    if "error_type" in draft.values or "error_stack_trace" in draft.values:
        return
    message: str = draft.values["message"]
    found = _parsed_error(message[message.rindex(_TRACEBACK) :])
    if "error_type" in found:
        # The stack stays where it is, and is searched there.
        draft.values["error_type"] = found["error_type"]
        draft.values.setdefault("error_message", found["error_message"])
        draft.texts += (found["error_type"], found["error_message"])


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
