"""Dead letters: accepted records that the store will never take, kept until a person decides.

The journal's checkpoint may only move past a record that is in the store or here, so a dead letter
is fsynced before ``add`` returns. Records are masked long before; nothing personal comes here.

What always holds:

- A letter's id is its record's sequence number, so adding it again after a crash changes nothing.
- The files never exceed ``max_bytes`` by more than one batch; beyond it the oldest are dropped,
  and how many that were is written down here.
- Reading needs no lock: ``letters`` and ``find`` work beside a running service.

Layout: NDJSON files ``NUMBER.ndjson``, oldest first, of three kinds of lines: a letter, the mark
that one was replayed, the number of letters dropped.

Not here: putting one back into the journal (replay.py), what is refused (store/).
"""

from __future__ import annotations

import base64
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from loguru import logger

from logsvc import durable, faults
from logsvc.errors import NotFound
from logsvc.records import Entry
from logsvc.store import Refusal
from logsvc.timestamps import US_PER_S, Clock, format_us, system_clock

DIRECTORY = "deadletters"
"""Where they lie in a data directory."""

_PREVIEW_CHARS = 200
_STEP_US = 300 * US_PER_S
_Step = tuple[str, int]  # a tenant, and the beginning of five minutes
_SEGMENTS = 8  # files that ``max_bytes`` is divided into


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record that was refused, and why.

    Attributes:
        id: Its sequence number in the journal, as text.
        time: When it was refused, RFC 3339.
        reason: In the store's words.
        entry: All of the entry but its source.
        record: The record's JSON; empty if the source was no JSON, then ``source_base64`` has it.
        is_replayed: Whether it was put into the journal again.
    """

    id: str
    time: str
    tenant: str
    reason: str
    event_id: str = msgspec.field(name="event.id", default="")
    entry: dict[str, str | int | bool | None]
    record: msgspec.Raw = msgspec.Raw()
    source_base64: str = ""
    is_replayed: bool = False

    @property
    def source(self) -> bytes:
        """The entry's source, byte for byte."""
        return bytes(self.record) or base64.b64decode(self.source_base64)

    @property
    def is_readable(self) -> bool:
        """Whether the source is a JSON object, as a record's is."""
        return bool(bytes(self.record))

    @property
    def preview(self) -> str:
        """The first 200 characters of the source."""
        return self.source[: 4 * _PREVIEW_CHARS].decode("utf-8", "replace")[:_PREVIEW_CHARS]

    def to_entry(self) -> Entry:
        """Return the entry as it was, with ``seq`` 0."""
        return msgspec.convert({**self.entry, "seq": 0, "tenant": self.tenant, "source": b""}, _Meta).entry(self.source)


class _Meta(msgspec.Struct):
    """The entry without its source, by name."""

    tenant: str
    id: str
    time_us: int
    ingested_us: int
    unit: str
    duration_bucket: int | None
    has_client_id: bool

    def entry(self, source: bytes) -> Entry:
        return Entry(
            self.tenant,
            self.id,
            0,
            self.time_us,
            self.ingested_us,
            self.unit,
            self.duration_bucket,
            self.has_client_id,
            source,
        )


class _When(msgspec.Struct):
    """Of the entry, when it came."""

    ingested_us: int = 0


class _Line(msgspec.Struct):
    """What tells the three kinds of lines apart."""

    id: str | None = None
    replayed: str | None = None
    dropped: int | None = None
    tenant: str = ""
    entry: _When | None = None


_line_decoder = msgspec.json.Decoder(_Line)
_letter_decoder = msgspec.json.Decoder(DeadLetter)
_encoder = msgspec.json.Encoder()


