"""Spool: batches on disk, waiting until they can be sent.

An application must not lose its logs because the service restarts. A batch is written under a
temporary name, fsynced and renamed, so a reader never sees half a file; a checksum tells what the
disk did to it since. The total never exceeds ``max_bytes``; beyond that the newest batch is
refused. Files come out oldest first.

Two processes never share a directory: each makes its own below ``root`` and holds a lock on it.
What a dead process left is adopted: whoever gets its lock moves its files over. Directories have
mode 0700, files 0600, and what is in them was masked before it came here, and is encrypted if there
is a key (seal.py). A file that cannot be read now (too many open files, a failing disk) is kept.

::

    root/
      1842-9f3c…/               one process: pid and epoch
        lock                    locked while that process lives
        01732…-00000007-512.batch   time in ns, number, records: sorts by age
        01732…-00000003-100.corrupt set aside; the newest few are kept for whoever wants to know

Not here: when to retry (batcher.py), how to send (transport.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Protocol

from shippers.transport import ENCODINGS, Batch

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_MAGIC = b"LSP1"
# magic, encoding, records, key (zero for none), then the BLAKE2b of the sealed body
_HEADER = struct.Struct(">4sBI8s16s")
_NO_KEY = bytes(8)
_SUFFIX = ".batch"
_CORRUPT_KEPT = 16
_LOCK = "lock"


class SpoolError(Exception):
    """A batch was not kept, or cannot be read now; ``reason``: spool_full, disk_full or spool_failed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Seal(Protocol):
    """Turns a body into what stands on disk and back: encryption.

    ``about`` is bound to the body: ``open`` raises ValueError for what ``close`` did not make of both.
    ``key_id`` names the key, in 8 bytes that are not all zero.
    """

    key_id: bytes

    def close(self, body: bytes, about: bytes) -> bytes: ...

    def open(self, sealed: bytes, about: bytes) -> bytes: ...


class _OtherKey(Exception):
    """A batch was sealed with a key that is not ours."""


@dataclass(frozen=True)
class Spooled:
    """A batch together with the file that holds it."""

    batch: Batch
    path: Path
    is_own: bool = True  # made by the process that has the spool; False for an adopted one


