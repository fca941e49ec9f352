"""Store: where records are kept and found. The protocol, in the words of the domain.

Two implementations, one contract suite (tests/contract/): ``embedded.py`` (tantivy, the default)
and ``elastic.py`` (Elasticsearch). The same query gives the same hits on both.

What always holds:

- Every method that reads or erases takes the tenant first; nothing crosses it.
- ``append`` is idempotent: an entry whose id is stored already is a duplicate, counted and left.
  Of two entries with one id the one with the lower ``seq`` wins.
- Entries are appended in rising ``seq``. After a crash the indexer appends again from its
  checkpoint; what a store already has it skips.
- Appended is not yet durable (``flush``) and not yet searchable (``refresh``). It may still be on its way: what
  became of it is told by a later ``append``, or by ``flush``.
- Order is (``time_us``, ``seq``), both rising or both falling.
- Methods block; callers run them in a thread. They are safe to call from several threads, but
  ``append``, ``flush``, ``erase``, ``expire`` and ``link`` are called by one thread at a time.

Not here: when to flush or expire (indexer.py), the query language (query.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from logsvc.query import Node
from logsvc.records import Entry

MAX_PAGE_ROWS = 1_000
MAX_BUCKETS = 2_000
EXACT_TOTAL = 2_000
"""A total is exact up to here; beyond it may be a lower bound."""


class Order(Enum):
    """Which end of time comes first."""

    NEWEST_FIRST = "desc"
    OLDEST_FIRST = "asc"


class Position(NamedTuple):
    """Where a page ended: the last record's order key. The next page starts strictly after it."""

    time_us: int
    seq: int


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of event time in microseconds: ``[start_us, end_us)``. None is open."""

    start_us: int | None = None
    end_us: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One stored record: its order key, its stored id, and its ``source`` as the entry had it."""

    id: str
    position: Position
    source: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Hits in order. ``next`` is None when nothing is left.

    ``total`` counts all hits of the query, not of the page; ``is_exact`` is false when it is a
    lower bound (never below ``EXACT_TOTAL`` then). Both are None when it was not asked for.
    """

    hits: tuple[Hit, ...]
    next: Position | None
    total: int | None = None
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class Bucket:
    """Records in ``[start_us, start_us + interval_us)``; ``by`` splits the count by one field.

    Without a value the key of ``by`` is the empty string.
    """

    start_us: int
    count: int
    by: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facets:
    """How often each value of a field occurs among the hits.

    ``values`` are the most frequent, most first, ties by value; ``other`` sums the rest of them and
    ``missing`` counts hits without the field. A hit with several values counts for each. Unless
    ``is_exact``, a count may be too low and a rare value may stand where a more frequent one should.
    """

    values: tuple[tuple[str, int], ...] = ()
    other: int = 0
    missing: int = 0
    is_exact: bool = True


class Dimension(Enum):
    """What ``window_counts`` counts, for each unit and step of event time."""

    LEVEL = "level"  # key: log.level
    TEMPLATE = "template"  # key: log.template.id, only of records at warn or above
    STATUS = "status"  # key: task.status, only where present
    CUSTOMER = "customer"  # key: organization.id, only where present
    CUSTOMER_ERROR = "customer_error"  # key: organization.id of records at error or above
    HOST_ERROR = "host_error"  # key: host.name of records at error or above
    DURATION = "duration"  # key: duration_bucket as text, only where present
    VERSION = "version"  # key: service.version, only where present
    VERSION_ERROR = "version_error"  # key: service.version of records at error or above


class WindowCount(NamedTuple):
    """``count`` records of ``unit`` in the step starting at ``step_us`` have ``key``."""

    unit: str
    step_us: int
    dimension: Dimension
    key: str
    count: int  # type: ignore[assignment]  # the word for it; nobody asks a row for tuple.count


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry that the store will never take, and why: a dead letter."""

    entry: Entry
    reason: str


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of entries: over all calls up to a ``flush``, appended + duplicates + skipped + refused = their number.

    ``skipped`` were appended before a crash already (a replay), ``duplicates`` were sent twice.
    """

    appended: int = 0
    duplicates: int = 0
    skipped: int = 0
    refused: tuple[Refusal, ...] = ()

    def __add__(self, other: AppendResult) -> AppendResult:
        return AppendResult(
            self.appended + other.appended,
            self.duplicates + other.duplicates,
            self.skipped + other.skipped,
            self.refused + other.refused,
        )


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What ``doctor`` and ``/readyz`` show."""

    is_reachable: bool
    name: str  # "embedded (tantivy 0.27)" or "Elasticsearch 9.4.3 at http://…" (never a password)
    detail: str = ""
    records: int | None = None
    size_bytes: int | None = None


