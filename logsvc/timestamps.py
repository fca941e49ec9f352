"""Timestamps: clocks, and the one place where time is read from text and written as text.

Senders write times in a dozen ways; the service keeps one: RFC 3339 in UTC, up to nine fraction
digits, a final ``Z``. Inside, a time is an integer since 1970: nanoseconds in a stored record,
microseconds wherever times are compared, since that is what both stores sort by.

What always holds: integers are exact (nothing passes through a float that did not come as one);
formatting what was parsed gives the same instant back; every failure is a ``BadInput`` that names
the value and what was expected.

Not here: which times are believable (ingest.py).
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from loguru import logger

from logsvc import faults
from logsvc.errors import BadInput

Clock = Callable[[], int]
"""Returns the time now in microseconds since 1970. Handed in wherever time matters."""

NS_PER_US = 1_000
NS_PER_S = 1_000_000_000
US_PER_S = 1_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Anything the formats below do not fit is refused; digits are ASCII digits only.
_RFC3339 = re.compile(
    r"([0-9]{4}[-/][0-9]{2}[-/][0-9]{2})"
    r"(?:[Tt ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,30}))?)?)?"
    r" ?(Z|z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?\Z"
)
# Abbreviations that mean one offset wherever they are used, in hours. Others do not: CST is Chicago's, Shanghai's and
# Havana's, IST is India's, Ireland's and Israel's; a time with one of those is refused, and so kept and flagged.
_ZONES = {
    "UT": 0,
    "WET": 0,
    "WEST": 1,
    "CET": 1,
    "CEST": 2,
    "MEZ": 1,
    "MESZ": 2,
    "EET": 2,
    "EEST": 3,
    "MSK": 3,
    "EST": -5,
    "EDT": -4,
    "CDT": -5,
    "MST": -7,
    "MDT": -6,
    "PST": -8,
    "PDT": -7,
    "AKST": -9,
    "AKDT": -8,
    "HST": -10,
    "JST": 9,
    "KST": 9,
    "AEST": 10,
    "AEDT": 11,
    "NZST": 12,
    "NZDT": 13,
    "SAST": 2,
    "CAT": 2,
    "EAT": 3,
    "WIB": 7,
}
_NAMED_ZONE = re.compile(
    r"(?P<local>[0-9].*?)(?P<offset>Z|[+-][0-9]{2}:?[0-9]{2})? ?(?:(?P<name>[A-Z]{2,5})|\[(?P<iana>[A-Za-z0-9_+/-]{1,64})\])\Z"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# 2024-360 and 2024-W52-3, as ISO 8601 counts days; the clock as in RFC 3339.
_COUNTED_DAYS = re.compile(
    r"(?P<year>[0-9]{4})-?(?:(?P<day>[0-9]{3})|W(?P<week>[0-9]{2})-?(?P<weekday>[1-7]))(?P<rest>[T ][0-9].{0,60})?\Z"
)
# Dec 25 13:00:00, as syslog writes it: without a year.
_YEARLESS = re.compile(
    r"(?:[A-Z][a-z]{2} )?(?P<month>[A-Z][a-z]{2}) {1,2}(?P<day>[0-9]{1,2}) (?P<clock>[0-9]{2}:[0-9]{2}:[0-9]{2}.{0,40})\Z"
)
# Each is written again as RFC 3339 and read as that.
_OTHER_FORMS = tuple(
    re.compile(pattern + r"\Z")
    for pattern in (
        # 20241225T130000Z: ISO 8601 without punctuation.
        r"(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})T"
        r"(?P<hour>[0-9]{2})(?P<minute>[0-9]{2})(?P<second>[0-9]{2})(?P<rest>.{0,40})",
        # Wed, 25 Dec 2024 13:00:00 GMT: HTTP and mail. 25/Dec/2024:13:00:00 +0000: web servers' logs.
        r"(?:[A-Z][a-z]{2}, )?(?P<day>[0-9]{1,2})[ /-](?P<month>[A-Z][a-z]{2})[ /-](?P<year>[0-9]{4})[ :]"
        rf"{_CLOCK}(?P<rest>.{{0,40}})",
        # Wed Dec 25 13:00:00 2024: C's ctime, and date's with its zone.
        rf"[A-Z][a-z]{{2}} (?P<month>[A-Z][a-z]{{2}}) {{1,2}}(?P<day>[0-9]{{1,2}}) {_CLOCK}"
        r"(?P<rest>| [A-Z]{2,5}) (?P<year>[0-9]{4})",
    )
)
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?\Z")
_RELATIVE = re.compile(r"now(?:([+-])([0-9a-z.]{1,40}))?(?:/([smhd]))?\Z")
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:ms|us|[smhdw]))+\Z")
_DURATION_PART = re.compile(r"([0-9]+)(ms|us|[smhdw])")

_UNITS_US = {
    "w": 7 * 86_400 * US_PER_S,
    "d": 86_400 * US_PER_S,
    "h": 3_600 * US_PER_S,
    "m": 60 * US_PER_S,
    "s": US_PER_S,
    "ms": 1_000,
    "us": 1,
}
_MAX_SHOWN = 64
_TOLD_FROM_US = 5 * US_PER_S


def system_clock() -> int:
    """Return the machine's time in microseconds since 1970."""
    now = time.time_ns() // NS_PER_US
    return now + faults.clock_offset_us() if faults.is_told else now


