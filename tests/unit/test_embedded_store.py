"""What only the embedded store promises: crashes between commits, bounds on open files, its manifest."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from logsvc.errors import QueryTooExpensive, SchemaMismatch, StoreUnavailable
from logsvc.query import MatchAll, Range, Term, parse
from logsvc.records import Entry
from logsvc.store import AppendResult, Dimension, Order, Position, Span, embedded
from logsvc.store.embedded import EmbeddedStore
from tests.support import oracle
from tests.support.records import DAY_US, T0, make_entry

ALL = MatchAll()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    store = EmbeddedStore(tmp_path / "index")
    yield store
    store.close()


def put(store: EmbeddedStore, entries: list[Entry]) -> AppendResult:
    result = store.append(entries)
    store.flush()
    store.refresh()
    return result


def seqs(store: EmbeddedStore, tenant: str = "default") -> list[int]:
    found: list[int] = []
    after: Position | None = None
    while True:
        page = store.search(tenant, ALL, limit=1000, after=after, order=Order.OLDEST_FIRST)
        found += [hit.position.seq for hit in page.hits]
        if page.next is None:
            return sorted(found)
        after = page.next


# Crashes.

_APPEND_ALL = """
import sys
from pathlib import Path
from logsvc.store.embedded import EmbeddedStore
from tests.unit.test_embedded_store import crash_entries
store = EmbeddedStore(Path(sys.argv[1]))
entries = crash_entries()
for start in range(0, len(entries), 20):
    store.append(entries[start:start + 20])
    store.flush()
