"""Record: what the application logged, caught in its thread and finished in ours.

A log call must cost microseconds and must mean what it meant when it was made. So the calling
thread only *captures*: it renders the message, the exception and the extras to plain values and
puts them in a tuple. The background thread *finishes*: it builds the dict with ECS names, masks
it and encodes it.

What always holds: nothing here raises, whatever the record; a captured tuple holds only
immutable plain values, so a later change of an argument cannot change it and no code of the
application runs in our thread; nothing leaves ``Finisher.finish`` unmasked.

Not here: queueing (batcher.py), which task is running (context.py), how masking finds secrets
(redact.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from hashlib import blake2b
from itertools import count, islice
from typing import Any, Optional, Union

from shippers import context, redact

MESSAGE_MAX_CHARS = 128 * 1024
STACK_MAX_CHARS = 128 * 1024
EXTRA_MAX_CHARS = 8 * 1024
EXTRAS_MAX = 128
EXTRA_MAX_DEPTH = 6
EXTRAS_MAX_CHARS = 256 * 1024  # the service takes records of up to 1 MiB
MASK_MAX_DEPTH = 32
_VALUE_CHARS = 16  # what a value costs besides its text

Plain = Union[None, bool, int, float, str, "list[Plain]", "dict[str, Plain]"]
Error = tuple[str, str, str]
"""Qualified type, message, stack trace; the type is empty for a stack without an exception."""

# (time, level name, level number, logger, path, line, function, thread, pid, message, error, task, extras)
# A plain tuple, because a class costs half a microsecond in the application's thread.
Captured = tuple[
    Union[float, datetime],
    str,
    int,
    Optional[str],
    Optional[str],
    Optional[int],
    Optional[str],
    Optional[str],
    Optional[int],
    str,
    Optional[Error],
    Optional[Mapping[str, Any]],
    Optional[Mapping[str, Any]],
]
Item = Union[Captured, "dict[str, Any]"]
"""What waits in the queue: a captured log call, or a record that is ready but for its identity."""

Finished = list[bytes]
"""Records that are finished already: masked, numbered and encoded, one each."""


# --- capturing: in the application's thread ---------------------------------------------------

_current_task = context.current_fields
_LogRecord = logging.LogRecord
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# A record with as many attributes as an untouched one carries no extras; counting is faster than looking.
_STANDARD_COUNT = len(vars(logging.LogRecord("", 0, "", 0, "", (), None)))


def capture_logging(record: logging.LogRecord) -> Captured:
    """Return what must be remembered of a ``logging.LogRecord``.

    Raises:
        AttributeError: If it lacks what every such record has, and so is none.
    """
    # This runs in the application's thread: the common case is spelled out, without a call where none is needed.
    message = record.msg
    if type(message) is not str or type(record) is not _LogRecord:
        message = _rendered(record)
    elif record.args:
        try:
            message = message % record.args
        except Exception as exc:
            message = _unrendered(message, record.args, exc)
    if len(message) > MESSAGE_MAX_CHARS:
        message = cut(message, MESSAGE_MAX_CHARS)
    error: Error | None = None
    extras: dict[str, Plain] | None = None
    if len(record.__dict__) != _STANDARD_COUNT:
        extras = _logging_extras(record.__dict__)
    if record.exc_info or record.stack_info:
        error = _stacks(record)
        if error is not None and error[0] and record.stack_info:
            # Not behind the exception's own frames, from which the service tells errors apart.
            extras = {**(extras or {}), "stack_info": cut(safe_str(record.stack_info), STACK_MAX_CHARS)}
    return (
        record.created,
        record.levelname,
        record.levelno,
        record.name,
        record.pathname,
        record.lineno,
        record.funcName,
        record.threadName,
        record.process,
        message,
        error,
        _current_task(),
        extras,
    )


def _rendered(record: logging.LogRecord) -> str:
    """Return the message of a record that renders it in a way of its own, or whose template is no text."""
    try:
        return str.__str__(record.getMessage())
    except Exception as exc:
        return _unrendered(record.msg, record.args, exc)


def completed(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy of ``record`` in which nothing is missing that every such record has."""
    whole = logging.LogRecord("", logging.INFO, "", 0, "", (), None)
    whole.__dict__.update(record.__dict__)
    return whole


