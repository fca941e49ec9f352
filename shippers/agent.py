"""Agent: follows log files and ships what is written to them. ``python -m shippers.agent --help``.

Files are read in one thread; records are encoded and sent by the batcher's. A checkpoint moves only
when all records before it have been acknowledged, or are safe in a spool. While the service is
away reading stops: the files themselves are the buffer. After a crash lines since the last
checkpoint are read and sent again under the same ``event.id``, so the service keeps them once.

What always holds: memory is bounded; no line is lost as long as its file can be read.

Not here: following (tail.py), joining (multiline.py), parsing (lines.py).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import IO, Any, Callable, Optional

from shippers.assembly import AUTO, SpoolDir, open_batcher
from shippers.batcher import Batcher, Mark, Settings
from shippers.lines import parse_record
from shippers.multiline import Joined, Joiner
from shippers.spool import default_root, lock_file
from shippers.tail import Checkpoints, Chunk, FileSource, Position, Source, StreamSource, line_id

POLL_S = 0.2
HOLD_S = 1.0  # a record that might go on is sent after a pause of this length
MARK_INTERVAL_S = 0.5
ONCE_TIMEOUT_S = 60.0


@dataclass
class _Stream:
    """One source with the state of reading it."""

    source: Source
    fields: dict[str, Any]
    joiner: Joiner[int] = field(default_factory=Joiner)
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
        stop: Ends ``run`` when set.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        sources: Iterable[tuple[Source, dict[str, Any]]],
        batcher: Batcher,
        checkpoints: Checkpoints | None = None,
        *,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stop = stop or threading.Event()
        self._streams = [_Stream(source, fields) for source, fields in sources]
        self._batcher = batcher
        self._checkpoints = checkpoints
        self._positions: dict[str, Position] = checkpoints.load() if checkpoints is not None else {}
        self._pending: deque[tuple[Mark, dict[str, Position]]] = deque()
        self._has_unmarked = False
        self._marked_at = -MARK_INTERVAL_S
        self._clock = clock

    def run(self, *, is_once: bool = False) -> None:
        """Read until ``stop`` is set; with ``is_once``, until all sources are at their end."""
        while not self.stop.is_set():
            has_read = self.step()
            if not is_once:
                self._tell_what_is_awaited()
            if not has_read:
                if is_once or all(stream.source.is_finished for stream in self._streams):
                    break
                self.stop.wait(POLL_S)
        for stream in self._streams:
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
        return {stream.source.name: stream.source.error for stream in self._streams if stream.source.error is not None}

    def step(self) -> bool:
        """Read what there is now from each source once; return whether there was anything."""
        has_read = False
        for stream in self._streams:
            chunk = stream.source.read()
            if chunk is not None:
                has_read = True
                self._take(stream, chunk)
            elif stream.joiner.is_holding and self._clock() - stream.fed_at >= HOLD_S:
                self._put(stream, stream.joiner.flush())
                stream.settle()
        if self._has_unmarked and self._clock() - self._marked_at >= MARK_INTERVAL_S:
            self._mark()
        self.settle()
        return has_read

    def settle(self) -> None:
        """Move the checkpoints to where everything has arrived."""
        passed: dict[str, Position] | None = None
        while self._pending and self._pending[0][0].passed:
            passed = self._pending.popleft()[1]
        if passed is not None and self._checkpoints is not None:
            self._positions.update(passed)
            try:
                self._checkpoints.save(self._positions)
            except OSError as exc:
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
        for stream in self._streams:
            stream.source.close()
        return has_arrived

    def _tell_what_is_awaited(self) -> None:
        for stream in self._streams:
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
        positions = {stream.source.name: stream.settled for stream in self._streams}
        known = {name: position for name, position in positions.items() if position is not None}
        self._pending.append((self._batcher.mark(), known))

    def _take(self, stream: _Stream, chunk: Chunk) -> None:
        if chunk.identity != stream.identity:
            self._put(stream, stream.joiner.flush())  # the end of the file before
            stream.identity = chunk.identity
        feed = stream.joiner.feed
        for offset, text in chunk.lines:
            completed = feed(text, offset)
            if completed:
                self._put(stream, completed)
        stream.at = chunk.at
        stream.settle()
        stream.fed_at = self._clock()
        self._has_unmarked = True

    def _put(self, stream: _Stream, completed: list[Joined[int]]) -> None:
        for joined in completed:
            if not joined.text.strip():
                continue
            while not self._batcher.has_room:
                self.settle()
                if self.stop.wait(0.02):
                    raise Stopped
            self._batcher.put(self._record(stream, joined))
            self._has_unmarked = True

    def _record(self, stream: _Stream, joined: Joined[int]) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        record = parse_record(joined.text, f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}Z")
        for name, others in _ORIGIN_NAMES.items():
            # A line that says itself which service it is from is believed.
            if name not in record and any(other in record for other in others):
                record[name] = None
            elif name in stream.fields:
                record.setdefault(name, stream.fields[name])
        if not any(key in record for key in ("event.id", "event")):
            record["event.id"] = line_id(stream.identity, joined.mark)
        record["log.file.path"] = stream.source.name
        record["log.offset"] = joined.mark
        return record


# Names under which a JSON line may say what the agent says too (the service's aliases, and nested).
_ORIGIN_NAMES = {
    "service.name": ("service",),
    "service.version": ("service", "version", "release"),
    "service.environment": ("service", "env"),
    "host.name": ("host",),
}


class Stopped(Exception):
    """The agent was told to stop while it waited for room."""


# --- configuration and command line ------------------------------------------------------------


@dataclass(frozen=True)
class FileConfig:
    """A file to follow; what is None is as in ``Config``."""

    path: str
    service: Optional[str] = None
    environment: Optional[str] = None
    version: Optional[str] = None


@dataclass(frozen=True)
class Config:
    """What the agent does."""

    url: Optional[str] = None
    service: Optional[str] = None
    environment: Optional[str] = None
    version: Optional[str] = None
    state_dir: Optional[str] = None
    spool_dir: Optional[str] = None
    start: str = "beginning"
    files: tuple[FileConfig, ...] = ()


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to do."""


