"""Engine: counts in, judgements and changes of incidents out, tick by tick. The one way to run detection.

A tick ``c`` brings the counts of all records with ``event.ingested`` in ``[c - 5 s, c)``. Judged are
the windows that are due at ``c`` (ended at least the grace ago), and those due before that got late
records. So the outcome is a function of the set of (record, ``event.ingested``): live and replayed,
in any order within a tick, with or without a restart in between. To make that hold, everything that
is computed is either a pure function of the counts and marks known at the tick, or part of
``Judge.memory``, which the caller keeps together with its cursor.

What never happens: a window trains the baseline it is judged by; a window that is odd trains any.

Not here: the channels (signals.py), grouping (incidents.py), clocks, processes and stores (the caller's).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter

import numpy as np

from detectors.base import (
    BLOCK_STEPS,
    CHANNELS,
    DAY_US,
    HORIZON_US,
    NO_MODEL,
    STEPS_PER_WINDOW,
    TICK_US,
    Count,
    Finding,
    Grid,
    Judgement,
    Pin,
    TemplateCount,
)
from detectors.baseline import Baseline, Number, hold, learn, oldest, pins
from detectors.calibrate import Budgets
from detectors.forest import Forest
from detectors.incidents import HOLD_WINDOWS, REJOIN_WINDOWS, Change, Facts, Incidents
from detectors.signals import (
    CUT,
    LOOK_BACK,
    MAX_WINDOWS,
    SILENCE_STEPS,
    TREND_WINDOWS,
    Evaluation,
    Habit,
    Lull,
    Pace,
    Pauses,
    Stretch,
    Watched,
    evaluate,
    fleet_level,
    habits,
    habits_from,
    is_quiet,
    is_remembered,
    liveliness,
    lulls,
    may_be_silent,
    patience,
    pauses,
    rest_steps,
    silence,
)
from detectors.templates import Merging
from detectors.windows import BoolArray, FloatArray, Row, Series, Table, is_odd

_COMMON_UNITS = 3
_FLEET_STOPS = 0.3
"""A unit that falls silent while others do less than this share of what they usually do is not alone."""
_HOLD_SURPRISE = 2.5
_HOLD_STEPS = HOLD_WINDOWS * STEPS_PER_WINDOW
_PAUSE_STEPS = REJOIN_WINDOWS * STEPS_PER_WINDOW
"""What is odd again after such a pause goes on."""
_TEMPLATE = CHANNELS.index("template")
_SILENCE = CHANNELS.index("silence")
_CUSTOMER, _TREND = CHANNELS.index("customer"), CHANNELS.index("trend")
_TREND_STEPS = TREND_WINDOWS[-1] * STEPS_PER_WINDOW
_TREND_MARK = "trend"
_SILENCE_HOLD_US = DAY_US
_LIVELY = 0.5
"""What comes regularly is not called overdue while the fleet does less than this share of what it usually does."""
_SERIES_STEPS = 12 * STEPS_PER_WINDOW
_LOOK_BACK = 18 * STEPS_PER_WINDOW
_FUTURE_US = 25 * 3_600_000_000
_FEW_ERRORS = 3
_AHEAD_TICKS = 20
"""In so many ticks the baselines of a coming block are learned; there are 24 before a block of the usual window is due."""
_QUIET_STEPS = 2 * STEPS_PER_WINDOW
_QUIET_RECORDS = 2
_SCHEDULE_DAYS = 4
"""A task that had no records for so long is not waited for: a nightly one may rest over a weekend."""
_HOUR_US = 3_600_000_000
_BATCH_UNITS = 512
_LEARNED_UNITS = 64
_FLEET_UNITS = 256
_FIT_UNITS = 64
_FIT_BLOCKS = 2048
_FIT_DAYS = 7
_FIT_SKIP_DAYS = 0.25
"""A unit's first windows were judged by a young baseline: they look odder than they are."""
_FIT_LEAST_DAYS = 0.5
_REFIT_HOURS = 24
_PIN_DAYS = 3
"""A unit's rate of errors is pinned once it is known for so long."""
_REMEMBER_DAYS = 14
"""So long a template is known after it came last."""
_REMEMBERED = 200


@dataclass(slots=True)
class _Mark:
    """A window that is odd. ``start`` is the first step of what made it so.

    ``since`` is where the pause began, if it is odd again after a short one: an incident that flaps is one.
    """

    start: int
    kind: str
    is_raised: bool
    since: int | None = None  # an earlier version kept none

    def untaught(self, step: int) -> tuple[int, int]:
        """Return the steps of which nothing is learned, the window being named by ``step``: the incident's so far."""
        begin = self.start if self.since is None else min(self.start, self.since)
        return begin, step + 1 + (0 if self.kind == "silence" else _HOLD_STEPS)


@dataclass(slots=True)
class _Unit:
    """What is known of a unit; ``bases`` are baselines that still hold, by the step they end before: two by the block, one by the window."""

    series: Series
    live_since: int | None = None
    marks: dict[int, _Mark] = field(default_factory=dict)
    bases: dict[int, Baseline] = field(default_factory=dict)
    habit: Habit | None = None
    patience: tuple[int, int] | None = None  # as of the step, in steps; 0 for a unit without regular intervals
    pauses: tuple[int, Pauses | None] | None = None  # as of the step
    newest_mark: int = -1
    pin: Pin | None = None
    calm: set[int] = field(default_factory=set)  # windows ahead that are known to be nothing; see ``Judge.expect``
    lively: set[int] = field(default_factory=set)  # windows ahead that are known to be no silence

    def baseline(self, until: int, grid: Grid) -> Baseline:
        """Return the baseline before the step ``until``, learned anew only if something changed."""
        if until not in self.bases:
            _know([(self, until)], grid)
        return self.bases[until]

    def keep(self, base: Baseline) -> None:
        """Keep a baseline, in place of the oldest of its sort."""
        if self.pin is not None:
            hold(self.pin, base)
        is_block = base.until % BLOCK_STEPS == 0
        alike = [other for other in self.bases if (other % BLOCK_STEPS == 0) == is_block]
        if len(alike) > is_block:
            del self.bases[min(alike)]
        self.bases[base.until] = base

    def forget(self, before: int, grid: Grid) -> bool:
        """Forget what came before a step, but for when templates came last; return whether that changed.

        What was learned and says nothing of what is forgotten holds: the baselines of the hour at hand, mostly.
        """
        self.calm.clear()
        self.lively.clear()
        self.patience = self.pauses = None
        is_changed, told = _forget_templates(self.series.templates, before, grid)
        for table in self.series.groups.values():
            table.trim(before)
            table.forgotten.clear()
        self.series.trim(before)
        self.bases = {until: base for until, base in self.bases.items() if oldest(until, grid) >= before}
        for base in self.bases.values():
            # How a customer's errors come also depends on when it came first, which is known no longer.
            kept = {at: past for at, past in base.pasts.items() if told and at[0] == id(self.series.templates)}
            base.pasts.clear()
            base.pasts.update(kept)
        habit = self.habit
        if habit and (habit.low not in self.bases or self.series.first > habits_from(habit.low, grid)):
            self.habit = None
        return is_changed

    def begin_anew(self, step: int) -> None:
        """Let nothing before a step teach anything any more."""
        if step > self.series.first:
            self.series.mark(self.series.first, step, 1)
        self.change(0)

    def change(self, step: int) -> None:
        """Say that something changed from ``step`` on."""
        self.calm.clear()
        self.lively.clear()
        for until in tuple(self.bases):
            if step < until:
                del self.bases[until]
        if self.habit is not None and step < self.habit.low:
            self.habit = None
        if self.patience is not None and step < self.patience[0]:
            self.patience = None
        if self.pauses is not None and step < self.pauses[0]:
            self.pauses = None


