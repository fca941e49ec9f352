"""All benchmarks in one run: ``make bench``, or ``python -m tests.benchmarks NAME …`` for some.

Machines differ and are noisy: compare within one run, above all the ratios against the peer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import httpx

from logsvc import terminal
from tests.support import elasticsearch

PLAIN = ("logging_call", "agent", "ingest_cpu", "journal_cpu", "embedded_store", "detection", "templates")
WITH_SERVER = ("elastic_store", "http_elasticsearch")
ALL = (*PLAIN, "http_embedded", *WITH_SERVER)


def _run(name: str, url: str | None) -> dict[str, Any]:
    if name == "http_embedded":
        from tests.benchmarks import over_http

        return over_http.run()
    if name == "http_elasticsearch":
        from tests.benchmarks import over_http

        assert url is not None
        prefix = "bench-http"
        try:
            return over_http.run(60_000, LOGSVC_STORE_URL=url, LOGSVC_STORE_PREFIX=prefix)
        finally:
            elasticsearch.drop_indices(url, prefix)
    run: Callable[..., dict[str, Any]] = importlib.import_module(f"tests.benchmarks.{name}").run
    return run(url) if name in WITH_SERVER else run()


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


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all, and print a table and one JSON document."""
    unknown = set(names) - set(ALL)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    chosen = [name for name in ALL if not names or name in names]
    results: dict[str, Any] = {}

    def measure(url: str | None) -> None:
        if url is not None:
            results["elasticsearch"] = _server_settings(url)
        for name in chosen:
            print(f"{name} …", file=sys.stderr, flush=True)
            results[name] = _run(name, url)

    if set(chosen) & set(WITH_SERVER):
        with elasticsearch.server("bench") as url:
            measure(url)
    else:
        measure(None)
    out = terminal.console()
    for name, figures in results.items():
        rows = [(key, f"{value:,}" if isinstance(value, int) else str(value)) for key, value in figures.items()]
        out.print(terminal.table(name, ("figure", "value"), rows))
    path = os.path.join(tempfile.gettempdir(), "logsvc-bench.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=2, default=str)
    out.print(f"as JSON in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
