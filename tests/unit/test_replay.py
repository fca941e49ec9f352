"""Replay: once more through the journal, the same id, a new event.ingested."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from logsvc.deadletters import DeadLetters, letters
from logsvc.errors import JournalFull, LogsvcError, NotFound, StoreUnavailable
from logsvc.journal import Journal
from logsvc.lock import DataDirectoryLock
from logsvc.records import Entry
from logsvc.replay import Replayer, ReplayReport, ReplayRequest, replay
from logsvc.store import Refusal
from logsvc.timestamps import MonotonicClock
from tests.support.records import T0, make_entry

TIMEOUT_S = 30.0


def refuse(data_dir: Path, *entries: Entry) -> None:
    dead_letters = DeadLetters.open(data_dir / "deadletters")
    dead_letters.add([Refusal(entry, "refused") for entry in entries])
    dead_letters.close()


def journaled(directory: Path) -> list[Entry]:
    journal = Journal.inspect(directory)
    entries = journal.read(0, 100_000).entries
    journal.close()
    return entries


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Journal]:
    """The parts of a service that replay."""
    with DataDirectoryLock.acquire(tmp_path):
        journal = Journal.open(tmp_path / "journal")
        dead_letters = DeadLetters.open(tmp_path / "deadletters")
        replayer = Replayer(tmp_path / "replay", journal, dead_letters, MonotonicClock())
        replayer.start()
        yield journal
        replayer.close()
        journal.close()
        dead_letters.close()


def test_a_replayed_letter_keeps_its_id_and_time_and_gets_a_new_ingest_time(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"ingest.late_ms": 5, "event.duration": 7}
    refuse(tmp_path, make_entry(5, T0, "first", labels={"k": "v"}, **fields), make_entry(6))
    assert replay(tmp_path, ReplayRequest(dead_letters=("5",))) == ReplayReport(replayed=1)
    (entry,) = journaled(tmp_path / "journal")
    before = make_entry(5, T0, "first", labels={"k": "v"}, **fields)
    assert (entry.id, entry.time_us, entry.seq) == (before.id, T0, 1)
    record, old = msgspec.json.decode(entry.source), msgspec.json.decode(before.source)
    assert record.pop("event.ingested") != old.pop("event.ingested")
    assert record.pop("ingest.late_ms") == (entry.ingested_us - T0) // 1_000
    assert old.pop("ingest.late_ms") == 5
    assert record == old
    assert [letter.id for letter in letters(tmp_path / "deadletters")] == ["6"]


def test_all_letters_are_replayed_but_those_that_nobody_can_read(tmp_path: Path) -> None:
    broken = Entry("default", "id", 9, T0, T0, "service:x", None, False, b"no json")
    refuse(tmp_path, *[make_entry(seq) for seq in range(1, 9)], broken)
    request = ReplayRequest(all_dead_letters=True)
    assert replay(tmp_path, request) == ReplayReport(replayed=8, unreadable=1)
    assert replay(tmp_path, request) == ReplayReport(replayed=0, unreadable=1)
    assert [letter.id for letter in letters(tmp_path / "deadletters")] == ["9"]


def test_a_running_service_does_the_work_for_the_command(tmp_path: Path, serving: Journal) -> None:
    dead_letters = tmp_path / "deadletters"
    refuse(tmp_path, make_entry(5), make_entry(6))
    assert replay(tmp_path, ReplayRequest(all_dead_letters=True), wait_s=TIMEOUT_S) == ReplayReport(replayed=2)
    assert [entry.id for entry in serving.read(0, 10).entries] == [make_entry(5).id, make_entry(6).id]
    assert list(letters(dead_letters)) == []
    assert list((tmp_path / "replay").iterdir()) == []


def test_a_dead_nodes_journal_goes_through_this_ones(tmp_path: Path, serving: Journal) -> None:
    other = Journal.open(tmp_path / "other")
    entries = [make_entry(0, T0 + n, id=f"n{n}") for n in range(2_500)]
    other.append_sync(entries)
    other.close()
    request = ReplayRequest(journal=str(tmp_path / "other"))
    assert replay(tmp_path, request, wait_s=TIMEOUT_S) == ReplayReport(replayed=2_500)
    copied = serving.read(0, 10_000).entries
    assert [(entry.id, entry.time_us) for entry in copied] == [(entry.id, entry.time_us) for entry in entries]
    assert not {entry.ingested_us for entry in copied} & {entry.ingested_us for entry in entries}


def test_damage_to_a_dead_nodes_journal_is_reported(tmp_path: Path) -> None:
    other = Journal.open(tmp_path / "other", segment_bytes=1)
    for start in (0, 10, 20):
        other.append_sync([make_entry(0, T0 + n, id=f"n{n}") for n in range(start, start + 10)])
    other.close()
    segment = min((tmp_path / "other").glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    assert replay(tmp_path, ReplayRequest(journal=str(tmp_path / "other"))) == ReplayReport(replayed=20, lost=10)


def test_a_service_answers_with_what_went_wrong(tmp_path: Path, serving: Journal) -> None:
    for directory, message in ((tmp_path / "nowhere", "holds no journal"), (tmp_path / "journal", "own journal")):
        with pytest.raises(LogsvcError, match=message):
            replay(tmp_path, ReplayRequest(journal=str(directory)), wait_s=TIMEOUT_S)


def test_a_service_that_does_not_answer_is_named_and_takes_the_request_up_later(tmp_path: Path) -> None:
    refuse(tmp_path, make_entry(5))
    with DataDirectoryLock.acquire(tmp_path, "logsvc serve"):
        with pytest.raises(StoreUnavailable, match="logsvc serve, process"):
            replay(tmp_path, ReplayRequest(dead_letters=("5",)), wait_s=0.0)
        assert len(list((tmp_path / "replay").glob("*.request"))) == 1


def test_a_letter_or_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='no dead letter "5"'):
        replay(tmp_path, ReplayRequest(dead_letters=("5",)))
    with pytest.raises(NotFound, match="no data directory"):
        replay(tmp_path / "missing", ReplayRequest())


def test_without_a_service_a_full_journal_ends_the_replay(tmp_path: Path) -> None:
    refuse(tmp_path, make_entry(5))
    with pytest.raises(JournalFull):
        replay(
            tmp_path,
            ReplayRequest(all_dead_letters=True),
            open_journal=lambda path: Journal.open(path, max_bytes=100, full_wait_s=0.0),
        )
    assert [letter.id for letter in letters(tmp_path / "deadletters")] == ["5"]


def test_a_replay_in_flight_holds_completeness_back(tmp_path: Path) -> None:
    now = [T0]
    journal = Journal.open(tmp_path / "journal")
    dead_letters = DeadLetters.open(tmp_path / "deadletters")
    dead_letters.add([Refusal(make_entry(5), "refused")])
    replayer = Replayer(tmp_path / "replay", journal, dead_letters, lambda: now[0])
    entered, leave = threading.Event(), threading.Event()
    append = journal.append_sync

    def slowly(entries: list[Entry]) -> int:
        entered.set()
        assert leave.wait(TIMEOUT_S)
        return append(entries)

    journal.append_sync = slowly  # type: ignore[method-assign,assignment]
    running = threading.Thread(target=lambda: replayer.run(ReplayRequest(all_dead_letters=True)))
    running.start()
    assert entered.wait(TIMEOUT_S)
    now[0] += 5_000_000
    assert replayer.settled_before_us() == T0
    leave.set()
    running.join(TIMEOUT_S)
    assert replayer.settled_before_us() == T0 + 5_000_000
    journal.close()
    dead_letters.close()
