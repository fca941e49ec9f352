"""Testing: a transport that keeps what it is given, for tests of programs that log.

::

    transport = shippers.testing.CapturingTransport()
    handler = shippers.LogHandler(transport=transport, service="shop", spool_dir=None)
    logging.getLogger("shop").addHandler(handler)
    ...
    handler.flush()
    assert transport.records[0]["message"] == "charge failed"

It is a real ``Transport``: the same contract suite runs over it and over ``HttpTransport``.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import Any

from shippers.transport import Batch, Outcome, Verdict


class CapturingTransport:
    """Keeps the records of the batches that it accepts, in order; fails when told to.

    Attributes:
        attempts: How many times ``send`` was called.
    """

    def __init__(self) -> None:
        self.attempts = 0
        self._records: list[dict[str, Any]] = []
        self._outcomes: deque[Outcome] = deque()
        self._outage: Outcome | None = None
        self._changed = threading.Condition()

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records accepted so far."""
        with self._changed:
            return list(self._records)

    def answer_next(self, *outcomes: Outcome) -> None:
        """Answer the next attempts with ``outcomes``, one each, before accepting again."""
        with self._changed:
            self._outcomes.extend(outcomes)

    def go_away(self, outcome: Outcome | None = None) -> None:
        """Answer every attempt with ``outcome`` (by default as if nobody listened) until ``come_back``."""
        with self._changed:
            self._outage = outcome or Outcome(Verdict.RETRY, "connection_refused")

    def come_back(self) -> None:
        """Accept again."""
        with self._changed:
            self._outage = None

    def wait_for(self, count: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Return the records once there are ``count``.

        Raises:
            TimeoutError: If there are fewer after ``timeout_s``.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._records) >= count, timeout_s):
                raise TimeoutError(f"{len(self._records)} records came within {timeout_s} s; expected {count}")
            return list(self._records)

    def wait_for_attempts(self, count: int, timeout_s: float = 10.0) -> None:
        """Return once ``send`` was called ``count`` times.

        Raises:
            TimeoutError: If that has not happened after ``timeout_s``.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.attempts >= count, timeout_s):
                raise TimeoutError(f"{self.attempts} attempts within {timeout_s} s; expected {count}")

    def send(self, batch: Batch) -> Outcome:
        """Keep the records of ``batch``, or answer as told."""
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()
            if self._outcomes:
                outcome = self._outcomes.popleft()
            else:
                outcome = self._outage or Outcome(Verdict.ACCEPTED)
            if outcome.verdict is Verdict.ACCEPTED:
                self._records.extend(json.loads(line) for line in batch.lines())
            return outcome

    def forget(self) -> None:
        """Start with a fresh lock: after a fork the old one may be held by a thread that is not here."""
        self._changed = threading.Condition()

    def close(self) -> None:
        """Do nothing: there is no connection."""
