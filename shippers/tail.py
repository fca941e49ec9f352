"""Tail: following files and standard input, line by line, and remembering how far.

``Source`` is the seam: ``FileSource`` and ``StreamSource`` (standard input). A file is told from
its successor by inode and by a fingerprint of its first bytes, so that neither a rename nor a reused
inode is mistaken. After a rename the old file is read to its end, then whatever was rotated away
before it could be read, then the new one. After a truncation the copy that ``copytruncate`` made is
looked for and read to its end; then reading starts again at the top. Rotated files may have been
compressed meanwhile. A last line without line feed is held until it has one, or until its file has
been replaced.

What always holds: lines come in order, each once while the process lives; ``Position`` and
``Checkpoints`` bring a restart to the first line that was not settled, and the identity of a line
(file, offset) is the same when it is read again, so sending it twice is harmless.

Not here: which files match a pattern (watch.py), joining lines (multiline.py), when a checkpoint
may move (agent.py).
"""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib
import json
import lzma
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Callable, Optional, Protocol, Union

from shippers.spool import fsync_directory

READ_BYTES = 256 * 1024
MAX_LINE_BYTES = 768 * 1024
HEAD_BYTES = 1024
_CHECKPOINT_VERSION = 2
_SHORTER = errno.ESPIPE  # of a file that holds less than what was read of it
_MAX_CHECKPOINTS = 10_000
_REMEMBERED = 64  # heads of files read to their end, which a copy of them is told by


def _open_zst(packed: IO[bytes], mode: str) -> Any:
    """Open a file of Zstandard for reading.

    Raises:
        OSError: If this Python has no means to.
    """
    try:
        if sys.version_info >= (3, 14):
            return importlib.import_module("compression.zstd").open(packed, mode)
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError as exc:
        hint = "reading .zst needs Python 3.14 or: pip install 'logsvc-shippers[zstd]'"
        raise OSError(errno.ENOTSUP, hint) from exc
    return _ZstdReader(packed, zstandard.ZstdDecompressor().decompressobj)


class _ZstdReader:
    """Reads frames of Zstandard; unlike the library's own reader it knows a torn frame from a whole one."""

    def __init__(self, packed: IO[bytes], new_frame: Callable[[], Any]) -> None:
        self._packed = packed
        self._new_frame = new_frame
        self._frame: Any = None  # None between two
        self._more = b""  # read, not yet unpacked
        self._ready = b""
        self._at = 0

    def read1(self, count: int) -> bytes:
        """Return at most ``count`` bytes; none at the end.

        Raises:
            EOFError: If the last frame is not whole.
        """
        while not self._ready:
            # Little at a time, since it may unpack to tens of thousands times as much.
            packed, self._more = self._more or self._packed.read(512), b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end of a frame was reached")
                return b""
            frame = self._frame = self._frame or self._new_frame()
            self._ready = frame.decompress(packed)
            if frame.eof:
                self._frame, self._more = None, frame.unused_data
        data, self._ready = self._ready[:count], self._ready[count:]
        self._at += len(data)
        return data

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._at

    def close(self) -> None:
        """Do nothing: the file is its owner's."""


