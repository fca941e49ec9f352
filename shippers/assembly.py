"""Assembly: the parts put together, the same way for handler, sink and agent.

Not here: what the parts do (batcher.py, transport.py, spool.py, record.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Union

from shippers import context
from shippers.batcher import Batcher, Settings
from shippers.record import Origin, default_service
from shippers.spool import default_root
from shippers.transport import HttpTransport, Transport

SpoolDir = Union[str, "os.PathLike[str]", None]
AUTO = "auto"


def open_batcher(
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
) -> Batcher:
    """Return a batcher that sends to the service, ready for records and, until closed, for reports of task runs.

    Args:
        url: Address of the service; None means ``LOGSVC_URL``.
        api_key: Key with the scope ``ingest``; None means ``LOGSVC_API_KEY``.
        service: Name of the program; None means ``unknown_service:PROGRAM``.
        environment: Such as ``production``.
        version: Release of the program.
        labels: More about this process, for each record.
        transport: Used instead of HTTP to ``url``.
        spool_dir: Where batches wait while the service is away; ``auto`` is a directory of the user's
            (none with a ``transport`` of your own, or where the user has no home); None keeps them in memory.
        settings: Bounds and intervals.

    Raises:
        ValueError: If address or key are missing or cannot be used.
    """
    settings = settings or Settings()
    service = service or default_service()
    root: Path | None = None
    if spool_dir != AUTO:
        root = None if spool_dir is None else Path(spool_dir)
    elif transport is None:
        root = default_root()
    if transport is None:
        url = url or os.environ.get("LOGSVC_URL")
        api_key = api_key or os.environ.get("LOGSVC_API_KEY")
        if not url:
            raise ValueError(
                "no address to send logs to; pass url= or set LOGSVC_URL, such as https://logs.example:8080"
            )
        if not api_key:
            raise ValueError("no key to send logs with; pass api_key= or set LOGSVC_API_KEY (`logsvc keys create`)")
        transport = HttpTransport(url, api_key, settings.timeout_s)
    if root is not None:
        # One program's processes share a directory, so that one adopts what another left. Neither key nor
        # address is part of the name: corrected, they must deliver what the wrong ones could not. So what
        # waits goes wherever this service and environment are sent next; README says so.
        place = f"{service}\0{environment or ''}"
        digest = hashlib.blake2b(place.encode("utf-8", "replace"), digest_size=6).hexdigest()
        root = root / f"{re.sub(r'[^A-Za-z0-9._-]', '_', service)[:64]}-{digest}"
    origin = Origin(service, environment, version, labels=dict(labels or {}))
    batcher = Batcher(transport, origin, spool_root=root, settings=settings)
    context.add_reporter(batcher.put)
    return batcher
