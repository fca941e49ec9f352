"""The writing half of a store, on SQLite: durable, idempotent, and strict about sequence numbers.

For tests of what writes to a store. It can be told to be away, to fail a commit, to refuse records
and to break on them, and it kills its process at the named points, as the real ones do.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from logsvc import faults
from logsvc.errors import StoreUnavailable
from logsvc.query import Node
from logsvc.records import Entry
from logsvc.store import AppendResult, Refusal, Span


class PoisonError(Exception):
    """What the store breaks with on a record whose source contains ``poison``."""


class SqliteStore:
    """Entries whose source contains ``refuse`` are refused, with ``poison`` they break the store."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS entries (id TEXT PRIMARY KEY, seq INTEGER UNIQUE NOT NULL, source BLOB)"
        )
        self._is_open = False
        self.visible = self._durable = self.count()
        self.batches: list[int] = []
        self.writers: set[int] = set()
        self.is_away = False
        self.breaks: Callable[[Sequence[Entry]], Exception | None] = lambda entries: None
        self.failing_flushes = 0
        self.refreshes: Callable[[], None] = lambda: None

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM entries").fetchone()[0])

    def contents(self) -> dict[str, bytes]:
        return dict(self._db.execute("SELECT id, source FROM entries").fetchall())

    def sequence(self) -> list[int]:
        return [seq for (seq,) in self._db.execute("SELECT seq FROM entries ORDER BY seq")]

    def _enter(self) -> None:
        self.writers.add(threading.get_ident())
        if self.is_away:
            raise StoreUnavailable("the store is away")

    def append(self, entries: Sequence[Entry]) -> AppendResult:
        self._enter()
        if (exc := self.breaks(entries)) is not None:
            if isinstance(exc, StoreUnavailable) and self._is_open:
                self._db.execute("ROLLBACK")  # what was not committed is lost with it, as in a writer that breaks
                self._is_open = False
            raise exc
        if not self._is_open:
            self._db.execute("BEGIN IMMEDIATE")
            self._is_open = True
        appended = duplicates = skipped = 0
        refused: list[Refusal] = []
        self._db.execute("SAVEPOINT batch")
        for entry in entries:
            if b"poison" in entry.source:
                self._db.execute("ROLLBACK TO batch")
                raise PoisonError("cannot digest this")
            if b"refuse" in entry.source:
                refused.append(Refusal(entry, "refused by the store"))
                continue
            row = self._db.execute("SELECT seq FROM entries WHERE id = ?", (entry.id,)).fetchone()
            if row is None:
                # UNIQUE on seq: a number used twice raises.
                self._db.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.id, entry.seq, entry.source))
                appended += 1
            elif row[0] == entry.seq:
                skipped += 1
            else:
                duplicates += 1
        self._db.execute("RELEASE batch")
        self.batches.append(len(entries))
        return AppendResult(appended, duplicates, skipped, tuple(refused))

    def flush(self) -> AppendResult:
        self._enter()
        if self.failing_flushes:
            self.failing_flushes -= 1
            if self._is_open:
                self._db.execute("ROLLBACK")
                self._is_open = False
            raise StoreUnavailable("the commit failed")
        faults.reach("store.before_commit")
        if self._is_open:
            self._db.execute("COMMIT")
            self._is_open = False
        self._durable = self.count()
        faults.reach("store.after_commit")
        return AppendResult()  # append told all

    def refresh(self) -> None:
        if self.is_away:
            raise StoreUnavailable("the store is away")
        self.refreshes()
        self.visible = self._durable

    def erase(self, tenant: str, query: Node, span: Span) -> int:
        self._enter()
        erased = self._db.execute("DELETE FROM entries").rowcount
        self.visible = self._durable = self.count()
        return erased

    def close(self) -> None:
        self._db.close()


class LateStore(SqliteStore):
    """Takes what it was given only once it is to commit, and tells of it then, as a store far away may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._given: list[Sequence[Entry]] = []

    def append(self, entries: Sequence[Entry]) -> AppendResult:
        self._given.append(entries)
        return AppendResult()

    def flush(self) -> AppendResult:
        given, self._given = self._given, []
        result = AppendResult()
        try:
            for entries in given:
                result += super().append(entries)
        except Exception:
            if self._is_open:
                self._db.execute("ROLLBACK")
                self._is_open = False
            raise
        return result + super().flush()
