"""Connections: who stalls in a request is left, and nobody else is.

Not here: offers of HTTP/2 (tests/e2e/test_bad_input.py).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from logsvc.api.connections import STALLED_AFTER_S, HttpProtocol

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


class Loop:
    """A loop whose time only passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        heapq.heappush(self._due, (self.now + delay, next(self._serial), call))
        return asyncio.TimerHandle(self.now + delay, call, (), self)  # type: ignore[arg-type]

    def create_task(self, coroutine: Coroutine[Any, Any, None], **_: object) -> asyncio.Future[None]:
        coroutine.close()  # what the application does is said by the test
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = end


class Transport(asyncio.Transport):
    """A transport that remembers whether it was left."""

    is_left = False

    def abort(self) -> None:
        self.is_left = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _application(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.fixture
def parts() -> tuple[Loop, HttpProtocol, Transport]:
    loop, transport = Loop(), Transport()
    config = uvicorn.Config(_application, interface="asgi3", log_config=None)
    protocol = HttpProtocol(config, ServerState(), {}, loop)
    protocol.connection_made(transport)
    return loop, protocol, transport


@pytest.mark.parametrize("begun", [b"", HEAD[:20], HEAD, HEAD + b"1234"])
def test_a_client_that_stalls_is_left(parts: tuple[Loop, HttpProtocol, Transport], begun: bytes) -> None:
    loop, protocol, transport = parts
    protocol.data_received(begun)
    loop.pass_time(STALLED_AFTER_S - 1)
    assert not transport.is_left
    loop.pass_time(STALLED_AFTER_S / 4 + 1)
    assert transport.is_left


def test_a_slow_client_is_waited_for(parts: tuple[Loop, HttpProtocol, Transport]) -> None:
    loop, protocol, transport = parts
    for byte in HEAD + b"123456789":
        protocol.data_received(bytes([byte]))
        loop.pass_time(STALLED_AFTER_S - 1)
    assert not transport.is_left


def test_an_answer_may_take_its_time(parts: tuple[Loop, HttpProtocol, Transport]) -> None:
    loop, protocol, transport = parts
    protocol.data_received(HEAD + b"1234567890")
    loop.pass_time(100 * STALLED_AFTER_S)
    assert not transport.is_left
    protocol.cycle.response_complete = True
    loop.pass_time(STALLED_AFTER_S / 2)
    assert not transport.is_left


def test_a_client_that_we_do_not_read_from_does_not_stall(parts: tuple[Loop, HttpProtocol, Transport]) -> None:
    loop, protocol, transport = parts
    protocol.data_received(HEAD.replace(b"10", b"1000000") + b"x" * 200_000)
    assert protocol.flow.read_paused
    loop.pass_time(10 * STALLED_AFTER_S)
    assert not transport.is_left
