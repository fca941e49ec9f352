"""Detection's cost, and how well it does on a file of records with known incidents.

``run`` measures on made-up counts. ``python -m tests.benchmarks.detection DIRECTORY`` replays
``DIRECTORY/logs.ndjson.gz`` through the engine and writes ``flags.json`` (to ``--output``) for the
scorer; ``--score SCORER`` runs it on ``DIRECTORY/truth.json``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detectors.base import TICK_US, Count, Grid, Judgement, score_of
from detectors.engine import Engine, Judge
from detectors.explain import names
from detectors.incidents import Facts
from logsvc.fingerprint import exception_fingerprint, fingerprint
from logsvc.timestamps import parse_rfc3339

GRID = Grid(window_us=300_000_000, grace_us=60_000_000)
_LEVELS = {"WARNING": "warn", "CRITICAL": "fatal"}


def run() -> dict[str, float]:
    """Return the microseconds it takes to judge one unit for one window, live (one step at a time)."""
    rng = np.random.default_rng(1)
    units = [f"task:t{i}" for i in range(100)]
    steps, step_us = 2 * 1440, GRID.step_us
    history = [
        Count(unit, step * step_us, "level", level, int(n))
        for unit in units
        for level, rate in (("info", 20.0), ("error", 0.05), ("warn", 0.2))
        for step, n in enumerate(rng.poisson(rate, steps))
        if n
    ]
    judge = Judge(GRID)
    cutoff = steps * step_us + GRID.grace_us
    begin = time.perf_counter()
    judge.advance(history, cutoff)
    backfill_s = time.perf_counter() - begin
    live_s = 0.0
    for step in range(steps, steps + 20):
        delta = [Count(unit, step * step_us, "level", "info", 20) for unit in units]
        delta += [Count(unit, step * step_us, "level", "error", 1) for unit in units[::10]]
        cutoff = GRID.end_us(step) + GRID.grace_us
        begin = time.perf_counter()
        judge.advance(delta, cutoff)
        live_s += time.perf_counter() - begin
    return {
        "backfill_us_per_unit_window": round(backfill_s / (len(units) * steps) * 1e6, 2),
        "live_us_per_unit_window": round(live_s / (len(units) * 20) * 1e6, 2),
    }


def _ticks(path: Path) -> Iterator[tuple[int, list[Count], dict[tuple[str, str], dict[str, object]]]]:
    """Yield (tick, counts, a record by unit and template) for rising ticks of event.ingested."""
    counts: Counter[tuple[str, int, str, str]] = Counter()
    samples: dict[tuple[str, str], dict[str, object]] = {}
    tick = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record: dict[str, Any] = json.loads(line)
            ingested = parse_rfc3339(record["event.ingested"]) // 1000
            cutoff = ingested // TICK_US * TICK_US + TICK_US
            if cutoff != tick:
                if counts:
                    yield tick, [Count(*key, n) for key, n in counts.items()], samples
                counts = Counter()
                tick = cutoff
            step = parse_rfc3339(record["@timestamp"]) // 1000 // GRID.step_us * GRID.step_us
            unit = f"task:{record['task']}"
            level = _LEVELS.get(record["level"], record["level"].lower())
            counts[unit, step, "level", level] += 1
            if level in {"warn", "error", "fatal"}:
                message, error_type, error_message = record["message"], None, None
                if "Traceback (most" in message:
                    message, _, stack = message.partition("\n")
                    last = [line for line in stack.splitlines() if line and not line.startswith((" ", "\t"))]
                    error_type, _, error_message = last[1].partition(": ") if len(last) > 1 else ("", "", "")
                template, text = (
                    exception_fingerprint(message, error_type, error_message or "")
                    if error_type
                    else fingerprint(message)
                )
                counts[unit, step, "template", template] += 1
                samples.setdefault(
                    (unit, template),
                    {"service.name": record["service"], "task.name": record["task"], "message": message, "text": text}
                    | ({"error.type": error_type, "error.message": error_message} if error_type else {}),
                )
                if level != "warn":
                    counts[unit, step, "version_error", record["version"]] += 1
            if "duration_ms" in record:
                bucket = int(24 * np.log10(max(record["duration_ms"], 1e-6) * 1e6))
                counts[unit, step, "duration", str(bucket)] += 1
    if counts:
        yield tick, [Count(*key, n) for key, n in counts.items()], samples


def replay(path: Path) -> list[dict[str, object]]:
    """Return the flags that the engine raises over a file, one per window."""
    known: dict[tuple[str, str], dict[str, object]] = {}
    flags: list[dict[str, object]] = []

    def describe(judgement: Judgement) -> Facts:
        found = {t.id: known[judgement.unit, t.id] for t in judgement.templates if (judgement.unit, t.id) in known}
        service = judgement.unit.partition(":")[2].partition(".")[0]
        texts = {id: str(record["text"]) for id, record in found.items()}
        named = [names(found[t.id]) for t in judgement.templates[:3] if t.id in found]
        return Facts(service, texts, frozenset().union(*named))

    engine = Engine(GRID, "default", describe)
    cutoff = 0
    for tick, counts, samples in _ticks(path):
        known = samples
        while cutoff and cutoff + TICK_US < tick:
            cutoff += TICK_US
            if not engine.is_idle(cutoff):
                _collect(engine, [], cutoff, flags)
        cutoff = tick
        _collect(engine, counts, cutoff, flags)
    return flags


def _collect(engine: Engine, counts: list[Count], cutoff: int, flags: list[dict[str, object]]) -> None:
    engine.advance(counts, cutoff)
    for judgement in engine.judgements:
        if judgement.is_raised:
            incident = engine.incidents.of(judgement)
            flags.append(
                {
                    "task": judgement.unit.partition(":")[2],
                    "start": judgement.start_us / 1e6,
                    "end": judgement.end_us / 1e6,
                    "detected_at": (judgement.window_end_us + GRID.grace_us) / 1e6,
                    "score": score_of(judgement.strength),
                    "kind": judgement.kind,
                    "ticket": incident.id if incident else None,
                }
            )


def main() -> None:
    """Replay, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--output", type=Path, default=Path("flags.json"))
    parser.add_argument("--score", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    flags = replay(args.directory / "logs.ndjson.gz")
    print(f"{len(flags)} flags in {time.perf_counter() - begin:.1f} s")
    args.output.write_text(json.dumps(flags))
    if args.score:
        command = [sys.executable, str(args.score), str(args.directory / "truth.json"), str(args.output)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
