"""Accepting: durable before it is answered, counted, and never overtaken by the promise of completeness."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from logsvc.errors import JournalFull
from logsvc.ingest import SLICE_ITEMS, SLICES_AT_ONCE, Counters, Ingest, Item, ItemResult
from logsvc.normaliser import Normaliser
from logsvc.records import Entry
from logsvc.timestamps import MonotonicClock

TIMEOUT_S = 20


class MemoryJournal:
    """Keeps entries; can be full, and can be held so that an accept stays in flight."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.appends = 0
        self.is_full = False
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = asyncio.Event()

    async def append(self, entries: Sequence[Entry]) -> int:
        self.waiting.set()
        await self.open.wait()
        self.check_room("default")
        self.appends += 1
        self.entries += entries
        return len(self.entries) - len(entries) + 1

    def check_room(self, _tenant: str) -> None:
        if self.is_full:
            raise JournalFull("the journal is full")


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_764_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


class Fixture:
    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.clock = Clock()
        self.slices: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.counters = Counters()
        self.ingest = Ingest(
            self.journal,
            clock=MonotonicClock(self.clock),
            run=self.run,
            normaliser=Normaliser(b"key"),
            counters=self.counters,
        )

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        self.slices.append(len(args[0]))
        await self.gate.wait()
        return await asyncio.to_thread(function, *args)

    async def accept(self, items: Sequence[Item]) -> list[ItemResult]:
        return await self.ingest.accept("default", items, source="10.0.0.7", protocol="native", key_id="k1")


def test_items_are_in_the_journal_when_accept_returns_in_their_order() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        items: list[Item] = [{"event.id": f"e{i}"} for i in range(2_500)]
        results = await asyncio.wait_for(fixture.accept(items), TIMEOUT_S)
        assert [result.id for result in results] == [f"e{i}" for i in range(2_500)]
        assert [json.loads(entry.source)["event.id"] for entry in fixture.journal.entries] == [
            f"e{i}" for i in range(2_500)
        ]
        assert fixture.journal.appends == 1
        assert fixture.slices == [SLICE_ITEMS, SLICE_ITEMS, 500]

    asyncio.run(scenario())


def test_a_few_short_items_need_no_thread() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        await fixture.accept([b'{"msg":"a"}', b'{"msg":"b"}'])
        assert fixture.slices == []
        await fixture.accept([b'{"msg":"' + b"x" * 10_000 + b'"}'])
        assert fixture.slices == [1]

    asyncio.run(scenario())


def test_a_full_journal_keeps_nothing_and_says_so() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        fixture.journal.is_full = True
        with pytest.raises(JournalFull):
            await fixture.accept([b'{"msg":"a"}'])
        assert fixture.journal.entries == []
        assert fixture.counters.accepted == 0
        fixture.clock.now_us += 1
        assert fixture.ingest.settled_before_us() == fixture.clock.now_us  # nothing stays in flight

    asyncio.run(scenario())


def test_only_refused_items_never_reach_the_journal() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        results = await fixture.accept([b"{", b"[]"])
        assert [result.code for result in results] == ["not_json", "not_object"]
        assert fixture.journal.appends == 0
        assert await fixture.accept([]) == []

    asyncio.run(scenario())


def test_everything_is_counted() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        many_labels = {f"k{i}": i for i in range(70)}
        await fixture.accept([{"msg": "mail ann@example.com"}, {"pid": "odd"}, b"{", b"[]", b"{", many_labels])
        counters = fixture.counters
        assert (counters.accepted, counters.flagged, counters.redactions, counters.dropped_fields) == (3, 1, 1, 6)
        assert counters.refused == {"not_json": 2, "not_object": 1}

    asyncio.run(scenario())


async def _give_way() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_nothing_is_settled_past_an_accept_in_flight() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        first_us = fixture.clock.now_us
        fixture.journal.open.clear()
        slow = asyncio.create_task(fixture.accept([{"msg": "slow"}]))
        await asyncio.wait_for(fixture.journal.waiting.wait(), TIMEOUT_S)
        fixture.clock.now_us += 5_000_000
        assert fixture.ingest.settled_before_us() == first_us
        fixture.journal.open.set()
        await asyncio.wait_for(slow, TIMEOUT_S)
        assert fixture.ingest.settled_before_us() == first_us + 5_000_000
        assert fixture.journal.entries[0].ingested_us == first_us

    asyncio.run(scenario())


