"""Lines: what a record of a log file says: JSON, logfmt, a pattern of one's own, or time, level and message.

A line that says nothing recognisable is its own message; nothing is refused. A time without a zone
is local to this machine or to the zone given. In the hour that a clock going back repeats, a time
goes with the ones before it: a file's times do not run backwards by an hour.

Not here: which lines belong together (multiline.py), names of fields in JSON (the service knows
its aliases), how a record is encoded (rendering.py).
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Optional
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shippers import multiline

FORMATS = ("auto", "plain", "json", "logfmt")

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
_LEVEL = re.compile(rf"[\[<(]?(?i:({_NAMES}))[\])>]?(?:\s*[|:\-]+\s*|\s+|$)")
# "2024-… shop.billing ERROR message" and "… [worker-1] ERROR - message": one or two words before the level.
_LEVEL_LATER = re.compile(rf"(?:[\w.\[\]\-/:<>]+[\s|\-]+){{1,2}}[\[<(]?({_NAMES})[\])>]?(?=[\s|:\-]|$)")
_MONTHS = {
    name: f"{number:02d}" for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}
_MONTH = "|".join(_MONTHS)
_ZONE = r" ?(Z|UTC|GMT|[+-]\d\d:?\d\d)?"
_AFTER_SECOND = r"(?:[.,](\d{1,9}))?" + _ZONE + r"[\])]?(?=[\s|:\]\-,]|$)[\s|:\-]*()"
# A word where a level may stand: looking it up is faster than naming all levels here.
_WORD = r"(?:[\[<(]?([A-Za-z]{3,8})[\])>]?(?:\s*[|:\-]+\s*|\s+|$))?"
# 2024-12-25 13:00:00,123+0100, also with slashes, brackets, T and Z; groups: second, fraction, zone, end, word.
_TIME = re.compile(r"[\[(]?(\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d)" + _AFTER_SECOND + _WORD)
_REST_OF_TIME = re.compile(f"(){_AFTER_SECOND}{_WORD}")  # the same, from where the second has ended
# <13>Dec 25 13:00:00, as syslog writes it: without a year.
_SYSLOG_TIME = re.compile(rf"(?:<\d{{1,3}}>)?({_MONTH}) ([ \d]\d) (\d\d:\d\d:\d\d)(?:\.(\d{{1,9}}))?\s+")
# [25/Dec/2024:13:00:00 +0000] within the line of a web server's access log.
_ACCESS_TIME = re.compile(rf"\[(\d\d)/({_MONTH})/(\d{{4}}):(\d\d:\d\d:\d\d) ([+-]\d{{4}})\]")
_MESSAGE_KEYS = ("message", "msg", "body")
_TIME_KEYS = ("@timestamp", "timestamp", "time", "ts")
_LEVEL_KEYS = ("level", "lvl", "severity")
_PAIR = re.compile(r'([A-Za-z_@][\w.\-/@]*)=(?:"((?:[^"\\]|\\.)*)"|([^\s"=]*))(?:\s+|$)')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,6})?$")
_decode_json = json.JSONDecoder(parse_constant=str).decode
_HOUR = timedelta(hours=1)


class LineParser:
    """Reads what the records of one stream say.

    Args:
        form: ``auto`` recognises JSON and logfmt; ``plain``, ``json`` and ``logfmt`` look for one alone.
        pattern: A regular expression whose named groups are fields (``__`` stands for a dot, as in
            ``http__request__method``); ``time``, ``level`` and ``message`` are read as such. What it does not
            match is read as ``form`` says.
        zone: IANA name of the zone of times that name none; None means this machine's.

    Attributes:
        unmatched: Records that ``pattern`` did not match.

    Raises:
        ValueError: If one of them cannot be used; the message says what to do.
    """

    def __init__(self, form: str = "auto", *, pattern: str | None = None, zone: str | None = None) -> None:
        if form not in FORMATS:
            raise ValueError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
        self.form = form
        self.unmatched = 0
        self._pattern: re.Pattern[str] | None = None
        if pattern is not None:
            try:
                self._pattern = re.compile(pattern)
            except re.error as exc:
                raise ValueError(f"pattern {pattern!r} is no regular expression: {exc}") from exc
            if not self._pattern.groupindex:
                raise ValueError(f"pattern {pattern!r} names no field; name one, such as (?P<message>.*)")
        self._zone: Optional[tzinfo] = None
        if zone is not None:
            try:
                self._zone = ZoneInfo(zone)
            except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
                raise ValueError(
                    f"zone {zone!r} is not known here; expected an IANA name such as Europe/Berlin"
                    " (where the system has no time zones: pip install tzdata)"
                ) from exc
        self._latest: datetime | None = None
        self._known: tuple[str, str | None, str] = (
            "",
            None,
            "",
        )  # the last second read, its zone, and what it is in UTC

    @property
    def is_plain(self) -> bool:
        """Whether a line without braces and equals signs is a time, a level and a message."""
        return self._pattern is None

    def parse(self, text: str, read_at: str) -> dict[str, Any]:
        """Return the fields of one joined record.

        Args:
            text: Its lines.
            read_at: When it was read, RFC 3339; the event's time if it names none.

        >>> record = LineParser().parse("2024-12-25 13:00:00+0000 ERROR shop: charge failed", "2025-01-01T00:00:00Z")
        >>> record["@timestamp"], record["log.level"], record["message"]
        ('2024-12-25T13:00:00.000000Z', 'error', 'shop: charge failed')
        >>> LineParser().parse('level=warn msg="disk nearly full" free=3', "2025-01-01T00:00:00Z")["free"]
        3
        """
        text = multiline.plain(text)
        fields: dict[str, Any] | None = None
        if self._pattern is not None:
            fields = self._by_pattern(text, read_at)
            if fields is not None:
                return fields
            self.unmatched += 1
        if self.form in ("auto", "json") and text.startswith("{"):
            fields = parse_json(text)
        elif self.form == "logfmt" or (self.form == "auto" and "=" in text and "\n" not in text):
            fields = parse_logfmt(text, is_certain=self.form == "logfmt")
        if fields is not None:
            return self._completed(fields, text, read_at)
        record: dict[str, Any] = {"event.created": read_at}
        parsed = multiline.parse_stack(text)
        head = text if parsed is None else parsed.head
        time, level, message = self.parse_head(head, read_at)
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

    def parse_head(self, text: str, read_at: str) -> tuple[str | None, str | None, str]:
        """Return time (RFC 3339, UTC), canonical level, and the rest; None for what is not said.

        >>> LineParser().parse_head("WARNING:root:disk nearly full", "2025-01-01T00:00:00Z")
        (None, 'warn', 'root:disk nearly full')
        """
        time: str | None = None
        rest = text
        known = self._known[0]
        # Most lines are of the second of the line before.
        match = _REST_OF_TIME.match(text, 19) if known and text.startswith(known) else _TIME.match(text)
        if match is not None:
            second, fraction, zone, _, word = match.groups()
            time = self._utc(second or known, fraction, zone, read_at)
            if time is not None:
                level = _LEVELS.get(word) or (word and _LEVELS.get(word.upper()))
                if level:
                    return time, level, text[match.end() :]
                rest = text[match.end(4) :]
        else:
            time, rest = self._other_time(text, read_at)
        match = _LEVEL.match(rest)
        if match is not None and (time is not None or match[1].isupper() or rest[0] in "[<("):
            return time, _LEVELS[match[1].upper()], rest[match.end() :]
        match = _LEVEL_LATER.match(rest) if time is not None else None
        if match is not None:
            # What stands before the level (a logger, a thread) is worth keeping with the message.
            return time, _LEVELS[match[1].upper()], rest
        return time, None, rest

    def _other_time(self, text: str, read_at: str) -> tuple[str | None, str]:
        if text[:1] in _SYSLOG_STARTS:
            match = _SYSLOG_TIME.match(text)
            if match is not None:
                month, day, clock, fraction = match.groups()
                time = self._of_this_year(f"{_MONTHS[month]}-{day.strip():0>2}T{clock}", fraction, read_at)
                if time is not None:
                    return time, text[match.end() :]
        elif "/" in text:
            match = _ACCESS_TIME.search(text, 0, 300)
            if match is not None:
                day, month, year, clock, zone = match.groups()
                return self._utc(f"{year}-{_MONTHS[month]}-{day}T{clock}", None, zone, read_at), text
        return None, text

    def _of_this_year(self, second: str, fraction: str | None, read_at: str) -> str | None:
        """Read a time without a year: that of reading, or in January the one before."""
        year = int(read_at[:4])
        time = self._utc(f"{year}-{second}", fraction, None, read_at)
        if time is not None and time[:10] > (_moment(read_at) + timedelta(days=2)).strftime("%Y-%m-%d"):
            return self._utc(f"{year - 1}-{second}", fraction, None, read_at)
        return time

    def _by_pattern(self, text: str, read_at: str) -> dict[str, Any] | None:
        assert self._pattern is not None
        match = self._pattern.match(text)
        if match is None:
            return None
        groups = {name: value for name, value in match.groupdict().items() if value is not None}
        record: dict[str, Any] = {"event.created": read_at, "@timestamp": read_at, "log.level": "info", "message": text}
        time = groups.pop("time", None)
        if time is not None:
            moment, _, _ = self.parse_head(time, read_at)
            if moment is None:
                record["time"] = time  # the service knows more forms, and flags what it does not know
                del record["@timestamp"]
            else:
                record["@timestamp"] = moment
        level = groups.pop("level", None)
        if level is not None:
            record["log.level"] = _LEVELS.get(level.upper(), level)
        for name, value in groups.items():
            record[name.replace("__", ".")] = value
        return record

    def _completed(self, fields: dict[str, Any], text: str, read_at: str) -> dict[str, Any]:
        """Give an object what it lacks: a message, a time, and the zone of its time."""
        if not any(key in fields for key in _MESSAGE_KEYS):
            fields["message"] = text
        key = next((key for key in _TIME_KEYS if key in fields), None)
        if key is None:
            fields["@timestamp"] = read_at
        elif is_naive(fields[key]):
            time, _, _ = self.parse_head(fields[key], read_at)
            fields[key] = time or fields[key]
        fields.setdefault("event.created", read_at)
        return fields

    def _utc(self, second: str, fraction: str | None, zone: str | None, read_at: str) -> str | None:
        known, known_zone, text = self._known
        if second != known or zone != known_zone:
            try:
                moment = datetime.fromisoformat(second.replace("/", "-"))
                utc = self._place(moment, read_at) if zone is None else moment.replace(tzinfo=_offset(zone))
                text = utc.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
                text = text.rjust(19, "0")  # strftime does not fill up years before 1000 everywhere
            except (ValueError, OverflowError, OSError):
                return None
            self._known = second, zone, text
        if fraction is None:
            return f"{text}.000000Z"
        return f"{text}.{fraction}Z" if len(fraction) >= 6 else f"{text}.{fraction}{'000000'[len(fraction) :]}Z"

    def _place(self, moment: datetime, read_at: str) -> datetime:
        """Return the moment of a local time; of the two in the hour that comes twice, the likelier."""
        first = moment.replace(tzinfo=self._zone, fold=0).astimezone(timezone.utc)
        second = moment.replace(tzinfo=self._zone, fold=1).astimezone(timezone.utc)
        if second > first:
            now = _moment(read_at)
            is_behind = self._latest is not None and first < self._latest - _HOUR / 3
            if is_behind or (self._latest is None and second <= now + _HOUR / 60 and now - second < 2 * _HOUR):
                first = second  # times went on before, or a live file's earlier pass is an hour ago
        if self._latest is None or first > self._latest or self._latest - first > 3 * _HOUR:
            self._latest = first
        return first


_SYSLOG_STARTS = tuple({name[0] for name in _MONTHS} | {"<"})


def is_naive(value: Any) -> bool:
    """Tell whether ``value`` is the text of a time that names no zone."""
    if type(value) is not str or value[-1:] == "Z" or not value[:4].isdigit():
        return False
    match = _TIME.match(value)
    return match is not None and match[3] is None and match.end(4) == len(value)


def parse_json(text: str) -> dict[str, Any] | None:
    """Return a JSON object's members; None if ``text`` is no JSON object."""
    try:
        fields = _decode_json(text)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def parse_logfmt(text: str, *, is_certain: bool = False) -> dict[str, Any] | None:
    """Return the pairs of a line of logfmt; None if it is none.

    Args:
        text: The line.
        is_certain: Whether any pairs make it logfmt; otherwise a message or a level must be among them.

    >>> parse_logfmt('level=error msg="no card" took=1.5')
    {'level': 'error', 'msg': 'no card', 'took': 1.5}
    """
    fields: dict[str, Any] = {}
    position = len(text) - len(text.lstrip())
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            return None
        key, quoted, bare = match.groups()
        if quoted is not None:
            fields[key] = (
                _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), quoted) if "\\" in quoted else quoted
            )
        elif _NUMBER.match(bare) and not (len(bare) > 1 and bare[0] == "0" and bare[1] != "."):
            fields[key] = float(bare) if "." in bare else int(bare)
        else:
            fields[key] = bare
        position = match.end()
    if not is_certain and not any(key in fields for key in (*_MESSAGE_KEYS, *_LEVEL_KEYS)):
        return None
    if "lvl" in fields:
        fields.setdefault("level", fields.pop("lvl"))
    return fields or None


def _offset(zone: str) -> timezone:
    if zone in ("Z", "UTC", "GMT"):
        return timezone.utc
    digits = zone[1:].replace(":", "")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if zone[0] == "-" else offset)


def _moment(rfc3339: str) -> datetime:
    return datetime.fromisoformat(rfc3339[:19]).replace(tzinfo=timezone.utc)