def read_config(path: str) -> Config:
    """Return the configuration in a TOML file.

    Raises:
        ConfigError: If it cannot be read, or holds unknown keys or values of the wrong type.
    """
    try:
        toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError as exc:
        raise ConfigError("reading TOML needs Python 3.11 or: pip install 'logsvc-shippers[toml]'") from exc
    try:
        data: dict[str, Any] = toml.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc
    files = data.pop("files", [])
    if not isinstance(files, list) or not all(isinstance(entry, dict) for entry in files):
        raise ConfigError(f'{path}: files must be tables, such as [[files]] with path = "/var/log/shop.log"')
    entries = tuple(
        FileConfig(**_strings(path, "files", entry, FileConfig)) for entry in files if _has_path(path, entry)
    )
    return Config(**_strings(path, "", data, Config), files=entries)


def _has_path(path: str, entry: dict[str, Any]) -> bool:
    if "path" not in entry:
        raise ConfigError(f'{path}: an entry of files lacks path, such as path = "/var/log/shop.log"')
    return True


def _strings(path: str, table: str, data: dict[str, Any], kind: type[Any]) -> dict[str, str]:
    known = sorted(set(kind.__dataclass_fields__) - {"files"})
    for key, value in data.items():
        name = f"{table}.{key}" if table else key
        if key not in known:
            hint = "; the key comes from LOGSVC_API_KEY" if "key" in key else ""
            raise ConfigError(f"{path}: unknown key {name}; known are {', '.join(known)}{hint}")
        if not isinstance(value, str):
            raise ConfigError(f"{path}: {name} is {value!r}; expected a string")
    return data


