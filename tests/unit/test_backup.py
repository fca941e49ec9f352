"""Backups of real parts under load, put back elsewhere; what damages them; what a kill leaves."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from logsvc import app, backup
from logsvc.deadletters import DeadLetters
from logsvc.errors import BadInput, Conflict, LogsvcError, NotFound, SettingsError
from logsvc.indexer import Indexer
from logsvc.journal import Journal
from logsvc.lock import DataDirectoryLock
from logsvc.query import MatchAll
from logsvc.records import Entry
from logsvc.store import Refusal
from logsvc.store.embedded import EmbeddedStore
from tests.support.records import DAY_US, T0, make_entry

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TIMEOUT_S = 60.0


class Service:
    """What of a service a backup touches, on a data directory."""

    def __init__(self, data_dir: Path, stack: ExitStack) -> None:
        stack.enter_context(DataDirectoryLock.acquire(data_dir))
        backup.refuse_half_restored(data_dir)
        self.store = EmbeddedStore(data_dir / "index")
        stack.callback(self.store.close)
        self.journal = Journal.open(data_dir / "journal", segment_bytes=20_000)
        stack.callback(self.journal.close)
        self.dead_letters = DeadLetters.open(data_dir / "deadletters")
        stack.callback(self.dead_letters.close)
        self.indexer = Indexer.open(
            self.journal, self.store, self.dead_letters, data_dir / "indexer.checkpoint", flush_interval_s=0.05
        )
        stack.callback(self.indexer.close)
        run = self.indexer.run_exclusive
        self.snapshotter = backup.Snapshotter(data_dir, self.store, self.journal, lambda call: run(call, TIMEOUT_S))
        self.snapshotter.start()
        stack.callback(self.snapshotter.close)

    def ids(self) -> list[str]:
        assert self.indexer.wait_searchable(self.journal.last_seq, TIMEOUT_S)
        found, after = [], None
        while True:
            page = self.store.search("default", MatchAll(), limit=1_000, after=after)
            found += [hit.id for hit in page.hits]
            if page.next is None:
                return found
            after = page.next


@contextmanager
def serving(data_dir: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        yield Service(data_dir, stack)


def records(start: int, n: int) -> list[Entry]:
    return [make_entry(0, T0 + i % 3 * DAY_US + i, f"m {i}", id=f"n{i}") for i in range(start, start + n)]


def back_up(tmp_path: Path, *, minutes: int = 0, keep: int | None = None) -> backup.BackupReport:
    return backup.back_up(
        tmp_path / "data",
        tmp_path / "backups",
        now=NOW + timedelta(minutes=minutes),
        state=tmp_path / "data" / "state.db",
        store_name="embedded",
        open_store=lambda: EmbeddedStore(tmp_path / "data" / "index"),
        keep=keep,
        wait_s=TIMEOUT_S,
    )


def put_back(tmp_path: Path, id: str | None = None, *, to: str = "other", overwrite: bool = False) -> Path:
    folder, target = tmp_path / "backups", tmp_path / to
    made = backup.manifest(folder, id)
    backup.restore(folder, made, target, state=target / "state.db", store_name="embedded", overwrite=overwrite)
    return target


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory at rest with 500 records, a dead letter and a database."""
    data_dir = tmp_path / "data"
    with serving(data_dir) as service:
        service.journal.append_sync(records(0, 500))
        service.ids()
        service.dead_letters.add([Refusal(make_entry(7), "too odd")])
    with closing(sqlite3.connect(data_dir / "state.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE tickets AS SELECT 'burst' AS title")
        database.commit()
    return data_dir


def test_a_backup_under_load_holds_all_that_was_acknowledged_and_nothing_twice(tmp_path: Path, data: Path) -> None:
    ended = threading.Event()
    with serving(data) as service:

        def load() -> None:
            n = 500
            while not ended.is_set():
                service.journal.append_sync(records(n, 50))
                n += 50

        loader = threading.Thread(target=load)
        loader.start()
        try:
            before = service.journal.last_seq
            made = [back_up(tmp_path, minutes=n).manifest for n in range(3)]
        finally:
            ended.set()
            loader.join()
        all_ids = service.ids()
    for manifest in made:
        assert backup.verify(tmp_path / "backups", manifest) == []
        restored = put_back(tmp_path, manifest.id, to=manifest.id)
        with serving(restored) as service:
            found = service.ids()
            assert len(found) == len(set(found)) == manifest.through_seq >= before
            assert set(found) <= set(all_ids)
            # It goes on: a new record gets a number that no other has, and is found.
            service.journal.append_sync(records(1_000_000, 1))
            assert len(service.ids()) == len(found) + 1
            assert service.dead_letters.count == 1
        with closing(sqlite3.connect(restored / "state.db")) as database:
            assert database.execute("SELECT title FROM tickets").fetchall() == [("burst",)]
        for path in restored.rglob("*"):
            if "journal" not in path.parts and "index" not in path.parts and path.name != "snapshots":
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_what_did_not_change_is_not_copied_again_and_old_backups_go(tmp_path: Path, data: Path) -> None:
    first = back_up(tmp_path)
    assert first.copied_bytes == first.manifest.size_bytes > 0
    again = back_up(tmp_path, minutes=1)
    assert again.copied_bytes == again.manifest.files[0].size_bytes  # the database, which is written anew
    with serving(data) as service:
        service.journal.append_sync(records(500, 500))
        service.ids()
        third = back_up(tmp_path, minutes=2, keep=1).manifest
    assert [made.id for made in backup.manifests(tmp_path / "backups")] == [third.id]
    kept = {path.name for path in (tmp_path / "backups" / "files").glob("??/*")}
    assert kept == {file.sha256 for file in third.files}
    assert backup.verify(tmp_path / "backups", third) == []
    assert list((data / "snapshots").iterdir()) == []


def test_damage_is_named_and_never_restored(tmp_path: Path, data: Path) -> None:
    made = back_up(tmp_path).manifest
    file = max(made.files, key=lambda file: file.size_bytes)
    blob = tmp_path / "backups" / "files" / file.sha256[:2] / file.sha256
    damaged = bytearray(blob.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(LogsvcError, match="not what was written"):
        put_back(tmp_path)
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"lock", backup.RESTORING}
    (wrong,) = backup.verify(tmp_path / "backups", made)
    assert wrong.startswith(f"{file.path}: ")
    assert "is missing" in backup.verify(tmp_path / "backups", made)[0]  # it is set aside
    # Its place is taken by the next backup, though the file in the data directory did not change.
    assert backup.verify(tmp_path / "backups", back_up(tmp_path, minutes=1).manifest) == []
    put_back(tmp_path)


def test_a_damaged_copy_that_nobody_verified_is_written_over_once_it_is_read_again(tmp_path: Path, data: Path) -> None:
    file = max(back_up(tmp_path).manifest.files, key=lambda file: file.size_bytes)
    blob = tmp_path / "backups" / "files" / file.sha256[:2] / file.sha256
    blob.write_bytes(bytes(file.size_bytes))
    os.utime(data / file.path)
    assert backup.verify(tmp_path / "backups", back_up(tmp_path, minutes=1).manifest) == []


def test_backups_of_the_same_second_into_different_folders_do_not_disturb_each_other(
    tmp_path: Path, data: Path
) -> None:
    with serving(data) as service:

        def take() -> backup.Snapshot:
            return backup.take_snapshot(data, "20261124T120000Z", lambda: service.store, TIMEOUT_S)

        first, second = take(), take()
        for snapshot in (first, second):
            assert (Path(snapshot.path) / "index" / "manifest.json").is_file()


def test_links_of_a_killed_command_go_while_the_service_runs_and_held_ones_stay(tmp_path: Path, data: Path) -> None:
    with serving(data) as service:
        left, held, new = (
            Path(backup.take_snapshot(data, "x", lambda: service.store, TIMEOUT_S).path) for _ in range(3)
        )
        for path in (left, held):
            os.utime(path, (0, 0))
        with backup.held(held):
            service.snapshotter.tidy()
            assert set((data / "snapshots").iterdir()) == {held, new}


def test_a_directory_without_a_service_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(NotFound, match="no data directory of a service"):
        back_up(tmp_path)
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "backups").exists()


