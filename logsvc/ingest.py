"""Ingest: the one ``accept`` in which every protocol ends.

Items are normalised in slices off the event loop; the journal makes the entries durable; only then
is the sender answered.

What always holds:

- The items of a call are all durable or, when it raises, none is.
- ``event.ingested`` never falls, and every record below ``settled_before_us()`` is in the journal
  or was refused.
- Every refused item, flagged record, masked value and dropped label is counted, and every record that
  a shipper says it dropped. The ledger gets a note of each call, as durable as its records.

Not here: how bytes become items (protocols/), how an item becomes an entry (normaliser.py),
durability (journal.py).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from logsvc.ledger import Ledger, Note, Statement, note_entry
from logsvc.names import SHADOW_TENANT
from logsvc.normaliser import OTHER_REASON, Item, ItemResult, Origin, Tally
from logsvc.records import Entry
from logsvc.timestamps import Clock
from logsvc.turns import Turns

__all__ = ["Appends", "Counters", "Ingest", "Item", "ItemResult", "Normalises", "Runs"]

SLICE_ITEMS = 1_000
SLICES_AT_ONCE = 4  # they share one interpreter lock; more would only make each tenant's wait longer
MAX_DROP_REASONS = 32  # senders choose them, and each is a time series
_INLINE_ITEMS, _INLINE_BYTES = 8, 4_096  # below both, handing over to a thread costs more than the work


@dataclass(slots=True)
class Counters:
    """What ingest has done since the start."""

    accepted: int = 0
    flagged: int = 0
    redactions: int = 0
    dropped_fields: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by ItemResult.code
    dropped: Counter[str] = field(default_factory=Counter)  # in shippers, by the reason they give

    def add_dropped(self, dropped: Counter[str]) -> None:
        """Add what shippers dropped; reasons beyond ``MAX_DROP_REASONS`` count as one."""
        for reason, count in dropped.items():
            is_known = reason in self.dropped or len(self.dropped) < MAX_DROP_REASONS - 1
            self.dropped[reason if is_known else OTHER_REASON] += count


class Appends(Protocol):
    """The journal as ingest sees it: durable when it returns, all or nothing."""

    async def append(self, entries: Sequence[Entry]) -> int:
        """Make entries durable, in order, and return the first one's sequence."""
        ...

    def check_room(self, tenant: str) -> None:
        """Raise what ``append`` would for ever so few entries of a tenant; cheap."""
        ...


class Normalises(Protocol):
    """A ``Normaliser``, or many."""

    def normalise(self, items: Sequence[Item], origin: Origin) -> tuple[list[ItemResult], list[Entry], Tally]:
        """Return a result for each item, the entries of the accepted ones, and what to count."""
        ...


Runs = Callable[..., Awaitable[Any]]
"""Runs a function off the event loop and awaits its result, as ``asyncio.to_thread`` does."""


