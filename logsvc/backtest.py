"""Backtest: records of the past, from a file or a service, read the way ingest reads them, for detection to replay.

A record's time of arrival is its ``event.ingested``; without one it is taken to have come when it
happened. Only counts are kept for most records; those at warn or above are kept whole, because a
ticket names and groups by them. The order of the records in a file never matters.

Not here: what is odd (detectors/), the replay itself (detection.py), the command (__main__.py).
"""

from __future__ import annotations

import bisect
import gzip
import io
import itertools
import math
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
import zstandard

from logsvc.drafts import (
    END_OF_TIME_NS,
    MAX_LABEL_CHARS,
    MAX_RECORD_BYTES,
    Draft,
    TooLarge,
    keys_of,
    read,
)
from logsvc.errors import BadInput
from logsvc.fields import LEVELS
from logsvc.normaliser import ItemResult, Normaliser, Origin, decode_item, set_template
from logsvc.store import Dimension
from logsvc.timestamps import NS_PER_US, parse_rfc3339, parse_timestamp
from shippers import redact

_MAGIC_GZIP, _MAGIC_ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_FACTS = {  # attributes of a record that texts and names are made of
    "message": "message",
    "error_type": "error.type",
    "error_message": "error.message",
    "host_name": "host.name",
    "log_logger": "log.logger",
    "log_template_text": "log.template.text",
    "service_name": "service.name",
    "task_name": "task.name",
}
_NAMES = frozenset({"task_name", "service_name", "service_version", "organization_id"})
_OF_ERRORS = (
    ("organization_id", Dimension.CUSTOMER_ERROR),
    ("host_name", Dimension.HOST_ERROR),
    ("service_version", Dimension.VERSION_ERROR),
)
_COUNTED = keys_of(*_NAMES, "log_level", "event_severity", "timestamp", "event_duration", "event_id")
_Scalar = str | int | float | bool | None
_TYPES: dict[str, Any] = {  # of what is used of a record that is like one before
    "task_name": str | None,
    "service_name": str | None,
    "log_level": str | int | None,
    "event_severity": str | int | None,
    "timestamp": str,
    "ingested": str | int | float | None,
    "event_id": str | None,
    "event_duration": str | int | float | None,
}
_USED = {key: attribute for attribute in _TYPES for key in keys_of(attribute)}
_USED |= dict.fromkeys(("event.ingested", "ingested"), "ingested")
_MOST_KEYS = 256
_TICKS_AT_ONCE = 1024
_REASONS = {
    "not_json": "not JSON",
    "not_object": "no JSON object",
    "too_large": "too large",
    "too_deep": "nested too deeply",
}
_MOST_ALIKE = 65_536
_DAY_US = 86_400_000_000
_NO_TIME_US = END_OF_TIME_NS // NS_PER_US - 2 * _DAY_US  # what a record without a time is given


@lru_cache(maxsize=65_536)
def _masked(text: str) -> str:
    return redact.mask(text)[0] if redact.might_hold(text) else text


class Sample(NamedTuple):
    """A record at warn or above, as far as tickets speak of it; sorts by time, then by its place in the file."""

    time_us: int
    place: int
    ingested_us: int
    record: Mapping[str, object]


class _Alike(NamedTuple):
    """What records below warn with the same names and level have in common."""

    number: int  # of the unit, as ``History`` codes it
    code: int  # of unit and level


class _Form:
    """How most objects of a file look: flat, with keys seen before, none of which says what another says.

    Attributes:
        keys: The key of each attribute that is used; the others are only checked.
    """

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self._others: set[str] = set()
        self._is_stale = True
        self._type: Any = None
        self._decoder: Any = None

    def learn(self, sent: Mapping[str, Any]) -> None:
        """Let objects have the keys of this one."""
        for key, value in sent.items():
            attribute = _USED.get(key)
            if type(value) is dict or len(self._others) >= _MOST_KEYS:
                continue
            if attribute is None and key not in self._others:
                self._others.add(key)
            elif attribute is not None and attribute not in self.keys:
                self.keys[attribute] = key
            else:
                continue
            self._is_stale = True

    def decode(self, text: bytes) -> Any:
        """Return a struct with what is used of an object's text, None for what it lacks.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError: If it has not this form, or is no object at all.
        """
        if self._is_stale:
            self._build()
        return self._decoder.decode(text)

    def convert(self, sent: Mapping[str, Any]) -> Any:
        """Return the same of an object that is decoded already."""
        if self._is_stale:
            self._build()
        return msgspec.convert(sent, self._type)

    def _build(self) -> None:
        renamed = {**self.keys, **{f"other{n}": key for n, key in enumerate(sorted(self._others))}}
        made = [(name, _TYPES.get(name, _Scalar), None) for name in renamed]
        lacking = dict.fromkeys(_TYPES.keys() - self.keys.keys())
        self._type = msgspec.defstruct(
            "Form", made, namespace=lacking, rename=renamed, forbid_unknown_fields=True, gc=False
        )
        self._decoder = msgspec.json.Decoder(self._type)
        self._is_stale = False


