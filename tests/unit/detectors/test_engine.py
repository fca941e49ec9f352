"""The engine on made-up traffic: what opens a ticket, what does not, and that nothing else matters."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import STEPS_PER_WINDOW, TICK_US, Judgement
from detectors.engine import Engine, Judge
from detectors.explain import sentence
from detectors.incidents import Change, ChangeKind
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


def history(days: float, *, seed: int = 1, arrives_us: int = NOW_US, per_minute: float = 10.0) -> list[Event]:
    start = round(NOW_US - days * DAY_US)
    return [e for t in TASKS for e in normal(t, start, NOW_US, seed=seed, arrives_us=arrives_us, per_minute=per_minute)]


def live(minutes: float, *, seed: int = 2, units: tuple[str, ...] = TASKS, start_us: int = NOW_US) -> list[Event]:
    end = round(start_us + minutes * MINUTE_US)
    return [e for unit in units for e in normal(unit, start_us, end, seed=seed)]


@pytest.mark.parametrize("seed", range(3))
def test_normal_traffic_opens_nothing_neither_in_history_nor_live(seed: int) -> None:
    changes = replay(history(3, seed=seed) + live(90, seed=seed + 50), NOW_US + 95 * MINUTE_US)
    assert opened(changes) == []


@pytest.mark.parametrize("days", [0.02, 0.2, 3])
def test_a_burst_after_any_history_opens_one_ticket_for_its_task(days: float) -> None:
    begin = NOW_US + 10 * MINUTE_US
    changes = replay(history(days) + live(30) + burst(TASKS[0], begin, n=45), begin + 20 * MINUTE_US)
    [incident] = opened(changes)
    assert list(incident.members) == [TASKS[0]]
    assert incident.kind in {"new_error", "error_burst"}
    assert begin <= incident.start_us < begin + MINUTE_US
    assert incident.opened_us <= begin + 5 * MINUTE_US
    assert incident.versions["2"] > 5 * incident.versions.get("1", 0)
    assert incident.is_notified


@pytest.mark.parametrize("hours_ago", [0.2, 5, 20])
def test_a_burst_that_arrives_late_is_judged_in_the_tick_that_brings_it(hours_ago: float) -> None:
    begin = round(NOW_US - hours_ago * HOUR_US)
    arrives = NOW_US + 2 * MINUTE_US
    changes = replay(history(3) + burst(TASKS[1], begin, n=40, arrives_us=arrives), arrives + 10_000_000)
    [incident] = opened(changes)
    assert list(incident.members) == [TASKS[1]]
    assert incident.resolved_us is None
    assert incident.opened_us <= arrives + 5_000_000


def test_windows_older_than_a_day_open_tickets_that_notify_nobody() -> None:
    events = history(4) + burst(TASKS[0], NOW_US - 2 * DAY_US, n=60, arrives_us=NOW_US)
    changes = replay(events, NOW_US + MINUTE_US)
    [incident] = opened(changes)
    assert not incident.is_notified
    assert incident.resolved_us is not None


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_blip_of_a_known_error_stays_quiet(n: int) -> None:
    blip = burst(TASKS[0], NOW_US + 5 * MINUTE_US, n=n, minutes=1, template=f"{TASKS[0]}-known-0")
    assert opened(replay(history(1.2) + live(30) + blip, NOW_US + 30 * MINUTE_US)) == []


def test_three_hits_of_an_error_never_seen_are_a_ticket_after_a_day() -> None:
    new = burst(TASKS[0], NOW_US + 5 * MINUTE_US, n=3, minutes=3, template="no such column: ai_model")
    [incident] = opened(replay(history(1.2) + live(20) + new, NOW_US + 20 * MINUTE_US))
    assert incident.kind == "new_error"
    assert [t.id for t in incident.odd_templates() if t.is_new] == ["no such column: ai_model"]


def test_a_known_error_with_a_new_name_is_not_new() -> None:
    known = [
        error
        for hours, name in enumerate(("ann", "bob", "cyd", "dan"), start=2)
        for error in burst(
            TASKS[0], NOW_US - hours * HOUR_US, n=1, template=f"login of user {name} refused", arrives_us=NOW_US
        )
    ]
    names = burst(TASKS[0], NOW_US + 5 * MINUTE_US, n=3, minutes=3, template="login of user zoe refused")
    assert opened(replay(history(1.2) + known + live(20) + names, NOW_US + 20 * MINUTE_US)) == []
    other = burst(TASKS[0], NOW_US + 5 * MINUTE_US, n=3, minutes=3, template="login of zoe was refused")
    assert len(opened(replay(history(1.2) + known + live(20) + other, NOW_US + 20 * MINUTE_US))) == 1


def test_a_ticket_resolves_when_the_task_is_normal_again_and_reopens_when_it_comes_back() -> None:
    begin = NOW_US + 5 * MINUTE_US
    events = history(1.2) + live(160) + burst(TASKS[0], begin) + burst(TASKS[0], begin + 60 * MINUTE_US)
    changes = replay(events, NOW_US + 160 * MINUTE_US)
    assert len(opened(changes)) == 1
    kinds = [c.kind for c in changes if c.kind is not ChangeKind.UPDATED]
    assert kinds == [ChangeKind.OPENED, ChangeKind.RESOLVED, ChangeKind.REOPENED, ChangeKind.RESOLVED]


def test_nothing_within_an_incident_is_learned_from_not_even_its_pauses() -> None:
    cut = grid()
    judge = Judge(cut)
    begin = NOW_US + 5 * MINUTE_US
    flaps = [error for pause in (0, 40, 80) for error in burst(TASKS[0], begin + pause * MINUTE_US, n=40)]
    events = history(1.2) + live(130) + flaps
    ticks = sorted({e.ingested_us // TICK_US * TICK_US + TICK_US for e in events})
    by_tick: dict[int, list[Event]] = {}
    for event in events:
        by_tick.setdefault(event.ingested_us // TICK_US * TICK_US + TICK_US, []).append(event)
    for tick in range(ticks[0], NOW_US + 130 * MINUTE_US, TICK_US):
        if tick in by_tick or not judge.is_idle(tick):
            judge.advance(counts(by_tick.get(tick, []), cut.step_us), tick)
    series = judge._units[TASKS[0]].series
    low, high = begin // cut.step_us, (begin + 85 * MINUTE_US) // cut.step_us
    assert series.odd_part(low, high + 4 * STEPS_PER_WINDOW - 1).all(), "the pauses and the four windows after it"
    assert not series.odd_part(low - 60, low - 5).any()


def test_a_busy_task_that_stops_is_silent_and_resolves_when_it_is_back() -> None:
    stops, back = NOW_US + 60 * MINUTE_US, NOW_US + 120 * MINUTE_US
    events = history(1.2) + live(180, units=TASKS[1:]) + live(60, units=TASKS[:1])
    events += live(60, units=TASKS[:1], start_us=back)
    changes = replay(events, NOW_US + 180 * MINUTE_US)
    [incident] = opened(changes)
    assert (incident.kind, list(incident.members)) == ("silence", [TASKS[0]])
    assert stops - MINUTE_US <= incident.start_us <= stops + MINUTE_US
    assert incident.opened_us <= stops + 20 * MINUTE_US
    assert incident.resolved_us is not None
    assert incident.resolved_us >= back


def test_history_that_ends_is_no_silence() -> None:
    assert opened(replay(history(1.2), NOW_US + 120 * MINUTE_US)) == []


def test_everything_that_stops_at_once_is_one_ticket_that_says_so() -> None:
    [incident] = opened(replay(history(1.2) + live(60), NOW_US + 180 * MINUTE_US))
    assert sorted(incident.members) == sorted(TASKS)
    assert incident.opened_us <= NOW_US + 100 * MINUTE_US
    assert sentence(incident.findings[0]).endswith("expected, while most of the others stopped too")


def test_tasks_whose_errors_name_the_same_dependency_share_one_ticket() -> None:
    begin = NOW_US + 5 * MINUTE_US
    events = history(1.2) + live(40)
    for index, unit in enumerate(TASKS):
        events += burst(unit, begin + index * 2 * MINUTE_US, n=40, template="dep:payments.internal")
    [incident] = opened(replay(events, NOW_US + 40 * MINUTE_US))
    assert list(incident.members) == list(TASKS)
    assert incident.root == TASKS[0]


def test_unrelated_tasks_have_their_own_tickets() -> None:
    begin = NOW_US + 5 * MINUTE_US
    events = history(1.2) + live(30) + burst(TASKS[0], begin) + burst(TASKS[1], begin + MINUTE_US)
    assert len(opened(replay(events, NOW_US + 30 * MINUTE_US))) == 2


def test_warnings_that_triple_and_durations_that_double_are_told() -> None:
    begin = NOW_US + 5 * MINUTE_US
    odd = [
        Event(begin + i * 20_000_000, begin + i * 20_000_000 + 1, TASKS[0], "warn", f"{TASKS[0]}-warning")
        for i in range(60)
    ]
    slow = [Event(begin + i * 6_000_000, begin + i * 6_000_000 + 1, TASKS[1], duration_bucket=210) for i in range(200)]
    found = opened(replay(history(1.2) + live(40) + odd + slow, NOW_US + 40 * MINUTE_US))
    assert sorted((i.kind, i.root) for i in found) == [("latency", TASKS[1]), ("level_mix", TASKS[0])]


def test_short_windows_work_alike() -> None:
    cut = grid(window_s=30, grace_s=5)
    begin = NOW_US + 4 * MINUTE_US
    known = [e for t in TASKS for e in normal(t, NOW_US - DAY_US, NOW_US, seed=1, arrives_us=NOW_US, per_minute=20)]
    now = [e for t in TASKS for e in normal(t, NOW_US, NOW_US + 8 * MINUTE_US, seed=2, per_minute=20)]
    changes = replay(known + now + burst(TASKS[0], begin, n=40, minutes=2), NOW_US + 8 * MINUTE_US, cut=cut)
    [incident] = opened(changes)
    assert incident.opened_us <= begin + 45_000_000


def _told(changes: list[Change]) -> list[tuple[object, ...]]:
    return [(c.kind, repr(c.incident)) for c in changes]


@settings(max_examples=4)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 25 * 60), min_size=1, max_size=3))
def test_order_batches_and_restarts_never_matter(seed: int, restarts: list[int]) -> None:
    rng = random.Random(seed)
    begin = NOW_US + 10 * MINUTE_US
    events = history(0.5, per_minute=3) + live(25, seed=seed)
    events += burst(TASKS[0], begin, n=30, minutes=8)
    # Late, in two parts, from before.
    for part in range(2):
        events += burst(TASKS[2], NOW_US - 3 * HOUR_US, n=20, arrives_us=begin + part * 7_000_000)
    for minute, name in enumerate(("ann", "bob", "cyd", "dan", "eve", "fay")):
        events += burst(TASKS[0], begin + minute * MINUTE_US, n=2, template=f"login of user {name} refused")
    expected = replay(events, NOW_US + 25 * MINUTE_US)
    assert expected
    rng.shuffle(events)
    again = replay(events, NOW_US + 25 * MINUTE_US, restart_at=[NOW_US + s * 1_000_000 for s in restarts])
    assert _told(again) == _told(expected)


def test_a_replay_that_looks_an_hour_ahead_finds_the_same() -> None:
    start, until = NOW_US - 15 * HOUR_US, NOW_US
    events = [event for unit in TASKS[:2] for event in normal(unit, start, until, seed=7, per_minute=2, errors=0.03)]
    events += normal("task:rare.job", start, until, seed=8, per_minute=0.1)
    # What comes by the clock no longer does, one falls silent, one breaks, and now and then something comes late, odd things among it.
    events = [e for e in events if not (e.unit == TASKS[1] and until - 3 * HOUR_US < e.time_us < until - HOUR_US)]
    quarters = range(start, until - 4 * HOUR_US, 15 * MINUTE_US)
    events += [Event(at, at + 1_000_000, "task:clock.job") for at in quarters]
    events += burst(TASKS[0], until - 5 * HOUR_US, n=40) + burst(
        TASKS[0], until - 200 * MINUTE_US, n=8, template="another"
    )
    events += burst(TASKS[0], until - 8 * HOUR_US, n=30, arrives_us=until - 8 * HOUR_US + 20 * MINUTE_US)
    events = [e._replace(ingested_us=e.time_us + 5 * MINUTE_US) if i % 97 == 0 else e for i, e in enumerate(events)]
    by_tick: dict[int, list[Event]] = {}
    for event in events:
        by_tick.setdefault(event.ingested_us // TICK_US * TICK_US + TICK_US, []).append(event)

    def run(*, is_ahead: bool) -> tuple[list[Judgement], list[Change], int]:
        engine = Engine(grid(), "default", facts)
        judgements, changes = [], []
        looked = 0
        for hour in range(min(by_tick) // HOUR_US * HOUR_US, until, HOUR_US):
            ticks = [
                (at, counts(by_tick.get(at, []), MINUTE_US))
                for at in range(hour + TICK_US, hour + HOUR_US + 1, TICK_US)
            ]
            left = engine.expect(ticks) if is_ahead else [list(some) for _, some in ticks]
            looked += sum(len(some) for _, some in ticks) - sum(map(len, left))
            for (cutoff, some), rest in zip(ticks, left, strict=True):
                if some or not engine.is_idle(cutoff):
                    changes += engine.advance(rest, cutoff, {c.key: c.key for c in rest if c.dimension == "template"})
                    judgements += engine.judgements
        return judgements, changes, looked

    judgements, changes, looked = run(is_ahead=True)
    assert looked > len(events) / 2
    assert {incident.kind for incident in opened(changes)} >= {"new_error", "silence"}
    assert [one.opened_us for one in opened(changes) if one.root == "task:clock.job"] == [until - 222 * MINUTE_US]
    assert (judgements, changes) == run(is_ahead=False)[:2]
