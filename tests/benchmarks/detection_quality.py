"""How well detection does on made-up traffic whose truth is known, beside naive detectors on the same traffic.

Five seeds of the small preset by default, some minutes; ``--full`` adds the second pool of messages,
traffic without incidents at three budgets, each kind's recall when the cut was chosen without it, and
the large presets, the better part of an hour. Every figure is of windows judged as by ``logsvc backtest``.

Seeds 400 and up are looked at with every run, so nothing may be tuned on them, and they are no
estimate for unseen traffic: that is what ARCHITECTURE.md reports, from other seeds.

The naive detectors are what a weekend brings: for each task and five minutes, an isolation forest
over counts by level, three standard deviations above the mean, a Poisson tail against the same time
of day. Their windows are joined to tickets when half an hour lies between them at most.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import poisson
from sklearn.ensemble import IsolationForest

from detectors.evaluate import Flag, Measures, measure, without_forest
from detectors.simulate import PRESETS, T0, WINDOW_S, Preset, Simulation
from logsvc import detection
from logsvc.settings import DetectionSettings
from logsvc.timestamps import parse_timestamp

SEEDS = range(400, 405)
CALM = dataclasses.replace(PRESETS["small"], incidents={})
BUDGETS = (0.1, 0.03, 0.01)
GRACE_S = 60.0
_DAY_WINDOWS = 86_400 // WINDOW_S
_LEVELS = {"error": 0, "fatal": 0, "warn": 1}

Counts = npt.NDArray[np.float64]
"""Errors, warnings and other records of one task, shape (3, windows)."""


class Outcome(NamedTuple):
    """One seed's truth, what was flagged, and what naive detectors made of it."""

    truth: Mapping[str, Any]
    flags: list[Flag]
    naive: dict[str, list[Flag]]


def outcome(preset: Preset, seed: int, pool: str = "a", budget: float = 0.01, *, with_naive: bool = True) -> Outcome:
    """Simulate, judge, and let the naive detectors judge the same."""
    made = Simulation(preset, seed, pool=pool)
    settings = DetectionSettings(false_tickets=budget)
    history = detection.new_history("default", settings)
    for record in made.records():
        history.add(record)
    flags = [
        Flag(
            task=flag.task,
            start=_seconds(flag.start),
            end=_seconds(flag.end),
            detected=_seconds(flag.detected_at),
            score=flag.score,
            kind=flag.kind,
            ticket=flag.ticket,
        )
        for flag in detection.backtest(history, settings)[0]
    ]
    naive = {}
    if with_naive:
        counts = _counts(history.ticks(), made.truth)
        learned = round((made.truth["eval_start"] - T0) / WINDOW_S)
        naive = {name: list(_naive(counts, learned, judge)) for name, judge in NAIVE.items()}
    return Outcome(made.truth, flags, naive)


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the measures over seeds, each as mean and range, and by kind over all seeds together."""
    measures = [measure(one.truth, one.flags) for one in outcomes]
    out: dict[str, Any] = {
        "seeds": len(outcomes),
        "incidents": sum(one.incidents for one in measures),
        "task_days": round(sum(one.task_days for one in measures)),
    }
    shown: dict[str, Callable[[Measures], float | None]] = {
        "f1": lambda m: m.f1,
        "precision": lambda m: m.precision,
        "recall": lambda m: m.recall,
        "false_per_task_day": lambda m: m.false_per_task_day,
        "delay_windows_median": lambda m: m.delay(0.5, grace_s=GRACE_S),
        "delay_windows_p90": lambda m: m.delay(0.9, grace_s=GRACE_S),
        "tickets_per_incident": lambda m: m.tickets_per_incident,
        "cascades_on_one_ticket": lambda m: m.cascades_on_one_ticket,
    }
    for name, read in shown.items():
        out[name] = _spread(read(one) for one in measures)
    out["f1_without_forest"] = _spread(measure(one.truth, without_forest(one.flags)).f1 for one in outcomes)
    out["forest_tickets"] = sum(one.forest_tickets for one in measures)
    out["forest_false"] = sum(one.forest_false for one in measures)
    for name in outcomes[0].naive:
        naive = [measure(one.truth, one.naive[name]) for one in outcomes]
        out[f"naive_{name}_f1"] = _spread(one.f1 for one in naive)
        out[f"naive_{name}_false_per_task_day"] = _spread(one.false_per_task_day for one in naive)
    out |= {f"recall_{name}": shown for name, shown in _recalls(measures).items()}
    false: dict[str, int] = defaultdict(int)
    for one in measures:
        for trap, n in one.false_near.items():
            false[trap] += n
    out["false_near"] = ", ".join(f"{trap} {n}" for trap, n in sorted(false.items())) or "none"
    return out


def left_out(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return each kind's recall at the common cut that is best for all other kinds.

    ``outcomes`` are of a large budget, so that there is something to choose from.
    """
    cuts = [0.5 + 0.01 * i for i in range(30)]
    kinds = sorted({one["kind"] for run in outcomes for one in run.truth["incidents"]})
    out = {}
    for kind in kinds:
        others = [(_with(one.truth, set(kinds) - {kind}), _apart(one, kind)) for one in outcomes]
        f1 = {cut: statistics.fmean(measure(t, _above(flags, cut)).f1 for t, flags in others) for cut in cuts}
        best = max(cuts, key=f1.__getitem__)
        mine = [measure(_with(one.truth, {kind}), _above(one.flags, best)) for one in outcomes]
        out[f"left_out_{kind}"] = f"{sum(m.detected for m in mine)}/{sum(m.incidents for m in mine)} at {best:.2f}"
    return out