def _forget_templates(table: Table, before: int, grid: Grid) -> tuple[bool, bool]:
    """Forget templates before a step but for when they came last; return whether that changed, and as ``Table.trim``.

    What comes once a week or less is not new each time.
    """
    known = dict(table.forgotten)
    told = table.trim(before)
    since = before - grid.day_steps(_REMEMBER_DAYS) + HORIZON_US // grid.step_us
    # Of a unit that keeps making new ones, the newest do: it is not surprised by one more.
    newest = sorted(table.forgotten.items(), key=lambda item: (-item[1], item[0]))[:_REMEMBERED]
    table.forgotten = {id: step for id, step in newest if step >= since}
    return table.forgotten != known, told


def _know(pasts: Iterable[tuple[_Unit, int]], grid: Grid) -> None:
    """Learn the baselines of units before steps that they lack, together: that takes a tenth of the time."""
    missing = [(unit, until) for unit, until in pasts if until not in unit.bases]
    for first in range(0, len(missing), _LEARNED_UNITS):
        some = missing[first : first + _LEARNED_UNITS]
        for (unit, _), base in zip(some, learn([(unit.series, until) for unit, until in some], grid), strict=True):
            unit.keep(base)


@dataclass(slots=True)
class _Task:
    """Windows of a unit that are to be judged in this tick; ``done`` of them are."""

    name: str
    unit: _Unit
    steps: list[int]
    done: int = 0


@dataclass(slots=True)
class _Candidate:
    """A window that no channel raised, but the forest may."""

    unit: str
    step: int
    features: FloatArray
    evaluation: Evaluation
    place: tuple[int, int]  # unit and window in the evaluation


