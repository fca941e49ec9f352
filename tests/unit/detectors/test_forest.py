"""The forest: when there is one, what it learned from, and what only it sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from detectors.base import CHANNELS, NO_MODEL, TICK_US, Grid
from detectors.engine import Engine, Judge
from detectors.forest import Forest, _mean_path
from tests.unit.detectors.traffic import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    NOW_US,
    Event,
    burst,
    counts,
    facts,
    grid,
    normal,
    opened,
    replay,
)

TASKS = ("task:billing.charge", "task:email.send", "task:report.build")


def history(hours: float, per_minute: float, units: Sequence[str] = TASKS) -> list[Event]:
    """Return quiet traffic that arrives within half a minute, the oldest first."""
    start = round(NOW_US - hours * HOUR_US)
    return [
        e._replace(ingested_us=NOW_US + (e.time_us - start) * 30_000_000 // (NOW_US - start))
        for unit in units
        for e in normal(unit, start, NOW_US, seed=5, per_minute=per_minute)
    ]


def fed(events: list[Event], cut: Grid, *, ahead: bool = True) -> Judge:
    """Return the judge right after the ticks that brought ``events``."""
    judge = Judge(cut)
    last = max(e.ingested_us for e in events) // TICK_US * TICK_US + TICK_US
    for cutoff in range(NOW_US + TICK_US, last + 1, TICK_US):
        delta = [e for e in events if e.ingested_us // TICK_US * TICK_US + TICK_US == cutoff]
        judge.advance(counts(delta, cut.step_us), cutoff)
        if ahead:
            judge.prepare()
    return judge


@pytest.mark.parametrize(
    ("window_s", "hours", "per_minute", "tasks"),
    [(60, 24, 7.5, 3), (300, 20, 3, 3), (300, 20, 3, 1), (30, 20, 3, 2)],
)
def test_a_day_of_history_sent_in_one_go_gives_a_model_at_once(
    window_s: float, hours: float, per_minute: float, tasks: int
) -> None:
    judge = fed(history(hours, per_minute, TASKS[:tasks]), grid(window_s, 5))
    assert judge.model_version.startswith("2026-11-22.")


def test_with_little_history_there_is_no_model_and_the_version_says_so() -> None:
    assert fed(history(6, 5), grid()).model_version == NO_MODEL


def test_the_model_is_the_same_whether_it_is_fitted_ahead_in_time_or_after_a_restart() -> None:
    events = history(20, 3)
    ahead = fed(events, grid())
    late = fed(events, grid(), ahead=False)
    kept = late.memory()
    again = Judge(grid(), kept)
    again.restore(counts(reversed(events), grid().step_us), NOW_US + 2 * MINUTE_US)
    for judge in (ahead, late, again):
        judge.advance([], NOW_US + 5 * MINUTE_US)
    assert ahead.model_version == late.model_version == again.model_version != NO_MODEL
    assert Judge(grid(), ahead.memory()).model_version == ahead.model_version


def test_it_is_refitted_once_a_day() -> None:
    events = history(20, 3)
    events += [e for unit in TASKS for e in normal(unit, NOW_US, NOW_US + 26 * HOUR_US, seed=6, per_minute=0.5)]
    engine = Engine(grid(), "default", facts)
    seen: dict[str, int] = {}
    by_minute: dict[int, list[Event]] = {}
    for event in events:
        by_minute.setdefault(event.ingested_us // MINUTE_US * MINUTE_US + MINUTE_US, []).append(event)
    for cutoff in range(NOW_US + MINUTE_US, NOW_US + 26 * HOUR_US, MINUTE_US):
        engine.advance(counts(by_minute.get(cutoff, []), engine.judge.grid.step_us), cutoff)
        seen.setdefault(engine.judge.model_version, cutoff)
    first, *later = [at for version, at in seen.items() if version != NO_MODEL]
    assert len(later) == 1
    assert later[0] - first >= DAY_US - HOUR_US


def test_what_is_odd_is_not_learned() -> None:
    quiet = history(20, 3)
    odd = burst(TASKS[0], NOW_US - 4 * HOUR_US, n=200, minutes=30, arrives_us=NOW_US + 1)
    judge = fed(quiet + odd, grid())
    rows = judge._training((judge.grid.due_through(NOW_US) + 1) // 60 * 60)
    assert len(rows)
    assert rows.max() < 1


def mildly_odd(unit: str, start_us: int) -> list[Event]:
    """Return ten minutes in which errors, warnings and durations are each a little odd, and none by itself enough."""
    out = []
    for i in range(6):
        at = start_us + i * 100_000_000
        out.append(Event(at, at + 1_000_000, unit, "error", f"{unit}-known-{i % 3}", duration_bucket=200))
    for i in range(8):
        at = start_us + i * 55_000_000
        out.append(Event(at, at + 1_000_000, unit, "warn", f"{unit}-warning", duration_bucket=200))
    return out


def test_only_the_forest_raises_a_window_that_is_mildly_odd_in_several_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = NOW_US + 20 * MINUTE_US
    events = history(30, 10)
    events += [e for unit in TASKS for e in normal(unit, NOW_US, NOW_US + 50 * MINUTE_US, seed=6)]
    events += mildly_odd(TASKS[0], begin)
    [incident] = opened(replay(events, NOW_US + 50 * MINUTE_US))
    assert (incident.kind, incident.root) == ("joint", TASKS[0])
    assert incident.findings[0].feature == "joint"
    assert {part.split()[0] for part in incident.findings[0].name.split(", ")} >= {"errors", "warnings"}
    assert all(finding.strength < 1 for finding in incident.findings[1:])
    assert len(incident.findings) >= 3
    monkeypatch.setattr(Forest, "fit", lambda *_, **__: None)
    assert opened(replay(events, NOW_US + 50 * MINUTE_US)) == []


def test_it_raises_nothing_it_has_learned_and_is_the_same_after_it_was_kept() -> None:
    rows = np.abs(np.random.default_rng(1).normal(0, 0.1, (300, len(CHANNELS))))
    forest = Forest.fit(rows, seed=7)
    assert forest is not None
    assert forest.strengths(rows).max() < 1
    again = Forest.decode(forest.encode())
    assert again is not None
    assert again.version == forest.version
    probe = np.linspace(0, 2, 10)[:, None] * np.ones(len(CHANNELS))
    assert again.strengths(probe).tolist() == forest.strengths(probe).tolist()
    assert forest.strengths(probe)[-1] > 1


def test_too_few_windows_give_no_forest() -> None:
    assert Forest.fit(np.zeros((50, len(CHANNELS))), seed=1) is None


def test_what_made_a_row_odd_adds_up_to_its_score() -> None:
    rows = np.abs(np.random.default_rng(1).normal(0, 0.1, (300, len(CHANNELS))))
    forest = Forest.fit(rows, seed=7)
    assert forest is not None
    odd = np.full(len(CHANNELS), 0.05)
    odd[[2, 3]] = 0.9
    shares = forest.shares(odd)
    assert shares.sum() == pytest.approx(1)
    assert shares[[2, 3]].sum() > 0.8
    assert shares[[2, 3]].min() > 0.2
    for row in (odd, rows[0]):
        [score] = -forest._trees.score_samples(row[None])
        whole = _mean_path(np.array([forest._trees.max_samples_]))[0]
        assert forest.shortened(row).sum() == pytest.approx(whole * (1 + np.log2(score)), abs=1e-6)