class DeadLetters:
    """The files, held open for adding by the one service on the data directory."""

    def __init__(self, directory: Path, max_bytes: int, clock: Clock) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._ids: dict[Path, dict[str, _Step]] = {}
        self._steps: Counter[_Step] = Counter()  # letters that were not replayed
        self._replayed: set[str] = set()
        self._fd = -1
        self.dropped_total = 0

    @classmethod
    def open(cls, directory: Path, *, max_bytes: int = 256 * 1024 * 1024, clock: Clock = system_clock) -> DeadLetters:
        """Open the files in ``directory`` (made if missing) and cut a line that a crash left half-written."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.sync_directory(directory.parent)
        letters = cls(directory, max_bytes, clock)
        for path in _files(directory):
            _cut_half_line(path)
            ids = letters._ids.setdefault(path, {})
            for _, line in _lines(path):
                if line.id is not None:
                    ids[line.id] = _step(line.tenant, line.entry.ingested_us if line.entry else 0)
                elif line.replayed is not None:
                    letters._replayed.add(line.replayed)
                elif line.dropped is not None:
                    letters.dropped_total += line.dropped
        for kept in letters._ids.values():
            letters._steps.update(step for id, step in kept.items() if id not in letters._replayed)
        letters._open_file(next(reversed(letters._ids), directory / f"{1:012d}.ndjson"))
        return letters

    @property
    def directory(self) -> Path:
        """Where they lie."""
        return self._directory

    @property
    def count(self) -> int:
        """Letters kept that were not replayed."""
        with self._lock:
            return sum(len(ids) for ids in self._ids.values()) - len(self._replayed)

    def count_of(self, tenant: str, start_us: int, end_us: int) -> int:
        """Count a tenant's letters of records that came in a range of time and were not replayed.

        The range is taken in steps of five minutes, all that it touches.
        """
        with self._lock:
            return sum(
                count
                for (whose, at_us), count in self._steps.items()
                if whose == tenant and at_us < end_us and at_us + _STEP_US > start_us
            )

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in _files(self._directory))

    def add(self, refusals: Sequence[Refusal]) -> int:
        """Keep what was refused; return how many are new. Durable on return.

        Raises:
            OSError: If they cannot be made durable; then none was added.
        """
        with self._lock:
            lines: dict[str, bytes] = {}
            steps: dict[str, _Step] = {}
            for refusal in refusals:
                id = str(refusal.entry.seq)
                if not any(id in ids for ids in self._ids.values()):
                    lines[id] = _encoder.encode(_letter(refusal, self._clock()))
                    steps[id] = _step(refusal.entry.tenant, refusal.entry.ingested_us)
            if not lines:
                return 0
            self._write(lines.values())
            self._ids[self._path].update(steps)
            self._steps.update(steps.values())
            self._make_room()
        faults.reach("deadletters.after_write")
        return len(lines)

    def mark_replayed(self, ids: Iterable[str]) -> None:
        """Note that these were put into the journal again. Durable on return."""
        with self._lock:
            time = format_us(self._clock())
            new = [id for id in ids if id not in self._replayed]
            if new:
                self._write([_encoder.encode({"replayed": id, "time": time}) for id in new])
                self._replayed.update(new)
                self._steps -= Counter(ids[id] for ids in self._ids.values() for id in new if id in ids)

    def erase(self, is_gone: Callable[[DeadLetter], bool]) -> int:
        """Remove every letter that is to go, for good, and return how many; each file wholly or not at all."""
        erased = 0
        with self._lock:
            for path, ids in self._ids.items():
                kept, gone = [], set()
                for text, line in _lines(path):
                    if line.id is not None and is_gone(_letter_decoder.decode(text)):
                        gone.add(line.id)
                    else:
                        kept.append(text)
                if not gone:
                    continue
                durable.replace(path, b"".join(kept))
                if path == self._path:
                    os.close(self._fd)
                    self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                waiting = gone - self._replayed
                self._steps -= Counter(ids[id] for id in waiting)
                for id in gone:
                    del ids[id]
                erased += len(waiting)
                self._replayed -= gone
        return erased

    def close(self) -> None:
        """Release the file; idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open_file(self, path: Path) -> None:
        self.close()
        self._path = path
        self._ids.setdefault(path, {})
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        durable.sync_directory(self._directory)

    def _write(self, lines: Iterable[bytes]) -> None:
        start = os.fstat(self._fd).st_size
        try:
            durable.write_all(self._fd, b"".join([line + b"\n" for line in lines]))
            durable.sync(self._fd)
        except OSError:
            os.ftruncate(self._fd, start)
            raise

    def _make_room(self) -> None:
        if os.fstat(self._fd).st_size < self._max_bytes // _SEGMENTS:
            return
        os.close(self._fd)
        self._fd = -1
        self._path = self._directory / f"{int(self._path.stem) + 1:012d}.ndjson"
        self._ids[self._path] = {}
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        durable.sync_directory(self._directory)
        while self.size_bytes > self._max_bytes and len(self._ids) > 1:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        path, ids = next(iter(self._ids.items()))
        dropped = len(ids.keys() - self._replayed)
        # The sum of earlier drops goes on living in the newest file.
        carried = sum(line.dropped or 0 for _, line in _lines(path))
        if dropped + carried:
            self._write([_encoder.encode({"dropped": dropped + carried, "time": format_us(self._clock())})])
        path.unlink()
        durable.sync_directory(self._directory)
        del self._ids[path]
        self._steps -= Counter(step for id, step in ids.items() if id not in self._replayed)
        self._replayed -= ids.keys()
        self.dropped_total += dropped
        if dropped:
            logger.error("dead letters: dropped the {} oldest; the bound is {} bytes", dropped, self._max_bytes)