class MonotonicClock:
    """A clock that never goes back: not when the machine's does, and not across a restart.

    ``event.ingested`` is taken from it, because detection's cursor and the promise of
    completeness run over that field. Two calls may return the same microsecond.

    Args:
        clock: The clock to follow.
        floor_us: Nothing below this is ever returned; the last time handed out before a restart.

    Attributes:
        behind_us: How far the clock was behind what was handed out, at the last call; above zero after it
            was set back, until it has caught up.
    """

    def __init__(self, clock: Clock = system_clock, floor_us: int = 0) -> None:
        self._clock = clock
        self._last = floor_us
        self._lock = threading.Lock()
        self._is_told = False
        self.behind_us = 0

    def __call__(self) -> int:
        """Return the time now, or the last one returned if that is later."""
        with self._lock:
            now = self._clock()
            self._last = max(self._last, now)
            self.behind_us = self._last - now
            # A clock that is kept right goes back by milliseconds, and nobody need know.
            if self._is_told is not (self.behind_us > _TOLD_FROM_US):
                self._tell()
            return self._last

    def _tell(self) -> None:
        self._is_told = not self._is_told
        if self._is_told:
            logger.error(
                "the clock of this machine was set back: it is {:.0f} s behind the newest record; until it has "
                "caught up, records are all stamped with that one's event.ingested, and detection waits",
                self.behind_us / US_PER_S,
            )
        else:
            logger.info("the clock of this machine has caught up with the newest record")


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write very long integers
        return f"an integer of {value.bit_length()} bits"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _bad_time(value: object) -> BadInput:
    return BadInput(f'cannot parse timestamp "{_shown(value)}"; expected RFC 3339, such as 2024-12-25T13:00:00Z')


@lru_cache(maxsize=4096)
def _minute(prefix: str) -> int:
    """Seconds since 1970 of ``YYYY-MM-DDTHH:MM:``. Cached: records of one minute share it."""
    if prefix[4::3] != "--T::":  # ISO 8601 has other forms of that length: 2024-W52-3T13:00:
        raise ValueError(prefix)
    moment = datetime.fromisoformat(prefix[:-1])
    return (moment.toordinal() - 719_163) * 86_400 + moment.hour * 3_600 + moment.minute * 60


_SECONDS = {f"{second:02}": second for second in range(60)}
_SCALE: tuple[int, ...] = tuple(10 ** (9 - digits) for digits in range(10))


def parse_rfc3339(text: str) -> int:
    """Return the nanoseconds since 1970 that ``text`` names.

    Lenient where senders are: a space or ``t`` for ``T``, a comma for the point, slashes in the date,
    an offset with or without colon, none at all (then UTC), a date alone, a leap second. Digits past the ninth are
    cut.

    Raises:
        BadInput: If it is no such time.

    >>> parse_rfc3339("1970-01-01T00:00:01.5Z")
    1500000000
    >>> parse_rfc3339("1970-01-01 01:00:00,25+01:00")
    250000000
    """
    # Canonical text first: most of what is ingested ends here.
    size = len(text)
    if 20 <= size <= 30 and text[-1] == "Z" and text[10] == "T":
        try:
            seconds = _minute(text[:17]) + _SECONDS[text[17:19]]
            if size == 20:
                return seconds * NS_PER_S
            fraction = text[20:-1]
            if text[19] == "." and fraction.isascii() and fraction.isdigit():
                return seconds * NS_PER_S + int(fraction) * _SCALE[size - 21]
        except (ValueError, KeyError):
            pass  # a leap second, or a date that is none: the long way says
    match = _RFC3339.match(text)
    if match is None:
        raise _bad_time(text)
    date, minute, second, fraction, offset = match.groups()
    second = second or "00"
    leap = 0
    if second == "60":
        second, leap = "59", 1
    try:
        seconds = _minute(f"{date.replace('/', '-')}T{minute or '00:00'}:") + _SECONDS[second] + leap
    except (ValueError, KeyError):
        raise _bad_time(text) from None
    if offset is not None and offset[0] in "+-":
        digits = offset[1:].replace(":", "")
        hours, minutes = int(digits[:2]), int(digits[2:] or "0")
        if hours > 23 or minutes > 59:
            raise _bad_time(text)
        shift = hours * 3_600 + minutes * 60
        seconds += shift if offset[0] == "-" else -shift
    nanos = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return seconds * NS_PER_S + nanos