store.append(entries)
print("done", flush=True)
sys.stdin.read()
"""


def crash_entries() -> list[Entry]:
    """Five rounds over six days, so that writers are evicted too, half of them with ids of their own."""
    return [make_entry(n, T0 + n % 6 * DAY_US + n, id=f"c{n}" if n % 2 else None) for n in range(1, 101)]


@pytest.mark.parametrize("kill_at", ["store.before_commit:3", "store.after_commit:1", "store.after_commit:8", ""])
def test_after_a_kill_between_commits_everything_is_there_exactly_once(tmp_path: Path, kill_at: str) -> None:
    environment = {**os.environ, "LOGSVC_TEST_KILL_AT": kill_at, "PYTHONPATH": os.getcwd()}
    if not kill_at:
        del environment["LOGSVC_TEST_KILL_AT"]
    command = [sys.executable, "-c", _APPEND_ALL, str(tmp_path / "index")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not kill_at:
            assert process.stdout.readline() == b"done\n"
            process.kill()
        assert process.wait(60) == -signal.SIGKILL
    store = EmbeddedStore(tmp_path / "index")
    entries = crash_entries()
    result = put(store, entries)
    assert result.appended + result.skipped + result.duplicates == len(entries)
    assert result.skipped > 0
    assert seqs(store) == [entry.seq for entry in entries]
    store.close()


def test_what_was_erased_stays_away_when_the_journal_is_replayed(tmp_path: Path) -> None:
    entries = [make_entry(n, T0 + n) for n in range(1, 11)]
    store = EmbeddedStore(tmp_path / "index")
    put(store, entries)
    assert store.erase("default", Range("@timestamp", T0 + 6, None)) == 5
    store.close()
    again = EmbeddedStore(tmp_path / "index")
    assert put(again, [*entries, make_entry(11, T0)]) == AppendResult(appended=1, skipped=10)
    assert seqs(again) == [1, 2, 3, 4, 5, 11]
    again.close()


def test_nothing_of_an_erased_record_stays_on_the_disk(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "index")
    put(store, [make_entry(1, message="keep this"), make_entry(2, message="personal secretword", id="person")])
    assert store.erase("default", parse("secretword", T0)) == 1
    for path in (tmp_path / "index").rglob("*"):
        if path.is_file():
            assert b"secretword" not in path.read_bytes(), path
    assert seqs(store) == [1]
    store.close()


def test_a_crash_while_a_day_is_rewritten_leaves_the_old_day_or_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "index"
    store = EmbeddedStore(root)
    put(store, [make_entry(1), make_entry(2, T0 + DAY_US)])
    store.close()
    # Before the swap: the new day is incomplete.
    (root / "default/2026-11-22.new").mkdir()
    # Between the two renames: the new day is complete, the old one is moved away.
    (root / "default/2026-11-23").rename(root / "default/2026-11-23.new")
    (root / "default/2026-11-23.old").mkdir()
    store = EmbeddedStore(root)
    assert seqs(store) == [1, 2]
    assert sorted(path.name for path in (root / "default").iterdir()) == ["2026-11-22", "2026-11-23", "tenant.json"]
    store.close()


# Bounds.


def test_writers_and_open_days_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_OPEN_DAYS", 6)
    store = EmbeddedStore(tmp_path / "index")
    entries = [make_entry(n, T0 + n % 20 * DAY_US + n) for n in range(1, 201)]
    for start in range(0, 200, 50):
        assert store.append(entries[start : start + 50]).appended == 50
        assert len(store._writing) <= embedded.MAX_WRITERS
        assert len(store._opened) <= 6
    store.flush()
    assert seqs(store) == list(range(1, 201))
    assert len(store._opened) <= 6
    store.close()
    again = EmbeddedStore(tmp_path / "index")
    assert len(again._opened) == 0, "a clean start opens no day"
    assert seqs(again) == list(range(1, 201))
    again.close()


@pytest.mark.parametrize("at_once", [embedded._COUNTED_AT_ONCE, 100_000])
def test_window_counts_beyond_the_bounds_of_one_aggregation_stay_exact(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(embedded, "_COUNTED_AT_ONCE", at_once)
    # Every record has its own customer and version in its own step: far more than 65,000 buckets.
    entries = [
        make_entry(n, T0 + n * 100, **{"organization.id": f"c{n}", "service.version": f"{n}", "event.duration": n})
        for n in range(1, 30_001)
    ]
    put(store, entries)
    found = store.window_counts("default", ingested=Span(), step_us=1_000_000)
    assert len(found) == len(set(found))
    assert set(found) == oracle.window_counts(entries, "default", Span(), Span(), 1_000_000, frozenset(Dimension))


def test_comparing_too_many_values_is_refused(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_LISTED_TERMS", 5)
    put(store, [make_entry(n) for n in range(1, 10)])
    with pytest.raises(QueryTooExpensive, match="more than 5 different values"):
        store.search("default", parse("event.id:>=e1", T0))


def test_a_list_of_all_values_that_is_cut_is_refused(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_MAX_TERMS", 5)
    put(store, [make_entry(n, **{"trace.id": f"{n:032x}"}) for n in range(1, 10)])
    with pytest.raises(QueryTooExpensive, match="different values"):
        store.search("default", parse("trace.id:0000*", T0))
    assert store.count("default", parse(f"trace.id:{7:032x}", T0)) == 1


def test_records_whose_ids_share_the_number_they_are_found_by_are_told_apart(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_number_of", lambda _id: 7)
    entries = [make_entry(n, id=f"e{n}") for n in range(1, 4)]
    put(store, entries[:2])
    again = [make_entry(n + 10, id=f"e{n}") for n in (1, 2, 3)]
    result = put(store, [entries[2], *again])
    assert (result.appended, result.duplicates) == (1, 3)
    for entry in entries:
        found = store.get("default", entry.id)
        assert found is not None
        assert found.source == entry.source


# The manifest and broken directories.


def test_a_manifest_of_another_version_names_each_difference(tmp_path: Path) -> None:
    EmbeddedStore(tmp_path / "index").close()
    path = tmp_path / "index/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["format"] = "tantivy v0.1.0, index_format v1"
    manifest["fields"]["gone"] = "text raw"
    del manifest["fields"]["message"]
    path.write_text(json.dumps(manifest))
    store = EmbeddedStore(tmp_path / "index")
    differences = "\n".join(store.check_schema())
    for name in ("v0.1.0", "field gone", "field message"):
        assert name in differences
    with pytest.raises(SchemaMismatch):
        store.append([make_entry(1)])
    with pytest.raises(SchemaMismatch):
        store.search("default", ALL)
    assert not store.health().is_reachable
    store.close()


def test_an_entry_that_the_index_cannot_take_is_refused_alone(store: EmbeddedStore) -> None:
    bad = make_entry(2, **{"process.pid": "twelve"})
    broken = Entry("default", "0" * 32, 3, T0, T0, "service:x", None, False, b'{"half":')
    binary = Entry("default", "1" * 32, 4, T0, T0, "service:x", None, False, b'{"message":"\xff"}')
    dated = make_entry(5, **{"task.deadline": "tomorrow"})
    result = put(store, [make_entry(1), bad, broken, binary, dated, make_entry(6)])
    assert result.appended == 2
    assert [refusal.entry.seq for refusal in result.refused] == [2, 3, 4, 5]
    assert all(refusal.reason for refusal in result.refused)
    assert seqs(store) == [1, 6]


def test_a_store_that_cannot_write_is_unavailable_and_takes_everything_later(store: EmbeddedStore) -> None:
    entries = [make_entry(n, T0 + n) for n in range(1, 21)]
    put(store, entries[:10])
    store.append(entries[10:])
    (day,) = store._writing
    lost = day.writer

    class Broken:
        def commit(self) -> int:
            raise ValueError("An IO error occurred: 'No space left on device (os error 28)'")

    day.writer = Broken()  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable, match="No space left"):
        store.flush()
    del lost
    assert put(store, entries) == AppendResult(appended=10, skipped=10)
    assert seqs(store) == list(range(1, 21))


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "index")
    store.close()
    with pytest.raises(StoreUnavailable):
        store.search("default", ALL)


# Order.


def test_pages_are_right_when_times_cluster(store: EmbeddedStore) -> None:
    rng = random.Random(7)
    entries = [
        make_entry(n, T0 + rng.choice([0, 1, 2, 50_000_000_000 - DAY_US // 2, rng.randrange(1_000), 10**9]))
        for n in range(1, 3_001)
    ]
    for start in range(0, 3_000, 700):
        put(store, entries[start : start + 700])
    for order in Order:
        for query in (ALL, Term("event.id", "e7"), parse("hello", T0)):
            found: list[Position] = []
            after: Position | None = None
            while True:
                page = store.search("default", query, limit=97, after=after, order=order)
                found += [hit.position for hit in page.hits]
                if page.next is None:
                    break
                after = page.next
            expected = [Position(e.time_us, e.seq) for e in oracle.hits(entries, "default", query)]
            assert found == (expected if order is Order.OLDEST_FIRST else expected[::-1])


def test_pages_and_totals_are_right_whatever_slices_a_day_is_visited_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FEW", 0)
    monkeypatch.setattr(embedded, "_TIES", 1)
    monkeypatch.setattr(embedded, "EXACT_TOTAL", 40)
    rng = random.Random(11)
    day = T0 - T0 % DAY_US
    # Most where slices meet, a burst that nobody expects of an even day, one of the month's index, and ties everywhere.
    times = [day + rng.randrange(100) * 2_000_000 + rng.choice((-1, 0, 1)) for _ in range(300)]
    times += [day + 170_000_000 + rng.randrange(40) * 100_000 for _ in range(100)]
    times += [day - 40 * DAY_US, day - 1, day + DAY_US, day + DAY_US + 70_000_000_000]
    rng.shuffle(times)
    words = [rng.choice(("often", "often other", "often other", "other often", "rare")) for _ in times]
    entries = [
        make_entry(n, at, word, ingested_us=T0) for n, (at, word) in enumerate(zip(times, words, strict=True), 1)
    ]
    store = EmbeddedStore(tmp_path / "index")
    for start in range(0, len(entries), 150):
        put(store, entries[start : start + 150])
    queries = [ALL, *(parse(q, T0) for q in ("often", '"other often"', "rare OR other", "often -other", "never"))]
    for query in queries:
        for _ in range(4):
            order, limit = rng.choice(list(Order)), rng.choice((3, 7, 50))
            edges = sorted(rng.choice(times) + rng.choice((0, 1, 10**6)) for _ in range(2))
            span = rng.choice((Span(), Span(edges[0]), Span(None, edges[1]), Span(*edges)))
            expected = [Position(e.time_us, e.seq) for e in oracle.hits(entries, "default", query, span)]
            found: list[Position] = []
            after: Position | None = None
            while True:
                page = store.search("default", query, span, limit=limit, after=after, order=order, count_total=True)
                assert page.total is not None
                assert page.total == len(expected) if page.is_exact else 40 <= page.total <= len(expected)
                found += [hit.position for hit in page.hits]
                if page.next is None:
                    break
                after = page.next
            assert found == (expected if order is Order.OLDEST_FIRST else expected[::-1])
    store.close()


def test_a_total_that_one_day_fills_is_no_exact_one_of_two(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "EXACT_TOTAL", 2)
    put(store, [make_entry(n, T0 - DAY_US * (n > 2)) for n in range(1, 303)])
    page = store.search("default", ALL, limit=5, count_total=True)
    assert page.total is not None
    assert 2 <= page.total <= 302
    assert not page.is_exact


def test_expiring_days_while_they_are_read_disturbs_no_reader(store: EmbeddedStore) -> None:
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                store.search("default", ALL, limit=10)
                store.count("default", ALL)
            except Exception as exc:
                wrong.append(exc)

    put(store, [make_entry(n, T0 + n * DAY_US) for n in range(1, 31)])
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(1, 31):
        assert store.expire(T0 + n * DAY_US + 1) == 1
    stop.set()
    for reader in readers:
        reader.join(30)
    assert wrong == []
    assert store.tenants() == []


def test_an_index_of_another_mapping_is_written_anew_and_found_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, target = tmp_path / "index", tmp_path / "next"
    spec = {name: kind for name, kind in embedded._spec().items() if name != "host.name"}
    entries = [make_entry(n, T0 + n % 3 * DAY_US + n, **{"host.name": f"h{n % 2}"}) for n in range(1, 301)]
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_spec", lambda: spec)
        old = EmbeddedStore(root)
        put(old, entries)
        assert old.erase("default", parse("event.id:e7", T0)) == 1
        old.close()
    assert EmbeddedStore(root).check_schema() == ["field host.name: the index has 'none', expected 'text raw fast'"]

    told: list[tuple[str, int, int]] = []
    assert embedded.rebuild(root, target, lambda *progress: told.append(progress)) == 3
    assert [total for _, _, total in told] == [100, 99, 100]
    assert embedded.rebuild(root, target, lambda *progress: None) == 0  # begun again, nothing is left to do
    (target / "default" / "2026-11-23" / "rebuilt").unlink()
    assert embedded.rebuild(root, target, lambda *progress: None) == 1
    # Killed between the two renames, the old index is there again.
    root.rename(root.with_name("index.old"))
    assert EmbeddedStore(root).check_schema() != []
    embedded.take_place(target, root)

    store = EmbeddedStore(root)
    assert store.check_schema() == []
    assert seqs(store) == [n for n in range(1, 301) if n != 7]
    assert store.count("default", parse("host.name:h1", T0)) == 149
    # What it has, the erased too, is skipped in a replay; what it lacks is taken.
    assert put(store, [*entries, make_entry(301)]) == AppendResult(appended=1, skipped=300)
    store.close()


def test_records_of_many_days_long_past_touch_few_indices(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "index")
    entries = [make_entry(n, T0 - n * DAY_US, ingested_us=T0) for n in range(1, 301)]
    assert store.append(entries).appended == 300
    store.flush()
    assert len([path for path in (tmp_path / "index" / "default").iterdir() if path.is_dir()]) <= 35 + 1 + 10
    assert store.count("default", MatchAll()) == 300
    store.close()
    target = tmp_path / "anew"
    embedded.rebuild(tmp_path / "index", target, lambda *progress: None)
    embedded.take_place(target, tmp_path / "index")
    again = EmbeddedStore(tmp_path / "index")
    assert again.append(entries).skipped == 300
    assert [hit.position.time_us for hit in again.search("default", MatchAll(), limit=300).hits] == [
        entry.time_us for entry in entries
    ]
    again.close()


def test_a_day_whose_own_index_is_begun_at_the_last_moment_doubles_nothing(tmp_path: Path) -> None:
    midnight = T0 // DAY_US * DAY_US + 36 * DAY_US
    in_time = make_entry(1, T0, id="in time", ingested_us=midnight - 1)
    late = make_entry(2, T0, id="late", ingested_us=midnight, has_client_id=False)
    store = EmbeddedStore(tmp_path / "index")
    assert store.append([in_time, late]).appended == 2
    store.close()
    store = EmbeddedStore(tmp_path / "index")  # read again after a crash
    assert store.append([in_time, late]) == AppendResult(skipped=2)
    assert store.count("default", MatchAll()) == 2
    store.close()
