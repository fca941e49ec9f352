"""Errands: what a command asks of the service that holds the data directory.

The journal and the store's writing belong to one process. A command that needs them leaves a
request, a small file, in a folder of the data directory; the service carries it out and leaves the
answer beside it. Who may write to the data directory needs no key.

What always holds: a request that the service did not get to stays, and is taken up at its next
start; an answer is there wholly or not at all.

Not here: what is asked (replay.py, backup.py).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from loguru import logger

from logsvc import durable
from logsvc.errors import BadInput, LogsvcError, Overloaded, StoreUnavailable

_POLL_S = 0.5

Request = TypeVar("Request", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)


class _Outcome(msgspec.Struct):
    answer: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    is_bad_input: bool = False  # the error is about what was asked for


class Errands(Generic[Request]):
    """Looks for requests in ``directory`` and lets ``run`` carry them out, one at a time.

    ``run`` raises ``Overloaded`` for a request that is to stay for the next start.
    """

    def __init__(self, directory: Path, request: type[Request], run: Callable[[Request], msgspec.Struct]) -> None:
        self._directory = directory
        self._request = request
        self._run = run
        self.closing = threading.Event()
        """Set once ``close`` was called: what runs long should end."""
        self._thread = threading.Thread(target=self._watch, name=directory.name, daemon=True)

    def start(self) -> None:
        """Begin to look for requests."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.glob("*.answer*"):
            path.unlink(missing_ok=True)  # whoever asked is gone
        self._thread.start()

    def close(self) -> None:
        """Finish the errand in hand and stop; a request not yet answered is taken up at the next start."""
        self.closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self.closing.wait(_POLL_S):
            for path in sorted(self._directory.glob("*.request")):
                try:
                    answer = self._run(msgspec.json.decode(path.read_bytes(), type=self._request))
                    outcome = _Outcome(msgspec.Raw(msgspec.json.encode(answer)))
                except Overloaded:
                    return  # the service is ending; the request stays
                except Exception as exc:  # noqa: BLE001 - whoever asked gets it as the answer
                    outcome = _Outcome(error=str(exc) or type(exc).__name__, is_bad_input=isinstance(exc, BadInput))
                logger.info("{}: {}: {}", self._directory.name, path.name, outcome.error or "done")
                # Who finds the answer finds nothing else left.
                aside = durable.write_aside(path.with_suffix(".answer"), msgspec.json.encode(outcome))
                path.unlink(missing_ok=True)
                aside.rename(path.with_suffix(".answer"))


def ask(directory: Path, request: msgspec.Struct, answer: type[Answer], *, wait_s: float, holder: str) -> Answer:
    """Leave ``request`` in ``directory`` for the service and return its answer.

    Args:
        directory: The errands' folder of the data directory.
        request: What is asked.
        answer: What it is answered with.
        wait_s: How long to wait; the service goes on without us.
        holder: Who serves, for the message.

    Raises:
        StoreUnavailable: If the service does not answer in time.
        BadInput: If it cannot be done as it was asked for.
        LogsvcError: If it cannot be done; the message says why.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{time.time_ns():020d}-{secrets.token_hex(4)}.request"
    answered = path.with_suffix(".answer")
    durable.replace(path, msgspec.json.encode(request))
    deadline = time.monotonic() + wait_s
    pause = threading.Event()
    while not answered.exists():
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"{holder} has not answered within {wait_s} s; the request {path} stays and will be carried out"
            )
        pause.wait(0.05)
    outcome = msgspec.json.decode(answered.read_bytes(), type=_Outcome)
    answered.unlink()
    if outcome.error:
        raise (BadInput if outcome.is_bad_input else LogsvcError)(outcome.error)
    return msgspec.json.decode(outcome.answer, type=answer)
