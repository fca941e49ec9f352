"""kill -9 of the whole service at full speed, with a backlog: what was acknowledged is found, exactly once.

Not here: many kills, at random and during the start, and every other fault (tests/soak, which CI runs in its
short form); kills at each named point between two steps (test_crash.py).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest

from tests.support.service import ServiceProcess

KILLS = 2
BATCH = 1_000
SECONDS_BETWEEN_KILLS = 1.5


class Sender(threading.Thread):
    """Sends batches as fast as they are taken, and keeps the ids of those that were acknowledged."""

    def __init__(self, number: int, service: ServiceProcess, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._number, self._service, self._stopping = number, service, stop
        self.acknowledged: list[str] = []
        self.unanswered: list[str] = []  # may be stored or not, and never twice
        self.busy_s = 0.0

    def _batch(self, serial: int) -> tuple[list[str], bytes]:
        now, ids, lines = datetime.now(UTC), [], []
        for i in range(BATCH):
            id = f"{self._number}-{serial}-{i}"
            # Three days of event time, so that several indices are written at once.
            at = now - timedelta(seconds=(serial * BATCH + i) * 7919 % (3 * 86_400))
            record = {"@timestamp": at.isoformat(), "event.id": id, "service": "load", "message": f"number {i}"}
            ids.append(id)
            lines.append(msgspec.json.encode(record))
        return ids, b"\n".join(lines)

    def run(self) -> None:
        headers = dict(self._service.http.headers)
        with httpx.Client(base_url=self._service.url, headers=headers, timeout=20, trust_env=False) as http:
            for serial in itertools.count():
                if self._stopping.is_set():
                    return
                ids, body = self._batch(serial)
                began = time.monotonic()
                try:
                    status = http.post("/api/v1/ingest", content=body).status_code
                except httpx.TransportError:
                    status = 0
                if status == 202:
                    self.acknowledged += ids
                    self.busy_s += time.monotonic() - began
                else:
                    self.unanswered += ids
                    self._stopping.wait(0.05)


@pytest.mark.slow(seconds=30)
@pytest.mark.timeout(400)
def test_each_acknowledged_record_is_found_exactly_once_after_kills_at_full_speed(own_service: ServiceProcess) -> None:
    service, stop = own_service, threading.Event()
    senders = [Sender(number, service, stop) for number in range(2)]
    for sender in senders:
        sender.start()
    for _ in range(KILLS):
        stop.wait(SECONDS_BETWEEN_KILLS)
        service.kill()
        service.start(is_ready=False)
    stop.wait(SECONDS_BETWEEN_KILLS)
    stop.set()
    for sender in senders:
        sender.join(60)
    acknowledged = set().union(*(sender.acknowledged for sender in senders))
    unanswered = set().union(*(sender.unanswered for sender in senders))
    busy_s = sum(sender.busy_s for sender in senders) / len(senders)
    print(
        f"{len(acknowledged)} acknowledged ({len(acknowledged) / busy_s:.0f}/s while up), {len(unanswered)} unanswered"
    )
    assert acknowledged

    service.wait("every acknowledged record to be searchable", lambda: service.count() >= len(acknowledged), 240, 0.5)
    found = Counter(record["event.id"] for record in service.walk())
    assert [id for id in acknowledged if found[id] == 0] == []
    assert [id for id, times in found.items() if times > 1] == []
    assert set(found) <= acknowledged | unanswered
