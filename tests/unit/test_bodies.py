"""Bodies: what was compressed is undone, what lies is believed by its bytes, and nothing exceeds its bound."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from logsvc.errors import BadInput, BodyTooLarge, Overloaded, UnsupportedEncoding
from logsvc.protocols.bodies import Room, collect, decompress

BODY = b'{"message":"hello"}\n' * 100


def gzipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)  # the same in every process


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzipped,
    "x-gzip": gzipped,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, BODY),
        ("", BODY),
        ("identity", BODY),
        ("gzip", gzipped(BODY)),
        ("GZIP", gzipped(BODY)),
        ("x-gzip", gzipped(BODY)),
        ("gzip", gzipped(BODY[:60]) + gzipped(BODY[60:])),
        ("gzip", gzipped(BODY) + b"\0" * 8),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("zstd", zstandard.compress(BODY)),
        ("zstd", zstandard.compress(BODY[:60]) + zstandard.compress(BODY[60:])),
        ("gzip, zstd", zstandard.compress(gzipped(BODY))),
    ],
)
def test_every_encoding_is_undone(encoding: str | None, body: bytes) -> None:
    assert decompress(body, encoding) == BODY


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", BODY),
        ("zstd", BODY),
        ("deflate", BODY),
        (None, gzipped(BODY)),
        ("identity", zstandard.compress(BODY)),
        ("gzip", zstandard.compress(BODY)),
        ("deflate", gzipped(BODY)),
    ],
)
def test_a_body_that_lies_about_its_encoding_is_believed_by_its_first_bytes(encoding: str | None, body: bytes) -> None:
    assert decompress(body, encoding) == BODY


@pytest.mark.parametrize("encoding", ["br", "snappy", "gzip, br", "utf-8"])
def test_an_unknown_encoding_is_refused_by_name(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="expected one of identity, gzip, deflate, zstd"):
        decompress(BODY, encoding)


def test_a_body_encoded_over_and_over_is_refused() -> None:
    with pytest.raises(UnsupportedEncoding, match="3 times"):
        decompress(BODY, "gzip, gzip, gzip")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_damaged_body_is_bad_input(encoding: str) -> None:
    whole = COMPRESSORS[encoding](BODY)
    for body in (whole[: len(whole) // 2], whole[:-1], whole + b"garbage", b"\x99\x88\x77"):
        with pytest.raises(BadInput):
            decompress(body, encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_bomb_costs_no_more_than_its_bound(encoding: str) -> None:
    bomb = COMPRESSORS[encoding](b"\0" * 5_000_000)
    with pytest.raises(BodyTooLarge, match="decompresses to more than 1000000 bytes"):
        decompress(bomb, encoding, limit=1_000_000)
    assert len(decompress(bomb, encoding, limit=5_000_000)) == 5_000_000


def test_a_bomb_within_a_bomb_is_caught_at_the_inner() -> None:
    with pytest.raises(BodyTooLarge):
        decompress(gzipped(gzipped(b"\0" * 5_000_000)), "gzip, gzip", limit=1_000_000)


@given(st.binary(max_size=200), st.sampled_from([None, "gzip", "deflate", "zstd", "identity", "gzip, zstd", "br", ","]))
def test_any_bytes_are_a_body_or_bad_input(body: bytes, encoding: str | None) -> None:
    try:
        decompress(body, encoding)
    except BadInput:
        pass


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "zstd"]))
def test_what_was_compressed_comes_back(body: bytes, encoding: str) -> None:
    assert decompress(COMPRESSORS[encoding](body), encoding) == body


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_a_body_is_collected_up_to_its_bound() -> None:
    assert asyncio.run(collect(_chunks(b"ab", b"", b"c"), limit=3)) == b"abc"
    read: list[bytes] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(b"xx")
            yield b"xx"

    with pytest.raises(BodyTooLarge, match="longer than 5 bytes"):
        asyncio.run(collect(endless(), limit=5))
    assert len(read) == 3  # and not read any further


def test_a_tenants_bodies_leave_room_for_those_of_the_next() -> None:
    room = Room(100)
    with room.held("a") as first, room.held("a") as second, room.held("b") as other:
        first(30)
        second(20)
        other(25)
        with pytest.raises(Overloaded, match="smaller batches"), room.held("a") as third:
            third(1)
        with pytest.raises(Overloaded):
            other(1)
    with room.held("a") as again:
        again(50)


def test_a_body_that_finds_no_room_is_read_no_further() -> None:
    read: list[bytes] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            read.append(b"x" * 10)
            yield read[-1]

    room = Room(50)
    with room.held("a") as take, pytest.raises(Overloaded):
        asyncio.run(collect(chunks(), take=take))
    assert len(read) == 3
