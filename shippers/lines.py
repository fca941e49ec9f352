"""Lines: what one line of a log file says: a JSON object, or a time, a level and a message.

A line that says nothing recognisable is its own message; nothing is refused. A time without a zone
is local to this machine.

Not here: which lines belong together (multiline.py), names of fields in JSON (the service knows
its aliases).
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from shippers import multiline

_TIME = re.compile(
    r"[\[(]?(?P<date>\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
    r" ?(?P<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)?[\])]?(?=[\s|:\]\-,]|$)[\s|:\-]*"
)
_LEVELS = {
    "TRACE": "trace",
    "DEBUG": "debug",
    "INFO": "info",
    "NOTICE": "info",
    "SUCCESS": "info",
    "WARN": "warn",
    "WARNING": "warn",
    "ERROR": "error",
    "ERR": "error",
    "CRITICAL": "fatal",
    "FATAL": "fatal",
}
_NAMES = "|".join(sorted(_LEVELS, key=len, reverse=True))
# "ERROR:root:", "[ERROR] ", "ERROR    | ", "<error> ", "ERROR - ", "level=error".
_LEVEL = re.compile(rf"[\[<(]?(?P<level>{_NAMES})[\])>]?(?:\s*[|:\-]+\s*|\s+|$)", re.IGNORECASE)
# "2024-… shop.billing ERROR message" and "… [worker-1] ERROR - message": one or two words before the level.
_LEVEL_LATER = re.compile(rf"(?:[\w.\[\]\-/:<>]+[\s|\-]+){{1,2}}[\[<(]?(?P<level>{_NAMES})[\])>]?(?=[\s|:\-]|$)")
_MESSAGE_KEYS = ("message", "msg", "body")
_TIME_KEYS = ("@timestamp", "timestamp", "time", "ts")


def parse_record(text: str, read_at: str) -> dict[str, Any]:
    """Return the fields of one joined record.

    Args:
        text: Its lines.
        read_at: When it was read, RFC 3339; the event's time if it names none.

    >>> record = parse_record("2024-12-25 13:00:00+0000 ERROR shop: charge failed", "2025-01-01T00:00:00Z")
    >>> record["@timestamp"], record["log.level"], record["message"]
    ('2024-12-25T13:00:00.000000Z', 'error', 'shop: charge failed')
    """
    if text.startswith("{"):
        fields = parse_json(text)
        if fields is not None:
            if not any(key in fields for key in _MESSAGE_KEYS):
                fields["message"] = text
            if not any(key in fields for key in _TIME_KEYS):
                fields["@timestamp"] = read_at
            fields.setdefault("event.created", read_at)
            return fields
    record: dict[str, Any] = {"event.created": read_at}
    parsed = multiline.parse_stack(text)
    head = text if parsed is None else parsed.head
    time, level, message = parse_head(head)
    record["@timestamp"] = time or read_at
    if parsed is not None:
        level = level if level in ("error", "fatal", "warn") else "error"
        if parsed.type:
            record["error.type"] = parsed.type
            record["error.message"] = parsed.message
            message = message or (f"{parsed.type}: {parsed.message}" if parsed.message else parsed.type)
        record["error.stack_trace"] = parsed.stack
    record["log.level"] = level or "info"
    record["message"] = message or head or text
    return record


def parse_json(text: str) -> dict[str, Any] | None:
    """Return a JSON object's members; None if ``text`` is no JSON object."""
    try:
        fields = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def parse_head(text: str) -> tuple[str | None, str | None, str]:
    """Return time (RFC 3339, UTC), canonical level, and the rest; None for what is not said.

    >>> parse_head("WARNING:root:disk nearly full")
    (None, 'warn', 'root:disk nearly full')
    """
    time: str | None = None
    rest = text
    match = _TIME.match(text)
    if match is not None:
        time = _utc(match)
        if time is not None:
            rest = text[match.end() :]
    match = _LEVEL.match(rest)
    if match is not None and (time is not None or match.group("level").isupper() or rest[0] in "[<("):
        return time, _LEVELS[match.group("level").upper()], rest[match.end() :]
    match = _LEVEL_LATER.match(rest) if time is not None else None
    if match is not None:
        # What stands before the level (a logger, a thread) is worth keeping with the message.
        return time, _LEVELS[match.group("level").upper()], rest
    return time, None, rest


def _utc(match: re.Match[str]) -> str | None:
    fraction = (match["fraction"] or "")[:9].ljust(6, "0")
    try:
        moment = datetime.strptime(f"{match['date'].replace('/', '-')} {match['time']}", "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007
        zone = match["zone"]
        if zone is None:
            utc = moment.astimezone(timezone.utc)
        elif zone in ("Z", "UTC", "GMT"):
            utc = moment.replace(tzinfo=timezone.utc)
        else:
            digits = zone.replace(":", "")
            utc = datetime.strptime(f"{moment:%Y-%m-%d %H:%M:%S} {digits}", "%Y-%m-%d %H:%M:%S %z").astimezone(
                timezone.utc
            )
    except (ValueError, OverflowError):
        return None
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{fraction}Z"
