"""The journal: acknowledged is durable, damage is counted, numbers are never used twice."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsvc import durable
from logsvc import journal as journals
from logsvc.errors import BadInput, JournalFull, Overloaded
from logsvc.journal import Journal, Pace, next_group
from logsvc.records import Entry
from logsvc.turns import Lines
from tests.support.records import T0, make_entry

TIMEOUT_S = 30.0


def batch(count: int, *, start: int = 1, message: str = "hello", tenant: str = "default") -> list[Entry]:
    return [make_entry(0, T0 + n, f"{message} {n}", id=f"e{n}", tenant=tenant) for n in range(start, start + count)]


def read_all(journal: Journal, after_seq: int = 0, max_entries: int = 700) -> list[Entry]:
    entries: list[Entry] = []
    while after_seq < journal.last_seq:
        part = journal.read(after_seq, max_entries)
        assert part.through_seq > after_seq
        assert len(part.entries) <= max_entries
        entries += part.entries
        after_seq = part.through_seq
    return entries


def content(entries: list[Entry]) -> list[tuple[str, bytes]]:
    return [(entry.id, entry.source) for entry in entries]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def no_memory(directory: Path) -> Iterator[Journal]:
    """A journal that keeps no recent records, so that every read comes from disk."""
    journal = Journal.open(directory, recent_records=0)
    yield journal
    journal.close()


def test_what_was_appended_is_read_back_in_order_from_memory_and_from_disk(directory: Path) -> None:
    entries = batch(2_500)
    journal = Journal.open(directory)
    assert journal.append_sync(entries[:1]) == 1
    assert journal.append_sync(entries[1:]) == 2
    from_memory = read_all(journal)
    journal.close()
    journal = Journal.open(directory)
    from_disk = read_all(journal)
    journal.close()
    assert content(from_memory) == content(entries)
    assert from_disk == from_memory
    assert [entry.seq for entry in from_disk] == list(range(1, 2_501))


def test_an_appended_object_keeps_its_own_number_and_may_be_appended_again(directory: Path) -> None:
    entries = batch(3)
    journal = Journal.open(directory)
    assert [journal.append_sync(entries), journal.append_sync(entries)] == [1, 4]
    assert [entry.seq for entry in entries] == [0, 0, 0]
    assert [entry.seq for entry in read_all(journal)] == [1, 2, 3, 4, 5, 6]
    journal.close()


def test_appends_from_tasks_and_threads_come_once_each_and_each_in_one_piece(directory: Path) -> None:
    journal = Journal.open(directory, segment_bytes=20_000)
    firsts: dict[int, int] = {}

    def from_thread(first: int) -> None:
        for start in range(first, first + 500, 5):
            firsts[start] = journal.append_sync(batch(5, start=start))

    async def from_loop() -> None:
        async def one(start: int) -> None:
            firsts[start] = await journal.append(batch(5, start=start))

        await asyncio.gather(*[one(start) for start in range(10_000, 11_000, 5)])

    threads = [threading.Thread(target=from_thread, args=(first,)) for first in (0, 1_000, 2_000)]
    for thread in threads:
        thread.start()
    asyncio.run(from_loop())
    for thread in threads:
        thread.join(TIMEOUT_S)
    by_seq = {entry.seq: entry for entry in read_all(journal)}
    journal.close()
    assert sorted(by_seq) == list(range(1, 2_501))
    for start, seq in firsts.items():
        assert content([by_seq[seq + n] for n in range(5)]) == content(batch(5, start=start))


def test_a_cancelled_append_ends_when_its_records_are_durable_and_leaves_the_others_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = durable.sync

    def sync(fd: int) -> None:
        assert gate.wait(TIMEOUT_S)
        real(fd)

    async def main() -> None:
        journal = Journal.open(directory)
        monkeypatch.setattr(durable, "sync", sync)
        doomed = asyncio.create_task(journal.append(batch(5)))
        other = asyncio.create_task(journal.append(batch(5, start=100)))
        for _ in range(3):
            await asyncio.sleep(0)
            doomed.cancel()
        assert not doomed.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        first = await other
        assert content(read_all(journal, first - 1)[:5]) == content(batch(5, start=100))
        assert content(batch(5)) == content(read_all(journal)[:5])
        await asyncio.to_thread(journal.close)

    asyncio.run(main())


def test_numbers_continue_after_everything_was_trimmed_and_the_service_restarted(directory: Path) -> None:
    for expected in (1, 11, 21):
        journal = Journal.open(directory)
        assert journal.append_sync(batch(10)) == expected
        journal.trim(journal.last_seq)
        journal.roll()
        ingested_us = journal.last_ingested_us
        journal.close()
        journal = Journal.open(directory)
        assert (journal.last_seq, journal.last_ingested_us) == (expected + 9, ingested_us)
        assert read_all(journal) == []
        journal.close()
    assert len(list(directory.glob("*.log"))) == 1


def test_trimming_removes_whole_segments_and_no_record_that_is_still_needed(directory: Path) -> None:
    journal = Journal.open(directory, segment_bytes=2_000, recent_records=0)
    for start in range(0, 1_000, 10):
        journal.append_sync(batch(10, start=start))
    before = journal.size_bytes
    journal.trim(500)
    assert journal.size_bytes < before
    assert [entry.seq for entry in read_all(journal, 500)] == list(range(501, 1_001))
    journal.close()


def test_a_number_that_a_checkpoint_names_is_not_given_again(directory: Path) -> None:
    journal = Journal.open(directory)
    journal.advance_past(41)
    assert journal.append_sync(batch(1)) == 42
    journal.close()
    journal = Journal.open(directory)
    assert journal.append_sync(batch(1)) == 43
    journal.close()


def test_reading_continues_while_segments_roll(directory: Path) -> None:
    journal = Journal.open(directory, segment_bytes=1_500, recent_records=0)
    after_seq, seen = 0, []
    for start in range(0, 600, 3):
        journal.append_sync(batch(3, start=start))
        if start % 7 == 0:
            part = journal.read(after_seq, 5)
            seen += part.entries
            after_seq = part.through_seq
    seen += read_all(journal, after_seq)
    journal.close()
    assert [entry.seq for entry in seen] == list(range(1, 601))


def test_reading_may_start_anywhere_and_go_back(no_memory: Journal) -> None:
    for start in range(0, 90, 9):
        no_memory.append_sync(batch(9, start=start))
    for after_seq in (0, 44, 45, 89, 90, 3, 88):
        assert [entry.seq for entry in read_all(no_memory, after_seq)] == list(range(after_seq + 1, 91))


def test_memory_for_recent_records_is_bounded_and_older_ones_come_from_disk(directory: Path) -> None:
    journal = Journal.open(directory, recent_records=50)
    for start in range(0, 1_000, 10):
        journal.append_sync(batch(10, start=start))
    assert journal._recent_records <= 50
    assert [entry.seq for entry in read_all(journal)] == list(range(1, 1_001))
    journal.close()


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that open thousands of journals and cut no power."""
    monkeypatch.setattr(durable, "sync", lambda fd: None)
    monkeypatch.setattr(durable, "sync_directory", lambda path: None)