class History:
    """Records of one tenant, counted by tick of arrival and step of event time.

    Args:
        tenant: Whose tickets these would have been; part of a ticket's id.
        step_us: How far a window advances.
        tick_us: Length of a tick of ``event.ingested``.
    """

    def __init__(self, tenant: str, *, step_us: int, tick_us: int) -> None:
        self.tenant = tenant
        self.records = 0
        self.texts: dict[str, str] = {}  # of each template at warn or above, by its id
        self.refused: dict[str, int] = {}  # reason → records that could not be read
        self.examples: dict[str, str] = {}  # reason → where the first was, and what about it
        self._seen = 0
        self._ids: set[int] = set()  # hashes of those seen
        self._step_us = step_us
        self._tick_us = tick_us
        self._normaliser = Normaliser(b"")
        self._origin = Origin(tenant, "", "backtest", "", _NO_TIME_US)
        self._units: dict[str, int] = {}
        self._keys: dict[tuple[Dimension, str], int] = {}
        # One entry a count: tick, unit and key in one number, step.
        self._ticks, self._codes, self._steps = array("q"), array("q"), array("q")
        self._samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        self._services: dict[str, str] = {}
        self._form = _Form()
        self._alike: dict[tuple[object, ...], _Alike] = {}  # by names and level
        self._is_sorted = True

    def add(self, item: bytes | Mapping[str, Any]) -> None:
        """Take one record: a JSON object, or its text."""
        self._seen += 1
        if self._count_regular(item):
            return
        sent = decode_item(item) if isinstance(item, bytes) else dict(item)
        if isinstance(sent, ItemResult):
            self.refuse(_REASONS.get(sent.code or "", "not a record"), sent.reason or "")
            return
        try:
            draft = self._read(sent)
        except TooLarge:
            self.refuse("too large")
            return
        assert draft.time is not None  # complete() has set it
        time_us = draft.time // NS_PER_US
        if time_us == _NO_TIME_US:
            self.refuse("without a time that can be read")
            return
        if self._is_repeated(draft.values.get("event_id")):
            return
        self._count(draft.values, *_times(time_us, _ingested_us(sent)))
        if draft.values.get("event_severity", 9) < LEVELS["warn"] and len(self._alike) < _MOST_ALIKE:
            self._learn_form(sent, draft.values)

    def _count_regular(self, item: bytes | Mapping[str, Any]) -> bool:
        """Count a record of which only time, id and duration are new; return whether it was one.

        Most records are like one before. To read them in full takes ten times as long.
        """
        if len(item) > MAX_RECORD_BYTES:
            return False
        try:
            one = self._form.decode(item) if isinstance(item, bytes) else self._form.convert(item)
            alike = self._alike.get((one.task_name, one.service_name, one.log_level, one.event_severity))
            if alike is None:
                return False
            time_us = parse_rfc3339(one.timestamp) // NS_PER_US
            came: object = one.ingested
            ingested_us = None if came is None else parse_timestamp(came) // NS_PER_US
        except (msgspec.MsgspecError, UnicodeDecodeError, BadInput):
            return False
        id: str | None = one.event_id
        if not 0 <= time_us < _NO_TIME_US or (id is not None and not (id.isascii() and 0 < len(id) <= MAX_LABEL_CHARS)):
            return False
        if self._is_repeated(id):
            return True
        tick, step = self._place(*_times(time_us, ingested_us))
        self._append(tick, alike.code, step)
        if one.event_duration is not None:
            duration = read({self._form.keys["event_duration"]: one.event_duration}).values.get("event_duration")
            if duration is not None:
                self._append(tick, alike.number | self._key(Dimension.DURATION, _bucket(duration)), step)
        self.records += 1
        return True

    def _learn_form(self, sent: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Remember a record below warn that was read in full, so that those like it can be counted at once."""
        self._form.learn(sent)
        try:
            one = self._form.convert(sent)
        except msgspec.MsgspecError:
            return
        number = self._units[_unit(values)] << 32
        level = self._keys[Dimension.LEVEL, values["log_level"]]
        self._alike[one.task_name, one.service_name, one.log_level, one.event_severity] = _Alike(number, number | level)

    def _read(self, sent: Mapping[str, Any]) -> Draft:
        """Read a record as ingest does, but below warn no further than what is counted."""
        near_us = _ingested_us(sent)
        draft = read({key: value for key, value in sent.items() if key in _COUNTED or type(value) is dict}, near_us)
        self._normaliser.complete(draft, self._origin)
        if draft.values.get("event_severity", 9) >= LEVELS["warn"]:
            draft = read(sent, near_us)
            self._normaliser.complete(draft, self._origin)
            set_template(draft, self._normaliser.mask(draft, self.tenant))
        else:
            for attribute in _NAMES.intersection(draft.values):
                draft.values[attribute] = _masked(draft.values[attribute])
        return draft

    def _is_repeated(self, id: str | None) -> bool:
        """Return whether a record had this id before; as in a store, the first counts."""
        if id is None:
            return False
        known = len(self._ids)
        self._ids.add(hash(id))
        if len(self._ids) > known:
            return False
        self.refuse("its event.id was there before", id)
        return True

    def refuse(self, reason: str, detail: str = "") -> None:
        """Count what cannot be used, and keep the first for people to look at."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self.examples.setdefault(reason, f"record {self._seen:,}" + (f": {detail}" if detail else ""))

    def _count(self, values: Mapping[str, Any], time_us: int, ingested_us: int) -> None:
        unit = _unit(values)
        number = self._units.setdefault(unit, len(self._units)) << 32
        tick, step = self._place(time_us, ingested_us)
        severity = values.get("event_severity", 9)
        duration = values.get("event_duration")
        found = [(Dimension.LEVEL, values["log_level"])]
        if duration is not None:
            found.append((Dimension.DURATION, _bucket(duration)))
        if severity >= LEVELS["warn"]:
            template = values["log_template_id"]
            found.append((Dimension.TEMPLATE, template))
            if severity >= LEVELS["error"]:
                found += [(dimension, values[name]) for name, dimension in _OF_ERRORS if values.get(name) is not None]
            self.texts.setdefault(template, values["log_template_text"] or "")
            record = {name: values[attribute] for attribute, name in _FACTS.items() if attribute in values}
            self._samples[unit, template].append(Sample(time_us, self.records, ingested_us, record))
            self._is_sorted = False
        self._services.setdefault(unit, values["service_name"])
        for dimension, key in found:
            self._append(tick, number | self._key(dimension, key), step)
        self.records += 1

    def _place(self, time_us: int, ingested_us: int) -> tuple[int, int]:
        """Return the tick of arrival and the step."""
        tick = ingested_us // self._tick_us * self._tick_us + self._tick_us
        return tick, time_us // self._step_us * self._step_us

    def _key(self, dimension: Dimension, key: str) -> int:
        return self._keys.setdefault((dimension, key), len(self._keys))

    def _append(self, tick: int, code: int, step: int) -> None:
        self._ticks.append(tick)
        self._codes.append(code)
        self._steps.append(step)

    def ticks(self) -> Iterator[tuple[int, list[tuple[str, int, str, str, int]]]]:
        """Yield (tick, counts) for rising ticks with records; a tick names its end.

        A count is (unit, step, dimension, key, records).
        """
        ticks, codes, steps = (np.frombuffer(part, np.int64) for part in (self._ticks, self._codes, self._steps))
        if not ticks.size:
            return
        order = np.lexsort((steps, codes, ticks))
        ticks, codes, steps = ticks[order], codes[order], steps[order]
        differs = (np.diff(ticks) != 0) | (np.diff(codes) != 0) | (np.diff(steps) != 0)
        first = np.concatenate([[0], np.flatnonzero(differs) + 1])
        numbers = np.diff(np.concatenate([first, [ticks.size]]))
        ticks, codes, steps = ticks[first], codes[first], steps[first]
        edges = np.concatenate([[0], np.flatnonzero(np.diff(ticks)) + 1, [ticks.size]]).tolist()
        units = list(self._units)
        keys = [(dimension.value, key) for dimension, key in self._keys]
        for first_edge in range(0, len(edges) - 1, _TICKS_AT_ONCE):
            some = edges[first_edge : first_edge + _TICKS_AT_ONCE + 1]
            parts = (part[some[0] : some[-1]].tolist() for part in (codes, steps, numbers))
            counts = [
                (units[code >> 32], step, *keys[code & 0xFFFFFFFF], n) for code, step, n in zip(*parts, strict=True)
            ]
            for low, high in itertools.pairwise(some):
                yield int(ticks[low]), counts[low - some[0] : high - some[0]]

    def first(self, unit: str, template: str, start_us: int, end_us: int, known_us: int) -> Mapping[str, object] | None:
        """Return the unit's oldest record of a template in ``[start, end)`` that had arrived before ``known_us``."""
        if not self._is_sorted:
            for samples in self._samples.values():
                samples.sort(key=lambda sample: sample[:2])
            self._is_sorted = True
        samples = self._samples.get((unit, template), [])
        for sample in samples[bisect.bisect_left(samples, (start_us,)) :]:
            if sample.time_us >= end_us:
                return None
            if sample.ingested_us < known_us:
                return sample.record
        return None

    def service(self, unit: str) -> str | None:
        """Return the service of a unit."""
        return self._services.get(unit)

    @property
    def units(self) -> list[str]:
        """The units, ``task:NAME`` or ``service:NAME``."""
        return list(self._units)


def _times(time_us: int, ingested_us: int | None) -> tuple[int, int]:
    """Return when a record happened and when it came; it cannot have come more than a day before."""
    if ingested_us is None:
        return time_us, time_us
    return ingested_us if time_us > ingested_us + _DAY_US else time_us, ingested_us


def _unit(values: Mapping[str, Any]) -> str:
    task = values.get("task_name")
    return f"task:{task}" if task else f"service:{values['service_name']}"


def _bucket(duration_ns: int) -> str:
    return str(math.floor(24 * math.log10(duration_ns or 1)))


def _ingested_us(sent: Mapping[str, Any]) -> int | None:
    value = sent.get("event.ingested")
    if value is None:
        event = sent.get("event")
        value = event.get("ingested") if isinstance(event, Mapping) else sent.get("ingested")
    if value is None:
        return None
    try:
        return parse_timestamp(value) // NS_PER_US
    except BadInput:
        return None


def lines(path: Path, damaged: Callable[[str], None]) -> Iterator[bytes]:
    """Yield the lines of a file: plain, gzip or zstd, told by its first bytes.

    Args:
        path: The file.
        damaged: Told what is wrong with a packed file whose end cannot be read; what came before counts.

    Raises:
        BadInput: If nothing of it can be read.
    """
    is_read = False
    try:
        with path.open("rb") as raw:
            magic = raw.read(4)
            raw.seek(0)
            for line in _opened(raw, magic):
                is_read = True
                if line.strip():
                    yield line
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        if not is_read:
            raise BadInput(f"cannot read {str(path)!r}: {reason}") from exc
        damaged(reason)


def _opened(raw: IO[bytes], magic: bytes) -> Iterable[bytes]:
    if magic.startswith(_MAGIC_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if magic == _MAGIC_ZSTD:
        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True),
            1 << 20,
        )
    return raw


EXPORTED = ",".join(
    dict.fromkeys(_FACTS.values())
    | dict.fromkeys(("log.level", "event.severity", "service.version", "organization.id", "event.duration"))
    | dict.fromkeys(("error.stack_trace", "event.ingested", "@timestamp", "event.id"))
)
"""Fields that a history is made of, as an export names them."""


def write_flags(path: Path, flags: Iterable[Mapping[str, object]]) -> None:
    """Write flags as a JSON list."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(list(flags)), indent=1) + b"\n")


def write_records(path: Path, records: Iterable[Mapping[str, object]]) -> int:
    """Write records as NDJSON in gzip; return how many."""
    n = 0
    with gzip.open(path, "wb", compresslevel=1) as out:
        for record in records:
            out.write(msgspec.json.encode(record) + b"\n")
            n += 1
    return n
