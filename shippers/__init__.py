"""Shippers: logs from Python programs and files to logsvc, without the program noticing.

::

    import logging, shippers

    shippers.setup(service="shop")  # or
    logging.getLogger().addHandler(shippers.LogHandler(service="shop"))  # or
    loguru.logger.add(shippers.LoguruSink(service="shop"))

    with shippers.task("billing.charge", report=True):
        ...

Address and key come from ``LOGSVC_URL`` and ``LOGSVC_API_KEY`` unless given. Files are followed by
``python -m shippers.agent``.

What always holds: standard library only, Python 3.9 and later; no call raises into the program or
waits for the network; importing starts nothing and loads nothing before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shippers.batcher import Settings
    from shippers.context import carry, task
    from shippers.handler import LogHandler, setup
    from shippers.sink import LoguruSink

__version__ = "0.1.0"
__all__ = ["LogHandler", "LoguruSink", "Settings", "carry", "setup", "task"]

_HOMES = {
    "LogHandler": "handler",
    "LoguruSink": "sink",
    "Settings": "batcher",
    "carry": "context",
    "setup": "handler",
    "task": "context",
}


def __getattr__(name: str) -> Any:
    # On use, because the service imports shippers.redact and must not get the rest with it.
    if name not in _HOMES:
        raise AttributeError(f"module 'shippers' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"shippers.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
