"""What a log call through ``shippers.LogHandler`` costs, against the standard library's own, in one run.

Two baselines: ``NullHandler``, whose ``handle`` does nothing at all, and a handler whose ``emit`` does
nothing, which is what any real handler starts from. The rounds are interleaved, so that a change
of the machine's speed hits all alike; the median round counts.

``python -m tests.benchmarks.logging_call``; ``run()`` returns the figures.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from typing import Any

import shippers
from shippers.testing import CapturingTransport
from shippers.transport import Batch, Outcome, Verdict

CALLS = 20_000
ROUNDS = 9
AWAY_CALLS = 100_000


class EmptyHandler(logging.Handler):
    """Does all that a handler does before it does anything."""

    def emit(self, record: logging.LogRecord) -> None:
        pass


class SwallowingTransport(CapturingTransport):
    """Takes every batch and keeps nothing, so that memory stays out of the measurement."""

    def send(self, batch: Batch) -> Outcome:
        return Outcome(Verdict.ACCEPTED)


def _logger(handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger("benchmark", logging.INFO)  # noqa: LOG001 - one of its own, not the program\'s
    logger.addHandler(handler)
    return logger


def _time_calls(logger: logging.Logger, calls: int) -> float:
    """Return microseconds a call."""
    start = time.perf_counter()
    for number in range(calls):
        logger.info("charge %s failed for customer %d", "c-17", number)
    return (time.perf_counter() - start) / calls * 1e6


def measure_cost() -> dict[str, float]:
    """Return microseconds a call for each handler, and the ratios."""
    handler = shippers.LogHandler(transport=SwallowingTransport(), service="benchmark")
    loggers = {
        "null_handler_us": _logger(logging.NullHandler()),
        "empty_handler_us": _logger(EmptyHandler()),
        "log_handler_us": _logger(handler),
    }
    rounds: dict[str, list[float]] = {name: [] for name in loggers}
    for _ in range(ROUNDS):
        for name, logger in loggers.items():
            rounds[name].append(_time_calls(logger, CALLS))
        # The next round's baseline must not pay for this round's records.
        if not handler.flush(30.0):
            raise RuntimeError("the records of one round were not encoded within 30 s")
    stats = handler.batcher.stats()
    handler.close()
    result = {name: statistics.median(values) for name, values in rounds.items()}
    result["ratio_to_null_handler"] = result["log_handler_us"] / result["null_handler_us"]
    result["ratio_to_empty_handler"] = result["log_handler_us"] / result["empty_handler_us"]
    result["dropped"] = float(stats["dropped"])
    return result


def measure_away() -> dict[str, float]:
    """Return the latencies of single calls while nobody answers, in microseconds."""
    transport = CapturingTransport()
    transport.go_away()
    handler = shippers.LogHandler(transport=transport, service="benchmark", spool_dir=None)
    logger = _logger(handler)
    times = []
    for number in range(AWAY_CALLS):
        start = time.perf_counter()
        logger.info("charge %s failed for customer %d", "c-17", number)
        times.append(time.perf_counter() - start)
    handler.close(0.0)
    times.sort()
    return {
        "away_p50_us": times[len(times) // 2] * 1e6,
        "away_p999_us": times[len(times) * 999 // 1000] * 1e6,
        "away_max_us": times[-1] * 1e6,
    }


def run() -> dict[str, Any]:
    """Return all figures."""
    return {**measure_cost(), **measure_away()}


if __name__ == "__main__":
    print(json.dumps({name: round(value, 2) for name, value in run().items()}, indent=2))
