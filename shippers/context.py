"""Context: which task is running here, over threads and asyncio.

::

    with shippers.task("billing.charge", id=charge.id, report=True):
        log.info("charging %s", charge)  # carries task.name and task.id


    @shippers.task("mail.send", report=True)  # each call is a run with an id of its own
    async def send(mail): ...

The task lives in a ``contextvars.ContextVar``: every asyncio task inherits it, ``asyncio.to_thread``
carries it. A new thread or a pool's worker starts without it, so wrap the function that it runs:
``pool.submit(shippers.carry(work), item)``, ``Thread(target=shippers.carry(work))``,
``loop.run_in_executor(None, shippers.carry(work))``. Nothing is patched.

With ``report=True`` a run announces itself: ``task.started``, then ``task.succeeded``,
``task.failed`` or ``task.cancelled`` with its duration and, if it failed, the exception. The
reports leave through the shipper of the first ``LogHandler`` or ``LoguruSink`` that is open
(``shipper.py`` registers it here), and are not printed to the application's own log. Without an
open shipper nothing is reported.

What always holds: an exception passes through untouched, and nothing here raises one of its own.

Not here: how a report is sent (shipper.py, batcher.py).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar, Token, copy_context
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Callable, Optional, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
Reporter = Callable[["dict[str, Any]"], None]

_fields: ContextVar[Optional[Mapping[str, Any]]] = ContextVar("shippers_task", default=None)

current_fields = _fields.get
"""Return the ``task.*`` fields of the running task, or None outside any; never change them."""

_reporters: list[Reporter] = []


def add_reporter(reporter: Reporter) -> None:
    """Let reports of task runs leave through ``reporter``, unless an earlier one is still there."""
    _reporters.append(reporter)


def remove_reporter(reporter: Reporter) -> None:
    """Take back ``add_reporter``."""
    if reporter in _reporters:
        _reporters.remove(reporter)


def carry(function: Callable[..., R]) -> Callable[..., R]:
    """Return ``function`` bound to the task that is running now, to be called in another thread.

    It may be called any number of times and in several threads at once.
    """
    snapshot = copy_context()

    @functools.wraps(function)
    def carried(*args: Any, **kwargs: Any) -> R:
        # A Context can be entered by one thread at a time, hence the copy.
        return snapshot.copy().run(function, *args, **kwargs)

    return carried


class task:  # noqa: N801 - read as a word: with shippers.task("billing.charge"):
    """A block (``with``, ``async with``) or function (decorator) that is one run of a task.

    Args:
        name: What the task is called; few distinct names ("billing.charge", never "charge 17").
        id: Which run this is; None makes a new UUID for each.
        report: Whether to send records when the run starts and ends.
        attempt: Which attempt this is, from 1.
        max_attempts: How many there are at most.
        queue: The queue that the run came from.
        fields: More fields of the run by their ECS names, such as ``{"task.type": "cron"}``.
        clock: The time in seconds since 1970, for simulations and tests; None is the real time.

    Attributes:
        id: The id of the run, once entered.
    """

    def __init__(
        self,
        name: str,
        *,
        id: object | None = None,
        report: bool = False,
        attempt: int | None = None,
        max_attempts: int | None = None,
        queue: str | None = None,
        fields: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self.name = name
        self.id: str | None = None
        self._given_id = id
        self._report = report
        self._given: dict[str, Any] = {
            "task.attempt": attempt,
            "task.max_attempts": max_attempts,
            "task.queue": queue,
            **(fields or {}),
        }
        self._entered: list[tuple[Token[Optional[Mapping[str, Any]]], Mapping[str, Any], int]] = []

    def __enter__(self) -> task:
        parent = _fields.get()
        self.id = uuid.uuid4().hex if self._given_id is None else _text(self._given_id)
        run: dict[str, Any] = {"task.name": _text(self.name)[:200], "task.id": self.id}
        run.update((key, _plain(value)) for key, value in self._given.items() if value is not None)
        if parent is not None:
            run.setdefault("task.parent.id", parent["task.id"])
            run.setdefault("task.root.id", parent.get("task.root.id") or parent["task.id"])
        self._entered.append((_fields.set(run), run, self._ns()))
        if self._report:
            _send(run, "started", "info", self._clock, None, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._entered:
            return
        token, run, started_ns = self._entered.pop()
        if self._report:
            status, level = _outcome(exc)
            _send(run, status, level, self._clock, self._ns() - started_ns, exc)
        try:
            _fields.reset(token)
        except ValueError:
            # Left in another context than entered (a generator closed elsewhere): nothing to restore there.
            pass

    async def __aenter__(self) -> task:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, exc, trace)

    def __call__(self, function: F) -> F:
        """Make each call of ``function``, plain or async, a run of this task."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                with self._copy():
                    return await function(*args, **kwargs)

            return cast(F, run_async)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._copy():
                return function(*args, **kwargs)

        return cast(F, run)

    def _ns(self) -> int:
        return time.monotonic_ns() if self._clock is None else round(self._clock() * 1e9)

    def _copy(self) -> task:
        return task(self.name, id=self._given_id, report=self._report, fields=self._given, clock=self._clock)


def _outcome(exc: BaseException | None) -> tuple[str, str]:
    if exc is None or (isinstance(exc, SystemExit) and exc.code in (None, 0)):
        return "succeeded", "info"
    if isinstance(exc, (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)):
        return "cancelled", "warn"
    return "failed", "error"


_ECS_OUTCOME = {"succeeded": "success", "failed": "failure", "cancelled": "unknown"}


def _send(
    run: Mapping[str, Any],
    status: str,
    level: str,
    clock: Callable[[], float] | None,
    duration_ns: int | None,
    exc: BaseException | None,
) -> None:
    if not _reporters:
        return
    try:
        message = f"task {run['task.name']} {status}"
        now = datetime.fromtimestamp(time.time() if clock is None else clock(), timezone.utc)
        record: dict[str, Any] = {
            "@timestamp": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}Z",
            "log.level": level,
            "log.logger": "shippers.task",
            "event.kind": "event",
            "event.action": f"task.{status}",
            **run,
            "task.status": status,
        }
        if duration_ns is not None:
            record["event.duration"] = duration_ns
            record["event.outcome"] = _ECS_OUTCOME[status]
            message += f" after {duration_ns / 1e9:.3f} s"
        if exc is not None and status == "failed":
            from shippers import record as records

            kind, text, stack = records.capture_error(exc)
            record.update({"error.type": kind, "error.message": text, "error.stack_trace": stack})
        record["message"] = message
        _reporters[0](record)
    except Exception:
        # The application's task must not fail because its report did; the shipper counts what it drops.
        pass


def _plain(value: object) -> object:
    return value if type(value) in (int, float, str) else _text(value)


def _text(value: object) -> str:
    try:
        return value if type(value) is str else str.__str__(str(value))
    except Exception:
        return f"<{type(value).__name__}>"
