"""Oracle: the query tree evaluated over plain records, the slow and obvious way.

What a store must find. It shares with the stores only ``tokenize``, ``regex`` and the table of fields.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from logsvc import regex
from logsvc.fields import LEVELS, MAX_TOKEN_CHARS, FieldType, resolve
from logsvc.query import And, Exists, Match, MatchAll, Node, Not, Or, Prefix, Range, Term, Words, tokenize
from logsvc.records import Entry
from logsvc.store import Dimension, Span, WindowCount
from logsvc.timestamps import parse_rfc3339

ALWAYS = Span()


class Stored:
    """One entry with its source decoded."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.source: dict[str, Any] = msgspec.json.decode(entry.source)
        self._tokens: dict[str, list[str]] = {}

    def values(self, field_name: str) -> list[Any]:
        """Return the comparable values of a field: keywords as bytes, dates in microseconds."""
        field = resolve(field_name)
        assert field is not None, field_name
        if field.type is FieldType.LABELS:
            value = self.source.get("labels", {}).get(field_name.removeprefix("labels."))
        else:
            value = self.source.get(field_name)
        if value is None:
            return []
        values = value if isinstance(value, list) else [value]
        if field.type is FieldType.DATE:
            return [parse_rfc3339(value) // 1000 for value in values]
        if field.type is FieldType.LONG:
            return values
        return [value[:MAX_TOKEN_CHARS].encode() for value in values]

    def tokens(self, field_name: str) -> list[str]:
        if field_name not in self._tokens:
            self._tokens[field_name] = tokenize(self.source.get(field_name) or "")
        return self._tokens[field_name]


def _comparable(value: str | int | None) -> Any:
    return value.encode() if isinstance(value, str) else value


def matches(node: Node, stored: Stored) -> bool:
    """Return whether the record is a hit."""
    match node:
        case MatchAll():
            return True
        case Words(fields, tokens, is_prefix):
            return any(_has_words(stored.tokens(field), tokens, is_prefix) for field in fields)
        case Term(field, value):
            return _comparable(value) in stored.values(field)
        case Prefix(field, value):
            return any(found.startswith(value.encode()) for found in stored.values(field))
        case Match(fields, pattern, is_of_words):
            compiled = re.compile(regex.write(pattern, re.escape), re.DOTALL)
            of = stored.tokens if is_of_words else lambda field: [value.decode() for value in stored.values(field)]
            return any(compiled.fullmatch(text) for field in fields for text in of(field))
        case Exists(field):
            found = resolve(field)
            if found is not None and found.type is FieldType.TEXT:
                return bool(stored.tokens(field))
            return bool(stored.values(field))
        case Range():
            return any(_in_range(node, value) for value in stored.values(node.field))
        case And(children):
            return all(matches(child, stored) for child in children)
        case Or(children):
            return any(matches(child, stored) for child in children)
        case Not(child):
            return not matches(child, stored)


def _has_words(tokens: list[str], wanted: tuple[str, ...], is_prefix: bool) -> bool:
    if is_prefix:
        return any(token.startswith(wanted[0]) for token in tokens)
    n = len(wanted)
    return any(tuple(tokens[i : i + n]) == wanted for i in range(len(tokens) - n + 1))


def _in_range(node: Range, value: Any) -> bool:
    low, high = _comparable(node.low), _comparable(node.high)
    if low is not None and (value < low or (value == low and not node.includes_low)):
        return False
    return not (high is not None and (value > high or (value == high and not node.includes_high)))


def in_span(time_us: int, span: Span) -> bool:
    return (span.start_us is None or time_us >= span.start_us) and (span.end_us is None or time_us < span.end_us)


def hits(entries: Iterable[Entry], tenant: str, query: Node, span: Span = ALWAYS) -> list[Entry]:
    """Return the hits, oldest first."""
    found = [e for e in entries if e.tenant == tenant and in_span(e.time_us, span) and matches(query, Stored(e))]
    return sorted(found, key=lambda e: (e.time_us, e.seq))


def window_counts(
    entries: Iterable[Entry], tenant: str, ingested: Span, span: Span, step_us: int, dimensions: frozenset[Dimension]
) -> set[WindowCount]:
    """Count by brute force; the meaning of each dimension as store/__init__.py says it."""
    counts: Counter[tuple[str, int, Dimension, str]] = Counter()
    for entry in entries:
        if entry.tenant != tenant or not in_span(entry.ingested_us, ingested) or not in_span(entry.time_us, span):
            continue
        source = msgspec.json.decode(entry.source)
        severity = source["event.severity"]
        is_error = severity >= LEVELS["error"]
        keys: dict[Dimension, Callable[[], Any]] = {
            Dimension.LEVEL: lambda s=source: s["log.level"],
            Dimension.TEMPLATE: lambda s=source, v=severity: s["log.template.id"] if v >= LEVELS["warn"] else None,
            Dimension.STATUS: lambda s=source: s.get("task.status"),
            Dimension.CUSTOMER: lambda s=source: s.get("organization.id"),
            Dimension.CUSTOMER_ERROR: lambda s=source, b=is_error: s.get("organization.id") if b else None,
            Dimension.DURATION: lambda e=entry: None if e.duration_bucket is None else str(e.duration_bucket),
            Dimension.VERSION: lambda s=source: s.get("service.version"),
            Dimension.VERSION_ERROR: lambda s=source, b=is_error: s.get("service.version") if b else None,
        }
        step = entry.time_us // step_us * step_us
        for dimension in dimensions:
            key = keys[dimension]()
            if key is not None:
                counts[entry.unit, step, dimension, key] += 1
    return {WindowCount(*key, count) for key, count in counts.items()}