class Ingest:
    """Normalises, masks and fingerprints what senders send, and has it made durable.

    Args:
        journal: Where entries become durable.
        clock: Gives ``event.ingested``; must never go back (``timestamps.MonotonicClock``).
        run: Runs CPU work off the event loop, such as ``asyncio.to_thread``.
        normaliser: What makes entries of items; called through ``run`` but for a few short ones.
        counters: What is counted; a new one if left out.
        ledger: Gets a note of each call; None keeps none.
    """

    def __init__(
        self,
        journal: Appends,
        *,
        clock: Clock,
        run: Runs,
        normaliser: Normalises,
        counters: Counters | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._clock = clock
        self._run = run
        self._normaliser = normaliser
        self.counters = counters or Counters()
        self._turns = Turns(SLICES_AT_ONCE)
        self._in_flight: dict[int, int] = {}  # call → its event.ingested
        self._calls = itertools.count()
        self._lock = threading.Lock()

    async def accept(
        self,
        tenant: str,
        items: Sequence[Item],
        *,
        source: str,
        protocol: str,
        key_id: str,
        statement: Statement | None = None,
    ) -> list[ItemResult]:
        """Make items durable and return what became of each, in their order.

        All accepted items of a call are in the journal, or, if this raises, none is.

        Args:
            tenant: Whose they are.
            items: Decoded objects, or the JSON text of one each.
            source: Address or name of the sender.
            protocol: What it came by: native, elasticsearch, otlp, …
            key_id: Id of the key it came with; never the key.
            statement: What the shipper's ledger says with them.

        Raises:
            JournalFull: If nothing could be kept; the sender shall send it again.
        """
        call = next(self._calls)
        note: Callable[[int], None] = _nothing
        append: asyncio.Future[int] | None = None
        try:
            results: list[ItemResult] = []
            entries: list[Entry] = []
            tally = Tally()
            origin: Origin | None = None
            parts = []
            if len(items) <= _INLINE_ITEMS and all(type(item) is bytes and len(item) < _INLINE_BYTES for item in items):
                origin = self._begin(call, tenant, source, protocol, key_id)
                parts.append(self._normaliser.normalise(items, origin))
            else:
                for start in range(0, len(items), SLICE_ITEMS):
                    part = items[start : start + SLICE_ITEMS]
                    async with self._turns.turn(tenant, len(part)):
                        if origin is None:
                            # What waited for its turn need not be normalised if it will be refused by now. And only
                            # now is the call in flight: until it ends, no window after its stamp is complete.
                            self._journal.check_room(tenant)
                            origin = self._begin(call, tenant, source, protocol, key_id)
                        parts.append(await self._run(self._normaliser.normalise, part, origin))
            assert origin is not None  # many items are some
            ingested_us = origin.ingested_us
            for part_results, part_entries, part_tally in parts:
                results += part_results
                entries += part_entries
                tally.add(part_tally)
            accepted = len(entries)
            # The canary's are nobody's records.
            if self._ledger is not None and tenant != SHADOW_TENANT and (results or statement is not None):
                told = Note(
                    key_id=key_id,
                    protocol=protocol,
                    accepted=accepted,
                    flagged=tally.flagged,
                    refused=_refused(results) if accepted < len(results) else {},
                    statement=statement,
                )
                if entries or statement is not None:
                    entries.append(note_entry(tenant, ingested_us, told))
                    note = partial(self._ledger.take, tenant, told, ingested_us, accepted)
                else:  # nothing was kept, so a power cut may forget that it was refused
                    self._ledger.take(tenant, told, ingested_us, 0, 0)
            if entries:
                append = asyncio.ensure_future(self._journal.append(entries))
                await asyncio.shield(append)
            if tenant != SHADOW_TENANT:  # counted apart (canary.py)
                self._count(results, accepted, tally)
            return results
        finally:
            if append is None or append.done():
                self._settle(call, append, note)
            else:
                # The sender hung up, but the journal may still take the entries: until then nothing is settled.
                append.add_done_callback(lambda done: self._settle(call, done, note))

    def settled_before_us(self) -> int:
        """Return a time: every record with a lower ``event.ingested`` is in the journal, or was refused."""
        with self._lock:
            return min(self._in_flight.values()) if self._in_flight else self._clock()

    def _begin(self, call: int, tenant: str, source: str, protocol: str, key_id: str) -> Origin:
        """Stamp a call, which is in flight from now on."""
        with self._lock:
            # Stamped and registered in one step, so that settled_before_us() never overtakes it.
            self._in_flight[call] = ingested_us = self._clock()
        if self._ledger is not None:
            self._ledger.begin(call)
        return Origin(tenant, source, protocol, key_id, ingested_us)

    def _settle(self, call: int, append: asyncio.Future[int] | None, note: Callable[[int], None]) -> None:
        if append is not None and not append.cancelled() and append.exception() is None:
            note(append.result())
        if self._ledger is not None:
            self._ledger.end(call)
        with self._lock:
            self._in_flight.pop(call, None)  # none: it was cancelled before its turn

    def _count(self, results: list[ItemResult], accepted: int, tally: Tally) -> None:
        counters = self.counters
        counters.accepted += accepted
        counters.flagged += tally.flagged
        counters.redactions += tally.redactions
        counters.dropped_fields += tally.dropped_fields
        counters.add_dropped(tally.dropped)
        if accepted < len(results):
            counters.refused.update(_refused(results))


def _refused(results: Iterable[ItemResult]) -> Counter[str]:
    return Counter(result.code for result in results if result.code is not None)


def _nothing(_seq: int) -> None:
    """Take no note."""
