"""Connections: what uvicorn's reading of HTTP/1.1 lacks.

*Offers of another protocol are not heard.* Java's client offers HTTP/2 (``Upgrade: h2c``) with every
request in the clear. A server that does not take it up answers as if nothing had been offered; but
the parser leaves what follows such a head to the other protocol, and the body would be lost. So the
head is parsed again without the offer. Nothing here speaks another protocol, WebSocket included.

*Who stalls is left.* A client that stops in the middle of a request would hold its connection, and
the memory of what it sent, for ever.

Not here: what a request means (the routes), how much a body may have (protocols/bodies.py).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

STALLED_AFTER_S = 60.0
"""How long a client may take for the next bytes of a request that it has begun."""


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol; see the module."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)  # type: ignore[assignment]  # behaves as one
        self._heard_at = self.loop.time()
        self._stall_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to listen."""
        super().connection_made(transport)
        self._check_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._stall_check is not None:
            self._stall_check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self._heard_at = self.loop.time()
        super().data_received(data)

    def _check_stall(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        is_its_turn = cycle is None or cycle.response_complete or (cycle.more_body and not self.flow.read_paused)
        now = self.loop.time()
        if not is_its_turn:
            self._heard_at = now
        elif now - self._heard_at >= STALLED_AFTER_S:
            self.transport.abort()
            return
        self._stall_check = self.loop.call_later(STALLED_AFTER_S / 4, self._check_stall)

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head is to be parsed again."""
        if not self.offers_another():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request."""
        if not self.offers_another():
            super().on_message_complete()

    def offers_another(self) -> bool:
        """Return whether the head that was just parsed offers another protocol. CONNECT asks for a tunnel instead."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def head_without_offer(self) -> bytes:
        """Return the head that was just parsed, less its offer."""
        request = b"%s %s HTTP/%s\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        kept = [b"%s: %s\r\n" % header for header in self.headers if header[0] not in (b"upgrade", b"http2-settings")]
        return request + b"".join(kept) + b"\r\n"


class _Parser:
    """httptools' parser, begun anew after an offer."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def feed_data(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                if not self._protocol.offers_another():
                    raise
                data = self._protocol.head_without_offer() + data[exc.args[0] :]
                self._begin()

    def __getattr__(self, name: str) -> object:
        return getattr(self._parser, name)
