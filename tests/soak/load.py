"""Load: senders that remember what they were told about every record.

Half of the batches have no ``event.id``, so that nothing but the journal's own numbers keeps a replay
from doubling them; whoever sends those sends them once. The others are sent again until they are
answered, as shippers do, or given up after a refusal.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
import msgspec

BATCH = 100
_LEVELS = ("debug", "info", "info", "info", "warn", "error")


@dataclass(slots=True)
class Ledger:
    """What became of each record, by its number: a name that is unique among all senders."""

    acknowledged: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)  # stored or not, and never twice
    refused: set[str] = field(default_factory=set)  # answered: nothing was kept
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # answers that no sender should get


class Load:
    """Senders that run until ``stop``, through every restart of the service."""

    def __init__(self, url: str, key: str, rng: random.Random, *, senders: int = 2, pause_s: float = 0.1) -> None:
        self.ledger = Ledger()
        self._url, self._key, self._pause_s = url, key, pause_s
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(number, random.Random(rng.random())), daemon=True)
            for number in range(senders)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Ledger:
        """End every sender and return what they know; idempotent."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a sender does not end: the service neither answers nor hangs up"
        return self.ledger

    def _send(self, sender: int, rng: random.Random) -> None:
        with httpx.Client(
            base_url=self._url, headers={"Authorization": f"Bearer {self._key}"}, timeout=40, trust_env=False
        ) as http:
            for serial in itertools.count():
                if self._stopping.wait(self._pause_s):
                    return
                has_ids = rng.random() < 0.5
                names, body = _batch(sender, serial, has_ids, rng)
                self._deliver(http, names, body, has_ids, rng)

    def _deliver(self, http: httpx.Client, names: list[str], body: bytes, has_ids: bool, rng: random.Random) -> None:
        """Send one batch until it is answered for good."""
        ledger, is_in_doubt = self.ledger, False
        while True:
            text = ""
            try:
                answer = http.post("/api/v1/ingest", content=body)
            except httpx.TransportError as exc:
                outcome, is_in_doubt = type(exc).__name__, True
                is_final = self._stopping.is_set() or not has_ids
            else:
                outcome, text = str(answer.status_code), answer.text
                is_final = answer.status_code not in (429, 503) or rng.random() < 0.3 or self._stopping.is_set()
            with self._lock:
                ledger.answers[outcome] += 1
                if outcome == "202":
                    ledger.acknowledged.update(names)
                elif is_final:
                    (ledger.unanswered if is_in_doubt else ledger.refused).update(names)
                    if outcome.isdigit() and outcome not in ("429", "503"):
                        ledger.wrong.append(f"{outcome} {text[:200]}")
            if is_final:
                return
            self._stopping.wait(0.1)


def _batch(sender: int, serial: int, has_ids: bool, rng: random.Random) -> tuple[list[str], bytes]:
    now = datetime.now(UTC)
    has_time = rng.random() < 0.75
    names, lines = [], []
    for i in range(BATCH):
        name = f"{sender}-{serial}-{i}"
        record: dict[str, object] = {
            "service": "soak",
            "task": f"soak.task{i % 5}",
            "level": rng.choice(_LEVELS),
            "message": f"order {serial * BATCH + i} was handled by worker {sender} {'x' * rng.randrange(120)}",
            "labels": {"n": name},
        }
        if has_ids:
            record["event.id"] = f"soak-{name}"
        if has_time:
            # Three days, so that several indices are written at once, and many records of one moment.
            at = now - timedelta(days=rng.randrange(3), seconds=rng.randrange(20))
            record["@timestamp"] = at.replace(microsecond=0).isoformat()
        names.append(name)
        lines.append(msgspec.json.encode(record))
    return names, b"\n".join(lines)
