"""Settings of the agent: a TOML file and the command line over it.

Everything that can be said of one file can be said at the top for all of them. What is unknown or of
the wrong kind stops the start, named.

Not here: what the settings do (agent.py).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

from shippers.lines import FORMATS
from shippers.watch import is_pattern


@dataclass(frozen=True)
class FileConfig:
    """What is to be done with a file, or with all that a pattern matches.

    Attributes:
        path: The file; a pattern with ``*``, ``?``, ``[…]`` or ``**``; or ``-``, standard input.
        exclude: Patterns of files to leave out; without a slash they are matched with the name alone.
        service: Name of the program that writes it; None means the file's name up to its first dot.
        environment: Such as ``production``.
        version: Release of that program.
        format: ``auto``, ``plain``, ``json`` or ``logfmt``.
        pattern: A regular expression whose named groups are fields.
        zone: IANA name of the zone of times that name none; None means this machine's.
        multiline: Whether a stack and the line before it are one record.
        start: Where to start in a file seen for the first time: ``beginning`` or ``end``.
        records_per_s: How many lines may be read each second.
        bytes_per_s: How many bytes.
    """

    path: str
    exclude: tuple[str, ...] = ()
    service: Optional[str] = None
    environment: Optional[str] = None
    version: Optional[str] = None
    format: str = "auto"
    pattern: Optional[str] = None
    zone: Optional[str] = None
    multiline: bool = True
    start: str = "beginning"
    records_per_s: Optional[float] = None
    bytes_per_s: Optional[float] = None


@dataclass(frozen=True)
class Config:
    """What the agent does.

    Attributes:
        url: Address of the service; None means ``LOGSVC_URL``.
        service: The service of all files that name none.
        state_dir: Directory of the checkpoints; None means the user's state directory.
        spool_dir: Where batches wait while the service is away; None stops reading instead.
        metrics: HOST:PORT at which Prometheus finds metrics; None for none.
        memory_max_bytes: Bound on what was read and is not yet on its way.
        open_files_max: How many files are held open; those longest without a line are closed until they have one.
        files: What to follow.
    """

    url: Optional[str] = None
    service: Optional[str] = None
    state_dir: Optional[str] = None
    spool_dir: Optional[str] = None
    metrics: Optional[str] = None
    memory_max_bytes: int = 8 * 1024 * 1024
    open_files_max: int = 256
    files: tuple[FileConfig, ...] = ()


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to do."""


_OF_FILES = {field.name for field in fields(FileConfig)} - {"path"}
_OF_AGENT = {field.name for field in fields(Config)} - {"files"}
_KINDS: Mapping[str, tuple[str, type[Any]]] = {
    "exclude": ('a list of patterns, such as ["*.tmp"]', list),
    "multiline": ("true or false", bool),
    "records_per_s": ("a number above 0", float),
    "bytes_per_s": ("a number above 0", float),
    "memory_max_bytes": ("a number of bytes, at least 1048576", int),
    "open_files_max": ("a number of files, at least 1", int),
}


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
    entries = data.pop("files", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path}: files must be tables, such as [[files]] with path = "/var/log/shop.log"')
    values = _checked(path, "", data, _OF_AGENT | _OF_FILES)
    shared = {name: value for name, value in values.items() if name in _OF_FILES}
    files = []
    for entry in entries:
        if "path" not in entry:
            raise ConfigError(f'{path}: an entry of files lacks path, such as path = "/var/log/shop.log"')
        files.append(FileConfig(**{**shared, **_checked(path, "files", entry, _OF_FILES | {"path"})}))
    return Config(
        **{name: value for name, value in values.items() if name in _OF_AGENT},
        files=tuple(files) or (FileConfig("", **shared),),
    )


