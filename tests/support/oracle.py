"""Oracle: what a store must find and count, by brute force over plain records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from logsvc.fields import LEVELS
from logsvc.matching import Candidate, matches
from logsvc.query import Node
from logsvc.records import Entry
from logsvc.store import Dimension, Span, WindowCount

ALWAYS = Span()


def in_span(time_us: int, span: Span) -> bool:
    return (span.start_us is None or time_us >= span.start_us) and (span.end_us is None or time_us < span.end_us)


def hits(entries: Iterable[Entry], tenant: str, query: Node, span: Span = ALWAYS) -> list[Entry]:
    """Return the hits, oldest first."""
    found = [
        e for e in entries if e.tenant == tenant and in_span(e.time_us, span) and matches(query, Candidate(e.source))
    ]
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
            Dimension.HOST_ERROR: lambda s=source, b=is_error: s.get("host.name") if b else None,
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
