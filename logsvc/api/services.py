"""Services: the parts that routes may use, handed out once by the composition root."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from logsvc.errors import StoreUnavailable
from logsvc.indexer import Indexer, IndexerState
from logsvc.ingest import Ingest
from logsvc.journal import Journal
from logsvc.keys import Keys
from logsvc.protocols.bodies import Room
from logsvc.state import State
from logsvc.store import Store
from logsvc.telemetry import Telemetry
from logsvc.timestamps import Clock

MAX_CONCURRENT_SEARCHES = 24
"""Of the 40 threads that requests share."""


@dataclass(slots=True)
class Services:
    """What routes lean on. ``tails`` counts each tenant's streams; ``stopping`` ends them."""

    ingest: Ingest
    journal: Journal
    indexer: Indexer
    store: Store
    state: State
    keys: Keys
    telemetry: Telemetry
    clock: Clock
    public_url: str
    tenant: str  # the service's own, LOGSVC_TENANT
    stopping: threading.Event
    acks_from_store: bool = False
    bodies: Room = field(default_factory=Room)
    # Together they are no faster than in turn, need the memory of all, and crowd each other out of the journal.
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)
    tails: Counter[str] = field(default_factory=Counter)
    # Threads of their own, so that no number of tails ever keeps ingest waiting.
    tail_threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "tail"))
    _search_slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_CONCURRENT_SEARCHES)
    )

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Hold one of the places for searches, so that slow ones leave threads to everybody else.

        Raises:
            StoreUnavailable: If all are taken.
        """
        if not self._search_slots.acquire(blocking=False):
            raise StoreUnavailable(f"{MAX_CONCURRENT_SEARCHES} searches are running; try again in a moment", 1)
        try:
            yield
        finally:
            self._search_slots.release()

    def why_not_ready(self) -> list[str]:
        """Return why the service is not ready to take and find records; [] if it is."""
        reasons = []
        if self.journal.trouble:
            reasons.append(f"the journal takes nothing: {self.journal.trouble}")
        status = self.indexer.status()
        if status.state is not IndexerState.RUNNING:
            reasons.append(f"the indexer is {status.state.value}: {status.reason}")
        health = self.store.health()
        if not health.is_reachable:
            reasons.append(f"the store does not answer: {health.detail}")
        return reasons


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
