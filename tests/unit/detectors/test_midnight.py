"""What is learned before midnight holds after it, and is what a start anew would learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from detectors import engine
from detectors.base import BLOCK_STEPS, TICK_US, Grid
from detectors.baseline import Baseline, learn, oldest
from detectors.engine import Judge
from detectors.windows import Past, Series, Table
from tests.unit.detectors.traffic import DAY_US, HOUR_US, MINUTE_US, NOW_US, Event, counts, grid, normal

_MIDNIGHT_US = NOW_US + 12 * HOUR_US
_BEGIN_US = _MIDNIGHT_US - HOUR_US // 2
_UNITS = {"task:busy": 2.0, "task:rare": 0.1, "task:young": 1.0}


def _events() -> list[Event]:
    start = {"task:young": _MIDNIGHT_US - 4 * DAY_US}
    return [
        # No day's first record is at its very start.
        event
        for unit, rate in _UNITS.items()
        for event in normal(
            unit, start.get(unit, NOW_US - 8 * DAY_US), _MIDNIGHT_US, seed=3, per_minute=rate, errors=0.05
        )
        if event.time_us % DAY_US >= 7 * MINUTE_US
    ]


def _facts(base: Baseline) -> list[object]:
    facts = {field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name != "pasts"}
    return [facts | {"numbers": base.numbers.tolist(), "decay": base.decay.tolist()}]


def _by_key(table: Table, past: Past) -> dict[str, float]:
    return {name: n for name, n in zip(table._names, past.counts.tolist(), strict=False) if n}


def test_midnight_learns_no_baseline_anew_and_none_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    events, cut = _events(), grid()
    judge = Judge(cut)
    judge.restore(counts([e for e in events if e.ingested_us < _BEGIN_US], cut.step_us), _BEGIN_US)
    by_tick: dict[int, list[Event]] = {}
    for event in events:
        by_tick.setdefault(event.ingested_us // TICK_US * TICK_US + TICK_US, []).append(event)
    for tick in range(_BEGIN_US + TICK_US, _MIDNIGHT_US, TICK_US):
        judge.advance(counts(by_tick.get(tick, []), cut.step_us), tick)
        judge.prepare()
    hour = (_MIDNIGHT_US - HOUR_US) // cut.step_us
    held = {name: unit.bases[hour] for name, unit in judge._units.items()}
    habit = judge._units["task:rare"].habit
    assert habit is not None
    oldest_us = judge.horizon_us(_MIDNIGHT_US)
    assert {name for name, unit in judge._units.items() if unit.series.first < oldest_us // cut.step_us} == {
        "task:busy",
        "task:rare",
    }

    learned: list[tuple[Series, int]] = []

    def counted(pasts: Sequence[tuple[Series, int]], grid: Grid) -> list[Baseline]:
        learned.extend(pasts)
        return learn(pasts, grid)

    monkeypatch.setattr(engine, "learn", counted)
    before = judge.judged
    judge.advance(counts(by_tick.get(_MIDNIGHT_US, []), cut.step_us), _MIDNIGHT_US)
    assert judge.judged > before, "windows were due"
    assert not learned
    assert all(unit.series.first >= oldest_us // cut.step_us for unit in judge._units.values()), "a day was forgotten"
    assert judge._units["task:rare"].habit is habit

    anew = Judge(cut, judge.memory())
    known = [e for e in events if oldest_us <= e.time_us and e.ingested_us < _MIDNIGHT_US]
    anew.restore(counts(known, cut.step_us), _MIDNIGHT_US)
    anew._remember()
    for name, unit in anew._units.items():
        assert _facts(unit.baseline(hour, cut)) == _facts(held[name])
        table, mine = unit.series.templates, judge._units[name].series.templates
        for (_, whole), past in held[name].pasts.items():
            found = table.remember(whole, unit.bases[hour], unit.series.odd)
            assert _by_key(mine, past) == _by_key(table, found)
    assert any(base.pasts for base in held.values())
    assert anew._units["task:rare"].pin == judge._units["task:rare"].pin
    step = hour + BLOCK_STEPS - 2
    rare = anew._units["task:rare"]
    watched = anew._watched(rare, step)
    assert watched is not None
    anew._learn_habits(["task:rare"], {"task:rare": watched}, step)
    assert rare.habit is not None
    assert rare.habit.by_step.tolist() == habit.by_step.tolist()
    assert rare.habit.least.tolist() == habit.least.tolist()


@pytest.mark.parametrize("window_s", [30, 300, 420, 3600])
@pytest.mark.parametrize("grace_s", [0, 60, 5000])
def test_a_block_looks_back_as_far_as_is_known_when_its_last_window_is_due(window_s: int, grace_s: int) -> None:
    cut = grid(window_s, grace_s)
    judge = Judge(cut)
    for block in range(NOW_US // cut.step_us // BLOCK_STEPS, (NOW_US + 2 * DAY_US) // cut.step_us // BLOCK_STEPS):
        until = block * BLOCK_STEPS
        due_us = cut.end_us(until + BLOCK_STEPS - 1) + cut.grace_us
        late_us = (oldest(until, cut) * cut.step_us) - judge.horizon_us(due_us)
        assert oldest(until, cut) % BLOCK_STEPS == 0
        assert 0 <= late_us < (BLOCK_STEPS + 1) * cut.step_us


def test_a_block_longer_than_a_day_looks_back_over_all_that_is_known() -> None:
    assert oldest(NOW_US // Grid(DAY_US, 0).step_us, Grid(DAY_US, 0)) == 0
