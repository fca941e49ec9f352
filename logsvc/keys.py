"""Keys: who may do what, for which tenant.

A key is 43 random characters behind ``lsk_``. It is shown once, when it is made, and kept as its
SHA-256: a slow hash protects words that people choose from being guessed, while 256 random bits
cannot be guessed at any speed, and every request pays for the hash.

What always holds: the key alone decides the tenant; a revoked key is refused by every process
within ``CACHE_S`` seconds, whoever revoked it; nothing here logs or returns a key twice.

Not here: where keys are kept (state/), which route needs which scope (api/).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec

from logsvc.durable import sync_directory
from logsvc.errors import BadInput, StateUnavailable
from logsvc.names import TENANT_RULE, is_key, is_tenant
from logsvc.quotas import MAX_BURST_S, UNLIMITED, Quota
from logsvc.state import KeyRow, State
from logsvc.timestamps import US_PER_S, Clock, format_us

CACHE_S = 2
_CACHED_KEYS = 1_000
_USE_NOTED_EVERY_S = 60
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
FIRST_KEY_FILE = "first-admin-key"


class Scope(Enum):
    """What a key may do. Each is exact, except that ``admin`` includes all."""

    INGEST = "ingest"  # write records, read nothing
    REPORT = "report"  # file user reports; safe in a browser
    READ = "read"  # search, tickets, metrics
    RESPOND = "respond"  # acknowledge, resolve, silence
    ADMIN = "admin"  # everything, and keys


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose request it is: the key's id and name, its tenant, what it may do, how much it may send."""

    key_id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    quota: Quota = field(default=UNLIMITED, compare=False)

    def allows(self, scope: Scope) -> bool:
        """Return whether the key may do what ``scope`` covers."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class KeyInfo(msgspec.Struct, frozen=True):
    """A key for people: everything but itself. Times are RFC 3339 in UTC.

    Of the quota, None is the service's default and a rate of 0 unlimited.
    """

    id: str
    name: str
    tenant: str
    scopes: list[str]
    created_at: str
    last_used_at: str | None
    expires_at: str | None
    revoked_at: str | None
    records_per_second: int | None = None
    bytes_per_second: int | None = None
    burst_s: int | None = None


class _Cached(NamedTuple):
    principal: Principal
    until_us: int


class Keys:
    """Makes, lists, changes, revokes and verifies keys. Safe to use from several threads and processes.

    Args:
        state: Where they are kept.
        clock: The time.
        quota: What a key may send that has no quota of its own.
    """

    def __init__(self, state: State, clock: Clock, quota: Quota = UNLIMITED) -> None:
        self._state = state
        self._clock = clock
        self._quota = quota
        self._noting_use = threading.Lock()
        self._note_use_after_us = 0
        self._cache: dict[str, _Cached] = {}  # by hash, so that no key stays in memory
        self._lent: dict[str, Principal] = {}  # by hash
        self._lock = threading.Lock()

    def lend(self, tenant: str, scope: Scope) -> str:
        """Return a key that is kept nowhere and is good for as long as this object is: the service's own."""
        key, name = self._new_key(), f"own-{scope.value}"
        self._lent[_hash(key)] = Principal(name, name, tenant, frozenset([scope]))
        return key

    def create(
        self,
        *,
        tenant: str,
        name: str,
        scopes: Iterable[Scope],
        expires_us: int | None = None,
        **quota: int | None,
    ) -> tuple[str, KeyInfo]:
        """Make a key; return it, for the only time, with what is kept of it.

        Args:
            tenant: Whose records it reaches.
            name: What it is for.
            scopes: What it may do.
            expires_us: When it ends; None never.
            quota: Parts of ``Quota`` by name; those missing or None are the service's default.

        Raises:
            BadInput: If the tenant cannot be one, or the key has no scope or is expired from the start.
        """
        key, row = self._new(tenant, name, scopes, expires_us)
        row = KeyRow(**row._asdict() | _checked(quota))
        self._state.add_key(row)
        return key, _info(row)

    def list(self, tenant: str | None = None) -> list[KeyInfo]:
        """Return every key, or those of one tenant, the oldest first."""
        return [_info(row) for row in self._state.list_keys(tenant)]

    def change(self, id: str, **quota: int | None) -> KeyInfo:
        """Give a key another quota: here at once, in other processes within ``CACHE_S`` seconds.

        Args:
            id: Of the key.
            quota: Parts of ``Quota`` by name; None is the service's default, what is missing stays.

        Raises:
            NotFound: If there is no such key.
            BadInput: If a rate is negative, or the burst shorter than a second.
        """
        row = self._state.change_key(id, **_checked(quota))
        with self._lock:
            self._cache.clear()
        return _info(row)

    def quota_of(self, key: KeyInfo | KeyRow) -> Quota:
        """Return what a key may send: its own quota, and the service's default where it has none."""
        own = (key.records_per_second, key.bytes_per_second, key.burst_s)
        return Quota(*(default if value is None else value for value, default in zip(own, self._quota, strict=True)))

    def revoke(self, id: str) -> None:
        """Make a key useless: here at once, in other processes within ``CACHE_S`` seconds.

        Raises:
            NotFound: If there is no such key.
        """
        self._state.revoke_key(id, self._clock())
        with self._lock:
            self._cache.clear()

    def verify(self, key: str) -> Principal | None:
        """Return whose key it is; None if it is unknown, malformed, revoked or expired.

        Raises:
            StateUnavailable: If the database does not answer and the key was not seen lately.
        """
        if not is_key(key):
            return None
        now_us = self._clock()
        digest = _hash(key)
        if (lent := self._lent.get(digest)) is not None:
            return lent
        cached = self._cache.get(digest)
        if cached is not None and now_us < cached.until_us:
            return cached.principal
        row = self._state.key_by_hash(digest)
        # The index compares hashes bytewise; what its timing tells of a hash tells nothing of the key.
        if row is None or not hmac.compare_digest(row.hash, digest) or row.revoked_us is not None:
            return None
        if row.expires_us is not None and row.expires_us <= now_us:
            return None
        self._note_use(row, now_us)
        principal = Principal(row.id, row.name, row.tenant, frozenset(map(Scope, row.scopes)), self.quota_of(row))
        until_us = min(now_us + CACHE_S * US_PER_S, row.expires_us or 2**63)
        with self._lock:
            if len(self._cache) >= _CACHED_KEYS:
                self._cache.clear()
            self._cache[digest] = _Cached(principal, until_us)
        return principal

    def create_first(self, data_dir: Path, tenant: str, show: Callable[[str], None] | None) -> bool:
        """Make an admin key if the database has never had a key; return whether it did.

        Args:
            data_dir: Where ``first-admin-key`` is written, for its owner alone, if ``show`` is None.
            tenant: Whose the key is.
            show: Puts the key before a person's eyes; None if nobody is at a terminal.
        """
        key, row = self._new(tenant, "first admin key", [Scope.ADMIN], None)
        path = data_dir / FIRST_KEY_FILE
        is_written = show is None and not self._state.list_keys()
        if is_written:
            # The file first: a key that nobody ever saw would lock everybody out.
            _write_private(path, key)
        if not self._state.add_first_key(row):
            if is_written:  # a command made one in between
                path.unlink(missing_ok=True)
            return False
        if show is not None:
            show(key)
        return True

    def _new(self, tenant: str, name: str, scopes: Iterable[Scope], expires_us: int | None) -> tuple[str, KeyRow]:
        now_us = self._clock()
        names = tuple(scope.value for scope in Scope if scope in set(scopes))
        if not is_tenant(tenant):
            raise BadInput(f"cannot use {tenant!r} as a tenant; expected {TENANT_RULE}")
        if not names:
            raise BadInput("a key needs at least one scope: " + ", ".join(scope.value for scope in Scope))
        if expires_us is not None and expires_us <= now_us:
            raise BadInput(f"the key would expire at {format_us(expires_us)}, which is past; choose a later time")
        key = self._new_key()
        return key, KeyRow(
            "key_" + secrets.token_hex(6), _hash(key), tenant, name, names, now_us, expires_us=expires_us
        )

    @staticmethod
    def _new_key() -> str:
        return "lsk_" + "".join(secrets.choice(_ALPHABET) for _ in range(43))

    def _note_use(self, row: KeyRow, now_us: int) -> None:
        if row.last_used_us is not None and now_us - row.last_used_us < _USE_NOTED_EVERY_S * US_PER_S:
            return
        # Nobody is turned away because the time of it cannot be written, and while the database is busy
        # one request waits a moment for it now and then, not all of them in turn.
        if now_us < self._note_use_after_us or not self._noting_use.acquire(blocking=False):
            return
        try:
            self._state.note_key_use(row.id, now_us)
        except StateUnavailable:
            self._note_use_after_us = now_us + _USE_NOTED_EVERY_S * US_PER_S
        finally:
            self._noting_use.release()