def _step(tenant: str, ingested_us: int) -> _Step:
    return tenant, ingested_us // _STEP_US * _STEP_US


def letters(directory: Path, *, tenant: str | None = None, with_replayed: bool = False) -> Iterator[DeadLetter]:
    """Yield the letters in ``directory``, oldest first; works beside a running service.

    Lines that cannot be read are skipped and logged.
    """
    replayed = {line.replayed for path in _files(directory) for _, line in _lines(path) if line.replayed is not None}
    for path in _files(directory):
        for text, line in _lines(path):
            if line.id is None or (line.id in replayed and not with_replayed):
                continue
            try:
                letter = _letter_decoder.decode(text)
            except msgspec.MsgspecError as exc:
                logger.error("dead letters: cannot read letter {} in {}: {}", line.id, path.name, exc)
                continue
            if tenant is None or letter.tenant == tenant:
                yield msgspec.structs.replace(letter, is_replayed=line.id in replayed)


def find(directory: Path, id: str) -> DeadLetter:
    """Return the letter with this id.

    Raises:
        NotFound: If there is none.
    """
    for letter in letters(directory, with_replayed=True):
        if letter.id == id:
            return letter
    raise NotFound(f'there is no dead letter "{id}"; `logsvc deadletters list` shows those that are kept')


def _letter(refusal: Refusal, now_us: int) -> DeadLetter:
    entry = refusal.entry
    event_id, is_json = "", False
    try:
        record = msgspec.json.decode(entry.source)
        is_json = isinstance(record, dict) and b"\n" not in entry.source
        event_id = str(record.get("event.id", "")) if isinstance(record, dict) else ""
    except msgspec.MsgspecError:
        pass  # kept all the same, as bytes
    letter = DeadLetter(
        id=str(entry.seq),
        time=format_us(now_us),
        tenant=entry.tenant,
        reason=refusal.reason,
        event_id=event_id,
        entry={
            "id": entry.id,
            "time_us": entry.time_us,
            "ingested_us": entry.ingested_us,
            "unit": entry.unit,
            "duration_bucket": entry.duration_bucket,
            "has_client_id": entry.has_client_id,
        },
    )
    if is_json:
        return msgspec.structs.replace(letter, record=msgspec.Raw(entry.source))
    return msgspec.structs.replace(letter, source_base64=base64.b64encode(entry.source).decode())


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.ndjson") if path.stem.isdigit())


def _lines(path: Path) -> Iterator[tuple[bytes, _Line]]:
    """Yield each whole line with its kind."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return  # dropped by the service meanwhile
    with file:
        for text in file:
            if not text.endswith(b"\n"):
                return  # being written, or cut by a crash
            try:
                yield text, _line_decoder.decode(text)
            except msgspec.MsgspecError as exc:
                logger.error("dead letters: cannot read a line of {}: {}", path.name, exc)


def _cut_half_line(path: Path) -> None:
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            logger.warning("dead letters: cut {} bytes of a half-written line off {}", len(data) - whole, path.name)
            file.truncate(whole)
            durable.sync(file.fileno())
