"""Simulate: made-up traffic of tasks with known incidents and quiet traps, and the truth about them, by seed.

For judging detection, of this package or any other, where the truth is known. Nothing here knows
how detection works, and detection never sees this. The same preset and seed give the same records.

A run of a task is a record that it starts, some in between, and one that it ended, with its
duration, or failed, with a traceback. Rates follow the day and the week; errors, customers and
hosts are uneven; everything is more dispersed than Poisson. Times are seconds since 1970.

====================== =======================================================================
incident               what happens
====================== =======================================================================
error_burst            a known error, by day, for 10 to 40 minutes
quiet_hour_burst       the same at night, where few runs are
new_error              an error that this task never had
tenant_burst           all runs of one customer of about 40 fail
level_mix              warnings multiply, errors stay
latency                durations double to quadruple
silence                a busy task stops
missed_schedule        a nightly batch does not come
slow_ramp              a known error grows for three to eight hours
cascade                one dependency fails: two to five tasks fail, all naming it
flapping               a known error, on and off every few minutes for an hour
====================== =======================================================================

Quiet traps: deployments, load spikes, blips of two to four failures, DEBUG switched on, a warning
never seen, records that come late, hosts with wrong clocks, a holiday, tasks that are new, tasks
whose errors, warnings and durations wobble together, nightly batches with their usual errors.

Not here: measures (evaluate.py), files (the caller's).
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from detectors.windows import BoolArray, FloatArray, IntArray

T0 = 1_767_571_200.0
"""2026-01-05T00:00:00Z, a Monday."""

WINDOW_S = 300
_DAY, _HOUR, _MINUTE = 86_400.0, 3_600.0, 60.0
_CUSTOMERS = 40
_SERVICES = ("checkout", "invoicing", "catalog", "mailer", "exports", "identity", "thumbs", "ledger")
_VERBS = ("process", "sync", "render", "collect", "index", "verify", "publish", "archive", "import", "rank")


@dataclass(frozen=True, slots=True)
class Preset:
    """What to simulate: tasks of each sort, days to learn and to judge, incidents of each kind to judge."""

    sorts: dict[str, int]
    learn_days: float = 7.0
    judge_days: float = 7.0
    runs_per_day: float = 1000.0  # of a busy task, on average
    incidents: dict[str, int] = field(default_factory=dict)
    wobbling: float = 0.1  # share of busy tasks that wobble
    new_tasks: int = 1


_KINDS = {
    "error_burst": 7,
    "quiet_hour_burst": 4,
    "new_error": 7,
    "tenant_burst": 4,
    "level_mix": 4,
    "latency": 5,
    "silence": 4,
    "missed_schedule": 2,
    "slow_ramp": 3,
    "cascade": 3,
    "flapping": 3,
}
PRESETS = {
    "small": Preset(
        {"api": 3, "worker": 3, "nightly": 1, "sparse": 1},
        3,
        3,
        700,
        dict.fromkeys(_KINDS, 1) | {"error_burst": 2, "new_error": 2},
    ),
    "standard": Preset({"api": 9, "worker": 9, "cron": 2, "nightly": 2, "sparse": 3}, incidents=_KINDS),
    "hard": Preset(
        {"api": 11, "worker": 12, "cron": 3, "nightly": 3, "sparse": 14},
        runs_per_day=700,
        incidents={kind: n + 1 + (kind == "new_error") * 2 for kind, n in _KINDS.items()},
        new_tasks=3,
    ),
    "quiet": Preset({"api": 9, "worker": 9, "cron": 2, "nightly": 2, "sparse": 3}),
    "wobble": Preset({"api": 6, "worker": 4}, 3, 4, wobbling=1.0, new_tasks=0),
}

# (type, message with {} for what varies, text before it); two pools, so that nothing is fitted to one.
POOLS: dict[str, tuple[tuple[str, str], ...]] = {
    "a": (
        ("requests.exceptions.ReadTimeout", "no answer from upstream within {n} s"),
        ("psycopg.errors.UniqueViolation", 'duplicate key value violates unique constraint "orders_{w}_key"'),
        ("psycopg.errors.DeadlockDetected", "deadlock detected, process {n} waits for ShareLock on transaction {n}"),
        ("ValueError", "cannot parse amount '{w}-{n}'"),
        ("KeyError", "'field_{w}'"),
        ("botocore.exceptions.ClientError", "An error occurred (SlowDown) when calling PutObject, request {h}"),
        ("redis.exceptions.ConnectionError", "Error {n} while reading from 10.2.{b}.{b}:6379"),
        ("PermissionError", "[Errno 13] Permission denied: '/srv/data/{h}.bin'"),
        ("openai.RateLimitError", "Error code: 429, retry in {n} ms"),
        ("json.decoder.JSONDecodeError", "Expecting value: line {n} column {n} (char {n})"),
        ("sqlalchemy.exc.OperationalError", "server closed the connection unexpectedly, pid {n}"),
        ("TypeError", "build_{w}() got an unexpected keyword argument 'dry_run'"),
        ("AttributeError", "'NoneType' object has no attribute '{w}'"),
        ("psycopg.errors.UndefinedColumn", 'column "ai_model" of relation "execution_{w}" does not exist'),
    ),
    "b": (
        ("java.net.SocketTimeoutException", "Read timed out after {n} milliseconds"),
        ("IntegrityError", "(1062, \"Duplicate entry '{n}' for key 'PRIMARY'\")"),
        ("StorageFull", "volume {w} has {n} bytes left, {n} needed"),
        ("InvalidToken", "signature of token {h} is not valid"),
        ("IndexError", "list index {n} out of range in {w}"),
        ("ssl.SSLError", "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:{n})"),
        ("UnicodeDecodeError", "'utf-8' codec can't decode byte 0x{b} in position {n}"),
        ("QuotaExceeded", "project {w} used {n} of {n} units"),
        ("MemoryError", "unable to allocate {n} MiB for an array of {w}"),
        ("LockTimeout", "could not get lock {w}:{h} within {n} s"),
        ("ZeroDivisionError", "division by zero in ratio of {w}"),
        ("TemplateNotFound", "{w}/mail_{w}.html"),
        ("AssertionError", "expected state '{w}', found 'closed'"),
        ("OverflowError", "value {n} too large to convert"),
    ),
}
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty")


@dataclass(slots=True)
class _Effect:
    """What an incident or a trap does to a task between ``start`` and ``end``."""

    kind: str
    start: float
    end: float
    incident: int | None = None
    share: float = 0.0  # probability that a run fails with ``error``, at the end of a ramp
    error: int = 0
    dependency: str = ""
    customer: int | None = None
    factor: float = 1.0  # of the rate, of warnings or of durations
    period: float = 0.0  # of flapping
    is_ramp: bool = False


@dataclass(slots=True)
class _Task:
    name: str
    service: str
    sort: str
    runs_per_day: float
    p: float
    errors: list[int]
    weights: FloatArray
    warn: float
    warn_text: str
    median_ms: float
    sigma: float
    peak_hour: float
    swing: float
    weekend: float
    start_s: float  # of a nightly batch, or how often a cron task comes
    is_wobbling: bool
    hosts: list[str]
    cold_start: float | None = None
    effects: list[_Effect] = field(default_factory=list)


@dataclass(slots=True)
class _Runs:
    """The runs of one task, one entry each."""

    t: FloatArray
    duration_ms: FloatArray
    customer: IntArray
    host: IntArray
    failed: BoolArray
    error: IntArray
    cause: IntArray  # index of the incident that made it odd, or -1
    warnings: IntArray
    dependency: list[str]


class Simulation:
    """Traffic with incidents; ``truth`` is complete from the start.

    ``truth`` has the tasks, the incidents with their evidence (``evidence_at`` is the moment at
    which enough odd records existed; an incident without is not ``scored``), and the quiet traps.
    """

    def __init__(self, preset: str | Preset, seed: int, *, pool: str = "a") -> None:
        self._preset = PRESETS[preset] if isinstance(preset, str) else preset
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._pool = POOLS[pool]
        self._end = T0 + (self._preset.learn_days + self._preset.judge_days) * _DAY
        self._begin_judging = T0 + self._preset.learn_days * _DAY
        self._holiday = T0 + float(self._rng.integers(1, max(2, int(self._preset.learn_days)))) * _DAY
        self._incidents: list[dict[str, Any]] = []
        self._benign: list[dict[str, Any]] = []
        self._busy: dict[str, list[tuple[float, float]]] = {}
        self._tasks = self._make_tasks()
        self._spread_traps()
        self._spread_incidents()
        self._runs = {task.name: self._simulate(task) for task in self._tasks}
        self._find_evidence()
        self.truth: dict[str, Any] = {
            "format": 1,
            "seed": seed,
            "preset": preset if isinstance(preset, str) else "own",
            "window_s": WINDOW_S,
            "t0": T0,
            "eval_start": self._begin_judging,
            "t_end": self._end,
            "tasks": [
                {
                    "name": task.name,
                    "service": task.service,
                    "kind": task.sort,
                    "cold_start": task.cold_start,
                    "executions_per_day": round(task.runs_per_day, 1),
                }
                for task in self._tasks
            ],
            "incidents": self._incidents,
            "benign": self._benign,
        }

    # Tasks, incidents, traps -----------------------------------------------------------------------------------------

    def _make_tasks(self) -> list[_Task]:
        rng, tasks = self._rng, []
        sorts = [sort for sort, n in self._preset.sorts.items() for _ in range(n)]
        for index, sort in enumerate(sorts):
            service = _SERVICES[index % len(_SERVICES)]
            runs = self._preset.runs_per_day * float(rng.lognormal(0, 0.5))
            runs = {"sparse": float(rng.uniform(25, 200)), "nightly": float(rng.uniform(150, 400))}.get(sort, runs)
            errors = rng.permutation(len(self._pool))[: int(rng.integers(3, 6))].tolist()
            is_busy = sort in {"api", "worker"}
            tasks.append(
                _Task(
                    name=f"{service}.{_VERBS[index % len(_VERBS)]}_{_WORDS[index // len(_VERBS) % len(_WORDS)]}",
                    service=service,
                    sort=sort,
                    runs_per_day=runs,
                    p=float(np.exp(rng.uniform(np.log(0.002), np.log(0.02)))),
                    errors=errors,
                    weights=rng.dirichlet(np.ones(len(errors))),
                    warn=float(np.exp(rng.uniform(np.log(0.004), np.log(0.06)))),
                    warn_text=f"{_WORDS[int(rng.integers(10))]} queue depth {{n}} above its soft limit",
                    median_ms=float(np.exp(rng.uniform(np.log(80), np.log(6_000)))),
                    sigma=float(rng.uniform(0.35, 0.6)),
                    peak_hour=float(rng.uniform(10, 16)),
                    swing=float(rng.uniform(0.5, 0.85)) if sort == "api" else float(rng.uniform(0.1, 0.4)),
                    weekend=float(rng.uniform(0.3, 0.7)) if sort == "api" else float(rng.uniform(0.7, 1)),
                    start_s=float(rng.uniform(0, 5)) * _HOUR if sort == "nightly" else 900.0,
                    is_wobbling=is_busy and bool(rng.random() < self._preset.wobbling),
                    hosts=[f"{service}-{chr(97 + i)}" for i in range(int(rng.integers(2, 5)))],
                )
            )
        fresh = [task for task in tasks if task.sort in {"api", "worker"}][: self._preset.new_tasks]
        for task in fresh:
            task.cold_start = self._begin_judging + float(rng.uniform(0.5, 3)) * _DAY
        return tasks

    def _trap(self, kind: str, tasks: list[_Task], start: float, end: float, **what: Any) -> None:
        for task in tasks:
            task.effects.append(_Effect(kind, start, end, **what))
        self._benign.append({"kind": kind, "tasks": [task.name for task in tasks], "start": start, "end": end})

    def _spread_traps(self) -> None:
        rng = self._rng
        self._trap("holiday", self._tasks, self._holiday, self._holiday + _DAY, factor=0.35)
        days = (self._end - T0) / _DAY
        for task in self._tasks:
            begin = task.cold_start or T0
            if task.cold_start:
                self._benign.append({"kind": "new_task", "tasks": [task.name], "start": begin, "end": begin + _DAY})

            def moment(begin: float = begin) -> float:
                return float(rng.uniform(begin, self._end - _HOUR))

            for _ in range(rng.poisson(days * 0.25)):
                start = moment()
                self._trap("deploy", [task], start, start + 10 * _MINUTE)
            for _ in range(rng.poisson(days * 0.12)):
                start = moment()
                self._trap("blip", [task], start, start + 120, factor=float(rng.integers(2, 5)), error=task.errors[0])
            if task.sort in {"api", "worker"}:
                for _ in range(rng.poisson(days * 0.12)):
                    start = moment()
                    length = float(rng.uniform(15, 45)) * _MINUTE
                    self._trap("load_spike", [task], start, start + length, factor=float(rng.uniform(2, 5)))
            for kind, rate, minutes in (("debug_on", 0.06, 120), ("odd_warning", 0.1, 5), ("late", 0.05, 25)):
                for _ in range(rng.poisson(days * rate)):
                    start = moment()
                    self._trap(kind, [task], start, start + minutes * _MINUTE)
            if rng.random() < 0.15:
                self._trap("clock_skew", [task], T0, self._end, factor=float(rng.uniform(-90, 90)))

    def _spread_incidents(self) -> None:
        for kind, n in self._preset.incidents.items():
            for _ in range(n):
                for _ in range(60):
                    if self._place(kind):
                        break

    def _place(self, kind: str) -> bool:
        """Try to put an incident somewhere free; return whether there was room."""
        rng = self._rng
        sorts = {"missed_schedule": {"nightly"}, "new_error": {"api", "worker", "cron", "sparse"}}
        wanted = sorts.get(kind, {"api", "worker"})
        if kind == "slow_ramp" and "sparse" in self._preset.sorts:
            wanted = {"api", "worker", "sparse"}
        able = [task for task in self._tasks if task.sort in wanted and task.cold_start is None]
        if not able:
            return False
        task = able[int(rng.integers(len(able)))]
        start = float(rng.uniform(self._begin_judging + _HOUR, self._end - 9 * _HOUR))
        day = start // _DAY * _DAY
        minutes = float(rng.uniform(12, 40))
        if kind == "quiet_hour_burst":
            start = day + float(rng.uniform(1, 4)) * _HOUR
        elif kind not in {"new_error", "missed_schedule", "silence", "slow_ramp", "cascade"}:
            start = day + float(rng.uniform(8, 19)) * _HOUR
        tasks, effect = [task], _Effect(kind, 0, 0, incident=len(self._incidents))
        effect.error = task.errors[int(rng.integers(len(task.errors)))]
        effect.share = float(rng.uniform(0.25, 0.8))
        if kind == "new_error":
            unknown = [i for i in range(len(self._pool)) if i not in task.errors]
            effect.error = unknown[int(rng.integers(len(unknown)))]
            minutes = float(rng.uniform(20, 60)) if task.sort != "sparse" else 300
        elif kind == "tenant_burst":
            effect.customer, effect.share, minutes = int(rng.integers(0, 5)), 1.0, float(rng.uniform(60, 120))
        elif kind in {"level_mix", "latency"}:
            effect.factor = float(rng.uniform(2, 4)) if kind == "latency" else max(4.0, 0.15 / task.warn)
            effect.share, minutes = 0.0, float(rng.uniform(30, 80))
        elif kind == "silence":
            effect.factor, effect.share, minutes = 0.0, 0.0, float(rng.uniform(90, 150))
            start = day + float(rng.uniform(8, 19)) * _HOUR
        elif kind == "missed_schedule":
            start, minutes, effect.factor, effect.share = day + task.start_s, 90, 0.0, 0.0
        elif kind == "slow_ramp":
            minutes, effect.is_ramp = float(rng.uniform(180, 480)), True
            effect.share = min(0.6, max(12 * task.p, 100 / task.runs_per_day))
        elif kind == "flapping":
            minutes, effect.period, effect.share = 60, float(rng.uniform(300, 700)), float(rng.uniform(0.4, 0.8))
        elif kind == "cascade":
            others = [one for one in able if one is not task]
            tasks += [others[i] for i in rng.permutation(len(others))[: int(rng.integers(1, 5))]]
            effect.dependency = f"{task.service}-db.internal"
            start = day + float(rng.uniform(8, 19)) * _HOUR
        if effect.share or kind in {"level_mix", "latency"}:
            # Long enough to be seen at all: about 15 odd runs, of a busy customer 8.
            few = effect.customer is not None
            odd_per_minute = task.runs_per_day / 1440 * (effect.share or 0.4) * (0.06 if few else 1)
            minutes = min(max(minutes, (8 if few else 15) / odd_per_minute), 300)
        end = start + minutes * _MINUTE
        if start < self._begin_judging + _HOUR or end > self._end - 2 * _HOUR:
            return False
        for one in tasks:
            gap = 5 * _HOUR
            if any(start < e + gap and end > s - gap for s, e in self._busy.get(one.name, [])):
                return False
        effect.start, effect.end = start, end
        for one in tasks:
            self._busy.setdefault(one.name, []).append((start, end))
            one.effects.append(effect)
        self._incidents.append(
            {
                "id": f"inc-{len(self._incidents) + 1:03}",
                "kind": kind,
                "tasks": [one.name for one in tasks],
                "root": task.name,
                "start": start,
                "end": end,
                "phase": "eval",
            }
        )
        return True

    # Runs ------------------------------------------------------------------------------------------------------------

    def _rate(self, task: _Task, minutes: FloatArray) -> FloatArray:
        """Return how many runs are expected in each minute."""
        hours = minutes / _HOUR % 24
        if task.sort == "nightly":
            since = minutes % _DAY - task.start_s
            rate = np.where((since >= 0) & (since < 20 * _MINUTE), task.runs_per_day / 20, 0.0)
        elif task.sort == "cron":
            rate = np.where(minutes % task.start_s < _MINUTE, task.runs_per_day / (_DAY / task.start_s), 0.0)
        else:
            shape = 1 + task.swing * np.cos((hours - task.peak_hour) / 24 * 2 * np.pi)
            is_weekend = (minutes - T0) // _DAY % 7 >= 5
            rate = task.runs_per_day / 1440 * shape * np.where(is_weekend, task.weekend, 1.0)
            # Ten minutes that are busier or calmer: more dispersed than Poisson.
            segments = self._rng.gamma(12, 1 / 12, len(minutes) // 10 + 1).repeat(10)[: len(minutes)]
            rate = rate * segments
        if task.cold_start is not None:
            rate = np.where(minutes < task.cold_start, 0.0, rate)
        for effect in task.effects:
            if effect.kind in {"silence", "missed_schedule", "load_spike", "holiday"}:
                within = (minutes >= effect.start) & (minutes < effect.end)
                if effect.kind == "holiday" and task.sort in {"nightly", "cron"}:
                    continue
                rate = np.where(within, rate * effect.factor, rate)
            elif effect.kind == "deploy":
                rate = np.where((minutes >= effect.start) & (minutes < effect.start + 90), rate * 0.2, rate)
        return rate

    def _simulate(self, task: _Task) -> _Runs:
        rng = self._rng
        minutes = np.arange(T0, self._end, _MINUTE)
        numbers = rng.poisson(self._rate(task, minutes))
        t = np.sort(np.repeat(minutes, numbers) + rng.uniform(0, _MINUTE, int(numbers.sum())))
        size = len(t)
        segment = ((t - T0) // 600).astype(np.int64)
        steps = int((self._end - T0) // 600) + 1
        noise = rng.gamma(10, 0.1, steps)[segment]
        wobble = np.ones(size)
        if task.is_wobbling:
            wobble = np.exp(rng.normal(0, 0.5, steps))[segment]
        p = task.p * noise * wobble**1.5
        warn = task.warn * wobble**1.5
        median = task.median_ms * wobble * (1 + 0.1 * np.sin((t - T0) / _DAY * 2 * np.pi))
        customer = np.minimum(rng.zipf(1.4, size) - 1, _CUSTOMERS - 1)
        customer = np.where(rng.random(size) < 0.5, customer, rng.integers(0, _CUSTOMERS, size))
        failed = rng.random(size) < p
        error = np.array(task.errors)[rng.choice(len(task.errors), size, p=task.weights)] if size else np.zeros(0, int)
        cause = np.full(size, -1)
        dependency = [""] * size
        slow = np.ones(size)
        warn = np.broadcast_to(warn, (size,)).copy()
        for effect in task.effects:
            within = (t >= effect.start) & (t < effect.end)
            if effect.kind == "latency":
                slow = np.where(within, slow * effect.factor, slow)
                cause[within] = effect.incident
            elif effect.kind == "level_mix":
                warn = np.where(within, warn * effect.factor, warn)
            elif effect.kind == "blip":
                few = np.flatnonzero(within)[: int(effect.factor)]
                failed[few], error[few] = True, effect.error
            elif effect.incident is not None and effect.share:
                share = np.full(size, effect.share)
                if effect.is_ramp:
                    share = effect.share * (t - effect.start) / (effect.end - effect.start)
                if effect.period:
                    share = share * ((t - effect.start) // effect.period % 2 == 0)
                hit = within & (rng.random(size) < share)
                if effect.customer is not None:
                    hit &= customer == effect.customer
                failed |= hit
                error[hit] = effect.error
                cause[hit] = effect.incident
                if effect.dependency:
                    for index in np.flatnonzero(hit):
                        dependency[index] = effect.dependency
        warnings = rng.poisson(np.minimum(warn, 1.0))
        return _Runs(
            t=t,
            duration_ms=median * slow * np.exp(rng.normal(0, task.sigma, size)),
            customer=customer,
            host=rng.integers(0, len(task.hosts), size),
            failed=failed,
            error=error,
            cause=cause,
            warnings=warnings,
            dependency=dependency,
        )

    def _find_evidence(self) -> None:
        tasks = {task.name: task for task in self._tasks}
        least = {"new_error": 4, "level_mix": 10, "latency": 10, "tenant_burst": 6, "slow_ramp": 15}
        for number, incident in enumerate(self._incidents):
            kind, start, end = incident["kind"], incident["start"], incident["end"]
            at = None
            n = 0
            if kind in {"silence", "missed_schedule"}:
                task = tasks[incident["root"]]
                minutes = np.arange(start, end, _MINUTE)
                kept, task.effects = task.effects, [e for e in task.effects if e.incident != number]
                missing = np.cumsum(self._rate(task, minutes))
                task.effects = kept
                n = int(missing[-1])
                late = np.flatnonzero(missing >= 10)
                if late.size:
                    at = float(minutes[late[0]] + (10 * _MINUTE if kind == "missed_schedule" else 0))
            else:
                times = []
                for name in incident["tasks"]:
                    runs = self._runs[name]
                    within = (runs.t >= start) & (runs.t < end)
                    if kind == "level_mix":
                        odd = within & (runs.warnings > 0)
                    else:
                        odd = within & (runs.cause == number)
                    times.append(runs.t[odd] + runs.duration_ms[odd] / 1000)
                found = np.sort(np.concatenate(times))
                n = len(found)
                if n >= least.get(kind, 6):
                    at = float(found[least.get(kind, 6) - 1])
            incident |= {"evidence_n": n, "evidence_at": at, "scored": at is not None}

    # Records ---------------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records by ``event.ingested``, rising."""
        rng = np.random.default_rng([self._seed, 1])
        waiting: list[tuple[float, int, dict[str, Any]]] = []
        order = 0
        places = {task.name: 0 for task in self._tasks}
        for hour in np.arange(T0, self._end + _HOUR, _HOUR):
            for task in self._tasks:
                runs = self._runs[task.name]
                first, last = places[task.name], int(np.searchsorted(runs.t, hour + _HOUR))
                places[task.name] = last
                for index in range(first, last):
                    for at, ingested, record in self._run(task, runs, index, rng):
                        record["@timestamp"] = _text(at)
                        record["event.ingested"] = _text(ingested)
                        heapq.heappush(waiting, (ingested, order, record))
                        order += 1
            while waiting and waiting[0][0] < hour + _HOUR:
                yield heapq.heappop(waiting)[2]
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _run(
        self, task: _Task, runs: _Runs, index: int, rng: np.random.Generator
    ) -> Iterator[tuple[float, float, dict[str, Any]]]:
        """Yield (time, arrival, record) of one run."""
        t, host = float(runs.t[index]), task.hosts[int(runs.host[index])]
        seconds = float(runs.duration_ms[index]) / 1000
        run_id = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        now = [effect for effect in task.effects if effect.start <= t < effect.end]
        release = 1 + sum(effect.kind == "deploy" and effect.start <= t for effect in task.effects)
        skew, late = 0.0, 0.0
        lines: list[tuple[float, str, str]] = []
        for effect in now:
            if effect.kind == "debug_on":
                lines += [(0.2 + 0.1 * i, "DEBUG", f"state of {run_id[:8]} is {i}") for i in range(4)]
            elif effect.kind == "odd_warning" and rng.random() < 0.2:
                lines.append((0.3, "WARNING", f"{task.service}: retrying after an odd answer {rng.integers(99)}"))
            elif effect.kind == "late" and host == task.hosts[0]:
                late = effect.end - t
            elif effect.kind == "clock_skew" and host == task.hosts[-1]:
                skew = effect.factor
        lines.append((0.0, "INFO", f"Starting execution {run_id} for customer-{runs.customer[index]:03}"))
        if rng.random() < 0.5:
            lines.append((0.4, "INFO", f"Loaded {rng.integers(1, 900)} rows of {_WORDS[int(rng.integers(10))]}"))
        for _ in range(int(runs.warnings[index])):
            lines.append((0.5, "WARNING", task.warn_text.format(n=rng.integers(100, 9000))))
        if runs.failed[index]:
            kind, text = self._pool[int(runs.error[index])]
            text = text.format(
                n=rng.integers(1, 99_999),
                w=_WORDS[int(rng.integers(10))],
                h=f"{rng.integers(2**48):012x}",
                b=rng.integers(1, 255),
            )
            if runs.dependency[index]:
                kind, text = "ConnectionRefusedError", f"cannot reach {runs.dependency[index]}:5432"
            stack = (
                f'Traceback (most recent call last):\n  File "{task.service}/tasks.py", line 81, in run\n{kind}: {text}'
            )
            lines.append((1.0, "ERROR", f"Execution {run_id} failed\n{stack}"))
        else:
            lines.append((1.0, "INFO", f"Execution {run_id} done"))
        for part, level, message in lines:
            at = t + part * seconds
            delay = float(rng.lognormal(-0.7, 0.6)) + (float(rng.uniform(5, 50)) if rng.random() < 0.005 else 0.0)
            record: dict[str, Any] = {
                "service": task.service,
                "task": task.name,
                "task_id": run_id,
                "tenant": f"customer-{runs.customer[index]:03}",
                "level": level,
                "host": host,
                "version": f"1.{release}.0",
                "message": message,
            }
            if part == 1.0:
                record["duration_ms"] = round(float(runs.duration_ms[index]), 1)
            yield at + skew, at + late + delay, record


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