def _with(truth: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    return {**truth, "incidents": [one for one in truth["incidents"] if one["kind"] in kinds]}


def _apart(one: Outcome, kind: str) -> list[Flag]:
    """Return the flags that have nothing to do with incidents of a kind."""
    near = [i for i in one.truth["incidents"] if i["kind"] == kind]
    return [
        flag
        for flag in one.flags
        if not any(flag.task in i["tasks"] and i["start"] <= flag.detected <= i["end"] + 4500 for i in near)
    ]


def _above(flags: Iterable[Flag], cut: float) -> list[Flag]:
    return [flag for flag in flags if flag.score >= cut]


def calibration(outcomes: Mapping[float, Sequence[Outcome]]) -> dict[str, Any]:
    """Return for each budget the false tickets opened where nothing happened, over those asked for."""
    out: dict[str, Any] = {}
    for budget, runs in outcomes.items():
        measures = [measure(one.truth, one.flags) for one in runs]
        achieved = sum(one.false_tickets for one in measures) / sum(one.task_days for one in measures)
        out[f"calm_false_per_task_day_at_{budget}"] = round(achieved, 4)
        out[f"calm_ratio_at_{budget}"] = round(achieved / budget, 2)
    return out


def _recalls(measures: Sequence[Measures]) -> dict[str, str]:
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in measures:
        for name, kind in {**one.kinds, **one.variants}.items():
            found[name][0] += kind.detected
            found[name][1] += kind.incidents
    return {name: f"{detected}/{incidents}" for name, (detected, incidents) in sorted(found.items())}


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f} ({min(known):.3f} … {max(known):.3f})" if known else "none"


def _seconds(text: str) -> float:
    return parse_timestamp(text) / 1e9


# Naive detectors -----------------------------------------------------------------------------------------------------


def _counts(
    ticks: Iterator[tuple[int, list[tuple[str, int, str, str, int]]]], truth: Mapping[str, Any]
) -> dict[str, Counts]:
    windows = round((truth["t_end"] - T0) / WINDOW_S)
    out: dict[str, Counts] = {task["name"]: np.zeros((3, windows)) for task in truth["tasks"]}
    for _, counts in ticks:
        for unit, step_us, dimension, key, n in counts:
            at = int((step_us / 1e6 - T0) // WINDOW_S)
            if dimension == "level" and 0 <= at < windows:
                out[unit.partition(":")[2]][_LEVELS.get(key, 2), at] += n
    return out


def _naive(
    counts: Mapping[str, Counts], learned: int, judge: Callable[[Counts, int], npt.NDArray[np.bool_]]
) -> Iterator[Flag]:
    for task, mine in counts.items():
        for at in (learned + np.flatnonzero(judge(mine, learned))).tolist():
            start = T0 + at * WINDOW_S
            yield Flag(task, start, start + WINDOW_S, start + WINDOW_S + GRACE_S)


def _by_forest(counts: Counts, learned: int) -> npt.NDArray[np.bool_]:
    forest = IsolationForest(n_estimators=100, random_state=0, n_jobs=1).fit(counts[:, :learned].T)
    odd: npt.NDArray[np.bool_] = forest.predict(counts[:, learned:].T) < 0
    return odd


def _by_deviation(counts: Counts, learned: int) -> npt.NDArray[np.bool_]:
    errors = counts[0]
    odd: npt.NDArray[np.bool_] = errors[learned:] > errors[:learned].mean() + 3 * errors[:learned].std()
    return odd


def _by_time_of_day(counts: Counts, learned: int) -> npt.NDArray[np.bool_]:
    days = learned // _DAY_WINDOWS
    past = counts[0][: days * _DAY_WINDOWS].reshape(days, 24, -1)
    mean = (past.sum(axis=(0, 2)) + 0.5) / (days * past.shape[2])
    hours = np.arange(learned, counts.shape[1]) % _DAY_WINDOWS // (_DAY_WINDOWS // 24)
    errors = counts[0][learned:]
    odd: npt.NDArray[np.bool_] = (errors >= 3) & (poisson.sf(errors - 1, mean[hours]) < 1e-5)
    return odd


NAIVE = {"forest_on_counts": _by_forest, "three_deviations": _by_deviation, "poisson": _by_time_of_day}


# Runs ----------------------------------------------------------------------------------------------------------------


def run(*, is_full: bool = False, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """Return the figures; ``is_full`` takes the better part of an hour."""
    small = PRESETS["small"]
    out = figures([outcome(small, seed) for seed in seeds])
    if not is_full:
        return out
    other = figures([outcome(small, seed, "b", with_naive=False) for seed in seeds])
    out |= {f"messages_b_{name}": other[name] for name in ("f1", "recall", "false_per_task_day")}
    out |= left_out([outcome(small, seed, budget=0.1, with_naive=False) for seed in seeds])
    calm = {b: [outcome(CALM, seed, budget=b, with_naive=False) for seed in seeds] for b in BUDGETS}
    out |= calibration(calm)
    for name in ("standard", "hard", "quiet"):
        large = figures([outcome(PRESETS[name], seed, with_naive=False) for seed in seeds[:2]])
        out |= {f"{name}_{key}": value for key, value in large.items()}
    return out


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(run(is_full="--full" in sys.argv)), indent=1).decode())