def test_records_in_elasticsearch_are_left_to_it_and_the_rest_is_backed_up(tmp_path: Path, data: Path) -> None:
    folder, elastic = str(tmp_path / "backups"), {"LOGSVC_STORE_URL": "http://127.0.0.1:9"}
    done = command(tmp_path, "data", "backup", folder, **elastic)
    assert (done.returncode, "PUT _snapshot" in done.stderr) == (0, True), done.stderr
    made = backup.manifest(tmp_path / "backups")
    assert made.store == "elasticsearch"
    assert {file.path.split("/")[0] for file in made.files} == {
        "state.db",
        "journal",
        "deadletters",
        "indexer.checkpoint",
    }
    with pytest.raises(SettingsError, match="set it as it was"):
        put_back(tmp_path)
    assert command(tmp_path, "other", "restore", folder, **elastic).returncode == 0
    assert (tmp_path / "other" / "state.db").exists()


def test_one_reindex_at_a_time(data: Path) -> None:
    app._reindex_embedded(data, lambda *_: None)
    with app._alone_in(data / app.REINDEXED), pytest.raises(Conflict, match="another reindex"):
        app._reindex_embedded(data, lambda *_: None)


def test_a_restore_refuses_what_it_would_destroy(tmp_path: Path, data: Path) -> None:
    back_up(tmp_path)
    with pytest.raises(BadInput, match=r"not empty.*--overwrite"):
        put_back(tmp_path, to="data")
    with serving(data), pytest.raises(LogsvcError, match="in use by"):
        put_back(tmp_path, to="data", overwrite=True)
    (data / "indexer.checkpoint").unlink()
    with serving(put_back(tmp_path, to="data", overwrite=True)) as service:
        assert len(service.ids()) == 500
    with pytest.raises(NotFound, match="no backup '20000101T000000Z'"):
        put_back(tmp_path, "20000101T000000Z")
    with pytest.raises(NotFound, match="holds no backup"):
        backup.manifest(tmp_path / "nothing")
    with pytest.raises(BadInput, match="lies in the data directory"):
        backup.back_up(
            data,
            data / "b",
            now=NOW,
            state=None,
            store_name="embedded",
            open_store=lambda: EmbeddedStore(data / "index"),
        )


