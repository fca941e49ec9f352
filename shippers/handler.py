"""Handler: the standard library's ``logging``, shipped.

::

    logging.getLogger().addHandler(shippers.LogHandler(service="shop", environment="production"))

or, in one line with the root logger's level, ``shippers.setup(service="shop")``. A handler for
``logging.config.dictConfig`` is ``{"class": "shippers.LogHandler", "service": "shop"}``.

Not here: what is sent of a record (record.py), how (batcher.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import get_ident
from typing import Any

from shippers.assembly import AUTO, SpoolDir, open_batcher
from shippers.batcher import SMALL_CHARS, Settings, own_threads
from shippers.record import capture_logging, completed
from shippers.transport import Transport


class LogHandler(logging.Handler):
    """A ``logging.Handler`` that ships records to the service: it never raises and never waits for it.

    The message is rendered and the exception formatted in the calling thread; all else happens
    in the background. ``extra=`` keys become fields of the record (``trace_id``, ``tenant``,
    ``duration_ms``) or labels. Formatters are not used: the message is sent as it is.

    Args:
        url: Address of the service; None means ``LOGSVC_URL``.
        api_key: Key with the scope ``ingest``; None means ``LOGSVC_API_KEY``.
        service: Name of the program; None means ``unknown_service:PROGRAM``.
        environment: Such as ``production``.
        version: Release of the program.
        labels: More about this process, for each record.
        level: Records below it are ignored.
        transport: Used instead of HTTP to ``url``; ``shippers.testing.CapturingTransport`` in tests.
        spool_dir: Where batches wait while the service is away; None keeps them in memory.
        settings: Bounds and intervals, such as ``Settings(when_full="block")``.

    Raises:
        ValueError: If address or key are missing or cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        service: str | None = None,
        environment: str | None = None,
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        level: int | str = logging.NOTSET,
        transport: Transport | None = None,
        spool_dir: SpoolDir = AUTO,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(level)  # first: a level that is none must leave nothing behind
        self.batcher = open_batcher(
            url,
            api_key,
            service=service,
            environment=environment,
            version=version,
            labels=labels,
            transport=transport,
            spool_dir=spool_dir,
            settings=settings,
        )

    def handle(self, record: logging.LogRecord) -> bool:
        """Ship ``record`` unless a filter says no; takes no lock, since the queue needs none."""
        try:
            if self.filters:
                passed: Any = self.filter(record)
                if not passed:
                    return False
                if isinstance(passed, logging.LogRecord):  # from Python 3.12 a filter may replace it
                    record = passed
            try:
                # It says which thread made it, perhaps another than this, unless logging.logThreads is off.
                if (record.thread or get_ident()) in own_threads:
                    return False
                item = capture_logging(record)
            except AttributeError:
                item = capture_logging(completed(record))  # from a factory or a sender with ideas of its own
            # What put() does in the common case: calling it would cost a tenth of the whole.
            batcher = self.batcher
            if (
                len(batcher.queue) < batcher.wake_at
                and item[10] is None
                and item[12] is None
                and len(item[9]) <= SMALL_CHARS
            ):
                batcher.queue.append(item)
            else:
                batcher.put(item)
        except Exception as exc:  # such as RecursionError
            self.batcher.count_failed(exc)
            return False
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Ship ``record``."""
        self.handle(record)

    def flush(self, timeout_s: float | None = None) -> bool:  # type: ignore[override]
        """Wait until all records so far are acknowledged or spooled; False after ``timeout_s``.

        None means ``Settings.exit_timeout_s``.
        """
        return self.batcher.flush(timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Send or spool what waits, within ``timeout_s`` (None: ``Settings.exit_timeout_s``)."""
        self.batcher.close(timeout_s)
        super().close()


def setup(
    url: str | None = None,
    api_key: str | None = None,
    *,
    service: str | None = None,
    environment: str | None = None,
    version: str | None = None,
    level: int | str = logging.INFO,
    settings: Settings | None = None,
) -> LogHandler:
    """Ship everything that is logged from ``level`` on: add a ``LogHandler`` to the root logger.

    Handlers that are there stay. Returns the handler, for ``flush`` and ``close``.
    """
    handler = LogHandler(
        url, api_key, service=service, environment=environment, version=version, level=level, settings=settings
    )
    root = logging.getLogger()
    root.addHandler(handler)
    if root.getEffectiveLevel() > handler.level:
        root.setLevel(handler.level)
    return handler
