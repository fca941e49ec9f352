"""Turns: a tenant that asks for much delays nobody but itself."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from logsvc.turns import Lines, Turns


def test_a_line_of_a_thousand_delays_another_tenant_by_one() -> None:
    lines = Lines[str]()
    for _ in range(1_000):
        lines.push("greedy", "greedy", 100)
    assert [lines.pop() for _ in range(3)] == ["greedy"] * 3
    lines.push("modest", "modest", 1)
    assert "modest" in (lines.pop(), lines.pop())


def test_tenants_that_all_want_more_get_equal_shares_whatever_the_size_of_their_items() -> None:
    lines = Lines[tuple[str, int]]()
    served: Counter[str] = Counter()
    for tenant, cost in (("a", 1), ("b", 10), ("c", 7)):
        for _ in range(1_000):
            lines.push(tenant, (tenant, cost), cost)
    while served.total() < 900:
        tenant, cost = lines.pop()
        served[tenant] += cost
    assert max(served.values()) - min(served.values()) <= 10


def test_a_tenant_whose_line_was_empty_for_a_moment_does_not_get_ahead() -> None:
    lines = Lines[str]()
    served: Counter[str] = Counter()
    for _ in range(100):
        lines.push("patient", "patient", 1)
    lines.push("hasty", "hasty", 1)
    for _ in range(100):
        who = lines.pop()
        served[who] += 1
        if who == "hasty":
            lines.push("hasty", "hasty", 1)
    assert abs(served["hasty"] - served["patient"]) <= 1


def test_a_tenant_that_got_more_than_there_is_waits_alone_until_that_is_made_up_for() -> None:
    lines = Lines[str]()
    lines.push("greedy", "greedy", 100)
    lines.pop()
    lines.push("greedy", "greedy", 100)
    assert not lines.has_due
    shared = 0
    while True:
        lines.push("modest", "modest", 10)
        assert lines.has_due
        if lines.pop() == "greedy":
            break
        lines.share(20)
        shared += 20
    assert shared == pytest.approx(2 * 100, abs=20)


def test_who_joins_stands_level_with_those_that_wait_though_much_was_shared_meanwhile() -> None:
    lines = Lines[str]()
    for _ in range(100):
        lines.push("patient", "patient", 1)
    lines.share(50)
    lines.push("modest", "modest", 1)
    assert "modest" in (lines.pop(), lines.pop())


def test_what_is_over_is_dropped_from_the_heads_alone() -> None:
    lines = Lines[int]()
    for tenant, items in (("a", (1, 2, 9, 1)), ("b", (8,)), ("c", (3,))):
        for item in items:
            lines.push(tenant, item, 1)
    assert sorted(lines.drop_heads(lambda item: item < 5)) == [1, 2, 3]
    assert len(lines) == 3
    assert sorted(lines.pop() for _ in range(3)) == [1, 8, 9]
    with pytest.raises(IndexError):
        lines.pop()


async def _give_way() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_places_are_bounded_and_a_sender_that_hangs_up_leaves_its_place() -> None:
    async def run() -> None:
        turns = Turns(2)
        inside: list[str] = []
        go = asyncio.Event()

        async def work(tenant: str) -> None:
            async with turns.turn(tenant, 1):
                inside.append(tenant)
                await go.wait()

        greedy = [asyncio.create_task(work("greedy")) for _ in range(5)]
        await _give_way()
        modest = asyncio.create_task(work("modest"))
        await _give_way()
        assert inside == ["greedy", "greedy"]
        greedy[0].cancel()  # holds a place
        greedy[2].cancel()  # waits for one
        await _give_way()
        assert inside == ["greedy", "greedy", "modest"]
        go.set()
        await asyncio.gather(*greedy, modest, return_exceptions=True)
        assert Counter(inside) == {"greedy": 4, "modest": 1}
        async with turns.turn("next", 1), turns.turn("next", 1):
            pass

    asyncio.run(run())
