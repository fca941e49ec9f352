"""Simulate: made-up traffic of tasks with known incidents and quiet traps, and the truth about them, by seed.

For judging detection, of this package or any other, where the truth is known. Nothing here knows
how detection works, and detection never sees this. The same preset, seed and messages give the same
records; another pool of messages tells whether wording was learned.

A run of a task is a record that it starts, some in between, and one that it ended, with its
duration, or failed, with a traceback. Rates follow the day, the week and slow growth; errors,
customers and hosts are uneven; everything is more dispersed than Poisson. Tasks are of these sorts:
``api`` and ``worker`` (busy), ``bursty`` (their work comes in clumps), ``cron`` (four times an
hour), ``hourly`` and ``nightly`` (batches, with many usual errors), ``sparse``, and ``daemon``
(records without a task). Times are seconds since 1970.

================ ====================== ==============================================================
incident         variants               what happens
================ ====================== ==============================================================
error_burst      known, mixed, release  one known error, all of them, or all since a release
quiet_hour_burst                        a known error at night, where few runs are
new_error                               an error that this task never had
tenant_burst     customer, host         all runs of one customer of 40, or most of one host, fail
level_mix                               warnings triple to quintuple, errors stay
latency          median, tail           durations grow, of all runs or of one in five
silence                                 a busy task stops
missed_schedule  nightly, hourly        a batch does not come, or comes hours late
slow_ramp        hours, days            a known error grows for 3 to 8, or 20 to 36 hours
cascade          dependency, upstream,  two to five tasks fail: all name what is gone, or the first
                 unnamed                of them, or all say the same and name nothing
flapping                                a known error, on and off every few minutes for an hour
================ ====================== ==============================================================

Quiet traps, on which a ticket is false: deployments, restarts of a service, load spikes, blips of
two to four failures, DEBUG switched on, a warning never seen, odd runs (evidence, but no ticket),
records of one host that come late and out of order, all records held up for minutes as when the
collector restarts, hosts with wrong clocks, a holiday, weekends, a new customer, tasks that are new,
tasks whose errors, warnings and durations wobble together, batches with their usual errors.

An incident is ``scored`` where the records prove it: enough odd ones, and more than four standard
deviations of what chance would have brought. ``evidence_at`` is the moment from which they do.

Not here: measures (evaluate.py), files (the caller's).
"""

from __future__ import annotations

import bisect
import dataclasses
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from detectors.windows import BoolArray, FloatArray, IntArray

T0 = 1_767_571_200.0
"""2026-01-05T00:00:00Z, a Monday."""

WINDOW_S = 300
_DAY, _HOUR, _MINUTE = 86_400.0, 3_600.0, 60.0
_SEGMENT = 600.0
"""How long it stays busier or calmer than usual."""
_CUSTOMERS = 40
_NEW_CUSTOMER = _CUSTOMERS
_HOURLY_S, _NIGHTLY_S, _CRON_S = 480.0, 1200.0, 900.0
_SERVICES = ("checkout", "invoicing", "catalog", "mailer", "exports", "identity", "thumbs", "ledger")
_VERBS = ("process", "sync", "render", "collect", "index", "verify", "publish", "archive", "import", "rank")
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty")

INCIDENTS: dict[str, tuple[str, ...]] = {
    "error_burst": ("known", "mixed", "release"),
    "quiet_hour_burst": (),
    "new_error": (),
    "tenant_burst": ("customer", "host"),
    "level_mix": (),
    "latency": ("median", "tail"),
    "silence": (),
    "missed_schedule": ("nightly", "hourly"),
    "slow_ramp": ("hours", "days"),
    "cascade": ("dependency", "upstream", "unnamed"),
    "flapping": (),
}
"""Kinds of incidents and their variants, which take turns."""


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

    def without(self, kind: str) -> Preset:
        """Return the preset without incidents of a kind."""
        return dataclasses.replace(self, incidents={name: n for name, n in self.incidents.items() if name != kind})


_STANDARD = {"api": 8, "worker": 7, "bursty": 2, "cron": 1, "hourly": 1, "nightly": 2, "sparse": 3, "daemon": 1}
_MANY = {
    "error_burst": 6,
    "quiet_hour_burst": 4,
    "new_error": 7,
    "tenant_burst": 5,
    "level_mix": 4,
    "latency": 5,
    "silence": 4,
    "missed_schedule": 4,
    "slow_ramp": 4,
    "cascade": 3,
    "flapping": 3,
}
PRESETS = {
    "small": Preset(
        {"api": 3, "worker": 3, "bursty": 1, "hourly": 1, "nightly": 1, "sparse": 2, "daemon": 1},
        4,
        4,
        600,
        dict.fromkeys(INCIDENTS, 2) | {"quiet_hour_burst": 1, "flapping": 1, "cascade": 1},
    ),
    "standard": Preset(_STANDARD, incidents=_MANY),
    "hard": Preset(
        {"api": 9, "worker": 9, "bursty": 4, "cron": 1, "hourly": 2, "nightly": 3, "sparse": 14, "daemon": 1},
        runs_per_day=700,
        incidents={kind: n + 1 + 2 * (kind == "new_error") for kind, n in _MANY.items()},
        new_tasks=3,
    ),
    "quiet": Preset(_STANDARD),
    "wobble": Preset({"api": 6, "worker": 4}, 3, 4, wobbling=1.0, new_tasks=0),
}


