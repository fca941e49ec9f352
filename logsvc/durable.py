"""Durable: writing so that it survives a power cut.

What always holds: when a function here returns, the bytes, or the name, are on the disk as far as
the kernel can tell; ``replace`` leaves the old content or the new, never half of either.

Not here: what is written (journal.py, indexer.py, deadletters.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from logsvc import faults


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``; a single ``write`` may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(fd: int) -> None:
    """Return when what was written to ``fd`` survives a power cut."""
    if faults.is_told:
        faults.fail_fsync(fd)
    # fdatasync also makes a changed length durable, which is all that a reader needs.
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(path: Path) -> None:
    """Return when the names in ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if faults.is_told:
            faults.fail_fsync(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_aside(path: Path, data: bytes) -> Path:
    """Write ``data`` durably to a file beside ``path`` and return that; rename it over ``path`` next."""
    aside = path.with_name(path.name + ".new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        sync(fd)
    finally:
        os.close(fd)
    return aside


def replace(path: Path, data: bytes) -> None:
    """Give ``path`` the content ``data``, wholly or not at all."""
    write_aside(path, data).replace(path)
    sync_directory(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Add ``line`` and a line end to the file at ``path``, made for its owner alone if missing."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, line + b"\n")
        sync(fd)
    finally:
        os.close(fd)