def key_from_headers(headers: Mapping[str, str]) -> str | None:
    """Return the key of a request: ``Bearer KEY``, or the password of ``Basic``; None if there is none.

    Args:
        headers: Any mapping that finds ``authorization`` in lower case.

    >>> key_from_headers({"authorization": "Bearer abc"})
    'abc'
    """
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() == "basic":
        try:
            password = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
        return password or None
    return None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _info(row: KeyRow) -> KeyInfo:
    def time(us: int | None) -> str | None:
        return None if us is None else format_us(us)

    return KeyInfo(
        row.id,
        row.name,
        row.tenant,
        list(row.scopes),
        format_us(row.created_us),
        time(row.last_used_us),
        time(row.expires_us),
        time(row.revoked_us),
        row.records_per_second,
        row.bytes_per_second,
        row.burst_s,
    )


def _checked(quota: Mapping[str, int | None]) -> dict[str, int | None]:
    for name, value in quota.items():
        least, most = (1, MAX_BURST_S) if name == "burst_s" else (0, 2**63 - 1)
        if value is not None and not least <= value <= most:
            raise BadInput(
                f"{name} cannot be {value}; expected {least} to {most}" + ", 0 being unlimited" * (not least)
            )
    return dict(quota)


def _write_private(path: Path, key: str) -> None:
    # One that an interrupted start left behind is of a key that was never kept.
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(fd)
    sync_directory(path.parent)