def _stacks(record: logging.LogRecord) -> Error | None:
    """Return the exception of ``record``; without one, the stack that the call asked for as that of no type."""
    try:
        info = record.exc_info
        error = capture_error(info[1], info[2]) if info else None
        if record.stack_info and (error is None or not error[0]):
            error = "", "", cut(str.__str__(record.stack_info), STACK_MAX_CHARS)
    except Exception as exc:
        error = "", "", f"exception not captured: {safe_repr(exc)}"
    return error


def _logging_extras(attributes: Mapping[str, Any]) -> dict[str, Plain] | None:
    try:
        return plain_extras({key: value for key, value in attributes.items() if key not in _STANDARD})
    except Exception as exc:
        return {"extras_not_captured": safe_repr(exc)}


def capture_loguru(entry: Mapping[str, Any]) -> Captured:
    """Return what must be remembered of a loguru record (``message.record``); never raises.

    Loguru is known by its shape only, so that it need not be installed.
    """
    try:
        failure = entry["exception"]
        extras = entry["extra"]
        return (
            entry["time"],
            entry["level"].name,
            entry["level"].no,
            entry["name"],
            entry["file"].path,
            entry["line"],
            entry["function"],
            entry["thread"].name,
            entry["process"].id,
            cut(str.__str__(entry["message"]), MESSAGE_MAX_CHARS),
            None if failure is None else capture_error(failure.value, failure.traceback, failure.type),
            _current_task(),
            plain_extras(extras) if extras else None,
        )
    except Exception as exc:
        message = f"{safe_repr(entry)} (record not captured: {safe_repr(exc)})"
        now = datetime.now(timezone.utc)
        return (now, "ERROR", 40, None, None, None, None, None, None, cut(message, 4096), None, None, None)


def capture_error(value: BaseException | None, trace: Any = None, kind: type[BaseException] | None = None) -> Error:
    """Return type, message and stack of an exception with its causes and groups, without local variables.

    Args:
        value: The exception; None when only its type survived (loguru across processes).
        trace: Its traceback; None means the exception's own.
        kind: Its type where ``value`` is None.
    """
    if value is None:
        if kind is None:
            return "", "", ""
        return qualified_name(kind), "", f"{qualified_name(kind)}\n"
    try:
        message = str(value)
    except Exception as exc:
        message = f"<unprintable: {safe_repr(exc)}>"
    try:
        if trace is None:
            trace = value.__traceback__
        stack = "".join(traceback.format_exception(type(value), value, trace))
    except Exception as exc:
        # A hostile __str__ or __cause__ breaks the whole rendering; the frames alone are still worth having.
        try:
            frames = "".join(traceback.format_tb(trace))
        except Exception:
            frames = ""
        stack = f"{frames}{qualified_name(type(value))}: <stack not rendered: {safe_repr(exc)}>\n"
    return qualified_name(type(value)), cut(message, EXTRA_MAX_CHARS), cut(stack, STACK_MAX_CHARS)


def qualified_name(kind: type) -> str:
    """Return the name of a class as a traceback prints it: with its module, unless built in.

    >>> qualified_name(ValueError), qualified_name(json.JSONDecodeError)
    ('ValueError', 'json.decoder.JSONDecodeError')
    """
    try:
        module = kind.__module__
        name = kind.__qualname__
        return name if module in ("builtins", "__main__") else f"{module}.{name}"
    except Exception:
        return "Exception"


def plain_extras(extras: Mapping[Any, Any]) -> dict[str, Plain]:
    """Return a copy of ``extras`` in plain values, bounded in number, depth and length; never raises."""
    plain: dict[str, Plain] = {}
    room: _Room | None = None
    for key, value in extras.items():
        if len(plain) >= EXTRAS_MAX:
            plain["extras_cut"] = len(extras) - EXTRAS_MAX
            break
        if type(key) is not str:
            key = safe_str(key)
        kind = type(value)
        if kind is int and -(2**53) < value < 2**53:
            plain[key] = value
        else:
            room = room or _Room()
            plain[key] = to_plain(value, room)
    return plain


