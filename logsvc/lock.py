"""Lock: one ``serve`` per data directory, and one command at a time where several would write the same files.

Two processes appending to one journal would destroy it. The lock is the kernel's (``flock``) on
the file ``lock`` in the data directory, so it ends with its process, however that ends; the file's
text only names the holder for the message that a second process gets. The file is never removed:
removing it would let two processes lock two different files of one name.

Not here: locks between threads.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from logsvc.errors import DataDirectoryLocked, LogsvcError, SettingsError

_FILE = "lock"


def make_data_dir(data_dir: Path) -> None:
    """Make the directory, for its owner alone, unless it is there.

    Raises:
        SettingsError: If that cannot be.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise _unusable(data_dir, exc) from exc


def _unusable(data_dir: Path, exc: OSError) -> SettingsError:
    return SettingsError(
        f"cannot use {data_dir} as the data directory: {exc.strerror or exc}; "
        "set LOGSVC_DATA_DIR to a directory in which this user may write"
    )


@contextmanager
def held_alone(fd: int, busy: LogsvcError) -> Iterator[None]:
    """Hold what a descriptor has open for the block, then close it.

    Raises:
        LogsvcError: ``busy``, if another process holds it.
    """
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise busy from exc
        yield
    finally:
        os.close(fd)


class DataDirectoryLock:
    """Held from ``acquire`` until ``release``, or until the process ends; a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, data_dir: Path, name: str = "logsvc serve") -> DataDirectoryLock:
        """Take the lock for a process called ``name``, creating the directory if need be.

        Raises:
            DataDirectoryLocked: If another process holds it; names that process.
            SettingsError: If there can be no such directory, or nothing can be written there.
        """
        make_data_dir(data_dir)
        path = data_dir / _FILE
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise _unusable(data_dir, exc) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(fd, 1024, 0).decode("utf-8", "replace").strip()
            os.close(fd)
            raise DataDirectoryLocked(str(data_dir), holder or "another process") from exc
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{name}, process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode(), 0)
        return cls(fd)

    def release(self) -> None:
        """Give the lock back; idempotent."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DataDirectoryLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
