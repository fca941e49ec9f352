"""Tail: following files and standard input, line by line, and remembering how far.

``Source`` is the seam: ``FileSource`` and ``StreamSource`` (standard input). A file is told from
its successor by inode and by a fingerprint of its first line, so that neither a rename nor a reused
inode is mistaken. After a rename the old file is read to its end before the new one; after a
truncation reading starts again at the top. A last line without line feed is held until it has one,
or until its file has been replaced.

What always holds: lines come in order, each once while the process lives; ``Position`` and
``Checkpoints`` bring a restart to the first line that was not settled, and the identity of a line
(file, offset) is the same when it is read again, so sending it twice is harmless.

Not here: joining lines (multiline.py), when a checkpoint may move (agent.py).
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

READ_BYTES = 256 * 1024
MAX_LINE_BYTES = 768 * 1024
_FINGERPRINT_BYTES = 1024
_CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Position:
    """How far a file was read.

    Attributes:
        inode: Which file.
        fingerprint: Of its first line, so that a reused inode is noticed.
        generation: How often this file was truncated while we watched.
        offset: Bytes before the first line not yet read.
    """

    inode: int
    fingerprint: str
    generation: int
    offset: int


@dataclass(frozen=True)
class Chunk:
    """Lines that came together from one file.

    Attributes:
        identity: Names the file's content, over restarts; with a line's offset it names the line.
        lines: Offset and text of each, without line feed.
        at: The file they came from; ``offset`` is that after the last line. None if not resumable.
    """

    identity: str
    lines: list[tuple[int, str]]
    at: Optional[Position]


class Source(Protocol):
    """Where lines come from. Used by one thread.

    ``read`` never blocks: it returns the next lines in order, or None if there are none now; what
    one chunk holds is of one file. ``is_finished`` tells that there will be no more. ``finish``
    returns a last line that has no line feed, and is called when no more is awaited. ``close``
    releases what is held. None of them raises for what a file does; a source that cannot be read
    now is one without lines, and ``error`` says why.
    """

    name: str
    error: OSError | None

    @property
    def is_finished(self) -> bool: ...

    def read(self) -> Chunk | None: ...

    def finish(self) -> Chunk | None: ...

    def close(self) -> None: ...


class _Lines:
    """Cuts bytes into lines, knowing the offset of each."""

    def __init__(self, offset: int) -> None:
        self.offset = offset  # of the first byte held back
        self._rest = b""

    @property
    def end(self) -> int:
        return self.offset + len(self._rest)

    def cut(self, data: bytes) -> list[tuple[int, str]]:
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        lines: list[tuple[int, str]] = []
        if newline:
            for line in whole.split(b"\n"):
                self._add(lines, line)
                self.offset += 1
        self._rest = rest
        if len(rest) > MAX_LINE_BYTES:
            lines += self.finish()
        return lines

    def finish(self) -> list[tuple[int, str]]:
        lines: list[tuple[int, str]] = []
        if self._rest:
            self._add(lines, self._rest)
            self._rest = b""
        return lines

    def _add(self, lines: list[tuple[int, str]], line: bytes) -> None:
        for start in range(0, len(line) or 1, MAX_LINE_BYTES):
            part = line[start : start + MAX_LINE_BYTES]
            text = part[:-1] if part.endswith(b"\r") else part
            lines.append((self.offset + start, text.decode("utf-8", "replace")))
        self.offset += len(line)


class FileSource:
    """Follows the file at ``path`` through renames and truncations.

    Args:
        path: The file; it need not exist yet.
        resume: Where an earlier process stopped, or None.
        is_from_end: Whether to skip what is in the file at first sight when there is no ``resume``.
        grace_s: How long a replaced file may stay quiet before it is left for its successor.
        clock: Monotonic seconds.
    """

    is_finished = False

    def __init__(
        self,
        path: str,
        resume: Position | None = None,
        *,
        is_from_end: bool = False,
        grace_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = path
        self.error: OSError | None = None
        self._grace_s = grace_s
        self._clock = clock
        self._resume = resume
        self._is_from_end = is_from_end and resume is None
        self._descriptor: int | None = None
        self._inode = 0
        self._fingerprint: str | None = None
        self._generation = 0
        self._lines = _Lines(0)
        self._replaced_at: float | None = None

    def read(self) -> Chunk | None:
        """Return the next lines, or None."""
        try:
            return self._read()
        except OSError as exc:
            self.error = exc
            self.close()
            return None

    def finish(self) -> Chunk | None:
        """Return the last line though it has no line feed, or None."""
        if self._descriptor is None:
            return None
        lines: list[tuple[int, str]] = []
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self._descriptor, is_whole=True)
            lines = self._lines.cut(os.read(self._descriptor, READ_BYTES))
        return self._chunk(lines + self._lines.finish())

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self) -> Chunk | None:
        if self._descriptor is None and not self._open():
            return None
        assert self._descriptor is not None
        if self._fingerprint is None:
            # Nothing is read before the file can be named, which its first line does.
            self._fingerprint = _fingerprint(self._descriptor)
        if self._fingerprint is not None:
            size = os.fstat(self._descriptor).st_size
            if size < self._lines.end:
                self._start_over()
                return None
            data = os.read(self._descriptor, READ_BYTES)
            if data:
                self._replaced_at = None
                return self._chunk(self._lines.cut(data))
        return self._follow()

    def _follow(self) -> Chunk | None:
        """At the end of the file: is it still the one at the path?"""
        try:
            is_same = os.stat(self.name).st_ino == self._inode
        except FileNotFoundError:
            return None  # renamed or removed, and no successor yet
        if is_same:
            return None
        now = self._clock()
        if self._replaced_at is None:
            self._replaced_at = now
        if now - self._replaced_at < self._grace_s:
            return None  # whoever writes may go on in the old file for a moment
        last = self.finish()
        self.close()
        self._is_from_end = False
        return last or self._read()

    def _start_over(self) -> None:
        """The file was truncated in place: what follows is new, though the inode is the same."""
        assert self._descriptor is not None
        self._generation += 1
        self._fingerprint = None
        self._lines = _Lines(0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def _open(self) -> bool:
        resume, self._resume = self._resume, None
        self._replaced_at = None
        if resume is not None and self._open_at(resume):
            return True
        try:
            self._descriptor = os.open(self.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as exc:
            self.error = exc
            self._resume = resume  # not there yet: it may still be renamed back
            return False
        self.error = None
        self._inode = os.fstat(self._descriptor).st_ino
        self._fingerprint = _fingerprint(self._descriptor)
        self._generation = 0
        offset = 0
        if resume is not None and (self._inode, self._fingerprint) == (resume.inode, resume.fingerprint):
            self._generation = resume.generation + 1  # shorter than it was: truncated while we were away
        if self._is_from_end:
            offset = _last_line_end(self._descriptor)
            self._is_from_end = False
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        self._lines = _Lines(offset)
        return True

    def _open_at(self, resume: Position) -> bool:
        """Open the file that an earlier process was reading, under its path or renamed beside it."""
        directory = os.path.dirname(self.name) or "."
        candidates = [self.name]
        try:
            candidates += sorted(entry.path for entry in os.scandir(directory) if entry.inode() == resume.inode)
        except OSError:
            pass
        for path in candidates:
            try:
                descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError:
                continue
            status = os.fstat(descriptor)
            if status.st_ino == resume.inode and status.st_size >= resume.offset:
                fingerprint = _fingerprint(descriptor, is_whole=True)
                if fingerprint == resume.fingerprint:
                    self.error = None
                    self._descriptor = descriptor
                    self._inode, self._generation = resume.inode, resume.generation
                    self._fingerprint = fingerprint
                    self._lines = _Lines(resume.offset)
                    os.lseek(descriptor, resume.offset, os.SEEK_SET)
                    return True
            os.close(descriptor)
        return False

    def _chunk(self, lines: list[tuple[int, str]]) -> Chunk | None:
        if not lines:
            return None
        fingerprint = self._fingerprint or ""
        identity = f"{self.name}\0{self._inode}\0{fingerprint}\0{self._generation}"
        return Chunk(identity, lines, Position(self._inode, fingerprint, self._generation, self._lines.offset))


class StreamSource:
    """Reads a stream that ends, such as standard input; it cannot be resumed."""

    error: OSError | None = None

    def __init__(self, descriptor: int = 0, name: str = "-") -> None:
        self.name = name
        self._descriptor = descriptor
        self._lines = _Lines(0)
        self._identity = os.urandom(8).hex()
        self._is_finished = False

    @property
    def is_finished(self) -> bool:
        """Whether the stream has ended."""
        return self._is_finished

    def read(self) -> Chunk | None:
        """Return the next lines, or None."""
        if self._is_finished:
            return None
        try:
            if not select.select([self._descriptor], [], [], 0)[0]:
                return None
            data = os.read(self._descriptor, READ_BYTES)
        except (OSError, ValueError):
            data = b""
        if not data:
            self._is_finished = True
            return self.finish()
        return self._chunk(self._lines.cut(data))

    def finish(self) -> Chunk | None:
        """Return the last line though it has no line feed, or None."""
        return self._chunk(self._lines.finish())

    def close(self) -> None:
        """Leave the stream open: it is not ours."""

    def _chunk(self, lines: list[tuple[int, str]]) -> Chunk | None:
        return Chunk(self._identity, lines, None) if lines else None


class Checkpoints:
    """Positions of files, kept in one file that is always whole.

    Args:
        path: The file; its directory is made with mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Position]:
        """Return the positions by path.

        Raises:
            ValueError: If the file is there and is not one of ours.
        """
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return {}
        try:
            data: Any = json.loads(text)
            if data["version"] != _CHECKPOINT_VERSION:
                raise ValueError("another version")
            return {path: Position(**position) for path, position in data["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ValueError(
                f"{self.path} holds no checkpoints that this version reads ({exc}); remove it to read all files again"
            ) from exc

    def save(self, positions: Mapping[str, Position]) -> None:
        """Write ``positions`` durably, or leave the file as it was.

        Raises:
            OSError: If that fails.
        """
        data = {"version": _CHECKPOINT_VERSION, "files": {path: asdict(at) for path, at in positions.items()}}
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def line_id(identity: str, offset: int) -> str:
    """Return the ``event.id`` of a line: the same whenever it is read.

    >>> line_id("a", 1) == line_id("a", 1) != line_id("a", 2)
    True
    """
    return blake2b(f"{identity}\0{offset}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _fingerprint(descriptor: int, *, is_whole: bool = False) -> str | None:
    """Return a hash of the first line, or of the first 1,024 bytes of it; None while it is incomplete.

    It never changes while lines are only appended. ``is_whole`` takes what there is.
    """
    start = os.pread(descriptor, _FINGERPRINT_BYTES, 0)
    line, newline, _ = start.partition(b"\n")
    if not newline and len(start) < _FINGERPRINT_BYTES and not is_whole:
        return None
    return blake2b(line, digest_size=16).hexdigest()


def _last_line_end(descriptor: int) -> int:
    """Return the offset after the last line feed."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - READ_BYTES)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
