"""Settings of the service: read once at start from LOGSVC_* variables or a TOML file, then handed out in parts.

Each field below is the one place that says a setting's variable, type, default and help; the TOML
key is its place in the tree (``[journal] max_bytes`` is ``LOGSVC_JOURNAL_MAX_BYTES``). The start-up
check, ``doctor`` and the documentation read the same table (``SETTINGS``).

What always holds: variables win over the file; an empty variable counts as absent; an unknown key
or a value that cannot be used stops the start, with what was expected; no repr shows a secret.
``LOGSVC_URL``, ``LOGSVC_API_KEY`` and ``LOGSVC_SPOOL_KEY`` (the client's) and ``LOGSVC_TEST_*`` are none of the server's
and ignored.

Not here: the client's settings (client.py).
"""

# ruff: noqa: RUF009 - `_setting` declares a field, as `dataclasses.field` does

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from logsvc.errors import BadInput, SettingsError
from logsvc.names import TENANT_RULE, is_tenant
from logsvc.quotas import MAX_BURST_S, Quota
from logsvc.timestamps import format_duration, parse_duration

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PREFIX = "LOGSVC_"
_CONFIG = "LOGSVC_CONFIG"
_CLIENT = frozenset({"LOGSVC_URL", "LOGSVC_API_KEY", "LOGSVC_SPOOL_KEY"})
_TESTS = "LOGSVC_TEST_"

MAX_INGEST_PROCESSES = 64

_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


# Each parser takes the text of a variable and returns the value, or raises ValueError with what was expected.


def _text(value: str) -> str:
    return value


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _number(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError("a whole number")
    return int(value)


def _flag(value: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _duration(value: str) -> timedelta:
    try:
        return parse_duration(value)
    except BadInput:
        raise ValueError("a duration such as 5m, 60s or 30d") from None


def _size(value: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]*)", value)
    if match is None or match[2] not in _BYTES:
        raise ValueError("a size such as 8GiB, 500MB or a number of bytes")
    return int(match[1]) * _BYTES[match[2]]


whole_number, whole_size = _number, _size
"""How options of commands are read too."""


def whole_seconds(value: str) -> int:
    """Return a duration such as ``30s`` in seconds; raise ValueError with what was expected."""
    return round(_duration(value).total_seconds())


def shown_size(value: int) -> str:
    """Return a number of bytes as one would write it.

    >>> shown_size(5 * 2**20), shown_size(1_000_001)
    ('5MiB', '1000001')
    """
    unit = next((u for u in ("TiB", "GiB", "MiB", "KiB") if value >= _BYTES[u] and value % _BYTES[u] == 0), "")
    return f"{value // _BYTES[unit]}{unit}"


def _networks(value: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part) for part in re.split(r"[,\s]+", value) if part)
    except ValueError:
        raise ValueError("networks such as 10.1.0.0/16, separated by commas") from None


def _secrets(value: str) -> tuple[str, ...]:
    secrets = tuple(value.split())
    for secret in secrets:
        try:
            size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
        except binascii.Error:
            size = 0
        if not secret.startswith("whsec_") or not 24 <= size <= 64:
            raise ValueError("whsec_ and 24 to 64 bytes in base64 (new and old secret separated by a space)")
    return secrets


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return value.lower()

    return parse


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("an address such as https://logs.example.org")
    return value.rstrip("/")


def _store_url(value: str) -> str:
    if value == "embedded":
        return value
    try:
        return _url(value)
    except ValueError:
        raise ValueError("embedded, or the address of Elasticsearch such as https://elastic.example.org:9200") from None


def _database_url(value: str) -> str:
    if not re.match(r"(sqlite|postgresql)(\+\w+)?:///?", value):
        raise ValueError("sqlite:////path/to/state.db or postgresql+psycopg://user@host/database")
    return value


def _tenant(value: str) -> str:
    if not is_tenant(value):
        raise ValueError(TENANT_RULE)
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}|", value):
        raise ValueError("a name of letters, digits, _, . and -")
    return value


_LEAST_BUDGET, _MOST_BUDGET = 0.0001, 1.0


