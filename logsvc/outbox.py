"""Outbox: delivers what detection decided to say, until it has arrived.

Events are written in the transaction that changes their ticket (``State.commit_tick``), one row per
channel, and one thread per notifier takes them from there. So a crash at any moment loses no event;
one that fell between delivery and its note is delivered again, with the same id (at least once).

What always holds: the events of one ticket arrive on a channel in order, and one that waits for its
next attempt holds up its own ticket only; one slow channel holds up no other; after the last attempt
the event is marked failed, and the other channels say so; it stays on the ticket and can be replayed.

Not here: how to deliver (notifiers.py), where events are kept (state/).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec
from loguru import logger

from logsvc.errors import ChannelGone, DeliveryFailed, StateUnavailable
from logsvc.notifiers import Event, Notifier
from logsvc.state import NOTIFICATION_FAILED, OutboxRow, State
from logsvc.timestamps import US_PER_S, Clock

SCHEDULE_S = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Pause before each attempt, give or take a tenth. Source: Standard Webhooks 1.0."""

_JITTER = 0.1
_LEASE_US = 120 * US_PER_S
_POLL_S = 1.0  # other processes may add events too: a replay from the command line
_STATE_DOWN_S = 5.0
_EXPIRE_EVERY_US = 3_600 * US_PER_S
_MAX_ERROR_CHARS = 500


class Outbox:
    """Delivers the events of ``state`` through ``notifiers``.

    Args:
        state: Opened with the notifiers' names as its channels.
        notifiers: One per channel; the outbox closes them.
        clock: The time.
        public_url: Address of the service; the ticket's own is added to each event as ``data.url``.
        keep: How long settled events stay on their tickets.
        rng: For jitter.
        on_attempt: Called with channel and outcome (delivered, retry, failed) after each attempt.
    """

    def __init__(
        self,
        state: State,
        notifiers: Sequence[Notifier],
        *,
        clock: Clock,
        public_url: str,
        keep: timedelta = timedelta(days=30),
        rng: random.Random | None = None,
        on_attempt: Callable[[str, str], None] | None = None,
    ) -> None:
        self._state = state
        self._notifiers = {notifier.name: notifier for notifier in notifiers}
        self._clock = clock
        self._public_url = public_url
        self._keep_us = keep // timedelta(microseconds=1)
        self._rng = rng or random.Random()
        self._on_attempt = on_attempt or (lambda _channel, _outcome: None)
        self._gone: set[str] = set()
        self._expired_us = 0
        self._threads: list[threading.Thread] = []
        self._wakes = {name: threading.Event() for name in self._notifiers}
        self._stopping = threading.Event()

    def open(self) -> None:
        """Take up what was left undone, and start delivering."""
        self.recover()
        for name in self._notifiers:
            thread = threading.Thread(target=self._run, args=(name,), name=f"outbox-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def recover(self) -> None:
        """Make due what a process that is gone had claimed; find out which channels are disabled."""
        if not self._state.is_shared:
            self._state.release_claims()
        for name, notifier in self._notifiers.items():
            if not self._state.enable_channel(name, unless_target=notifier.target):
                self._gone.add(name)
                logger.warning("channel {} is disabled: its receiver answered that it is gone", name)

    def wake(self) -> None:
        """Look for events now rather than within a second."""
        for wake in self._wakes.values():
            wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until no event is due; return whether that came to pass in time."""
        deadline = time.monotonic() + timeout_s
        while any(self._state.has_due(name, self._clock()) for name in self._notifiers):
            self.wake()
            if time.monotonic() >= deadline or self._stopping.wait(0.02):
                return False
        return True

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop after the deliveries under way, and close the notifiers; idempotent.

        What is not delivered stays for the next start.
        """
        self._stopping.set()
        self.wake()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for notifier in self._notifiers.values():
            notifier.close()

    def deliver_next(self, channel: str) -> bool:
        """Attempt the oldest event that is due on a channel; return whether there was one."""
        row = self._state.claim(channel, now_us=self._clock(), lease_us=_LEASE_US)
        if row is None:
            return False
        try:
            self._notifiers[channel].deliver(self._event(row))
        except ChannelGone as exc:
            self._gone.add(channel)
            self._state.mark_failed(row.seq, _short(exc), self._clock())
            self._state.disable_channel(
                channel, target=self._notifiers[channel].target, reason=_short(exc), now_us=self._clock()
            )
            self._report(row, "failed", exc)
        except DeliveryFailed as exc:
            self._retry(row, exc, exc.retry_after_s or 0)
        except Exception as exc:  # noqa: BLE001 - a notifier's mistake on one event must not silence its channel
            self._retry(row, exc, 0)
        else:
            self._state.mark_delivered(row.seq, self._clock())
            if channel in self._gone:  # a replay reached it: it is back
                self._state.enable_channel(channel)
                self._gone.discard(channel)
            self._on_attempt(channel, "delivered")
        return True

    def _event(self, row: OutboxRow) -> Event:
        event = msgspec.json.decode(row.body, type=Event)
        if event.type != NOTIFICATION_FAILED:
            event.data["url"] = f"{self._public_url}/api/v1/tickets/{row.ticket_id}"
        return event

    def _retry(self, row: OutboxRow, error: Exception, retry_after_s: int) -> None:
        attempt = row.attempts + 1
        if attempt >= len(SCHEDULE_S):
            self._state.mark_failed(row.seq, _short(error), self._clock())
            self._report(row, "failed", error)
            return
        pause_s = max(SCHEDULE_S[attempt] * self._rng.uniform(1 - _JITTER, 1 + _JITTER), retry_after_s)
        self._state.mark_retry(row.seq, _short(error), self._clock() + round(pause_s * US_PER_S))
        self._report(row, "retry", error)

    def _report(self, row: OutboxRow, outcome: str, error: Exception) -> None:
        logger.warning(
            "{} of ticket {} on channel {}: attempt {}, {}: {}",
            row.type,
            row.ticket_id,
            row.channel,
            row.attempts + 1,
            outcome,
            _short(error),
        )
        self._on_attempt(row.channel, outcome)

    def _run(self, channel: str) -> None:
        wake = self._wakes[channel]
        while not self._stopping.is_set():
            try:
                while not self._stopping.is_set() and self.deliver_next(channel):
                    pass
                self._expire()
                pause_s = _POLL_S
            except StateUnavailable as exc:
                logger.warning("channel {} waits: {}", channel, exc)
                pause_s = _STATE_DOWN_S
            wake.wait(pause_s)
            wake.clear()

    def _expire(self) -> None:
        now_us = self._clock()
        if now_us - self._expired_us >= _EXPIRE_EVERY_US:
            self._expired_us = now_us
            self._state.expire_outbox(now_us - self._keep_us)


def _short(error: Exception) -> str:
    """One line for the ticket; without control characters, which a receiver might have sent."""
    text = str(error) or type(error).__name__
    return "".join(char if char.isprintable() else " " for char in text)[:_MAX_ERROR_CHARS]
