"""Transport: how a batch reaches the service, and what became of it.

``Transport`` is the seam: ``HttpTransport`` here, ``CapturingTransport`` in testing.py. A
transport makes one attempt and says how it ended; it neither waits nor tries again, except once at
once when a kept-alive connection turns out to have been closed by the other side (sending twice is
harmless, since every record carries its ``event.id``).

What always holds: an answer that is not the service's own, such as a login page's, neither acknowledges
a batch nor condemns it; and one that comes byte by byte takes no longer than ``timeout_s`` either.

Not here: when to try again (batcher.py), what waits meanwhile (spool.py).
"""

from __future__ import annotations

import email.utils
import encodings.idna  # noqa: F401 - else the sender imports it, and a fork amid an import leaves its lock behind
import gzip
import http.client
import io
import json
import math
import os
import socket
import ssl
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Callable, Protocol
from urllib.parse import urlsplit

from shippers import ledger

USER_AGENT = "logsvc-shippers"
INGEST_PATH = "/api/v1/ingest"
MAX_REPLY_BYTES = 256 * 1024


@dataclass(frozen=True)
class Batch:
    """Records on their way: lines of JSON, compressed once, for the network and the spool alike.

    Attributes:
        body: The compressed lines, the last of which may be a statement (ledger.py).
        encoding: The ``Content-Encoding`` of ``body``: gzip, zstd or identity.
        records: How many records there are.
    """

    body: bytes
    encoding: str
    records: int

    @staticmethod
    def of(lines: Sequence[bytes], encoding: str = "gzip", statement: bytes | None = None) -> Batch:
        """Return the batch of ``lines``, each one record without its line feed, and what the ledger says of them."""
        raw = b"\n".join(lines if statement is None else [*lines, statement]) + b"\n"
        return Batch(_COMPRESS[encoding](raw), encoding, len(lines))

    def lines(self) -> list[bytes]:
        """Return the records again, one line each.

        Raises:
            ValueError: If the body is not what its encoding says.
        """
        return self._read()[0]

    @property
    def statement(self) -> bytes | None:
        """What the ledger says of the batch, one line; None if it says nothing.

        Raises:
            ValueError: If the body is not what its encoding says.
        """
        return self._read()[1]

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches that together hold the same records in the same order."""
        lines, statement = self._read()
        middle = len(lines) // 2
        first, second = (None, None) if statement is None else ledger.split(statement, middle)
        return Batch.of(lines[:middle], self.encoding, first), Batch.of(lines[middle:], self.encoding, second)

    def _read(self) -> tuple[list[bytes], bytes | None]:
        try:
            raw = _DECOMPRESS[self.encoding](self.body)
        except Exception as exc:
            raise ValueError(f"a batch of {len(self.body)} bytes is not {self.encoding}") from exc
        lines = raw.splitlines()
        return (lines[:-1], lines[-1]) if lines and ledger.is_statement(lines[-1]) else (lines, None)


# Level 1: logs are so repetitive that the levels above cost the application more than the network saves.
_GZIP_LEVEL = 1


def _gzip(raw: bytes) -> bytes:
    # zlib's own gzip framing; gzip.compress() goes through Python code on 3.9 and 3.10.
    deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return deflate.compress(raw) + deflate.flush()


def _zstd(raw: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=1).compress(raw)


def _unzstd(body: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(body)


_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {"gzip": _gzip, "zstd": _zstd, "identity": bytes}
_DECOMPRESS: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zstd": _unzstd, "identity": bytes}
ENCODINGS = tuple(_COMPRESS)


class Verdict(Enum):
    """What to do with a batch after an attempt."""

    ACCEPTED = "accepted"  # it is the service's now
    RETRY = "retry"  # nothing was kept; the same batch may be taken later
    DENIED = "denied"  # the key or the address is wrong; keep the batch, tell a person, try again seldom
    TOO_LARGE = "too_large"  # send it in parts
    REFUSED = "refused"  # it will never be taken


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        reason: For people and for counting, such as ``http_503`` or ``connection_refused``.
        retry_after_s: How long the service asks us to wait; None if it did not say.
        rejected: Records of an accepted batch that the service refused.
        detail: The service's own words on that, if any.
    """

    verdict: Verdict
    reason: str = ""
    retry_after_s: float | None = None
    rejected: int = 0
    detail: str = ""


