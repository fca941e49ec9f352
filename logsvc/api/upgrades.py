"""Upgrades: requests that offer another protocol than HTTP/1.1, read as what they are without it.

Java's client offers HTTP/2 (``Upgrade: h2c``) with every request in the clear. A server that does
not take it up answers as if nothing had been offered; but the parser leaves what follows such a
head to the other protocol, and the body would be lost. So the head is parsed again without the
offer. Nothing here speaks another protocol, WebSocket included.

Not here: what a request means (the routes).
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, deaf to offers of others."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)  # type: ignore[assignment]  # behaves as one

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