class Store(Protocol):
    """The seam. Any method may raise ``StoreUnavailable``: nothing is lost, try again.

    Readers raise ``QueryTooExpensive`` when ``timeout_s`` has passed.
    """

    def check_schema(self) -> list[str]:
        """Return how the stored mapping differs from this version's, each difference named; [] if equal.

        A store without data is equal.
        """
        ...

    def append(self, entries: Sequence[Entry]) -> AppendResult:
        """Take entries in rising ``seq``; idempotent. What it tells may be of entries of earlier calls.

        Raises:
            StoreUnavailable: If the store is at fault.
            Exception: Anything else may be the fault of an entry. After either, all since the last ``flush`` must be
                appended again: the store may have lost it.
        """
        ...

    def flush(self) -> AppendResult:
        """Return when everything appended survives a crash, with what was not told yet; raises as ``append`` does."""
        ...

    def refresh(self) -> None:
        """Return when everything flushed before the call is found by every reader; others may append meanwhile."""
        ...

    def search(
        self,
        tenant: str,
        query: Node,
        span: Span = Span(),
        *,
        limit: int = 50,
        after: Position | None = None,
        order: Order = Order.NEWEST_FIRST,
        min_seq: int | None = None,
        count_total: bool = False,
        timeout_s: float = 5.0,
    ) -> Page:
        """Return up to ``limit`` hits strictly after ``after``; ``min_seq`` keeps only ``seq >= min_seq``."""
        ...

    def count(self, tenant: str, query: Node, span: Span = Span(), *, timeout_s: float = 5.0) -> int:
        """Return the exact number of hits."""
        ...

    def histogram(
        self,
        tenant: str,
        query: Node,
        span: Span,
        *,
        interval_us: int,
        by: str | None = None,
        timeout_s: float = 5.0,
    ) -> list[Bucket]:
        """Return the non-empty buckets, oldest first, aligned to multiples of ``interval_us`` since 1970.

        ``by`` is a keyword field (resolved ECS name) or ``labels.KEY``; at most the 100 most
        frequent values are told apart, the rest is summed under ``"*"``.

        Raises:
            QueryTooExpensive: If there would be more than ``MAX_BUCKETS`` buckets.
        """
        ...

    def facets(
        self,
        tenant: str,
        query: Node,
        span: Span = Span(),
        *,
        field: str,
        limit: int = 10,
        prefix: str = "",
        timeout_s: float = 5.0,
    ) -> Facets:
        """Return the ``limit`` most frequent values of ``field``, as ``histogram`` takes it.

        With a ``prefix`` only hits and values that begin with it count, and nothing is ``missing``.
        """
        ...

    def get(self, tenant: str, id: str) -> Hit | None:
        """Return the record with this stored id, or None."""
        ...

    def window_counts(
        self,
        tenant: str,
        *,
        ingested: Span,
        span: Span = Span(),
        step_us: int,
        dimensions: frozenset[Dimension] = frozenset(Dimension),
    ) -> list[WindowCount]:
        """Count, exactly, the records with ``event.ingested`` in ``ingested`` and time in ``span``.

        Steps are aligned to multiples of ``step_us`` since 1970. Any order.
        """
        ...

    def last_seq(self) -> int:
        """Return the highest ``seq`` of any record, perhaps of one since erased; 0 if there never was one."""
        ...

    def tenants(self) -> list[str]:
        """Return every tenant that has records."""
        ...

    def erase(self, tenant: str, query: Node, span: Span = Span()) -> int:
        """Remove every hit for good and return how many; returns when no reader finds them."""
        ...

    def expire(self, before_us: int) -> int:
        """Drop whole days of all tenants whose last write is older than ``before_us``; return how many.

        A day counts as written when its newest ``event.ingested`` was, so late days are not lost at once.
        """
        ...

    def link(self, directory: Path) -> None:
        """Put the files of all that was flushed into ``directory`` as hard links, for a backup.

        Called as ``append`` is. A store on a server has none, and is backed up by the server.
        """
        ...

    def health(self) -> StoreHealth:
        """Describe the store; never raises."""
        ...

    def close(self) -> None:
        """Flush and release everything; idempotent."""
        ...
