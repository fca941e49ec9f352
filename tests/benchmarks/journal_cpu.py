"""What the journal costs: CPU per record of appending (fsync included) and of reading back, and bytes on disk.

``run()`` returns the figures; ``python -m tests.benchmarks.journal_cpu [RECORDS]`` prints them as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from logsvc.journal import Journal
from logsvc.records import Entry
from tests.benchmarks.embedded_store import entries

SENDERS = 4
BATCH = 500


def run(records: int = 40_000) -> dict[str, float]:
    """Return the figures of ``records`` appended by four senders in batches of 500, then read from disk."""
    made = list(entries(records))
    batches = [made[start : start + BATCH] for start in range(0, records, BATCH)]
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal.open(Path(directory) / "journal", recent_records=0)
        waits: list[float] = []

        async def send(mine: list[list[Entry]]) -> None:
            for batch in mine:
                begun = time.perf_counter()
                await journal.append(batch)
                waits.append(time.perf_counter() - begun)

        async def send_all() -> None:
            await asyncio.gather(*[send(batches[n::SENDERS]) for n in range(SENDERS)])

        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(send_all())
        append_cpu, append_wall = time.process_time() - cpu, time.perf_counter() - wall
        size_bytes = journal.size_bytes

        cpu, after_seq, read = time.process_time(), 0, 0
        while after_seq < journal.last_seq:
            part = journal.read(after_seq)
            read += len(part.entries)
            after_seq = part.through_seq
        read_cpu = time.process_time() - cpu
        assert read == records
        journal.close()
    return {
        "journal_append_cpu_us": round(append_cpu / records * 1e6, 3),
        "journal_append_records_per_s": round(records / append_wall),
        "journal_append_p99_ms": round(sorted(waits)[int(len(waits) * 0.99)] * 1e3, 1),
        "journal_read_cpu_us": round(read_cpu / records * 1e6, 3),
        "journal_bytes": round(size_bytes / records, 1),
        "journal_source_bytes": round(sum(len(entry.source) for entry in made) / records, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
