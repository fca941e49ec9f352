"""Embedded: the store inside the process, one tantivy index for each tenant and UTC day.

A day that is long past when its first record arrives shares an index with its month: each index that a batch
touches costs a commit, and a sender of records of a thousand different days would hold everybody up.

It needs no server, so it is the default. Each day is a directory of its own: retention removes
directories, readers walk the days in order and stop when the page is full, and a tenant's data
never lies beside another's.

::

    root/manifest.json            what the index files expect: tantivy's format, our schema
    root/TENANT/tenant.json       the tenant's name, whatever its directory had to be called
    root/TENANT/2026-11-22/       one index; day.json in it holds what is known without opening it
    root/TENANT/2024-03/          the index of those days of a month that have none of their own

What always holds:

- A document is ``_src``, the record's bytes, and what is indexed of them; nothing else is stored.
- A day's documents are committed in rising ``seq``, so its highest one tells what it has: after a
  crash everything up to it is skipped.
- At most ``MAX_WRITERS`` days have a writer and ``MAX_OPEN_DAYS`` are open; the least recently
  used gives way.
- A searcher is a snapshot. A reader takes one per day and never sees half of a commit.
- Erasing writes the day anew without the hits, so that nothing of them stays on the disk.
- A search visits a day in slices of time, from the end that comes first, until its page is full: sorting
  looks at all that is found, and a frequent word is in millions.

The names of index-only fields begin with an underscore: ``_us`` and ``_ing`` are ``@timestamp``
and ``event.ingested`` in microseconds, ``_slot`` is the former's number of ``_SLOT_US``, ``_seq``, ``_unit`` and ``_dur`` are the entry's, ``_id`` is the
first half of its id as a number, ``_labels`` holds ``KEY US VALUE`` for each label (US is U+001F),
``_words:F`` the words of keyword ``F`` and ``_date:F`` the microseconds of date ``F``.

Ids and templates (``_KEYED``) are in no dictionary of terms, where unique values cost more than all
else: a whole value is found by its number in ``_keys``, and any other pattern by listing the column.

Texts are handed over as their words, one space between them: what a word is (``query.tokenize``) is
then one thing for every store, and costs a tenth of what a pattern costs inside tantivy.

Not here: when to flush and expire (indexer.py), what a query means (query.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import tantivy
from tantivy import Occur, Query

from logsvc import durable, faults, regex
from logsvc.errors import BadInput, QueryTooExpensive, SchemaMismatch, StoreUnavailable
from logsvc.fields import FIELDS, LEVELS, MAX_TOKEN_CHARS, FieldType, resolve
from logsvc.query import And, Exists, Match, MatchAll, Node, Not, Or, Prefix, Range, Term, Words, tokenize
from logsvc.records import Entry, stored_id
from logsvc.store import (
    EXACT_TOTAL,
    MAX_BUCKETS,
    AppendResult,
    Bucket,
    Dimension,
    Facets,
    Hit,
    Order,
    Page,
    Position,
    Refusal,
    Span,
    StoreHealth,
    WindowCount,
)
from logsvc.timestamps import parse_rfc3339

MAX_WRITERS = 4
MAX_OPEN_DAYS = 64
OWN_INDEX_DAYS = 35
"""A day gets an index of its own if it is at most so many days past when its first record arrives."""
MAX_LISTED_TERMS = 50_000
"""A range over a keyword lists the values it may mean; beyond this many it is refused."""

_HEAP_BYTES = 24_000_000
_DAY_US = 86_400_000_000
_MONTHS = -10_000_000  # indices of months are numbered from here, those of days from 1970
_SLOT_US = 2_000_000  # tantivy walks a whole segment for a range over a column, but finds a term at once
_FEW = 10_000  # hits that are visited faster than slices are chosen
_WIDER = 16  # times, from one slice to the next at most
_TIES = 50  # more hits than wanted are asked for, so that few pages end within a microsecond
_SEPARATOR = "\x1f"
_MAX_TERMS = 65_000  # the bucket limit of one aggregation in tantivy
_TOP_VALUES = 100
_REWRITE_BATCH = 5_000
_REBUILT = "rebuilt"  # of which commit a day was written anew
_MAX_LOOKED_UP = 1_000  # values that are looked up one by one; more are found by walking the dictionary
_SAME_NUMBER = 16  # records that share half an id; two are a coincidence of 1 in 10^19

_DATES = tuple(f.name for f in FIELDS.values() if f.type is FieldType.DATE)
_EXTRA_DATES = tuple(name for name in _DATES if name not in ("@timestamp", "event.ingested"))
_DATE_FIELDS = {name: f"_date:{name}" for name in _EXTRA_DATES} | {"@timestamp": "_us", "event.ingested": "_ing"}
_KEYWORD_TEXTS = tuple(f.name for f in FIELDS.values() if f.type is FieldType.KEYWORD_TEXT)
_TEXTS = tuple(f.name for f in FIELDS.values() if f.type is FieldType.TEXT)
_LISTS = tuple(f.name for f in FIELDS.values() if f.is_list)
_LONGS = tuple(f.name for f in FIELDS.values() if f.type is FieldType.LONG)
_KEYWORDS = tuple(
    f.name for f in FIELDS.values() if f.type in (FieldType.KEYWORD, FieldType.KEYWORD_TEXT) and not f.is_list
)
# Long values that hardly repeat: a dictionary of them costs more than all else of the index.
_KEYED = {
    name: crc32(name.encode())
    for name in (
        "log.template.id",
        "log.template.text",
        "trace.id",
        "span.id",
        "transaction.id",
        "error.id",
        "task.id",
        "task.parent.id",
        "task.root.id",
        "user.hash",
    )
}
_COLUMNS = ("event.id", *_KEYED)  # in no dictionary

_TANTIVY: str = tantivy.tantivy.__version__  # "tantivy v0.27.0, index_format v7"
_ALL = Query.all_query()
_COUNTED_AT_ONCE, _MOST_PARTS = 4_000, 16
"""Records whose windows are counted at once, or a part of all there are, if that is more."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _slots() -> list[tuple[str, Any, Any]]:
    """Return the fields of ``_Document``: what is read of a record in its order, then what is made of it."""
    slots: list[tuple[str, Any, str]] = []
    for name, field in FIELDS.items():
        match field.type:
            case FieldType.LABELS:
                slots.append(("labels", dict[str, str] | None, name))
            case FieldType.LONG:
                slots.append((_slot(name), int | None, name))
            case FieldType.DATE if name not in _EXTRA_DATES:
                pass  # the entry has it in microseconds
            case FieldType.STORED:
                pass
            case _:
                slots.append((_slot(name), list[str] | None if field.is_list else str | None, name))
    slots += [(name, int | None, f"_{name}") for name in ("us", "slot", "ing", "seq", "id", "dur")]
    slots += [("unit", str | None, "_unit"), ("src", str | None, "_src"), ("pairs", list[str] | None, "_labels")]
    slots += [("keys", list[int], "_keys")]
    slots += [(f"words_{n}", str | None, f"_words:{name}") for n, name in enumerate(_KEYWORD_TEXTS)]
    slots += [(f"date_{n}", int | None, _DATE_FIELDS[name]) for n, name in enumerate(_EXTRA_DATES)]
    return [(slot, type_, msgspec.field(name=name, default=None)) for slot, type_, name in slots]


def _slot(name: str) -> str:
    return "of_" + name.replace(".", "_").replace("@", "")


_Document: Any = msgspec.defstruct("_Document", _slots(), omit_defaults=True, gc=False)
"""What the index gets of a record: decoded from its bytes, completed, encoded again."""

_read = msgspec.json.Decoder(_Document).decode

# Each from what is read to what is indexed in its place.
_WORDS_OF = tuple((_slot(name), f"words_{n}") for n, name in enumerate(_KEYWORD_TEXTS))
_DATES_OF = tuple((_slot(name), f"date_{n}") for n, name in enumerate(_EXTRA_DATES))
_TEXT_SLOTS = tuple(_slot(name) for name in _TEXTS)
_KEYWORD_SLOTS = tuple(_slot(name) for name in _KEYWORDS)
_LIST_SLOTS = tuple(_slot(name) for name in _LISTS)
_KEYED_SLOTS = tuple((_slot(name), seed) for name, seed in _KEYED.items())


class _EventId(msgspec.Struct, gc=False):
    event_id: str = msgspec.field(name="event.id", default="")


_event_id = msgspec.json.Decoder(_EventId).decode


class _DayFacts(msgspec.Struct):
    """What is known of a day without opening it; valid for the commit that ``opstamp`` names."""

    opstamp: int = -1
    records: int = 0
    max_seq: int = 0
    min_us: int = 2**63
    max_us: int = 0
    min_ingested_us: int = 2**63
    max_ingested_us: int = 0


# The index.

