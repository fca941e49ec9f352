"""What detection costs: 5,000 tasks with eight days behind them, judged minute by minute; and a replay of days.

How well it does, detection_quality.py says.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import pickle
import resource
import sys
import time
from collections.abc import Iterator

import msgspec
import numpy as np

from detectors.base import BLOCK_STEPS, DAY_US, TICK_US, Count, Grid
from detectors.baseline import pins
from detectors.engine import Judge
from detectors.simulate import PRESETS, Simulation
from logsvc.detection import backtest, new_history
from logsvc.settings import DetectionSettings

GRID = Grid(window_us=300_000_000, grace_us=60_000_000)
TASKS = 5_000
_KINDS = 30  # tasks are copies of so many, since making all would take minutes
_DAYS = 8
_MINUTES = 8
_TICKS = 60_000_000 // TICK_US  # a minute
_BEGIN = 1_795_392_000_000_000 // GRID.step_us - 3  # before midnight


def run(tasks: int = TASKS) -> dict[str, float]:
    """Return the CPU seconds a minute that so many tasks take, and the memory in MiB; and those of a backtest a record.

    The minutes lie about midnight, when a day is forgotten and all baselines are learned anew, twice.
    """
    # A process of its own, so that its memory is its own.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_scale, (tasks,)) | pool.apply(_backtest)


def _scale(tasks: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    before_mib = _rss_mib()
    judge = Judge(GRID)
    first = _BEGIN - GRID.day_steps(_DAYS)
    # A third are busy, a third work now and then, a third hardly ever.
    rates = [(20.0, 2.0, 0.1)[kind % 3] for kind in range(_KINDS)]
    for kind, rate in enumerate(rates):
        judge.restore(_counts(kind, rate, first, _BEGIN, rng), GRID.end_us(_BEGIN))
    units = judge._units
    # As it is with tasks that have been watched all the while.
    held = pins([(unit.series, _BEGIN - _BEGIN % BLOCK_STEPS) for unit in units.values()])
    for unit, one in zip(units.values(), held, strict=True):
        unit.live_since, unit.pin = first, one
    frozen = [pickle.dumps(units[f"task:t{kind:05}"]) for kind in range(_KINDS)]
    for index in range(_KINDS, tasks):
        units[f"task:t{index:05}"] = pickle.loads(frozen[index % _KINDS])
        units[f"task:t{index:05}"].series.kin = judge._templates.of
    gc.freeze()  # as the worker does
    spent = []
    slowest = fits = 0.0
    for step in range(_BEGIN, _BEGIN + _MINUTES):
        # What a minute brings comes in the twelve ticks of it.
        ticks: list[list[Count]] = [[] for _ in range(_TICKS)]
        for index in range(tasks):
            for count in _counts(index, rates[index % _KINDS], step, step + 1, rng):
                for at in rng.choice(_TICKS, size=min(count.n, _TICKS), replace=False):
                    ticks[at].append(count._replace(n=-(-count.n // _TICKS)))
        minute = 0.0
        for at, delta in enumerate(ticks, 1):
            begin = time.process_time()
            judge.advance(delta, step * GRID.step_us + at * TICK_US)
            judge.memory()
            took = time.process_time() - begin
            slowest = max(slowest, took)
            forest = judge.model_version
            begin = time.process_time()
            judge.prepare()  # as the service does it: after the answer, so that no window waits for it
            ahead = time.process_time() - begin
            if judge.model_version != forest:
                fits = max(fits, ahead)
            else:
                took += ahead
            minute += took
        spent.append(minute)
    return {
        "tasks": tasks,
        "cpu_s_a_minute": round(float(np.median(spent[1:])), 2),
        "cpu_s_worst_minute": round(max(spent[1:]), 2),
        "cpu_s_first_minute": round(spent[0], 2),
        "cpu_s_slowest_tick": round(slowest, 2),
        "cpu_s_daily_fit": round(fits, 2),
        "memory_mib": round(_rss_mib() - before_mib),
    }


def _backtest() -> dict[str, float]:
    """Return what a replay of the standard tasks' first days takes: to read a record, and to judge a day."""
    preset = dataclasses.replace(PRESETS["standard"], learn_days=2, judge_days=1, incidents={})
    records = [msgspec.json.encode(record) for record in Simulation(preset, 5).records()]
    settings = DetectionSettings()
    history = new_history("default", settings)
    begin = time.process_time()
    for record in records:
        history.add(record)
    read = time.process_time()
    backtest(history, settings)
    end = time.process_time()
    return {
        "backtest_records": len(records),
        "backtest_read_us_a_record": round((read - begin) / len(records) * 1e6, 1),
        "backtest_judge_s_a_day": round((end - read) / 3, 2),
    }


def _counts(index: int, rate: float, low: int, high: int, rng: np.random.Generator) -> Iterator[Count]:
    """Yield a task's counts: by day twice as many as at night, one in 200 fails, one in 50 warns."""
    unit, us = f"task:t{index:05}", GRID.step_us
    for step in range(low, high):
        n = int(rng.poisson(rate * (1 + 0.4 * np.sin(step * us / DAY_US * 2 * np.pi))))
        if not n:
            continue
        failed, warned = (int(rng.binomial(n, p)) for p in (0.005, 0.02))
        for level, k in (("info", max(n - failed - warned, 0)), ("error", failed), ("warn", warned)):
            if k:
                yield Count(unit, step * us, "level", level, k)
                if level != "info":
                    yield Count(unit, step * us, "template", f"{level}-{step % 3}", k)
        yield Count(unit, step * us, "duration", str(200 + step % 7), -(-n // 3))


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(run(*map(int, sys.argv[1:])))
