"""Rendering: the lines of one file to finished records, many at a time.

A file is read faster than a program logs, so its lines do not take the way of log calls one by one.
Most of what a record says is the same for every line of a file and is encoded once; whether anything
in it must be masked is asked for many lines together; and a JSON line that needs no change goes on as
it stands, with what the agent adds before it.

What always holds: the records are those that ``Finisher`` makes of the same lines, field by field.

Not here: what a line says (lines.py), which lines are one record (multiline.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, Callable

from shippers import redact
from shippers.lines import LineParser, is_naive
from shippers.multiline import Joined
from shippers.record import Finisher

_TOGETHER = 32  # lines that are asked together whether any holds a secret
# What holds for a text with all its digits made 0 holds for the text (redact.might_hold).
_SHAPE = bytes.maketrans(b"123456789", b"000000000")
_KNOWN_SHAPES = 4096
_SHAPE_MAX_BYTES = 512
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
_scan_json: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

# Names under which a JSON line may say what the agent says too (the service's aliases, and nested).
_ORIGIN_NAMES = {
    "service.name": ("service",),
    "service.version": ("service", "version", "release"),
    "service.environment": ("service", "env"),
    "host.name": ("host",),
}
_OTHERS = frozenset(name for names in _ORIGIN_NAMES.values() for name in names)
_MESSAGE_NAMES = frozenset({"message", "msg", "body"})
_TIME_NAMES = ("@timestamp", "timestamp", "time", "ts")
_OURS = frozenset("event event.id event.sequence event.created log.file.path log.offset lvl".split())


class Renderer:
    """Makes finished records of the joined lines of one stream. Used by one thread.

    Args:
        finisher: Numbers, masks and encodes.
        parser: What the lines mean.
        fields: What every record of the stream says: service, environment.
        path: Its name.
    """

    def __init__(self, finisher: Finisher, parser: LineParser, fields: Mapping[str, Any], path: str) -> None:
        self._finisher = finisher
        self._sequences = finisher.sequences
        self._parser = parser
        self._fields = fields
        self._path = path
        base = {**finisher.base(), **fields, "log.file.path": path}
        base = {name: redact.mask(value)[0] if type(value) is str else value for name, value in base.items()}
        self._known_shapes: dict[bytes, bool] = {}
        self._start = _encode_json(base)[:-1]
        self._contending = frozenset(base) | _OTHERS | _OURS

    def render(self, identity: str, joined: Sequence[Joined[int]], read_at: str) -> list[bytes]:
        """Return the records of ``joined``, which were read at ``read_at`` from the content ``identity``."""
        start = f'{self._start},"event.created":"{read_at}","event.id":"{identity}-'
        lines: list[bytes] = []
        quick = 0  # numbered here
        for first in range(0, len(joined), _TOGETHER):
            group = joined[first : first + _TOGETHER]
            for one, may_hold in zip(group, self._may_hold(group)):
                line = None if may_hold else self._quickly(one, start, read_at)
                if line is not None:
                    quick += 1
                    lines.append(line.encode("utf-8", "replace"))
                elif one.text.strip():
                    lines.append(self._finisher.finish(self._record(one, identity, read_at)))
        self._finisher.sequence += quick
        return lines

    def _may_hold(self, group: Sequence[Joined[int]]) -> list[bool]:
        """Tell of each line whether it may hold a secret, asking once for all lines of one shape."""
        shapes = [one.text.encode("utf-8", "replace").translate(_SHAPE) for one in group]
        known = self._known_shapes
        unknown = [shape for shape in shapes if shape not in known]
        if unknown:
            if len(known) > _KNOWN_SHAPES:
                known = self._known_shapes = {}
                unknown = shapes
            may_any = redact.might_hold(b"\n".join(unknown).decode())
            answers = {shape: may_any and redact.might_hold(shape.decode()) for shape in unknown}
            known.update((shape, answer) for shape, answer in answers.items() if len(shape) <= _SHAPE_MAX_BYTES)
            return [answers[shape] if shape in answers else known[shape] for shape in shapes]
        return [known[shape] for shape in shapes]

    def _quickly(self, one: Joined[int], start: str, read_at: str) -> str | None:
        """Return the record of a line that needs neither masking nor much thought; None for another."""
        text, form = one.text, self._parser.form
        if not self._parser.is_plain or "\n" in text or "\x1b" in text:
            return None
        offset = one.mark
        if text[:1] == "{" and form in ("auto", "json"):
            # These may hide a secret or stand for what a record leaves out: such a line is read and written anew.
            if "\\u" in text or "null" in text or "NaN" in text or "Infinity" in text:
                return None
            try:
                fields, end = _scan_json(text, 0)
            except (ValueError, StopIteration, RecursionError):
                return None
            if end != len(text):
                return None
            names = fields.keys()
            if not names or not self._contending.isdisjoint(names) or _MESSAGE_NAMES.isdisjoint(names):
                return None
            given = ""
            for name in _TIME_NAMES:
                if name in fields:
                    if is_naive(fields[name]):
                        return None
                    break
            else:
                given = f',"@timestamp":"{read_at}"'
            return (
                f'{start}{offset:x}","event.sequence":{next(self._sequences)},"log.offset":{offset}{given},{text[1:]}'
            )
        if form == "logfmt" or (form == "auto" and "=" in text) or not text.strip():
            return None
        time, level, message = self._parser.parse_head(text, read_at)
        return (
            f'{start}{offset:x}","event.sequence":{next(self._sequences)},"log.offset":{offset}'
            f',"@timestamp":"{time or read_at}","log.level":"{level or "info"}"'
            f',"message":{encode_basestring(message or text)}}}'
        )

    def _record(self, one: Joined[int], identity: str, read_at: str) -> dict[str, Any]:
        record = self._parser.parse(one.text, read_at)
        for name, others in _ORIGIN_NAMES.items():
            # A line that says itself which service it is from is believed.
            if name not in record and any(other in record for other in others):
                record[name] = None
            elif name in self._fields:
                record.setdefault(name, self._fields[name])
        if not any(key in record for key in ("event.id", "event")):
            record["event.id"] = f"{identity}-{one.mark:x}"
        record["log.file.path"] = self._path
        record["log.offset"] = one.mark
        return record