def test_a_backup_of_a_later_version_or_with_a_wrong_checksum_is_refused(tmp_path: Path, data: Path) -> None:
    made = back_up(tmp_path).manifest
    path = tmp_path / "backups" / "backups" / f"{made.id}.json"
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"through_seq":500', b'"through_seq":501'))
    with pytest.raises(BadInput, match="checksum"):
        put_back(tmp_path)
    body = msgspec.json.encode(msgspec.structs.replace(made, version="99.0.0"))
    sealed = {"manifest": msgspec.Raw(body), "sha256": hash_of(body)}
    path.write_bytes(msgspec.json.encode(sealed))
    with pytest.raises(BadInput, match="made by logsvc 99"):
        put_back(tmp_path)
    outside = msgspec.structs.replace(made.files[0], path="../../outside")
    body = msgspec.json.encode(msgspec.structs.replace(made, files=(outside,)))
    path.write_bytes(msgspec.json.encode({**sealed, "manifest": msgspec.Raw(body), "sha256": hash_of(body)}))
    with pytest.raises(BadInput, match="outside of a data directory"):
        put_back(tmp_path)


def hash_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def command(
    tmp_path: Path, data_dir: str, *arguments: str, kill_at: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOGSVC_")}
    environ |= (
        more | {"LOGSVC_DATA_DIR": str(tmp_path / data_dir)} | ({"LOGSVC_TEST_KILL_AT": kill_at} if kill_at else {})
    )
    return subprocess.run(
        [sys.executable, "-m", "logsvc", *arguments], env=environ, capture_output=True, text=True, timeout=60
    )


def test_a_backup_that_was_killed_is_none_and_the_next_one_is_whole(tmp_path: Path, data: Path) -> None:
    folder = str(tmp_path / "backups")
    assert command(tmp_path, "data", "backup", folder, kill_at="backup.copied").returncode == -9
    with pytest.raises(NotFound):
        backup.manifests(tmp_path / "backups")
    assert command(tmp_path, "data", "backup", folder, "--keep", "1").returncode == 0
    assert backup.verify(tmp_path / "backups", backup.manifest(tmp_path / "backups")) == []
    with serving(data):
        assert list((data / "snapshots").iterdir()) == []  # what the kill left is removed at the start


@pytest.mark.parametrize("point", ["restore.copied", "restore.moved:2"])
def test_a_restore_that_was_killed_stops_a_start_until_it_is_run_again(tmp_path: Path, data: Path, point: str) -> None:
    back_up(tmp_path)
    folder = str(tmp_path / "backups")
    assert command(tmp_path, "other", "restore", folder, kill_at=point).returncode == -9
    if point != "restore.copied":
        # A second try is killed too: what says that the half of it is in place already stays.
        assert command(tmp_path, "other", "restore", folder, kill_at="restore.copied").returncode == -9
        assert (tmp_path / "other" / backup.RESTORING / ".moving").exists()
    with pytest.raises(SettingsError, match="was interrupted; run `logsvc restore` again"), serving(tmp_path / "other"):
        pass
    with serving(put_back(tmp_path)) as service:
        assert len(service.ids()) == 500


def test_a_full_disk_is_said_and_harms_no_earlier_backup(tmp_path: Path, data: Path) -> None:
    made = back_up(tmp_path).manifest
    with serving(data) as service:
        service.journal.append_sync(records(500, 1_000))
        service.ids()
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); sys.argv[0] = 'logsvc';"
        "runpy.run_module('logsvc', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "backup", str(tmp_path / "backups")],
        env={**os.environ, "LOGSVC_DATA_DIR": str(data)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "too large" in done.stderr.lower() or "full" in done.stderr
    assert [found.id for found in backup.manifests(tmp_path / "backups")] == [made.id]
    assert backup.verify(tmp_path / "backups", made) == []
