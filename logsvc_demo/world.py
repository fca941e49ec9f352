"""World: time for a program that first relives the past days and then goes on live.

The same code runs both: in the past, waiting moves the clock; live, it waits. So history has the
shape of the present, and days of it take seconds.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime


class World:
    """A clock that starts at ``start`` (seconds since 1970) and runs free until it meets the present."""

    def __init__(self, start: float, stop: threading.Event) -> None:
        self._past: float | None = start
        self.stop = stop

    @property
    def is_live(self) -> bool:
        """Whether the present has been reached; from then on waiting takes real time."""
        return self._past is None

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return time.time() if self._past is None else self._past

    def when(self) -> datetime:
        """Return the time as loguru wants it."""
        return datetime.fromtimestamp(self.now(), UTC)

    def spend(self, seconds: float) -> None:
        """Let ``seconds`` pass: what a task's work takes."""
        self.wait_until(self.now() + seconds)

    def wait_until(self, moment: float) -> None:
        """Let time pass until ``moment``; return early when told to stop."""
        if self._past is not None:
            if moment < time.time():
                self._past = max(self._past, moment)
                return
            self._past = None
        self.stop.wait(max(0.0, moment - time.time()))


def schedule(
    world: World, periods: Mapping[str, float], rng: random.Random, start: float, end: float | None
) -> Iterator[tuple[float, str]]:
    """Yield (moment, name) in order: each name about every ``periods[name]`` seconds, until ``end`` or told to stop."""
    queue = [(start + rng.random() * period, name) for name, period in sorted(periods.items())]
    heapq.heapify(queue)
    while not world.stop.is_set():
        moment, name = heapq.heappop(queue)
        if end is not None and moment >= end:
            return
        heapq.heappush(queue, (moment + periods[name] * rng.uniform(0.7, 1.3), name))
        world.wait_until(moment)
        yield moment, name
