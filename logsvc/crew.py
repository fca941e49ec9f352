"""Crew: normalises slices of records in processes of their own, beside the one that serves.

Masking and fingerprinting is Python, and so is handing records to the index; in one interpreter
they take turns, whatever the number of cores. So large slices go through a pipe to a process that
does nothing else; small ones are not worth the way and are done in a thread here.

What always holds:

- A slice is normalised exactly once as far as the caller can tell: if its process ends or does not
  answer, it is done here, and a new process takes the next ones.
- At most one slice a process is under way; others wait for it, in bounded threads of their own, and in the
  order in which they came.
- The processes end with this one, also when this one is killed: their pipe is closed then.

Not here: what normalising means (normaliser.py).
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import msgspec
from loguru import logger

from logsvc.normaliser import Item, ItemResult, Normaliser, Origin, Tally
from logsvc.records import Entry

MIN_ITEMS = 100
"""Smaller slices are done in a thread here."""

_ANSWER_S = 60.0  # a slice takes a tenth of a second; beyond this its process hangs
_END_S = 2.0  # to end by itself once its pipe is closed
_RESTART_S = 1.0  # between two starts


class _Outcome(msgspec.Struct, array_like=True, gc=False):
    """What a process answers."""

    results: list[ItemResult]
    entries: list[Entry]
    flagged: int
    redactions: int
    dropped_fields: int
    dropped: dict[str, int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Outcome).decode

T = TypeVar("T")
Outcome = tuple[list[ItemResult], list[Entry], Tally]


class Crew:
    """Normalises off the event loop, and off this interpreter where it pays.

    Args:
        user_key: Secret with which users' ids are hashed; the same on every node.
        processes: How many processes to start when the first large slice comes; 0 does all here.
    """

    def __init__(self, user_key: bytes, processes: int) -> None:
        self._normaliser = Normaliser(user_key)
        self._members = [_Member(user_key) for _ in range(processes)]
        self._lock = threading.Lock()
        self._idle = deque(self._members)
        self._waiting: deque[Future[_Member]] = deque()
        self._threads = ThreadPoolExecutor(max(2, processes + 1), "normalise")

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in one of the crew's threads and await its result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def normalise(self, items: Sequence[Item], origin: Origin) -> Outcome:
        """Do as ``Normaliser.normalise``; waits for a process, so large slices belong into ``run``."""
        if not self._members or len(items) < MIN_ITEMS:
            return self._normaliser.normalise(items, origin)
        with self._member() as member:
            outcome = member.normalise(items, origin)
        return outcome or self._normaliser.normalise(items, origin)

    @contextmanager
    def _member(self) -> Iterator[_Member]:
        """Hold a process for the block.

        It is handed to the thread that waits longest: from a queue it would go to whoever asks in that moment, which
        is the thread that just gave it back, and another one could wait for half a minute.
        """
        place: Future[_Member] = Future()
        with self._lock:
            self._waiting.append(place)
            self._hand_over()
        member = place.result()
        try:
            yield member
        finally:
            with self._lock:
                self._idle.append(member)
                self._hand_over()

    def _hand_over(self) -> None:
        while self._idle and self._waiting:
            self._waiting.popleft().set_result(self._idle.popleft())

    def close(self) -> None:
        """End the threads and the processes; idempotent."""
        self._threads.shutdown()
        for member in self._members:
            member.close()


class _Member:
    """One process and this end of its pipe; used by one thread at a time."""

    def __init__(self, user_key: bytes) -> None:
        self._user_key = user_key
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._is_ready = False
        self._not_before = 0.0  # monotonic

    def normalise(self, items: Sequence[Item], origin: Origin) -> Outcome | None:
        """Return what the process made of a slice; None if it is still starting, or has ended."""
        if self._pipe is None and not self._start():
            return None
        pipe = self._pipe
        assert pipe is not None
        try:
            if not self._is_ready:
                # Until it has read its modules, work is done here rather than waited for.
                if not pipe.poll(0):
                    return None
                pipe.recv_bytes()
                self._is_ready = True
            pipe.send_bytes(pickle.dumps(([_plain(item) for item in items], origin), pickle.HIGHEST_PROTOCOL))
            if not pipe.poll(_ANSWER_S):
                raise TimeoutError(f"no answer within {_ANSWER_S:g} s")
            answer = _decode(pipe.recv_bytes())
        except (EOFError, OSError, TimeoutError, msgspec.MsgspecError) as exc:
            logger.warning("a process that normalises failed ({!r}); its records are done here", exc)
            self.close()
            return None
        tally = Tally(answer.flagged, answer.redactions, answer.dropped_fields, Counter(answer.dropped))
        return answer.results, answer.entries, tally

    def _start(self) -> bool:
        if time.monotonic() < self._not_before:
            return False
        self._not_before = time.monotonic() + _RESTART_S
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-m", "logsvc.crew", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            except OSError as exc:
                logger.warning("cannot start a process that normalises: {}", exc)
                return False
            self._pipe = Connection(ours.detach())
        with suppress(OSError):
            # Through the pipe, since anybody may read a command line.
            self._pipe.send_bytes(self._user_key)
        return True

    def close(self) -> None:
        """End the process; it also ends by itself when this one does."""
        self._is_ready = False
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _plain(item: Item) -> Item:
    return bytes(item) if isinstance(item, msgspec.Raw) else item


def work(pipe: Connection) -> None:
    """Normalise for the process at the other end of ``pipe``, until it is gone."""
    # A terminal or systemd signals the whole group; the service has slices to finish, and decides when this ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        normaliser = Normaliser(pipe.recv_bytes())
        pipe.send_bytes(b"ready")
        while True:
            items, origin = pickle.loads(pipe.recv_bytes())  # noqa: S301 - written by our own parent
            results, entries, tally = normaliser.normalise(items, origin)
            counts = (tally.flagged, tally.redactions, tally.dropped_fields, dict(tally.dropped))
            pipe.send_bytes(_encode(_Outcome(results, entries, *counts)))


if __name__ == "__main__":
    work(Connection(int(sys.argv[1])))
