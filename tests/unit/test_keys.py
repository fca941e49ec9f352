"""Keys: hashed, scoped, revocable from another process, shown once."""

from __future__ import annotations

import base64
import re
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from logsvc.errors import BadInput, NotFound, StateUnavailable
from logsvc.keys import CACHE_S, Keys, Scope, key_from_headers
from logsvc.quotas import Quota
from logsvc.state import State, open_state
from logsvc.timestamps import US_PER_S
from tests.support.tickets import NOON_US, FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    yield opened
    opened.close()


@pytest.fixture
def keys(state: State, clock: FakeClock) -> Keys:
    return Keys(state, clock)


def test_a_key_has_the_published_form_and_decides_tenant_and_scopes(keys: Keys) -> None:
    key, info = keys.create(tenant="acme", name="shipper", scopes=[Scope.READ, Scope.INGEST])
    assert re.fullmatch(r"[A-Za-z0-9_]{32,64}", key)
    principal = keys.verify(key)
    assert principal is not None
    assert (principal.tenant, principal.name, principal.key_id) == ("acme", "shipper", info.id)
    assert [scope for scope in Scope if principal.allows(scope)] == [Scope.INGEST, Scope.READ]


def test_admin_includes_every_scope_and_no_other_scope_includes_another(keys: Keys) -> None:
    for scope in Scope:
        principal = keys.verify(keys.create(tenant="t", name="n", scopes=[scope])[0])
        assert principal is not None
        allowed = {other for other in Scope if principal.allows(other)}
        assert allowed == (set(Scope) if scope is Scope.ADMIN else {scope})


def test_the_key_itself_is_nowhere_on_disk(keys: Keys, state: State, tmp_path: Path) -> None:
    key, info = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    keys.verify(key)
    state.close()
    for path in tmp_path.iterdir():
        assert key.encode() not in path.read_bytes()
    assert key not in repr(info)
    assert set(msgspec.to_builtins(info)) == {
        "id",
        "name",
        "tenant",
        "scopes",
        "created_at",
        "last_used_at",
        "expires_at",
        "revoked_at",
        "records_per_second",
        "bytes_per_second",
        "burst_s",
    }


@pytest.mark.parametrize("key", ["", "short", "x" * 65, "x" * 31, "ü" * 40, "a" * 40, "a b" * 13, "a" * 40 + "\n"])
def test_unknown_and_malformed_keys_are_nobodys(keys: Keys, key: str) -> None:
    assert keys.verify(key) is None


def test_a_revoked_key_is_refused_at_once_here_and_soon_elsewhere(keys: Keys, clock: FakeClock, tmp_path: Path) -> None:
    key, info = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    elsewhere_state = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    elsewhere = Keys(elsewhere_state, clock)
    assert elsewhere.verify(key) is not None
    assert keys.verify(key) is not None
    keys.revoke(info.id)
    assert keys.verify(key) is None
    clock.advance(CACHE_S)
    assert elsewhere.verify(key) is None
    elsewhere_state.close()


def test_revoking_again_keeps_the_time_and_revoking_nothing_is_an_error(keys: Keys, clock: FakeClock) -> None:
    _, info = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    keys.revoke(info.id)
    clock.advance(60)
    keys.revoke(info.id)
    assert [listed.revoked_at for listed in keys.list()] == ["2026-01-31T12:00:00Z"]
    with pytest.raises(NotFound, match="keys list"):
        keys.revoke("key_0")


def test_an_expired_key_is_refused_to_the_microsecond_cached_or_not(keys: Keys, clock: FakeClock) -> None:
    key, _ = keys.create(tenant="t", name="n", scopes=[Scope.READ], expires_us=NOON_US + US_PER_S)
    clock.now_us = NOON_US + US_PER_S - 1
    assert keys.verify(key) is not None
    clock.now_us += 1
    assert keys.verify(key) is None
    with pytest.raises(BadInput, match="past"):
        keys.create(tenant="t", name="n", scopes=[Scope.READ], expires_us=NOON_US)
    with pytest.raises(BadInput, match="at least one scope"):
        keys.create(tenant="t", name="n", scopes=[])


def test_use_is_noted_at_most_once_a_minute(keys: Keys, clock: FakeClock) -> None:
    key, _ = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    seen = []
    for _ in range(4):
        keys.verify(key)
        seen.append(keys.list()[0].last_used_at)
        clock.advance(30)
    assert seen == ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z", "2026-01-31T12:01:00Z", "2026-01-31T12:01:00Z"]


