"""Tails: each tenant gets its share, and a reader that is slow costs no more memory than a page."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fastapi import Request

from logsvc.api import records
from logsvc.errors import Overloaded, StoreUnavailable
from logsvc.keys import Principal, Scope
from logsvc.query import MatchAll
from logsvc.store import MAX_PAGE_ROWS, Page
from logsvc.store.embedded import EmbeddedStore
from tests.support.records import T0, make_entry

READER = Principal("key_1", "test", "default", frozenset({Scope.READ}))


class Watched:
    """An embedded store that counts how often it is searched, and fails when told to."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self.searches = 0
        self.is_away = False

    def put(self, first: int, last: int) -> None:
        self._store.append([make_entry(seq, T0 - seq) for seq in range(first, last + 1)])
        self._store.flush()
        self._store.refresh()

    def search(self, *arguments: Any, **options: Any) -> Page:
        self.searches += 1
        if self.is_away:
            raise StoreUnavailable("away")
        return self._store.search(*arguments, **options)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Any]:
    store = EmbeddedStore(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        yield SimpleNamespace(
            store=Watched(store),
            indexer=SimpleNamespace(searchable_seq=0),
            journal=SimpleNamespace(last_seq=0),
            stopping=threading.Event(),
            tails=Counter(),
            tail_threads=threads,
            clock=lambda: T0,
            keys=SimpleNamespace(verify=lambda _key: READER),
        )
    store.close()


class Connected(Request):
    """A request whose client stays."""

    def __init__(self) -> None:
        super().__init__({"type": "http", "headers": [(b"authorization", b"Bearer the-key")]})

    async def is_disconnected(self) -> bool:
        return False


def test_a_slow_reader_is_read_for_page_by_page_and_loses_nothing(
    services: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "TAIL_POLL_S", 0.001)
    store, count = services.store, 3 * MAX_PAGE_ROWS + 7
    store.put(1, count)

    async def follow() -> list[int]:
        seen: list[int] = []
        services.indexer.searchable_seq = count
        async for event in records._follow(Connected(), services, READER, MatchAll(), 0):
            _, _, data = event.partition(b"data: ")
            if not data:
                continue
            seen.append(int(msgspec.json.decode(data)["event.id"].removeprefix("e")))
            if len(seen) == 5:
                assert store.searches == 1
                store.put(count + 1, count + 50)  # while it reads
                store.is_away = True
                asyncio.get_running_loop().call_later(0.2, setattr, store, "is_away", False)
            if len(seen) == count:
                services.indexer.searchable_seq = count + 50
            if len(seen) == count + 50:
                break
        return seen

    assert sorted(asyncio.run(follow())) == list(range(1, count + 51))


def test_a_tail_ends_when_its_key_does(services: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "TAIL_POLL_S", 0.001)
    monkeypatch.setattr(records, "TAIL_CHECK_KEY_S", 0.0)
    answers: list[Principal | None] = [READER, READER, None]
    asked: list[str] = []

    def verify(key: str) -> Principal | None:
        asked.append(key)
        return answers.pop(0)

    services.keys.verify = verify

    async def follow() -> list[bytes]:
        return [event async for event in records._follow(Connected(), services, READER, MatchAll(), 0)]

    assert asyncio.run(follow()) == [b": following\nid: 0\n\n", b": the key is revoked or expired\n\n"]
    assert asked == ["the-key"] * 3
    assert not services.tails


def test_a_tenant_leaves_tails_to_the_others(services: Any) -> None:
    def opened(tenant: str) -> int:
        principal = Principal("key_1", "test", tenant, frozenset({Scope.READ}))
        for number in range(records.MAX_TAILS + 1):
            try:
                asyncio.run(records.tail(Connected(), services, principal))
            except Overloaded:
                return number
            services.tails[tenant] += 1
        return -1

    counts = [opened(f"t{number}") for number in range(6)]
    assert counts[:2] == [records.MAX_TAILS // 2, records.MAX_TAILS // 4]
    assert min(counts) >= 1
    assert services.tails.total() <= records.MAX_TAILS
