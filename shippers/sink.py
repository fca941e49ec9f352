"""Sink: loguru, shipped.

::

    logger.add(shippers.LoguruSink(service="shop", environment="production"), level="INFO")

``enqueue=True`` is not needed, since the sink never waits, and it hides the running task: loguru
then calls the sink in a thread of its own. Loguru's ``format`` and ``diagnose`` do not matter
here: what is sent is the message and the plain traceback, never the values of variables.
``bind``, ``contextualize`` and keyword arguments become fields of the record or labels.

Not here: what is sent of a record (record.py), how (batcher.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import get_ident
from typing import Any

from shippers.assembly import AUTO, SpoolDir, open_batcher
from shippers.batcher import Settings, own_threads
from shippers.record import capture_loguru
from shippers.transport import Transport


class LoguruSink:
    """A sink for ``loguru.logger.add`` that ships records: it never raises and never waits.

    Args:
        url: Address of the service; None means ``LOGSVC_URL``.
        api_key: Key with the scope ``ingest``; None means ``LOGSVC_API_KEY``.
        service: Name of the program; None means ``unknown_service:PROGRAM``.
        environment: Such as ``production``.
        version: Release of the program.
        labels: More about this process, for each record.
        transport: Used instead of HTTP to ``url``; ``shippers.testing.CapturingTransport`` in tests.
        spool_dir: Where batches wait while the service is away; None keeps them in memory.
        settings: Bounds and intervals, such as ``Settings(when_full="block")``.

    Raises:
        ValueError: If address or key are missing or cannot be used.
    """

    # No write() method: loguru would take the sink for a stream and flush it after every line.

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        service: str | None = None,
        environment: str | None = None,
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        spool_dir: SpoolDir = AUTO,
        settings: Settings | None = None,
    ) -> None:
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

    def __call__(self, message: Any) -> None:
        """Ship one loguru message."""
        try:
            record = message.record
            if get_ident() in own_threads or record["thread"].id in own_threads:
                return
            self.batcher.put(capture_loguru(record))
        except Exception as exc:  # such as RecursionError
            self.batcher.count_failed(exc)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all records so far are acknowledged or spooled; False after ``timeout_s``.

        None means ``Settings.exit_timeout_s``.
        """
        return self.batcher.flush(timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Send or spool what waits, within ``timeout_s``; ``logger.remove`` alone does not do that.

        At the exit of the program it happens by itself.
        """
        self.batcher.close(timeout_s)