_Spec = dict[str, tuple[str, ...]]


def _spec() -> _Spec:
    """Return each index field with its kind and properties, as the manifest keeps them."""
    spec: _Spec = {
        "_src": ("text", "stored"),
        "_id": ("i64", "indexed"),
        "_keys": ("u64", "indexed"),
        "_seq": ("i64", "fast"),
        "_us": ("i64", "fast"),
        "_slot": ("i64", "indexed"),
        "_ing": ("i64", "fast"),
        "_dur": ("i64", "fast"),
        "_unit": ("text", "raw", "fast"),
        "_labels": ("text", "raw", "fast"),
    }
    for name in (*_KEYWORDS, *_LISTS):
        spec[name] = ("text", "column", "fast") if name in _COLUMNS else ("text", "raw", "fast")
    for name in (*_TEXTS, *(f"_words:{name}" for name in _KEYWORD_TEXTS)):
        spec[name] = ("text", "tokenized")
    for name in (*_LONGS, *(_DATE_FIELDS[name] for name in _EXTRA_DATES)):
        spec[name] = ("i64", "fast")
    return spec


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for name, (kind, *properties) in _spec().items():
        if kind == "i64":
            # Only what is looked up has a dictionary: ranges over a fast column are quick.
            builder.add_integer_field(name, fast="fast" in properties, indexed="indexed" in properties)
        elif kind == "u64":
            builder.add_unsigned_field(name, indexed=True)
        elif "stored" in properties:
            builder.add_text_field(name, stored=True, tokenizer_name="none", index_option="basic")
        elif "tokenized" in properties:
            builder.add_text_field(name, tokenizer_name="spaces", index_option="position")
        else:
            builder.add_text_field(name, fast=True, tokenizer_name=properties[0], index_option="basic")
    return builder.build()


_RAW = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.raw()).build()
_SPACES = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
# A text field is always indexed in tantivy-py; this makes it index nothing.
_NONE = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.raw()).filter(tantivy.Filter.remove_long(1)).build()


def _manifest() -> dict[str, Any]:
    return {"format": _TANTIVY, "fields": {name: " ".join(kind) for name, kind in _spec().items()}}


# Documents.


def _label(key: str, value: str) -> str:
    # Ingest lets no control character into a key; a key asked for with one must not reach into a value.
    return key.replace(_SEPARATOR, "\ufffd") + _SEPARATOR + value


# Every ASCII character that is in no word becomes a space; str.translate takes ten times as long.
_ASCII_WORDS = bytes(ord(chr(n).lower()) if n < 128 and (chr(n).isalnum() or chr(n) == "_") else 32 for n in range(256))


def _words(text: str) -> str:
    """Return the tokens of ``text`` with spaces between them."""
    if len(text) <= MAX_TOKEN_CHARS and text.isascii():
        return text.encode().translate(_ASCII_WORDS).decode()
    return " ".join(tokenize(text))


def _number_of(id: str) -> int:
    """Return the first half of a stored id as a number that an i64 column takes.

    Raises:
        ValueError: If it is no stored id.
    """
    if len(id) != 32:
        raise ValueError(f"{id[:100]!r} is no stored id; expected 32 hex digits")
    return int.from_bytes(bytes.fromhex(id[:16]), signed=True)


def _key(seed: int, value: str) -> int:
    """Return the 64 bits by which a value of a field is found, the ``seed`` being the field's in ``_KEYED``."""
    # One checksum forwards and one backwards: a hash of as many bits takes twice as long, four times a record.
    text = value.encode()
    return crc32(text, seed) << 32 | crc32(text[::-1], seed)