_OPENERS: Mapping[str, Callable[[Any, str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
COMPRESSED = (*_OPENERS, ".lz4", ".Z", ".zip")
# What rotation adds to a name: .1, -20241225, .2024-12-25_13-00, .old, and a suffix for compression.
ROTATED = r"[.\-_](?:\d[\d.\-_T]*|old|bak|prev)"


@dataclass(frozen=True)
class Position:
    """How far a file was read.

    Attributes:
        inode: Which file.
        head: Hash of its first bytes, so that a reused inode is noticed and a copy known.
        head_bytes: How many those are.
        identity: Names the file's content.
        generation: How many files or contents of files there were before it at this path.
        offset: Bytes before the first line not yet read.
        mtime_ns: When it was written last, as far as that was seen: what was rotated away later is newer.
    """

    inode: int
    head: str
    head_bytes: int
    identity: str
    generation: int
    offset: int
    mtime_ns: int


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
        if newline and len(whole) <= MAX_LINE_BYTES and whole.isascii() and b"\r" not in whole:
            texts = whole.decode("ascii").split("\n")
            offsets = list(accumulate([len(text) + 1 for text in texts], initial=self.offset))
            lines = list(zip(offsets, texts))
            self.offset = offsets[-1]
        elif newline:
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


class _File:
    """One file that is being read: plain or, if it was rotated, perhaps compressed.

    Args:
        path: Where it is.
        offset: Where to begin.
        is_rotated: Whether nobody writes to it any more.

    Raises:
        OSError: If it cannot be opened, or holds less than ``offset`` bytes.
    """

    def __init__(self, path: str, offset: int = 0, *, is_rotated: bool = False) -> None:
        self.path = path
        self.is_rotated = is_rotated
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        self._packed: IO[bytes] | None = None
        self._unpacked: Any = None
        self._damage: OSError | None = None
        self._first = b""
        try:
            self.inode = os.fstat(self.descriptor).st_ino
            opener = _OPENERS.get(os.path.splitext(path)[1])
            if opener is not None:
                self._packed = os.fdopen(os.dup(self.descriptor), "rb")
                self._unpacked = opener(self._packed, "rb")
                self._first = self._unpack(HEAD_BYTES)
                if offset < len(self._first):
                    # Read again from the start: not every kind can go back.
                    self._packed.seek(0)
                    self._unpacked = opener(self._packed, "rb")
                    self._damage = None
                while self._unpacked.tell() < offset and self._unpack(min(READ_BYTES, offset - self._unpacked.tell())):
                    pass
            else:
                os.lseek(self.descriptor, offset, os.SEEK_SET)
            if self.size < offset:
                raise OSError(_SHORTER, "shorter than what was read of it", path)
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError) and exc.filename is None:
                exc.filename = path
            raise

    @property
    def size(self) -> int:
        """Bytes in it; of a compressed one, those read."""
        return os.fstat(self.descriptor).st_size if self._unpacked is None else self._unpacked.tell()

    @property
    def mtime_ns(self) -> int:
        return os.fstat(self.descriptor).st_mtime_ns

    @property
    def is_unlinked(self) -> bool:
        return os.fstat(self.descriptor).st_nlink == 0

    def head(self, count: int = HEAD_BYTES) -> bytes:
        """Return its first bytes, at most ``count``."""
        return os.pread(self.descriptor, count, 0) if self._unpacked is None else self._first[:count]

    def read(self) -> bytes:
        """Return the next bytes; none at the end."""
        return os.read(self.descriptor, READ_BYTES) if self._unpacked is None else self._unpack(READ_BYTES)

    def close(self) -> None:
        for file in (self._unpacked, self._packed):
            if file is not None:
                file.close()
        os.close(self.descriptor)

    def _unpack(self, count: int) -> bytes:
        """Return the next bytes, less than ``count`` only before the end or a damage, which the next call raises."""
        parts: list[bytes] = []
        while count and self._damage is None:
            try:
                # Not read(), which forgets what it has when it comes upon a damage.
                part = self._unpacked.read1(count)
            except Exception as exc:  # each kind has errors of its own: EOFError, zlib.error, LZMAError, ZstdError
                if isinstance(exc, OSError) and exc.errno is not None:
                    self._damage = exc
                else:
                    self._damage = OSError(errno.EIO, f"damaged: {exc}", self.path)
                break
            if not part:
                break
            parts.append(part)
            count -= len(part)
        if self._damage is not None and not parts:
            raise self._damage
        return b"".join(parts)


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
        self._file: _File | None = None
        self._waiting: deque[Union[_File, str]] = deque()  # rotated files still to be read, oldest first
        self._head = b""  # first bytes of the file, as far as they were read
        self._identity = ""  # none while its first line is incomplete
        self._named = ""  # the identity given last
        self._inode = 0
        self._generation = -1
        self._done_heads: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._done_mtime_ns = 0
        self._mtime_ns = 0
        self._lines = _Lines(0)
        self._replaced_at: float | None = None
        self._parked: tuple[int, int, int] | None = None
        self.skipped: dict[str, OSError] = {}  # rotated files that cannot be read, until whoever reads has said so

    @property
    def is_open(self) -> bool:
        """Whether a file is held open."""
        return self._file is not None or any(isinstance(waiting, _File) for waiting in self._waiting)

    @property
    def is_parked(self) -> bool:
        """Whether it was parked, and nothing has happened to it since."""
        return self._parked is not None and self._parked == _state_of(self.name)

    def park(self) -> None:
        """Close the file until something is written to it, or something else lies at its path."""
        try:
            is_read = self._file is not None and self._identity and self._file.size == self._lines.end
        except OSError:
            is_read = False
        state = _state_of(self.name) if is_read else None
        self.close()
        if state is not None and state[0] == self._inode:
            self._parked = state

    @property
    def unread_bytes(self) -> int:
        """How many bytes wait in the file that is being read."""
        try:
            return 0 if self._file is None else max(0, self._file.size - self._lines.end)
        except OSError:
            return 0

    def read(self) -> Chunk | None:
        """Return the next lines, or None."""
        try:
            return self._read()
        except OSError as exc:
            self.error = exc
            if self._file is None or not self._file.is_rotated:
                self.close()
                return None
            # Damaged: what could be read of it was, but for its last line.
            self._skip(exc)
            last = self._chunk(self._lines.finish()) if self._identity else None
            self._leave()
            return last

    def finish(self) -> Chunk | None:
        """Return the last line though it has no line feed, or None."""
        if self._file is None:
            return None
        lines: list[tuple[int, str]] = []
        if not self._identity:
            if not self._file.head(1):
                return None
            self._name_it(is_whole=True)
            lines = self._lines.cut(self._file.read())
        return self._chunk(lines + self._lines.finish())

    def close(self) -> None:
        """Close the file; reading again goes on where it stopped."""
        file, self._file = self._file, None
        if file is not None:
            if self._identity:
                self._resume = self._position()
            file.close()
        while self._waiting:
            waiting = self._waiting.pop()  # found again by the same means
            if isinstance(waiting, _File):
                waiting.close()

    def _read(self) -> Chunk | None:
        if self.is_parked:
            return None
        self._parked = None
        if self._file is None and not self._open():
            return None
        file = self._file
        assert file is not None
        if not self._identity:
            if self._done_mtime_ns and not file.is_rotated and file.head(1) and self._has_missed():
                return None
            if not self._name_it():
                # Nothing is read before the file can be named, which its first line does.
                return self._follow()
        size = file.size
        self._mtime_ns = file.mtime_ns
        if size < self._lines.end or (size > self._lines.end and file.head(len(self._head)) != self._head):
            self._start_over()
            return None
        data = file.read()
        if not data:
            return self._follow()
        self._replaced_at = None
        lines = self._lines.cut(data)
        if len(self._head) < HEAD_BYTES:
            self._head = file.head(min(HEAD_BYTES, self._lines.end))
        return self._chunk(lines)

    def _follow(self) -> Chunk | None:
        """At the end of the file: is it still the one at the path?"""
        file = self._file
        assert file is not None
        if not file.is_rotated:
            try:
                if os.stat(self.name).st_ino == self._inode:
                    return None
            except FileNotFoundError:
                if not file.is_unlinked:
                    return None  # renamed, and no successor yet
            now = self._clock()
            if self._replaced_at is None:
                self._replaced_at = now
            if now - self._replaced_at < self._grace_s:
                return None  # whoever writes may go on in the old file for a moment
        last = self.finish()
        self._leave()
        return last or self._read()

    def _leave(self) -> None:
        """The file is read to its end: go on to what was rotated away after it, then to the one at the path."""
        file, self._file = self._file, None
        assert file is not None
        if self._identity:  # one that stayed empty says nothing of what was rotated away before it
            self._done_mtime_ns = max(self._done_mtime_ns, file.mtime_ns)
            self._done_heads.append(self._head)
        file.close()
        self._identity, self._head = "", b""
        self._is_from_end = False
        self._replaced_at = None
        self._find_waiting()

    def _find_waiting(self) -> None:
        """Look anew for what waits and is not open: rotation may have renamed it."""
        opened = [waiting for waiting in self._waiting if isinstance(waiting, _File)]
        missed = self._missed(opened[0].mtime_ns if opened else None)
        self._waiting = deque([*missed, *opened])

    def _start_over(self) -> None:
        """The file was truncated in place: what follows is new, though the inode is the same.

        What was written between our last look and the truncation is in the copy, if one was made.
        """
        position = self._position()
        file, self._file = self._file, None
        assert file is not None
        file.close()
        self._replaced_at = None
        for path in self._rotated():
            copy = self._open_match(path, position)
            if copy is not None:
                self._take_up(copy, position)
                return
        self._done_heads.append(self._head)
        self._identity, self._head = "", b""
        self._open_at_path()

    def _open(self) -> bool:
        """Open what is to be read next; False if there is nothing now."""
        if self._open_waiting():
            return True
        resume, self._resume = self._resume, None
        if resume is not None:
            self._generation = max(self._generation, resume.generation)
            self._named = self._named or resume.identity
            for path in (self.name, *self._rotated()):
                file = self._open_match(path, resume)
                if file is not None:
                    self._take_up(file, resume)
                    return True
            if os.path.exists(self.name):
                # It is gone for good; what came after it may not be.
                self._done_mtime_ns = max(self._done_mtime_ns, resume.mtime_ns)
                self._waiting.extend(self._missed())
                if self._open_waiting():
                    return True
        is_open = self._open_at_path()
        if not is_open:
            self._resume = resume  # not there yet: it may still be renamed back
        return is_open

    def _open_waiting(self) -> bool:
        if self._waiting:
            self._find_waiting()
        while self._waiting:
            waiting = self._waiting.popleft()
            try:
                self._begin(waiting if isinstance(waiting, _File) else _File(waiting, is_rotated=True))
                return True
            except OSError as exc:
                self._skip(exc)
        return False

    def _skip(self, error: OSError) -> None:
        """Take note that a rotated file cannot be read; one that is gone is no news."""
        if error.errno != errno.ENOENT and error.filename != self.name and len(self.skipped) < _REMEMBERED:
            self.skipped[str(error.filename)] = error

    def _open_at_path(self) -> bool:
        try:
            file = _File(self.name)
        except OSError as exc:
            self.error = exc
            return False
        self._begin(file)
        if self._is_from_end:
            self._is_from_end = False
            offset = _last_line_end(file.descriptor)
            self._name_it(is_whole=True)
            os.lseek(file.descriptor, offset, os.SEEK_SET)
            self._lines = _Lines(offset)
        return True

    def _begin(self, file: _File) -> None:
        self.error = None
        self._file = file
        self._inode = file.inode
        self._identity, self._head = "", b""
        self._lines = _Lines(0)

    def _take_up(self, file: _File, position: Position) -> None:
        self._begin(file)
        self._identity = self._named = position.identity
        self._generation = position.generation
        self._head = file.head(position.head_bytes)
        self._lines = _Lines(position.offset)

    def _name_it(self, *, is_whole: bool = False) -> bool:
        """Give the file an identity, once its first line is there; ``is_whole`` takes what there is."""
        assert self._file is not None
        head = self._file.head()
        line, newline, _ = head.partition(b"\n")
        if not newline and len(head) < HEAD_BYTES and not is_whole:
            return False
        self._generation += 1
        self._head = head if newline else line
        # Named after what was read before it, not by its inode: a copy of it, read after a restart, is the same.
        before = self._named or f"{self.name}\0{self._inode}"
        name = f"{before}\0{self._generation}\0".encode("utf-8", "surrogateescape")
        self._identity = self._named = blake2b(name + line, digest_size=12).hexdigest()
        return True

    def _position(self) -> Position:
        head = self._head
        return Position(
            self._inode,
            _fingerprint(head),
            len(head),
            self._identity,
            self._generation,
            self._lines.offset,
            self._mtime_ns,
        )

    def _open_match(self, path: str, position: Position) -> _File | None:
        """Open ``path`` if it holds what was read up to ``position``: the file itself, a copy, or it compressed."""
        try:
            file = _File(path, position.offset, is_rotated=path != self.name)
        except OSError as exc:
            if exc.errno != _SHORTER:
                self._skip(exc)
            return None
        # In place it must be the same file; elsewhere its content decides.
        is_same = path != self.name or file.inode == position.inode
        if is_same and _fingerprint(file.head(position.head_bytes)) == position.head:
            if file.inode == position.inode:
                file.is_rotated = False  # renamed: its writer may go on for a moment
            return file
        file.close()
        return None

    def _rotated(self) -> list[str]:
        """Return the files beside ``path`` that were rotated away from it, oldest first."""
        found: dict[str, int] = {}
        for name in {self.name, os.path.realpath(self.name)}:
            directory, base = os.path.split(name)
            stem, extension = os.path.splitext(base)
            packed = "(?:" + "|".join(map(re.escape, _OPENERS)) + ")?"
            pattern = re.compile(
                rf"(?:{re.escape(base)}{ROTATED}|{re.escape(stem)}{ROTATED}{re.escape(extension)}){packed}"
            )
            try:
                for entry in os.scandir(directory or "."):
                    if pattern.fullmatch(entry.name) and entry.name != base:
                        path = os.path.join(directory, entry.name)
                        found[path] = entry.stat().st_mtime_ns
            except OSError:
                continue
        # While a file is being compressed it is there twice; the plain one is whole.
        plain = [
            path for path in found if os.path.splitext(path)[1] not in _OPENERS or path[: path.rfind(".")] not in found
        ]
        return sorted(plain, key=lambda path: found[path])

    def _has_missed(self) -> bool:
        """Go back to what was rotated away since the file was opened, empty as it was then."""
        assert self._file is not None
        missed = self._missed(self._file.mtime_ns)
        if missed:
            self._waiting.extend([*missed, self._file])
            self._file = None
        return bool(missed)

    def _missed(self, before_ns: int | None = None) -> list[str]:
        """Return what was rotated away unread after the file that was read last, and ``before_ns``."""
        missed = []
        known = {self._inode, *(waiting.inode for waiting in self._waiting if isinstance(waiting, _File))}
        try:
            known.add(os.stat(self.name).st_ino)
        except OSError:
            pass
        for path in self._rotated():
            try:
                file = _File(path, is_rotated=True)
            except OSError as exc:
                self._skip(exc)
                continue
            head = file.head()
            is_read = any(head[: len(done)] == done for done in self._done_heads if done)
            is_between = file.mtime_ns > self._done_mtime_ns and (before_ns is None or file.mtime_ns < before_ns)
            if head and not is_read and is_between and file.inode not in known:
                missed.append(path)
            file.close()
        return missed

    def _chunk(self, lines: list[tuple[int, str]]) -> Chunk | None:
        return Chunk(self._identity, lines, self._position()) if lines else None


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
        newest = list(positions.items())[-_MAX_CHECKPOINTS:]
        data = {"version": _CHECKPOINT_VERSION, "files": {path: asdict(at) for path, at in newest}}
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        fsync_directory(self.path.parent)


def line_id(identity: str, offset: int) -> str:
    """Return the ``event.id`` of a line: the same whenever it is read.

    >>> line_id("0a1b", 255)
    '0a1b-ff'
    """
    return f"{identity}-{offset:x}"


def _state_of(path: str) -> tuple[int, int, int]:
    """Return inode, size and time of the last writing, which change when a file is replaced or written to."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns


def _fingerprint(head: bytes) -> str:
    return blake2b(head, digest_size=16).hexdigest()


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
