"""All benchmarks in one run: ``make bench``, or ``python -m tests.benchmarks NAME …`` for some.

Machines differ and are noisy: compare within one run, above all the ratios against the peer. ``--records N``
sets how many the whole path over HTTP takes (a million takes some ten minutes), and how many ``search_at_scale``
looks in, which runs only by its name (ten million are meant, and take the better part of an hour to make).
``--keep`` adds the run to ``history.ndjson`` beside this file, whose newest run of each is shown as *before*.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from logsvc import terminal
from tests.support import elasticsearch

PLAIN = (
    "logging_call",
    "agent",
    "ingest_cpu",
    "journal_cpu",
    "embedded_store",
    "detection",
    "detection_quality",
    "templates",
)
WITH_SERVER = ("elastic_store", "http_embedded", "http_elasticsearch")
ALL = (*PLAIN, *WITH_SERVER)
BY_NAME = ("search_at_scale",)
"""Only when asked for: they take their time."""
HISTORY = Path(__file__).parent / "history.ndjson"


def _run(name: str, url: str | None, records: int, *, is_full: bool) -> dict[str, Any]:
    if name.startswith("http_"):
        from tests.benchmarks import over_http

        assert url is not None
        return over_http.embedded(url, records) if name == "http_embedded" else over_http.elasticsearch(url)
    run: Callable[..., dict[str, Any]] = importlib.import_module(f"tests.benchmarks.{name}").run
    if name == "detection_quality":
        return run(is_full=is_full)
    if name == "search_at_scale":
        return run(records)
    return run(url) if name in WITH_SERVER else run()


def _history() -> dict[str, dict[str, Any]]:
    """Return the newest figures of each benchmark that were kept."""
    newest: dict[str, dict[str, Any]] = {}
    if HISTORY.exists():
        for line in HISTORY.read_text(encoding="utf-8").splitlines():
            newest |= json.loads(line)["figures"]
    return newest


def _keep(results: dict[str, Any]) -> None:
    version = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HISTORY.parent
    ).stdout.strip()
    run = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": version or None,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "figures": {name: figures for name, figures in results.items() if name != "elasticsearch"},
    }
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run, default=str) + "\n")


def _server_settings(url: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/_nodes/jvm,os,settings", timeout=30).json()
    node = next(iter(answer["nodes"].values()))
    return {
        "version": node["version"],
        "heap_mb": node["jvm"]["mem"]["heap_max_in_bytes"] >> 20,
        "processors": node["os"]["allocated_processors"],
        "jvm": node["jvm"]["version"],
        "jvm_arguments": " ".join(
            argument for argument in node["jvm"]["input_arguments"] if argument.startswith(("-Xm", "-XX:Tiered"))
        ),
    }


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, or all, and print a table and one JSON document."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join((*ALL, *BY_NAME))}")
    parser.add_argument(
        "--records",
        type=int,
        default=200_000,
        help="records of http_embedded and search_at_scale (default %(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="all of detection_quality, the better part of an hour")
    parser.add_argument("--keep", action="store_true", help="add the figures to history.ndjson")
    asked = parser.parse_args(arguments)
    names = asked.names
    if unknown := sorted(set(names) - {*ALL, *BY_NAME}):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join((*ALL, *BY_NAME))}")
    chosen = [name for name in (*ALL, *BY_NAME) if name in (names or ALL)]
    results: dict[str, Any] = {}

    def measure(url: str | None) -> None:
        if url is not None:
            results["elasticsearch"] = _server_settings(url)
        for name in chosen:
            print(f"{name} …", file=sys.stderr, flush=True)
            results[name] = _run(name, url, asked.records, is_full=asked.full)

    if set(chosen) & set(WITH_SERVER):
        with elasticsearch.server("bench") as url:
            measure(url)
    else:
        measure(None)
    out = terminal.console()
    before = _history()
    for name, figures in results.items():
        rows = [(key, _shown(value), _shown(before.get(name, {}).get(key, ""))) for key, value in figures.items()]
        out.print(terminal.table(name, ("figure", "value", "before"), rows))
    if asked.keep:
        _keep(results)
    path = os.path.join(tempfile.gettempdir(), "logsvc-bench.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=2, default=str)
    out.print(f"as JSON in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