def _document(entry: Entry) -> Any:
    """Return the ``_Document`` of an entry; its JSON is what the index takes.

    Raises:
        ValueError: If the source is no JSON object of a record.
    """
    source = entry.source
    document = _read(source)
    document.us, document.ing, document.seq = entry.time_us, entry.ingested_us, entry.seq
    document.slot = entry.time_us // _SLOT_US
    document.id, document.unit, document.dur = _number_of(entry.id), entry.unit, entry.duration_bucket
    document.src = source.decode()
    if document.labels:
        document.pairs = [_label(key, value) for key, value in document.labels.items()]
    document.labels = None
    for slot, words in _WORDS_OF:
        if (text := getattr(document, slot)) is not None:
            setattr(document, words, _words(text))
    for slot, date in _DATES_OF:
        if (text := getattr(document, slot)) is not None:
            setattr(document, date, parse_rfc3339(text) // 1000)
            setattr(document, slot, None)
    for slot in _TEXT_SLOTS:
        if (text := getattr(document, slot)) is not None:
            setattr(document, slot, _words(text))
    if len(source) > MAX_TOKEN_CHARS:
        for slot in _KEYWORD_SLOTS:
            if (text := getattr(document, slot)) is not None:
                setattr(document, slot, text[:MAX_TOKEN_CHARS])
        for slot in _LIST_SLOTS:
            if (texts := getattr(document, slot)) is not None:
                setattr(document, slot, [text[:MAX_TOKEN_CHARS] for text in texts])
    document.keys = [_key(seed, text) for slot, seed in _KEYED_SLOTS if (text := getattr(document, slot)) is not None]
    return document


# Queries.


class _Compiler:
    """Turns a query tree into tantivy's, for one searcher."""

    def __init__(self, tenant: str, schema: tantivy.Schema, searcher: tantivy.Searcher) -> None:
        self._tenant = tenant
        self._schema = schema
        self._searcher = searcher

    def compile(self, node: Node) -> Query:
        match node:
            case MatchAll():
                return _ALL
            case And(children):
                # Nothing but exclusions finds nothing in tantivy, so there is always something to exclude from.
                return Query.boolean_query(
                    [(Occur.Must, _ALL)]
                    + [
                        (Occur.MustNot, self.compile(c.child)) if isinstance(c, Not) else (Occur.Must, self.compile(c))
                        for c in children
                    ]
                )
            case Or(children):
                return _any([self.compile(child) for child in children])
            case Not(child):
                return Query.boolean_query([(Occur.Must, _ALL), (Occur.MustNot, self.compile(child))])
            case Words(fields, tokens, is_prefix):
                return _any([self._words(_text_field(field), tokens, is_prefix) for field in fields])
            case Term(field, value):
                if isinstance(value, int):
                    return self.between(_number_field(field), value, value)
                if field in _COLUMNS:
                    return self._values(field, [value[:MAX_TOKEN_CHARS]])
                return Query.term_query(self._schema, *_term(field, value))
            case Prefix(field, value):
                return self._prefix(*_term(field, value))
            case Match(fields, pattern, is_of_words):
                return _any([self._pattern(_text_field(f) if is_of_words else f, pattern) for f in fields])
            case Exists(field):
                return self._exists(field)
            case Range(field, low, high, includes_low, includes_high):
                if isinstance(low, str) or isinstance(high, str):
                    return self._keyword_range(node)
                return self.between(_number_field(field), low, high, includes_low, includes_high)

    def between(
        self,
        field: str,
        low: Any,
        high: Any,
        includes_low: bool = True,
        includes_high: bool = True,
    ) -> Query:
        """Return the query for numbers in a range; everything if it is open on both ends."""
        if low is None and high is None:
            return _ALL
        kind = tantivy.FieldType.Integer
        return Query.range_query(
            self._schema, field, kind, low, high, includes_low or low is None, includes_high or high is None
        )

    def slots(self, low: int | None, high: int | None) -> Query:
        """Return the query for a range of slots, both ends included; open ends are None."""
        kind = tantivy.FieldType.Integer
        return Query.range_query(self._schema, "_slot", kind, low, high, use_inverted_index=True)

    def most(self, node: Node) -> int:
        """Return how many hits a query has at most, as far as the dictionaries tell."""
        freq, everything = self._searcher.doc_freq, self._searcher.num_docs
        match node:
            case And(children):
                return min(map(self.most, children), default=everything)
            case Or(children):
                return min(everything, sum(map(self.most, children)))
            case Words(fields, tokens, False):
                return min(
                    everything, sum(min(freq(_text_field(field), token) for token in tokens) for field in fields)
                )
            case Term("event.id", str(value)):
                return freq("_id", _number_of(stored_id(self._tenant, value)))
            case Term(field, str(value)) if field in _KEYED:
                return freq("_keys", _key(_KEYED[field], value[:MAX_TOKEN_CHARS]))
            case Term(field, str(value)):
                return freq(*_term(field, value))
            case _:
                return everything

    def _words(self, field: str, tokens: tuple[str, ...], is_prefix: bool) -> Query:
        if is_prefix:
            return self._prefix(field, tokens[0])
        if len(tokens) == 1:
            return Query.term_query(self._schema, field, tokens[0])
        return Query.phrase_query(self._schema, field, list(tokens))

    def _values(self, field: str, values: Iterable[str]) -> Query:
        """Return the query for any of some whole values of a keyword."""
        terms: list[Any] = list(values)
        if field == "event.id":
            field, terms = "_id", [_number_of(stored_id(self._tenant, value)) for value in terms]
        elif field in _KEYED:
            field, terms = "_keys", [_key(_KEYED[field], value) for value in terms]
        if 0 < len(terms) <= _MAX_LOOKED_UP:
            return _any([Query.term_query(self._schema, field, term) for term in terms])
        return Query.term_set_query(self._schema, field, terms)

    def _pattern(self, field: str, pattern: regex.Pattern) -> Query:
        if field in _COLUMNS:
            return self._values(field, self._column(field, regex.write(pattern, _regex_literal, "(?s:.)")))
        return _pattern(field, pattern)

    def _prefix(self, field: str, prefix: str) -> Query:
        if field in _COLUMNS:
            return self._values(field, self._terms(field, prefix))
        if len(prefix) <= 64:
            return Query.regex_query(self._schema, field, f"{_regex_literal(prefix)}(?s:.*)")
        # A long pattern exceeds what the regex compiler takes, but few values begin with it.
        return self._values(field, self._terms(field, prefix))

    def _exists(self, field: str) -> Query:
        kind = _type_of(field)
        if kind is FieldType.LABELS:
            return self._prefix(*_term(field, ""))
        if kind is FieldType.TEXT:
            return Query.regex_query(self._schema, field, "(?s:.*)")
        return Query.exists_query(_DATE_FIELDS.get(field, field))

    def _keyword_range(self, node: Range) -> Query:
        low, high = _bytes(node.low), _bytes(node.high)

        def is_in(term: str) -> bool:
            value = term.encode()
            return (low is None or value > low or (node.includes_low and value == low)) and (
                high is None or value < high or (node.includes_high and value == high)
            )

        common = _common_prefix(str(node.low), str(node.high)) if None not in (low, high) else ""
        return self._values(node.field, filter(is_in, self._terms(node.field, common)))

    def _terms(self, field: str, prefix: str) -> list[str]:
        """Return every value of ``field`` that begins with ``prefix``."""
        if field in _COLUMNS:
            return self._column(field, f"{_regex_literal(prefix)}(?s:.*)")
        terms = self._searcher.terms_with_prefix(field, prefix, limit=MAX_LISTED_TERMS + 1)
        return _bounded(field, [term for term, _ in terms])

    def _column(self, field: str, pattern: str) -> list[str]:
        """Return every value of a field without a dictionary that a pattern matches."""
        terms = {**_terms_of(field), "include": pattern}
        try:
            found = self._searcher.aggregate(_ALL, {"by": {"terms": terms}})["by"]
        except ValueError as exc:
            if "limit was exceeded" in str(exc):
                raise _too_many(field) from exc
            raise QueryTooExpensive(
                f"the pattern for {field} has too many ways to match; take it apart with OR"
            ) from exc
        if found["sum_other_doc_count"]:
            raise _too_many(field)
        return _bounded(field, [bucket["key"] for bucket in found["buckets"]])


def _bounded(field: str, values: list[str]) -> list[str]:
    if len(values) > MAX_LISTED_TERMS:
        raise _too_many(field)
    return values


def _too_many(field: str) -> QueryTooExpensive:
    return QueryTooExpensive(
        f"{field} has more than {MAX_LISTED_TERMS} different values to compare; "
        "narrow it down: a longer prefix, or both bounds, closer together"
    )


@lru_cache(64)
def _pattern(field: str, pattern: regex.Pattern) -> Query:
    """Return the query for whole terms that match; kept, for an odd pattern may take tenths of a second."""
    try:
        return Query.regex_query(_schema(), field, regex.write(pattern, _regex_literal, "(?s:.)"))
    except ValueError as exc:
        raise QueryTooExpensive(f"/{regex.render(pattern)}/ has too many ways to match; take it apart with OR") from exc


def _any(queries: list[Query]) -> Query:
    return queries[0] if len(queries) == 1 else Query.boolean_query([(Occur.Should, query) for query in queries])


def _all(queries: Iterable[Query]) -> Query:
    wanted = [(Occur.Must, query) for query in queries if query is not _ALL]
    return Query.boolean_query(wanted) if wanted else _ALL


def _type_of(name: str) -> FieldType:
    field = resolve(name)
    if field is None:
        raise ValueError(f"the query names {name!r}, which is no field")
    return field.type


def _text_field(name: str) -> str:
    return f"_words:{name}" if _type_of(name) is FieldType.KEYWORD_TEXT else name


def _number_field(name: str) -> str:
    return _DATE_FIELDS.get(name, name)


def _term(field: str, value: str) -> tuple[str, str]:
    """Return the index field and the term that a keyword or a label is searched by."""
    if _type_of(field) is FieldType.LABELS:
        return "_labels", _label(field.removeprefix("labels."), value)
    return field, value[:MAX_TOKEN_CHARS]


def _regex_literal(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def _bytes(text: str | int | None) -> bytes | None:
    return None if text is None else str(text).encode()


def _common_prefix(a: str, b: str) -> str:
    length = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


# Days.


class _Day:
    """One tenant's index of one UTC day, or of a month: its facts, and while they are needed a searcher and a writer.

    The store's lock guards ``index`` and ``searcher``; everything else belongs to the one thread
    that appends.
    """

    def __init__(self, tenant: str, number: int, path: Path) -> None:
        self.tenant = tenant
        self.number = number  # days since 1970, or _MONTHS and the months since then
        self.path = path
        self.facts = _DayFacts()
        self.appended_seq = 0  # highest seq handed to the writer or committed
        self.appended_ingested_us = 0
        self.pending: set[str] = set()  # ids that the searcher cannot see
        self.index: tantivy.Index | None = None
        self.searcher: tantivy.Searcher | None = None
        self.writer: tantivy.IndexWriter | None = None
        self.is_dirty = False

        self.start_us, self.end_us = _bounds(number)

    @property
    def is_month(self) -> bool:
        return self.number < _MONTHS // 2

    def create(self) -> None:
        """Make the directory, durably, so that a commit in it cannot be lost with its name."""
        self.path.mkdir(parents=True)
        for parent in (self.path.parent, self.path.parent.parent):
            durable.sync_directory(parent)

    def read_facts(self) -> None:
        """Take the facts from day.json, or from the index if they are older than its last commit."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self.facts = msgspec.json.decode((self.path / "day.json").read_bytes(), type=_DayFacts)
        if self.facts.opstamp != _opstamp(self.path):
            self.open()
            self.count()
        self.appended_seq = self.facts.max_seq
        self.appended_ingested_us = self.facts.max_ingested_us

    def write_facts(self) -> None:
        self.facts.opstamp = _opstamp(self.path)
        durable.replace(self.path / "day.json", msgspec.json.encode(self.facts))

    def open(self) -> tantivy.Searcher:
        if self.searcher is None:
            self.index = tantivy.Index(_schema(), str(self.path))
            # Reloading by hand costs no thread that watches the files.
            self.index.config_reader("manual")
            self.index.register_tokenizer("spaces", _SPACES)
            self.index.register_tokenizer("none", _NONE)
            self.index.register_tokenizer("column", _NONE)
            self.index.register_fast_field_tokenizer("column", _RAW)
            self.reload()
        assert self.searcher is not None
        return self.searcher

    def reload(self) -> None:
        assert self.index is not None
        self.index.reload()
        self.searcher = self.index.searcher()

    def count(self) -> None:
        """Take the facts from what is committed."""
        assert self.searcher is not None
        asked = {
            "max_seq": {"max": {"field": "_seq"}},
            "min_us": {"min": {"field": "_us"}},
            "max_us": {"max": {"field": "_us"}},
            "min_ingested_us": {"min": {"field": "_ing"}},
            "max_ingested_us": {"max": {"field": "_ing"}},
        }
        found = self.searcher.aggregate(_ALL, asked)
        self.facts.records = self.searcher.num_docs
        if self.facts.records:
            # Of erased records the index knows nothing, so the highest seq may be a remembered one.
            found_seq = int(found.pop("max_seq")["value"])
            self.facts.max_seq = max(self.facts.max_seq, found_seq)
            for name, of_name in found.items():
                setattr(self.facts, name, int(of_name["value"]))


def _opstamp(path: Path) -> int:
    """Return the number of the last commit in ``path``; 0 if there is none."""
    try:
        return int(_decode((path / "meta.json").read_bytes())["opstamp"])
    except FileNotFoundError:
        return 0


def _link_commit(path: Path, target: Path) -> bool:
    """Link the files of the last commit in ``path``; False if a merge has replaced some of them meanwhile."""
    try:
        os.link(path / "meta.json", target / "meta.json")
        segments = _decode((target / "meta.json").read_bytes())["segments"]
        ids = {segment["segment_id"].replace("-", "") for segment in segments}
        for file in list(path.iterdir()):
            if file.name in (".managed.json", "day.json") or file.name.partition(".")[0] in ids:
                os.link(file, target / file.name)
        # tantivy removes files only after it has named the others here.
        return (path / "meta.json").samefile(target / "meta.json")
    except FileNotFoundError:
        return not (path / "meta.json").exists()  # nothing was ever committed


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _month_of(number: int) -> int:
    """Return the number of the month in which a day lies."""
    day = _EPOCH + timedelta(days=number)
    return _MONTHS + (day.year - 1970) * 12 + day.month - 1


def _bounds(number: int) -> tuple[int, int]:
    """Return where a day or a month begins and where it ends, in microseconds since 1970."""
    if number >= _MONTHS // 2:
        return number * _DAY_US, (number + 1) * _DAY_US
    first, following = (
        (datetime(1970 + months // 12, months % 12 + 1, 1, tzinfo=UTC) - _EPOCH).days
        for months in (number - _MONTHS, number - _MONTHS + 1)
    )
    return first * _DAY_US, following * _DAY_US


def _day_name(number: int) -> str:
    start = _EPOCH + timedelta(microseconds=_bounds(number)[0])
    return f"{start:%Y-%m}" if number < _MONTHS // 2 else f"{start:%Y-%m-%d}"


def _day_number(name: str) -> int | None:
    if re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", name):
        return _MONTHS + (int(name[:4]) - 1970) * 12 + int(name[5:]) - 1
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", name):
        return None
    return (datetime.fromisoformat(f"{name}T00:00:00+00:00") - datetime(1970, 1, 1, tzinfo=UTC)).days


def _tenant_directory(tenant: str) -> str:
    """Return a name that every file system takes and that no two tenants share, whatever its case."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", tenant):
        return tenant
    return "~" + blake2b(tenant.encode(), digest_size=16).hexdigest()


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def check(self) -> None:
        if time.monotonic() >= self._end:
            raise QueryTooExpensive(f"the query took longer than {self._timeout_s:g} s; narrow its time range")


@dataclass(frozen=True, slots=True)
class _View:
    """One day as a reader sees it: a snapshot and the compiler for it."""

    day: _Day
    searcher: tantivy.Searcher
    compiler: _Compiler


class _Walk:
    """Visits a day's hits from one end of its time, in slices that grow, until enough were found.

    Slices are disjoint, so that what is rare costs one pass and the choosing of few slices.
    """

    def __init__(self, view: _View, query: Query, most: int, order: Order, deadline: _Deadline) -> None:
        self.view = view
        self.query = query
        self.order = order
        self.is_at_end = True  # whether the last one went through all of its span
        self._most = most
        self._deadline = deadline

    def within(self, low_us: int | None, high_us: int | None) -> Query:
        """Return the query for a range of time, both ends included; None is open."""
        between = self.view.compiler.between("_us", low_us, high_us)
        if low_us is None or high_us is None or high_us - low_us > _SLOT_US:
            return between
        return _all([self.view.compiler.slots(low_us // _SLOT_US, high_us // _SLOT_US), between])

    def go(self, span: Span, wanted: int, take: Callable[[Query], int]) -> None:
        """Hand ``take`` the query of one slice after the other until it has returned ``wanted`` together."""
        facts, is_newest_first = self.view.day.facts, self.order is Order.NEWEST_FIRST
        between, slots = self.view.compiler.between, self.view.compiler.slots
        self.is_at_end = wanted > 0
        if not self.is_at_end:
            return
        # An end that cuts nothing off stays open: ranges over the column cost more than slots.
        low = None if span.start_us is None or span.start_us <= facts.min_us else span.start_us
        high = None if span.end_us is None or span.end_us > facts.max_us else span.end_us - 1
        first, last = (
            us // _SLOT_US for us in (facts.min_us if low is None else low, facts.max_us if high is None else high)
        )
        cut = between("_us", None, high) if is_newest_first else between("_us", low, None)
        is_open = cut is _ALL
        per_slot = self._most * _SLOT_US / (facts.max_us - facts.min_us + 1)
        width = 1 + int(2 * wanted / max(per_slot, 1e-9))
        while self._most > _FEW and 2 * width <= last - first:
            if is_newest_first:
                edge = last - width + 1
                part = slots(edge, None if is_open else last)
                last, high = edge - 1, edge * _SLOT_US - 1
            else:
                edge = first + width
                part = slots(None if is_open else first, edge - 1)
                first, low = edge, edge * _SLOT_US
            self._deadline.check()
            found = take(_all([self.query, part, cut]))
            cut, is_open = _ALL, False
            wanted -= found
            if wanted <= 0:
                self.is_at_end = False
                return
            width = 1 + int(width * min(_WIDER, 1.25 * wanted / max(found, 1)))
        if first <= last:
            take(_all([self.query, between("_us", low, high)]))


def _after(span: Span, us: int, order: Order) -> Span:
    """Return what of a span comes after a microsecond."""
    if order is Order.NEWEST_FIRST:
        return Span(span.start_us, us if span.end_us is None else min(us, span.end_us))
    return Span(us + 1 if span.start_us is None else max(us + 1, span.start_us), span.end_us)


def _add(writer: tantivy.IndexWriter, document: Any) -> str | None:
    """Hand a document to the writer; return why it will never take it, None if it did.

    Raises:
        ValueError: If the writer itself is broken.
    """
    try:
        writer.add_json(_encode(document).decode())
    except ValueError as exc:
        if "could not be parsed" in str(exc) or "not valid JSON" in str(exc):
            return f"the index does not take it: {exc}"
        raise
    return None


class EmbeddedStore:
    """A ``Store`` in a directory. One process at a time, which the data directory's lock sees to."""

    def __init__(self, root: Path, *, heap_bytes: int = _HEAP_BYTES) -> None:
        self._root = root
        self._heap_bytes = heap_bytes
        self._lock = threading.RLock()  # the registry of days, and opening and closing them
        self._days: dict[str, dict[int, _Day]] = {}
        self._opened: OrderedDict[_Day, None] = OrderedDict()
        self._writing: OrderedDict[_Day, None] = OrderedDict()
        self._schema = _schema()
        self._is_closed = False
        _limit_arenas()
        finish_taking_place(root)
        root.mkdir(parents=True, exist_ok=True)
        self._differences = self._compare_manifest()
        if not self._differences:
            self._find_days()

    # Schema and start

    def check_schema(self) -> list[str]:
        return list(self._differences)

    def _compare_manifest(self) -> list[str]:
        path = self._root / "manifest.json"
        expected = _manifest()
        try:
            found = _decode(path.read_bytes())
        except FileNotFoundError:
            durable.replace(path, msgspec.json.format(_encode(expected)))
            return []
        except msgspec.MsgspecError:
            return [f"{path}: not JSON, so the index cannot be recognised"]
        differences = []
        if found.get("format") != expected["format"]:
            differences.append(
                f"index format: the files are of {found.get('format')!r}, this is {expected['format']!r}"
            )
        there, wanted = found.get("fields", {}), expected["fields"]
        for name in sorted(there.keys() | wanted.keys()):
            if there.get(name) != wanted.get(name):
                differences.append(
                    f"field {name}: the index has {there.get(name, 'none')!r}, expected {wanted.get(name, 'none')!r}"
                )
        return differences

    def _find_days(self) -> None:
        for directory in sorted(path for path in self._root.iterdir() if path.is_dir()):
            try:
                tenant = _decode((directory / "tenant.json").read_bytes())["tenant"]
            except (OSError, msgspec.MsgspecError, KeyError, TypeError):
                continue  # a crash before the tenant's first record
            _finish_rewrites(directory)
            for path in directory.iterdir():
                number = _day_number(path.name)
                if number is None:
                    continue
                day = _Day(tenant, number, path)
                day.read_facts()
                day.index = day.searcher = None
                self._days.setdefault(tenant, {})[number] = day

    # Append

    def append(self, entries: Sequence[Entry]) -> AppendResult:
        self._check_usable()
        appended = duplicates = skipped = 0
        refused: list[Refusal] = []
        by_day: dict[tuple[str, int], list[Entry]] = {}
        for entry in entries:
            by_day.setdefault((entry.tenant, self._number(entry)), []).append(entry)
        days = [(self._day_to_write(*key), of_day) for key, of_day in by_day.items()]
        # Days with a writer first: opening one for another day closes theirs.
        for day, of_day in sorted(days, key=lambda item: item[0] not in self._writing):
            writer = self._writer(day)
            facts, pending = day.facts, day.pending
            for entry in of_day:
                if entry.seq <= day.appended_seq:
                    skipped += 1
                    continue
                try:
                    document = _document(entry)
                except (ValueError, msgspec.MsgspecError, BadInput) as exc:
                    refused.append(Refusal(entry, f"not the JSON of a record: {exc}"))
                    continue
                if entry.has_client_id and (
                    entry.id in pending or self._is_stored(day, entry.id) or self._is_in_neighbour(day, entry)
                ):
                    duplicates += 1
                    continue
                try:
                    reason = _add(writer, document)
                except ValueError as exc:
                    self._abandon(day)
                    raise StoreUnavailable(f"cannot write to {day.path}: {exc}") from exc
                if reason is not None:
                    refused.append(Refusal(entry, reason))
                    continue
                if entry.has_client_id:
                    pending.add(entry.id)
                appended += 1
                day.is_dirty = True
                day.appended_seq = entry.seq
                day.appended_ingested_us = max(day.appended_ingested_us, entry.ingested_us)
                # Widened before the commit: a day too many is looked at, none is missed.
                facts.min_us = min(facts.min_us, entry.time_us)
                facts.max_us = max(facts.max_us, entry.time_us)
                facts.min_ingested_us = min(facts.min_ingested_us, entry.ingested_us)
                facts.max_ingested_us = max(facts.max_ingested_us, entry.ingested_us)
        return AppendResult(appended, duplicates, skipped, tuple(refused))

    def _is_stored(self, day: _Day, id: str) -> bool:
        searcher = day.searcher or self._open(day)
        # The dictionary of terms answers in microseconds; nothing is deleted in place.
        return searcher.doc_freq("_id", _number_of(id)) > 0 and self._find(searcher, day.tenant, id) is not None

    def _is_in_neighbour(self, day: _Day, entry: Entry) -> bool:
        """Tell whether a record that took its time from its arrival arrived the day before, too."""
        if entry.time_us != entry.ingested_us:
            return False
        before = self._days[day.tenant].get(day.number - 1)
        if before is None:
            return False
        return entry.id in before.pending or self._is_stored(before, entry.id)

    def _number(self, entry: Entry) -> int:
        """Return which day, or month, takes an entry; one that has it already goes on to."""
        number = entry.time_us // _DAY_US
        if entry.ingested_us // _DAY_US - number <= OWN_INDEX_DAYS:
            return number
        month = _month_of(number)
        days = self._days.get(entry.tenant, {})
        if number not in days:
            return month
        # A day's own index may be begun at the last moment, when its month has some of its records.
        there = days.get(month)
        is_there = there is not None and (entry.id in there.pending or self._is_stored(there, entry.id))
        return month if is_there else number

    def _day_to_write(self, tenant: str, number: int) -> _Day:
        with self._lock:
            days = self._days.get(tenant, {})
            day = days.get(number)
            if day is not None:
                return day
            directory = self._root / _tenant_directory(tenant)
            try:
                if not (directory / "tenant.json").exists():
                    directory.mkdir(exist_ok=True)
                    durable.replace(directory / "tenant.json", _encode({"tenant": tenant}))
                day = _Day(tenant, number, directory / _day_name(number))
                day.create()
            except OSError as exc:
                raise StoreUnavailable(f"cannot create {directory}: {exc}") from exc
            self._days[tenant] = {**days, number: day}
            return day

    def _writer(self, day: _Day) -> tantivy.IndexWriter:
        """Return the day's writer; if too many are open, the one unused for longest commits and closes."""
        self._writing[day] = None
        self._writing.move_to_end(day)
        while len(self._writing) > MAX_WRITERS:
            self._close_writer(next(iter(self._writing)))
        if day.writer is None:
            self._open(day)
            assert day.index is not None
            try:
                day.writer = day.index.writer(self._heap_bytes, 1)
            except (ValueError, OSError) as exc:
                del self._writing[day]
                raise StoreUnavailable(f"cannot write to {day.path}: {exc}") from exc
        return day.writer

    def _close_writer(self, day: _Day) -> None:
        self._commit(day)
        day.writer = None
        self._writing.pop(day, None)
        day.write_facts()

    def _abandon(self, day: _Day) -> None:
        """Forget what the day has not committed; its entries are appended again."""
        self._writing.pop(day, None)
        day.writer = None
        day.pending.clear()
        day.is_dirty = False
        day.appended_seq = day.facts.max_seq

    def flush(self) -> AppendResult:
        self._check_usable()
        for day in list(self._writing):
            self._commit(day)
        return AppendResult()  # append told all

    def _commit(self, day: _Day) -> None:
        if not day.is_dirty:
            return
        assert day.writer is not None
        faults.reach("store.before_commit")
        try:
            day.writer.commit()
        except (ValueError, OSError) as exc:
            self._abandon(day)
            raise StoreUnavailable(f"cannot commit to {day.path}: {exc}") from exc
        faults.reach("store.after_commit")
        day.is_dirty = False
        day.facts.max_seq = day.appended_seq
        with self._lock:
            day.reload()
            assert day.searcher is not None
            day.facts.records = day.searcher.num_docs
        day.pending.clear()

    def refresh(self) -> None:
        """Nothing to do: a commit shows what it made durable at once."""

    # Reading

    def _check_usable(self) -> None:
        if self._differences:
            raise SchemaMismatch("the embedded index", self._differences)
        if self._is_closed:
            raise StoreUnavailable("the embedded store is closed")

    def _open(self, day: _Day) -> tantivy.Searcher:
        with self._lock:
            try:
                searcher = day.open()
            except (ValueError, OSError) as exc:
                raise StoreUnavailable(f"cannot open {day.path}: {exc}") from exc
            self._opened[day] = None
            self._opened.move_to_end(day)
            for cold in list(self._opened):
                if len(self._opened) <= MAX_OPEN_DAYS:
                    break
                if cold.writer is None and cold is not day:
                    cold.index = cold.searcher = None
                    del self._opened[cold]
            return searcher

    def _views(
        self,
        tenant: str,
        span: Span,
        *,
        order: Order = Order.OLDEST_FIRST,
        min_seq: int | None = None,
        ingested: Span = Span(),
        of_months: bool | None = None,
    ) -> Iterator[_View]:
        """Yield the days and months that may hold a hit, in order, each opened when its turn comes.

        ``of_months`` keeps only months, or only days: a month may hold records between those of two days, but
        one kind alone is in order of time.
        """
        self._check_usable()
        with self._lock:
            days = [day for day in self._days.get(tenant, {}).values() if of_months in (None, day.is_month)]
        days.sort(key=lambda day: day.start_us, reverse=order is Order.NEWEST_FIRST)
        for day in days:
            if not day.facts.records:  # all erased, or nothing committed yet
                continue
            if span.start_us is not None and day.end_us <= span.start_us:
                continue
            if span.end_us is not None and day.start_us >= span.end_us:
                continue
            if min_seq is not None and day.appended_seq < min_seq:
                continue
            if ingested.start_us is not None and day.facts.max_ingested_us < ingested.start_us:
                continue
            if ingested.end_us is not None and day.facts.min_ingested_us >= ingested.end_us:
                continue
            with self._lock:
                if self._days.get(tenant, {}).get(day.number) is not day:
                    continue  # expired meanwhile
                searcher = self._open(day)
            yield _View(day, searcher, _Compiler(tenant, self._schema, searcher))

    def _within(self, view: _View, field: str, span: Span) -> Query:
        """Return the query for a span; everything if the whole day lies in it."""
        low, high = span.start_us, span.end_us
        if field == "_us":
            low = None if low is not None and low <= view.day.start_us else low
            high = None if high is not None and high >= view.day.end_us else high
        return view.compiler.between(field, low, high, True, False)

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
        deadline = _Deadline(timeout_s)
        is_newest_first = order is Order.NEWEST_FIRST
        all_hits: list[Hit] = []
        total, is_exact = 0, True
        for of_months in (False, True):
            hits: list[Hit] = []
            for view in self._views(tenant, span, order=order, min_seq=min_seq, of_months=of_months):
                deadline.check()
                wants_hits = len(hits) <= limit
                if not wants_hits and (not count_total or total >= EXACT_TOTAL):
                    is_exact = False
                    break
                wanted, most = view.compiler.compile(query), view.compiler.most(query)
                if min_seq is not None:
                    wanted = _all([wanted, view.compiler.between("_seq", min_seq, None)])
                    most = min(most, view.day.appended_seq + 1 - min_seq)
                walk = _Walk(view, wanted, most, order, deadline)
                count_to = max(0, EXACT_TOTAL - total) if count_total else 0
                if count_total and (after is not None or not wants_hits):
                    total += _count_up_to(walk, span, count_to)
                    is_exact &= walk.is_at_end
                    count_to = 0
                if not wants_hits:
                    continue
                if after is not None:
                    is_before = (
                        view.day.start_us > after.time_us if is_newest_first else view.day.end_us <= after.time_us
                    )
                    if is_before:
                        continue
                found, count = self._day_hits(walk, span, limit + 1 - len(hits), after, count_to)
                hits += found
                if count_total and after is None:
                    total += count
                    is_exact &= walk.is_at_end and count_to > 0
            if all_hits and hits:
                hits = sorted(all_hits + hits, key=lambda hit: hit.position, reverse=is_newest_first)
            all_hits = hits or all_hits
        page = tuple(all_hits[:limit])
        return Page(
            page,
            page[-1].position if len(all_hits) > limit and page else None,
            total if count_total else None,
            is_exact if count_total else True,
        )

    def _day_hits(
        self, walk: _Walk, span: Span, limit: int, after: Position | None, count_to: int
    ) -> tuple[list[Hit], int]:
        """Return the day's first ``limit`` hits strictly after ``after``, and how many were seen: ``count_to`` at least."""
        view, order = walk.view, walk.order
        found: list[tuple[Position, tantivy.DocAddress]] = []
        if after is not None:
            # tantivy sorts by one field, so the microsecond of the last page's end is asked for by ``seq``.
            at, is_newest_first = after.time_us, order is Order.NEWEST_FIRST
            low, high = (None, after.seq) if is_newest_first else (after.seq, None)
            later = view.compiler.between("_seq", low, high, False, False)
            found += self._sorted(view.searcher, _all([walk.query, walk.within(at, at), later]), "_seq", limit, order)
            span = _after(span, at, order)

        seen = 0

        def take(part: Query) -> int:
            nonlocal seen
            if len(found) < limit:
                first, count = self._first(walk, part, limit - len(found), is_counted=count_to > 0)
                found.extend(first)
            else:
                count = _count(view.searcher, part)
            seen += count
            return count

        walk.go(span, max(limit - len(found), count_to), take)
        return [self._hit(view.searcher, view.day.tenant, *place) for place in found], seen

    def _first(
        self, walk: _Walk, query: Query, limit: int, *, is_counted: bool
    ) -> tuple[list[tuple[Position, tantivy.DocAddress]], int]:
        """Return the first ``limit`` hits in order of time and ``seq``; and how many there are, or at least those."""
        searcher, order = walk.view.searcher, walk.order
        found, count = self._search(searcher, query, "_us", limit + _TIES, order, is_counted=is_counted)
        last = found[-1] if len(found) == limit + _TIES else None
        found.sort(key=lambda item: item[0], reverse=order is Order.NEWEST_FIRST)
        if last is not None and found[limit - 1][0].time_us == (at := last[0].time_us):
            # The microsecond at which it ends is cut anywhere, so all of it is asked for.
            found = [item for item in found if item[0].time_us != at]
            ties = _all([query, walk.within(at, at)])
            found += self._sorted(searcher, ties, "_seq", limit - len(found), order)
        return found[:limit], count

    @staticmethod
    def _sorted(
        searcher: tantivy.Searcher, query: Query, field: str, limit: int, order: Order
    ) -> list[tuple[Position, tantivy.DocAddress]]:
        return EmbeddedStore._search(searcher, query, field, limit, order, is_counted=False)[0]

    @staticmethod
    def _search(
        searcher: tantivy.Searcher, query: Query, field: str, limit: int, order: Order, *, is_counted: bool
    ) -> tuple[list[tuple[Position, tantivy.DocAddress]], int]:
        direction = tantivy.Order.Desc if order is Order.NEWEST_FIRST else tantivy.Order.Asc
        result: Any = searcher.search(query, limit, count=is_counted, order_by_field=field, order=direction)
        hits = result.hits
        addresses = [address for _, address in hits]
        times = searcher.fast_field_values("_us", addresses)
        seqs = searcher.fast_field_values("_seq", addresses)
        found = [
            (Position(int(us or 0), int(seq or 0)), address)
            for us, seq, address in zip(times, seqs, addresses, strict=True)
        ]
        return found, int(result.count) if is_counted else len(found)

    @staticmethod
    def _hit(searcher: tantivy.Searcher, tenant: str, position: Position, address: tantivy.DocAddress) -> Hit:
        source = str(searcher.doc(address).get_first("_src")).encode()
        return Hit(stored_id(tenant, _event_id(source).event_id), position, source)

    def count(self, tenant: str, query: Node, span: Span = Span(), *, timeout_s: float = 5.0) -> int:
        deadline = _Deadline(timeout_s)
        total = 0
        for view in self._views(tenant, span):
            deadline.check()
            total += _count(view.searcher, _all([view.compiler.compile(query), self._within(view, "_us", span)]))
        return total

    def get(self, tenant: str, id: str) -> Hit | None:
        for view in self._views(tenant, Span(), order=Order.NEWEST_FIRST):
            if (hit := self._find(view.searcher, tenant, id)) is not None:
                return hit
        return None

    def _find(self, searcher: tantivy.Searcher, tenant: str, id: str) -> Hit | None:
        try:
            wanted = Query.term_query(self._schema, "_id", _number_of(id))
        except ValueError:
            return None
        for position, address in self._sorted(searcher, wanted, "_seq", _SAME_NUMBER, Order.OLDEST_FIRST):
            hit = self._hit(searcher, tenant, position, address)
            if hit.id == id:
                return hit
        return None

    # Counting

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
        deadline = _Deadline(timeout_s)
        if span.start_us is not None and span.end_us is not None:
            _check_buckets((span.end_us - 1) // interval_us - span.start_us // interval_us + 1, interval_us)
        top: list[str] = []
        rest_is_missing = True  # what no value of ``top`` accounts for; else it must be asked
        if by is not None:
            ranked = _ranked(self._value_counts(tenant, query, span, by, "", deadline))
            top = [value for value, _ in ranked[:_TOP_VALUES]]
            rest_is_missing = len(ranked) <= _TOP_VALUES and by not in _LISTS
        counts: Counter[int] = Counter()
        split: dict[int, Counter[str]] = {}
        for view in self._views(tenant, span):
            deadline.check()
            wanted = _all([view.compiler.compile(query), self._within(view, "_us", span)])
            if by is None or not top:
                _add_histogram(counts, view.searcher, wanted, interval_us)
            else:
                _add_histogram_by(counts, split, view.searcher, wanted, interval_us, by, top)
            _check_buckets(len(counts), interval_us)
            if by is not None and not rest_is_missing:
                missing: Counter[int] = Counter()
                nothing = _all([wanted, view.compiler.compile(Not(Exists(by)))])
                _add_histogram(missing, view.searcher, nothing, interval_us)
                for start, count in missing.items():
                    split.setdefault(start, Counter())[""] += count
        buckets = []
        for start, count in sorted(counts.items()):
            by_value = dict(split.get(start, {}))
            rest = count - sum(by_value.values()) if by is not None else 0
            if rest > 0:
                value = "" if rest_is_missing else "*"
                by_value[value] = by_value.get(value, 0) + rest
            buckets.append(Bucket(start, count, by_value))
        return buckets

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
        deadline = _Deadline(timeout_s)
        counts = self._value_counts(tenant, query, span, field, prefix, deadline)
        top = _ranked(counts)[:limit]
        other = counts.total() - sum(count for _, count in top)
        missing = 0 if prefix else self.count(tenant, And((query, Not(Exists(field)))), span, timeout_s=timeout_s)
        return Facets(tuple(top), other, missing)

    def _value_counts(
        self, tenant: str, query: Node, span: Span, field: str, prefix: str, deadline: _Deadline
    ) -> Counter[str]:
        """Return how often each value of ``field`` that begins with ``prefix`` occurs among the hits."""
        key, _ = _term(field, "")
        label = _label(field.removeprefix("labels."), "") if key == "_labels" else ""
        terms = _terms_of(key)
        if label or prefix:
            terms["include"] = f"{_regex_literal(label + prefix)}(?s:.*)"
        counts: Counter[str] = Counter()
        for view in self._views(tenant, span):
            deadline.check()
            wanted = _all([view.compiler.compile(query), self._within(view, "_us", span)])
            for found in _aggregated(view, wanted, {"by": {"terms": terms}}):
                for bucket in found["by"]["buckets"]:
                    counts[bucket["key"].removeprefix(label)] += bucket["doc_count"]
        return counts

    def window_counts(
        self,
        tenant: str,
        *,
        ingested: Span,
        span: Span = Span(),
        step_us: int,
        dimensions: frozenset[Dimension] = frozenset(Dimension),
    ) -> list[WindowCount]:
        totals: Counter[tuple[str, int, Dimension, str]] = Counter()
        for view in self._views(tenant, span, ingested=ingested):
            base = [self._within(view, "_us", span), self._within(view, "_ing", ingested)]
            for level, of_level in _DIMENSION_FIELDS.items():
                fields = {d.value: {"terms": _terms_of(field)} for d, field in of_level.items() if d in dimensions}
                if not fields:
                    continue
                wanted = _all([*base, view.compiler.between("event.severity", level, None)])
                steps = {"histogram": _steps(step_us), "aggs": fields}
                asked = {"unit": {"terms": _terms_of("_unit"), "aggs": {"step": steps}}}
                for part in _in_parts(view, wanted):
                    for found in _aggregated(view, part, asked):
                        _add_window_counts(totals, found)
        return [WindowCount(*key, count) for key, count in totals.items()]

    # Tenants, erasing, retention

    def last_seq(self) -> int:
        with self._lock:
            return max((day.appended_seq for days in self._days.values() for day in days.values()), default=0)

    def tenants(self) -> list[str]:
        with self._lock:
            return sorted(
                tenant
                for tenant, days in self._days.items()
                if any(day.facts.records or day.is_dirty for day in days.values())
            )

    def erase(self, tenant: str, query: Node, span: Span = Span()) -> int:
        self.flush()
        erased = 0
        for view in list(self._views(tenant, span)):
            gone = _all([view.compiler.compile(query), self._within(view, "_us", span)])
            count = _count(view.searcher, gone)
            if count:
                self._rewrite(view, gone)
                erased += count
        return erased

    def _rewrite(self, view: _View, gone: Query) -> None:
        """Write the day anew without the hits of ``gone``; a crash leaves the old day or the new one."""
        day = view.day
        self._writing.pop(day, None)
        day.writer = None
        fresh = _Day(day.tenant, day.number, day.path.with_name(day.path.name + ".new"))
        kept = Query.boolean_query([(Occur.Must, _ALL), (Occur.MustNot, gone)])
        try:
            _write_anew(fresh, self._entries(view, kept), day.facts.max_seq, self._heap_bytes)
        except (ValueError, OSError) as exc:
            raise StoreUnavailable(f"cannot rewrite {day.path}: {exc}") from exc
        with self._lock:
            old = day.path.with_name(day.path.name + ".old")
            day.path.rename(old)
            fresh.path.rename(day.path)
            durable.sync_directory(day.path.parent)
            day.facts = fresh.facts
            day.appended_seq = day.facts.max_seq
            day.index = day.searcher = None
            self._opened.pop(day, None)
        shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def _entries(view: _View, query: Query) -> Iterator[Entry]:
        """Yield what is stored as the entries it was appended as, in rising ``seq``."""
        last_seq = -1
        while True:
            later = _all([query, view.compiler.between("_seq", last_seq, None, False)])
            found = EmbeddedStore._sorted(view.searcher, later, "_seq", _REWRITE_BATCH, Order.OLDEST_FIRST)
            if not found:
                return
            addresses = [address for _, address in found]
            ingested = view.searcher.fast_field_values("_ing", addresses)
            buckets = view.searcher.fast_field_values("_dur", addresses)
            for (position, address), ingested_us, bucket in zip(found, ingested, buckets, strict=True):
                hit = EmbeddedStore._hit(view.searcher, view.day.tenant, position, address)
                record = _decode(hit.source)
                task = record.get("task.name")
                yield Entry(
                    tenant=view.day.tenant,
                    id=hit.id,
                    seq=position.seq,
                    time_us=position.time_us,
                    ingested_us=int(ingested_us or 0),
                    unit=f"task:{task}" if task else f"service:{record['service.name']}",
                    duration_bucket=None if bucket is None else int(bucket),
                    has_client_id=True,
                    source=hit.source,
                )
            last_seq = found[-1][0].seq

    def expire(self, before_us: int) -> int:
        self._check_usable()
        gone = self._expire_in_months(before_us)
        expired: list[_Day] = []
        with self._lock:
            for tenant, days in list(self._days.items()):
                old = {n: d for n, d in days.items() if d.appended_ingested_us < before_us}
                expired += old.values()
                self._days[tenant] = {n: d for n, d in days.items() if n not in old}
            for day in expired:
                self._opened.pop(day, None)
        for day in expired:
            self._writing.pop(day, None)
            day.writer = day.index = day.searcher = None
            shutil.rmtree(day.path, ignore_errors=True)
        return len(gone | {day.number for day in expired if not day.is_month})

    def _expire_in_months(self, before_us: int) -> set[int]:
        """Write months anew without the days that expire, and return those; what expires wholly is left to the caller."""
        gone: set[int] = set()
        latest = {"latest": {"max": {"field": "_ing"}}}
        asked = {"day": {"histogram": _steps(_DAY_US), "aggs": latest}}
        if any(day.is_month for days in self._days.values() for day in days.values()):
            self.flush()
        for tenant in list(self._days):
            for view in list(self._views(tenant, Span(), ingested=Span(None, before_us), of_months=True)):
                buckets = view.searcher.aggregate(_ALL, asked)["day"]["buckets"]
                starts = [round(bucket["key"]) for bucket in buckets if bucket["latest"]["value"] < before_us]
                gone |= {start // _DAY_US for start in starts}
                if starts and view.day.appended_ingested_us >= before_us:
                    self._rewrite(view, _any([view.compiler.between("_us", at, at + _DAY_US - 1) for at in starts]))
        return gone

    # Life

    def link(self, directory: Path) -> None:
        self._check_usable()
        os.link(self._root / "manifest.json", directory / "manifest.json")
        with self._lock:
            days = [day for of_tenant in self._days.values() for day in of_tenant.values()]
        for day in days:
            target = directory / day.path.relative_to(self._root)
            target.mkdir(parents=True)
            if not (target.parent / "tenant.json").exists():
                os.link(day.path.parent / "tenant.json", target.parent / "tenant.json")
            while not _link_commit(day.path, target):
                shutil.rmtree(target)
                target.mkdir()

    def health(self) -> StoreHealth:
        name = f"embedded ({_TANTIVY.split(',', maxsplit=1)[0]})"
        if self._differences or self._is_closed:
            return StoreHealth(False, name, "; ".join(self._differences) or "closed")
        with self._lock:
            days = [day for of_tenant in self._days.values() for day in of_tenant.values()]
        size = sum(_size(day.path) for day in days)
        return StoreHealth(True, name, f"{len(days)} days", sum(day.facts.records for day in days), size)

    def close(self) -> None:
        if self._is_closed:
            return
        try:
            if not self._differences:
                for day in list(self._writing):
                    self._close_writer(day)
        finally:
            with self._lock:
                self._is_closed = True
                for day in self._opened:
                    day.index = day.searcher = None
                self._opened.clear()


def _limit_arenas() -> None:
    """Let all threads share two malloc arenas, where the C library is glibc.

    Each of a writer's seven threads would keep what it freed in an arena of its own: 20,000 records
    a second over four days then hold 330 MB instead of 160.
    """
    m_arena_max = -8
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(m_arena_max, 2)


def _write_anew(fresh: _Day, entries: Iterable[Entry], max_seq: int, heap_bytes: int) -> None:
    """Write ``entries`` into the new day ``fresh``, with its facts."""
    shutil.rmtree(fresh.path, ignore_errors=True)
    fresh.path.mkdir(parents=True)
    fresh.open()
    assert fresh.index is not None
    writer = fresh.index.writer(heap_bytes, 1)
    for entry in entries:
        _add(writer, _document(entry))
    writer.commit()
    fresh.reload()
    # What was erased must not come back when the journal is replayed.
    fresh.facts.max_seq = max_seq
    fresh.count()
    fresh.write_facts()
    writer.wait_merging_threads()


# Reindexing: every day written anew by this version, beside the index, which then takes its place.


def rebuild(source: Path, target: Path, on_progress: Callable[[str, int, int], None]) -> int:
    """Write what ``target`` lacks of the index in ``source``, of whatever version, and return how many days that was.

    What was done before, and did not change in ``source`` since, stays; what left ``source`` goes.

    Args:
        source: An index, or links to one, to which nothing is written meanwhile.
        target: Where it is written anew.
        on_progress: Gets the day, how many of its records are done, and how many it has.

    Raises:
        SchemaMismatch: If this version's tantivy cannot read the files.
    """
    target.mkdir(mode=0o700, exist_ok=True)
    durable.replace(target / "manifest.json", msgspec.json.format(_encode(_manifest())))
    wanted = {path.parent: path for path in sorted(source.glob("*/*/meta.json"), reverse=True)}
    for path in [path for path in target.glob("*/*") if path.is_dir()]:
        if source / path.relative_to(target) not in wanted:
            shutil.rmtree(path)
    rebuilt = 0
    for directory, meta in sorted(wanted.items(), key=lambda item: item[0].name, reverse=True):
        number = _day_number(directory.name)
        if number is None:
            continue
        into = target / directory.relative_to(source)
        mark = blake2b(meta.read_bytes(), digest_size=16).hexdigest().encode()
        with contextlib.suppress(FileNotFoundError):
            if (into / _REBUILT).read_bytes() == mark:
                continue
        into.parent.mkdir(mode=0o700, exist_ok=True)
        tenant = (directory.parent / "tenant.json").read_bytes()
        durable.replace(into.parent / "tenant.json", tenant)
        day = _Day(_decode(tenant)["tenant"], number, directory)
        fresh = _Day(day.tenant, number, into.with_name(into.name + ".new"))
        try:
            day.index = tantivy.Index.open(str(directory))
            day.index.config_reader("manual")
            day.reload()
            assert day.searcher is not None
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                day.facts = msgspec.json.decode((directory / "day.json").read_bytes(), type=_DayFacts)
            day.count()
            view = _View(day, day.searcher, _Compiler(day.tenant, day.index.schema, day.searcher))
            entries = _counted(EmbeddedStore._entries(view, _ALL), f"{day.tenant} {directory.name}", day, on_progress)
            _write_anew(fresh, entries, day.facts.max_seq, _HEAP_BYTES)
        except ValueError as exc:
            way_out = "start the version of logsvc that wrote it and export what is to be kept (/api/v1/export)"
            raise SchemaMismatch("the embedded index", [f"{directory}: {exc}", way_out]) from exc
        durable.replace(fresh.path / _REBUILT, mark)
        shutil.rmtree(into, ignore_errors=True)
        fresh.path.rename(into)
        durable.sync_directory(into.parent)
        rebuilt += 1
    return rebuilt


def _counted(
    entries: Iterator[Entry], name: str, day: _Day, on_progress: Callable[[str, int, int], None]
) -> Iterator[Entry]:
    done = 0
    for done, entry in enumerate(entries, 1):
        yield entry
        if done % _REWRITE_BATCH == 0:
            on_progress(name, done, day.facts.records)
    on_progress(name, done, day.facts.records)


def take_place(target: Path, root: Path) -> None:
    """Put the index that was written anew in the place of the other; a crash leaves one or the other."""
    old = root.with_name(root.name + ".old")
    root.rename(old)
    target.rename(root)
    durable.sync_directory(root.parent)
    shutil.rmtree(old, ignore_errors=True)


def finish_taking_place(root: Path) -> None:
    """Bring the index back if a crash left none in its place; what was written anew stays where it is."""
    old = root.with_name(root.name + ".old")
    if old.exists() and not root.exists():
        old.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def _finish_rewrites(directory: Path) -> None:
    """Complete what a crash interrupted: the new day if the old one was moved away already, else the old one."""
    for old in directory.glob("*.old"):
        path = old.with_suffix("")
        if not path.exists():
            path.with_name(path.name + ".new").rename(path)
        shutil.rmtree(old, ignore_errors=True)
    for fresh in directory.glob("*.new"):
        if fresh.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)


def _size(path: Path) -> int:
    total = 0
    for file in path.glob("*"):
        with contextlib.suppress(OSError):  # merged away meanwhile
            total += file.stat().st_size
    return total


# Aggregations. Counts are exact: no bucket is left out, and what exceeds tantivy's bounds is asked for in halves.

# The lowest severity of a record that counts, the dimensions, and the field that each takes its key from.
_DIMENSION_FIELDS: dict[int | None, dict[Dimension, str]] = {
    None: {
        Dimension.LEVEL: "log.level",
        Dimension.STATUS: "task.status",
        Dimension.CUSTOMER: "organization.id",
        Dimension.DURATION: "_dur",
        Dimension.VERSION: "service.version",
    },
    LEVELS["warn"]: {Dimension.TEMPLATE: "log.template.id"},
    LEVELS["error"]: {
        Dimension.CUSTOMER_ERROR: "organization.id",
        Dimension.HOST_ERROR: "host.name",
        Dimension.VERSION_ERROR: "service.version",
    },
}


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _terms_of(field: str) -> dict[str, Any]:
    return {"field": field, "size": _MAX_TERMS, "segment_size": _MAX_TERMS}


def _steps(interval_us: int) -> dict[str, Any]:
    return {"field": "_us", "interval": interval_us, "min_doc_count": 1}


def _count(searcher: tantivy.Searcher, query: Query) -> int:
    found: Any = searcher.search(query, 1, count=True, order_by_field="_seq")  # its stub lacks ``count``
    return int(found.count)


def _count_up_to(walk: _Walk, span: Span, enough: int) -> int:
    """Return how many hits there are, or, if they are more than ``enough``, at least so many."""
    total = 0

    def take(part: Query) -> int:
        nonlocal total
        count = _count(walk.view.searcher, part)
        total += count
        return count

    walk.go(span, enough, take)
    return total


def _in_parts(view: _View, query: Query) -> Iterator[Query]:
    """Yield queries that together have the hits of one, each few of them.

    Counts of many records are megabytes that are decoded in one go, while nothing else of the process runs.
    """
    top = max(view.day.facts.max_seq, view.day.appended_seq)
    matching = _count(view.searcher, query)
    most = max(_COUNTED_AT_ONCE, matching // _MOST_PARTS)
    pending = [(0, top, matching)]
    while pending:
        low, high, matching = pending.pop()
        part = query if high - low == top else _all([query, view.compiler.between("_seq", low, high)])
        if matching > most:
            middle = (low + high) // 2
            below = _count(view.searcher, _all([query, view.compiler.between("_seq", low, middle)]))
            pending += [(middle + 1, high, matching - below), (low, middle, below)]
        elif matching:
            yield part


def _aggregated(view: _View, query: Query, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield results whose sum is the aggregation; several if it has more buckets than tantivy allows."""
    pending: list[tuple[int, int]] = [(0, max(view.day.facts.max_seq, view.day.appended_seq))]
    while pending:
        low, high = pending.pop()
        part = _all([query, view.compiler.between("_seq", low, high)]) if low or pending else query
        try:
            yield view.searcher.aggregate(part, asked)
        except ValueError as exc:
            if "limit was exceeded" not in str(exc) or low >= high:
                raise StoreUnavailable(f"cannot count in {view.day.path}: {exc}") from exc
            middle = (low + high) // 2
            pending += [(middle + 1, high), (low, middle)]


def _add_histogram(counts: Counter[int], searcher: tantivy.Searcher, query: Query, interval_us: int) -> None:
    for bucket in _intervals(searcher, query, interval_us, {}):
        counts[round(bucket["key"])] += bucket["doc_count"]


def _intervals(
    searcher: tantivy.Searcher, query: Query, interval_us: int, within: dict[str, Any]
) -> list[dict[str, Any]]:
    try:
        found = searcher.aggregate(query, {"time": {"histogram": _steps(interval_us), "aggs": within}})
    except ValueError as exc:
        raise QueryTooExpensive(f"too many intervals of {interval_us} µs; take a longer one") from exc
    buckets: list[dict[str, Any]] = found["time"]["buckets"]
    return buckets


def _add_histogram_by(
    counts: Counter[int],
    split: dict[int, Counter[str]],
    searcher: tantivy.Searcher,
    query: Query,
    interval_us: int,
    by: str,
    values: list[str],
) -> None:
    """Add a histogram to ``counts``, and how often each of some values occurs to ``split``."""
    terms = [_term(by, value) for value in values]
    key = terms[0][1][: -len(values[0])] if values[0] else terms[0][1]  # of a label; empty otherwise
    # In parts, so that buckets times values stay below tantivy's bound.
    size = _MAX_TERMS // (MAX_BUCKETS + 1)
    for first in range(0, len(terms), size):
        part = terms[first : first + size]
        include = {"field": part[0][0], "include": [term for _, term in part], "size": size, "segment_size": size}
        for bucket in _intervals(searcher, query, interval_us, {"by": {"terms": include}}):
            start = round(bucket["key"])
            if not first:
                counts[start] += bucket["doc_count"]
            of_start = split.setdefault(start, Counter())
            for value in bucket["by"]["buckets"]:
                of_start[value["key"][len(key) :]] += value["doc_count"]


def _add_window_counts(totals: Counter[tuple[str, int, Dimension, str]], found: dict[str, Any]) -> None:
    for unit in found["unit"]["buckets"]:
        for step in unit["step"]["buckets"]:
            start = round(step["key"])
            for dimension in Dimension:
                for bucket in step.get(dimension.value, {}).get("buckets", ()):
                    key = bucket["key"]
                    text = key if isinstance(key, str) else str(round(key))
                    totals[unit["key"], start, dimension, text] += bucket["doc_count"]


def _check_buckets(count: int, interval_us: int) -> None:
    if count > MAX_BUCKETS:
        raise QueryTooExpensive(
            f"{count} buckets of {interval_us / 1e6:g} s, but at most {MAX_BUCKETS} are given; "
            "take a longer interval or a shorter time range"
        )
