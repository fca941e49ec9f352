"""Base: what a judgement is, and the direction and range of every score, said once.

A *surprise* is ``-log10`` of how likely counts at least this odd are on a normal day; a channel's
*strength* is its surprise over its cut, so 1 is the point where a ticket is due. A *score* is
0…1, higher is stranger, and .5 is that same point, at the budget of false tickets that holds for
the unit (calibrate.py). Nothing in this package uses another direction;
scikit-learn's is turned in ``forest.py``.

Not here: where strengths come from (signals.py, forest.py), what becomes a ticket (incidents.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DETECTOR_NAME = "surprise"
DETECTOR_VERSION = "1"
NO_MODEL = "none: not enough history yet"

DAY_US = 86_400_000_000
TICK_US = 5_000_000
"""Counts are taken in ticks of ``event.ingested``; every tick is a multiple of this since 1970."""

STEPS_PER_WINDOW = 5
WINDOWS_PER_BLOCK = 12
BLOCK_STEPS = STEPS_PER_WINDOW * WINDOWS_PER_BLOCK
HORIZON_US = 8 * DAY_US
"""Counts older than this are forgotten, by whole days: a week for its shape, and the day at hand."""

CHANNELS = ("errors", "template", "warnings", "latency", "silence", "customer", "trend")
"""Order of the forest's features."""

CUTS = {
    "errors": 6.0,
    "template": 6.0,
    "warnings": 6.0,
    "latency": 6.0,
    "silence": 5.0,
    "customer": 6.0,
    "trend": 4.5,
}


class Count(NamedTuple):
    """``n`` records of ``unit`` in the step at ``step_us`` have ``key`` in ``dimension``.

    Dimensions used here are ``level``, ``template``, ``duration``, ``customer_error``, ``host_error`` and
    ``version_error``;
    others are ignored.
    """

    unit: str
    step_us: int
    dimension: str
    key: str
    n: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Windows of ``window_us`` advanced by a fifth of it; judged ``grace_us`` after their end.

    A window is named by its last step. Steps are numbered from 1970.

    Raises:
        ValueError: If the window is not a whole number of microseconds times five, or under a second.
    """

    window_us: int
    grace_us: int

    def __post_init__(self) -> None:
        if self.window_us < 1_000_000 or self.window_us % STEPS_PER_WINDOW or self.window_us > DAY_US:
            raise ValueError(f"window of {self.window_us} µs; expected 1 s to 1 day in whole fifths of a microsecond")
        if self.grace_us < 0:
            raise ValueError(f"grace of {self.grace_us} µs; expected 0 or more")

    @property
    def step_us(self) -> int:
        """Width of a step."""
        return self.window_us // STEPS_PER_WINDOW

    def due_through(self, cutoff_us: int) -> int:
        """Return the last step whose window is complete at ``cutoff_us``."""
        return (cutoff_us - self.grace_us) // self.step_us - 1

    def end_us(self, step: int) -> int:
        """Return where the window that is named by ``step`` ends."""
        return (step + 1) * self.step_us

    def day_steps(self, days: float = 1) -> int:
        """Return how many steps make ``days``, rounded."""
        return round(days * DAY_US / self.step_us)


class Finding(NamedTuple):
    """One odd feature of a window: what was seen against what was expected."""

    feature: str
    unit: str  # of observed and expected: records, records per window, ms
    observed: float
    expected: float
    strength: float
    scale_us: int  # length of time over which it was counted
    name: str = ""
    """Of whom, for customer and host; how many times as long, for latency_tail; what made it up, for joint; the day
    of the pin, for trend; "fleet" for silence of most units."""


class TemplateCount(NamedTuple):
    """A template's records in the odd window; ``is_common`` if several units had it a day before, when all was well."""

    id: str
    n: int
    is_new: bool
    first_us: int
    is_common: bool = False


class Pin(NamedTuple):
    """A unit's rate of errors as it once was, which stays until a person moves it, so that no ramp becomes normal.

    ``rate`` is per record, or per step where ``by_time`` (see ``baseline.Rate``), ``doubt`` is 1/r and the
    over-dispersion of blocks; ``at`` is the step in which it was pinned. ``accepted`` is the step from which on a
    person called everything normal, 0 if nobody did.
    """

    rate: float
    doubt: float
    by_time: bool
    at: int
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """A window that is odd (``is_raised``), or follows an odd one and is not yet normal.

    ``start_us`` and ``end_us`` bound the odd records, ``window_end_us`` is where the window ends that
    was judged. ``recent`` is the surprise of the newest three windows alone, so that what lies an hour
    back neither keeps an incident open nor brings it back.
    ``kind`` is error_burst, new_error, silence, latency, level_mix or joint; joint means that only
    the forest raised it. ``findings`` has the strongest first. ``versions`` are the releases of the
    failing records with their counts, most first. ``series`` has (start_us, observed, expected) for
    each step of the strongest feature, twelve windows back.
    """

    unit: str
    start_us: int
    end_us: int
    window_end_us: int
    strength: float
    kind: str
    is_raised: bool
    recent: float
    findings: tuple[Finding, ...]
    records: int
    errors: int
    templates: tuple[TemplateCount, ...]
    versions: tuple[tuple[str, int], ...]
    series: tuple[tuple[int, float, float], ...]


def score_of(strength: float) -> float:
    """Return the score, 0…1, of a strength; 1 is scored .5.

    >>> [score_of(m) for m in (0, 1, 2)]
    [0.0, 0.5, 0.75]
    """
    return 0.5 * max(strength, 0.0) if strength < 1 else 1 - 0.5 / strength
