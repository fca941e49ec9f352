"""A web server that gives the answers it was told to give: a service of ours, or anything but one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import msgspec


class Answer(NamedTuple):
    """One answer; a body that is no text or bytes is sent as JSON."""

    body: Any
    status: int = 200
    media_type: str = "application/json"


@contextmanager
def answering(answers: Mapping[str, Answer]) -> Iterator[str]:
    """Lend the address of a server; ``answers`` are by path, ``*`` is for every other."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0]) or answers.get("*") or Answer("gone", 404, "text/plain")
            body = answer.body
            if isinstance(body, str):
                body = body.encode()
            elif not isinstance(body, bytes):
                body = msgspec.json.encode(body)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