class Transport(Protocol):
    """Carries batches to the service. Called from one thread at a time.

    ``send`` makes one attempt within a bounded time, never raises for what the network or the
    service does, and reports ACCEPTED only when the service has taken over every record of the
    batch that it did not reject. Sending the same batch again is harmless.
    ``forget`` drops connections without a word to the other side: they belong to the parent
    process after a fork. ``close`` ends them; ``send`` after either opens new ones. ``str()`` of a
    transport names where it sends, in words fit for standard error: without the key.
    """

    def send(self, batch: Batch) -> Outcome: ...

    def forget(self) -> None: ...

    def close(self) -> None: ...


# 401 and 403 mean a wrong key, redirects and most others a wrong address: fixed by a person, and until
# then nothing may be lost.
_RETRY = frozenset({408, 425, 429})
_CONDEMNED = frozenset({400, 415, 422})  # by the service itself, which says so in JSON
_PAGES = ("text/html", "application/xhtml+xml")


class _Reply(http.client.HTTPResponse):
    """A reply that is whole within its connection's ``timeout``, not within so long for each byte."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        timeout_s = sock.gettimeout()
        if timeout_s is not None:
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_UntilDeadline(raw, sock, time.monotonic() + timeout_s))


class _UntilDeadline(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock
        self._timeout_s = sock.gettimeout()
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the reply timed out")
        self._sock.settimeout(left_s)
        try:
            return self._raw.readinto(buffer)
        finally:
            if self._sock.fileno() >= 0:
                self._sock.settimeout(self._timeout_s)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


@dataclass
class HttpTransport:
    """Sends batches to ``POST {url}/api/v1/ingest`` over one kept-alive connection.

    TLS certificates are verified, against ``ca_file`` if given; proxies are not used.

    Args:
        url: Address of the service, with or without a path, such as ``https://logs.example``.
        api_key: Key with the scope ``ingest``.
        timeout_s: Longest wait for the connection and for each read.
        ca_file: Certificates to trust instead of the system's.
        clock: Unix time, to read dates in Retry-After.

    Raises:
        ValueError: If ``url`` is no http(s) address or ``api_key`` cannot stand in a header.
    """

    url: str
    api_key: str = field(repr=False)
    timeout_s: float = 10.0
    ca_file: str | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"cannot send logs to url {self.url!r}; expected the service's address, such as https://logs.example:8080"
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "url may hold neither credentials nor a query; give the address alone and the key as api_key"
            )
        if not self.api_key or not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            raise ValueError("api_key must be printable ASCII without spaces; copy it again from `logsvc keys create`")
        self._host = parts.hostname
        self._port = parts.port
        self._path = parts.path.rstrip("/") + INGEST_PATH
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=self.ca_file)
        self._connection: http.client.HTTPConnection | None = None
        self._was_used = False

    def __str__(self) -> str:
        return self.url

    def send(self, batch: Batch) -> Outcome:
        """Make one attempt to send ``batch``; see ``Transport``."""
        try:
            try:
                return self._attempt(batch)
            except (http.client.BadStatusLine, ConnectionError, ssl.SSLEOFError):
                # The server closed an idle connection just as we used it; a fresh one tells the truth.
                if not self._was_used:
                    raise
                self.close()
                return self._attempt(batch)
        except ConnectionRefusedError:
            outcome = Outcome(Verdict.RETRY, "connection_refused")
        except ssl.SSLCertVerificationError as exc:
            outcome = Outcome(Verdict.DENIED, "certificate_not_trusted", detail=exc.verify_message)
        except (TimeoutError, OSError, http.client.HTTPException) as exc:
            is_timeout = isinstance(exc, TimeoutError) or "timed out" in str(exc)  # socket.timeout on 3.9
            outcome = Outcome(Verdict.RETRY, "timeout" if is_timeout else type(exc).__name__, detail=str(exc))
        except Exception as exc:
            outcome = Outcome(Verdict.RETRY, "transport_failed", detail=repr(exc))
        self.close()
        return outcome

    def forget(self) -> None:
        """Drop the connection that the parent process goes on using."""
        connection, self._connection = self._connection, None
        self._was_used = False
        if connection is not None and connection.sock is not None:
            try:
                # detach() so that neither shutdown nor TLS goodbye reaches the parent's peer.
                _close_descriptor(connection.sock.detach())
            except OSError:
                pass

    def close(self) -> None:
        """Close the connection; the next ``send`` opens another."""
        connection, self._connection = self._connection, None
        self._was_used = False
        if connection is not None:
            try:
                connection.close()
            except OSError:
                pass

    def _attempt(self, batch: Batch) -> Outcome:
        connection = self._connection
        if connection is None:
            if self._tls is not None:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self.timeout_s, context=self._tls
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=self.timeout_s)
            connection.response_class = _Reply
            self._connection = connection
        headers = {
            "Authorization": f"Bearer {self.api_key}",
            "Content-Type": "application/x-ndjson",
            "User-Agent": USER_AGENT,
        }
        if batch.encoding != "identity":
            headers["Content-Encoding"] = batch.encoding
        connection.request("POST", self._path, batch.body, headers)
        reply = connection.getresponse()
        text = reply.read(MAX_REPLY_BYTES)
        is_whole = not reply.read(1)
        if reply.will_close or not is_whole:
            self.close()
        else:
            self._was_used = True
        is_page = reply.getheader("Content-Type", "").partition(";")[0].strip().lower() in _PAGES
        return self._judge(reply.status, text, is_page, reply.getheader("Retry-After"))

    def _judge(self, status: int, text: bytes, is_page: bool, retry_after: str | None) -> Outcome:
        reason = f"http_{status}"
        if 200 <= status < 300 and not is_page:
            rejected, detail = _read_rejections(text)
            return Outcome(Verdict.ACCEPTED, reason, rejected=rejected, detail=detail)
        # A wrong address may echo what it got, and its words reach standard error.
        detail = text.replace(self.api_key.encode(), b"[key]")[:500].decode("utf-8", "replace")
        if status == 413:
            return Outcome(Verdict.TOO_LARGE, reason, detail=detail)
        if status in _RETRY or status >= 500:
            return Outcome(Verdict.RETRY, reason, parse_retry_after(retry_after, self.clock()), detail=detail)
        if status in _CONDEMNED and text.lstrip()[:1] == b"{":
            return Outcome(Verdict.REFUSED, reason, detail=detail)
        return Outcome(Verdict.DENIED, reason, parse_retry_after(retry_after, self.clock()), detail=detail)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds to wait that a Retry-After header asks for; None if it says nothing sensible.

    >>> parse_retry_after("120", 0.0), parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20.0)
    (120.0, 40.0)
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _read_rejections(text: bytes) -> tuple[int, str]:
    """Return how many records the reply to an accepted batch rejects, and the first reason."""
    if not text:
        return 0, ""
    try:
        reply: Any = json.loads(text)
        rejected = reply.get("rejected") or []
        if not rejected:
            return 0, ""
        return len(rejected), str(rejected[0].get("reason", ""))[:500]
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        return 0, ""  # another 2xx is an acknowledgement all the same


def _close_descriptor(descriptor: int) -> None:
    if descriptor >= 0:
        # On Windows a socket is no file descriptor; there is no fork there either.
        if hasattr(socket, "close"):
            socket.close(descriptor)
        else:
            os.close(descriptor)