# -- a crash ------------------------------------------------------------------------------------


def _written(directory: Path, *batches: list[Entry]) -> Path:
    """Write ``batches`` as one frame each, and return the segment that holds them."""
    journal = Journal.open(directory)
    for entries in batches:
        journal.append_sync(entries)
    journal.close()
    (segment,) = directory.glob("*.log")
    return segment


def test_a_tail_torn_at_any_byte_is_cut_and_reported_and_what_precedes_it_kept(tmp_path: Path, no_fsync: None) -> None:
    first, last = batch(3), batch(2, start=10)
    kept = _written(tmp_path / "a", first).stat().st_size
    whole = _written(tmp_path / "b", first, last).read_bytes()
    for size in range(kept, len(whole)):
        directory = tmp_path / f"torn-{size}"
        directory.mkdir()
        (directory / f"{1:020d}.log").write_bytes(whole[:size])
        journal = Journal.open(directory)
        assert content(read_all(journal)) == content(first)
        assert sum(damage.size_bytes for damage in journal.damage) == size - kept
        assert all(damage.is_torn for damage in journal.damage)
        # Had the torn frame been whole, it would have used 4 and 5.
        assert journal.append_sync(last) > (5 if size > kept else 3)
        assert content(read_all(journal)) == content(first + last)
        journal.close()
        journal = Journal.open(directory)
        assert content(read_all(journal)) == content(first + last)
        assert journal.damage == ()
        journal.close()
        shutil.rmtree(directory)


