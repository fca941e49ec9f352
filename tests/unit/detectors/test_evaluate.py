"""Simulation and measures: the same seed gives the same, and the measures are those of an independent scorer."""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest

from detectors.evaluate import Flag, measure
from detectors.simulate import INCIDENTS, POOLS, PRESETS, T0, Preset, Simulation

TINY = Preset({"api": 2, "nightly": 1}, 1, 1, 400, {"error_burst": 1, "latency": 1, "missed_schedule": 1}, new_tasks=0)
SCORER = Path(__file__).parents[4] / "shared/data/detection/score.py"
"""An independent implementation of the same measures; no part of the project, compared with where it is."""


def truth(*incidents: dict[str, Any]) -> dict[str, Any]:
    tasks = [{"name": name, "cold_start": None} for name in ("a", "b")]
    trap = {"kind": "deploy", "tasks": ["b"], "start": 90_000, "end": 90_600}
    return {
        "window_s": 300,
        "eval_start": 86_400,
        "t_end": 172_800,
        "tasks": tasks,
        "incidents": list(incidents),
        "benign": [trap],
    }


def incident(id: str, task: str, start: float, *, kind: str = "error_burst", scored: bool = True) -> dict[str, Any]:
    return {
        "id": id,
        "kind": kind,
        "tasks": [task],
        "start": start,
        "end": start + 1800,
        "evidence_at": start + 300 if scored else None,
        "scored": scored,
    }


def flag(task: str, at: float, ticket: str | None = None, kind: str = "error_burst", lasts: float = 300) -> Flag:
    return Flag(task, at - lasts, at, at + 60, 0.7, kind, ticket)


def test_a_hit_counts_once_and_its_delay_begins_with_the_evidence() -> None:
    found = measure(truth(incident("i", "a", 100_000)), [flag("a", 100_540, "t"), flag("a", 100_840, "t")])
    assert (found.detected, found.false_tickets, found.f1) == (1, 0, 1.0)
    assert (found.delay(0.5), found.delay(0.5, grace_s=60), found.delay(0.5, grace_s=900)) == (1.0, 0.8, 0.0)
    assert found.tickets_per_incident == 1


def test_false_tickets_are_named_by_the_trap_beside_them_and_weigh_what_they_last() -> None:
    flags = [flag("b", 90_300, "x"), flag("a", 120_000, "y", "joint"), flag("a", 130_000, "y", lasts=100)]
    found = measure(truth(incident("i", "a", 100_000)), flags)
    assert (found.detected, found.missed, found.precision) == (0, ["i"], 0.0)
    assert found.false_near == {"deploy": 1, "none": 1}
    assert found.false_tickets == 1 + 2  # 10,300 s open
    assert (found.forest_tickets, found.forest_false) == (1, 1)


def test_a_ticket_on_an_incident_with_too_little_evidence_is_neither_right_nor_wrong() -> None:
    found = measure(truth(incident("i", "a", 100_000, scored=False)), [flag("a", 100_600, "t"), flag("a", 60_000, "u")])
    assert (found.incidents, found.tickets, found.false_tickets) == (0, 0, 0)


def test_flags_without_tickets_are_joined_when_they_follow_each_other() -> None:
    found = measure(truth(), [flag("a", 100_000), flag("a", 101_000), flag("a", 110_000)])
    assert found.false_tickets == 2


def _scorer() -> Any:
    spec = importlib.util.spec_from_file_location("score", SCORER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not SCORER.exists(), reason="the independent scorer is not here")
@pytest.mark.parametrize("seed", range(20))
def test_the_measures_are_to_the_digit_those_of_the_scorer_that_others_use(seed: int) -> None:
    rng = random.Random(seed)
    kinds = ("error_burst", "slow_ramp", "cascade")
    incidents = [
        incident(f"i{n}", rng.choice("ab"), 90_000 + 8_000 * n, kind=rng.choice(kinds), scored=rng.random() < 0.8)
        for n in range(9)
    ]
    for one in incidents:
        one["tasks"] = ["a", "b"] if one["kind"] == "cascade" else one["tasks"]
    flags = [
        flag(rng.choice("ab"), rng.uniform(80_000, 170_000), rng.choice(["t", "u", "v", "w", None]))
        for _ in range(rng.randrange(40))
    ]
    ours = measure(truth(*incidents), flags)
    given = [
        {"task": f.task, "start": f.start, "end": f.end, "score": f.score, "det": f.detected, "ticket": f.ticket}
        | {"kind": f.kind}
        for f in flags
    ]
    theirs = _scorer().score(truth(*incidents), given)

    def digits(value: float | None, places: int) -> float | None:
        return None if value is None else round(value, places)

    mine = {
        "incidents": ours.incidents,
        "detected": ours.detected,
        "tickets": ours.tickets,
        "false_tickets": ours.false_tickets,
        "precision": digits(ours.precision, 4),
        "recall": digits(ours.recall, 4),
        "f1": digits(ours.f1, 4),
        "false_per_task_day": digits(ours.false_per_task_day, 4),
        "task_days": digits(ours.task_days, 1),
        "delay_windows_median": digits(ours.delay(0.5), 2),
        "delay_windows_p90": digits(ours.delay(0.9), 2),
        "tickets_per_incident": digits(ours.tickets_per_incident, 3),
        "cascade_one_ticket": digits(ours.cascades_on_one_ticket, 3),
        "cascade_task_coverage": digits(ours.cascade_coverage, 3),
        "false_near": ours.false_near,
        "missed": ours.missed,
    }
    assert mine == {name: theirs[name] for name in mine}
    assert {name: (kind.incidents, kind.detected, digits(kind.recall, 3)) for name, kind in ours.kinds.items()} == {
        name: (kind["n"], kind["detected"], kind["recall"]) for name, kind in theirs["by_kind"].items()
    }


