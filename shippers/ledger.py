"""Ledger: what this process was asked to ship and what became of it, told with each batch.

Whoever runs the service asks "did I lose logs, whose, how many?", and only the process that made them
can know. So the records of an epoch are numbered from 1 as they are put into batches, and each batch
ends with one line, its statement: which numbers it holds, how many records wait, and how many were
dropped by reason, before they got a number or after. It costs nothing in a log call, and some hundred
bytes a batch before compression.

What always holds:

- ``emitted = last number + queued + dropped``: every record that a log call asked for is in one of them.
- Numbers are given once, in order, without holes; one that does not arrive is in ``undelivered`` or lost.
- The figures count since the epoch began, so the newest statement (the highest ``n``) makes every
  lost one good. The last batch of a process that ends in order says so.
- The statement stands inside the body, so it goes wherever the batch goes: the spool, another
  process, a second attempt.

Not here: when batches are made and dropped (batcher.py), what the service concludes (its own ledger).
"""

from __future__ import annotations

import json
import os
import threading
from datetime import datetime, timezone
from typing import Any, Callable

from shippers import redact
from shippers.record import Origin

KEY = "shipper.ledger"
PREFIX = b'{"shipper.ledger":'
_encode = json.JSONEncoder(separators=(",", ":")).encode


def _now() -> datetime:
    return datetime.now(timezone.utc)


class Ledger:
    """Numbers the records of one epoch and writes its statements. Safe to use from several threads.

    Args:
        origin: Who is logging.
        is_replayable: Whether what is not delivered is read again from where it came.
        clock: The time, aware.
    """

    def __init__(self, origin: Origin, *, is_replayable: bool = False, clock: Callable[[], datetime] = _now) -> None:
        self.epoch = origin.epoch
        self._clock = clock
        self._lock = threading.RLock()  # a log call in a signal handler may interrupt one that drops
        fixed = {
            "epoch": origin.epoch,
            "started": _time_text(clock()),
            "service": redact.mask(origin.service)[0],
            "host": redact.mask(origin.host)[0],
            "pid": os.getpid(),
        }
        if is_replayable:
            fixed["replayable"] = True
        self._fixed = _encode(fixed)[:-1]
        self._numbered = 0
        self._statements = 0
        self._dropped: dict[str, int] = {}
        self._undelivered: dict[str, int] = {}
        self._spooled = 0
        self._acknowledged = 0
        self._has_ended = True  # nothing to say yet

    @property
    def has_news(self) -> bool:
        """Whether something happened since a statement said that the process ended."""
        return not self._has_ended

    def count_dropped(self, reason: str, count: int) -> None:
        """Count records dropped before they got a number."""
        with self._lock:
            self._dropped[reason] = self._dropped.get(reason, 0) + count
            self._has_ended = False

    def count_undelivered(self, reason: str, count: int) -> None:
        """Count numbered records that will never be delivered."""
        with self._lock:
            self._undelivered[reason] = self._undelivered.get(reason, 0) + count
            self._has_ended = False

    def count_spooled(self, count: int) -> None:
        """Count numbered records that were put on disk."""
        self._spooled += count

    def count_acknowledged(self, count: int) -> None:
        """Count numbered records that the service acknowledged."""
        self._acknowledged += count

    def state(self, records: int, *, queued: int, is_ended: bool = False) -> bytes:
        """Number the next ``records`` and return the statement that their batch ends with.

        Args:
            records: How many the batch holds; 0 for a statement alone.
            queued: How many wait to be numbered.
            is_ended: Whether nothing comes after it.
        """
        with self._lock:
            first = self._numbered + 1
            self._numbered += records
            self._statements += 1
            self._has_ended = is_ended
            said: dict[str, Any] = {
                "n": self._statements,
                "at": _time_text(self._clock()),
                "first": first,
                "records": records,
                "queued": queued,
                "acknowledged": self._acknowledged,
            }
            more = {
                "dropped": self._dropped,
                "undelivered": self._undelivered,
                "spooled": self._spooled,
                "ended": is_ended,
            }
            said.update((name, value) for name, value in more.items() if value)
            return b"%s%s,%s}" % (PREFIX, self._fixed.encode(), _encode(said)[1:].encode())


def is_statement(line: bytes) -> bool:
    """Tell whether a line of a batch is its statement."""
    return line.startswith(PREFIX)


def split(statement: bytes, records: int) -> tuple[bytes, bytes]:
    """Return the statements of the two parts of a batch of which the first holds ``records``."""
    said = json.loads(statement)[KEY]
    first = {**said, "records": records}
    second = {**said, "first": said["first"] + records, "records": said["records"] - records}
    # The first part goes first and may fail alone: what is said about the whole stands in the second.
    first.pop("ended", None)
    return tuple(_encode({KEY: part}).encode() for part in (first, second))  # type: ignore[return-value]


def _time_text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond:06d}Z"