class Spool:
    """A bounded, durable queue of batches, owned by one process. Used by one thread at a time.

    Opening takes place at the first use, so that an application whose service is always there
    never touches the disk, except that ``adopt`` looks whether a dead process left something.

    Args:
        root: Directory shared by the processes that send to the same place under the same name.
        max_bytes: Bound on the files of this process.
        owner: Name of this process, unique below ``root``.
        fsync: Whether a batch must survive a power cut (True) or only the death of the process.
        seal: Encryption, if any.
        clock_ns: Unix time in nanoseconds.

    Attributes:
        corrupt_batches: Files set aside because they did not hold what was written.
        corrupt_records: Records that were in them, by their names.
        locked_batches: Files left alone because they were sealed with another key.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int,
        owner: str,
        fsync: bool = True,
        seal: Seal | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.root = root
        self.directory = root / owner
        self.max_bytes = max_bytes
        self.corrupt_batches = 0
        self.corrupt_records = 0
        self.locked_batches = 0
        self._fsync = fsync
        self._seal = seal
        self._clock_ns = clock_ns
        self._lock: IO[bytes] | None = None
        self._number = 0
        self._newest_ns = 0
        self._size_bytes = 0
        self._sizes: dict[str, int] = {}  # name → bytes, of the files that wait
        self._adopted: set[str] = set()  # those among them that another process made

    def __len__(self) -> int:
        """How many batches wait."""
        return len(self._sizes)

    @property
    def size_bytes(self) -> int:
        """Bytes of the batches that wait."""
        return self._size_bytes

    def append(self, batch: Batch) -> None:
        """Keep ``batch`` durably, as the newest.

        Raises:
            SpoolError: If it is not kept; nothing of it remains on disk.
        """
        encoding = ENCODINGS.index(batch.encoding)
        key_id, sealed = _NO_KEY, batch.body
        if self._seal is not None:
            key_id, sealed = self._seal.key_id, self._seal.close(batch.body, _about(encoding, batch.records))
        size = _HEADER.size + len(sealed)
        if self.size_bytes + size > self.max_bytes:
            raise SpoolError("spool_full", f"the spool {self.directory} holds its {self.max_bytes} bytes")
        self._number += 1
        self._newest_ns = max(self._clock_ns(), self._newest_ns + 1)  # in order, though the clock is set back
        name = f"{self._newest_ns:020d}-{self._number:08d}-{batch.records}{_SUFFIX}"
        digest = hashlib.blake2b(sealed, digest_size=16).digest()
        header = _HEADER.pack(_MAGIC, encoding, batch.records, key_id, digest)
        temporary = self.directory / f"{name}.tmp"
        try:
            self._open()
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                file.write(sealed)
                if self._fsync:
                    file.flush()
                    os.fsync(file.fileno())
            os.rename(temporary, self.directory / name)
            if self._fsync:
                fsync_directory(self.directory)
        except OSError as exc:
            for leftover in (temporary, self.directory / name):
                _remove(leftover)
            is_full = exc.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            raise SpoolError("disk_full" if is_full else "spool_failed", f"cannot spool to {temporary}: {exc}") from exc
        self._add(name, size)

    def oldest(self) -> Spooled | None:
        """Return the batch that has waited longest, or None; it stays until ``remove``.

        Files that do not hold what was written, or are gone, are set aside and counted on the way.

        Raises:
            SpoolError: If it cannot be read now.
        """
        while self._sizes:
            name = min(self._sizes)
            path = self.directory / name
            try:
                return Spooled(self._decode(path.read_bytes()), path, name not in self._adopted)
            except (FileNotFoundError, ValueError):
                self._set_aside(path)
            except _OtherKey:
                self.locked_batches += 1
                self._drop(name)
            except OSError as exc:
                raise SpoolError("spool_failed", f"cannot read {path}: {exc}") from exc
        return None

    def remove(self, spooled: Spooled) -> None:
        """Forget a batch that has been sent."""
        self._drop(spooled.path.name)
        _remove(spooled.path)

    def adopt(self) -> int:
        """Take over what dead processes left below ``root``, as far as it fits; return how many batches."""
        adopted = 0
        try:
            others = [entry for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return 0
        for entry in others:
            if entry.name == self.directory.name:
                continue
            try:
                lock = lock_file(Path(entry.path) / _LOCK, create=False)
            except OSError:
                continue
            if lock is None:
                continue  # it lives
            with lock:
                adopted += self._adopt_from(Path(entry.path))
        return adopted

    def close(self) -> None:
        """Give the directory up; what is in it is adopted by the next process, or by this one reopened."""
        lock, self._lock = self._lock, None
        if lock is not None:
            if not self._sizes:
                self._discard(self.directory)
            lock.close()
        self._forget_files()

    def forget(self) -> None:
        """Drop what a fork copied; the directory remains the parent's."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()  # the lock belongs to the open file, which the parent holds too
        self._forget_files()

    def _add(self, name: str, size: int) -> None:
        self._sizes[name] = size
        self._size_bytes += size
        stamp = name.partition("-")[0]
        if stamp.isdigit():
            self._newest_ns = max(self._newest_ns, int(stamp))

    def _drop(self, name: str) -> None:
        self._size_bytes -= self._sizes.pop(name, 0)
        self._adopted.discard(name)

    def _forget_files(self) -> None:
        self._sizes.clear()
        self._adopted.clear()
        self._size_bytes = 0

    def _open(self) -> None:
        if self._lock is not None:
            if _is_at(self._lock, self.directory / _LOCK):
                return
            self._lock.close()  # somebody has cleared the directory away: make it anew
            self._lock = None
        for _ in range(10):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_file(self.directory / _LOCK, create=True)
            if lock is not None:
                if _is_at(lock, self.directory / _LOCK):
                    break
                lock.close()  # an adopter took the directory for abandoned, in the moment before it was locked
        else:
            raise OSError(errno.EBUSY, "the spool directory belongs to another process", str(self.directory))
        self._lock = lock
        for name in os.listdir(self.directory):
            if name.endswith(_SUFFIX) and name not in self._sizes:
                self._add(name, (self.directory / name).stat().st_size)

    def _adopt_from(self, directory: Path) -> int:
        adopted = 0
        try:
            names = sorted(os.listdir(directory))
            for name in names:
                path = directory / name
                if name.endswith(".tmp"):
                    _remove(path)  # never renamed, so never promised
                if not name.endswith((_SUFFIX, ".corrupt")):
                    continue
                self._open()
                if name.endswith(_SUFFIX):
                    size = path.stat().st_size
                    if self.size_bytes + size > self.max_bytes:
                        return adopted
                    target = (
                        name if name not in self._sizes else f"{name[: -len(_SUFFIX)]}-{os.urandom(4).hex()}{_SUFFIX}"
                    )
                    os.rename(path, self.directory / target)
                    self._add(target, size)
                    self._adopted.add(target)
                    adopted += 1
                else:
                    os.replace(path, self.directory / name)
        except OSError:
            return adopted
        self._discard(directory)
        return adopted

    def _discard(self, directory: Path) -> None:
        try:
            if all(name == _LOCK for name in os.listdir(directory)):
                _remove(directory / _LOCK)
                os.rmdir(directory)
        except OSError:
            pass

    def _decode(self, data: bytes) -> Batch:
        if len(data) < _HEADER.size:
            raise ValueError("shorter than its header")
        magic, encoding, records, key_id, digest = _HEADER.unpack_from(data)
        sealed = data[_HEADER.size :]
        if magic != _MAGIC or encoding >= len(ENCODINGS):
            raise ValueError("no batch of ours")
        if hashlib.blake2b(sealed, digest_size=16).digest() != digest:
            raise ValueError("checksum differs")
        if key_id != _NO_KEY:
            if self._seal is None or key_id != self._seal.key_id:
                raise _OtherKey
            sealed = self._seal.open(sealed, _about(encoding, records))
        return Batch(sealed, ENCODINGS[encoding], records)

    def _set_aside(self, path: Path) -> None:
        self._drop(path.name)
        self.corrupt_batches += 1
        try:
            self.corrupt_records += int(path.name[: -len(_SUFFIX)].split("-")[2])
        except (ValueError, IndexError):
            pass
        try:
            os.replace(path, path.with_suffix(".corrupt"))
            for older in sorted(self.directory.glob("*.corrupt"))[:-_CORRUPT_KEPT]:
                _remove(older)
        except OSError:
            _remove(path)


def _about(encoding: int, records: int) -> bytes:
    return b"%d %d" % (encoding, records)


def default_root() -> Path | None:
    """Return the directory for spools of this user, ``$XDG_STATE_HOME/logsvc/spool`` or its like; None without a home.

    A user of a container is often a mere number, of whom no home is known.
    """
    is_windows = sys.platform == "win32"
    base = os.environ.get("LOCALAPPDATA" if is_windows else "XDG_STATE_HOME")
    if not base:
        home = os.path.expanduser("~")
        if home in ("~", "", "/"):
            return None
        base = os.path.join(home, *(("AppData", "Local") if is_windows else (".local", "state")))
    return Path(base) / "logsvc" / "spool"


def lock_file(path: Path, *, create: bool) -> IO[bytes] | None:
    """Return the locked file, which holds the lock until it is closed; None if another holds it."""
    flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            # flock, not lockf: a POSIX lock would go when anyone in this process closes the file.
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def fsync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    if sys.platform == "win32":
        return  # Windows cannot open directories; NTFS journals the rename
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