def test_a_database_that_cannot_note_the_use_turns_nobody_away(
    keys: Keys, state: State, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail(*_: object) -> None:
        tries.append(clock.now_us)
        assert keys.verify(key) is not None, "nobody waits beside the one who tries"
        raise StateUnavailable("locked")

    key, _ = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    monkeypatch.setattr(state, "note_key_use", fail)
    for _ in range(8):
        assert keys.verify(key) is not None
        clock.advance(10)
    assert len(tries) == 2, "each waits for the database, so not every request tries"


def test_while_another_one_writes_for_long_the_use_is_not_waited_for(keys: Keys, state: State) -> None:
    key, info = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    with state._writing():
        with pytest.raises(StateUnavailable):
            state.note_key_use(info.id, NOON_US)
        assert keys.verify(key) is not None
    assert keys.list()[0].last_used_at is None
    state.note_key_use(info.id, NOON_US)
    assert keys.list()[0].last_used_at is not None


def test_a_key_seen_lately_needs_no_database(keys: Keys, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StateUnavailable("away")

    key, _ = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    keys.verify(key)
    monkeypatch.setattr(state, "key_by_hash", fail)
    assert keys.verify(key) is not None


def test_keys_are_listed_by_tenant(keys: Keys) -> None:
    for tenant in ("a", "b"):
        keys.create(tenant=tenant, name=f"key of {tenant}", scopes=[Scope.READ])
    assert [info.name for info in keys.list("a")] == ["key of a"]
    assert len(keys.list()) == 2


def test_the_first_key_is_shown_to_a_person(keys: Keys, tmp_path: Path) -> None:
    shown: list[str] = []
    assert keys.create_first(tmp_path, "default", shown.append)
    principal = keys.verify(shown[0])
    assert principal is not None
    assert principal.allows(Scope.ADMIN)
    assert not (tmp_path / "first-admin-key").exists()
    assert not keys.create_first(tmp_path, "default", shown.append)
    assert len(shown) == 1


def test_the_first_key_is_else_written_for_its_owner_alone(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "first-admin-key"
    path.write_text("left by a start that died")
    path.chmod(0o644)
    assert keys.create_first(tmp_path, "default", None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.verify(path.read_text().strip()) is not None
    before = path.read_text()
    assert not keys.create_first(tmp_path, "default", None)
    assert path.read_text() == before


def test_where_there_has_ever_been_a_key_no_first_one_is_made(keys: Keys, tmp_path: Path) -> None:
    _, info = keys.create(tenant="t", name="n", scopes=[Scope.READ])
    keys.revoke(info.id)
    assert not keys.create_first(tmp_path, "default", None)
    assert not (tmp_path / "first-admin-key").exists()


def test_a_quota_is_the_keys_own_where_it_has_one_and_changes_within_seconds(state: State, clock: FakeClock) -> None:
    default = Quota(records_per_second=100, bytes_per_second=0, burst_s=10)
    keys, elsewhere = Keys(state, clock, default), Keys(state, clock, default)
    key, info = keys.create(tenant="t", name="n", scopes=[Scope.INGEST], bytes_per_second=5_000)

    def quota(which: Keys) -> Quota:
        principal = which.verify(key)
        assert principal is not None
        return principal.quota

    assert quota(keys) == quota(elsewhere) == Quota(100, 5_000, 10)
    keys.change(info.id, records_per_second=0, bytes_per_second=None, burst_s=60)
    assert quota(keys) == Quota(0, 0, 60)
    clock.advance(CACHE_S)
    assert quota(elsewhere) == Quota(0, 0, 60)
    (listed,) = keys.list()
    assert (listed.records_per_second, listed.bytes_per_second, listed.burst_s) == (0, None, 60)
    with pytest.raises(BadInput, match="burst_s cannot be 0; expected 1"):
        keys.change(info.id, burst_s=0)
    with pytest.raises(NotFound):
        keys.change("key_none", burst_s=1)


def test_hashes_are_unique(keys: Keys, state: State, tmp_path: Path) -> None:
    keys.create(tenant="t", name="n", scopes=[Scope.READ])
    connection = sqlite3.connect(tmp_path / "state.db")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(
            "INSERT INTO api_keys SELECT 'x', hash, tenant, name, scopes, 0, 0, 0, 0, 0, 0, 0 FROM api_keys"
        )
    connection.close()


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        (basic("anyone:abc"), "abc"),
        (basic(":abc"), "abc"),
        (basic("a:b:c"), "b:c"),
        (basic("abc"), None),
        (basic("abc:"), None),
        ("Basic !!!", None),
        ("Basic /w==", None),
        ("Bearer", None),
        ("", None),
        ("Digest abc", None),
    ],
)
def test_a_key_comes_as_bearer_or_as_the_password_of_basic(header: str, key: str | None) -> None:
    assert key_from_headers({"authorization": header}) == key
    assert key_from_headers({}) is None
