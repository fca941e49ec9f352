"""Services: the parts that routes may use, handed out once by the composition root."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from logsvc.indexer import Indexer, IndexerState
from logsvc.ingest import Ingest
from logsvc.journal import Journal
from logsvc.keys import Keys
from logsvc.state import State
from logsvc.store import Store
from logsvc.telemetry import Telemetry
from logsvc.timestamps import Clock


@dataclass(slots=True)
class Services:
    """What routes lean on. ``tails`` counts the streams that run; ``stopping`` ends them."""

    ingest: Ingest
    journal: Journal
    indexer: Indexer
    store: Store
    state: State
    keys: Keys
    telemetry: Telemetry
    clock: Clock
    public_url: str
    stopping: threading.Event
    acks_from_store: bool = False
    tails: int = 0

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
