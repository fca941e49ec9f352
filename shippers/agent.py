"""Agent: follows log files and ships what is written to them. ``python -m shippers.agent --help``.

Files are read in one thread; records are compressed and sent by the batcher's. A checkpoint moves only
when all records before it have been acknowledged, or are safe in a spool. While the service is
away reading stops: the files themselves are the buffer. After a crash lines since the last
checkpoint are read and sent again under the same ``event.id``, so the service keeps them once.

What always holds: memory is bounded; no line is lost as long as its file can be read.

Not here: following (tail.py), which files (watch.py), joining (multiline.py), parsing (lines.py),
encoding (rendering.py), settings (agent_config.py), metrics (agent_metrics.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import IO, Any, Callable, Optional

from shippers import watch
from shippers.agent_config import Config, ConfigError, FileConfig, configure
from shippers.agent_metrics import Counters, serve_metrics
from shippers.assembly import AUTO, SpoolDir, open_batcher
from shippers.batcher import Batcher, Mark, Settings
from shippers.lines import LineParser
from shippers.multiline import Joined, Joiner
from shippers.rendering import Renderer
from shippers.spool import default_root, lock_file
from shippers.tail import Checkpoints, Chunk, FileSource, Position, Source, StreamSource

POLL_S = 0.2
SCAN_S = 2.0  # how often patterns are looked at again
HOLD_S = 1.0  # a record that might go on is sent after a pause of this length
MARK_INTERVAL_S = 0.5
ONCE_TIMEOUT_S = 60.0
_TOLD_MAX = 1000  # files of which it is said that they cannot be read
_TOGETHER = 128  # lines that are joined, encoded and queued together


class Rate:
    """How much may be read: so many records and bytes a second, and what a second allows at once.

    Args:
        records_per_s: None for no bound.
        bytes_per_s: None for no bound.
        clock: Monotonic seconds.
    """

    def __init__(
        self, records_per_s: float | None, bytes_per_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rates = (records_per_s, bytes_per_s)
        self._left = [records_per_s or 0.0, bytes_per_s or 0.0]
        self._clock = clock
        self._filled_at = clock()

    @property
    def has_room(self) -> bool:
        """Whether more may be read now."""
        now = self._clock()
        passed_s, self._filled_at = now - self._filled_at, now
        for index, rate in enumerate(self._rates):
            if rate is not None:
                self._left[index] = min(rate, self._left[index] + rate * passed_s)
        return all(rate is None or left > 0 for rate, left in zip(self._rates, self._left))

    def take(self, records: int, size: int) -> None:
        """Count what was read; more than there was room for is owed."""
        self._left[0] -= records
        self._left[1] -= size


@dataclass
class _Stream:
    """One source with the state of reading it."""

    source: Source
    renderer: Renderer
    joiner: Joiner[int]
    rate: Optional[Rate] = None
    is_found: bool = False  # by a pattern: once it is gone, so is its stream
    identity: str = ""
    at: Optional[Position] = None
    fed_at: float = 0.0
    settled: Optional[Position] = None  # where to read on after a restart, once all that was put has arrived
    is_awaited: bool = False  # that it cannot be read has been said

    def settle(self) -> None:
        """Take note that all but what the joiner holds has been put."""
        held = self.joiner.held_mark
        self.settled = self.at if self.at is None or held is None else replace(self.at, offset=held)


class Agent:
    """Reads sources and puts their records into a batcher.

    Args:
        sources: What to read, each with the fields that its records carry.
        batcher: Where records go; not closed here.
        checkpoints: Where positions are kept; None keeps none.
        discover: Called every ``SCAN_S`` with the agent, to ``follow`` what is new.
        stop: Ends ``run`` when set.
        open_files_max: How many files are held open; those longest without a line are closed, and opened again
            once they are written to.
        clock: Monotonic seconds.

    Attributes:
        counters: What was read so far.
        positions: Where reading stands, by name, as the checkpoints have it.
    """

    def __init__(
        self,
        sources: Iterable[tuple[Source, dict[str, Any]]],
        batcher: Batcher,
        checkpoints: Checkpoints | None = None,
        *,
        discover: Callable[[Agent], None] | None = None,
        stop: threading.Event | None = None,
        open_files_max: int = Config.open_files_max,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_files_max = open_files_max
        self.stop = stop or threading.Event()
        self.counters = Counters()
        self._streams: dict[str, _Stream] = {}
        self._batcher = batcher
        self._checkpoints = checkpoints
        self.positions: dict[str, Position] = checkpoints.load() if checkpoints is not None else {}
        self._pending: deque[tuple[Mark, dict[str, Position]]] = deque()
        self._told_skipped: set[str] = set()
        self._has_unmarked = False
        self._marked_at = -MARK_INTERVAL_S
        self._discover = discover
        self._discovered_at = -SCAN_S
        self._clock = clock
        self._together = max(1, min(_TOGETHER, batcher.settings.queue_max_records // 4))
        for source, fields in sources:
            self.follow(source, fields)

    def follow(
        self,
        source: Source,
        fields: Mapping[str, Any],
        parser: LineParser | None = None,
        *,
        joins_lines: bool = True,
        rate: Rate | None = None,
        is_found: bool = False,
    ) -> None:
        """Read ``source`` too, unless one of its name is read already.

        Args:
            source: What to read.
            fields: What each of its records says.
            parser: What its lines mean.
            joins_lines: Whether a stack is one record.
            rate: How fast to read.
            is_found: Whether a pattern found it, so that it is left once it is gone.
        """
        if source.name not in self._streams:
            renderer = Renderer(self._batcher.finisher, parser or LineParser(), fields, source.name)
            joiner: Joiner[int] = Joiner() if joins_lines else SingleLines()
            self._streams[source.name] = _Stream(source, renderer, joiner, rate, is_found)

    @property
    def names(self) -> list[str]:
        """What is read now."""
        return list(self._streams)

    def run(self, *, is_once: bool = False) -> None:
        """Read until ``stop`` is set; with ``is_once``, until all sources are at their end."""
        while not self.stop.is_set():
            has_read = self.step()
            self._tell_what_was_skipped()
            if not is_once:
                self._tell_what_is_awaited()
            if not has_read:
                is_limited = any(stream.rate is not None and not stream.rate.has_room for stream in self._each())
                if is_once and not is_limited:
                    break
                if self._streams and all(stream.source.is_finished for stream in self._each()):
                    break
                self.stop.wait(POLL_S)
        for stream in self._each():
            is_at_end = not self.stop.is_set() or stream.at is None
            chunk = stream.source.finish() if is_at_end else None
            if chunk is not None:
                self._take(stream, chunk)
            if is_at_end:
                # What might go on is read again later, if it can be.
                self._put(stream, stream.joiner.flush())
                stream.settle()

    @property
    def unread(self) -> dict[str, OSError]:
        """Which sources cannot be read now, and why."""
        return {stream.source.name: stream.source.error for stream in self._each() if stream.source.error is not None}

    def step(self) -> bool:
        """Read what there is now from each source once; return whether there was anything."""
        if self._discover is not None and self._clock() - self._discovered_at >= SCAN_S:
            self._discovered_at = self._clock()
            self._discover(self)
        has_read = False
        for stream in self._each():
            if stream.rate is not None and not stream.rate.has_room:
                continue
            self._make_room_for(stream)
            chunk = stream.source.read()
            if chunk is not None:
                has_read = True
                self._take(stream, chunk)
            elif stream.joiner.is_holding:
                if self._clock() - stream.fed_at >= HOLD_S:
                    self._put(stream, stream.joiner.flush())
                    stream.settle()
            elif stream.is_found and isinstance(stream.source.error, FileNotFoundError):
                self._mark()  # with its last position
                stream.source.close()
                del self._streams[stream.source.name]
        if self._has_unmarked and self._clock() - self._marked_at >= MARK_INTERVAL_S:
            self._mark()
        self.settle()
        return has_read

    def _make_room_for(self, stream: _Stream) -> None:
        """Close the file that was read longest ago, if opening one more would be too many."""
        if not isinstance(stream.source, FileSource) or stream.source.is_open or stream.source.is_parked:
            return
        opened = [
            (other.fed_at, other.source)
            for other in self._streams.values()
            if isinstance(other.source, FileSource) and other.source.is_open
        ]
        if len(opened) >= self._open_files_max:
            min(opened, key=lambda pair: pair[0])[1].park()

    def settle(self) -> None:
        """Move the checkpoints to where everything has arrived."""
        passed: dict[str, Position] | None = None
        while self._pending and self._pending[0][0].passed:
            passed = self._pending.popleft()[1]
            for name, position in passed.items():
                self.positions.pop(name, None)  # so that the latest come last
                self.positions[name] = position
        if passed is not None and self._checkpoints is not None:
            try:
                self._checkpoints.save(self.positions)
                self.counters.checkpoints += 1
            except OSError as exc:
                self.counters.checkpoints_failed += 1
                _say(f"cannot write checkpoints, lines will be sent again after a restart: {exc}")

    def finish(self, timeout_s: float, stop_timeout_s: float) -> bool:
        """Wait until everything read has arrived, then move the checkpoints.

        Args:
            timeout_s: Longest wait.
            stop_timeout_s: Longest wait from when ``stop`` is set.

        Returns:
            False if it has not arrived; it will be read again.
        """
        self._mark()
        last = self._pending[-1][0]
        deadline = self._clock() + timeout_s
        is_stopping = False
        while not last.wait(0.05) and self._clock() < deadline:
            if self.stop.is_set() and not is_stopping:
                is_stopping = True
                deadline = min(deadline, self._clock() + stop_timeout_s)
        has_arrived = last.passed
        self.settle()
        for stream in self._each():
            stream.source.close()
        return has_arrived

    def metrics(self) -> dict[str, float]:
        """Return what is known about reading and sending, by name of metric."""
        streams = self._each()
        values = self.counters.values()
        values["agent_files"] = len(streams)
        values["agent_files_unreadable"] = len(self.unread)
        values["agent_unread_bytes"] = sum(
            stream.source.unread_bytes for stream in streams if isinstance(stream.source, FileSource)
        )
        for name, value in self._batcher.stats().items():
            if name.startswith("dropped_"):
                values[f'agent_dropped_records_total{{reason="{name[8:]}"}}'] = value
        stats = self._batcher.stats()
        values["agent_queued_records"] = stats["queued"]
        values["agent_sent_records_total"] = stats["sent"]
        values["agent_spooled_batches"] = stats["spooled_batches"]
        return values

    def _each(self) -> list[_Stream]:
        return list(self._streams.values())

    def _tell_what_was_skipped(self) -> None:
        for stream in self._each():
            if isinstance(stream.source, FileSource) and stream.source.skipped:
                for path, reason in stream.source.skipped.items():
                    if path not in self._told_skipped and len(self._told_skipped) < _TOLD_MAX:
                        _say(
                            f"cannot read {path}, or not to its end; what cannot be read is left out: {reason.strerror or reason}"
                        )
                        self._told_skipped.add(path)
                        self.counters.files_skipped += 1
                stream.source.skipped.clear()

    def _tell_what_is_awaited(self) -> None:
        for stream in self._each():
            error = stream.source.error
            if error is None:
                stream.is_awaited = False
            elif not stream.is_awaited:
                stream.is_awaited = True
                if isinstance(error, FileNotFoundError):
                    _say(f"waiting for {stream.source.name} to appear")
                else:
                    _say(f"waiting until {stream.source.name} can be read: {error.strerror}")

    def _mark(self) -> None:
        self._has_unmarked = False
        self._marked_at = self._clock()
        positions = {stream.source.name: stream.settled for stream in self._each()}
        known = {name: position for name, position in positions.items() if position is not None}
        self._pending.append((self._batcher.mark(), known))

    def _take(self, stream: _Stream, chunk: Chunk) -> None:
        if chunk.identity != stream.identity:
            self._put(stream, stream.joiner.flush())  # the end of the file before
            stream.identity = chunk.identity
        if stream.at is None and chunk.at is not None:
            # That reading began here is kept at once: the file may be rotated away before anything has arrived.
            stream.at = stream.settled = replace(chunk.at, offset=chunk.lines[0][0])
            self._mark()
        size = 0
        for first in range(0, len(chunk.lines), self._together):
            lines = chunk.lines[first : first + self._together]
            self._put(stream, stream.joiner.feed_plain(lines))
            size += sum([len(text) + 1 for _, text in lines])
        self.counters.lines += len(chunk.lines)
        self.counters.bytes += size
        if stream.rate is not None:
            stream.rate.take(len(chunk.lines), size)
        stream.at = chunk.at
        stream.settle()
        stream.fed_at = self._clock()
        self._has_unmarked = True

    def _put(self, stream: _Stream, completed: list[Joined[int]]) -> None:
        if not completed:
            return
        now = datetime.now(timezone.utc)
        lines = stream.renderer.render(stream.identity, completed, f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}Z")
        while not self._batcher.has_room:
            self.settle()
            if self.stop.wait(0.02):
                raise Stopped
        if lines:
            self._batcher.put_finished(lines)
        self.counters.records += len(lines)
        self._has_unmarked = True


class SingleLines(Joiner[int]):
    """Makes each line a record of its own."""

    def feed_plain(self, lines: list[tuple[int, str]]) -> list[Joined[int]]:
        return [Joined(text, mark) for mark, text in lines]


class Stopped(Exception):
    """The agent was told to stop while it waited for room."""


# --- the program --------------------------------------------------------------------------------


def _fields(config: FileConfig, path: str) -> dict[str, Any]:
    name = "stdin" if path == "-" else os.path.basename(path).split(".")[0]
    fields = {
        "service.name": config.service or name,
        "service.environment": config.environment,
        "service.version": config.version,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _parser_of(config: FileConfig) -> LineParser:
    return LineParser(config.format, pattern=config.pattern, zone=config.zone)


def _rate_of(config: FileConfig) -> Rate | None:
    if config.records_per_s is None and config.bytes_per_s is None:
        return None
    return Rate(config.records_per_s, config.bytes_per_s)


class _Discovery:
    """Follows what the configuration names, and what its patterns come to match."""

    def __init__(self, files: Sequence[FileConfig], *, is_once: bool) -> None:
        self._files = files
        self._grace_s = 0.0 if is_once else 1.0
        self._is_first = True

    def __call__(self, agent: Agent) -> None:
        followed = set(agent.names)
        real = {os.path.realpath(name) for name in followed}
        for config in self._files:
            is_pattern = watch.is_pattern(config.path)
            for path in watch.expand(config.path, config.exclude) if is_pattern else [config.path]:
                if path in followed or (is_pattern and os.path.realpath(path) in real):
                    continue
                followed.add(path)
                real.add(os.path.realpath(path))
                source: Source
                if path == "-":
                    source = StreamSource()
                else:
                    # What appears later is new, and read from its beginning.
                    is_from_end = config.start == "end" and self._is_first
                    source = FileSource(path, agent.positions.get(path), is_from_end=is_from_end, grace_s=self._grace_s)
                agent.follow(
                    source,
                    _fields(config, path),
                    _parser_of(config),
                    joins_lines=config.multiline,
                    rate=_rate_of(config),
                    is_found=is_pattern,
                )
        self._is_first = False


def _check(config: Config) -> None:
    """Say what would be followed, and how its first line is understood."""
    url = config.url or os.environ.get("LOGSVC_URL")
    sys.stdout.write(f"service: {url or 'no address: pass --url or set LOGSVC_URL'}\n")
    if not os.environ.get("LOGSVC_API_KEY"):
        sys.stdout.write("key: none: set LOGSVC_API_KEY (`logsvc keys create --scope ingest`)\n")
    for entry in config.files:
        parser = _parser_of(entry)
        paths = [entry.path]
        if watch.is_pattern(entry.path):
            paths = watch.expand(entry.path, entry.exclude)
            sys.stdout.write(f"{entry.path}: {len(paths)} files now\n")
        for path in paths:
            if path == "-" or os.access(path, os.R_OK):
                state = "readable"
            else:
                state = "not readable by this user" if os.path.exists(path) else "not there yet; awaited"
            fields = " ".join(f"{key}={value}" for key, value in _fields(entry, path).items())
            sys.stdout.write(f"{path}: {state}; {fields}\n")
            if path != "-" and state == "readable":
                sys.stdout.write(_first_record(path, parser))


def _first_record(path: str, parser: LineParser) -> str:
    with open(path, "rb") as file:
        line = file.readline(64 * 1024).rstrip(b"\r\n").decode("utf-8", "replace")
    if not line:
        return ""
    record = parser.parse(line, "1970-01-01T00:00:00.000000Z")
    del record["event.created"]
    if record.get("@timestamp", "").startswith("1970-01-01T00:00:00.000000Z"):
        record["@timestamp"] = "when it is read"
    shown = "; ".join(f"{name}: {value}"[:120] for name, value in record.items())
    return f"  first line read as {shown}\n"


def _state_directory(config: Config) -> Path:
    if config.state_dir:
        return Path(config.state_dir)
    root = default_root()
    if root is None:
        raise ConfigError("this user has no home to keep checkpoints in; pass --state-dir")
    return root.parent / "agent"


def _lock_state(state: Path) -> IO[bytes]:
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = lock_file(state / "lock", create=True)
    if lock is None:
        raise ConfigError(f"another agent uses {state}; stop it, or give this one its own --state-dir")
    return lock


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent.

    Returns:
        The exit code: 0; 1 if not everything arrived or, with ``--once``, could be read; 2 for a wrong
        configuration.
    """
    try:
        config, options = configure(arguments)
        for entry in config.files:
            _parser_of(entry)
        if options.check:
            _check(config)
            return 0
        state = _state_directory(config)
        reads_stdin = any(entry.path == "-" for entry in config.files)
        spool_dir: SpoolDir = config.spool_dir or (AUTO if reads_stdin else None)
        settings = Settings(
            queue_max_records=20_000, queue_max_bytes=config.memory_max_bytes, is_replayable=not reads_stdin
        )
        batcher = open_batcher(config.url, service=config.service or "agent", spool_dir=spool_dir, settings=settings)
        try:
            lock = _lock_state(state)
        except BaseException:
            batcher.close(0.0)
            raise
    except (ConfigError, ValueError, OSError) as exc:
        _say(str(exc))
        return 2
    with lock:
        return _run(config, batcher, Checkpoints(state / "checkpoints.json"), is_once=options.once)


