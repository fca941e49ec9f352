"""What ingest costs: CPU per record of decode, normalise, mask, fingerprint and encode apart.

The records are what a service with tasks sends: some 400 bytes, ids and numbers of their own, one in
twenty with an exception, one in fifty with something to mask.

``run()`` returns the figures; ``python -m tests.benchmarks.ingest_cpu [RECORDS]`` prints them as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from logsvc import fingerprint
from logsvc.drafts import Draft, read
from logsvc.normaliser import Normaliser, Origin, constants, decode_item, set_template
from logsvc.timestamps import format_us
from shippers import redact

T = TypeVar("T")
R = TypeVar("R")

_START_US = 1_764_000_000_000_000
_MESSAGES = (
    "charged order {n} in {ms} ms for tenant t-{t}",
    "sent report {n} to {t} recipients, {ms} ms in queue",
    "GET /orders/{n}/items?page={t} 200 {ms}ms",
    "retrying job {hex} in {ms}s (attempt {t}/900): upstream 10.0.0.{t} timed out",
    "cache miss for 'user:{n}:profile', loading from replica-{t}",
)
_TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/billing/jobs.py", line 71, in run
    charge(order)
  File "/srv/venv/lib/python3.11/site-packages/sqlalchemy/engine/base.py", line 1967, in _exec
    self.dialect.do_execute(cursor, statement, parameters)
sqlite3.OperationalError: database is locked"""


def bodies(count: int, seed: int = 7) -> list[bytes]:
    """Return ``count`` native records as JSON."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        values: dict[str, int | str] = {"n": rng.randrange(10**6), "ms": rng.randrange(3_000), "t": rng.randrange(500)}
        values["hex"] = f"{rng.getrandbits(64):016x}"
        item: dict[str, object] = {
            "@timestamp": format_us(_START_US + i * 1_000 + rng.randrange(1_000)),
            "level": rng.choice(["INFO", "INFO", "INFO", "DEBUG", "WARNING"]),
            "service": "billing",
            "task": f"billing.task{rng.randrange(20)}",
            "task_id": f"{rng.getrandbits(128):032x}",
            "host": f"host-{rng.randrange(8)}",
            "version": "1.4.2",
            "message": rng.choice(_MESSAGES).format_map(values),
            "duration_ms": rng.randrange(3_000) + 0.25,
            "trace_id": f"{rng.getrandbits(128):032x}",
            "region": "eu-west-1",
            "queue": rng.choice(["high", "low"]),
        }
        if i % 20 == 0:
            item |= {"level": "ERROR", "message": "task failed", "exception": _TRACEBACK}
        elif i % 50 == 1:
            item["message"] = f"login of user{i}@example.com with password=hunter{i}"
        made.append(json.dumps(item).encode())
    return made


def _letters(number: int) -> str:
    """Return a word that no other number gives, so that no shape is cached."""
    return "".join(chr(97 + int(digit)) for digit in str(number))


def _each(function: Callable[[T], R], values: Sequence[T]) -> tuple[float, list[R]]:
    """Return the CPU microseconds per value of a function, and what it returned."""
    begun = time.process_time()
    results = [function(value) for value in values]
    return (time.process_time() - begun) / len(values) * 1e6, results


def run(records: int = 20_000) -> dict[str, float]:
    """Return the CPU of each step of ``records`` records, in microseconds a record."""
    sent = bodies(records)
    normaliser = Normaliser(b"key of the benchmark")
    origin = Origin("default", "127.0.0.1", "native", "k1", _START_US)
    constant = constants(origin)
    decode_us, decoded = _each(decode_item, sent)
    objects = [item for item in decoded if isinstance(item, dict)]
    normalise_us, drafts = _each(read, objects)

    def mask(draft: Draft) -> tuple[str, str] | None:
        normaliser.complete(draft, origin)
        return normaliser.mask(draft, origin.tenant)

    mask_us, templates = _each(mask, drafts)
    fingerprint_us, _ = _each(lambda pair: set_template(*pair), list(zip(drafts, templates, strict=True)))
    encode_us, entries = _each(lambda draft: normaliser.encode(draft, origin, constant), drafts)

    begun = time.process_time()
    for start in range(0, records, 1_000):
        normaliser.normalise(sent[start : start + 1_000], origin)
    total_us = (time.process_time() - begun) / records * 1e6

    messages = [str(item["message"]) for item in objects]
    mask_message_us, _ = _each(redact.mask, messages)
    unseen = [f"{message} {_letters(i)}" for i, message in enumerate(messages)]
    unseen_us, _ = _each(fingerprint.fingerprint, unseen)
    figures = {
        "ingest_decode_cpu_us": decode_us,
        "ingest_normalise_cpu_us": normalise_us,
        "ingest_mask_cpu_us": mask_us,
        "ingest_fingerprint_cpu_us": fingerprint_us,
        "ingest_encode_cpu_us": encode_us,
        "ingest_total_cpu_us": total_us,
        "ingest_mask_one_message_cpu_us": mask_message_us,
        "ingest_fingerprint_unseen_message_cpu_us": unseen_us,
        "ingest_sent_bytes": sum(map(len, sent)) / records,
        "ingest_source_bytes": sum(len(entry.source) for entry, _ in entries) / records,
    }
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:2])), indent=2))
