"""Services: the parts that routes may use, handed out once by the composition root."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from logsvc.detection import Detection
from logsvc.errors import StoreUnavailable
from logsvc.indexer import Indexer, IndexerState
from logsvc.ingest import Ingest
from logsvc.journal import Journal
from logsvc.keys import Keys
from logsvc.ledger import Ledger
from logsvc.protocols.bodies import Room
from logsvc.quotas import Quotas
from logsvc.state import State
from logsvc.store import Store
from logsvc.telemetry import Telemetry
from logsvc.timestamps import Clock
from logsvc.turns import Turns

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
    detection: Detection
    ledger: Ledger
    telemetry: Telemetry
    clock: Clock
    public_url: str
    tenant: str  # the service's own, LOGSVC_TENANT
    stopping: threading.Event
    erasures: Path  # where each erasure leaves a line
    acks_from_store: bool = False
    bodies: Room = field(default_factory=Room)
    quotas: Quotas = field(default_factory=Quotas)
    decoding: Turns = field(default_factory=lambda: Turns(2))
    # Together they are no faster than in turn, need the memory of all, and crowd each other out of the journal.
    large_bodies: Turns = field(default_factory=lambda: Turns(1))
    tails: Counter[str] = field(default_factory=Counter)
    # Threads of their own, so that no number of tails ever keeps ingest waiting.
    tail_threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "tail"))
    _searches: Counter[str] = field(default_factory=Counter)
    _searches_lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def searching(self, tenant: str) -> Iterator[None]:
        """Hold one of the places for searches, so that slow ones leave threads to everybody else.

        A tenant may hold as many as it leaves free.

        Raises:
            StoreUnavailable: If there is none for it.
        """
        with self._searches_lock:
            own, all_ = self._searches[tenant], self._searches.total()
            if own + all_ >= MAX_CONCURRENT_SEARCHES:
                raise StoreUnavailable(f"{all_} searches are running, {own} of this tenant; try again in a moment", 1)
            self._searches[tenant] += 1
        try:
            yield
        finally:
            with self._searches_lock:
                self._searches[tenant] -= 1
                if not self._searches[tenant]:
                    del self._searches[tenant]

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
