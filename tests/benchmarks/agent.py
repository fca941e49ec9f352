"""What the agent does in a second on one core: lines of a file to compressed batches, in a process of its own.

Plain lines and lines of JSON, each file once through ``python -m shippers.agent``'s own parts into a transport
that takes every batch and keeps only their number; CPU of all threads counts, and memory at its highest.
Every other line carries a random id, so that half of the lines are like none before.

``python -m tests.benchmarks.agent [LINES]``; ``run()`` returns the figures.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LINES = 400_000

_PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from shippers.agent import Agent
from shippers.agent_config import Config
from shippers.batcher import Batcher, Settings
from shippers.record import Origin
from shippers.tail import Checkpoints, FileSource
from shippers.transport import Outcome, Verdict

class Counting:
    records = size = 0

    def send(self, batch):
        self.records += batch.records
        self.size += len(batch.body)
        return Outcome(Verdict.ACCEPTED)

    def forget(self): pass

    def close(self): pass

path, state = sys.argv[1:]
transport = Counting()
settings = Settings(queue_max_records=20_000, queue_max_bytes=Config().memory_max_bytes, is_replayable=True)
batcher = Batcher(transport, Origin("agent"), settings=settings)
agent = Agent([(FileSource(path, grace_s=0.0), {"service.name": "shop"})], batcher, Checkpoints(Path(state)))
wall, cpu = time.perf_counter(), time.process_time()
agent.run(is_once=True)
arrived = agent.finish(120.0, 120.0)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
batcher.close()
print(json.dumps({
    "arrived": arrived, "records": transport.records, "sent_bytes": transport.size, "wall_s": wall, "cpu_s": cpu,
    "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def _write(path: Path, lines: int, *, is_json: bool) -> None:
    rng = random.Random(7)
    levels = ("INFO",) * 8 + ("WARNING", "ERROR")
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            second, milli = divmod(number * 7, 1000)
            time = f"2024-12-25 {second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}.{milli:03d}"
            level, order, took = rng.choice(levels), rng.randrange(10**6), rng.randrange(2000)
            message = f"charge of order {order} for customer c-{order % 997} took {took} ms on worker {order % 16}"
            if number % 2:
                message += f" (request {rng.getrandbits(64):016x})"
            if is_json:
                fields = {
                    "time": f"{time.replace(' ', 'T')}Z",
                    "level": level.lower(),
                    "logger": "shop.billing",
                    "msg": message,
                    "order": order,
                    "duration_ms": took,
                }
                file.write(json.dumps(fields) + "\n")
            else:
                file.write(f"{time} {level} shop.billing: {message}\n")


def _measure(directory: Path, name: str, lines: int) -> dict[str, Any]:
    path = directory / f"{name}.log"
    _write(path, lines, is_json=name == "json")
    command = [sys.executable, "-c", _PROGRAM, str(path), str(directory / f"{name}.checkpoints")]
    result = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=600).stdout)
    assert result["arrived"]
    assert result["records"] == lines
    return {
        f"{name}_lines_per_core_s": round(lines / result["cpu_s"]),
        f"{name}_lines_per_s": round(lines / result["wall_s"]),
        f"{name}_line_bytes": round(path.stat().st_size / lines),
        f"{name}_sent_bytes": round(result["sent_bytes"] / lines),
        f"{name}_memory_mb": round(result["memory_mb"]),
    }


def run(lines: int = LINES) -> dict[str, Any]:
    """Return the figures of ``lines`` plain lines, and of as many of JSON."""
    with tempfile.TemporaryDirectory() as directory:
        return {**_measure(Path(directory), "plain", lines), **_measure(Path(directory), "json", lines)}


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
