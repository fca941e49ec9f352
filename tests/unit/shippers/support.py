"""A real HTTP service for the tests of the shippers: takes batches, fails as told, remembers all."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shippers.ledger import is_statement
from shippers.transport import Outcome, Verdict

KEY = "k" * 32


class Service:
    """What the service saw, and how it is to answer."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.answers: deque[Callable[[BaseHTTPRequestHandler, bytes], None]] = deque()
        self.always: Callable[[BaseHTTPRequestHandler, bytes], None] | None = None
        self.max_bytes: int | None = None
        self.changed = threading.Condition()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def attempts(self) -> int:
        return len(self.paths)

    def wait_for(self, count: int, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.records) >= count, timeout_s):
                raise TimeoutError(f"{len(self.records)} records; expected {count}")
            return list(self.records)

    def wait_for_attempts(self, count: int, timeout_s: float = 20.0) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.attempts >= count, timeout_s):
                raise TimeoutError(f"{self.attempts} attempts; expected {count}")

    def messages(self) -> list[str]:
        return [record["message"] for record in self.records]


def reply(status: int, body: bytes = b"{}", **headers: str) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Answer with this status and keep nothing."""

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang(released: threading.Event) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Answer only when ``released``."""

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        released.wait(30.0)
        handler.close_connection = True

    return answer


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            service.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with service.changed:
                service.paths.append(self.path)
                service.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = service.answers.popleft() if service.answers else service.always
                service.changed.notify_all()
            if answer is None and service.max_bytes is not None and len(body) > service.max_bytes:
                answer = reply(413)
            if answer is not None:
                answer(self, body)
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            records = [json.loads(line) for line in body.splitlines() if not is_statement(line)]
            with service.changed:
                service.records += records
                service.changed.notify_all()
            reply(202, json.dumps({"accepted": len(records), "rejected": []}).encode())(self, b"")

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    # Connections that the client drops are what is being tested.
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def serving(port: int = 0, service: Service | None = None) -> Iterator[Service]:
    service = service or Service()
    server = _Server(("127.0.0.1", port), _handler(service))
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


AWAY = Outcome(Verdict.RETRY, "connection_refused")