def test_a_seed_gives_the_same_records_in_order_of_arrival_and_another_seed_others() -> None:
    first, again, other = (list(Simulation(TINY, seed).records()) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    arrivals = [record["event.ingested"] for record in first]
    assert arrivals == sorted(arrivals)
    assert {"service", "task", "task_id", "tenant", "level", "message", "host", "version"} <= set(first[0])


def test_incidents_are_in_the_records_and_leave_each_other_alone() -> None:
    made = Simulation(TINY, 4)
    by_kind = {one["kind"]: one for one in made.truth["incidents"]}
    assert set(by_kind) == {"error_burst", "latency", "missed_schedule"}
    burst = by_kind["error_burst"]
    assert burst["scored"]
    assert burst["start"] <= burst["evidence_at"] <= burst["end"] + 60
    for one, two in itertools.combinations(made.truth["incidents"], 2):
        assert not set(one["tasks"]) & set(two["tasks"]) or one["end"] < two["start"] or two["end"] < one["start"]


@pytest.mark.parametrize("preset", ["small", "standard", "hard"])
def test_every_preset_has_incidents_of_every_kind_and_variant_and_every_trap(preset: str) -> None:
    truth = Simulation(preset, 2).truth
    placed = {(one["kind"], one["variant"]) for one in truth["incidents"]}
    if preset == "small":
        assert {kind for kind, _ in placed} == set(INCIDENTS)
    else:
        assert placed == {(kind, variant) for kind, variants in INCIDENTS.items() for variant in variants or ("",)}
    traps = {"deploy", "service_restart", "load_spike", "blip", "debug_on", "odd_warning", "odd_run", "late"}
    traps |= {"held_up", "clock_skew", "holiday", "weekend", "new_task"}
    assert traps <= {one["kind"] for one in truth["benign"]}
    assert sum(one["scored"] for one in truth["incidents"]) >= 0.6 * len(truth["incidents"])


def test_a_quiet_preset_has_traps_and_no_incident() -> None:
    truth = Simulation("quiet", 1).truth
    assert (truth["incidents"], len({one["kind"] for one in truth["benign"]}) > 10) == ([], True)


def test_a_kind_can_be_left_out() -> None:
    made = Simulation(PRESETS["small"].without("latency"), 1).truth
    assert {one["kind"] for one in made["incidents"]} == set(INCIDENTS) - {"latency"}


def test_the_pools_of_messages_say_nothing_alike() -> None:
    words = []
    for pool in POOLS:
        texts = {record["message"] for record in Simulation(TINY, 5, pool=pool).records()}
        words.append({" ".join(re.findall("[a-z]{4,}", text))[:60] for text in texts})
    assert not words[0] & words[1]


def test_what_chance_would_bring_is_no_evidence() -> None:
    """Of a burst that is hidden in what is usual, no one could be asked to open a ticket."""
    noisy = Preset({"nightly": 2}, 1, 1, 400, {})
    made = Simulation(noisy, 1)
    task = made._tasks[0]
    task.p = 0.5
    made._runs[task.name].cause[-8:] = 0
    start, end = T0, T0 + 2 * 86_400
    hidden = {"kind": "error_burst", "tasks": [task.name], "root": task.name, "start": start, "end": end}
    made._incidents = [hidden]
    made._find_evidence()
    assert (hidden["scored"], hidden["evidence_n"]) == (False, 8)


def test_records_of_a_run_arrive_after_they_happened_but_for_wrong_clocks() -> None:
    made = Simulation(TINY, 3)
    skewed = {task for one in made.truth["benign"] if one["kind"] == "clock_skew" for task in one["tasks"]}
    for record in made.records():
        if record.get("task") not in skewed and record["service"] not in skewed:
            assert record["@timestamp"] < record["event.ingested"]
