"""Proxy: stands between the service and Elasticsearch, and answers as a store in trouble does.

The server behind it is real, and so is every answer that is not spoilt on purpose.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import msgspec


class Mode(Enum):
    """What the proxy does to a request."""

    PASS = "passes everything"
    REFUSE = "hangs up at once, as when nothing listens"
    HANG = "takes requests and never answers"
    SLOW = "answers late, in drips"
    HALF = "does half of a bulk request, and fails the rest"
    GARBLE = "spoils answers: cut off, no JSON, a page of some proxy"
    DEAF = "does what is asked and hangs up instead of answering"
    BUSY = "answers 429 or 503 without doing anything"


class Proxy:
    """See the module; ``mode`` may be changed at any time."""

    def __init__(self, target: str, rng: random.Random) -> None:
        self.mode = Mode.PASS
        self.spoilt: Counter[Mode] = Counter()
        self._target = urlsplit(target).netloc
        self._rng = rng
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def broken(self, mode: Mode) -> Iterator[None]:
        """Be in ``mode`` for the block."""
        self._released.clear()
        self.mode = mode
        try:
            yield
        finally:
            self.mode = Mode.PASS
            self._released.set()

    def close(self) -> None:
        """End, and hang up on whoever still waits."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Forward one request, and spoil it as the mode says."""
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        mode, rng = self.mode, self._rng
        is_spoilt = mode is not Mode.PASS and (mode in (Mode.REFUSE, Mode.HANG, Mode.SLOW) or rng.random() < 0.5)
        if is_spoilt and mode is Mode.HALF and not handler.path.startswith("/_bulk"):
            is_spoilt = False
        if not is_spoilt:
            self._reply(handler, *self._ask(handler, body))
            return
        self.spoilt[mode] += 1
        match mode:
            case Mode.REFUSE:
                _hang_up(handler)
            case Mode.HANG:
                self._released.wait()
                _hang_up(handler)
            case Mode.SLOW:
                self._released.wait(rng.uniform(0.2, 2.0))
                self._reply(handler, *self._ask(handler, body), drips=True)
            case Mode.HALF:
                self._reply(handler, *self._half(handler, body))
            case Mode.DEAF:
                self._ask(handler, body)
                _hang_up(handler)
            case Mode.BUSY:
                status, kind = rng.choice([(429, "es_rejected_execution_exception"), (503, "unavailable")])
                self._reply(handler, status, msgspec.json.encode({"error": {"type": kind, "reason": "soak"}}))
            case Mode.GARBLE:
                status, answer = self._ask(handler, body)
                match rng.randrange(4):
                    case 0:
                        self._reply(handler, status, answer[: len(answer) // 2])
                    case 1:
                        self._reply(handler, 200, b"<html><body>Bad gateway</body></html>")
                    case 2:
                        self._reply(handler, 502, b"<html><body>Bad gateway</body></html>")
                    case _:
                        self._reply(handler, status, answer[: len(answer) // 2], claimed=len(answer))

    def _ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        connection = HTTPConnection(self._target, timeout=120)
        try:
            headers = {
                name: value
                for name, value in handler.headers.items()
                if name.lower() not in ("host", "connection", "content-length", "accept-encoding")
            }
            connection.request(handler.command, handler.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException) as exc:
            return 502, msgspec.json.encode({"error": {"type": "proxy", "reason": str(exc)}})
        finally:
            connection.close()

    def _half(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        """Do what comes to half of the documents; of the rest, say that some were not taken, lying about a few."""
        lines = body.splitlines(keepends=True)
        pairs = [b"".join(lines[i : i + 2]) for i in range(0, len(lines), 2)]
        is_done = [self._rng.random() < 0.6 for _ in pairs]
        done = b"".join(pair for pair, wanted in zip(pairs, is_done, strict=True) if wanted)
        status, answer = self._ask(handler, done) if done else (200, b'{"items":[]}')
        if status != 200:
            return status, answer
        answered = iter(msgspec.json.decode(answer).get("items", []))
        failed = {"create": {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "soak"}}}
        items: list[Any] = []
        for wanted in is_done:
            item = next(answered) if wanted else failed
            items.append(failed if self._rng.random() < 0.1 else item)
        return 200, msgspec.json.encode({"items": items})

    def _reply(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        *,
        drips: bool = False,
        claimed: int | None = None,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        # The transport checks that it talks to the product.
        handler.send_header("X-Elastic-Product", "Elasticsearch")
        handler.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if not drips:
            handler.wfile.write(body)
        else:
            step = max(1, len(body) // 5)
            for start in range(0, len(body), step):
                handler.wfile.write(body[start : start + step])
                handler.wfile.flush()
                self._released.wait(0.1)
        if claimed is not None:
            _hang_up(handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections that break are the purpose."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    def answer(self: BaseHTTPRequestHandler) -> None:
        proxy.answer(self)

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", answer)
    return Handler


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection, as a process does that dies."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.shutdown(socket.SHUT_RDWR)