class Judge:
    """Judges the windows of all units of one tenant.

    ``advance`` is called for rising ticks. A tick without counts may be left out only if no window
    is due in it (``is_idle``).
    """

    def __init__(self, grid: Grid, memory: Mapping[str, bytes] | None = None, budgets: Budgets | None = None) -> None:
        self.grid = grid
        self.budgets = budgets or Budgets()
        self._units: dict[str, _Unit] = {}
        self._firsts: dict[str, list[int]] | None = None  # of each template, when units had it first; as of this tick
        self._day = 0
        self._forest: Forest | None = None
        self._saved_forest: Forest | None = None
        self._tried_hour: int | None = None  # of the last fit of the forest, successful or not
        self._previous_us: int | None = None  # the last tick with counts or windows due
        self._blind: list[tuple[int, int]] = []
        self._is_changed = False
        self._expected: set[int] = set()  # ticks of which counts were taken in ahead
        self._settled: dict[str, _Unit] = {}  # units whose windows were looked at ahead, through this step
        self._ahead = -1
        self._coming: tuple[int, list[_Unit]] = -1, []  # a block, and the units of which its baseline is not learned
        self.judged = 0
        self._kept: dict[str, tuple[int | None, dict[int, _Mark], dict[str, int]]] = {}
        memory = memory or {}
        # Unit → whether it is being learned, and since which moment that is so.
        self._learning: dict[str, tuple[bool, int]] = {}
        if "learning" in memory:
            self._learning = {name: (state, since) for name, (state, since) in json.loads(memory["learning"]).items()}
        self._has_learned = self._has_pinned = False
        self._pins: dict[str, Pin] = {}
        if "pins" in memory:
            held = json.loads(memory["pins"])
            if held["step_us"] == grid.step_us:  # else they are pinned anew
                self._pins = {name: Pin(*one) for name, one in held["units"].items()}
        self._templates = Merging(memory.get("templates"))
        if "marks" in memory:
            kept = json.loads(memory["marks"])
            self._tried_hour = kept["tried_hour"]
            self._blind = [(start, end) for start, end in kept["blind"]]
            for unit, (live_since, marks, *old) in kept["units"].items():
                forgotten = old[0] if old else {}  # an earlier version kept none
                self._kept[unit] = live_since, {int(step): _Mark(*mark) for step, mark in marks.items()}, forgotten
        if "previous" in memory:
            self._previous_us = int(memory["previous"])
        if "forest" in memory:
            self._forest = self._saved_forest = Forest.decode(memory["forest"])
            if self._forest is None:  # of other channels, by an earlier version
                self._tried_hour = None

    def horizon_us(self, cutoff_us: int) -> int:
        """Return the event time from which counts matter at ``cutoff_us``; a day's start."""
        return cutoff_us // DAY_US * DAY_US - HORIZON_US

    def restore(self, counts: Iterable[Count], cutoff_us: int, texts: Mapping[str, str] | None = None) -> None:
        """Take counts of records ingested before ``cutoff_us``: all of them, in any parts, before ``advance``.

        ``texts`` has the texts of fingerprints that memory lacks.
        """
        if texts:
            self._templates.add(texts, cutoff_us)
        self._day = cutoff_us // DAY_US
        self._add(counts, cutoff_us, is_restored=True)

    def _remember(self) -> None:
        """Put what was kept back onto the units that were restored; done before anything is asked of them."""
        for name, (live_since, marks, forgotten) in self._kept.items():
            unit = self._units.get(name)
            if unit is not None:
                unit.live_since = live_since
                unit.series.templates.forgotten = forgotten
                for step, mark in marks.items():
                    self._set_mark(unit, step, mark)
        self._kept = {}
        for name, held in self._pins.items():
            if (unit := self._units.get(name)) is not None:
                unit.pin = held
                unit.begin_anew(held.accepted)
        self._pins = {}

    def blind(self, start_us: int, end_us: int) -> None:
        """Say that nothing could arrive meanwhile, so that it is not taken for silence."""
        self._blind.append((start_us // self.grid.step_us, end_us // self.grid.step_us + 1))
        for unit in self._units.values():
            unit.habit = unit.patience = unit.pauses = None
        self._is_changed = True

    def accept(self, name: str, cutoff_us: int) -> Pin | None:
        """Take all that a unit did in the last day for normal, because a person says so; None if it is not known.

        It is learned anew from that day alone, whatever was odd in it, and its pin moves there.
        """
        self._remember()
        unit = self._units.get(name)
        if unit is None:
            return None
        until = self.grid.due_through(cutoff_us) + 1
        until -= until % STEPS_PER_WINDOW
        accepted = max(until - self.grid.day_steps(), unit.series.first)
        for step in [step for step in unit.marks if step >= accepted]:
            self._set_mark(unit, step, None)
        unit.begin_anew(accepted)
        [unit.pin] = pins([(unit.series, until)], accepted)
        self._is_changed = self._has_pinned = True
        return unit.pin

    def is_idle(self, cutoff_us: int) -> bool:
        """Return whether no window is due at this tick."""
        return self.grid.due_through(cutoff_us) == self.grid.due_through(cutoff_us - TICK_US)

    def memory(self) -> dict[str, bytes]:
        """Return what must be kept beside the counts, by name; only parts that changed since the last call."""
        out = {} if self._previous_us is None else {"previous": str(self._previous_us).encode()}
        if self._is_changed:
            units = {
                name: (
                    unit.live_since,
                    {step: (m.start, m.kind, m.is_raised, m.since) for step, m in sorted(unit.marks.items())},
                    dict(sorted(unit.series.templates.forgotten.items())),
                )
                for name, unit in sorted(self._units.items())
                if unit.marks or unit.live_since is not None or unit.series.templates.forgotten
            }
            kept = {"tried_hour": self._tried_hour, "blind": self._blind, "units": units}
            out["marks"] = json.dumps(kept, separators=(",", ":")).encode()
            self._is_changed = False
        if self._has_learned:
            out["learning"] = json.dumps(dict(sorted(self._learning.items())), separators=(",", ":")).encode()
            self._has_learned = False
        if self._has_pinned:
            pins = {name: unit.pin for name, unit in sorted(self._units.items()) if unit.pin is not None}
            out["pins"] = json.dumps({"step_us": self.grid.step_us, "units": pins}, separators=(",", ":")).encode()
            self._has_pinned = False
        if self._forest is not self._saved_forest and self._forest is not None:
            out["forest"] = self._forest.encode()
            self._saved_forest = self._forest
        if (templates := self._templates.encode()) is not None:
            out["templates"] = templates
        return out

    @property
    def learning(self) -> list[str]:
        """Return the units that are still being learned, sorted."""
        return sorted(name for name, (is_learning, _) in self._learning.items() if is_learning)

    @property
    def model_version(self) -> str:
        """Return the version of the forest in use, or why there is none."""
        return self._forest.version if self._forest is not None else NO_MODEL

    def prepare(self) -> None:
        """Do what the next ticks would otherwise wait for: a fit of the forest, and baselines of the coming block.

        It changes nothing of the outcome, whether done ahead or not.
        """
        if self._previous_us is None:
            return
        self._fit()
        # A block's records have come, by and large, before its first window is due: what comes later is learned anew.
        block = self._previous_us // self.grid.step_us // BLOCK_STEPS * BLOCK_STEPS
        if block <= self.grid.due_through(self._previous_us):
            return
        if block != self._coming[0]:
            self._coming = block, [unit for unit in self._units.values() if unit.series.last >= block - _LOOK_BACK]
        count = -(-len(self._units) // _AHEAD_TICKS)
        some = self._coming[1][-count:]
        del self._coming[1][-count:]
        _know(((unit, block) for unit in some), self.grid)
        for unit in some:
            if unit.series.errors_in(block - LOOK_BACK, block) >= _FEW_ERRORS:
                unit.series.templates.remember(block // BLOCK_STEPS - 1, unit.bases[block], unit.series.odd)

    def _fit(self) -> None:
        """Fit the forest, if that is due.

        The first is due as soon as a unit has half a day to learn from, then one a day. It sees what
        the last tick with counts or windows saw, so it is the same whether done ahead or not.
        """
        if self._previous_us is None:
            return
        hour, last = self._previous_us // _HOUR_US, self._tried_hour
        if last is not None and hour < last + (1 if self._forest is None else _REFIT_HOURS):
            return
        high = self.grid.due_through(self._previous_us) + 1
        high -= high % BLOCK_STEPS
        least = self.grid.day_steps(_FIT_SKIP_DAYS + _FIT_LEAST_DAYS)
        if not any(min(high, unit.series.last) - unit.series.first >= least for unit in self._units.values()):
            return
        forest = Forest.fit(self._training(high), seed=hour)
        if forest is not None:
            self._forest = forest
        self._tried_hour = hour
        self._is_changed = True

    def advance(
        self, delta: Iterable[Count], cutoff_us: int, texts: Mapping[str, str] | None = None
    ) -> list[Judgement]:
        """Take a tick's counts and return every odd window among those judged, in order of time, then unit.

        ``texts`` has the text of each fingerprint counted in this tick for the first time; one without
        is a template of its own. ``judged`` counts the windows.
        """
        self._remember()
        self._fit()
        self._trim(cutoff_us)
        is_relearned = self._templates.add(texts or {}, cutoff_us)
        touched = self._add(delta, cutoff_us)
        due, before = self.grid.due_through(cutoff_us), self.grid.due_through(cutoff_us - TICK_US)
        if not touched and due == before and not is_relearned:
            if cutoff_us in self._expected:
                self._previous_us = cutoff_us
            return []
        again = self._settled if is_relearned else touched.keys() & self._settled
        if again and due < self._ahead:
            self._look_ahead([(name, self._settled[name]) for name in sorted(again)], due + 1, self._ahead)
        out: list[Judgement] = []
        candidates: list[_Candidate] = []
        tasks: list[_Task] = []
        for name in sorted(self._units) if due > before else sorted(touched):
            unit = self._units[name]
            steps = _late_windows(touched[name], before) if name in touched and min(touched[name]) <= before else []
            if due > before and unit.series.last >= before - _LOOK_BACK:
                steps.extend(range(max(before + 1, unit.series.first), due + 1))
            self.judged += len(steps)
            if unit.calm:
                steps = [step for step in steps if step not in unit.calm]
            if steps:
                tasks.append(_Task(name, unit, steps))
        self._judge(tasks, due - self.grid.day_steps(), out, candidates)
        self._judge_jointly(candidates, out)
        for step in range(before + 1, due + 1):
            self._judge_silence(step, out)
        if touched or due > before or cutoff_us in self._expected:
            self._previous_us = cutoff_us
        out.sort(key=lambda j: (j.window_end_us, j.unit, j.kind))
        return out

    # Ahead -----------------------------------------------------------------------------------------------------------

    def expect(self, ticks: Sequence[tuple[int, Sequence[Count]]]) -> list[list[Count]]:
        """Take in ahead what coming ticks bring on time, for a replay; return what is left of each, for ``advance``.

        No window looks beyond its end, so what comes on time may come early: the outcome is the same.
        But an hour's windows can be looked at together, and those in which nothing stirs are passed
        over when they are due. That holds until something changes that unit's past: then they are looked
        at once more after a late record, and not after an odd window.

        Args:
            ticks: Rising, all those with counts after a full hour and through the next.
        """
        left = [list(counts) for _, counts in ticks]
        grid = self.grid
        is_aligned = grid.step_us % TICK_US == 0 == grid.grace_us % grid.step_us == _HOUR_US % grid.step_us
        if not ticks or self._previous_us is None or not is_aligned:
            return left
        self._remember()
        self._fit()
        before = grid.due_through(self._previous_us)
        block = (before + 1) // BLOCK_STEPS * BLOCK_STEPS
        calm = [(name, unit) for name, unit in self._units.items() if self._is_settled(unit, before)]
        _know(((unit, block) for _, unit in calm), grid)
        settled = {name: unit for name, unit in calm if not unit.bases[block].is_learning}
        known = self._templates.of
        for _, counts in ticks:
            for count in counts:
                unit = settled.get(count.unit)
                if unit is not None and (
                    unit.series.last < before - _LOOK_BACK  # it begins anew, and when that is matters
                    or (count.dimension == "template" and count.key not in known)
                ):
                    del settled[count.unit]
        self._expected = {cutoff for cutoff, counts in ticks if counts}
        for at, (cutoff_us, counts) in enumerate(ticks):
            due = grid.due_through(cutoff_us - TICK_US)
            newest = (cutoff_us + _FUTURE_US) // grid.step_us
            late: list[Count] = []
            for count in counts:
                step = count.step_us // grid.step_us
                if due < step <= newest and count.unit in settled:
                    settled[count.unit].series.add(count, step)
                else:
                    late.append(count)
            left[at] = late
        self._settled, self._ahead = settled, grid.due_through(ticks[-1][0])
        self._look_ahead(list(settled.items()), before + 1, self._ahead)
        return left

    def _is_settled(self, unit: _Unit, before: int) -> bool:
        """Return whether a unit goes on as it is, if it is known: live, and not odd for a while."""
        return unit.live_since is not None and unit.newest_mark < before - _HOLD_STEPS

    def _look_ahead(self, units: Sequence[tuple[str, _Unit]], low: int, high: int) -> None:
        """Find the windows from ``low`` through ``high`` in which nothing stirs."""
        for _, unit in units:
            unit.calm, unit.lively = set(), set()
        while low <= high:
            start = low - low % BLOCK_STEPS
            width = min(start + BLOCK_STEPS, high + 1) - low
            _know(((unit, start) for _, unit in units), self.grid)
            for first in range(0, len(units), _BATCH_UNITS):
                batch = units[first : first + _BATCH_UNITS]
                found = evaluate(
                    [self._stretch(unit, unit.baseline(start, self.grid), low, low + width) for _, unit in batch],
                    width,
                    self.grid,
                )
                strengths = self._strengths(found, [name for name, _ in batch])
                stirs = (strengths.max(axis=0) >= 1) | (found.short >= _HOLD_SURPRISE)
                if self._forest is not None:
                    stirs |= Forest.may_raise(strengths.reshape(len(CHANNELS), -1)).reshape(stirs.shape)
                for (_, unit), calm in zip(batch, ~stirs, strict=True):
                    unit.calm.update((low + np.flatnonzero(calm)).tolist())
                watched = {
                    name: Watched(unit.series, unit.baseline(start, self.grid), unit.live_since)
                    for name, unit in batch
                    if unit.live_since is not None
                }
                names = list(watched)
                self._learn_habits(names, watched, low)
                habits = [habit for name in names if (habit := self._units[name].habit) is not None]
                may = may_be_silent(list(watched.values()), habits, low, width)
                for name, lively in zip(names, ~may, strict=True):
                    lively &= ~self._may_be_overdue(self._units[name], low, width)
                    self._units[name].lively.update((low + np.flatnonzero(lively)).tolist())
            low += width

    # Counts ----------------------------------------------------------------------------------------------------------

    def _add(self, delta: Iterable[Count], cutoff_us: int, *, is_restored: bool = False) -> dict[str, set[int]]:
        grid = self.grid
        oldest = self.horizon_us(cutoff_us) // grid.step_us
        newest = (cutoff_us + _FUTURE_US) // grid.step_us
        on_time = (cutoff_us - TICK_US - grid.grace_us) // grid.step_us - 1
        step_us = grid.step_us
        touched: dict[str, set[int]] = {}
        for name, counts in itertools.groupby(delta, itemgetter(0)):
            unit, steps = self._units.get(name), set()
            for count in counts:
                step = count[1] // step_us
                if not oldest <= step <= newest:
                    continue
                if unit is None:
                    unit = self._units[name] = _Unit(Series(step, self._templates.of))
                unit.series.add(count, step)
                steps.add(step)
            if steps:
                touched[name] = steps | touched[name] if name in touched else steps
        self._firsts = None
        for name, steps in touched.items():
            self._units[name].change(min(steps))
        if is_restored:
            return touched
        for name, steps in touched.items():
            unit = self._units[name]
            punctual = [step for step in steps if step >= on_time]
            if punctual and unit.live_since is None:
                unit.live_since = min(punctual)
                self._is_changed = True
        return touched

    def _trim(self, cutoff_us: int) -> None:
        day = cutoff_us // DAY_US
        if day == self._day:
            return
        self._day = day
        before = self.horizon_us(cutoff_us) // self.grid.step_us
        self._blind = [(start, end) for start, end in self._blind if end > before]
        today = day * DAY_US // self.grid.step_us
        today -= today % BLOCK_STEPS
        known = today - self.grid.day_steps(_PIN_DAYS)
        fresh = [unit for unit in self._units.values() if unit.pin is None and unit.series.first <= known]
        for unit, held in zip(fresh, pins([(unit.series, today) for unit in fresh]), strict=True):
            unit.pin, self._has_pinned = held, True
            for base in unit.bases.values():
                hold(held, base)
        for name, unit in list(self._units.items()):
            for step in [step for step in unit.marks if step < before]:
                self._set_mark(unit, step, None)
            self._is_changed |= unit.forget(before, self.grid)
            if unit.series.last < before:
                del self._units[name]
                self._has_learned |= self._learning.pop(name, None) is not None
                self._has_pinned |= unit.pin is not None
                self._is_changed = True
        tables = [unit.series.templates for unit in self._units.values()]
        self._templates.keep({id for table in tables for ids in (table.first, table.forgotten) for id in ids})

    def _set_mark(self, unit: _Unit, step: int, mark: _Mark | None) -> None:
        old = unit.marks.pop(step, None)
        if old == mark:
            if mark is not None:
                unit.marks[step] = mark
            return
        self._is_changed = True
        if old is not None:
            begin, end = old.untaught(step)
            unit.series.mark(begin, end, -1)
            unit.change(begin)
        if mark is not None:
            unit.marks[step] = mark
            unit.newest_mark = max(unit.newest_mark, step)
            begin, end = mark.untaught(step)
            unit.series.mark(begin, end, 1)
            unit.change(begin)

    # Judging ---------------------------------------------------------------------------------------------------------

    def _judge(self, tasks: list[_Task], yesterday: int, out: list[Judgement], candidates: list[_Candidate]) -> None:
        """Judge windows stretch by stretch, so that each sees the marks before it; all units' next ones together."""
        while tasks:
            pasts = [(task.unit, self._block(task, yesterday)[0]) for task in tasks]
            _know(pasts, self.grid)
            young = [task for task, (unit, until) in zip(tasks, pasts, strict=True) if unit.bases[until].is_learning]
            _know(((task.unit, _edge(task.unit, task.steps[task.done])) for task in young), self.grid)
            by_width: dict[int, list[tuple[_Task, Stretch]]] = {}
            for task in tasks:
                stretch, width = self._next_stretch(task, yesterday)
                by_width.setdefault(width, []).append((task, stretch))
            for width, batch in sorted(by_width.items()):
                for first in range(0, len(batch), _BATCH_UNITS):
                    self._judge_batch(batch[first : first + _BATCH_UNITS], width, out, candidates)
            tasks = [task for task in tasks if task.done < len(task.steps)]

    def _next_stretch(self, task: _Task, yesterday: int) -> tuple[Stretch, int]:
        """Return the task's next windows in a row that share a baseline, and how many they are."""
        unit, steps, index = task.unit, task.steps, task.done
        low = steps[index]
        until, limit = self._block(task, yesterday)
        base = unit.baseline(until, self.grid)
        if self._learning.get(task.name, (None,))[0] is not base.is_learning:
            self._learning[task.name] = base.is_learning, self.grid.end_us(low)
            self._has_learned = True
        if base.is_learning:
            # It looks back to the last window's edge, for it has little else.
            base = unit.baseline(_edge(unit, low), self.grid)
            limit = low - low % STEPS_PER_WINDOW + STEPS_PER_WINDOW
        end = index
        while end < len(steps) and steps[end] < limit and steps[end] - low == end - index:
            end += 1
        task.done = end
        return self._stretch(unit, base, low, steps[end - 1] + 1), end - index

    def _block(self, task: _Task, yesterday: int) -> tuple[int, int]:
        """Return the edges of the block that the task's next window is in."""
        low = task.steps[task.done]
        # What is a day old refreshes its baseline by the hour, however short windows are.
        hour = max(BLOCK_STEPS, self.grid.day_steps() // 24 // BLOCK_STEPS * BLOCK_STEPS)
        width = hour if low < yesterday else BLOCK_STEPS
        return low - low % width, low - low % width + width

    @staticmethod
    def _stretch(unit: _Unit, base: Baseline, low: int, high: int) -> Stretch:
        """Return the windows ``[low, high)`` of a unit."""
        blank = []
        if unit.newest_mark >= low - _TREND_STEPS:
            blank = [
                (mark.start, at + 1)
                for at, mark in unit.marks.items()
                if low - _TREND_STEPS <= at < high and mark.kind != _TREND_MARK
            ]
        return Stretch(unit.series, base, low, blank)

    def _judge_batch(
        self,
        batch: Sequence[tuple[_Task, Stretch]],
        width: int,
        out: list[Judgement],
        candidates: list[_Candidate],
    ) -> None:
        found = evaluate([stretch for _, stretch in batch], width, self.grid)
        strengths = self._strengths(found, [task.name for task, _ in batch])
        is_learning = np.array([stretch.base.is_learning for _, stretch in batch])[:, None]
        all_raised = np.where(is_learning, found.plain, strengths.max(axis=0) >= 1)
        all_interesting = all_raised | (found.short >= _HOLD_SURPRISE)
        if self._forest is not None:
            may = (
                ~all_raised
                & ~is_learning
                & Forest.may_raise(strengths.reshape(len(CHANNELS), -1)).reshape(all_raised.shape)
            )
            for place, at in np.argwhere(may).tolist():
                task, stretch = batch[place]
                features = found.surprise[:, place, at] / CUT
                candidates.append(_Candidate(task.name, stretch.low + at, features, found, (place, at)))
        raised_rows: list[list[bool]] = all_raised.tolist()
        interesting_rows: list[list[bool]] = all_interesting.tolist()
        for place, (task, (_, base, low, _)) in enumerate(batch):
            unit = task.unit
            raises, stirs = raised_rows[place], interesting_rows[place]
            if unit.marks:
                for step in [step for step in range(low, low + width) if step in unit.marks]:
                    mark = unit.marks[step]
                    if stirs[step - low]:
                        continue
                    if mark.kind != "silence" or unit.series.records_in(mark.start, step + 1):
                        self._set_mark(unit, step, None)
            if True not in stirs:
                continue
            for at in [at for at in range(width) if stirs[at]]:
                step = low + at
                if not raises[at] and not any(step - back in unit.marks for back in range(1, _HOLD_STEPS + 1)):
                    self._set_mark(unit, step, None)
                    continue
                self._report(task.name, unit, step, found, (place, at), raises[at], base.is_learning, out)

    def _strengths(self, found: Evaluation, names: Sequence[str]) -> FloatArray:
        """Return the surprises over each unit's cuts, shape (channel, unit, window)."""
        strengths: FloatArray = found.surprise / np.array([self.budgets.cuts(name) for name in names]).T[:, :, None]
        return strengths

    def _report(
        self,
        name: str,
        unit: _Unit,
        step: int,
        found: Evaluation,
        at: tuple[int, int],
        is_raised: bool,
        is_learning: bool,
        out: list[Judgement],
        joint: float = 0.0,
        shares: FloatArray | None = None,
    ) -> None:
        cuts = self.budgets.cuts(name)
        strengths = found.surprise[:, *at] / cuts
        order = [int(i) for i in np.argsort(-strengths, kind="stable") if strengths[i] > 0] or [0]
        top = order[0]
        if is_learning and is_raised:
            top = 0
            strengths[0] = max(strengths[0], 1.0)
        # A trend is hours long, but odd enough to be left out of what is normal is its last hour.
        lasts = int(found.windows[top, *at])
        windows = lasts if top == _TEMPLATE else min(lasts, MAX_WINDOWS)
        start, end = self._extent(unit, found, at, top, step, step + 1 - windows * STEPS_PER_WINDOW)
        kind = _kind(found, at, top, cuts) if not joint else "joint"
        before = [at for at in unit.marks if at < start] if unit.newest_mark >= start - _PAUSE_STEPS else []
        since = newest if (newest := max(before, default=-1)) >= start - _PAUSE_STEPS else None
        mark = _TREND_MARK if lasts > MAX_WINDOWS and not joint else kind
        self._set_mark(unit, step, _Mark(start, mark, is_raised, since))
        findings = [self._finding(found, i, at, float(cuts[i])) for i in order[:4] if i == top or strengths[i] >= 0.4]
        findings.sort(key=lambda f: -f.strength)
        if shares is not None:
            told = [f"{CHANNELS[i]} {shares[i]:.0%}" for i in np.argsort(-shares, kind="stable") if shares[i] >= 0.1]
            scale = windows * self.grid.window_us
            findings.insert(0, Finding("joint", "score", joint, 1.0, joint, scale, ", ".join(told)))
        strength = joint or float(strengths.max())
        recent = np.inf if is_learning else float(found.short[at])
        base = found.stretches[at[0]].base
        out.append(
            self._judgement(name, unit, (start, end, step), strength, kind, is_raised, recent, findings, base, top)
        )

    def _extent(
        self, unit: _Unit, found: Evaluation, at: tuple[int, int], channel: int, step: int, start: int
    ) -> tuple[int, int]:
        """Return the first step of the odd records within ``[start, step]``, and the one after their last."""
        id = int(found.template[at])
        if channel == _TEMPLATE and id >= 0:
            series = unit.series
            ids = series.alike()[series.kin.get(found.ids[id], found.ids[id])]
            counts = series.template_errors(ids, start, step + 1)
        elif channel == _CUSTOMER:
            feature, _, key = found.ids[int(found.group[at])].partition(":")
            counts = unit.series.groups[feature].part(key, start, step + 1)
        else:
            row = {2: Row.WARNINGS, 3: Row.DURATIONS}.get(channel, Row.ERRORS)
            counts = unit.series.part(start, step + 1)[row]
        where = np.flatnonzero(counts)
        return (start + int(where[0]), start + int(where[-1]) + 1) if where.size else (start, step + 1)

    def _finding(self, found: Evaluation, channel: int, at: tuple[int, int], cut: float) -> Finding:
        windows = int(found.windows[channel, *at])
        observed, expected = float(found.k[channel, *at]), float(found.expected[channel, *at])
        feature = CHANNELS[channel]
        unit = "records"
        name = ""
        if feature == "latency" and found.pace[at] == Pace.TAIL:
            feature, name, expected = "latency_tail", f"{expected:.1f}", 0.0
        elif feature == "latency" and found.pace[at] == Pace.UNFINISHED:
            feature = "unfinished"
        elif feature == "latency":
            # Buckets are 24 a decade of nanoseconds.
            observed, expected = (10 ** (value / 24) / 1e6 for value in (observed, expected))
            unit = "ms"
        pinned = int(found.stretches[at[0]].base.numbers[Number.TREND_PINNED]) if channel == _TREND else 0
        if pinned:
            name = f"{datetime.fromtimestamp(pinned * self.grid.step_us / 1e6, UTC):%Y-%m-%d}"
        if feature == "template" and found.is_new[at]:
            feature = "new_template"
        strength = float(found.surprise[channel, *at] / cut)
        if channel == _CUSTOMER:
            feature, _, name = found.ids[int(found.group[at])].partition(":")
        return Finding(feature, unit, observed, expected, strength, windows * self.grid.window_us, name)

    def _is_common(self, template: str, step: int) -> bool:
        """Return whether several units had a template a day before a step, none while it was odd: a framework's words.

        Such words say nothing about a cause that two units may share.
        """
        if self._firsts is None:
            self._firsts = {}
            for unit in self._units.values():
                series = unit.series
                clean: dict[str, int] = {}
                for id, first in series.templates.first.items():
                    if not is_odd(series.odd, first):
                        group = series.kin.get(id, id)
                        clean[group] = min(first, clean.get(group, first))
                for group, first in clean.items():
                    self._firsts.setdefault(group, []).append(first)
        day = self.grid.day_steps()
        return sum(first < step - day for first in self._firsts.get(template, ())) >= _COMMON_UNITS

    def _judgement(
        self,
        name: str,
        unit: _Unit,
        where: tuple[int, int, int],
        strength: float,
        kind: str,
        is_raised: bool,
        recent: float,
        findings: list[Finding],
        base: Baseline | None,
        channel: int,
    ) -> Judgement:
        series, grid = unit.series, self.grid
        start, end, step = where
        counts = series.part(start, step + 1)
        templates: list[TemplateCount] = []
        alike = series.alike()
        for id in series.templates.keys(start, step + 1) if kind != "silence" else ():
            if kind == "level_mix":
                total = int(series.templates.part(id, start, step + 1).sum())
            else:
                total = int(series.template_errors([id], start, step + 1).sum())
            ids = alike[series.kin.get(id, id)]
            if total and (kind == "level_mix" or self._is_error(series, ids, start)):
                first = min(series.templates.first[one] for one in ids)
                is_new = first >= start and first > series.first + _LOOK_BACK and not is_remembered(series, ids)
                is_common = is_raised and not is_new and self._is_common(series.kin.get(id, id), start)
                templates.append(TemplateCount(id, total, is_new, first * grid.step_us, is_common))
        templates.sort(key=lambda t: (not t.is_new, -t.n, t.id))
        versions: dict[str, int] = {}
        for at in range(start, step + 1):
            for version, n in series.failing_versions.get(at, {}).items():
                versions[version] = versions.get(version, 0) + n
        return Judgement(
            unit=name,
            start_us=start * grid.step_us,
            end_us=end * grid.step_us,
            window_end_us=grid.end_us(step),
            strength=strength,
            kind=kind,
            is_raised=is_raised,
            recent=recent,
            findings=tuple(findings),
            records=int(counts[Row.RECORDS].sum()),
            errors=int(counts[Row.ERRORS].sum()),
            templates=tuple(templates[:5]),
            versions=tuple(sorted(versions.items(), key=lambda item: (-item[1], item[0]))[:5]),
            series=self._series(series, step, base, channel),
        )

    def _is_error(self, series: Series, ids: Sequence[str], start: int) -> bool:
        """Return whether the template of fingerprints is one of errors: the day before, it came with errors, not without."""
        low = start - self.grid.day_steps()
        before = sum(int(series.templates.part(one, low, start).sum()) for one in ids)
        return 2 * int(series.template_errors(ids, low, start).sum()) >= before

    def _series(
        self, series: Series, step: int, base: Baseline | None, channel: int
    ) -> tuple[tuple[int, float, float], ...]:
        """Return what the picture shows: each step observed and expected, for counts of errors, warnings or records."""
        low = step + 1 - _SERIES_STEPS
        counts = series.part(low, step + 1)
        if base is not None:
            rate = base.warnings if channel == 2 else base.errors
            observed = counts[Row.WARNINGS if channel == 2 else Row.ERRORS]
            expected = np.full(_SERIES_STEPS, rate.p) if rate.by_time else rate.p * counts[Row.RECORDS]
        else:
            observed = counts[Row.ALL]
            past = series.part(low - _SERIES_STEPS, low)[Row.ALL]
            expected = np.full(_SERIES_STEPS, float(past.mean()))
        us = self.grid.step_us
        return tuple(
            ((low + i) * us, float(k), round(float(mu), 3))
            for i, (k, mu) in enumerate(zip(observed, expected, strict=True))
        )

    # Silence ---------------------------------------------------------------------------------------------------------

    def _judge_silence(self, step: int, out: list[Judgement]) -> None:
        low: list[str] = []
        passed: list[str] = []
        held: set[str] = set()
        oldest = step - _SCHEDULE_DAYS * self.grid.day_steps()
        for name in sorted(self._units):
            unit = self._units[name]
            previous = unit.marks.get(step - 1)
            if previous is not None and previous.kind == "silence":
                self._hold_silence(name, unit, step, previous, out)
                held.add(name)
            elif step in unit.lively:
                passed.append(name)
            elif unit.series.last > oldest and self._is_low(unit, step):
                low.append(name)
        if not low:
            return
        seen, watched = self._lulls(low, step)
        overdue = {name: late for name in low if (late := self._overdue(watched[name], self._units[name], step))}
        may: BoolArray = np.any(is_quiet(seen), axis=1)
        past = {name: self._pauses(self._units[name], step) for place, name in enumerate(low) if may[place]}
        alone = np.ones(len(SILENCE_STEPS))
        suspects = [
            name
            for place, name in enumerate(low)
            if name in overdue
            or (may[place] and silence(seen, place, alone, past[name])[0] >= self.budgets.cuts(name)[_SILENCE])
        ]
        if not suspects:
            return
        if passed:
            low = sorted(low + [name for name in passed if self._is_low(self._units[name], step)])
            seen, watched = self._lulls(low, step)
        # How lively everything is: a holiday or a broken network is not one task's silence.
        others = []
        for name in sorted(self._units.keys() - held - watched.keys()):
            unit = self._units[name]
            if unit.series.last > oldest and self._watched(unit, step) is not None:
                others.append(name)
        others = others[:: max(1, len(others) // _FLEET_UNITS)]
        units = liveliness(seen)
        fleet = units.sum(axis=1)
        if others:
            fleet += liveliness(self._lulls(others, step)[0]).sum(axis=1)
        for name in suspects:
            place = low.index(name)
            k, usual, before = np.maximum(fleet - units[:, place], 0)
            level = fleet_level(k, usual, before)
            s, scale = silence(seen, place, level, past.get(name))
            strength = s / float(self.budgets.cuts(name)[_SILENCE])
            unit = self._units[name]
            length = SILENCE_STEPS[scale]
            came, due = float(seen.k[place, scale]), float(seen.expected[place, scale])
            if strength < 1 and name in overdue and level[-1] >= _LIVELY:
                length, due = overdue[name]
                came, strength = 0.0, 1.0
            if strength < 1 or (step in unit.marks and unit.marks[step].is_raised):
                continue
            last = unit.series.last_before(step + 1)
            if last - watched[name].live_since < STEPS_PER_WINDOW:
                continue  # history that was sent in one go ended there; it was never live
            start = min(max(step + 1 - length, last + 1), step)
            self._set_mark(unit, step, _Mark(start, "silence", True))
            who = "fleet" if k[scale] < _FLEET_STOPS * usual[scale] else ""
            finding = Finding("silence", "records", came, due, strength, length * self.grid.step_us, who)
            out.append(self._silent(name, unit, start, step, strength, [finding]))

    def _overdue(self, watched: Watched, unit: _Unit, step: int) -> tuple[int, float] | None:
        """Return for how many steps a unit that comes regularly has not, and what came last; None while it may yet come."""
        series, most = watched.series, self._patience(unit, step)
        last = series.last_before(step + 1) if most else step
        if step - last <= most or watched.live_since > last:
            return None
        if any(start <= step and end > last for start, end in self._blind):
            return None
        if step - last - rest_steps(series, last, step, most, self.grid) <= most:
            return None
        return step - last, float(series.records_in(last - most, last + 1))

    def _patience(self, unit: _Unit, step: int) -> int:
        """Return after how many steps without a record a unit is overdue at a step, 0 for never; found once a block."""
        block = step - step % BLOCK_STEPS
        if unit.patience is None or unit.patience[0] != block:
            unit.patience = block, patience(unit.series, block, self.grid, self._blind)
        return unit.patience[1]

    def _pauses(self, unit: _Unit, step: int) -> Pauses | None:
        """Return how a unit pauses when nothing is wrong; found once in six blocks, for it changes slowly."""
        block = step - step % (6 * BLOCK_STEPS)
        if unit.pauses is None or unit.pauses[0] != block:
            unit.pauses = block, pauses(unit.series, block, self.grid, self._blind)
        return unit.pauses[1]

    def _may_be_overdue(self, unit: _Unit, low: int, width: int) -> BoolArray:
        """Return in which of so many windows of a block a unit may be overdue."""
        most, steps = self._patience(unit, low), low + np.arange(width)
        if not most:
            return np.zeros(width, np.bool_)
        busy = np.concatenate([[low - most - 1], unit.series.busy_steps(low - most, low + width)])
        overdue: BoolArray = steps - busy[np.searchsorted(busy[1:], steps, side="right")] > most
        return overdue

    def _watched(self, unit: _Unit, step: int) -> Watched | None:
        """Return a unit as one that can fall silent, None if it cannot."""
        if unit.live_since is None:
            return None
        base = unit.baseline(step - step % BLOCK_STEPS, self.grid)
        return None if base.is_learning else Watched(unit.series, base, unit.live_since)

    def _learn_habits(self, names: Sequence[str], watched: Mapping[str, Watched], step: int) -> None:
        """Find what past days say of units, once a block."""
        # Where a day is shorter than a block, its later windows rest on what the block itself brings.
        width = BLOCK_STEPS if self.grid.day_steps() >= BLOCK_STEPS else 1
        first = step - step % width
        units = [self._units[name] for name in names]
        missing = [i for i, unit in enumerate(units) if unit.habit is None or unit.habit.low != first or width == 1]
        for begin in range(0, len(missing), _FLEET_UNITS):
            some = missing[begin : begin + _FLEET_UNITS]
            pairs = [(watched[names[i]].series, watched[names[i]].base) for i in some]
            for i, habit in zip(some, habits(pairs, first, width, self.grid, self._blind), strict=True):
                units[i].habit = habit

    def _is_low(self, unit: _Unit, step: int) -> bool:
        """Return whether next to nothing came of a unit that can fall silent."""
        records = unit.series.records_in(step + 1 - _QUIET_STEPS, step + 1)
        return records <= _QUIET_RECORDS and self._watched(unit, step) is not None

    def _lulls(self, names: Sequence[str], step: int) -> tuple[Lull, dict[str, Watched]]:
        """Return what silence is judged by, and of what."""
        watched = {name: one for name in names if (one := self._watched(self._units[name], step)) is not None}
        self._learn_habits(names, watched, step)
        found = [habit for name in names if (habit := self._units[name].habit) is not None]
        return lulls(list(watched.values()), found, step, self.grid, self._blind), watched

    def _hold_silence(self, name: str, unit: _Unit, step: int, previous: _Mark, out: list[Judgement]) -> None:
        """A unit that fell silent stays so until its records return, for a day at most."""
        if unit.series.records_in(step + 1 - STEPS_PER_WINDOW, step + 1):
            return
        if (step + 1 - previous.start) * self.grid.step_us > _SILENCE_HOLD_US:
            unit.live_since = None
            self._is_changed = True
            return
        self._set_mark(unit, step, _Mark(previous.start, "silence", False))
        out.append(self._silent(name, unit, previous.start, step, 1.0, []))

    def _silent(
        self, name: str, unit: _Unit, start: int, step: int, strength: float, findings: list[Finding]
    ) -> Judgement:
        where = (start, step + 1, step)
        return self._judgement(name, unit, where, strength, "silence", bool(findings), np.inf, findings, None, _SILENCE)

    # The forest ------------------------------------------------------------------------------------------------------

    def _judge_jointly(self, candidates: list[_Candidate], out: list[Judgement]) -> None:
        if self._forest is None or not candidates:
            return
        strengths = self._forest.strengths(np.array([c.features for c in candidates]))
        for candidate, oddness in zip(candidates, strengths, strict=True):
            strength = oddness / self.budgets.joint(candidate.unit)
            if strength >= 1:
                unit = self._units[candidate.unit]
                self._report(
                    candidate.unit,
                    unit,
                    candidate.step,
                    candidate.evaluation,
                    candidate.place,
                    True,
                    False,
                    out,
                    float(strength),
                    self._forest.shares(candidate.features),
                )

    def _training(self, high: int) -> FloatArray:
        """Return the channels of clean windows before the step ``high``, as judged from today.

        All in which something stirred, and of the calm ones those that do not overlap: the forest
        must know what is usual, but most of what is usual is nothing.
        """
        day = self.grid.day_steps()
        is_apart = np.arange(BLOCK_STEPS) % STEPS_PER_WINDOW == STEPS_PER_WINDOW - 1
        rows = [np.zeros((0, len(CHANNELS)))]
        # Short windows have many blocks: at most an hourly one is enough.
        stride = max(BLOCK_STEPS, day // 24 // BLOCK_STEPS * BLOCK_STEPS)
        names = sorted(self._units)
        chosen: list[tuple[_Unit, int]] = []
        for name in names[:: max(1, len(names) // _FIT_UNITS)]:
            unit = self._units[name]
            series = unit.series
            low = max(high - _FIT_DAYS * day, series.first + self.grid.day_steps(_FIT_SKIP_DAYS))
            low += -low % BLOCK_STEPS
            chosen += [(unit, block) for block in range(low, min(high, series.last), stride)]
        chosen = chosen[:: -(-len(chosen) // _FIT_BLOCKS) or 1]
        for first in range(0, len(chosen), _FIT_UNITS):
            pasts = chosen[first : first + _FIT_UNITS]
            bases = learn([(unit.series, at) for unit, at in pasts], self.grid)
            learned = [(unit, base, at) for (unit, at), base in zip(pasts, bases, strict=True) if not base.is_learning]
            some = [Stretch(unit.series, base, at) for unit, base, at in learned]
            if not some:
                continue
            found = evaluate(some, BLOCK_STEPS, self.grid)
            odd = np.stack([_odd_but_for_the_forest(unit, at) for unit, _, at in learned])
            used = ((found.surprise.max(axis=0) >= 1) | is_apart) & ~odd
            rows.append((found.surprise / CUT[:, None, None])[:, used].T)
        return np.concatenate(rows)


def _odd_but_for_the_forest(unit: _Unit, block: int) -> BoolArray:
    """Return which steps of the block at the step ``block`` are odd; what the forest alone raised it learns from."""
    out = unit.series.odd_part(block, block + BLOCK_STEPS)
    if out.any():
        out[:] = False
        for step, mark in unit.marks.items():
            if mark.kind != "joint" and mark.start < block + BLOCK_STEPS and step >= block:
                out[max(mark.start - block, 0) : step + 1 - block] = True
    return out


def _edge(unit: _Unit, step: int) -> int:
    """Return the edge of the last window that ends before the one at a step begins."""
    until = max(step - 2 * STEPS_PER_WINDOW + 1, unit.series.first)
    return until - until % STEPS_PER_WINDOW


def _late_windows(touched: set[int], before: int) -> list[int]:
    """Return the windows already due that any of the touched steps lies in, rising."""
    old = np.array(sorted(step for step in touched if step <= before), np.int64)
    if not old.size:
        return []
    windows = np.unique((old[:, None] + np.arange(STEPS_PER_WINDOW)).ravel())
    return [int(step) for step in windows[windows <= before]]


def _kind(found: Evaluation, at: tuple[int, int], top: int, cuts: FloatArray) -> str:
    """Return the kind of ticket: a new template is named where it makes up most of what is odd."""
    if top <= 1:
        is_new = found.is_new[at] and found.surprise[1, *at] >= cuts[1] and found.k[1, *at] >= 0.5 * found.k[0, *at]
        return "new_error" if is_new else "error_burst"
    return {2: "level_mix", 3: "latency", 4: "silence"}.get(top, "error_burst")


class Engine:
    """Judge and incidents together: what a replay over a file runs, and a service in two processes.

    ``describe`` is asked for what counts cannot tell about a judgement: texts, service, names.
    """

    def __init__(
        self,
        grid: Grid,
        tenant: str,
        describe: Callable[[Judgement], Facts],
        memory: Mapping[str, bytes] | None = None,
        incidents: bytes | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        self.judge = Judge(grid, memory, budgets)
        self.incidents = Incidents(grid, tenant, incidents)
        self.judgements: list[Judgement] = []
        self._describe = describe

    def is_idle(self, cutoff_us: int) -> bool:
        """Return whether a tick without counts can be left out."""
        return self.judge.is_idle(cutoff_us) and not self.incidents.is_over_due(cutoff_us)

    def expect(self, ticks: Sequence[tuple[int, Sequence[Count]]]) -> list[list[Count]]:
        """Take in ahead what coming ticks bring on time; see ``Judge.expect``."""
        return self.judge.expect(ticks)

    def advance(self, delta: Iterable[Count], cutoff_us: int, texts: Mapping[str, str] | None = None) -> list[Change]:
        """Take one tick's counts; return how incidents changed. ``judgements`` has the tick's odd windows."""
        self.judgements = self.judge.advance(delta, cutoff_us, texts)
        return self.incidents.apply(self.judgements, cutoff_us, self._describe)