def _run(config: Config, batcher: Batcher, checkpoints: Checkpoints, *, is_once: bool) -> int:
    stop = threading.Event()
    try:
        discovery = _Discovery(config.files, is_once=is_once)
        agent = Agent([], batcher, checkpoints, discover=discovery, stop=stop, open_files_max=config.open_files_max)
        server = serve_metrics(config.metrics, agent.metrics) if config.metrics else None
    except (ValueError, OSError) as exc:
        batcher.close(0.0)
        _say(str(exc))
        return 2

    def stop_on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_on_signal)
    try:
        agent.run(is_once=is_once)
    except Stopped:
        pass
    unread = agent.unread if is_once else {}
    for path, error in unread.items():
        _say(f"cannot read {path}: {error.strerror}")
    # --once is run by people and scripts who want to know; a daemon must stop when told.
    exit_timeout_s = batcher.settings.exit_timeout_s
    has_arrived = agent.finish(ONCE_TIMEOUT_S, exit_timeout_s)
    batcher.close(exit_timeout_s if has_arrived else 0.1)
    agent.settle()
    if server is not None:
        server.shutdown()
        server.server_close()
    if not has_arrived:
        _say("not everything has arrived at the service; the rest will be sent at the next start")
    return 0 if has_arrived and not unread else 1


def _say(message: str) -> None:
    sys.stderr.write(f"shippers.agent: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
