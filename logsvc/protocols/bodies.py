"""Bodies: what arrives over HTTP, collected and decompressed within a bound.

What always holds: neither the body as sent nor as decompressed ever exceeds ``limit`` in memory by
more than 32 MiB, so a zip bomb costs what an honest body may cost; all bodies together stay within
``MAX_TOGETHER_BYTES``, however many clients send at once. The first bytes are believed
more than ``Content-Encoding``: clients behind proxies send plain text marked as gzip, and the
reverse.

Not here: authentication, which comes before a body is read; what the bytes mean.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager

import zstandard

from logsvc.errors import BadInput, BodyTooLarge, Overloaded, UnsupportedEncoding

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_TOGETHER_BYTES = 256 * 1024 * 1024

_CHUNK = 256 * 1024
_MAX_ZSTD_WINDOW = 32 * 1024 * 1024  # what a decoder must keep in memory; level 19 asks for 8 MiB
_ZSTD_FEED = 1024
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_ENCODINGS = 2


class Room:
    """The memory that the bodies of all tenants share; used by one event loop alone.

    A tenant may hold as much as it leaves free, so that there is always some for the next.
    """

    def __init__(self, total_bytes: int = MAX_TOGETHER_BYTES) -> None:
        self._total_bytes = total_bytes
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, tenant: str) -> Iterator[Callable[[int], None]]:
        """Give a function that takes so many bytes more until the block ends.

        Raises:
            Overloaded: From that function, if there is no room.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            self._held[tenant] += size
            taken += size
            if self._held[tenant] > self._total_bytes - self._held.total():
                raise Overloaded(
                    "too many bodies are being received at once; send it again, or smaller batches", 1, reason="memory"
                )

        try:
            yield take
        finally:
            self._held[tenant] -= taken
            if not self._held[tenant]:
                del self._held[tenant]


async def collect(
    chunks: AsyncIterable[bytes],
    limit: int = MAX_BODY_BYTES,
    *,
    declared_bytes: int = 0,
    take: Callable[[int], None] = lambda _size: None,
) -> bytes:
    """Return a body as sent.

    Args:
        chunks: The body as it arrives.
        limit: Bytes it may have.
        take: Is told of each chunk's length; what it raises ends the reading.
        declared_bytes: Its Content-Length, so that a body known to be too long is not read at all; 0 if unknown.

    Raises:
        BodyTooLarge: As soon as it is known to be longer than ``limit``; the rest is not read.
    """
    if declared_bytes > limit:
        raise _too_large("is longer than", limit)
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise _too_large("is longer than", limit)
        take(len(chunk))
        parts.append(chunk)
    return b"".join(parts)


def decompress(body: bytes, content_encoding: str | None, limit: int = MAX_BODY_BYTES) -> bytes:
    """Return what was sent before its client compressed it: identity, gzip, deflate (zlib or raw) or zstd.

    Takes time in proportion to the result and releases the GIL meanwhile; long bodies belong in a thread.

    Args:
        body: The body as sent.
        content_encoding: The header; None, empty and ``identity`` mean plain.
        limit: Bytes the result may have.

    Raises:
        UnsupportedEncoding: If the header names another encoding.
        BodyTooLarge: If the result is longer than ``limit``.
        BadInput: If the body is damaged or ends early.
    """
    encodings = [name.strip().lower() for name in (content_encoding or "").split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    for name in encodings:
        if name not in _DECODERS:
            raise UnsupportedEncoding(
                f'cannot decode Content-Encoding "{name[:32]}"; expected one of identity, gzip, deflate, zstd'
            )
    if len(encodings) > _MAX_ENCODINGS:
        raise UnsupportedEncoding(f"the body is encoded {len(encodings)} times; expected at most {_MAX_ENCODINGS}")
    for name in reversed(encodings or [""]):
        actual = _looks_like(body) or ("deflate" if name == "deflate" and not _is_text(body) else "")
        if actual:
            body = _DECODERS[actual](body, limit)
        elif name and body and not _is_text(body):
            raise BadInput(f"the body is marked as {name} but is not; send it plain or compress it")
    if len(body) > limit:
        raise _too_large("is longer than", limit)
    return body


def _looks_like(body: bytes) -> str:
    """Return the encoding that the first bytes tell, empty if they tell none."""
    if body.startswith(_GZIP):
        return "gzip"
    return "zstd" if body.startswith(_ZSTD) else ""


def _is_text(body: bytes) -> bool:
    """Tell whether a body marked as compressed starts like JSON."""
    return body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b"")


def _too_large(how: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body {how} {limit} bytes; send smaller batches")


def _inflate(body: bytes, limit: int, name: str, wbits: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest = body
    try:
        while rest:
            inflater = zlib.decompressobj(wbits)
            while not inflater.eof:
                part = inflater.decompress(rest, _CHUNK)
                size += len(part)
                if size > limit:
                    raise _too_large("decompresses to more than", limit)
                parts.append(part)
                rest = inflater.unconsumed_tail
                if not part and not rest and not inflater.eof:
                    raise BadInput(f"the body ends in the middle of its {name} data")
            rest = inflater.unused_data.lstrip(b"\0")  # some clients pad
            if rest and (wbits != 31 or not rest.startswith(_GZIP)):
                raise BadInput(f"the body goes on after the end of its {name} data")
    except zlib.error as exc:
        raise BadInput(f"the body cannot be decompressed as {name}: {exc}") from exc
    return b"".join(parts)


def _gunzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, limit, "gzip", 31)


def _undeflate(body: bytes, limit: int) -> bytes:
    # "deflate" is zlib by the standard and raw with some clients.
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] * 256 + body[1]) % 31 == 0
    return _inflate(body, limit, "deflate", 15 if is_zlib else -15)


def _unzstd(body: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    size = at = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
    try:
        while at < len(body):
            frame = decompressor.decompressobj()
            while not frame.eof:
                if at >= len(body):
                    raise BadInput("the body ends in the middle of its zstd data")
                # Four bytes may become 128 KiB, and the decoder returns all at once: feed it little.
                part = frame.decompress(body[at : at + _ZSTD_FEED])
                at += _ZSTD_FEED
                size += len(part)
                if size > limit:
                    raise _too_large("decompresses to more than", limit)
                parts.append(part)
            at = min(at, len(body)) - len(frame.unused_data)
    except zstandard.ZstdError as exc:
        raise BadInput(f"the body cannot be decompressed as zstd: {exc}") from exc
    return b"".join(parts)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _undeflate,
    "zstd": _unzstd,
}