_EPILOG = """\
The key is read from the variable LOGSVC_API_KEY, never from the command line, where others could see it.

examples:
  follow two files for ever, as the service "shop":
    LOGSVC_API_KEY=… python -m shippers.agent --url http://127.0.0.1:8080 --service shop /var/log/shop/*.log
  send what a file holds and exit:
    python -m shippers.agent --once --service shop old.log
  read another program's output:
    ./worker 2>&1 | python -m shippers.agent --service worker -

what it does:
  JSON lines become records with their own fields; of other lines time and level are recognised; a Python
  traceback joins the line before it. Files are followed through renames and truncation. Where reading
  stopped is kept in --state-dir and moves only when the service has acknowledged; lines sent twice after a
  crash are stored once. While the service is away, reading waits (standard input goes to a spool on disk).
  A file that is not there yet is awaited; with --once it is an error.

a configuration file (TOML) may hold url, service, environment, version, state_dir, spool_dir, start, and:
  [[files]]
  path = "/var/log/shop/web.log"
  service = "shop-web"
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shippers.agent",
        description="Follow log files and ship what is written to them to logsvc.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="file to follow; - is standard input")
    parser.add_argument("--url", help="address of the service (default: LOGSVC_URL)")
    parser.add_argument("--service", help="name of the program that writes the files (default: each file's name)")
    parser.add_argument("--environment", help="such as production")
    parser.add_argument("--version", help="release of the program that writes the files")
    parser.add_argument("--config", metavar="TOML", help="configuration file; the command line wins over it")
    parser.add_argument("--check", action="store_true", help="say what would be followed, and exit")
    parser.add_argument("--once", action="store_true", help="read to the end, wait until it has arrived, and exit")
    parser.add_argument(
        "--start", choices=("beginning", "end"), help="where to start in a file seen for the first time (beginning)"
    )
    parser.add_argument("--state-dir", help="directory of the checkpoints (default: the user's state directory)")
    parser.add_argument("--spool-dir", help="keep batches here while the service is away, rather than stop reading")
    return parser


def _configure(arguments: Sequence[str] | None) -> tuple[Config, argparse.Namespace]:
    options = _parser().parse_args(arguments)
    config = read_config(options.config) if options.config else Config()
    given = {
        name: value
        for name in ("url", "service", "environment", "version", "state_dir", "spool_dir", "start")
        if (value := getattr(options, name)) is not None
    }
    files = (*config.files, *(FileConfig(path) for path in options.files))
    config = replace(config, files=tuple({entry.path: entry for entry in files}.values()), **given)
    if not config.files:
        raise ConfigError("nothing to follow; name files, or - for standard input (see --help)")
    if config.start not in ("beginning", "end"):
        raise ConfigError(f"start is {config.start!r}; expected beginning or end")
    for entry in config.files:
        if entry.path != "-" and os.path.isdir(entry.path):
            raise ConfigError(f"{entry.path} is a directory; name the files in it, such as {entry.path}/*.log")
    return config, options


def _fields(config: Config, entry: FileConfig) -> dict[str, Any]:
    name = "stdin" if entry.path == "-" else os.path.basename(entry.path).split(".")[0]
    fields = {
        "service.name": entry.service or config.service or name,
        "service.environment": entry.environment or config.environment,
        "service.version": entry.version or config.version,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _check(config: Config) -> None:
    url = config.url or os.environ.get("LOGSVC_URL")
    sys.stdout.write(f"service: {url or 'no address: pass --url or set LOGSVC_URL'}\n")
    if not os.environ.get("LOGSVC_API_KEY"):
        sys.stdout.write("key: none: set LOGSVC_API_KEY (`logsvc keys create --scope ingest`)\n")
    for entry in config.files:
        if entry.path == "-" or os.access(entry.path, os.R_OK):
            state = "readable"
        else:
            state = "not readable by this user" if os.path.exists(entry.path) else "not there yet; awaited"
        fields = " ".join(f"{key}={value}" for key, value in _fields(config, entry).items())
        sys.stdout.write(f"{entry.path}: {state}; {fields}\n")


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
        config, options = _configure(arguments)
        if options.check:
            _check(config)
            return 0
        state = _state_directory(config)
        reads_stdin = any(entry.path == "-" for entry in config.files)
        spool_dir: SpoolDir = config.spool_dir or (AUTO if reads_stdin else None)
        settings = Settings(queue_max_records=10_000, is_replayable=not reads_stdin)
        batcher = open_batcher(config.url, service=config.service or "agent", spool_dir=spool_dir, settings=settings)
        lock = _lock_state(state)
        checkpoints = Checkpoints(state / "checkpoints.json")
        resume = checkpoints.load()
    except (ConfigError, ValueError, OSError) as exc:
        _say(str(exc))
        return 2
    stop = threading.Event()

    def stop_on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_on_signal)
    sources: list[tuple[Source, dict[str, Any]]] = []
    for entry in config.files:
        source: Source
        if entry.path == "-":
            source = StreamSource()
        else:
            source = FileSource(
                entry.path,
                resume.get(entry.path),
                is_from_end=config.start == "end",
                grace_s=0.0 if options.once else 1.0,
            )
        sources.append((source, _fields(config, entry)))
    with lock:
        agent = Agent(sources, batcher, checkpoints, stop=stop)
        try:
            agent.run(is_once=options.once)
        except Stopped:
            pass
        unread = agent.unread if options.once else {}
        for path, error in unread.items():
            _say(f"cannot read {path}: {error.strerror}")
        # --once is run by people and scripts who want to know; a daemon must stop when told.
        has_arrived = agent.finish(ONCE_TIMEOUT_S, settings.exit_timeout_s)
        batcher.close(settings.exit_timeout_s if has_arrived else 0.1)
        agent.settle()
    if not has_arrived:
        _say("not everything has arrived at the service; the rest will be sent at the next start")
    return 0 if has_arrived and not unread else 1


def _say(message: str) -> None:
    sys.stderr.write(f"shippers.agent: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
