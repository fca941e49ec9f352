"""The budget of false tickets: what it does to a task, and to no other."""

from __future__ import annotations

import pytest

from detectors.base import CHANNELS, CUTS
from detectors.calibrate import Budgets, decades
from tests.unit.detectors.traffic import HOUR_US, MINUTE_US, NOW_US, Event, burst, normal, opened, replay

TASKS = ("task:a.one", "task:b.two")


def mild() -> list[Event]:
    """Two tasks, each with a few more errors than usual: odd, but not very."""
    events = []
    for unit, n in zip(TASKS, (11, 7), strict=True):
        events += normal(unit, NOW_US - 5 * HOUR_US, NOW_US + HOUR_US, seed=1)
        events += burst(unit, NOW_US, n=n, minutes=4, template=f"{unit}-known-1")
    return sorted(events, key=lambda event: event.ingested_us)


def units(budgets: Budgets | None, restart_at: tuple[int, ...] = ()) -> set[str]:
    changes = replay(mild(), NOW_US + HOUR_US, restart_at=restart_at, budgets=budgets)
    return {incident.root for incident in opened(changes)}


def test_a_larger_budget_opens_what_a_smaller_one_does_not() -> None:
    assert units(Budgets(0.1)) == set(TASKS)
    assert units(Budgets(0.0001)) == set()


def test_a_budget_of_its_own_moves_one_task_and_survives_a_restart() -> None:
    budgets = Budgets(0.1, {TASKS[0]: 0.0001})
    assert units(budgets) == {TASKS[1]}
    assert units(budgets, (NOW_US - HOUR_US, NOW_US + 5 * MINUTE_US)) == {TASKS[1]}


def test_a_decade_of_budget_is_a_decade_of_probability_in_every_channel() -> None:
    assert Budgets().cuts("task:x").tolist() == [CUTS[name] for name in CHANNELS]
    assert (Budgets(0.001).cuts("task:x") - Budgets(0.01).cuts("task:x")).round(9).tolist() == [1.0] * len(CHANNELS)


def test_the_forest_is_never_asked_to_raise_what_is_no_odder_than_what_it_learned() -> None:
    assert Budgets(1.0).joint("u") == 1.0
    assert Budgets(0.001).joint("u") == pytest.approx(7 / 6)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_a_budget_that_means_nothing_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.0001 to 1\.0 a task and day"):
        decades(budget)
