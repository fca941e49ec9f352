"""Context: which task is running here, over threads and asyncio.

::

    with shippers.task("billing.charge", id=charge.id, report=True):
        log.info("charging %s", charge)  # carries task.name and task.id


    @shippers.task("mail.send", report=True)  # each call is a run with an id of its own
    async def send(mail): ...


    @shippers.task("report.rows", report=True)  # the run lasts as long as the iteration
    def rows():
        yield ...

The task lives in a ``contextvars.ContextVar``: every asyncio task inherits it, ``asyncio.to_thread``
carries it. A new thread or a pool's worker starts without it, so wrap the function that it runs:
``pool.submit(shippers.carry(work), item)``, ``Thread(target=shippers.carry(work))``,
``loop.run_in_executor(None, shippers.carry(work))``. Nothing is patched.

With ``report=True`` a run announces itself: ``task.started``, then ``task.succeeded``,
``task.failed`` or ``task.cancelled`` with its duration and, if it failed, the exception. The
reports leave through the shipper of the first ``LogHandler`` or ``LoguruSink`` that is open
(``assembly.py`` registers it here), and are not printed to the application's own log. Without an
open shipper nothing is reported.

What always holds: an exception passes through untouched, and nothing here raises one of its own.

Not here: how a report is sent (batcher.py).
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


class _Run(dict[str, Any]):
    """The ``task.*`` fields of one run, the task it is of, and the run around it in its context."""

    __slots__ = ("outer", "started_ns", "task")

    def __init__(self, of: task, outer: _Run | None) -> None:
        super().__init__()
        self.task = of
        self.outer = outer
        self.started_ns = of._ns()


_running: ContextVar[Optional[_Run]] = ContextVar("shippers_task", default=None)

current_fields: Callable[[], Optional[Mapping[str, Any]]] = _running.get
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

    One object may be entered again and again, also by several threads or asyncio tasks at once:
    each entry is a run of its own. The run of a generator, plain or async, begins with its first
    step and ends with its last; between the steps its caller is outside the run. One that its
    caller gives up half-way is cancelled.

    Args:
        name: What the task is called; few distinct names ("billing.charge", never "charge 17").
        id: Which run this is; None makes a new UUID for each.
        report: Whether to send records when the run starts and ends.
        attempt: Which attempt this is, from 1.
        max_attempts: How many there are at most.
        queue: The queue that the run came from.
        fields: More fields of the run by their ECS names, such as ``{"task.type": "cron"}``.
        clock: The time in seconds since 1970, for simulations and tests; None is the real time.
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
        self._given_id = id
        self._last_id: str | None = None
        self._report = report
        self._given: dict[str, Any] = {
            "task.attempt": attempt,
            "task.max_attempts": max_attempts,
            "task.queue": queue,
            **(fields or {}),
        }
        self._open: dict[int, _Run] = {}  # entered and not left

    @property
    def id(self) -> str | None:
        """The id of the run: that entered here (in this thread or asyncio task), else the last entered; or None."""
        run = self._innermost()
        return self._last_id if run is None else run["task.id"]

    def __enter__(self) -> task:
        run = self._begin()
        self._open[id(run)] = run
        _running.set(run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        run = self._innermost()
        if run is not None:
            self._open.pop(id(run), None)
            _running.set(run.outer)
        elif self._open:
            # Left in another context than entered (a fixture, a generator closed elsewhere): nothing to restore here.
            run = self._open.popitem()[1]
        else:
            return
        self._end(run, exc)

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
        """Make each call of ``function``, plain or async, generator or not, a run of this task."""
        wrapped: Callable[..., Any]
        if inspect.isasyncgenfunction(function):

            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                steps = _Steps(self)
                try:
                    generator = function(*args, **kwargs)
                    resume, value = generator.asend, None
                    while True:
                        with steps:
                            item = await resume(value)
                        try:
                            value = yield item
                            resume = generator.asend
                        except GeneratorExit:
                            with steps:
                                await generator.aclose()
                            raise
                        except BaseException as exc:
                            resume, value = generator.athrow, exc
                except StopAsyncIteration:
                    steps.end(None)
                except BaseException as exc:
                    steps.end(exc)
                    raise

        elif inspect.isgeneratorfunction(function):

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                steps = _Steps(self)
                try:
                    generator = function(*args, **kwargs)
                    resume, value = generator.send, None
                    while True:
                        with steps:
                            item = resume(value)
                        try:
                            value = yield item
                            resume = generator.send
                        except GeneratorExit:
                            with steps:
                                generator.close()
                            raise
                        except BaseException as exc:
                            resume, value = generator.throw, exc
                except StopIteration as stop:
                    steps.end(None)
                    return stop.value
                except BaseException as exc:
                    steps.end(exc)
                    raise

        elif inspect.iscoroutinefunction(function):

            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        else:

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return cast(F, functools.wraps(function)(wrapped))

    def _innermost(self) -> _Run | None:
        """Return the innermost run of this task in the present context."""
        run = _running.get()
        while run is not None and run.task is not self:
            run = run.outer
        return run

    def _begin(self) -> _Run:
        outer = _running.get()
        run = _Run(self, outer)
        run["task.name"] = _text(self.name)[:200]
        run["task.id"] = self._last_id = uuid.uuid4().hex if self._given_id is None else _text(self._given_id)
        run.update((key, _plain(value)) for key, value in self._given.items() if value is not None)
        if outer is not None:
            run.setdefault("task.parent.id", outer["task.id"])
            run.setdefault("task.root.id", outer.get("task.root.id") or outer["task.id"])
        if self._report:
            _send(run, "started", "info", self._clock, None, None)
        return run

    def _end(self, run: _Run, exc: BaseException | None) -> None:
        if self._report:
            status, level = _outcome(exc)
            _send(run, status, level, self._clock, self._ns() - run.started_ns, exc)

    def _ns(self) -> int:
        return time.monotonic_ns() if self._clock is None else round(self._clock() * 1e9)


class _Steps:
    """The run of a generator: inside ``with`` for each step, and its caller outside it in between."""

    def __init__(self, of: task) -> None:
        self._run = self._inner = of._begin()

    def __enter__(self) -> None:
        self._token: Token[Optional[_Run]] = _running.set(self._inner)

    def __exit__(self, *_: object) -> None:
        # Tasks that the generator has entered itself are still entered at its next step.
        self._inner = _running.get() or self._run
        try:
            _running.reset(self._token)
        except ValueError:
            pass  # its event loop is gone, and it is closed in another context: nothing to restore there

    def end(self, exc: BaseException | None) -> None:
        self._run.task._end(self._run, exc)


def _outcome(exc: BaseException | None) -> tuple[str, str]:
    if exc is None or (isinstance(exc, SystemExit) and (exc.code is None or (type(exc.code) is int and exc.code == 0))):
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