class _Room:
    """How many characters the extras of one record may still take: a small nest of lists can unfold without end."""

    __slots__ = ("chars",)

    def __init__(self) -> None:
        self.chars = EXTRAS_MAX_CHARS


def to_plain(value: Any, room: _Room, depth: int = EXTRA_MAX_DEPTH) -> Plain:
    """Return ``value`` as JSON can carry it; what JSON lacks becomes text, as does what has no room; never raises."""
    if room.chars <= 0:
        return "… cut …"
    room.chars -= _VALUE_CHARS
    try:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            text = cut(str.__str__(value), EXTRA_MAX_CHARS)
        elif isinstance(value, int):
            number = int(value)
            return number if -(2**63) <= number < 2**63 else cut(hex(number), EXTRA_MAX_CHARS)
        elif isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        elif depth > 0 and isinstance(value, (dict, list, tuple, set, frozenset)):
            # list(islice(…)) is one step of the interpreter, between which no other thread changes a list or dict.
            if isinstance(value, dict):
                pairs = list(islice(value.items(), EXTRAS_MAX))
                return {safe_str(key): to_plain(item, room, depth - 1) for key, item in pairs}
            return [to_plain(item, room, depth - 1) for item in list(islice(value, EXTRAS_MAX))]
        elif isinstance(value, datetime):
            return value.isoformat()
        elif isinstance(value, BaseException):
            text = cut(f"{qualified_name(type(value))}: {safe_str(value)}", EXTRA_MAX_CHARS)
        elif isinstance(value, (bytes, bytearray)):
            text = cut(str(value[: EXTRA_MAX_CHARS + 1]), EXTRA_MAX_CHARS)
        else:
            text = cut(str.__str__(str(value)), EXTRA_MAX_CHARS)
    except Exception:
        text = safe_repr(value)
    room.chars -= len(text)
    return text


