"""Explain: words for what was found, what failed runs share, and what error texts name.

Not here: which findings there are (engine.py), how a ticket is shown (the service).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from detectors.base import Finding, TemplateCount

_VARIABLE = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}(?:-[0-9a-f]{4,})*|\d+|'[^']*'|\"[^\"]*\"|<[^>]*>", re.IGNORECASE)
_NAME = re.compile(r"[a-z][a-z0-9_-]*(?:\.[a-z0-9_-]+)+", re.IGNORECASE)
_NO_NAME = re.compile(r".*\.(?:py|js|ts|go|java|rb|rs|c|h|so|md|txt|log|json|yaml|yml|sql|html?)\Z", re.IGNORECASE)
_CLASS = re.compile(r"(?:Caused by: )?(?:[a-z_]\w*\.)+[A-Z][\w$]*")
_NO_SAYING = re.compile(r"\s|\Z|Traceback \(most recent call last\)")
_AFTER = re.compile(r"^(?:goroutine \d+ \[|\[signal )", re.MULTILINE)
_LEAST_ENDING = 12
_SHAREABLE = frozenset(
    {
        "service.version",
        "service.environment",
        "service.node.name",
        "host.name",
        "container.id",
        "organization.id",
        "task.queue",
        "task.type",
    }
)
_LEAST_RUNS, _LEAST_SHARE, _LEAST_LIFT, _LEAST_SURPRISE = 5, 0.5, 1.5, 3.0


def names(record: Mapping[str, object], *, is_common: bool = False) -> frozenset[str]:
    r"""Return what an error record names: hosts, other tasks, and its own masked last line but for the stack.

    The line is left out if it ``is_common``, the words of a framework that all tasks use.

    Two tasks whose errors name the same thing at the same time have probably one cause. The class of an error
    is no such thing: that many have.

    >>> sorted(names({"error.type": "ConnectError", "error.message": "no route to pay-07.svc.internal:443"}))
    ['ConnectError: no route to pay-*.svc.internal:*', 'pay-*.svc.internal']
    >>> sorted(names({"message": "Error: getaddrinfo EAI_AGAIN core.lookup\n    at onlookup (node:dns:109:26)"}))
    ['Error: getaddrinfo EAI_AGAIN core.lookup', 'core.lookup']
    >>> sorted(
    ...     names({"message": "a.b.IoError: odd\n\tat a.b.C.d(C.java:1)\nCaused by: a.b.OddError: pg.internal gone"})
    ... )
    ['Caused by: a.b.OddError: pg.internal gone', 'pg.internal']
    """
    lines = _sayings(_text(record, "error.message")) or _sayings(_text(record, "message"))
    kind = _text(record, "error.type")
    own = {_text(record, name) for name in ("task.name", "service.name", "error.type", "host.name", "log.logger")}
    found = set()
    for text in lines:
        of_class = _CLASS.match(text)
        for match in _NAME.finditer(text, of_class.end() if of_class else 0):
            name = match.group().rstrip(".")
            if name not in own and not _NO_NAME.match(name):
                found.add(_VARIABLE.sub("*", name))
    last = lines[-1] if lines else ""
    line = _VARIABLE.sub("*", f"{kind}: {last}" if kind and kind not in last else last)
    if len(line) >= _LEAST_ENDING and not is_common:
        found.add(line[:200])
    return frozenset(found)


def error_line(record: Mapping[str, object]) -> str:
    r"""Return a record's error in one line, or nothing if it carries none: its type without the package, its message.

    >>> error_line(
    ...     {"message": "task x failed after 0.05 s", "error.type": "a.OddError", "error.message": "no b\n[SQL]"}
    ... )
    'OddError: no b'
    """
    kind, text = _text(record, "error.type").rpartition(".")[2], _text(record, "error.message").strip()
    first = text.splitlines()[0] if text else ""
    return f"{kind}: {first}" if kind and first else kind or first


def _text(record: Mapping[str, object], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _sayings(text: str) -> list[str]:
    """Return the lines of an error that say something: no frames of its stack, nor what announces them."""
    end = _AFTER.search(text)
    lines = text[: end.start() if end else None].splitlines()
    return [line.rstrip() for line in lines[:1]] + [line.rstrip() for line in lines[1:] if not _NO_SAYING.match(line)]


class Shared(NamedTuple):
    """A value that failed runs have in common and good ones do not; shares are 0…1.

    ``lift`` is how many times as common it is among the failed, ``surprise`` how odd that is.
    """

    field: str
    value: str
    runs: int
    failed: float
    good: float
    lift: float
    surprise: float

    def sentence(self) -> str:
        """Return it for people."""
        share = "all" if self.failed == 1 else f"{self.failed:.0%} of"
        return f"{share} {self.runs} failed runs have {self.field} {self.value}, of the good ones {self.good:.0%}"


def shared(failed: Iterable[Mapping[str, object]], others: Iterable[Mapping[str, object]]) -> list[Shared]:
    """Return what failed runs share and good ones do not, the highest lift first, three at most.

    Records are flat, with dotted keys. Those of one ``task.id`` are one run, and one that failed is no
    good one, whatever else it logged. Compared are versions, hosts, customers, queues and every label.

    >>> bad = [{"task.id": f"b{i}", "host.name": "pay-3", "labels.zone": "a"} for i in range(8)]
    >>> good = [{"task.id": f"g{i}", "host.name": f"pay-{i % 4}", "labels.zone": "a"} for i in range(40)]
    >>> [one.sentence() for one in shared(bad, good)]
    ['all 8 failed runs have host.name pay-3, of the good ones 25%']
    """
    bad = _runs(failed)
    good = {id: run for id, run in _runs(others).items() if id not in bad}
    if len(bad) < _LEAST_RUNS or len(good) < _LEAST_RUNS:
        return []
    alike = Counter(item for run in bad.values() for item in run.items())
    usual = Counter(item for run in good.values() for item in run.items())
    found = []
    for (name, value), k in alike.items():
        share, p = k / len(bad), (usual[name, value] + 0.5) / (len(good) + 1)
        if k < _LEAST_RUNS or share < _LEAST_SHARE or share < _LEAST_LIFT * p:
            continue
        s = -math.log10(max(_at_least(k, len(bad), p), 1e-300))
        if s >= _LEAST_SURPRISE:
            found.append(Shared(name, value, len(bad), share, usual[name, value] / len(good), share / p, s))
    return sorted(found, key=lambda one: (-one.lift, one.field, one.value))[:3]


def _at_least(k: int, n: int, p: float) -> float:
    """Return the chance that ``k`` or more of ``n`` have what one in 1/p has."""
    ways = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k, n + 1))
    return sum(math.exp(way + i * math.log(p) + (n - i) * math.log1p(-p)) for i, way in enumerate(ways, k))


def _runs(records: Iterable[Mapping[str, object]]) -> dict[str, dict[str, str]]:
    """Return what can be shared, by run; a record without one stands for itself."""
    runs: dict[str, dict[str, str]] = {}
    for place, record in enumerate(records):
        run = runs.setdefault(_text(record, "task.id") or f"record {_text(record, 'event.id') or place}", {})
        for name, value in record.items():
            if (name in _SHAREABLE or name.startswith("labels.")) and isinstance(value, str):
                run.setdefault(name, value[:200])
    return runs


def amount(value: float) -> str:
    """Return a number as people say it.

    >>> [amount(n) for n in (0, 0.04, 0.8, 42, 1234.5)]
    ['0', 'under 0.1', '0.8', '42', '1234']
    """
    if value >= 10 or value == int(value):
        return str(int(value))
    return "under 0.1" if value < 0.1 else f"{value:.1f}"


def span(us: int) -> str:
    """Return a length of time as people say it.

    >>> span(300_000_000), span(30_000_000), span(5_400_000_000)
    ('5 min', '30 s', '90 min')
    """
    seconds = us // 1_000_000
    return f"{seconds // 60} min" if seconds >= 60 and seconds % 60 == 0 else f"{seconds} s"


def sentence(finding: Finding) -> str:
    """Return one sentence for people.

    >>> sentence(Finding("errors", "records", 42, 0.8, 3.0, 300_000_000))
    '42 errors in 5 min, 0.8 expected'
    """
    seen, usual, over = amount(finding.observed), amount(finding.expected), span(finding.scale_us)
    match finding.feature:
        case "errors":
            return f"{seen} errors in {over}, {usual} expected"
        case "new_template":
            return f"an error never seen here before, {seen} times in {over}"
        case "template":
            return f"one known error {seen} times in {over}, {usual} expected"
        case "customer":
            return f"{seen} errors of {finding.name} in {over}, {usual} expected of this customer"
        case "host":
            return f"{seen} errors on {finding.name} in {over}, {usual} expected on this host"
        case "trend":
            by = f"the baseline pinned on {finding.name}" if finding.name else "the days before"
            return f"{seen} errors in {over}, {usual} expected by {by}"
        case "warnings":
            return f"{seen} warnings in {over}, {usual} expected"
        case "latency":
            return f"typical duration {seen} ms over {over}, {usual} ms expected"
        case "latency_tail":
            return f"{seen} durations in {over} some {finding.name} times as long as usual"
        case "unfinished":
            return f"{seen} runs ended in {over} of {usual} expected by what began"
        case "silence":
            others = ", while most of the others stopped too" if finding.name == "fleet" else ""
            return f"{seen} records in {over}, {usual} expected{others}"
        case _:
            parts = f"; how much of it is what: {finding.name}" if finding.name else ""
            return f"several things mildly odd together, as in no normal window before{parts}"


def title(unit: str, findings: Iterable[Finding], templates: Iterable[TemplateCount], texts: Mapping[str, str]) -> str:
    """Return what someone woken at night must know first; since when and the release are the ticket's to add."""
    name = unit.partition(":")[2]
    findings = list(findings)
    first = findings[0] if findings else None
    if first is not None and first.feature in {"new_template", "template"}:
        # The error itself follows; how many failed says more, if that was odd too.
        first = next((f for f in findings if f.feature == "errors" and f.strength >= 1), first)
    head = f"{name}: {sentence(first)}" if first is not None else f"{name}: odd"
    new = [t for t in templates if t.is_new]
    top = new[0] if new else next(iter(templates), None)
    if top is None or top.id not in texts:
        return head
    line = " ".join(texts[top.id].split())
    return f"{head}; {'new' if top.is_new else 'mostly'}: {line[:120]}{'…' if len(line) > 120 else ''}"