class Messages(NamedTuple):
    """What records say; ``{n}``, ``{w}``, ``{h}``, ``{b}`` vary (number, word, hex, byte), ``{run}`` is the run's id."""

    start: tuple[str, ...]
    middle: tuple[str, ...]
    done: tuple[str, ...]
    failed: str
    stack: str
    debug: str
    warning: str
    odd_warning: str
    odd_middle: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]  # type, text
    unreachable: tuple[str, str]  # {name} is what is gone
    unnamed: tuple[str, str]


POOLS: dict[str, Messages] = {
    "a": Messages(
        start=("Starting execution {run} for customer-{b}", "Execution {run} started, attempt 1"),
        middle=("Loaded {n} rows of {w}", "Cache hit ratio 0.{b} for key {h}", "Published event {h} to topic {w}"),
        done=("Execution {run} done", "Finished {run}: status=ok rows={n}"),
        failed="Execution {run} failed",
        stack='Traceback (most recent call last):\n  File "{place}/tasks.py", line 81, in run\n'
        '  File "{place}/{w}.py", line {b}, in handle\n',
        debug="state of {h} is {b}",
        warning="{w} queue depth {n} above its soft limit",
        odd_warning="{service}: retrying after an odd answer {b}",
        odd_middle=("Falling back to the replica of {w}", "Lock on {h} taken over from another worker"),
        errors=(
            ("requests.exceptions.ReadTimeout", "no answer from upstream within {n} s"),
            ("psycopg.errors.UniqueViolation", 'duplicate key value violates unique constraint "orders_{w}_key"'),
            ("psycopg.errors.DeadlockDetected", "deadlock detected, process {n} waits for ShareLock on {n}"),
            ("ValueError", "cannot parse amount '{w}-{n}'"),
            ("KeyError", "'field_{w}'"),
            ("botocore.exceptions.ClientError", "An error occurred (SlowDown) when calling PutObject, request {h}"),
            ("redis.exceptions.ConnectionError", "Error {n} while reading from 10.2.{b}.{b}:6379"),
            ("PermissionError", "[Errno 13] Permission denied: '/srv/data/{h}.bin'"),
            ("openai.RateLimitError", "Error code: 429, retry in {n} ms"),
            ("json.decoder.JSONDecodeError", "Expecting value: line {n} column {n} (char {n})"),
            ("sqlalchemy.exc.OperationalError", "could not extend file, pid {n}"),
            ("TypeError", "build_{w}() got an unexpected keyword argument 'dry_run'"),
            ("AttributeError", "'NoneType' object has no attribute '{w}'"),
            ("psycopg.errors.UndefinedColumn", 'column "ai_model" of relation "execution_{w}" does not exist'),
        ),
        unreachable=("ConnectionRefusedError", "cannot reach {name}, {b} attempts"),
        unnamed=("psycopg.OperationalError", "server closed the connection unexpectedly"),
    ),
    "b": Messages(
        start=("job {run} picked from lane {w}", "run {run} begins"),
        middle=("fetched part {n} in {b} ms", "model answered with {n} tokens", "wrote {n} documents to {w}-{b}"),
        done=("job {run} ok after {n} steps", "run {run} completed"),
        failed="run {run} aborted",
        stack="Exception in thread worker-{b}\n  at {place}.Runner.handle(Runner.java:117)\n"
        "  at {place}.Main.run(Main.java:{b})\n",
        debug="span {h} took {b} us",
        warning="slow disk on {w}: {n} ms",
        odd_warning="{service}: certificate will expire in {b} days",
        odd_middle=("compacting {w} before the run", "leader changed to node {b}"),
        errors=(
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
        unreachable=("UnavailableException", "{name} returned 503 {b} times"),
        unnamed=("io.grpc.StatusRuntimeException", "UNAVAILABLE: io exception"),
    ),
}


@dataclass(slots=True)
class _Effect:
    """What an incident or a trap does to a task between ``start`` and ``end``."""

    kind: str
    start: float
    end: float
    variant: str = ""
    incident: int = -1  # its index; traps have none
    share: float = 0.0  # probability that a run fails, at the end of a ramp
    error: int = -1  # one of the pool's; -1 for any of the task's own
    says: tuple[str, str] | None = None  # type and text in place of the pool's
    customer: int | None = None
    host: int | None = None
    factor: float = 1.0  # of the rate, of warnings or of durations
    period: float = 0.0  # of flapping


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
    warn_word: str
    median_ms: float
    sigma: float
    peak_hour: float
    swing: float
    weekend: float
    growth: float  # of the rate, a day
    begins_s: float  # of a batch, within its day or hour
    lively: FloatArray  # how busy each segment is
    is_wobbling: bool
    hosts: list[str]
    cold_start: float | None = None
    effects: list[_Effect] = field(default_factory=list)

    @property
    def is_busy(self) -> bool:
        return self.sort in {"api", "worker", "bursty", "daemon"}


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
    says: dict[int, tuple[str, str]]  # run → what it says in place of its error
    is_odd: BoolArray


class _Line(NamedTuple):
    part: float  # how far into the run
    level: str
    text: str


class Simulation:
    """Traffic with incidents; ``truth`` is complete from the start.

    ``truth`` has the tasks, the incidents with their evidence, and the quiet traps (``benign``).

    Raises:
        KeyError: If there is no such preset or pool.
    """

    def __init__(self, preset: str | Preset, seed: int, *, pool: str = "a") -> None:
        self._preset = PRESETS[preset] if isinstance(preset, str) else preset
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._messages = POOLS[pool]
        self._end = T0 + (self._preset.learn_days + self._preset.judge_days) * _DAY
        self._begin_judging = T0 + self._preset.learn_days * _DAY
        self._incidents: list[dict[str, Any]] = []
        self._benign: list[dict[str, Any]] = []
        self._busy: dict[str, list[tuple[float, float]]] = {}
        self._held_up: list[tuple[float, float]] = []
        self._tasks = self._make_tasks()
        self._spread_traps()
        for kind, n in self._preset.incidents.items():
            for index in range(n):
                variants = INCIDENTS[kind] or ("",)
                self._spread(kind, variants[index % len(variants)])
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

    # Tasks and traps -------------------------------------------------------------------------------------------------

    def _make_tasks(self) -> list[_Task]:
        rng, tasks = self._rng, []
        sorts = [sort for sort, n in self._preset.sorts.items() for _ in range(n)]
        for index, sort in enumerate(sorts):
            service = _SERVICES[index % len(_SERVICES)]
            name = f"{service}.{_VERBS[index % len(_VERBS)]}_{_WORDS[index // len(_VERBS) % len(_WORDS)]}"
            if sort == "daemon":
                service = name = f"{_WORDS[index % len(_WORDS)]}-daemon"
            runs = self._preset.runs_per_day * float(rng.lognormal(0, 0.5))
            runs = {
                "sparse": float(rng.uniform(25, 200)),
                "nightly": float(rng.uniform(150, 400)),
                "hourly": 24 * float(rng.uniform(25, 60)),
            }.get(sort, runs)
            errors = rng.permutation(len(self._messages.errors))[: int(rng.integers(3, 6))].tolist()
            p = float(np.exp(rng.uniform(np.log(0.002), np.log(0.02))))
            if sort in {"nightly", "hourly"}:
                p *= float(rng.uniform(2, 6))  # batches have their usual errors
            begins = {"nightly": float(rng.uniform(0, 5)) * _HOUR, "hourly": float(rng.uniform(0, 50)) * _MINUTE}
            liveliness = 0.8 if sort == "bursty" else 12.0
            tasks.append(
                _Task(
                    name=name,
                    service=service,
                    sort=sort,
                    runs_per_day=runs,
                    p=p,
                    errors=errors,
                    weights=rng.dirichlet(np.ones(len(errors))),
                    warn=float(np.exp(rng.uniform(np.log(0.004), np.log(0.06)))),
                    warn_word=_WORDS[int(rng.integers(10))],
                    median_ms=float(np.exp(rng.uniform(np.log(80), np.log(6_000)))),
                    sigma=float(rng.uniform(0.35, 0.6)),
                    peak_hour=float(rng.uniform(10, 16)),
                    swing=float(rng.uniform(0.5, 0.85)) if sort == "api" else float(rng.uniform(0.1, 0.4)),
                    weekend=float(rng.uniform(0.3, 0.7)) if sort == "api" else float(rng.uniform(0.7, 1)),
                    growth=float(rng.normal(0, 0.01)),
                    begins_s=begins.get(sort, 0.0),
                    lively=rng.gamma(liveliness, 1 / liveliness, int((self._end - T0) / _SEGMENT) + 1),
                    is_wobbling=sort in {"api", "worker"} and bool(rng.random() < self._preset.wobbling),
                    hosts=[f"{service}-{chr(97 + i)}" for i in range(int(rng.integers(2, 6)))],
                )
            )
        fresh = [task for task in tasks if task.sort in {"api", "worker"}][: self._preset.new_tasks]
        for task in fresh:
            task.cold_start = (
                self._begin_judging + float(rng.uniform(0.5, min(3, self._preset.judge_days - 0.5))) * _DAY
            )
        return tasks

    def _trap(self, kind: str, tasks: list[_Task], start: float, end: float, **what: Any) -> None:
        for task in tasks:
            task.effects.append(_Effect(kind, start, end, **what))
        self._benign.append({"kind": kind, "tasks": [task.name for task in tasks], "start": start, "end": end})

    def _spread_traps(self) -> None:
        rng = self._rng
        days = (self._end - T0) / _DAY
        begins = T0 + np.arange(days) * _DAY
        holiday = float(begins[int(rng.integers(1, max(2, int(days))))])
        self._trap("holiday", self._tasks, holiday, holiday + _DAY, factor=0.35)
        for weekend in begins[5::7].tolist():
            self._benign.append(
                {"kind": "weekend", "tasks": [t.name for t in self._tasks], "start": weekend, "end": weekend + 2 * _DAY}
            )
        for _ in range(1 + rng.poisson(days * 0.1)):
            start = float(rng.uniform(T0 + _DAY, self._end - _HOUR))
            self._held_up.append((start, start + float(rng.uniform(2, 9)) * _MINUTE))
            self._trap("held_up", self._tasks, *self._held_up[-1])
        for service in sorted({task.service for task in self._tasks}):
            for _ in range(rng.poisson(days * 0.12)):
                start = float(rng.uniform(T0 + _HOUR, self._end - _HOUR))
                mine = [task for task in self._tasks if task.service == service]
                self._trap("service_restart", mine, start, start + float(rng.uniform(45, 150)))
        for kind, share in (("clock_skew", 0.15), ("new_customer", 0.1)):
            for index in rng.permutation(len(self._tasks))[: round(share * len(self._tasks)) + 1].tolist():
                task = self._tasks[index]
                start = T0 if kind == "clock_skew" else float(rng.uniform(task.cold_start or T0, self._end - _DAY))
                self._trap(kind, [task], start, self._end, factor=float(rng.uniform(-90, 90)))
        for task in self._tasks:
            self._spread_traps_of(task, days)

    def _spread_traps_of(self, task: _Task, days: float) -> None:
        rng = self._rng
        begin = task.cold_start or T0
        if task.cold_start:
            self._benign.append({"kind": "new_task", "tasks": [task.name], "start": begin, "end": begin + _DAY})

        def spread(kind: str, a_day: float, low: float, high: float, **what: Any) -> None:
            for _ in range(rng.poisson(days * a_day)):
                start = float(rng.uniform(begin, self._end - _HOUR))
                self._trap(kind, [task], start, start + float(rng.uniform(low, high)) * _MINUTE, **what)

        spread("deploy", 0.25, 6, 12)
        for failures in (2, 3, 4):
            spread("blip", 0.05, 2, 4, factor=failures, error=task.errors[int(task.weights.argmax())])
        if task.sort in {"api", "worker", "daemon"}:
            for factor in (2, 3.5, 5):
                spread("load_spike", 0.04, 15, 45, factor=factor)
        spread("debug_on", 0.06, 60, 240)
        spread("odd_warning", 0.1, 3, 10)
        spread("odd_run", 0.2, 2, 30)
        spread("late", 0.06, 10, 25)

    # Incidents -------------------------------------------------------------------------------------------------------

    def _spread(self, kind: str, variant: str) -> None:
        for _ in range(80):
            if self._place(kind, variant):
                return

    def _able(self, kind: str, variant: str) -> list[_Task]:
        wanted = {
            "missed_schedule": {variant},
            "new_error": {"api", "worker", "bursty", "cron", "sparse", "daemon"},
            "slow_ramp": {"api", "worker", "sparse", "daemon"},
            "silence": {"api", "worker", "bursty", "daemon"},
        }.get(kind, {"api", "worker", "bursty", "daemon"})
        return [task for task in self._tasks if task.sort in wanted and task.cold_start is None]

    def _place(self, kind: str, variant: str) -> bool:
        """Try to put an incident somewhere free; return whether there was room."""
        rng = self._rng
        able = self._able(kind, variant)
        if not able:
            return False
        task = able[int(rng.integers(len(able)))]
        start = float(rng.uniform(self._begin_judging + _HOUR, self._end - 3 * _HOUR))
        day = start // _DAY * _DAY
        minutes = float(rng.uniform(12, 45))
        if kind == "quiet_hour_burst":
            start = day + float(rng.uniform(0.5, 5)) * _HOUR
        elif kind in {"error_burst", "tenant_burst", "level_mix", "latency", "flapping"} and rng.random() < 0.6:
            start = day + float(rng.uniform(7, 20)) * _HOUR
        effect = _Effect(kind, 0, 0, variant, incident=len(self._incidents))
        effect.error = task.errors[int(rng.integers(len(task.errors)))]
        effect.share = float(np.exp(rng.uniform(np.log(0.15), np.log(0.9))))
        tasks, odd_share, least = [task], effect.share, 15.0
        match kind:
            case "error_burst" if variant != "known":
                effect.error = -1
            case "new_error":
                unknown = [i for i in range(len(self._messages.errors)) if i not in task.errors]
                effect.error = unknown[int(rng.integers(len(unknown)))]
                minutes, least = float(rng.uniform(20, 90)), 6
            case "tenant_burst":
                minutes, least = float(rng.uniform(40, 120)), 9
                if variant == "customer":
                    effect.customer, effect.share, odd_share = int(rng.integers(0, 8)), 1.0, 0.05
                else:
                    effect.host, effect.share = int(rng.integers(len(task.hosts))), float(rng.uniform(0.4, 1))
                    odd_share, effect.error = effect.share / len(task.hosts), -1
            case "level_mix":
                effect.factor, effect.share, minutes = float(rng.uniform(3, 5)), 0.0, float(rng.uniform(30, 100))
                odd_share, least = task.warn * (effect.factor - 1), 25
            case "latency":
                effect.share, minutes = 0.0, float(rng.uniform(30, 100))
                effect.factor, odd_share = float(rng.uniform(2, 4)), 1.0
                if variant == "tail":
                    effect.share, effect.factor = float(rng.uniform(0.15, 0.3)), float(rng.uniform(4, 10))
                    odd_share = effect.share
            case "silence":
                effect.factor, effect.share, minutes, odd_share = 0.0, 0.0, float(rng.uniform(90, 180)), 0.0
            case "missed_schedule":
                effect.factor, effect.share, odd_share = 0.0, 0.0, 0.0
                if variant == "nightly":
                    start, minutes = day + task.begins_s, float(rng.uniform(90, 240))
                else:
                    start = start // _HOUR * _HOUR + task.begins_s
                    minutes = 60.0 * int(rng.integers(1, 4)) - 5
            case "slow_ramp":
                minutes = 60 * (float(rng.uniform(3, 8)) if variant == "hours" else float(rng.uniform(20, 36)))
                effect.share = min(0.6, max(12 * task.p, 60 / (task.runs_per_day * minutes / 1440)))
                odd_share = 0.0
            case "flapping":
                minutes, effect.period, effect.share = 60, float(rng.uniform(240, 700)), float(rng.uniform(0.4, 0.9))
                odd_share = effect.share / 2
            case "cascade":
                others = [one for one in able if one is not task]
                if not others:
                    return False
                tasks += [others[i] for i in rng.permutation(len(others))[: int(rng.integers(1, 5))]]
        if odd_share:
            # Long enough to be seen, at the pace of that time of day; some too short, which are not scored.
            pace = float(self._expected(task, np.arange(start, start + 2 * _HOUR, _MINUTE)).mean()) * odd_share
            minutes = min(max(minutes, float(rng.uniform(0.8, 2)) * least / max(pace, 1e-9)), 420)
        end = start + minutes * _MINUTE
        if start < self._begin_judging + _HOUR or end > self._end - 2 * _HOUR:
            return False
        gap = 5 * _HOUR
        if any(start < e + gap and end > s - gap for one in tasks for s, e in self._busy.get(one.name, [])):
            return False
        effect.start, effect.end = start, end
        self._add_incident(effect, tasks)
        return True

    def _add_incident(self, effect: _Effect, tasks: list[_Task]) -> None:
        rng, root = self._rng, tasks[0]
        for index, task in enumerate(tasks):
            mine = effect
            if effect.kind == "cascade":
                delay = float(rng.uniform(0, 3)) * _MINUTE if index else 0.0
                mine = dataclasses.replace(effect, start=effect.start + delay)
                kind, text = self._messages.unreachable
                if effect.variant == "dependency":
                    mine.says = kind, text.replace("{name}", f"{root.service}-db.internal:5432")
                elif effect.variant == "unnamed":
                    mine.says = self._messages.unnamed
                elif index:
                    mine.says = kind, text.replace("{name}", root.name)
            self._busy.setdefault(task.name, []).append((effect.start, effect.end))
            task.effects.append(mine)
        self._incidents.append(
            {
                "id": f"inc-{len(self._incidents) + 1:03}",
                "kind": effect.kind,
                "variant": effect.variant,
                "tasks": [task.name for task in tasks],
                "root": root.name,
                "start": effect.start,
                "end": effect.end,
                "phase": "eval",
            }
        )

    # Runs ------------------------------------------------------------------------------------------------------------

    def _expected(self, task: _Task, minutes: FloatArray, *, but: int | None = None) -> FloatArray:
        """Return how many runs are expected in each minute, but for an incident."""
        days = (minutes - T0) / _DAY
        if task.sort in {"nightly", "hourly"}:
            every, lasts = (_DAY, _NIGHTLY_S) if task.sort == "nightly" else (_HOUR, _HOURLY_S)
            since = (minutes - task.begins_s) % every
            rate = np.where(since < lasts, task.runs_per_day * every / _DAY / (lasts / _MINUTE), 0.0)
        elif task.sort == "cron":
            rate = np.where(minutes % _CRON_S < _MINUTE, task.runs_per_day / (_DAY / _CRON_S), 0.0)
        else:
            shape = 1 + task.swing * np.cos((minutes / _HOUR % 24 - task.peak_hour) / 24 * 2 * np.pi)
            rate = task.runs_per_day / 1440 * shape * np.where(days // 1 % 7 >= 5, task.weekend, 1.0)
            places = np.minimum(((minutes - T0) / _SEGMENT).astype(np.int64), len(task.lively) - 1)
            rate = rate * task.lively[places] * (1 + task.growth) ** days
        if task.cold_start is not None:
            rate = np.where(minutes < task.cold_start, 0.0, rate)
        is_batch = task.sort in {"nightly", "hourly", "cron"}
        for effect in task.effects:
            if effect.incident >= 0 and effect.incident == but:
                continue
            within = (minutes >= effect.start) & (minutes < effect.end)
            if effect.kind in {"silence", "missed_schedule", "load_spike"} or (
                effect.kind == "holiday" and not is_batch
            ):
                rate = np.where(within, rate * effect.factor, rate)
                if effect.variant == "nightly" and effect.kind == "missed_schedule":
                    # It is made up for afterwards: what did not come in time comes late.
                    since = minutes - effect.end
                    late = (since >= 0) & (since < _NIGHTLY_S)
                    rate = np.where(late, task.runs_per_day / (_NIGHTLY_S / _MINUTE), rate)
            elif effect.kind == "deploy":
                rate = np.where((minutes >= effect.start) & (minutes < effect.start + 90), rate * 0.2, rate)
            elif effect.kind == "service_restart" and not is_batch:
                after = (minutes >= effect.end) & (minutes < effect.end + 2 * _MINUTE)
                rate = np.where(within, 0.0, np.where(after, rate * 1.8, rate))
        return rate

    def _simulate(self, task: _Task) -> _Runs:
        rng = self._rng
        minutes = np.arange(T0, self._end, _MINUTE)
        numbers = rng.poisson(self._expected(task, minutes))
        t = np.sort(np.repeat(minutes, numbers) + rng.uniform(0, _MINUTE, int(numbers.sum())))
        size = len(t)
        segment = ((t - T0) / _SEGMENT).astype(np.int64)
        steps = int((self._end - T0) / _SEGMENT) + 1
        noise = rng.gamma(10, 0.1, steps)[segment]
        wobble = np.exp(rng.normal(0, 0.5, steps))[segment] if task.is_wobbling else np.ones(size)
        warn = task.warn * wobble**1.5
        median = task.median_ms * wobble * (1 + 0.1 * np.sin((t - T0) / _DAY * 2 * np.pi))
        customer = np.minimum(rng.zipf(1.4, size) - 1, _CUSTOMERS - 1)
        customer = np.where(rng.random(size) < 0.5, customer, rng.integers(0, _CUSTOMERS, size))
        weights = rng.dirichlet(np.full(len(task.hosts), 8.0))
        runs = _Runs(
            t=t,
            duration_ms=median * np.exp(rng.normal(0, task.sigma, size)),
            customer=customer,
            host=rng.choice(len(task.hosts), size, p=weights),
            failed=rng.random(size) < task.p * noise * wobble**1.5,
            error=np.array(task.errors)[rng.choice(len(task.errors), size, p=task.weights)],
            cause=np.full(size, -1),
            warnings=np.zeros(size, np.int64),
            says={},
            is_odd=np.zeros(size, np.bool_),
        )
        for effect in task.effects:
            within = (t >= effect.start) & (t < effect.end)
            match effect.kind:
                case "latency":
                    hit = within & (rng.random(size) < (effect.share or 1.0))
                    runs.duration_ms[hit] *= effect.factor
                    runs.cause[hit] = effect.incident
                case "level_mix":
                    warn = np.where(within, warn * effect.factor, warn)
                case "blip":
                    few = np.flatnonzero(within)[: int(effect.factor)]
                    runs.failed[few], runs.error[few] = True, effect.error
                case "odd_run":
                    runs.is_odd[np.flatnonzero(within)[:1]] = True
                case "new_customer":
                    runs.customer[within & (rng.random(size) < 0.05)] = _NEW_CUSTOMER
                case "deploy":
                    runs.duration_ms[within & (t < effect.start + 300)] *= 1.3  # nothing is in its caches yet
                case _ if effect.incident >= 0 and effect.share:
                    self._fail(runs, effect, within)
        runs.warnings = rng.poisson(np.minimum(warn, 1.0))
        return runs

    def _fail(self, runs: _Runs, effect: _Effect, within: BoolArray) -> None:
        share = np.full(len(runs.t), effect.share)
        if effect.kind == "slow_ramp":
            share = effect.share * np.clip((runs.t - effect.start) / (effect.end - effect.start), 0, 1)
        if effect.period:
            share = share * ((runs.t - effect.start) // effect.period % 2 == 0)
        hit = within & (self._rng.random(len(runs.t)) < share)
        if effect.customer is not None:
            hit &= runs.customer == effect.customer
        if effect.host is not None:
            hit &= runs.host == effect.host
        runs.failed |= hit
        runs.cause[hit] = effect.incident
        if effect.error >= 0:
            runs.error[hit] = effect.error
        if effect.says is not None:
            runs.says.update(dict.fromkeys(np.flatnonzero(hit).tolist(), effect.says))

    # Evidence --------------------------------------------------------------------------------------------------------

    def _find_evidence(self) -> None:
        tasks = {task.name: task for task in self._tasks}
        for number, incident in enumerate(self._incidents):
            if incident["kind"] in {"silence", "missed_schedule"}:
                n, at = self._missing(tasks[incident["root"]], number, incident)
            else:
                n, at = self._surplus([tasks[name] for name in incident["tasks"]], number, incident)
            incident |= {"evidence_n": n, "evidence_at": at, "scored": at is not None}

    def _missing(self, task: _Task, number: int, incident: dict[str, Any]) -> tuple[int, float | None]:
        """Return how many runs are missing, and when that was enough; what comes in clumps must be missing longer."""
        minutes = np.arange(incident["start"], incident["end"], _MINUTE)
        missing = np.cumsum(self._expected(task, minutes, but=number))
        enough = np.flatnonzero(missing >= (40 if task.sort == "bursty" else 10))
        # A batch may be a little late.
        patience = 10 * _MINUTE if incident["kind"] == "missed_schedule" else 0.0
        return int(missing[-1]), float(minutes[enough[0]] + patience) if enough.size else None

    def _surplus(self, tasks: list[_Task], number: int, incident: dict[str, Any]) -> tuple[int, float | None]:
        """Return how many records are odd, and when they were more than chance would bring."""
        kind, start, end = incident["kind"], incident["start"], incident["end"]
        least = {"new_error": 4, "level_mix": 10, "latency": 10, "slow_ramp": 15}.get(kind, 6)
        odd: list[FloatArray] = []
        usual = 0.0  # a second
        for task in tasks:
            runs = self._runs[task.name]
            within = (runs.t >= start) & (runs.t < end)
            is_odd = within & ((runs.warnings > 0) if kind == "level_mix" else (runs.cause == number))
            odd.append(runs.t[is_odd] + runs.duration_ms[is_odd] / 1000)
            p = {"level_mix": task.warn, "new_error": 0.0, "latency": 0.0}.get(kind, task.p)
            usual += p * within.sum() / (end - start)
        times = np.sort(np.concatenate(odd))
        n = np.arange(1, len(times) + 1)
        by_chance = usual * np.maximum(times - start, 0)
        surplus = n - by_chance if kind == "level_mix" else n
        enough = np.flatnonzero((n >= least) & (surplus >= 4 * np.sqrt(by_chance + 0.1)))
        return len(times), float(times[enough[0]]) if enough.size else None

    # Records ---------------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records by ``event.ingested``, rising."""
        rng = np.random.default_rng([self._seed, 1])
        waiting: list[tuple[float, int, dict[str, Any]]] = []
        order = 0
        for hour in np.arange(T0, self._end, _HOUR):
            for task in self._tasks:
                runs = self._runs[task.name]
                first, last = np.searchsorted(runs.t, (hour, hour + _HOUR)).tolist()
                if first < last:
                    for ingested, record in self._records_of(task, runs, range(first, last), rng):
                        waiting.append((ingested, order, record))
                        order += 1
            waiting.sort()
            # What a later run writes may have a clock that is behind, but never arrives before it began.
            ready = bisect.bisect_left(waiting, (hour + _HOUR,))
            for _, _, record in waiting[:ready]:
                yield record
            waiting = waiting[ready:]
        for _, _, record in waiting:
            yield record

    def _records_of(
        self, task: _Task, runs: _Runs, which: range, rng: np.random.Generator
    ) -> Iterable[tuple[float, dict[str, Any]]]:
        """Return (arrival, record) of some runs."""
        releases = sorted(e.start for e in task.effects if e.kind == "deploy" or e.variant == "release")
        window = [e for e in task.effects if e.start < runs.t[which[-1]] + 1 and e.end > runs.t[which[0]]]
        times: list[float] = []
        late: list[float] = []
        records: list[dict[str, Any]] = []
        ids = rng.bytes(16 * len(which))
        for place, index in enumerate(which):
            t, host = float(runs.t[index]), int(runs.host[index])
            seconds = float(runs.duration_ms[index]) / 1000
            run_id = str(uuid.UUID(bytes=ids[16 * place : 16 * place + 16], version=4))
            skew = delay = 0.0
            now = [effect for effect in window if effect.start <= t < effect.end]
            for effect in now:
                if effect.kind == "late" and host == 0:
                    delay = effect.end - t
                elif effect.kind == "clock_skew" and host == len(task.hosts) - 1:
                    skew = effect.factor
            common = {
                "service": task.service,
                "task": task.name,
                "task_id": run_id,
                "tenant": f"customer-{runs.customer[index]:03}",
                "host": task.hosts[host],
                "version": f"1.{1 + bisect.bisect_right(releases, t)}.0",
            }
            if task.sort == "daemon":
                del common["task"]
            for part, level, text in self._lines(task, runs, index, run_id, now, rng):
                record: dict[str, Any] = {**common, "level": level, "message": text}
                if part == 1.0:
                    record["duration_ms"] = round(1000 * seconds, 1)
                times.append(t + part * seconds)
                late.append(delay)
                record["skew"] = skew
                records.append(record)
        delays = rng.lognormal(-0.7, 0.6, len(records))
        is_slow = rng.random(len(records)) < 0.005
        delays[is_slow] += rng.uniform(5, 50, int(is_slow.sum()))
        at = np.array(times)
        ingested = at + delays + np.array(late)
        for start, end in self._held_up:
            ingested = np.where((ingested >= start) & (ingested < end), end + delays, ingested)
        at += [record.pop("skew") for record in records]
        for record, happened, came in zip(records, _texts(at), _texts(ingested), strict=True):
            record["@timestamp"], record["event.ingested"] = happened, came
        return zip(ingested.tolist(), records, strict=True)

    def _lines(
        self, task: _Task, runs: _Runs, index: int, run_id: str, now: list[_Effect], rng: np.random.Generator
    ) -> list[_Line]:
        says = self._messages
        n, h, b, dice = (int(value) for value in rng.integers(1, (99_999, 2**48, 255, 1 << 20)))
        fill = {"run": run_id, "n": n, "w": _WORDS[n % 10], "h": f"{h:012x}", "b": b, "service": task.service}

        lines = [_Line(0.0, "INFO", says.start[n % len(says.start)].format_map(fill))]
        if runs.is_odd[index]:
            lines += [_Line(0.3, "INFO", text.format_map(fill)) for text in says.odd_middle]
        elif dice & 1:
            lines.append(_Line(0.4, "INFO", says.middle[dice >> 1 & 1].format_map(fill)))
        if dice & 6 == 6:
            lines.append(_Line(0.6, "INFO", says.middle[2].format_map(fill)))
        for effect in now:
            if effect.kind == "debug_on":
                lines += [_Line(0.2 + 0.1 * i, "DEBUG", says.debug.format_map(fill)) for i in range(4)]
            elif effect.kind == "odd_warning" and dice % 5 == 0:
                lines.append(_Line(0.3, "WARNING", says.odd_warning.format_map(fill)))
            elif effect.kind == "deploy" and dice % 4 == 0:
                lines.append(_Line(0.05, "INFO", f"{task.service} listening, release is up"))
        for _ in range(int(runs.warnings[index])):
            lines.append(_Line(0.5, "WARNING", says.warning.format_map(fill | {"w": task.warn_word})))
        if runs.failed[index]:
            kind, text = runs.says.get(index) or says.errors[int(runs.error[index])]
            place = task.name.replace("-", "_")
            stack = says.stack.format_map(fill | {"w": place.rpartition(".")[2], "b": 10 + len(kind), "place": place})
            message = f"{says.failed.format_map(fill)}\n{stack}{kind}: {text.format_map(fill)}"
            lines.append(_Line(1.0, "ERROR", message))
        else:
            lines.append(_Line(1.0, "INFO", says.done[n % len(says.done)].format_map(fill)))
        return lines


def _texts(seconds: FloatArray) -> list[str]:
    """Return times as RFC 3339, to the millisecond."""
    milliseconds = np.round(seconds * 1000).astype(np.int64).astype("datetime64[ms]")
    return [f"{text}Z" for text in np.datetime_as_string(milliseconds).tolist()]