def parse_epoch(value: int | float | Decimal) -> int:
    """Return the nanoseconds since 1970 of a number whose unit is told by its magnitude.

    Below 1e11 it is seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds;
    so each unit covers the years in which logs are written. A float keeps microseconds, which is
    all it carries at today's seconds.

    Raises:
        BadInput: If it is not a finite number.

    >>> parse_epoch(1_700_000_000) == parse_epoch(1_700_000_000_000) == 1_700_000_000 * 10**9
    True
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _bad_time(value)
        magnitude = abs(value)
        if magnitude < 1e11:
            return round(value * 1e6) * NS_PER_US
        if magnitude < 1e14:
            return round(value * 1e3) * NS_PER_US
        return round(value) * NS_PER_US if magnitude < 1e17 else round(value)
    for limit, scale in ((10**11, NS_PER_S), (10**14, 1_000_000), (10**17, NS_PER_US)):
        if -limit < value < limit:
            return int(value * scale)
    return int(value)


def parse_timestamp(value: object, near_us: int | None = None) -> int:
    """Return the nanoseconds since 1970 that a sender's value names.

    RFC 3339, an epoch as number or text, or a form whose year, month and day cannot be mistaken:
    ISO 8601 without punctuation, its ordinal days (2024-360) and weeks (2024-W52-3), the forms of HTTP,
    mail, web servers' logs and ``ctime``; with a zone as an offset, as an abbreviation that means one
    offset everywhere (CET, PDT), or as an IANA name in brackets, as Java writes it. Of the two times that
    clocks going back show twice, the first.

    Args:
        value: What the sender said.
        near_us: When it was said, in microseconds: a time without a year (syslog's) is the one nearest to it.
            None refuses such a time.

    Raises:
        BadInput: If it is none of them.

    >>> parse_timestamp("Thu Jan  1 00:00:01 1970"), parse_timestamp("1970-001T01:00:01+01:00[Europe/Berlin]")
    (1000000000, 1000000000)
    """
    if isinstance(value, str):
        try:
            return parse_rfc3339(value)
        except BadInput:
            text = value.strip()
            if _NUMBER.match(text):
                return parse_epoch(_decimal(text))
            with contextlib.suppress(BadInput, ValueError, OverflowError):
                return _parse_other(text, near_us)
            raise
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return parse_epoch(value)
    raise _bad_time(value)


def _parse_other(text: str, near_us: int | None) -> int:
    """Read a form that is not RFC 3339.

    Raises:
        BadInput, ValueError, OverflowError: If it is of no known form, or no such time.
    """
    text = _as_rfc3339(text)
    match = _COUNTED_DAYS.match(text)
    if match is not None:
        year = int(match["year"])
        if match["day"]:
            day = date(year, 1, 1) + timedelta(days=int(match["day"]) - 1)
            if day.year != year:
                raise ValueError(text)
        else:
            day = date.fromisocalendar(year, int(match["week"]), int(match["weekday"]))
        text = day.isoformat() + (match["rest"] or "")
    match = _YEARLESS.match(text)
    if match is not None and near_us is not None:
        return _nearest_year(match, near_us)
    match = _NAMED_ZONE.match(text)
    if match is None:
        return parse_rfc3339(text)
    local, offset, name, iana = match.groups()
    if name in ("UTC", "GMT", "Z"):
        return parse_rfc3339(text)
    local_ns = parse_rfc3339(local.strip())  # as if it were UTC
    if iana is None and name not in _ZONES_NS:
        raise ValueError(text)
    if offset is not None:  # it decides; the zone is said besides
        return parse_rfc3339(local + offset)
    if iana is None:
        return local_ns - _ZONES_NS[name]
    moment = (_EPOCH + timedelta(seconds=local_ns // NS_PER_S)).replace(tzinfo=_zone(iana))
    shift = moment.utcoffset()
    assert shift is not None
    return local_ns - int(shift.total_seconds()) * NS_PER_S


def _nearest_year(match: re.Match[str], near_us: int) -> int:
    """Read a time without a year as the one nearest to ``near_us``: at new year, December was last year."""
    month = _MONTHS.index(match["month"]) + 1
    this_year = (_EPOCH + timedelta(microseconds=near_us)).year
    times = []
    for year in (this_year - 1, this_year, this_year + 1):
        with contextlib.suppress(BadInput, ValueError):  # 29 February is not in every year
            times.append(parse_timestamp(f"{year}-{month:02d}-{match['day']:0>2}T{match['clock']}"))
    return min(times, key=lambda ns: abs(ns // NS_PER_US - near_us))


_ZONES_NS = {name: hours * 3_600 * NS_PER_S for name, hours in _ZONES.items()}


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError) as exc:  # a folder of zones, or none
        raise ValueError(name) from exc


def _as_rfc3339(text: str) -> str:
    """Return a time of another form as RFC 3339; what is of no known form comes back as it was."""
    match = next(filter(None, (form.match(text) for form in _OTHER_FORMS)), None)
    if match is None:
        return text
    part = match.groupdict()
    month = part["month"]
    if month in _MONTHS:
        month = f"{_MONTHS.index(month) + 1:02d}"
    clock = f"{part['hour']}:{part['minute']}:{part['second']}"
    return f"{part['year']}-{month}-{part['day']:0>2}T{clock}{part['rest']}"


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # pragma: no cover - the pattern admits nothing Decimal refuses
        raise _bad_time(text) from None


@lru_cache(maxsize=4096)
def _prefix(second: int) -> str:
    """``YYYY-MM-DDTHH:MM:SS`` of seconds since 1970."""
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]


def format_ns(ns: int) -> str:
    """Return RFC 3339 in UTC with as many fraction digits (0, 3, 6 or 9) as the time needs.

    Raises:
        BadInput: If it lies outside the years 1 to 9999.

    >>> format_ns(1_500_000_000), format_ns(1)
    ('1970-01-01T00:00:01.500Z', '1970-01-01T00:00:00.000000001Z')
    """
    second, rest = divmod(ns, NS_PER_S)
    try:
        prefix = _prefix(second)
    except OverflowError:
        raise _bad_time(ns) from None
    if not rest:
        return prefix + "Z"
    if rest % 1_000:
        return f"{prefix}.{rest:09d}Z"
    if rest % 1_000_000:
        return f"{prefix}.{rest // 1_000:06d}Z"
    return f"{prefix}.{rest // 1_000_000:03d}Z"


def format_us(us: int) -> str:
    """Return RFC 3339 in UTC of microseconds since 1970.

    >>> format_us(1_500_000)
    '1970-01-01T00:00:01.500Z'
    """
    return format_ns(us * NS_PER_US)


def parse_duration(text: str) -> timedelta:
    """Return the duration that ``text`` names: ``5m``, ``60s``, ``30d``, ``1h30m``, ``250ms``.

    Raises:
        BadInput: If it is no duration, or too long for one.

    >>> parse_duration("1h30m")
    datetime.timedelta(seconds=5400)
    """
    if not _DURATION.match(text):
        raise BadInput(f'cannot parse duration "{_shown(text)}"; expected a number and a unit, such as 5m, 60s or 30d')
    try:
        return timedelta(microseconds=sum(int(n) * _UNITS_US[unit] for n, unit in _DURATION_PART.findall(text)))
    except OverflowError:
        raise BadInput(f'duration "{_shown(text)}" is too long; expected at most 999999999d') from None


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that ``parse_duration`` reads back as ``duration``, days being the longest unit.

    Raises:
        ValueError: If it is negative.

    >>> format_duration(timedelta(minutes=90)), format_duration(timedelta(days=30))
    ('1h30m', '30d')
    """
    rest = duration // timedelta(microseconds=1)
    if rest < 0:
        raise ValueError(f"a duration cannot be negative, got {duration}")
    parts = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, rest = divmod(rest, _UNITS_US[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


_FIRST_US = -62_135_596_800 * US_PER_S  # 0001-01-01
_LAST_US = 253_402_300_800 * US_PER_S  # 10000-01-01


def parse_time(text: str, now_us: int) -> int:
    """Return the microseconds since 1970 that an API's or a query's time names.

    RFC 3339, an epoch by magnitude, ``now``, ``now-15m``, ``now+1h``, and each of the last three
    rounded down to a unit in UTC: ``now-1d/d``.

    Raises:
        BadInput: If it is none of these.

    >>> parse_time("now-15m", 3_600_000_000) == 2_700_000_000
    True
    """
    text = text.strip()
    if text.startswith("now"):
        match = _RELATIVE.match(text)
        if match is None:
            raise BadInput(f'cannot parse time "{_shown(text)}"; expected now, now-15m or now-1d/d')
        sign, amount, unit = match.groups()
        time_us = now_us
        if amount:
            shift = parse_duration(amount) // timedelta(microseconds=1)
            time_us += shift if sign == "+" else -shift
        if unit:
            time_us -= time_us % _UNITS_US[unit]
    else:
        try:
            time_us = parse_timestamp(text) // NS_PER_US
        except BadInput:
            raise BadInput(
                f'cannot parse time "{_shown(text)}"; expected RFC 3339, such as 2024-12-25T13:00:00Z, or now-15m'
            ) from None
    if not _FIRST_US <= time_us <= _LAST_US:
        raise BadInput(f'time "{_shown(text)}" is out of range; expected a year from 1 to 9999')
    return time_us