def cut(text: str, limit: int) -> str:
    """Return ``text``, its middle replaced by a note when it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n… {len(text) - limit} characters cut …\n{text[-tail:]}"


def safe_str(value: Any) -> str:
    """Return ``str(value)``, or a note that there is none; never raises."""
    try:
        return cut(str.__str__(str(value)), EXTRA_MAX_CHARS)
    except Exception:
        return safe_repr(value)


def safe_repr(value: Any) -> str:
    """Return ``repr(value)``, or a note that there is none; never raises."""
    try:
        return cut(str.__str__(repr(value)), EXTRA_MAX_CHARS)
    except Exception as exc:
        try:
            return f"<{type(value).__name__} without repr: {type(exc).__name__}>"
        except Exception:
            return "<object without repr>"


def _unrendered(template: Any, args: Any, exc: Exception) -> str:
    if isinstance(args, tuple):
        shown = ", ".join(safe_repr(arg) for arg in args)
    else:
        shown = safe_repr(args)
    return f"{safe_str(template)} (arguments not rendered: {safe_repr(exc)}; arguments: {shown})"


# --- finishing: in our thread -----------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Who is logging: fixed for one process epoch, a new one after each fork.

    Attributes:
        epoch: Random name of this run of this process; sequence numbers count within it.
    """

    service: str
    environment: str | None = None
    version: str | None = None
    host: str = field(default_factory=socket.gethostname)
    node: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    epoch: str = field(default_factory=lambda: os.urandom(8).hex())

    def fields(self) -> dict[str, Any]:
        """Return the fields that every record of this origin carries."""
        fields = {
            "service.name": self.service,
            "service.environment": self.environment,
            "service.version": self.version,
            "service.node.name": self.node,
            "host.name": self.host,
            "ingest.epoch": self.epoch,
            "labels": dict(self.labels) or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def default_service() -> str:
    """Return the name for a service that was given none: ``unknown_service:PROGRAM``."""
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    return f"unknown_service:{program or 'python'}"


_LEVELS = {
    "TRACE": ("trace", 1, None),
    "DEBUG": ("debug", 5, None),
    "INFO": ("info", 9, None),
    "SUCCESS": ("info", 10, "SUCCESS"),
    "WARNING": ("warn", 13, None),
    "WARN": ("warn", 13, None),
    "ERROR": ("error", 17, None),
    "CRITICAL": ("fatal", 21, None),
    "FATAL": ("fatal", 21, None),
}


@lru_cache(maxsize=256)
def canonical_level(name: str, number: int) -> tuple[str, int, str | None]:
    """Return canonical name, OpenTelemetry severity and, if the name says more, the original.

    >>> canonical_level("WARNING", 30), canonical_level("NOTICE", 25)
    (('warn', 13, None), ('info', 10, 'NOTICE'))
    """
    known = _LEVELS.get(name)
    if known is not None:
        return known
    for floor, level, severity in ((50, "fatal", 21), (40, "error", 17), (30, "warn", 13), (20, "info", 9)):
        if number >= floor:
            return level, severity + (1 if number > floor else 0), name
    return ("debug", 5, name) if number >= 10 else ("trace", 1, name)


# Names the service reads as fields of the record. An extra of that name would contend with what
# the record itself says, so it goes to labels, where it is unambiguous.
_TAKEN = frozenset(
    "level severity_text severity_number msg message body time timestamp ts @timestamp logger service version release "
    "host env pid thread exception labels".split()
)

_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


@lru_cache(maxsize=4096)
def _mask_repeated(text: str) -> str:
    """Mask what recurs: names of loggers, files, functions, threads, tasks, keys of extras."""
    return redact.mask(text)[0]


class Finisher:
    """Turns captured items into masked, encoded records, numbering them.

    One thread does so while the program runs; at its end several may, and no two records get one number.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.sequence = 0  # how many records there are so far
        self.sequences = count(1)
        self._base = {name: _mask_base(value) for name, value in origin.fields().items()}
        # blake2b of (source, epoch, sequence): the first two are hashed once.
        self._id_hash = blake2b(
            f"{origin.host}/{origin.service}\0{origin.epoch}\0".encode("utf-8", "replace"), digest_size=16
        )
        self._second = (-1, "")

    def number(self) -> int:
        """Return the next number in this epoch."""
        sequence = next(self.sequences)
        self.sequence += 1
        return sequence

    def base(self) -> dict[str, Any]:
        """Return what every record of this origin says, masked."""
        return self._base.copy()

    def finish(self, item: Item) -> bytes:
        """Return the record of ``item`` as one line of JSON; never raises."""
        sequence = self.number()
        try:
            record = self._build(item, sequence)
            return _encode_json(record).encode("utf-8", "replace")
        except Exception as exc:
            record = self._identity(sequence)
            record["@timestamp"] = self._time_text(datetime.now(timezone.utc))
            record["log.level"] = "error"
            message = item.get("message") if isinstance(item, dict) else item[9]
            text = f"a record was not encoded: {safe_repr(exc)}; its message: {cut(safe_str(message), 4096)}"
            record["message"] = redact.mask(text)[0]
            return _encode_json(record).encode("utf-8", "replace")

    def _build(self, item: Item, sequence: int) -> dict[str, Any]:
        """Return the masked record of ``item`` as a dict."""
        record = self._identity(sequence)
        mask = redact.mask
        masked = 0
        if isinstance(item, dict):
            for key, value in item.items():
                if key == "labels" and "labels" in record and isinstance(value, dict):
                    value = {**record["labels"], **value}
                if key not in _SAFE:
                    value, count = mask_value(key, value)
                    masked += count
                if value is None:
                    record.pop(key, None)  # the item says it another way
                else:
                    record[_mask_repeated(key)] = value
        else:
            time, level, number, logger, path, line, function, thread, pid, message, error, task, extras = item
            record["@timestamp"] = self._time_text(time)
            name, severity, original = canonical_level(level, number)
            record["log.level"] = name
            record["event.severity"] = severity
            if original is not None:
                record["log.level_original"] = original
            record["message"], masked = mask(message)
            if logger is not None:
                record["log.logger"] = _mask_repeated(logger)
            if path is not None:
                record["log.origin.file.name"] = _mask_repeated(path)
            if line is not None:
                record["log.origin.file.line"] = line
            if function is not None:
                record["log.origin.function"] = _mask_repeated(function)
            if thread is not None:
                record["process.thread.name"] = _mask_repeated(thread)
            if pid is not None:
                record["process.pid"] = pid
            if error is not None:
                if error[0]:
                    record["error.type"] = _mask_repeated(error[0])
                    record["error.message"], count = mask(error[1])
                    masked += count
                if error[2]:
                    record["error.stack_trace"], count = mask(error[2])
                    masked += count
            if task is not None:
                for key, value in task.items():
                    record[key] = _mask_repeated(value) if type(value) is str else value
            if extras:
                masked += _add_extras(record, extras)
        if masked:
            record["ingest.redactions"] = masked
        return record

    def _identity(self, sequence: int) -> dict[str, Any]:
        record = self._base.copy()
        digest = self._id_hash.copy()
        digest.update(b"%d" % sequence)
        record["event.id"] = digest.hexdigest()
        record["event.sequence"] = sequence
        return record

    def _time_text(self, time: float | datetime) -> str:
        if isinstance(time, datetime):
            utc = time.astimezone(timezone.utc)
            return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond:06d}Z"
        second, micros = divmod(round(time * 1_000_000), 1_000_000)
        known, text = self._second
        if second != known:
            text = datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text
        return f"{text}.{micros:06d}Z"


_SAFE = frozenset(
    "@timestamp event.id event.created event.action event.kind event.outcome ingest.epoch log.level task.status".split()
)


def _mask_base(value: Any) -> Any:
    if isinstance(value, dict):
        return mask_nested(value)[0]
    return redact.mask(value)[0] if isinstance(value, str) else value


def _add_extras(record: dict[str, Any], extras: Mapping[str, Any]) -> int:
    masked = 0
    labels: dict[str, Any] | None = None
    for key, value in extras.items():
        name = _mask_repeated(key)
        value, count = mask_value(key, value)
        masked += count
        if name in _TAKEN or name in record:
            if labels is None:
                labels = record["labels"] = dict(record.get("labels", ()))
            labels[name] = value if isinstance(value, str) else _encode_json(value)
        else:
            record[name] = value
    return masked


def mask_value(key: str, value: Any, depth: int = MASK_MAX_DEPTH) -> tuple[Any, int]:
    """Return a plain ``value`` masked, all of it if its key names a secret, and how much was masked."""
    if type(value) is str:
        return redact.mask_value(key, value)
    if value is None or value is True or value is False:
        return value, 0
    if redact.is_secret_key(key) or (redact.may_hold_secrets(key) and not isinstance(value, (int, float))):
        return redact.SECRET, 1
    return mask_nested(value, depth) if isinstance(value, (dict, list)) else (value, 0)


def mask_nested(value: Any, depth: int = MASK_MAX_DEPTH) -> tuple[Any, int]:
    """Return a nest of dicts and lists with each text masked, and how much was masked."""
    masked = 0
    if depth <= 0:
        return redact.mask(safe_repr(value))
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        # A header as {"name": "X-Api-Key", "value": …}: its name says what its value is.
        named = value.get("name") or value.get("key") or value.get("header")
        for key, item in value.items():
            of = named if key == "value" and type(named) is str else key
            result[_mask_repeated(key)], count = mask_value(of, item, depth - 1)
            masked += count
        return result, masked
    if isinstance(value, list):
        items = []
        for item in value:
            item, count = mask_value("", item, depth - 1)
            items.append(item)
            masked += count
        return items, masked
    return mask_value("", value)
