"""Made-up traffic for detectors: records of a few tasks, and a replay of them tick by tick."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from detectors.base import DAY_US, TICK_US, Count, Grid, Judgement
from detectors.calibrate import Budgets
from detectors.engine import Engine
from detectors.incidents import Change, ChangeKind, Facts, Incident
from detectors.templates import Merging

NOW_US = 1_795_348_800_000_000
"""2026-11-22T12:00:00Z."""

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US


class Event(NamedTuple):
    """One record as detection sees it."""

    time_us: int
    ingested_us: int
    unit: str
    level: str = "info"
    template: str = ""
    version: str = "1"
    duration_bucket: int | None = None
    customer: str = ""
    host: str = ""


def grid(window_s: float = 300, grace_s: float = 60) -> Grid:
    return Grid(round(window_s * 1e6), round(grace_s * 1e6))


def normal(
    unit: str,
    start_us: int,
    end_us: int,
    *,
    seed: int,
    per_minute: float = 10.0,
    errors: float = 0.01,
    warnings: float = 0.02,
    arrives_us: int | None = None,
) -> list[Event]:
    """Return ordinary records: Poisson arrivals, some known errors and warnings.

    They arrive within a few seconds, or all of them at ``arrives_us`` (history sent in one go).
    """
    rng = random.Random(f"{unit}{seed}")
    out = []
    at = float(start_us)
    while (at := at + rng.expovariate(per_minute / MINUTE_US)) < end_us:
        dice = rng.random()
        level, template = "info", ""
        if dice < errors:
            level, template = "error", f"{unit}-known-{rng.randrange(3)}"
        elif dice < errors + warnings:
            level, template = "warn", f"{unit}-warning"
        ingested = int(at + rng.uniform(0.1e6, 3e6)) if arrives_us is None else arrives_us
        out.append(Event(int(at), ingested, unit, level, template, duration_bucket=int(rng.gauss(200, 3))))
    return out


def burst(
    unit: str,
    start_us: int,
    *,
    n: int = 50,
    minutes: float = 5,
    template: str = "",
    arrives_us: int | None = None,
    version: str = "2",
) -> list[Event]:
    """Return ``n`` errors spread evenly over so many minutes."""
    gap = minutes * MINUTE_US / n
    times = [int(start_us + gap * i) for i in range(n)]
    template = template or f"{unit}-broken"
    return [
        Event(t, t + 1_000_000 if arrives_us is None else arrives_us, unit, "error", template, version) for t in times
    ]


def counts(events: Iterable[Event], step_us: int) -> list[Count]:
    """Return the events as counts, those of one step summed."""
    out: list[tuple[str, int, str, str]] = []
    for e in events:
        step = e.time_us // step_us * step_us
        out.append((e.unit, step, "level", e.level))
        if e.template and e.level in {"warn", "error", "fatal"}:
            out.append((e.unit, step, "template", e.template))
        if e.level in {"error", "fatal"}:
            out.append((e.unit, step, "version_error", e.version))
            if e.customer:
                out.append((e.unit, step, "customer_error", e.customer))
            if e.host:
                out.append((e.unit, step, "host_error", e.host))
        if e.duration_bucket is not None:
            out.append((e.unit, step, "duration", str(e.duration_bucket)))
    return [Count(*key, n) for key, n in Counter(out).items()]


def facts(judgement: Judgement) -> Facts:
    """Describe a judgement from the names alone: unit ``task:SERVICE.x`` is of SERVICE, ``dep:X`` templates name X."""
    named = {t.id for t in judgement.templates if t.id.startswith("dep:")}
    service = judgement.unit.partition(":")[2].partition(".")[0]
    return Facts(service, {t.id: t.id for t in judgement.templates}, frozenset(named))


def replay(
    events: Sequence[Event],
    until_us: int,
    *,
    cut: Grid | None = None,
    restart_at: Sequence[int] = (),
    budgets: Budgets | None = None,
) -> list[Change]:
    """Run the engine over the events' ticks through ``until_us``; start anew from what is kept at ``restart_at``."""
    cut = cut or grid()
    engine = Engine(cut, "default", facts, budgets=budgets)
    by_tick: dict[int, list[Event]] = {}
    for event in events:
        by_tick.setdefault(event.ingested_us // TICK_US * TICK_US + TICK_US, []).append(event)
    memory: dict[str, bytes] = {}
    changes: list[Change] = []
    restarts = sorted(restart_at)
    known: set[str] = set()
    for cutoff in range(min(by_tick), until_us + 1, TICK_US):
        if restarts and cutoff > restarts[0]:
            restarts.pop(0)
            memory |= engine.judge.memory()
            before = [e for e in events if e.ingested_us < cutoff - TICK_US]
            horizon = engine.judge.horizon_us(cutoff - TICK_US)
            engine = Engine(cut, "default", facts, memory, engine.incidents.encode(), budgets)
            known = Merging.ids(memory["templates"]) if "templates" in memory else set()
            engine.judge.restore(counts((e for e in before if e.time_us >= horizon), cut.step_us), cutoff - TICK_US)
        delta = by_tick.get(cutoff, [])
        if delta or not engine.is_idle(cutoff):
            # A template is named by its text.
            texts = {e.template: e.template for e in delta if e.template and e.template not in known}
            known |= texts.keys()
            changes += engine.advance(counts(delta, cut.step_us), cutoff, texts)
            memory |= engine.judge.memory()
    return changes


def opened(changes: Iterable[Change]) -> list[Incident]:
    """Return the incidents that were opened, as they stood last."""
    changes = list(changes)
    last = {change.incident.id: change.incident for change in changes}
    return [last[c.incident.id] for c in changes if c.kind is ChangeKind.OPENED]


__all__ = [
    "DAY_US",
    "HOUR_US",
    "MINUTE_US",
    "NOW_US",
    "Event",
    "burst",
    "counts",
    "facts",
    "grid",
    "normal",
    "opened",
    "replay",
]
