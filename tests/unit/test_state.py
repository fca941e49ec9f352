"""State: schema compared at start, one transaction per tick, a wall between tenants."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st

from logsvc.errors import BadInput, SchemaMismatch, SettingsError, StateUnavailable
from logsvc.state import Blob, DeliveryState, State, new_event_id, open_state
from logsvc.state.tables import metadata
from logsvc.tickets import Severity, TicketState
from logsvc.timestamps import parse_rfc3339
from tests.support.tickets import NOON_US, make_ticket


def url_of(path: Path) -> str:
    return f"sqlite:///{path / 'state.db'}"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = open_state(url_of(tmp_path), channels=("file", "webhook"))
    yield opened
    opened.close()


def change_by_hand(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path / "state.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


# ------------------------------------------------------------------------------------------------------ schema


def test_a_new_database_is_made_for_its_owner_alone_and_opens_again(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "data"
    open_state(url_of(directory)).close()
    open_state(url_of(directory)).close()
    assert stat.S_IMODE((directory / "state.db").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) & 0o077 == 0


def test_a_percent_sign_in_the_path_is_only_a_percent_sign(tmp_path: Path) -> None:
    open_state(url_of(tmp_path / "100%d")).close()


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (["ALTER TABLE tickets DROP COLUMN kind"], "table tickets: column kind is missing"),
        (["ALTER TABLE api_keys ADD COLUMN note TEXT"], "table api_keys: column note is not expected"),
        (["DROP TABLE detector_state"], "table detector_state is missing"),
        (["CREATE TABLE notes (x TEXT)"], "table notes is not expected"),
        (
            ["DROP INDEX ix_tickets_tenant_state"],
            "table tickets: index ix_tickets_tenant_state (tenant, state) is missing",
        ),
        (
            [
                "DROP TABLE checkpoints",
                "CREATE TABLE checkpoints (tenant TEXT NOT NULL PRIMARY KEY, cursor_us TEXT NOT NULL)",
            ],
            "table checkpoints: column cursor_us has type TEXT(), expected BigInteger()",
        ),
        (
            ["DROP TABLE checkpoints", "CREATE TABLE checkpoints (tenant TEXT NOT NULL PRIMARY KEY, cursor_us BIGINT)"],
            "table checkpoints: column cursor_us allows NULL",
        ),
        (
            ["DROP TABLE checkpoints", "CREATE TABLE checkpoints (tenant TEXT NOT NULL, cursor_us BIGINT NOT NULL)"],
            "table checkpoints: its primary key is [], expected ['tenant']",
        ),
        (["DROP TABLE alembic_version"], "table alembic_version: it is missing or empty"),
        (["UPDATE alembic_version SET version_num = '9999'"], "revision 9999 is unknown here"),
    ],
)
def test_a_database_changed_by_hand_stops_the_start_and_names_what_differs(
    tmp_path: Path, statements: list[str], named: str
) -> None:
    open_state(url_of(tmp_path)).close()
    change_by_hand(tmp_path, *statements)
    with pytest.raises(SchemaMismatch) as caught:
        open_state(url_of(tmp_path))
    assert any(named in difference for difference in caught.value.differences), caught.value.differences
    assert named in str(caught.value)


def test_a_database_of_an_earlier_version_is_migrated_with_its_keys(tmp_path: Path) -> None:
    open_state(url_of(tmp_path)).close()
    change_by_hand(
        tmp_path,
        *(f"ALTER TABLE api_keys DROP COLUMN {name}" for name in ("records_per_second", "bytes_per_second", "burst_s")),
        "DROP TABLE ledger",
        "UPDATE alembic_version SET version_num = '0001'",
        "INSERT INTO api_keys VALUES ('key_1', 'hash', 'default', 'old', 'ingest', 1, NULL, NULL, NULL)",
    )
    opened = open_state(url_of(tmp_path))
    (key,) = opened.list_keys()
    opened.close()
    assert (key.id, key.scopes, key.records_per_second) == ("key_1", ("ingest",), None)


def test_every_difference_is_named_at_once(tmp_path: Path) -> None:
    open_state(url_of(tmp_path)).close()
    change_by_hand(tmp_path, "ALTER TABLE tickets DROP COLUMN kind", "DROP TABLE detector_state")
    with pytest.raises(SchemaMismatch) as caught:
        open_state(url_of(tmp_path))
    assert sorted(caught.value.differences) == [
        "table detector_state is missing",
        "table tickets: column kind is missing",
    ]


def test_two_that_start_at_once_make_the_schema_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def start() -> None:
        barrier.wait(10)
        try:
            open_state(url_of(tmp_path)).close()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_database_that_another_one_is_just_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        other.execute("COMMIT")

    monkeypatch.setattr("logsvc.state.time.sleep", pause)
    monkeypatch.setattr("logsvc.state._BUSY_S", 0.2)  # SQLite's own waiting, before it says "locked"
    open_state(url_of(tmp_path)).close()
    other.close()
    assert len(pauses) == 1


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = MigrationContext._ensure_version_table

    def fail(self: MigrationContext) -> None:
        real(self)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "_ensure_version_table", fail)
        with pytest.raises(RuntimeError):
            open_state(url_of(tmp_path))
    connection = sqlite3.connect(tmp_path / "state.db")
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    open_state(url_of(tmp_path)).close()


def test_what_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database at all, sorry\n" * 100)
    with pytest.raises(StateUnavailable, match="not a database"):
        open_state(url_of(tmp_path))
    with pytest.raises(SettingsError, match="expected a file"):
        open_state("sqlite://")
    with pytest.raises(SettingsError, match=r"logsvc\[postgres\]"):
        open_state("postgresql+pg8000://localhost/logsvc")


def test_every_commit_is_synced_and_foreign_keys_hold(state: State) -> None:
    with state._reading() as db:
        pragmas = {name: db.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")}
        assert pragmas == {"journal_mode": "wal", "synchronous": 2}
        assert db.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_the_tables_are_written_for_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
    assert "BIGSERIAL" in str(CreateTable(metadata.tables["outbox"]).compile(dialect=postgresql.dialect()))


# ----------------------------------------------------------------------------------------------------- tickets


def test_a_tick_keeps_checkpoint_tickets_blobs_and_events_together(state: State) -> None:
    ticket = make_ticket()
    state.commit_tick(
        "default",
        5,
        now_us=NOON_US,
        tickets=[ticket],
        events=[("anomaly.opened", ticket)],
        blobs={"counts": Blob("1", b"abc"), "gone": Blob("1", b"x")},
    )
    state.commit_tick("default", 10, now_us=NOON_US, blobs={"gone": None})
    assert state.get_ticket("default", "tkt_1") == ticket
    assert state.checkpoint("default") == 10
    assert state.checkpoint("other") is None
    assert state.checkpoints() == {"default": 10}
    assert state.blobs("default") == {"counts": Blob("1", b"abc")}
    assert [(d.channel, d.event_type, d.state) for d in state.deliveries("default", "tkt_1")] == [
        ("file", "anomaly.opened", DeliveryState.PENDING),
        ("webhook", "anomaly.opened", DeliveryState.PENDING),
    ]


def test_a_tick_that_fails_keeps_nothing(state: State) -> None:
    state.commit_tick("default", 5, now_us=NOON_US)
    bad = make_ticket("tkt_2", updated_at="yesterday")
    with pytest.raises(BadInput):
        state.commit_tick(
            "default",
            10,
            now_us=NOON_US,
            tickets=[make_ticket(), bad],
            events=[("anomaly.opened", make_ticket())],
            blobs={"counts": Blob("1", b"abc")},
        )
    assert state.checkpoint("default") == 5
    assert state.list_tickets("default").tickets == []
    assert state.blobs("default") == {}
    assert state.count_outbox() == {}


def test_the_checkpoint_never_goes_back(state: State) -> None:
    state.commit_tick("default", 5, now_us=NOON_US)
    with pytest.raises(ValueError, match="go back from 5 to 4"):
        state.commit_tick("default", 4, now_us=NOON_US)


def test_a_ticket_that_notifies_nobody_is_kept_and_not_announced(state: State) -> None:
    ticket = make_ticket(is_notified=False)
    state.commit_tick("default", 5, now_us=NOON_US, tickets=[ticket], events=[("anomaly.opened", ticket)])
    assert state.get_ticket("default", "tkt_1") == ticket
    assert state.deliveries("default", "tkt_1") == []


def test_a_tenant_sees_only_its_own_tickets(state: State) -> None:
    theirs = make_ticket(tenant="other", title="theirs")
    state.commit_tick("default", 5, now_us=NOON_US, tickets=[make_ticket()])
    state.commit_tick("other", 5, now_us=NOON_US, tickets=[theirs], events=[("anomaly.opened", theirs)])
    assert [ticket.title for ticket in state.list_tickets("other").tickets] == ["theirs"]
    assert state.get_ticket("default", "tkt_1") == make_ticket()
    assert state.get_ticket("nobody", "tkt_1") is None
    assert state.deliveries("default", "tkt_1") == []
    assert state.count_tickets("other")[TicketState.OPEN] == 1
    assert state.count_tickets()[TicketState.OPEN] == 2
    with pytest.raises(ValueError, match="another tenant"):
        state.commit_tick("default", 10, now_us=NOON_US, tickets=[theirs])


def test_pages_walk_every_ticket_once_newest_first_even_within_one_moment(state: State) -> None:
    tickets = [make_ticket(f"tkt_{i:02}", opened_us=NOON_US + (i // 7) * 1_000) for i in range(30)]
    state.commit_tick("default", 5, now_us=NOON_US, tickets=tickets)
    seen, cursor = [], None
    while True:
        page = state.list_tickets("default", limit=4, cursor=cursor)
        assert len(page.tickets) <= 4
        seen += [ticket.id for ticket in page.tickets]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [
        ticket.id for ticket in sorted(tickets, key=lambda t: (parse_rfc3339(t.opened_at), t.id), reverse=True)
    ]


def test_filters_narrow_and_a_task_finds_the_incidents_it_joined(state: State) -> None:
    state.commit_tick(
        "default",
        5,
        now_us=NOON_US,
        tickets=[
            make_ticket("a", task="t1", tasks=["t1", "t2"]),
            make_ticket("b", task="t3", tasks=["t3"], state=TicketState.RESOLVED, severity=Severity.LOW),
            make_ticket("c", task=None, tasks=[]),
        ],
    )
    listed = {
        "t2": state.list_tickets("default", task="t2"),
        "T2": state.list_tickets("default", task="T2"),
        "resolved": state.list_tickets("default", state=TicketState.RESOLVED),
        "high": state.list_tickets("default", severity=Severity.HIGH),
    }
    assert {name: [ticket.id for ticket in page.tickets] for name, page in listed.items()} == {
        "t2": ["a"],
        "T2": [],
        "resolved": ["b"],
        "high": ["c", "a"],
    }
    assert state.count_tickets("default") == {TicketState.OPEN: 2, TicketState.ACKNOWLEDGED: 0, TicketState.RESOLVED: 1}


def test_an_updated_ticket_replaces_itself_and_its_tasks(state: State) -> None:
    state.commit_tick("default", 5, now_us=NOON_US, tickets=[make_ticket(task="t1", tasks=["t1"])])
    state.commit_tick("default", 10, now_us=NOON_US, tickets=[make_ticket(task="t2", tasks=["t2"], windows=2)])
    assert state.list_tickets("default", task="t1").tickets == []
    assert [ticket.windows for ticket in state.list_tickets("default", task="t2").tickets] == [2]


@given(st.text(max_size=60))
def test_a_foreign_cursor_is_bad_input_and_nothing_worse(tmp_path_factory: pytest.TempPathFactory, cursor: str) -> None:
    state = open_state(url_of(tmp_path_factory.getbasetemp() / "cursors"))
    with contextlib.closing(state), contextlib.suppress(BadInput):
        assert state.list_tickets("default", cursor=cursor).tickets == []


# ------------------------------------------------------------------------------------------------------ outbox


def announce(state: State, *events: tuple[str, str], cursor_us: int = 5) -> None:
    tickets = [(type_, make_ticket(id)) for type_, id in events]
    state.commit_tick("default", cursor_us, now_us=NOON_US, events=tickets)


def test_a_claimed_event_is_claimed_once_until_its_lease_ends(state: State) -> None:
    announce(state, ("anomaly.opened", "a"))
    row = state.claim("file", now_us=NOON_US, lease_us=100)
    assert row is not None
    assert msgspec.json.decode(row.body)["data"]["id"] == "a"
    assert state.claim("file", now_us=NOON_US + 99, lease_us=100) is None
    again = state.claim("file", now_us=NOON_US + 100, lease_us=100)
    assert again is not None
    assert again.seq == row.seq
    state.release_claims()
    assert state.claim("file", now_us=NOON_US + 101, lease_us=100) == again
    state.mark_delivered(again.seq, NOON_US + 102)
    assert state.claim("file", now_us=NOON_US + 1_000, lease_us=100) is None
    assert state.count_outbox() == {("file", DeliveryState.DELIVERED): 1, ("webhook", DeliveryState.PENDING): 1}


def test_an_event_waits_for_the_earlier_ones_of_its_ticket_only(state: State) -> None:
    announce(state, ("anomaly.opened", "a"), ("anomaly.resolved", "a"), ("anomaly.opened", "b"))
    first = state.claim("file", now_us=NOON_US, lease_us=100)
    assert first is not None
    state.mark_retry(first.seq, "no", NOON_US + 1_000)
    second = state.claim("file", now_us=NOON_US, lease_us=100)
    assert second is not None
    assert second.ticket_id == "b"
    assert state.claim("file", now_us=NOON_US, lease_us=100) is None
    assert state.has_due("file", NOON_US)  # b, claimed
    state.mark_delivered(second.seq, NOON_US)
    assert not state.has_due("file", NOON_US)
    assert state.has_due("file", NOON_US + 1_000)


def test_both_channels_carry_one_event_under_one_id(state: State) -> None:
    announce(state, ("anomaly.opened", "a"))
    assert len({delivery.id for delivery in state.deliveries("default", "a")}) == 1


def test_settled_events_are_forgotten_in_time_and_pending_ones_never(state: State) -> None:
    announce(state, ("anomaly.opened", "a"))
    row = state.claim("file", now_us=NOON_US, lease_us=100)
    assert row is not None
    state.mark_delivered(row.seq, NOON_US)
    assert state.expire_outbox(NOON_US) == 0
    assert state.expire_outbox(NOON_US + 1) == 1
    assert [delivery.channel for delivery in state.deliveries("default", "a")] == ["webhook"]


def test_event_ids_are_ulids_in_the_order_of_time() -> None:
    ids = [new_event_id(NOON_US + i * 1_000) for i in range(100)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 100
    assert {len(id) for id in ids} == {30}


def test_a_lost_database_is_an_error_that_names_no_parameters(state: State, tmp_path: Path) -> None:
    change_by_hand(tmp_path, "DROP TABLE ticket_tasks", "ALTER TABLE tickets DROP COLUMN body")
    with pytest.raises(StateUnavailable) as caught:
        state.commit_tick("default", 5, now_us=NOON_US, tickets=[make_ticket(title="secret words")])
    assert "secret words" not in str(caught.value)


def test_a_database_that_may_not_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnavailable, match="cannot open"):
        open_state(url_of(tmp_path / "file"))


def test_opening_twice_shares_the_database(state: State, tmp_path: Path) -> None:
    other = open_state(url_of(tmp_path))
    announce(state, ("anomaly.opened", "a"))
    assert other.checkpoint("default") == 5
    other.close()