def _checked(path: str, table: str, data: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{table}.{key}" if table else key
        if key not in known:
            hint = "; the key comes from LOGSVC_API_KEY" if "key" in key else ""
            raise ConfigError(f"{path}: unknown key {name}; known are {', '.join(sorted(known))}{hint}")
        expected, kind = _KINDS.get(key, ("a string", str))
        is_right = isinstance(value, (int, float) if kind is float else kind)
        if isinstance(value, bool) != (kind is bool):
            is_right = False
        if kind is list:
            is_right = is_right and all(isinstance(item, str) for item in value)
        elif is_right and kind in (int, float):
            is_right = value >= (1024 * 1024 if key == "memory_max_bytes" else 1) if kind is int else value > 0
        if not is_right:
            raise ConfigError(f"{path}: {name} is {value!r}; expected {expected}")
        values[key] = tuple(value) if kind is list else value
    return values


_EPILOG = """\
The key is read from the variable LOGSVC_API_KEY, never from the command line, where others could see it.

examples:
  follow files for ever, as the service "shop", also those that appear later:
    LOGSVC_API_KEY=… python -m shippers.agent --url http://127.0.0.1:8080 --service shop '/var/log/shop/*.log'
  send what a file holds and exit:
    python -m shippers.agent --once --service shop old.log
  read another program's output:
    ./worker 2>&1 | python -m shippers.agent --service worker -
  see how a configuration is understood:
    python -m shippers.agent --config agent.toml --check

what it does:
  JSON lines and logfmt become records with their own fields; of other lines time and level are recognised;
  a stack of Python, Java, Node.js, .NET or Go joins the line before it. Files are followed through renames,
  copytruncate, compression and truncation. Where reading stopped is kept in --state-dir and moves only when
  the service has acknowledged; lines sent twice after a crash are stored once. While the service is away,
  reading waits (standard input goes to a spool on disk). A file that is not there yet is awaited; with
  --once it is an error.

a configuration file (TOML):
  url = "https://logs.example"
  state_dir = "/var/lib/logsvc-agent"   # also spool_dir, metrics = "127.0.0.1:9464", memory_max_bytes, open_files_max
  environment = "production"            # this and what follows may stand here for all files, or with one
  [[files]]
  path = "/var/log/shop/*.log"          # also **; what rotation makes of a file is left out by itself
  exclude = ["debug*"]
  service = "shop-web"                  # also version
  format = "auto"                       # or plain, json, logfmt
  pattern = '(?P<time>\\S+ \\S+) (?P<level>\\w+) (?P<message>.*)'   # named groups become fields
  zone = "Europe/Berlin"                # of times that name none
  multiline = true
  start = "beginning"                   # or end, in files seen for the first time
  records_per_s = 5000                  # also bytes_per_s
"""


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m shippers.agent",
        description="Follow log files and ship what is written to them to logsvc.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="file or pattern to follow; - is standard input")
    parser.add_argument("--url", help="address of the service (default: LOGSVC_URL)")
    parser.add_argument("--service", help="name of the program that writes the files (default: each file's name)")
    parser.add_argument("--environment", help="such as production")
    parser.add_argument("--version", help="release of the program that writes the files")
    parser.add_argument("--config", metavar="TOML", help="configuration file; the command line wins over it")
    parser.add_argument("--check", action="store_true", help="say what would be followed and how it is read, and exit")
    parser.add_argument("--once", action="store_true", help="read to the end, wait until it has arrived, and exit")
    parser.add_argument(
        "--start", choices=("beginning", "end"), help="where to start in a file seen for the first time (beginning)"
    )
    parser.add_argument("--exclude", action="append", metavar="PATTERN", help="leave out what matches; may be repeated")
    parser.add_argument("--format", choices=FORMATS, help="what lines are (auto)")
    parser.add_argument("--zone", help="IANA name of the zone of times that name none (default: this machine's)")
    parser.add_argument("--state-dir", help="directory of the checkpoints (default: the user's state directory)")
    parser.add_argument("--spool-dir", help="keep batches here while the service is away, rather than stop reading")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here")
    return parser


def configure(arguments: Sequence[str] | None) -> tuple[Config, argparse.Namespace]:
    """Return the configuration that the command line (None: the program's own) amounts to.

    Raises:
        ConfigError: If it cannot be used.
    """
    options = command_line().parse_args(arguments)
    config = read_config(options.config) if options.config else Config()
    given = {name: value for name in _OF_AGENT if (value := getattr(options, name, None)) is not None}
    of_files = {name: value for name in _OF_FILES - {"exclude"} if (value := getattr(options, name, None)) is not None}
    if options.exclude:
        of_files["exclude"] = tuple(options.exclude)
    template = config.files[0] if config.files and not config.files[0].path else FileConfig("")
    entries = [entry for entry in config.files if entry.path] + [replace(template, path=path) for path in options.files]
    files = {entry.path: replace(entry, **of_files) for entry in entries}
    config = replace(config, files=tuple(files.values()), **given)
    if not config.files:
        raise ConfigError("nothing to follow; name files, or - for standard input (see --help)")
    for entry in config.files:
        if entry.start not in ("beginning", "end"):
            raise ConfigError(f"start is {entry.start!r}; expected beginning or end")
        if entry.path != "-" and not is_pattern(entry.path) and os.path.isdir(entry.path):
            raise ConfigError(f"{entry.path} is a directory; name the files in it, such as {entry.path}/*.log")
    return config, options