def _budget(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?|\.[0-9]{1,9}", value):
        raise ValueError("false tickets a task and day, such as 0.01")
    budget = float(value)
    if not _LEAST_BUDGET <= budget <= _MOST_BUDGET:
        raise ValueError(f"{_LEAST_BUDGET} to {_MOST_BUDGET:g} false tickets a task and day")
    return budget


@dataclass(frozen=True, slots=True, order=True)
class BudgetFor:
    """Another budget of false tickets, for a ``task``, a ``service`` or a ``tenant``."""

    what: str
    name: str
    budget: float

    def __str__(self) -> str:
        return f"{self.what}:{self.name}={self.budget:g}"


def _budgets(value: str) -> tuple[BudgetFor, ...]:
    found: dict[tuple[str, str], BudgetFor] = {}
    for part in filter(None, re.split(r"[,\s]+", value)):
        match = re.fullmatch(r"(task|service|tenant):(.+)=([^=]*)", part)
        if match is None:
            raise ValueError("task:NAME=0.001, service:NAME=0.05 or tenant:NAME=0.1, separated by commas")
        what, name, number = match.groups()
        if (what, name) in found:
            raise ValueError(f"{what}:{name} only once")
        found[what, name] = BudgetFor(what, name, _budget(number))
    return tuple(found.values())


budget, budgets = _budget, _budgets
"""How options of commands are read too."""


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "logsvc"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, for the documentation, ``doctor`` and tests.

    Attributes:
        name: Its variable.
        key: Its TOML key, such as ``journal.max_bytes``.
        parse: Text to value; raises ValueError with what was expected.
        kind: What to write: duration, size, path …
        default: The default as one would write it; a sentence in brackets if it depends on others.
        help: One sentence.
        is_secret: Whether its value is shown to nobody.
    """

    name: str
    key: str
    parse: Callable[[str], Any]
    kind: str
    default: str
    help: str
    is_secret: bool


_KINDS: dict[Callable[[str], Any], str] = {
    _text: "text",
    _path: "path",
    _number: "number",
    _flag: "true or false",
    _duration: "duration",
    _size: "size",
    _networks: "networks",
    _secrets: "secrets",
    _url: "address",
    _store_url: "embedded or address",
    _database_url: "database address",
    _tenant: "name",
    _budget: "number",
    _budgets: "names and numbers",
    _name: "name",
}


def _setting(
    name: str,
    parse: Callable[[str], Any],
    default: str | None,
    help: str,
    *,
    shown_default: str = "",
    kind: str = "",
    is_secret: bool = False,
) -> Any:
    """Declare a field. ``default`` is text as one would write it; None is decided in ``_complete``."""
    row = Setting(name, "", parse, kind or _KINDS[parse], shown_default or default or "", help, is_secret)
    value = None if default is None else parse(default)
    return field(default=value, metadata={"setting": row})


class _Part:
    """A part of the settings: its repr shows neither secrets nor passwords inside addresses."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for item in dataclasses.fields(cast(Any, self)):
            value, row = getattr(self, item.name), item.metadata.get("setting")
            shown.append(f"{item.name}={value!r}" if row is None else f"{item.name}={_show(row, value)!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _show(row: Setting, value: Any) -> str:
    """Return ``value`` as one would write it, or that it is set."""
    if value is None or value == ():
        return ""
    if row.is_secret:
        return "(set)"
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if row.parse is _size:
        return shown_size(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return without_password(str(value))


def without_password(address: str) -> str:
    """Return ``address`` without the credentials inside it, for people and logs.

    >>> without_password("https://elastic:hunter2@es.example.org:9200")
    'https://***@es.example.org:9200'
    """
    return re.sub(r"(?<=://)[^/?#]*@", "***@", address)


@dataclass(frozen=True, slots=True, repr=False)
class ServerSettings(_Part):
    """Where the service listens and how it answers."""

    host: str = _setting("LOGSVC_HOST", _text, "127.0.0.1", "Address to listen on.")
    port: int = _setting("LOGSVC_PORT", _number, "8080", "Port to listen on; 0 takes a free one.")
    public_url: str | None = _setting(
        "LOGSVC_PUBLIC_URL",
        _url,
        None,
        "Address at which people reach the service; links in tickets begin with it.",
        shown_default="(http://HOST:PORT)",
    )
    ack: str = _setting(
        "LOGSVC_ACK",
        _one_of("journal", "store"),
        "journal",
        "When a sender is answered: records are on this disk (journal), or in the store as well (store).",
        kind="journal or store",
    )
    ingest_processes: int | None = _setting(
        "LOGSVC_INGEST_PROCESSES",
        _number,
        None,
        "Processes that mask and normalise large batches beside the one that serves; 0 does it there.",
        shown_default="(half of the cores, at most 4)",
    )
    stop_timeout: timedelta = _setting(
        "LOGSVC_STOP_TIMEOUT",
        _duration,
        "8s",
        "How long ending may take; containers are killed after 10 s. What the store lacks then is indexed after the next "
        "start.",
    )


@dataclass(frozen=True, slots=True, repr=False)
class StoreSettings(_Part):
    """Where records are kept."""

    url: str = _setting(
        "LOGSVC_STORE_URL", _store_url, "embedded", "embedded (in the data directory), or the address of Elasticsearch."
    )
    prefix: str = _setting(
        "LOGSVC_STORE_PREFIX",
        _tenant,
        "logsvc-records",
        "How the names of indices in Elasticsearch begin; services with different ones share a server.",
    )
    repository: str = _setting(
        "LOGSVC_STORE_REPOSITORY",
        _name,
        "",
        "Snapshot repository of Elasticsearch in which `logsvc backup` keeps the records.",
    )

    @property
    def is_embedded(self) -> bool:
        """Whether records are kept in the data directory."""
        return self.url == "embedded"


@dataclass(frozen=True, slots=True, repr=False)
class StateSettings(_Part):
    """Where everything that is not logs is kept."""

    url: str = _setting(
        "LOGSVC_DATABASE_URL",
        _database_url,
        None,
        "Database of tickets, keys and checkpoints.",
        shown_default="(SQLite, DATA_DIR/state.db)",
    )


@dataclass(frozen=True, slots=True, repr=False)
class JournalSettings(_Part):
    """The journal, in DATA_DIR/journal."""

    max_bytes: int = _setting(
        "LOGSVC_JOURNAL_MAX_BYTES", _size, "8GiB", "Bytes of records that may wait for the store; beyond it, 503."
    )
    max_lag: timedelta = _setting(
        "LOGSVC_JOURNAL_MAX_LAG",
        _duration,
        "30s",
        "How far the store may fall behind while it takes records; beyond it senders are held back, then get 503.",
    )


@dataclass(frozen=True, slots=True, repr=False)
class QuotaSettings(_Part):
    """What a key may send that has no quota of its own."""

    records_per_second: int = _setting(
        "LOGSVC_QUOTA_RECORDS_PER_SECOND",
        _number,
        "0",
        "Records a second that a key may send on average, unless `logsvc keys` gave it another quota; 0 is unlimited.",
    )
    bytes_per_second: int = _setting(
        "LOGSVC_QUOTA_BYTES_PER_SECOND",
        _size,
        "0",
        "Bytes a second, after decompression, that a key may send on average unless it has another; 0 is unlimited.",
    )
    burst: timedelta = _setting(
        "LOGSVC_QUOTA_BURST", _duration, "10s", "How many seconds' worth of its quota a key may send at once."
    )

    @property
    def default(self) -> Quota:
        """The quota that these settings are."""
        return Quota(self.records_per_second, self.bytes_per_second, round(self.burst.total_seconds()))


@dataclass(frozen=True, slots=True, repr=False)
class DetectionSettings(_Part):
    """How windows are cut."""

    window: timedelta = _setting(
        "LOGSVC_WINDOW", _duration, "5m", "Length of a window of event time; it advances by a fifth of it."
    )
    grace: timedelta = _setting(
        "LOGSVC_GRACE", _duration, "60s", "How long after its end a window waits for late records before it is judged."
    )

    false_tickets: float = _setting(
        "LOGSVC_FALSE_TICKETS",
        _budget,
        "0.01",
        "How many false tickets a task may open a day: more finds more and sooner, 0.0001 to 1.",
    )
    false_tickets_for: tuple[BudgetFor, ...] = _setting(
        "LOGSVC_FALSE_TICKETS_FOR",
        _budgets,
        "",
        "The same for some, as `task:NAME=0.001, service:NAME=0.05, tenant:NAME=0.1`; the nearest counts, a task's first.",
    )

    def budget(self, tenant: str, unit: str, service: str | None) -> float:
        """Return the budget of a unit, ``task:NAME`` or ``service:NAME``, that runs in ``service``."""
        of = {(one.what, one.name): one.budget for one in self.false_tickets_for}
        kind, _, name = unit.partition(":")
        near = ((kind, name), ("service", service or ""), ("tenant", tenant))
        return next((of[key] for key in near if key in of), self.false_tickets)

    @property
    def has_services(self) -> bool:
        """Return whether a unit's budget depends on its service."""
        return any(one.what == "service" for one in self.false_tickets_for)

    @property
    def step(self) -> timedelta:
        """How far a window advances."""
        return self.window / 5


@dataclass(frozen=True, slots=True, repr=False)
class LossSettings(_Part):
    """When a record that did not arrive counts as lost."""

    grace: timedelta = _setting(
        "LOGSVC_LOSS_GRACE",
        _duration,
        "10m",
        "How long numbered records may be missing before they are called lost and a ticket says so.",
    )


@dataclass(frozen=True, slots=True, repr=False)
class RetentionSettings(_Part):
    """How long records are kept."""

    records: timedelta = _setting(
        "LOGSVC_RETENTION", _duration, "30d", "How long a day of records is kept after its last write."
    )


@dataclass(frozen=True, slots=True, repr=False)
class NotifySettings(_Part):
    """Where tickets are delivered."""

    tickets_file: Path = _setting(
        "LOGSVC_TICKETS_FILE",
        _path,
        None,
        "File to which every ticket event is appended as one line of JSON.",
        shown_default="(DATA_DIR/tickets.jsonl)",
    )
    webhook_url: str | None = _setting(
        "LOGSVC_WEBHOOK_URL", _url, None, "Address that gets every ticket event, signed (Standard Webhooks)."
    )
    webhook_secret: tuple[str, ...] = _setting(
        "LOGSVC_WEBHOOK_SECRET",
        _secrets,
        "",
        "Secret of the signature, whsec_…; new and old one separated by a space while it is changed.",
        is_secret=True,
    )
    webhook_secret_file: Path | None = _setting(
        "LOGSVC_WEBHOOK_SECRET_FILE", _path, None, "File that holds LOGSVC_WEBHOOK_SECRET instead."
    )
    webhook_allow_networks: tuple[Network, ...] = _setting(
        "LOGSVC_WEBHOOK_ALLOW_NETWORKS",
        _networks,
        "",
        "Private or loopback networks in which the webhook may be, such as 10.1.0.0/16; refused otherwise.",
    )


@dataclass(frozen=True, slots=True, repr=False)
class CanarySettings(_Part):
    """How the service proves to itself that errors become alerts."""

    every: timedelta = _setting(
        "LOGSVC_CANARY_EVERY",
        _duration,
        "1h",
        "How often a planted burst of errors must become a delivered alert, in a tenant nobody sees; 0s never.",
    )
    deadline: timedelta = _setting(
        "LOGSVC_CANARY_DEADLINE",
        _duration,
        "10m",
        "How long that may take; beyond it a critical ticket about the service itself opens.",
    )
    switch_url: str | None = _setting(
        "LOGSVC_DEAD_MANS_SWITCH_URL",
        _url,
        None,
        "Address that is called (GET) while all is well, and whose receiver raises the alarm when the calls stop.",
        is_secret=True,
    )
    switch_every: timedelta = _setting(
        "LOGSVC_DEAD_MANS_SWITCH_EVERY", _duration, "1m", "How often that address is called."
    )


@dataclass(frozen=True, slots=True, repr=False)
class SecuritySettings(_Part):
    """What guards the listening socket."""

    tls_cert: Path | None = _setting("LOGSVC_TLS_CERT", _path, None, "Certificate chain in PEM; turns TLS on.")
    tls_key: Path | None = _setting("LOGSVC_TLS_KEY", _path, None, "Private key of the certificate in PEM.")
    allow_insecure_bind: bool = _setting(
        "LOGSVC_ALLOW_INSECURE_BIND",
        _flag,
        "false",
        "Allow listening beyond loopback without TLS, for instance behind a proxy that has it.",
    )


@dataclass(frozen=True, slots=True, repr=False)
class LogSettings(_Part):
    """The service's own log, on standard error."""

    level: str = _setting(
        "LOGSVC_LOG_LEVEL",
        _one_of("trace", "debug", "info", "warning", "error", "critical"),
        "info",
        "Least level of the service's own log.",
        kind="level",
    )
    format: str = _setting(
        "LOGSVC_LOG_FORMAT",
        _one_of("auto", "json", "text"),
        "auto",
        "json lines, text for people, or auto: text on a terminal.",
        kind="auto, json or text",
    )


@dataclass(frozen=True, slots=True, repr=False)
class Settings(_Part):
    """All settings of one service; made by ``load`` alone."""

    data_dir: Path = _setting(
        "LOGSVC_DATA_DIR",
        _path,
        None,
        "Directory of journal, embedded store, state and keys; one service at a time.",
        shown_default="(XDG_DATA_HOME/logsvc, that is ~/.local/share/logsvc)",
    )
    tenant: str = _setting(
        "LOGSVC_TENANT", _tenant, "default", "Tenant of the first admin key, and of keys made without --tenant."
    )
    server: ServerSettings = field(default_factory=ServerSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    state: StateSettings = field(default_factory=StateSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    quota: QuotaSettings = field(default_factory=QuotaSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
    canary: CanarySettings = field(default_factory=CanarySettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    log: LogSettings = field(default_factory=LogSettings)
    sources: Mapping[str, str] = field(default_factory=dict)  # variable → where it came from, unless default

    def listening_on(self, port: int) -> Settings:
        """Return the settings with the port that was taken where ``LOGSVC_PORT=0`` asked for a free one."""
        if self.server.port:
            return self
        address = cast(str, self.server.public_url)
        if "LOGSVC_PUBLIC_URL" not in self.sources:
            address = f"{address.removesuffix(':0')}:{port}"
        return dataclasses.replace(self, server=dataclasses.replace(self.server, port=port, public_url=address))

    @property
    def own_url(self) -> str:
        """The address at which the service reaches itself."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.server.host, self.server.host)  # noqa: S104
        scheme = "https" if self.security.tls_cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.server.port}"

    def describe(self) -> Iterator[tuple[Setting, str, str]]:
        """Yield each setting, its value as one may show it, and where it came from."""
        for row in SETTINGS:
            part, _, name = row.key.rpartition(".")
            value = getattr(getattr(self, part) if part else self, name)
            yield row, _show(row, value), self.sources.get(row.name, "default")


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read, check and complete the settings.

    Args:
        config: TOML file; that of ``LOGSVC_CONFIG``, or none, if None.
        environ: The environment; that of the process if None.

    Raises:
        SettingsError: If a key is unknown, or a value cannot be used or is unsafe.
    """
    environ = os.environ if environ is None else environ
    if config is None and environ.get(_CONFIG):
        config = Path(environ[_CONFIG]).expanduser()
    texts: dict[str, tuple[str, str]] = {}  # variable → text and where it came from
    if config is not None:
        texts.update(_read_file(config))
    texts.update(_read_environ(environ))
    values = {row.key: _parse(row, *texts[row.name]) for row in SETTINGS if row.name in texts}
    parts = {
        part: cast(Any, kind)(**{k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{part}.")})
        for part, kind in _PARTS.items()
    }
    own = {key: value for key, value in values.items() if "." not in key}
    settings = Settings(**own, **parts, sources={name: source for name, (_, source) in texts.items()})
    return _check(_complete(settings))


_PARTS: Mapping[str, type[_Part]] = {
    "server": ServerSettings,
    "store": StoreSettings,
    "state": StateSettings,
    "journal": JournalSettings,
    "quota": QuotaSettings,
    "detection": DetectionSettings,
    "loss": LossSettings,
    "retention": RetentionSettings,
    "notify": NotifySettings,
    "canary": CanarySettings,
    "security": SecuritySettings,
    "log": LogSettings,
}


def _rows() -> Iterator[Setting]:
    for part, kind in [("", Settings), *_PARTS.items()]:
        for item in dataclasses.fields(cast(Any, kind)):
            if "setting" in item.metadata:
                key = f"{part}.{item.name}" if part else item.name
                yield dataclasses.replace(item.metadata["setting"], key=key)


SETTINGS: tuple[Setting, ...] = tuple(_rows())
"""Every setting there is."""


def _nearest(unknown: str, known: list[str]) -> str:
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)
    return f"; the nearest known is {near[0]}" if near else ""


def _read_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    known = [row.name for row in SETTINGS]
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name.startswith(_TESTS) or name in _CLIENT or name == _CONFIG:
            continue
        if name not in known:
            raise SettingsError(f"unknown variable {name}{_nearest(name, known)}{_kubernetes(name, text)}")
        if text:
            yield name, (text, "environment")


def _kubernetes(name: str, text: str) -> str:
    """Explain variables that Kubernetes makes for a Service called logsvc."""
    if re.match(r"LOGSVC_(SERVICE|PORT)(_|\Z)", name) and ("://" in text or name != "LOGSVC_PORT"):
        return " (Kubernetes sets it for a Service of this name; set enableServiceLinks: false in the pod)"
    return ""


def _read_file(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read the settings file {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not TOML: {exc}") from exc
    known = {row.key: row for row in SETTINGS}
    for key, value in _leaves(tree):
        row = known.get(key)
        if row is None:
            raise SettingsError(f"unknown key {key} in {path}{_nearest(key, list(known))}")
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            text = " ".join(value)
        elif isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, str | int | float):
            text = str(value)
        else:
            raise SettingsError(f"{key} in {path} is {value!r}; expected {row.kind}")
        if text:
            yield row.name, (text, str(path))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        # A table only where we have a part; anything else that is a table is an unknown key.
        if isinstance(value, dict) and not prefix and key in _PARTS:
            yield from _leaves(value, f"{key}.")
        else:
            yield prefix + key, value


def _parse(row: Setting, text: str, source: str) -> Any:
    try:
        return row.parse(text)
    except ValueError as exc:
        shown = "" if row.is_secret else f" is {without_password(text)!r}"
        raise SettingsError(
            f"{row.name} ({row.key}) from {source}{shown}; expected {exc}{_kubernetes(row.name, text)}"
        ) from None


def _complete(settings: Settings) -> Settings:
    """Fill in what depends on other settings."""
    data_dir = (cast(Path | None, settings.data_dir) or _data_home()).absolute()
    server, notify, state = settings.server, settings.notify, settings.state
    if server.public_url is None:
        scheme = "https" if settings.security.tls_cert else "http"
        host = f"[{server.host}]" if ":" in server.host else server.host
        server = dataclasses.replace(server, public_url=f"{scheme}://{host}:{server.port}")
    if cast(str | None, state.url) is None:
        state = dataclasses.replace(state, url=f"sqlite:///{data_dir / 'state.db'}")
    if cast(Path | None, notify.tickets_file) is None:
        notify = dataclasses.replace(notify, tickets_file=data_dir / "tickets.jsonl")
    if notify.webhook_secret_file is not None:
        if notify.webhook_secret:
            raise SettingsError("LOGSVC_WEBHOOK_SECRET and LOGSVC_WEBHOOK_SECRET_FILE are both set; remove one")
        path = notify.webhook_secret_file
        try:
            secret = _secrets(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise SettingsError(f"cannot read LOGSVC_WEBHOOK_SECRET_FILE {path}: {exc.strerror}") from exc
        except ValueError as exc:
            raise SettingsError(f"LOGSVC_WEBHOOK_SECRET_FILE {path} holds something else than {exc}") from None
        notify = dataclasses.replace(notify, webhook_secret=secret)
    return dataclasses.replace(settings, data_dir=data_dir, server=server, state=state, notify=notify)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(settings: Settings) -> Settings:
    """Refuse what would be unsafe or could not work."""
    server, security, notify, detection = settings.server, settings.security, settings.notify, settings.detection
    if server.port > 65_535:
        raise SettingsError(f"LOGSVC_PORT is {server.port}; expected 0 to 65535")
    if (server.ingest_processes or 0) > MAX_INGEST_PROCESSES:
        raise SettingsError(
            f"LOGSVC_INGEST_PROCESSES is {server.ingest_processes}; expected at most {MAX_INGEST_PROCESSES}, "
            "and no more than there are cores"
        )
    window_s = detection.window.total_seconds()
    if window_s < 5 or window_s % 5 or window_s > 86_400:
        raise SettingsError(
            f"LOGSVC_WINDOW is {format_duration(detection.window)}; expected at most 1d and a multiple of 5s, since it "
            "advances by a fifth of its length, in whole seconds"
        )
    if detection.grace > timedelta(days=1):
        raise SettingsError(f"LOGSVC_GRACE is {format_duration(detection.grace)}; expected at most 1d")
    if settings.retention.records < timedelta(days=1):
        raise SettingsError(f"LOGSVC_RETENTION is {format_duration(settings.retention.records)}; expected 1d or more")
    if not timedelta(seconds=1) <= settings.server.stop_timeout <= timedelta(hours=1):
        raise SettingsError(
            f"LOGSVC_STOP_TIMEOUT is {format_duration(settings.server.stop_timeout)}; expected 1s to 1h"
        )
    if settings.journal.max_bytes < 2**20:
        raise SettingsError(f"LOGSVC_JOURNAL_MAX_BYTES is {settings.journal.max_bytes}; expected 1MiB or more")
    least = detection.step + detection.grace + timedelta(seconds=5)
    if settings.canary.every and settings.canary.deadline < least:
        raise SettingsError(
            f"LOGSVC_CANARY_DEADLINE is {format_duration(settings.canary.deadline)}; expected {format_duration(least)} or "
            "more, since no window is judged sooner"
        )
    for name, every in (
        ("LOGSVC_CANARY_EVERY", settings.canary.every),
        ("LOGSVC_DEAD_MANS_SWITCH_EVERY", settings.canary.switch_every),
        ("LOGSVC_LOSS_GRACE", settings.loss.grace),
    ):
        if timedelta(seconds=1) > every and (every or name != "LOGSVC_CANARY_EVERY"):
            raise SettingsError(f"{name} is {format_duration(every)}; expected 1s or more")
    if not timedelta(seconds=1) <= settings.quota.burst <= timedelta(seconds=MAX_BURST_S):
        raise SettingsError(
            f"LOGSVC_QUOTA_BURST is {format_duration(settings.quota.burst)}; "
            f"expected 1s to {format_duration(timedelta(seconds=MAX_BURST_S))}"
        )
    if (security.tls_cert is None) != (security.tls_key is None):
        raise SettingsError("LOGSVC_TLS_CERT and LOGSVC_TLS_KEY belong together; set both or neither")
    for name, path in (("LOGSVC_TLS_CERT", security.tls_cert), ("LOGSVC_TLS_KEY", security.tls_key)):
        if path is not None and not os.access(path, os.R_OK):
            raise SettingsError(f"cannot read {name} {path}; expected a PEM file")
    if security.tls_cert is None and not security.allow_insecure_bind and not is_loopback(server.host):
        raise SettingsError(
            f"LOGSVC_HOST is {server.host}, which others can reach, and TLS is off: keys would cross the network in the "
            "clear; set LOGSVC_TLS_CERT and LOGSVC_TLS_KEY, or LOGSVC_ALLOW_INSECURE_BIND=true behind a proxy with TLS"
        )
    if notify.webhook_url is not None and not notify.webhook_secret:
        raise SettingsError(
            "LOGSVC_WEBHOOK_URL is set without LOGSVC_WEBHOOK_SECRET; every event is signed, so set whsec_ and "
            "24 to 64 random bytes in base64"
        )
    return settings
