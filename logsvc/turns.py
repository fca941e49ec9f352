"""Turns: who is next when several tenants want the same thing.

First come, first served lets a tenant with a hundred connections take a hundred times what a tenant
with one gets. Here each tenant has a line of its own and the lines are served in turn, by what was
served rather than by how often: a tenant that asks for little waits for at most one of each other's,
and what nobody else asks for is anybody's. Who gets more than there is owes it, and alone waits until that is made up for.

Source: Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), with equal weights.

Not here: how much may wait at all (each caller's bound).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Lines(Generic[T]):
    """Waiting items, a line for each tenant. Its memory is that of the items; not safe for several threads.

    >>> lines = Lines[str]()
    >>> for item in ("a1", "a2", "a3", "b1"):
    ...     lines.push(item[0], item, cost=10)
    >>> [lines.pop() for _ in range(4)]
    ['a1', 'b1', 'a2', 'a3']
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[tuple[T, float]]] = {}
        self._served: dict[str, float] = {}  # of the tenants that wait, or are ahead: where each line stands
        self._now = 0.0  # where a line stands that had its share

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, tenant: str, item: T, cost: float) -> None:
        """Add an item at the end of the tenant's line; ``cost`` is what serving it takes, in any one unit."""
        line = self._lines.get(tenant)
        if line is None:
            # Silence saves up nothing: whoever joins stands level with who is being served. And a tenant whose
            # line was empty for a moment does not overtake those that wait.
            level = min([self._now, *map(self._served.__getitem__, self._lines)])
            self._lines[tenant] = line = deque()
            self._served[tenant] = max(level, self._served.get(tenant, 0.0))
        line.append((item, cost))

    def share(self, cost: float) -> None:
        """Give so much to be shared equally by the tenants that wait, or have had more than their share."""
        sharing = sum(tenant in self._lines or at > self._now for tenant, at in self._served.items())
        if sharing:
            self._now += cost / sharing

    @property
    def has_due(self) -> bool:
        """Whether one waits that has had no more than its share."""
        return bool(self._lines) and self._served[self._next()] <= self._now

    def next_cost(self) -> float:
        """Return the cost of the item that is next.

        Raises:
            IndexError: If none waits.
        """
        return self._lines[self._next()][0][1]

    def pop(self) -> T:
        """Remove the item that is next, and return it.

        Raises:
            IndexError: If none waits.
        """
        tenant = self._next()
        self._now = max(self._now, self._served[tenant])
        item, cost = self._lines[tenant].popleft()
        self._served[tenant] += cost
        if not self._lines[tenant]:
            del self._lines[tenant]
            # Those that stand level with the rest need not be remembered.
            self._served = {t: at for t, at in self._served.items() if t in self._lines or at > self._now}
        return item

    def drop_heads(self, is_over: Callable[[T], bool]) -> list[T]:
        """Remove from the head of each line what is over, without serving it, and return it."""
        dropped: list[T] = []
        for tenant, line in list(self._lines.items()):
            while line and is_over(line[0][0]):
                dropped.append(line.popleft()[0])
            if not line:
                del self._lines[tenant]
        return dropped

    def _next(self) -> str:
        if not self._lines:
            raise IndexError("nobody waits")
        return min(self._lines, key=self._served.__getitem__)


class Turns:
    """Places for work that goes on side by side, given in turn. For one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._lines: Lines[asyncio.Future[None]] = Lines()

    @asynccontextmanager
    async def turn(self, tenant: str, cost: float) -> AsyncIterator[None]:
        """Hold a place for the block; ``cost`` says what the work takes, in the same unit for all."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.push(tenant, place, cost)
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # given, and nobody is there to use it
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and len(self._lines):
            place = self._lines.pop()
            if not place.done():  # its sender hung up
                self._free -= 1
                place.set_result(None)
