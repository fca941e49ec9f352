"""The indexer: in order, as far as the store has it, for ever if need be, and never past a loss."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from logsvc import durable
from logsvc import journal as journals
from logsvc.deadletters import DeadLetters, letters
from logsvc.errors import StoreUnavailable
from logsvc.indexer import Indexer, IndexerState, Pipeline, read_checkpoint
from logsvc.journal import Journal
from logsvc.query import MatchAll
from logsvc.records import Entry
from logsvc.store import Span, Store
from tests.support.records import T0, make_entry
from tests.support.sqlite_store import LateStore, SqliteStore

TIMEOUT_S = 30.0


def record(number: int, message: str = "take") -> Entry:
    return make_entry(0, T0 + number, f"{message} {number}", id=f"n{number}")


class Service:
    """Journal, store, dead letters and indexer in one directory, opened and closed like the real ones."""

    def __init__(self, directory: Path, store: type[SqliteStore] = SqliteStore, max_lag_s: float = 30.0) -> None:
        self.directory = directory
        self.now_us = T0
        self.journal = Journal.open(directory / "journal", segment_bytes=4_000, max_lag_s=max_lag_s)
        self.dead_letters = DeadLetters.open(directory / "deadletters")
        self.store = store(directory / "store.db")
        self.checkpoint = directory / "indexer.checkpoint"
        self.indexer: Indexer

    def start(self, **options: Any) -> Service:
        options = {"flush_interval_s": 0.01, "linger_s": 0.0, "max_retry_s": 0.01, **options}
        self.indexer = Indexer.open(
            self.journal,
            cast(Store, self.store),
            self.dead_letters,
            self.checkpoint,
            clock=lambda: self.now_us,
            **options,
        )
        return self

    def index(self, entries: Sequence[Entry]) -> None:
        self.journal.append_sync(entries)
        assert self.indexer.wait_searchable(self.journal.last_seq, TIMEOUT_S), self.indexer.status()

    def stored(self) -> list[str]:
        return [source.decode().split('"message":"')[1].split('"')[0] for source in self.store.contents().values()]

    def close(self) -> None:
        self.journal.close()
        self.indexer.close(TIMEOUT_S)
        self.dead_letters.close()
        self.store.close()


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, getattr(request, "param", SqliteStore))
    yield service
    service.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_what_is_waited_for_is_searchable_checkpointed_and_trimmed(service: Service) -> None:
    service.start()
    for start in range(0, 1_000, 100):
        service.index([record(number) for number in range(start, start + 100)])
        assert service.store.visible == start + 100
    assert service.store.sequence() == list(range(1, 1_001))
    assert service.indexer.close(TIMEOUT_S)
    assert read_checkpoint(service.checkpoint) == 1_000
    assert len(list((service.directory / "journal").glob("*.log"))) == 1
    status = service.indexer.status()
    assert (status.state, status.indexed_total, status.lag_records) == (IndexerState.STOPPED, 1_000, 0)


def test_batches_grow_while_the_store_is_slow_and_never_exceed_their_bound(service: Service) -> None:
    gate = threading.Event()
    service.store.breaks = lambda entries: None if gate.wait(TIMEOUT_S) else AssertionError("never opened")
    service.start(batch_records=300)
    for number in range(1_000):
        service.journal.append_sync([record(number)])
    gate.set()
    assert service.indexer.wait_searchable(1_000, TIMEOUT_S)
    assert max(service.store.batches) == 300
    assert len(service.store.batches) < 10


def test_closing_drains_the_journal(service: Service) -> None:
    service.start(flush_interval_s=3_600)
    service.journal.append_sync([record(number) for number in range(5_000)])
    assert service.indexer.close(TIMEOUT_S)
    assert service.store.visible == 5_000


def test_a_store_that_is_away_is_tried_until_it_is_back_and_nothing_is_skipped(service: Service) -> None:
    service.store.is_away = True
    service.start()
    service.journal.append_sync([record(number) for number in range(100)])
    service.now_us = T0 + 7_000_000
    eventually(lambda: service.indexer.status().retries_total >= 3)
    status = service.indexer.status()
    assert (status.state, status.reason) == (IndexerState.RETRYING, "the store is away")
    assert (status.lag_records, status.lag_s) == (100, 7.0)
    assert not service.indexer.wait_searchable(1, 0.0)
    service.store.is_away = False
    service.index([record(100)])
    eventually(lambda: service.indexer.status().state is IndexerState.RUNNING)
    assert service.store.sequence() == list(range(1, 102))
    assert list(letters(service.dead_letters.directory)) == []


def test_closing_gives_up_on_a_store_that_is_away_and_the_next_start_goes_on(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.store.is_away = True
    service.start(max_retry_s=3_600)
    service.journal.append_sync([record(number) for number in range(100)])
    eventually(lambda: service.indexer.status().retries_total >= 1)
    assert not service.indexer.close(0.05)
    service.close()
    service = Service(tmp_path).start()
    assert service.indexer.wait_searchable(100, TIMEOUT_S)
    assert service.store.visible == 100
    service.close()


@pytest.mark.parametrize("service", [SqliteStore, LateStore], indirect=True)
def test_after_a_failed_commit_everything_since_the_last_good_one_is_appended_again(service: Service) -> None:
    service.start()
    service.index([record(number) for number in range(50)])
    service.store.failing_flushes = 3
    service.index([record(number) for number in range(50, 100)])
    assert service.store.sequence() == list(range(1, 101))
    status = service.indexer.status()
    assert (status.indexed_total, status.duplicates_total, status.retries_total) == (100, 0, 3)


@pytest.mark.parametrize("service", [SqliteStore, LateStore], indirect=True)
def test_what_was_sent_twice_is_counted_and_the_first_stays(service: Service) -> None:
    service.start()
    service.index([record(1, "first")])
    service.index([record(1, "second"), record(2)])
    assert sorted(service.stored()) == ["first 1", "take 2"]
    assert service.indexer.status().duplicates_total == 1


@pytest.mark.parametrize("service", [SqliteStore, LateStore], indirect=True)
def test_what_the_store_refuses_becomes_a_dead_letter_and_its_neighbours_are_stored(service: Service) -> None:
    service.start()
    service.index([record(1), record(2, "refuse"), record(3)])
    assert sorted(service.stored()) == ["take 1", "take 3"]
    (letter,) = letters(service.dead_letters.directory)
    assert (letter.id, letter.reason, letter.event_id) == ("2", "refused by the store", "n2")
    assert service.indexer.status().dead_total == 1


@pytest.mark.parametrize("service", [SqliteStore, LateStore], indirect=True)
@pytest.mark.parametrize("poisoned", [{0}, {49}, {7, 8}, {0, 25, 49}, set(range(10, 40))])
def test_records_that_break_the_store_become_dead_letters_and_their_neighbours_are_stored(
    service: Service, poisoned: set[int]
) -> None:
    service.start()
    entries = [record(number, "poison" if number in poisoned else "take") for number in range(50)]
    service.journal.append_sync(entries)
    # A last poisoned record is told from a broken store once another was taken after it.
    service.index([record(50)])
    assert len(service.stored()) == 51 - len(poisoned)
    found = {letter.event_id: letter.reason for letter in letters(service.dead_letters.directory)}
    assert found == {f"n{number}": "PoisonError: cannot digest this" for number in poisoned}


def test_a_store_that_breaks_on_everything_costs_no_record(service: Service) -> None:
    service.store.breaks = lambda entries: OSError(28, "No space left on device")
    service.start()
    service.journal.append_sync([record(number) for number in range(40)])
    eventually(lambda: service.indexer.status().retries_total >= 4)
    assert "No space left on device" in service.indexer.status().reason
    assert list(letters(service.dead_letters.directory)) == []
    service.store.breaks = lambda entries: None
    assert service.indexer.wait_searchable(40, TIMEOUT_S)
    assert service.store.visible == 40


@pytest.mark.parametrize("service", [SqliteStore, LateStore], indirect=True)
def test_a_store_that_breaks_in_the_middle_of_a_batch_costs_no_record(service: Service) -> None:
    # As a disk that fills up: what is appended later fails.
    limit = [20]
    service.store.breaks = lambda entries: OSError("full") if service.store.count() + len(entries) > limit[0] else None
    service.start()
    service.journal.append_sync([record(number) for number in range(40)])
    eventually(lambda: service.store.count() == 20 and service.indexer.status().retries_total >= 4)
    limit[0] = 1_000
    assert service.indexer.wait_searchable(40, TIMEOUT_S)
    assert service.store.sequence() == list(range(1, 41))
    assert list(letters(service.dead_letters.directory)) == []


def test_what_was_appended_and_lost_before_its_commit_is_appended_again(service: Service) -> None:
    # As a disk that fills up under the index: its writer breaks, and forgets what it had taken.
    failing = [3]

    def breaks(entries: Sequence[Entry]) -> Exception | None:
        if entries[-1].seq <= 20 or not failing[0]:
            return None
        failing[0] -= 1
        return StoreUnavailable("cannot write: no space left")

    service.store.breaks = breaks
    service.start(batch_records=10, flush_interval_s=3_600)
    service.journal.append_sync([record(number) for number in range(40)])
    assert service.indexer.close(TIMEOUT_S)
    assert service.store.sequence() == list(range(1, 41))
    assert service.indexer.status().indexed_total == 40


def test_appending_goes_on_while_what_was_flushed_becomes_searchable(service: Service) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def refresh() -> None:
        has_begun.set()
        assert may_end.wait(TIMEOUT_S)

    service.store.refreshes = refresh
    service.start()
    service.journal.append_sync([record(number) for number in range(10)])
    assert has_begun.wait(TIMEOUT_S)
    service.journal.append_sync([record(number) for number in range(10, 20)])
    eventually(lambda: service.store.sequence() == list(range(1, 21)))
    assert (service.indexer.searchable_seq, read_checkpoint(service.checkpoint)) == (0, 0)
    may_end.set()
    assert service.indexer.wait_searchable(20, TIMEOUT_S)
    assert service.store.visible == 20


def test_a_commit_that_is_due_is_not_held_up_by_one_that_is_done(service: Service) -> None:
    def breaks(entries: Sequence[Entry]) -> None:
        # What was appended before is committed, and becomes searchable while this is appended.
        eventually(lambda: service.indexer.searchable_seq == entries[0].seq - 1)
        refreshing = service.indexer._refreshing
        eventually(lambda: refreshing is None or refreshing.done())

    service.store.breaks = breaks
    service.start(batch_records=10, flush_interval_s=0.0)
    service.journal.append_sync([record(number) for number in range(40)])
    assert service.indexer.wait_searchable(40, TIMEOUT_S)
    assert service.store.batches == [10, 10, 10, 10]


def test_a_refresh_that_fails_is_tried_again_without_appending_anything_again(service: Service) -> None:
    failing = [2]

    def refresh() -> None:
        if failing[0]:
            failing[0] -= 1
            raise StoreUnavailable("cannot refresh")

    service.store.refreshes = refresh
    service.start()
    service.index([record(number) for number in range(50)])
    service.index([record(number) for number in range(50, 100)])
    status = service.indexer.status()
    assert (status.indexed_total, status.skipped_total, status.retries_total) == (100, 0, 2)
    assert sum(service.store.batches) == 100
    eventually(lambda: service.indexer.status().reason == "")


def test_what_fails_while_the_rest_becomes_searchable_is_appended_again_and_only_that(service: Service) -> None:
    has_begun, may_end, failing = threading.Event(), threading.Event(), [True]

    def refresh() -> None:
        has_begun.set()
        assert may_end.wait(TIMEOUT_S)

    def breaks(entries: Sequence[Entry]) -> Exception | None:
        return StoreUnavailable("cannot append") if failing[0] and entries[-1].seq > 10 else None

    service.store.refreshes, service.store.breaks = refresh, breaks
    service.start()
    service.journal.append_sync([record(number) for number in range(10)])
    assert has_begun.wait(TIMEOUT_S)
    service.journal.append_sync([record(number) for number in range(10, 20)])
    eventually(lambda: service.indexer.status().retries_total >= 1)
    may_end.set()
    # What was flushed is known to be searchable, though the store still fails.
    eventually(lambda: read_checkpoint(service.checkpoint) == 10)
    assert service.indexer.status().reason == "cannot append"
    failing[0] = False
    assert service.indexer.wait_searchable(20, TIMEOUT_S)
    assert service.store.sequence() == list(range(1, 21))
    assert service.indexer.status().skipped_total == 0


def test_an_exclusive_call_waits_for_what_becomes_searchable(service: Service) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def refresh() -> None:
        has_begun.set()
        assert may_end.wait(TIMEOUT_S)

    service.store.refreshes = refresh
    service.start()
    service.journal.append_sync([record(number) for number in range(10)])
    assert has_begun.wait(TIMEOUT_S)
    threading.Timer(0.05, may_end.set).start()
    seen = service.indexer.run_exclusive(
        lambda: (service.store.visible, read_checkpoint(service.checkpoint)), TIMEOUT_S
    )
    assert seen == (10, 10)


def test_dead_letters_that_cannot_be_written_hold_the_checkpoint(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(refusals: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(service.dead_letters, "add", fail)
        service.start()
        service.journal.append_sync([record(1), record(2, "refuse")])
        eventually(lambda: service.indexer.status().retries_total >= 3)
        assert read_checkpoint(service.checkpoint) == 0
    assert service.indexer.wait_searchable(2, TIMEOUT_S)
    assert [letter.event_id for letter in letters(service.dead_letters.directory)] == ["n2"]


def test_a_gap_in_the_journal_does_not_stop_the_indexer(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.journal.append_sync([record(1)])
    service.journal.advance_past(1_000)
    service.start()
    assert service.indexer.wait_searchable(1_000, TIMEOUT_S)
    service.index([record(2)])
    assert service.store.sequence() == [1, 1_001]
    service.close()


def test_a_lost_journal_goes_on_after_the_numbers_that_the_store_has(tmp_path: Path) -> None:
    service = Service(tmp_path).start()
    service.index([record(number) for number in range(10)])
    service.close()
    for path in (tmp_path / "journal").iterdir():
        path.unlink()
    service = Service(tmp_path).start()
    service.index([record(100)])
    assert service.store.sequence() == list(range(1, 12))
    service.close()


@pytest.mark.parametrize("damage", [b"", b"nonsense", b'{"seq": 5}', b'{"seq": 999, "crc32": 1}'])
def test_a_damaged_checkpoint_indexes_the_journal_again(tmp_path: Path, damage: bytes) -> None:
    service = Service(tmp_path).start()
    service.index([record(number) for number in range(10)])
    service.close()
    service = Service(tmp_path)
    service.checkpoint.write_bytes(damage)
    service.start()
    service.index([record(10)])
    assert service.store.sequence() == list(range(1, 12))
    service.close()


def test_every_write_to_the_store_comes_from_one_thread_exclusive_calls_included(service: Service) -> None:
    service.start()
    service.index([record(number) for number in range(10)])
    assert service.indexer.erase("default", MatchAll(), Span(), TIMEOUT_S).records == 10
    service.index([record(11)])
    assert len(service.store.writers) == 1
    assert service.stored() == ["take 11"]


def test_an_exclusive_call_raises_to_its_caller_alone(service: Service) -> None:
    service.start()

    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        service.indexer.run_exclusive(fail, TIMEOUT_S)
    service.index([record(1)])
    assert service.indexer.status().retries_total == 0


def test_an_exclusive_call_is_served_while_the_store_is_away(service: Service) -> None:
    service.store.is_away = True
    service.start(max_retry_s=3_600)
    service.journal.append_sync([record(1)])
    eventually(lambda: service.indexer.status().retries_total >= 1)
    assert service.indexer.run_exclusive(lambda: "answer", TIMEOUT_S) == "answer"
    service.store.is_away = False


def test_an_exclusive_call_after_the_end_says_so(service: Service) -> None:
    service.start()
    service.indexer.close(TIMEOUT_S)
    with pytest.raises(StoreUnavailable, match="has stopped"):
        service.indexer.run_exclusive(lambda: None, TIMEOUT_S)


def test_what_holds_back_what_may_be_trimmed_holds_back_nobody_who_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_MIN_BACKLOG_RECORDS", 10)
    service = Service(tmp_path, max_lag_s=0)
    service.start(before_trim=lambda: 0)
    for start in range(0, 500, 100):
        service.index([record(number) for number in range(start, start + 100)])
    assert service.indexer.close(TIMEOUT_S)
    assert not service.journal.is_pushing_back
    assert service.journal.read(0, 1_000).through_seq == 500
    service.close()


def test_erased_records_leave_the_journal_too(service: Service) -> None:
    service.start()
    service.index([record(1, "secret")])
    service.indexer.erase("default", MatchAll(), Span(), TIMEOUT_S)
    directory = service.directory / "journal"
    eventually(lambda: not any(b"secret" in path.read_bytes() for path in directory.glob("*.log")))


def test_a_schedule_follows_the_clock_and_survives_failures(service: Service) -> None:
    service.start()
    runs: list[int] = []

    def run() -> None:
        runs.append(service.now_us)
        raise ValueError("this time it fails")

    service.indexer.every(timedelta(hours=1), run, "retention")
    eventually(lambda: len(runs) == 1)
    service.index([record(1)])
    assert len(runs) == 1
    service.now_us += 3_600_000_000
    service.index([record(2)])
    eventually(lambda: len(runs) == 2)


class Ingest:
    """What ingest says about records that it has stamped."""

    def __init__(self, settled_us: int) -> None:
        self.settled_us = settled_us

    def settled_before_us(self) -> int:
        return self.settled_us


def test_complete_means_that_nothing_is_in_flight_and_all_is_searchable(service: Service) -> None:
    service.store.is_away = True
    service.start()
    ingest = Ingest(T0)
    pipeline = Pipeline([ingest], service.journal, service.indexer)
    assert pipeline.searchable_until(T0, 0.0) == T0
    assert pipeline.searchable_until(T0 + 1, 0.05) == T0, "an accept is in flight"
    service.journal.append_sync([record(1)])
    ingest.settled_us = T0 + 10
    assert pipeline.searchable_until(T0 + 10, 0.05) == T0, "the store is away"
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(pipeline.searchable_until(T0 + 10, TIMEOUT_S)))
    waiting.start()
    service.store.is_away = False
    waiting.join(TIMEOUT_S)
    assert answers == [T0 + 10]
    assert service.store.visible == 1


def test_complete_waits_for_the_slowest_source(service: Service) -> None:
    service.start()
    ingest, replay = Ingest(T0 + 10), Ingest(T0)
    pipeline = Pipeline([ingest, replay], service.journal, service.indexer)
    assert pipeline.searchable_until(T0 + 5, 0.0) == T0
    replay.settled_us = T0 + 5
    assert pipeline.searchable_until(T0 + 5, TIMEOUT_S) == T0 + 5


def test_what_is_before_a_backlog_is_complete_while_the_backlog_lasts(service: Service) -> None:
    service.start()
    second = 1_000_000
    ingest = Ingest(T0)
    pipeline = Pipeline([ingest], service.journal, service.indexer)
    service.journal.append_sync([record(1)])
    ingest.settled_us = T0 + second
    assert pipeline.searchable_until(T0 + second, TIMEOUT_S) == T0 + second
    service.store.is_away = True
    service.journal.append_sync([record(2)])
    ingest.settled_us = T0 + 2 * second
    assert pipeline.searchable_until(T0 + 2 * second, 0.05) == T0 + second
    service.store.is_away = False
    eventually(lambda: service.indexer.searchable_seq == 2)
    service.store.is_away = True
    service.journal.append_sync([record(3)])
    ingest.settled_us = T0 + 3 * second
    assert pipeline.searchable_until(T0 + 3 * second, 0.05) == T0 + 2 * second, "the second record's mark is passed"
    service.store.is_away = False  # else its end would wait for the third


def test_nobody_waits_for_an_indexer_that_has_stopped(service: Service) -> None:
    service.start()
    service.indexer.close(TIMEOUT_S)
    assert not service.indexer.wait_searchable(10, TIMEOUT_S)


def test_a_checkpoint_that_cannot_be_written_does_not_keep_the_journal_from_giving_room(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    with monkeypatch.context() as full:
        full.setattr(durable, "write_aside", lambda path, data: service.checkpoint.joinpath("no directory").touch())
        service.journal.append_sync([record(1)])
        service.journal.roll()
        eventually(lambda: service.indexer.status().retries_total >= 2)
        eventually(lambda: [path.name for path in service.journal.directory.glob("*.log")] == [f"{2:020d}.log"])
        # Nor the records behind it from being found.
        service.index([record(2)])
        assert read_checkpoint(service.checkpoint) == 0
    service.index([record(3)])
    assert service.store.sequence() == [1, 2, 3]
    eventually(lambda: read_checkpoint(service.checkpoint) == 3)
