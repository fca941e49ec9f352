"""Metrics of the agent, for Prometheus: ``--metrics 127.0.0.1:9464`` and ``GET /metrics``.

Not here: what is counted where (agent.py, batcher.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable

METRICS: Mapping[str, tuple[str, str]] = {
    "agent_read_lines_total": ("counter", "Lines read."),
    "agent_read_bytes_total": ("counter", "Characters of the lines read, line feeds included."),
    "agent_records_total": ("counter", "Records made of them, a stack being one."),
    "agent_checkpoints_total": ("counter", "Times that checkpoints were written."),
    "agent_checkpoints_failed_total": ("counter", "Times that they could not be."),
    "agent_files_skipped_total": ("counter", "Rotated files that could not be read, such as damaged ones."),
    "agent_files": ("gauge", "Files that are followed."),
    "agent_files_unreadable": ("gauge", "Of these, those that cannot be read now."),
    "agent_unread_bytes": ("gauge", "Bytes written to these files and not yet read."),
    "agent_queued_records": ("gauge", "Records read and not yet on their way."),
    "agent_sent_records_total": ("counter", "Records that the service acknowledged."),
    "agent_dropped_records_total": ("counter", "Records lost, by reason."),
    "agent_spooled_batches": ("gauge", "Batches that wait on disk."),
}


@dataclass
class Counters:
    """What one run of the agent has done."""

    lines: int = 0
    bytes: int = 0
    records: int = 0
    checkpoints: int = 0
    checkpoints_failed: int = 0
    files_skipped: int = 0

    def values(self) -> dict[str, float]:
        """Return them by the names of their metrics."""
        read = {"lines": "agent_read_lines_total", "bytes": "agent_read_bytes_total"}
        return {read.get(name, f"agent_{name}_total"): value for name, value in asdict(self).items()}


def render(values: Mapping[str, float]) -> str:
    r"""Return ``values`` in Prometheus' text format.

    >>> print(render({"agent_files": 2}), end="")
    # HELP agent_files Files that are followed.
    # TYPE agent_files gauge
    agent_files 2
    """
    lines = []
    said = set()
    for name, value in values.items():
        family = name.partition("{")[0]
        if family not in said:
            said.add(family)
            kind, meaning = METRICS[family]
            lines += [f"# HELP {family} {meaning}", f"# TYPE {family} {kind}"]
        lines.append(f"{name} {value}")
    return "\n".join(lines) + "\n"


def serve_metrics(address: str, values: Callable[[], Mapping[str, float]]) -> ThreadingHTTPServer:
    """Answer ``GET /metrics`` at ``address`` (HOST:PORT) in a thread of its own, until shut down.

    Raises:
        ValueError: If ``address`` is none.
        OSError: If it cannot be listened at.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"metrics is {address!r}; expected HOST:PORT, such as 127.0.0.1:9464")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.path in ("/metrics", "/")
            body = (render(values()) if is_known else "see /metrics\n").encode()
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing: standard error is the agent's."""

    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    except (OSError, OverflowError) as exc:
        raise OSError(f"cannot serve metrics at {address}: {exc}") from exc
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="agent-metrics", daemon=True).start()
    return server