def test_a_call_that_waits_for_its_turn_holds_up_nobody() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        fixture.gate.clear()
        calls = [asyncio.create_task(fixture.accept([{"msg": "slow"}])) for _ in range(SLICES_AT_ONCE)]
        await _give_way()
        assert len(fixture.slices) == SLICES_AT_ONCE
        last = asyncio.create_task(fixture.accept([{"msg": "last"}]))
        given_up = asyncio.create_task(fixture.accept([{"msg": "given up"}]))
        await _give_way()
        given_up.cancel()
        fixture.clock.now_us += 5_000_000
        assert fixture.ingest.settled_before_us() == fixture.clock.now_us - 5_000_000
        fixture.gate.set()
        await asyncio.wait_for(asyncio.gather(*calls, last), TIMEOUT_S)
        assert fixture.journal.entries[-1].ingested_us == fixture.clock.now_us == fixture.ingest.settled_before_us()

    asyncio.run(scenario())


def test_what_will_be_refused_is_not_normalised_when_its_turn_comes() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        fixture.journal.is_full = True
        with pytest.raises(JournalFull):
            await fixture.accept([{"msg": "x"}] * (2 * SLICE_ITEMS))
        assert fixture.slices == []
        assert fixture.ingest.settled_before_us() == fixture.clock.now_us

    asyncio.run(scenario())


@pytest.mark.parametrize("is_full", [False, True])
def test_a_cancelled_accept_stays_in_flight_until_the_journal_is_done_with_it(is_full: bool) -> None:
    async def scenario() -> None:
        fixture = Fixture()
        first_us = fixture.clock.now_us
        fixture.journal.open.clear()
        task = asyncio.create_task(fixture.accept([{"msg": "slow"}]))
        await asyncio.wait_for(fixture.journal.waiting.wait(), TIMEOUT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        fixture.clock.now_us += 1
        assert fixture.ingest.settled_before_us() == first_us
        fixture.journal.is_full = is_full
        fixture.journal.open.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), TIMEOUT_S)
        await asyncio.sleep(0)  # its callback runs
        assert len(fixture.journal.entries) == (0 if is_full else 1)
        assert fixture.ingest.settled_before_us() == first_us + 1

    asyncio.run(scenario())


def test_the_time_of_ingest_never_falls() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        await fixture.accept([{}])
        fixture.clock.now_us -= 3_600_000_000
        await fixture.accept([{}])
        first, second = fixture.journal.entries
        assert second.ingested_us == first.ingested_us

    asyncio.run(scenario())


def dropped(reason: object, count: object) -> Item:
    return {"event.action": "shipper.dropped", "labels": {"reason": reason, "count": count, "total": "99"}}


def test_what_shippers_dropped_is_counted_by_reason() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        await fixture.accept([dropped("queue_full", "5"), dropped("spool_full", 2), {"labels": {"count": "7"}}])
        await fixture.accept([b'{"event":{"action":"shipper.dropped"},"labels":{"reason":"queue_full","count":"1"}}'])
        assert fixture.counters.dropped == {"queue_full": 6, "spool_full": 2}

    asyncio.run(scenario())


def test_a_shipper_that_lies_can_make_neither_series_nor_numbers_without_end() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        odd = ["-1", "0", "1.5", "nan", "9" * 5_000, str(10**9 + 1), "", None, True, [1], "٣"]
        await fixture.accept([dropped("exit", count) for count in odd])
        await fixture.accept([{"event.action": "shipper.dropped"}])
        assert fixture.counters.dropped == {}
        await fixture.accept([dropped(reason, 1) for reason in ("x" * 41, 'a"b', "É", "", None, {"a": 1})])
        assert fixture.counters.dropped == {"other": 6}
        names = [first + second for first in "abcdefghij" for second in "abcdefghij"]
        await fixture.accept([dropped(name, 1) for name in names])
        assert len(fixture.counters.dropped) <= 32
        assert fixture.counters.dropped.total() == 106

    asyncio.run(scenario())
