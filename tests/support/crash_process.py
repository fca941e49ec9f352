"""A process that appends records until it is killed: ``python -m tests.support.crash_process DIR MODE FIRST COUNT``.

Three threads append batches and write ``FIRST SIZE`` to standard output for each that was
acknowledged; the indexer drains into SQLite meanwhile. ``MODE`` is ``append`` or ``replay`` (which
replays all dead letters once everything is indexed). It ends with ``drained`` if nothing kills it.
Every 50th record is refused by the store.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import cast

from logsvc import faults
from logsvc.deadletters import DeadLetters
from logsvc.indexer import Indexer
from logsvc.journal import Journal
from logsvc.lock import DataDirectoryLock
from logsvc.records import Entry
from logsvc.replay import Replayer, ReplayRequest
from logsvc.store import Store
from logsvc.timestamps import MonotonicClock
from tests.support.records import T0, make_entry
from tests.support.sqlite_store import SqliteStore

BATCH = 7
THREADS = 3


def record(number: int) -> Entry:
    """Return the record with this number; the 50th, 100th… are ones that the store refuses."""
    text = "refuse" if number % 50 == 0 else "take"
    return make_entry(0, T0 + number, f"{text} {number}", id=f"n{number}")


def main(directory: Path, mode: str, first: int, count: int) -> None:
    lock = DataDirectoryLock.acquire(directory)
    journal = Journal.open(directory / "journal", segment_bytes=2_000, recent_records=30)
    dead_letters = DeadLetters.open(directory / "deadletters")
    store = SqliteStore(directory / "store.db")
    indexer = Indexer.open(
        journal,
        cast(Store, store),
        dead_letters,
        directory / "indexer.checkpoint",
        batch_records=20,
        flush_interval_s=0.01,
        linger_s=0.0,
    )

    def append(first: int, end: int) -> None:
        for start in range(first, end, BATCH):
            entries = [record(number) for number in range(start, min(start + BATCH, end))]
            journal.append_sync(entries)
            os.write(1, f"{start} {len(entries)}\n".encode())
            if faults.is_armed:
                indexer.wait_searchable(journal.last_seq - 100, 5)  # so that every step comes often

    share = count // THREADS
    threads = [
        threading.Thread(target=append, args=(first + n * share, first + (n + 1) * share)) for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if mode == "replay":
        indexer.wait_searchable(journal.last_seq, 20)
        clock = MonotonicClock(floor_us=journal.last_ingested_us)
        Replayer(directory / "replay", journal, dead_letters, clock).run(ReplayRequest(all_dead_letters=True))
    journal.close()
    assert indexer.close(20), indexer.status()
    dead_letters.close()
    store.close()
    lock.release()
    os.write(1, b"drained\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