@given(data=st.data())
def test_zeros_or_noise_after_the_last_frame_are_no_records(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("noise")
    segment = _written(directory / "journal", batch(3))
    noise = data.draw(st.one_of(st.binary(min_size=1, max_size=300), st.just(bytes(4096))))
    with segment.open("ab") as file:
        file.write(noise)
    journal = Journal.open(directory / "journal")
    assert content(read_all(journal)) == content(batch(3))
    assert [damage.size_bytes for damage in journal.damage] == [len(noise)]
    journal.close()


def test_no_flipped_bit_ever_yields_a_wrong_record_and_each_loss_is_counted(tmp_path: Path, no_fsync: None) -> None:
    batches = [batch(2), batch(3, start=10), batch(40, start=20), batch(1, start=90)]
    entries = [entry for part in batches for entry in part]
    segment = _written(tmp_path / "good", *batches)
    good = segment.read_bytes()
    rng = random.Random(7)
    right = dict(enumerate(content(entries), 1))
    directory = tmp_path / "flipped"
    for offset in range(len(good)):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        flipped = bytearray(good)
        flipped[offset] ^= 1 << rng.randrange(8)
        (directory / segment.name).write_bytes(flipped)
        journal = Journal.open(directory)
        read = read_all(journal)
        assert journal.damage, f"a flip at {offset} went unnoticed"
        assert all(right[entry.seq] == content([entry])[0] for entry in read)
        known = [damage.records or 0 for damage in journal.damage if not damage.is_torn]
        is_tail = any(damage.is_torn for damage in journal.damage)
        assert len(read) + sum(known) == 46 - (1 if is_tail else 0)
        # Numbers are not given again, whatever was lost.
        assert journal.append_sync(batch(1)) > 46
        journal.close()


def test_damage_in_an_older_segment_costs_one_frame_and_is_counted_once(directory: Path) -> None:
    journal = Journal.open(directory, segment_bytes=1_000, recent_records=0)
    for start in range(0, 100, 10):
        journal.append_sync(batch(10, start=start))
    journal.close()
    oldest = min(directory.glob("*.log"))
    data = bytearray(oldest.read_bytes())
    data[200] ^= 0xFF
    oldest.write_bytes(data)
    journal = Journal.open(directory, recent_records=0)
    for _ in range(2):
        assert [entry.seq for entry in read_all(journal)] == list(range(11, 101))
    (damage,) = journal.damage
    assert (damage.segment, damage.records, damage.is_torn) == (oldest.name, 10, False)
    journal.close()


def test_a_missing_segment_is_counted_as_lost_records(directory: Path) -> None:
    journal = Journal.open(directory, segment_bytes=1, recent_records=0)
    for start in range(0, 30, 10):
        journal.append_sync(batch(10, start=start))
    journal.close()
    sorted(directory.glob("*.log"))[1].unlink()
    journal = Journal.open(directory)
    assert [entry.seq for entry in read_all(journal)] == [*range(1, 11), *range(21, 31)]
    assert [damage.records for damage in journal.damage] == [10]
    journal.close()


def test_a_damaged_segment_header_costs_no_record(directory: Path) -> None:
    journal = Journal.open(directory, segment_bytes=1, recent_records=0)
    for start in range(0, 30, 10):
        journal.append_sync(batch(10, start=start))
    ingested_us = journal.last_ingested_us
    journal.close()
    for path in directory.glob("*.log"):
        data = bytearray(path.read_bytes())
        data[9] ^= 1
        path.write_bytes(data)
    journal = Journal.open(directory)
    assert [entry.seq for entry in read_all(journal)] == list(range(1, 31))
    assert len(journal.damage) == 3
    assert journal.last_ingested_us == ingested_us
    assert journal.append_sync(batch(1)) == 31
    journal.close()


def test_a_record_that_contains_a_frame_does_not_pass_for_one(directory: Path) -> None:
    inner = _written(directory.with_name("inner"), batch(1, message="forged")).read_bytes()
    # As text it has to be UTF-8, in which the bytes of the magic never occur.
    evil = make_entry(0, T0, inner.decode("latin-1"))
    segment = _written(directory, [evil], batch(1, start=5))
    data = bytearray(segment.read_bytes())
    data[40] ^= 1  # in the header of the first frame, so that the next frame must be searched for
    segment.write_bytes(data)
    journal = Journal.open(directory)
    assert content(read_all(journal)) == content(batch(1, start=5))
    journal.close()


def test_inspecting_a_journal_changes_nothing_in_it(directory: Path) -> None:
    segment = _written(directory, batch(10))
    with segment.open("ab") as file:
        file.write(b"torn")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    journal = Journal.inspect(directory)
    assert content(read_all(journal)) == content(batch(10))
    with pytest.raises(Overloaded):
        journal.append_sync(batch(1))
    journal.close()
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_inspecting_a_directory_without_a_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no journal"):
        Journal.inspect(tmp_path)


# -- no room, no disk ---------------------------------------------------------------------------


def fill(journal: Journal) -> tuple[JournalFull, int]:
    """Append batches of 100 until the journal is full; return the refusal and how many records went in."""
    for start in range(0, 100_000, 100):
        try:
            journal.append_sync(batch(100, start=start))
        except JournalFull as exc:
            return exc, start
    raise AssertionError("the journal never became full")


def test_a_full_journal_refuses_after_the_wait_and_leaves_nothing_half_written(directory: Path) -> None:
    journal = Journal.open(directory, max_bytes=20_000, full_wait_s=0.05)
    refusal, appended = fill(journal)
    assert "of 20000 bytes" in str(refusal)
    assert journal.size_bytes <= 20_000
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 20_000
    assert journal.refused_records == 100
    assert journal.waiting_records == 0
    assert content(read_all(journal)) == content(batch(appended, start=0))
    journal.close()


def test_an_append_that_waits_for_room_goes_on_when_the_indexer_makes_some(directory: Path) -> None:
    journal = Journal.open(directory, max_bytes=20_000, full_wait_s=0.05)
    fill(journal)
    journal._full_wait_s = TIMEOUT_S
    last_seq = journal.last_seq
    done: list[int] = []
    waiting = threading.Thread(target=lambda: done.append(journal.append_sync(batch(100, message="late"))))
    waiting.start()
    journal.trim(last_seq)
    waiting.join(TIMEOUT_S)
    assert done == [last_seq + 1]
    assert journal.trouble is None
    assert content(read_all(journal, last_seq)) == content(batch(100, message="late"))
    journal.close()


def test_a_tenant_waits_with_no_more_than_it_leaves_free_and_is_refused_at_once_beyond(directory: Path) -> None:
    async def main() -> None:
        journal = Journal.open(directory, max_bytes=100, full_wait_s=TIMEOUT_S, max_waiting_records=10)
        held = [asyncio.create_task(journal.append(batch(5)))]
        await asyncio.sleep(0)
        with pytest.raises(JournalFull, match="5 records wait for the journal already, 5 of this tenant") as caught:
            await journal.append(batch(1))
        assert (caught.value.reason, caught.value.retry_after_s) == ("journal_busy", 1)
        with pytest.raises(JournalFull):
            journal.check_room("default")
        journal.check_room("other")
        held.append(asyncio.create_task(journal.append(batch(3, tenant="other"))))
        await asyncio.sleep(0)
        with pytest.raises(JournalFull):
            journal.check_room("other")
        assert journal.waiting_records == 8
        await asyncio.to_thread(journal.close)
        assert all(isinstance(result, JournalFull) for result in await asyncio.gather(*held, return_exceptions=True))
        assert journal.waiting_records == 0

    asyncio.run(main())


def _wait_for(event: threading.Event) -> None:
    assert event.wait(TIMEOUT_S)


def test_a_tenant_with_much_waiting_delays_another_by_at_most_a_group(directory: Path) -> None:
    async def main() -> None:
        journal = Journal.open(directory, max_waiting_records=500_000)
        go = threading.Event()
        journal.on_fsync = lambda _seconds: _wait_for(go)
        small = batch(1_000, tenant="greedy")
        greedy = [asyncio.create_task(journal.append(small)) for _ in range(100)]
        await asyncio.sleep(0)
        modest = asyncio.create_task(journal.append(batch(1, tenant="modest")))
        await asyncio.sleep(0)
        go.set()
        # One group may be in the writer's hands already, and the next is begun by whoever was first.
        assert await modest <= 40_001
        await asyncio.gather(*greedy)
        journal.close()

    asyncio.run(main())


def test_behind_a_backlog_who_caused_it_is_refused_in_time_and_another_gets_in_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(journals, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(journals, "_MIN_BACKLOG_RECORDS", 10)
    journal = Journal.open(directory, max_lag_s=0)
    journal.append_sync(batch(100, tenant="greedy"))
    now = 1.0
    journal.trim(0, 1)
    now = 2.0
    journal.trim(0, 11)
    assert journal.is_pushing_back
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(journal.append_sync, batch(100, tenant="greedy"))
        while not journal.waiting_records:
            assert not refused.done()
            threading.Event().wait(0.001)
        assert journal.append_sync(batch(5, tenant="modest")) == 101
        now = 8.0
        with pytest.raises(JournalFull, match="94 records wait for the store, which takes 10 a second") as caught:
            refused.result(TIMEOUT_S)
    assert caught.value.reason == "backlog"
    assert caught.value.retry_after_s >= (94 - 10) / 5  # of ten that are read five are admitted
    journal.close()


class Backlog:
    """Tenants, the writer and a reader that falls behind, on a clock of its own; how fast that was is known."""

    def __init__(self, records_per_s: int) -> None:
        self.pace = Pace(max_lag_s=30)
        self.waiting = Lines[tuple[str, int, float]]()
        self.last = self.through = records_per_s
        self.pace.note(0, 0, -2)
        self.pace.note(records_per_s, records_per_s, -1)
        self.sent: Counter[str] = Counter()
        self.admitted: Counter[str] = Counter()
        self.waited_s: dict[str, list[float]] = defaultdict(list)

    def read(self, records: int, now: float) -> None:
        """Have the reader take so many records, or what there is."""
        self.through = min(self.last, self.through + records)
        self.pace.note(self.last, self.through, now)

    def send(self, tenant: str, records: int, now: float) -> None:
        self.sent[tenant] += records
        self.waiting.push(tenant, (tenant, records, now), records)

    def overrun(self, tenant: str, records: int, now: float) -> None:
        """Send until forty appends wait."""
        while self.sent[tenant] - self.admitted[tenant] < 40 * records:
            self.send(tenant, records, now)

    def write(self, now: float) -> None:
        """Append as much as may be, as the writer's thread does."""
        while True:
            self.waiting.share(self.pace.due(self.last, now))
            group = next_group(self.waiting, self.pace.room(self.last, now))
            if not group:
                return
            for tenant, records, since in group:
                self.last += records
                self.admitted[tenant] += records
                self.waited_s[tenant].append(now - since)


def test_a_backlog_is_bounded_in_time_while_the_reader_gets_on() -> None:
    of = Backlog(20_000)
    longest = 0
    for now in range(600):  # three times what the reader takes
        of.read(20_000, now)
        of.overrun("greedy", 1_000, now)
        of.write(now)
        longest = max(longest, of.last - of.through)
    assert longest <= 31 * 20_000 + 60_000
    assert of.last / 600 == pytest.approx(20_000, rel=0.06)
    assert 1 <= of.pace.wait_s(of.last + 50_000, now) <= 10
    while of.through < of.last:
        now += 1
        of.read(20_000, now)
    assert now - 600 <= 32  # and then it recovers


def test_how_fast_the_reader_is_does_not_depend_on_how_unevenly_that_is_noted() -> None:
    of = Backlog(4_000)
    longest = now = 0.0
    for number in range(600):  # as much after half a second as after five
        now += 5 if number % 2 else 0.5
        of.read(20_000, now)
        of.overrun("greedy", 1_000, now)
        of.write(now)
        longest = max(longest, of.last - of.through)
    assert of.pace.rate == pytest.approx(40_000 / 5.5, rel=0.1)
    assert longest <= 33 * 40_000 / 5.5 + 20_000


def test_a_slow_reader_of_large_batches_lets_somebody_in_all_the_time() -> None:
    of = Backlog(2_900)
    admitted_at = []
    for now in range(1_400):
        if now % 7 == 0:  # so long it takes for a batch, longer than a body waits
            of.read(20_000, now)
        of.overrun("greedy", 1_000, now)
        before = of.last
        of.write(now)
        if of.last > before:
            admitted_at.append(now)
        assert of.last - of.through <= 31 * 20_000 // 7 + 30_000
    assert max(later - now for now, later in pairwise(admitted_at)) <= 2
    assert of.last / 1_400 == pytest.approx(20_000 / 7, rel=0.1)


def test_who_sends_little_gets_in_behind_a_backlog_before_a_body_has_waited_too_long() -> None:
    of = Backlog(3_000)
    for tick in range(6_000):
        now = tick / 10
        if tick % 40 == 0:  # so long it takes for a batch
            of.read(12_000, now)
            of.send("modest", 1_000, now)
        of.overrun("greedy", 1_000, now)
        of.write(now)
    assert max(of.waited_s["greedy"]) > 5
    assert max(of.waited_s["modest"]) < 2


def test_what_one_tenant_sent_beyond_its_share_keeps_no_other_one_waiting() -> None:
    of = Backlog(4_000)
    for tick in range(6_000):
        now = tick / 10
        if tick % (70 if tick % 500 < 70 else 25) == 0:  # now and then the reader takes thrice as long
            of.read(12_000, now)
        if tick % 10 == 0:
            of.send("modest", 500, now)  # a tenth of what the reader takes
        of.overrun("greedy", 100_000, now)  # each is what the reader takes in twenty seconds
        of.write(now)
    assert max(of.waited_s["modest"][100:]) < 1
    assert of.admitted["modest"] == 600 * 500
    assert max(of.waited_s["greedy"]) > 20
    assert of.last - of.through <= 31 * of.pace.rate + 100_000


def test_tenants_that_all_overrun_get_equal_shares_of_what_is_admitted() -> None:
    of = Backlog(3_000)
    for tick in range(6_000):
        now = tick / 10
        if tick % 40 == 0:
            of.read(12_000, now)
        of.overrun("a", 1_000, now)
        of.overrun("b", 4_000, now)
        of.write(now)
    assert of.admitted["a"] == pytest.approx(of.admitted["b"], rel=0.05)


def test_a_store_that_is_away_holds_nobody_back_and_its_backlog_shrinks_without_refusing_a_moderate_sender() -> None:
    of = Backlog(8_000)
    for now in range(100):
        of.send("moderate", 8_000, now)
        of.write(now)
        of.read(8_000, now)
    for now in range(100, 1_000):  # away: nothing is noted
        of.send("moderate", 8_000, now)
        of.write(now)
    assert max(of.waited_s["moderate"]) == 0
    for now in range(1_000, 2_000):  # back, and it takes 20,000 a second
        of.read(20_000, now)
        of.send("moderate", 8_000, now)
        of.write(now)
    assert max(of.waited_s["moderate"]) < 5  # longer, and it would be refused
    assert of.last - of.through <= 8_000


def test_closing_writes_what_waits_and_refuses_what_comes_later(directory: Path) -> None:
    async def main() -> None:
        journal = Journal.open(directory)
        waiting = [asyncio.create_task(journal.append(batch(1, start=n))) for n in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(journal.close)
        assert sorted(await asyncio.gather(*waiting)) == list(range(1, 21))
        with pytest.raises(Overloaded, match="closed"):
            await journal.append(batch(1))

    asyncio.run(main())


def test_after_a_failed_fsync_nothing_is_acknowledged_and_the_segment_is_never_written_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(directory)
    journal.append_sync(batch(3))
    real = durable.sync
    failures = [OSError(5, "Input/output error")]

    def sync(fd: int) -> None:
        if failures:
            raise failures.pop()
        real(fd)

    monkeypatch.setattr(durable, "sync", sync)
    with pytest.raises(Overloaded, match="Input/output error"):
        journal.append_sync(batch(3, start=10))
    assert journal.trouble is not None
    before = max(directory.glob("*.log")).read_bytes()
    first = journal.append_sync(batch(3, start=20))
    assert first > 6  # 4 to 6 may be on the disk
    assert journal.trouble is None
    assert (directory / f"{1:020d}.log").read_bytes() == before
    expected = content(batch(3) + batch(3, start=20))
    assert content(read_all(journal)) == expected
    journal.close()
    journal = Journal.open(directory)
    assert content(read_all(journal)) == expected
    assert journal.damage == ()
    journal.close()


def test_records_that_a_failed_fsync_left_on_the_disk_are_not_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(directory)
    journal.append_sync(batch(3))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(durable, "sync", fail)
        broken.setattr(os, "ftruncate", fail)
        with pytest.raises(Overloaded):
            journal.append_sync(batch(3, start=10))
    journal.append_sync(batch(3, start=20))
    journal.close()
    journal = Journal.open(directory)
    assert content(read_all(journal)) == content(batch(3) + batch(3, start=20))
    journal.close()


_DISK_FULL = """
import resource, sys
from pathlib import Path
from logsvc.errors import JournalFull
from logsvc.journal import Journal
sys.path.insert(0, sys.argv[2])
from tests.unit.test_journal import batch, content, read_all

journal = Journal.open(Path(sys.argv[1]), full_wait_s=0.05)
journal.append_sync(batch(100))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size_bytes + 500, hard))
try:
    journal.append_sync(batch(900, start=1_000))
except JournalFull as exc:
    assert "no room on the disk" in str(exc), exc
else:
    raise SystemExit("the limit was not felt")
assert content(read_all(journal)) == content(batch(100))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
assert journal.append_sync(batch(10, start=5_000)) == 101
journal.close()
journal = Journal.open(Path(sys.argv[1]))
assert content(read_all(journal)) == content(batch(100) + batch(10, start=5_000))
assert journal.damage == (), journal.damage
journal.close()
print("survived")
"""


def test_a_full_disk_refuses_and_leaves_nothing_half_written(directory: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", _DISK_FULL, str(directory), str(root)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=root,
    )
    assert result.stdout == "survived\n", result.stderr


def test_a_full_disk_with_one_segment_gets_room_by_trimming_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write_all

    def write_all(fd: int, data: bytes) -> None:
        used = sum(path.stat().st_size for path in directory.iterdir())
        growth = os.lseek(fd, 0, os.SEEK_CUR) + len(data) - os.fstat(fd).st_size
        if used + growth > 30_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, data)

    journal = Journal.open(directory, full_wait_s=0.05)
    monkeypatch.setattr(durable, "write_all", write_all)
    refusal, appended = fill(journal)
    assert "no room on the disk" in str(refusal)
    journal.trim(appended)
    assert journal.append_sync(batch(100)) == appended + 1
    journal.close()
