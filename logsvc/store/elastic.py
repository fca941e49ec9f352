"""Elasticsearch: records in one index per UTC day behind an alias, whatever the tenant.

The production engine, and the answer to growth. Only what every Elasticsearch has is used: a
composable template, plain indices, an alias, and our own retention; no data streams, no ILM.

What always holds:

- The mapping is generated from the table of fields, is never dynamic, and its version is kept in
  ``_meta``; ``check_schema`` names every difference.
- A record's index follows from the record alone (its day, and whether that day was within the
  retention when the service accepted it), so a replay writes the same id into the same index.
- Documents are created, never overwritten: of two with one id the first stays.
- What ``Entry.source`` says comes back byte for byte. Our own order key and counters stand behind
  it in one object, ``logsvc``. Where the server would index something else than the contract says
  (letters younger than our Unicode tables, keywords beyond its bound), the fitted values are
  indexed and the original is kept beside them.
- Every search carries the tenant in a filter below the query tree.
- A bulk request is durable when it is answered: the translog is fsynced for each request. Several are under way,
  and overtake each other; ``flush`` waits for all. No two of them have the same id.
- No address is ever shown or logged with its password.

Known difference to the embedded store: words of ``error.type`` are split by the server's own
Unicode tables, so letters that Python does not know yet count as letters there.

Not here: when to append, refresh or expire (indexer.py), the query language (query.py).
"""

from __future__ import annotations

import base64
import re
import secrets
import string
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from elastic_transport import ConnectionTimeout, Serializer, Transport, TransportError
from elastic_transport.client_utils import url_to_node_config
from loguru import logger

from logsvc import regex
from logsvc.errors import (
    BadInput,
    LogsvcError,
    NotFound,
    QueryTooExpensive,
    SchemaMismatch,
    SettingsError,
    StoreUnavailable,
)
from logsvc.fields import ECS_VERSION, FIELDS, LEVELS, MAX_TOKEN_CHARS, SCHEMA_VERSION, FieldType, resolve
from logsvc.query import And, Exists, Match, MatchAll, Node, Not, Or, Prefix, Range, Term, Words, indexable
from logsvc.records import Entry
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
from logsvc.timestamps import format_us

Json = dict[str, Any]
_T = TypeVar("_T")

DAY_US = 86_400_000_000
MAX_DATE_US = 2**63 // 1_000
"""``date_nanos`` ends in April 2262; comparisons beyond are answered without asking the server."""

MAX_BULK_BYTES = 2 * 1024 * 1024
_BULK_TRIES = 8  # of what was not taken, as long as some was
MAX_NAMED_DAYS = 40
"""Searches over more days than this name the alias instead of the indices."""
TOP_VALUES = 100
PAGE_BUCKETS = 20_000
"""Buckets a response at most; the server's own bound is 65,536 (``search.max_buckets``)."""
SLOW_S = 3_600.0
"""How long erasing and merging may take."""

# --- mapping ---------------------------------------------------------------------------------------------------------

WORDS = "logsvc_words"
"""Analyzer of text: runs of letters, digits and underscore, lower-cased letter by letter."""
TOKENS = "logsvc_tokens"
"""Analyzer of queries: tokens that query.py made already, joined by one space."""
ANY = "logsvc_any"
"""Analyzer of ``FIELD.any``: one constant token if the text has a word, else nothing."""

_ANALYSIS: Json = {
    "tokenizer": {
        # The group cuts a word at 8,191 code points; the filter "truncate" would count UTF-16 units.
        WORDS: {
            "type": "pattern",
            "pattern": rf"([\p{{L}}\p{{N}}_]{{1,{MAX_TOKEN_CHARS}}}+)[\p{{L}}\p{{N}}_]*+",
            "group": "1",
        },
        TOKENS: {"type": "pattern", "pattern": " "},
    },
    "filter": {
        "logsvc_first": {"type": "limit", "max_token_count": "1"},
        "logsvc_constant": {"type": "pattern_replace", "pattern": ".+", "replacement": "1"},
    },
    "analyzer": {
        WORDS: {"type": "custom", "tokenizer": WORDS, "filter": ["lowercase"]},
        TOKENS: {"type": "custom", "tokenizer": TOKENS},
        ANY: {"type": "custom", "tokenizer": WORDS, "filter": ["logsvc_first", "logsvc_constant"]},
    },
}

_WORDS_PROPERTY: Json = {"type": "text", "analyzer": WORDS, "norms": False}
_ANY_PROPERTY: Json = {"type": "text", "analyzer": ANY, "norms": False, "index_options": "docs"}

# Only what differs from the server's defaults: it leaves the rest out when asked for its mapping.
_PROPERTIES: Mapping[FieldType, Json] = {
    FieldType.KEYWORD: {"type": "keyword"},
    # ``exists`` would be true for text without a single word, hence ``any``.
    FieldType.TEXT: {**_WORDS_PROPERTY, "fields": {"any": _ANY_PROPERTY}},
    FieldType.KEYWORD_TEXT: {"type": "keyword", "fields": {"words": _WORDS_PROPERTY}},
    FieldType.LONG: {"type": "long", "ignore_malformed": True},
    FieldType.DATE: {"type": "date_nanos", "ignore_malformed": True},
    FieldType.LABELS: {"type": "flattened", "ignore_above": MAX_TOKEN_CHARS},
    FieldType.STORED: {"type": "keyword", "index": False, "doc_values": False},
}

_OWN_PROPERTIES: Mapping[str, Json] = {
    "logsvc.seq": {"type": "long"},
    "logsvc.us": {"type": "long"},
    "logsvc.ingested_us": {"type": "long"},
    "logsvc.unit": {"type": "keyword"},
    "logsvc.duration_bucket": {"type": "long", "index": False},
}

_MICROSECONDS = {"@timestamp": "logsvc.us", "event.ingested": "logsvc.ingested_us"}
"""Dates that are stored once more as microseconds, which is what they are compared by."""


def mapping() -> Json:
    """Return the mapping that this version expects, properties by their dotted names."""
    properties = {field.name: _PROPERTIES[field.type] for field in FIELDS.values()}
    return {
        "_meta": {"schema_version": SCHEMA_VERSION, "ecs_version": ECS_VERSION},
        "dynamic": "false",
        "properties": {**properties, **_OWN_PROPERTIES},
    }


def index_settings() -> Json:
    """Return the settings of every index."""
    return {
        "number_of_shards": 1,
        "auto_expand_replicas": "0-1",
        # Durable when answered, so ``flush`` has nothing to do.
        "translog.durability": "request",
        # The indexer refreshes; this is for what a crashed one left behind.
        "refresh_interval": "5s",
        "codec": "best_compression",
        "mapping.total_fields.limit": 300,
        # The longest prefix of a query, in UTF-16 units.
        "max_regex_length": 2 * MAX_TOKEN_CHARS,
        # Erased means gone, once replicas need the deletion no more: expunging then leaves nothing.
        "merge.policy.expunge_deletes_allowed": 0,
        "soft_deletes.retention_lease.period": "1h",
        "analysis": _ANALYSIS,
    }


def _flat_properties(properties: Json, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield every leaf of a mapping by its dotted name, sub-fields like fields of their own."""
    for name, body in properties.items():
        if "properties" in body:
            yield from _flat_properties(body["properties"], f"{prefix}{name}.")
            continue
        leaf = {key: value for key, value in body.items() if key != "fields"}
        yield prefix + name, leaf
        yield from _flat_properties(body.get("fields", {}), f"{prefix}{name}.")


def _differences(expected: Json, found: Json) -> Iterator[str]:
    """Name how one index's ``mappings`` and ``settings.index.analysis`` differ from ours."""
    for key, value in expected["_meta"].items():
        has = found["mappings"].get("_meta", {}).get(key)
        if has != value:
            yield f"_meta.{key}: expected {value}, found {has}"
    if found["mappings"].get("dynamic") != "false":
        yield f"dynamic: expected false, found {found['mappings'].get('dynamic', 'true')}"
    wanted = dict(_flat_properties(expected["properties"]))
    stored = dict(_flat_properties(found["mappings"].get("properties", {})))
    for name in sorted(wanted.keys() | stored.keys()):
        if name not in stored:
            yield f"{name}: missing"
        elif name not in wanted:
            yield f"{name}: not expected"
        else:
            for key in sorted(wanted[name].keys() | stored[name].keys()):
                want, has = wanted[name].get(key, "the default"), stored[name].get(key, "the default")
                if want != has:
                    yield f"{name}: {key} expected {want}, found {has}"
    analysis = found["analysis"]
    for kind, named in _ANALYSIS.items():
        for name, body in named.items():
            has = analysis.get(kind, {}).get(name)
            if has != body:
                yield f"{kind} {name}: expected {body}, found {has}"


# --- queries ---------------------------------------------------------------------------------------------------------

_MATCH_NONE: Json = {"match_none": {}}
_MAX_NESTING = 20  # The server refuses more than 30 in one query.


def compile_query(node: Node, depth: int = 0) -> Json:
    """Return the node in Elasticsearch's query language."""
    if depth == _MAX_NESTING:
        # What is inside a wrapper is parsed apart, and its nesting counted anew.
        inner = msgspec.json.encode(compile_query(node))
        return {"wrapper": {"query": base64.b64encode(inner).decode()}}
    match node:
        case MatchAll():
            return {"match_all": {}}
        case Words(fields, tokens, is_prefix):
            return _any_of([_words(_words_field(name), tokens, is_prefix) for name in fields])
        case Term(name, value):
            if _type_of(name) is FieldType.DATE:
                return _range(Range(name, value, value))
            return {"term": {name: {"value": value}}}
        case Prefix(name, value):
            return {"prefix": {name: {"value": value}}}
        case Match(fields, pattern, is_of_words):
            # "NONE": no operators but those that are written here.
            # In a set, Lucene takes what follows an escaped character for another member, also a hyphen.
            asked = {"value": regex.write(pattern, _literal, is_escaped_start=False), "flags": "NONE"}
            return _any_of([{"regexp": {_words_field(name) if is_of_words else name: asked}} for name in fields])
        case Exists(name):
            return _exists(name)
        case Range():
            return _range(node)
        case And(children):
            return {"bool": {"filter": [compile_query(child, depth + 1) for child in children]}}
        case Or(children):
            return _any_of([compile_query(child, depth + 1) for child in children])
        case Not(child):
            return {"bool": {"must_not": [compile_query(child, depth + 1)]}}


def _type_of(name: str) -> FieldType:
    found = resolve(name)
    if found is None:
        raise LogsvcError(f"the query tree names {name!r}, which is no field")
    return found.type


def _any_of(queries: list[Json]) -> Json:
    return queries[0] if len(queries) == 1 else {"bool": {"should": queries, "minimum_should_match": 1}}


def _literal(character: str) -> str:
    # A letter or a digit after a backslash may be an operator; controls and what is beyond ASCII never are.
    return f"\\{character}" if character in string.punctuation else character


def _words_field(name: str) -> str:
    return f"{name}.words" if _type_of(name) is FieldType.KEYWORD_TEXT else name


def _words(name: str, tokens: tuple[str, ...], is_prefix: bool) -> Json:
    if is_prefix:
        return {"prefix": {name: {"value": tokens[0]}}}
    if len(tokens) == 1:
        return {"term": {name: {"value": tokens[0]}}}
    return {"match_phrase": {name: {"query": " ".join(tokens), "analyzer": TOKENS}}}


def _exists(name: str) -> Json:
    match _type_of(name):
        case FieldType.TEXT:
            return {"term": {f"{name}.any": {"value": "1"}}}
        case FieldType.LABELS:
            # ``exists`` would take a star in the key for a pattern.
            return {"prefix": {name: {"value": ""}}}
        case _:
            return {"exists": {"field": _MICROSECONDS.get(name, name)}}


def _range(node: Range) -> Json:
    name, low, high = node.field, node.low, node.high
    if _type_of(name) is not FieldType.DATE:
        bounds = {"gte" if node.includes_low else "gt": low, "lte" if node.includes_high else "lt": high}
        return {"range": {name: {key: bound for key, bound in bounds.items() if bound is not None}}}
    # Microseconds, half-open: a date holds nanoseconds, and all thousand of them compare equal.
    start = None if low is None else int(low) + (0 if node.includes_low else 1)
    end = None if high is None else int(high) + (1 if node.includes_high else 0)
    if name in _MICROSECONDS:
        return _span_filter(_MICROSECONDS[name], Span(start, end))
    if (start is not None and start > MAX_DATE_US) or (end is not None and end <= 0):
        return _MATCH_NONE
    body = {}
    if start is not None and start > 0:
        body["gte"] = format_us(start)
    if end is not None and end <= MAX_DATE_US:
        body["lt"] = format_us(end)
    return {"range": {name: body}} if body else _exists(name)


def _span_filter(name: str, span: Span) -> Json:
    bounds = {"gte": span.start_us, "lt": span.end_us}
    return {"range": {name: {key: bound for key, bound in bounds.items() if bound is not None}}}


def _filtered(tenant: str, span: Span, *queries: Json) -> Json:
    """Return the query for one tenant: the filter stands below whatever was asked."""
    filters = [{"term": {"data_stream.namespace": {"value": tenant}}}]
    if span != Span():
        filters.append(_span_filter("logsvc.us", span))
    return {"bool": {"filter": [*filters, *queries]}}


@dataclass(frozen=True, slots=True)
class _Dimension:
    """Where the key of a dimension is, and from which level on records count."""

    key: str
    min_level: str | None = None


_DIMENSIONS: Mapping[Dimension, _Dimension] = {
    Dimension.LEVEL: _Dimension("log.level"),
    Dimension.TEMPLATE: _Dimension("log.template.id", "warn"),
    Dimension.STATUS: _Dimension("task.status"),
    Dimension.CUSTOMER: _Dimension("organization.id"),
    Dimension.CUSTOMER_ERROR: _Dimension("organization.id", "error"),
    Dimension.HOST_ERROR: _Dimension("host.name", "error"),
    Dimension.DURATION: _Dimension("logsvc.duration_bucket"),
    Dimension.VERSION: _Dimension("service.version"),
    Dimension.VERSION_ERROR: _Dimension("service.version", "error"),
}


# --- documents -------------------------------------------------------------------------------------------------------


class _Own(msgspec.Struct):
    """What stands in ``logsvc`` behind the record."""

    seq: int
    us: int
    original: msgspec.Raw = msgspec.Raw()


@lru_cache(4_096)
def _json_text(text: str) -> bytes:
    return msgspec.json.encode(text)


def encode_document(entry: Entry) -> bytes:
    """Return the document of an entry, one line: its source with ``logsvc`` spliced in as the last key."""
    source = entry.source
    original = b""
    fitted = _fitted(source)
    if fitted is not None:
        original = b',"original":' + source
        source = fitted
    if b"\n" in source or b"\n" in original:
        # A line feed inside JSON can only be layout, and would end the line of a bulk request.
        source, original = source.replace(b"\n", b" "), original.replace(b"\n", b" ")
    duration = b"" if entry.duration_bucket is None else b',"duration_bucket":%d' % entry.duration_bucket
    return b'%b,"logsvc":{"seq":%d,"us":%d,"ingested_us":%d,"unit":%b%b%b}}' % (
        source[: source.rindex(b"}")],
        entry.seq,
        entry.time_us,
        entry.ingested_us,
        _json_text(entry.unit),
        duration,
        original,
    )


def decode_document(document: bytes) -> tuple[Position, bytes]:
    """Return the order key and the source that went into ``encode_document``."""
    # Inside a string the quotes would be escaped, so the last occurrence is ours.
    at = document.rindex(b',"logsvc":{')
    own = msgspec.json.decode(document[at + len(b',"logsvc":') : -1], type=_Own)
    original = bytes(own.original)
    return Position(own.us, own.seq), original or document[:at] + b"}"


def _fitted(source: bytes) -> bytes | None:
    """Return what to index in place of ``source``; None, nearly always, if it is indexed as it is."""
    if len(source) <= MAX_TOKEN_CHARS:
        if source.isascii():
            return None
        text = source.decode()
        if indexable(text) is text:
            return None
    record: Json = msgspec.json.decode(source)
    fitted = {name: _fit(name, value) for name, value in record.items()}
    return None if fitted == record else msgspec.json.encode(fitted)


def _fit(name: str, value: Any) -> Any:
    known = FIELDS.get(name)
    if known is None or known.type is FieldType.STORED:
        return value
    if known.type is FieldType.TEXT and isinstance(value, str):
        return indexable(value)
    if isinstance(value, dict):
        return {key: _fit("event.id", item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fit(name, item) for item in value]
    return value[:MAX_TOKEN_CHARS] if isinstance(value, str) else value


# --- responses -------------------------------------------------------------------------------------------------------


class _Total(msgspec.Struct):
    value: int
    relation: str


class _FoundHit(msgspec.Struct):
    id: str = msgspec.field(name="_id")
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))


class _Found(msgspec.Struct):
    hits: list[_FoundHit] = msgspec.field(default_factory=list)
    total: _Total | None = None


class _Searched(msgspec.Struct):
    hits: _Found
    timed_out: bool = False
    aggregations: dict[str, Any] = msgspec.field(default_factory=dict)


class _Failure(msgspec.Struct):
    type: str = ""
    reason: str | None = ""
    caused_by: Any = None


class _Done(msgspec.Struct):
    status: int
    error: _Failure | None = None


class _BulkItem(msgspec.Struct):
    create: _Done


class _Bulked(msgspec.Struct):
    items: list[_BulkItem]


class _Got(msgspec.Struct):
    docs: list[Json]


_PERMANENT = frozenset(
    {
        "document_parsing_exception",
        "mapper_parsing_exception",
        "parsing_exception",
        "x_content_parse_exception",
        "illegal_argument_exception",
        "strict_dynamic_mapping_exception",
        "max_bytes_length_exceeded_exception",
    }
)
"""Why a document will never be taken. Anything else may pass: full disks, closed indices, too many shards."""

_TOO_EXPENSIVE = (
    "too_complex_to_determinize",
    "too_many_buckets",
    "too_many_clauses",
    "too_many_nested_clauses",
    "search_timeout",
    "Time exceeded",
)


class _Verbatim(Serializer):
    """Bodies are bytes on both sides; msgspec reads and writes them."""

    def loads(self, data: bytes) -> bytes:
        return data

    def dumps(self, data: bytes) -> bytes:
        return data


# --- the store -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Outcome:
    """What became of some lines of a bulk request."""

    appended: int = 0
    refused: list[Refusal] = field(default_factory=list)
    conflicts: list[tuple[str, Entry]] = field(default_factory=list)


class ElasticStore:
    """``Store`` over a server; opening it does nothing, the first call connects.

    Args:
        url: ``http(s)://[USER:PASSWORD@]HOST[:PORT][/PREFIX]``; several nodes are separated by commas.
        prefix: Name of the alias, and of the indices up to the day.
        retention: Days older than this when they are accepted share one index, ``PREFIX-misc``.
        concurrency: Bulk requests under way at a time.
        no_reindexer: Holds reindexers off for a block, or raises ``Conflict`` if there is one; without it, an index that
            a killed one left without writes stays so until it is run again.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "logsvc-records",
        retention: timedelta = timedelta(days=30),
        concurrency: int = 3,
        no_reindexer: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        try:
            nodes = [
                url_to_node_config(part.strip(), use_default_ports_for_scheme=True).replace(connections_per_node=16)
                for part in url.split(",")
            ]
        except ValueError:
            # The value is not repeated: it may hold a password.
            raise SettingsError(
                "cannot parse the address of the store; expected http(s)://[USER:PASSWORD@]HOST[:PORT]"
            ) from None
        self._address = ", ".join(f"{node.scheme}://{node.host}:{node.port}{node.path_prefix}" for node in nodes)
        verbatim = {"application/json": _Verbatim(), "application/x-ndjson": _Verbatim()}
        # One more try heals a kept connection that the server has closed meanwhile; the indexer does the waiting.
        self._transport = Transport(nodes, serializers=verbatim, max_retries=1, retry_on_status=(), meta_header=False)
        self._alias = prefix
        self._retention_days = max(1, -(-retention // timedelta(days=1)))
        self._no_reindexer = no_reindexer
        self._concurrency = max(1, concurrency)
        self._pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="elastic-bulk")
        self._under_way: deque[Future[AppendResult]] = deque()
        self._sent: set[tuple[str, str]] = set()  # index and id of what was appended since the last flush
        self._lock = threading.Lock()
        self._created: set[str] = set()
        # Indices that were touched since the last flush, and since the last refresh.
        self._to_flush: set[str] = set()
        self._to_refresh: set[str] = set()
        self._has_template = False
        self._is_closed = False

    def indices(self) -> list[str]:
        """Return the indices behind the alias; a pattern would match those of a service with a longer prefix too."""
        return sorted(_read(self._ask("GET", f"/_alias/{self._alias}", missing=b"{}"), Json))

    def __repr__(self) -> str:
        return f"ElasticStore({self._address}, {self._alias})"

    # Schema

    def check_schema(self) -> list[str]:
        where: dict[str, list[str]] = defaultdict(list)
        for index, differences in sorted(self.differences().items()):
            for difference in differences:
                where[difference].append(index)
        return [
            f"{difference} (in {indices[0]}{f' and {len(indices) - 1} more' if len(indices) > 1 else ''})"
            for difference, indices in where.items()
        ]

    def differences(self, target: str | None = None) -> dict[str, list[str]]:
        """Return how each index that differs from this version's mapping does; all behind the alias, or ``target``."""
        found = self._ask("GET", f"/{target or self._alias}", missing=b"{}")
        expected = mapping()
        differing = {}
        for index, body in _read(found, Json).items():
            analysis = body["settings"]["index"].get("analysis", {})
            differences = list(_differences(expected, {"mappings": body["mappings"], "analysis": analysis}))
            if differences:
                differing[index] = differences
        return differing

    def put_template(self) -> None:
        """Have new indices made with this version's mapping."""
        template = {
            "index_patterns": [f"{self._alias}-*"],
            "priority": 200,
            "_meta": mapping()["_meta"],
            "template": {
                "settings": {"index": index_settings()},
                "mappings": mapping(),
                "aliases": {self._alias: {}},
            },
        }
        self._ask("PUT", f"/_index_template/{self._alias}", template)

    def _ensure(self, indices: Iterable[str]) -> None:
        """Create the indices that do not stand yet, all from the template."""
        with self._lock:
            for index in sorted(set(indices) - self._created):
                if not self._has_template:
                    # The server may have been away when the service started and compared nothing.
                    if differences := self.check_schema():
                        raise SchemaMismatch("the store's mapping", differences)
                    self.put_template()
                    self._has_template = True
                self._ask("PUT", f"/{index}", allowed=_EXISTS)
                self._created.add(index)

    # Append

    def append(self, entries: Sequence[Entry]) -> AppendResult:
        try:
            return self._append(entries)
        except BaseException:
            self._forget_sent()
            raise

    def _append(self, entries: Sequence[Entry]) -> AppendResult:
        sent = self._sent
        lines: list[tuple[str, Entry]] = []
        doubtful: list[tuple[str, str, Entry]] = []
        repeated = 0
        for entry in entries:
            index = self._index_of(entry)
            other = self._other_index(index, entry)
            if (index, entry.id) in sent or (other is not None and (other, entry.id) in sent):
                repeated += 1
                continue
            sent.add((index, entry.id))
            if other is None:
                lines.append((index, entry))
            else:
                doubtful.append((other, index, entry))
        elsewhere = []
        stored = self._stored_seqs([(other, entry.id) for other, _, entry in doubtful])
        for other, index, entry in doubtful:
            if (other, entry.id) in stored:
                elsewhere.append((other, entry))
            else:
                lines.append((index, entry))
        indices = {index for index, _ in lines}
        self._ensure(indices)
        self._to_flush |= indices
        result = AppendResult(duplicates=repeated) + self._compared(elsewhere)
        for body in _chunks(lines):
            # The next one is made while as many as may be are under way.
            result += self._answered(self._concurrency - 1)
            self._under_way.append(self._pool.submit(self._send, body))
        return result

    def _answered(self, left: int) -> AppendResult:
        """Return what became of bodies, waiting until at most ``left`` are under way."""
        result = AppendResult()
        while self._under_way and (len(self._under_way) > left or self._under_way[0].done()):
            result += self._under_way.popleft().result()
        return result

    def _forget_sent(self) -> None:
        """Wait until nothing is under way, so that nothing overtakes what is appended again."""
        wait(self._under_way)
        self._under_way.clear()
        self._sent.clear()

    def _index_of(self, entry: Entry) -> str:
        day = entry.time_us // DAY_US
        age = entry.ingested_us // DAY_US - day
        # A day ahead is tomorrow's index; what lies further ahead never comes from ingest.
        return self._day_index(day) if -1 <= age <= self._retention_days else f"{self._alias}-misc"

    def _day_index(self, day: int) -> str:
        return f"{self._alias}-{_day_name(day)}"

    def _other_index(self, index: str, entry: Entry) -> str | None:
        """Return the index that may hold the same record besides its own; None if there is none."""
        day = entry.time_us // DAY_US
        if index.endswith("-misc"):
            return self._day_index(day)  # It came first while its day was within the retention.
        if entry.has_client_id and entry.time_us == entry.ingested_us:
            return self._day_index(day - 1)  # Without a time of its own it has that of its arrival.
        return None

    def _send(self, lines: Sequence[tuple[str, bytes, Entry]]) -> AppendResult:
        outcome = self._bulk(lines)
        taken = AppendResult(appended=outcome.appended, refused=tuple(outcome.refused))
        return taken + self._compared(outcome.conflicts)

    def _compared(self, conflicts: Sequence[tuple[str, Entry]]) -> AppendResult:
        """Tell of entries whose ids are stored already which are stored themselves, and which were sent twice."""
        stored = self._stored_seqs([(index, entry.id) for index, entry in conflicts])
        skipped = sum(stored.get((index, entry.id)) == entry.seq for index, entry in conflicts)
        return AppendResult(duplicates=len(conflicts) - skipped, skipped=skipped)

    def _bulk(self, lines: Sequence[tuple[str, bytes, Entry]], tries: int = _BULK_TRIES) -> _Outcome:
        body = b"".join(
            b'{"create":{"_index":"%b","_id":"%b"}}\n%b\n' % (index.encode(), entry.id.encode(), document)
            for index, document, entry in lines
        )
        try:
            answer = self._ask(
                "POST",
                "/_bulk?filter_path=items.create.status,items.create.error.type,items.create.error.reason,"
                "items.create.error.caused_by.reason",
                body,
                timeout_s=60,
            )
        except _Refused as exc:  # The request itself is too large, for the server or a proxy before it.
            if len(lines) == 1:
                return _Outcome(refused=[Refusal(lines[0][2], str(exc))])
            half = len(lines) // 2
            first, second = self._bulk(lines[:half]), self._bulk(lines[half:])
            return _Outcome(
                first.appended + second.appended, first.refused + second.refused, first.conflicts + second.conflicts
            )
        # A bulk request answers 200 even when documents fail, so read each item.
        items = _read(answer, _Bulked).items
        if len(items) != len(lines):
            raise StoreUnavailable(f"the store answered {len(items)} of {len(lines)} documents")
        outcome = _Outcome()
        again: list[tuple[str, bytes, Entry]] = []
        reason = ""
        for line, item in zip(lines, items, strict=True):
            index, _, entry = line
            done = item.create
            if done.status < 300:
                outcome.appended += 1
            elif done.status == 409:
                outcome.conflicts.append((index, entry))
            elif done.status == 400 and done.error is not None and done.error.type in _PERMANENT:
                outcome.refused.append(Refusal(entry, _described(done.error)))
            else:
                reason = f"the store did not take a record: {done.status} {_described(done.error)}"
                if done.status == 404:
                    self._forget(index)
                    raise StoreUnavailable(reason)
                if done.status == 403:
                    self._undo_reindexer(index)
                    raise StoreUnavailable(reason)
                again.append(line)
        if not again:
            return outcome
        # A server with too much to do refuses some. What it took is not sent again, or a large batch would never
        # be taken whole; one that takes nothing is left alone for a while.
        if len(again) == len(lines) or tries == 1:
            raise StoreUnavailable(reason)
        rest = self._bulk(again, tries - 1)
        return _Outcome(
            outcome.appended + rest.appended, outcome.refused + rest.refused, outcome.conflicts + rest.conflicts
        )

    def _undo_reindexer(self, index: str) -> None:
        """Let an index be written that a reindexer, killed while exchanging it, has left without writes."""
        if self._no_reindexer is None:
            return
        with suppress(LogsvcError), self._no_reindexer():
            answer = self._ask("GET", f"/{index}/_settings/index.blocks.write", missing=b"{}")
            reindexer = Reindexer(self)
            for name, body in _read(answer, Json).items():
                # Its copy tells its block from anybody else's.
                is_blocked = body.get("settings", {}).get("index", {}).get("blocks", {}).get("write") == "true"
                if is_blocked and self._ask("GET", f"/{reindexer.successor(name)}", missing=b""):
                    logger.warning("{} had no writes since a reindex was killed; run `logsvc reindex` again", name)
                    reindexer.unblock(name)

    def _stored_seqs(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Return the sequence of each stored document; searchable or not, for this reads by id."""
        found = {}
        for start in range(0, len(keys), 1_000):
            docs = [{"_index": i, "_id": id_, "_source": ["logsvc.seq"]} for i, id_ in keys[start : start + 1_000]]
            answer = self._ask("POST", "/_mget", {"docs": docs}, timeout_s=60)
            # The answers say the index itself where its name is an alias.
            for key, doc in zip(keys[start : start + 1_000], _read(answer, _Got).docs, strict=True):
                if doc.get("found"):
                    found[key] = doc["_source"]["logsvc"]["seq"]
        return found

    def flush(self) -> AppendResult:
        """Wait for the answers: what a bulk request answered is in the fsynced translog already."""
        try:
            result = self._answered(0)
        except BaseException:
            self._forget_sent()
            raise
        self._sent.clear()
        with self._lock:
            self._to_refresh |= self._to_flush
            self._to_flush = set()
        return result

    def refresh(self) -> None:
        # Another thread may append meanwhile; what it touches is refreshed once that is flushed.
        with self._lock:
            touched, self._to_refresh = self._to_refresh, set()
        try:
            for names in _sliced(sorted(touched), MAX_NAMED_DAYS):
                self._ask("POST", f"/{','.join(names)}/_refresh?ignore_unavailable=true", timeout_s=60)
        except BaseException:
            with self._lock:
                self._to_refresh |= touched
            raise

    # Search

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
        parts = [compile_query(query)]
        if min_seq is not None:
            parts.append({"range": {"logsvc.seq": {"gte": min_seq}}})
        body: Json = {
            "query": _filtered(tenant, span, *parts),
            "size": limit + 1,  # One more tells whether anything is left.
            "sort": [{"logsvc.us": order.value}, {"logsvc.seq": order.value}],
            "track_total_hits": EXACT_TOTAL if count_total else False,
        }
        if after is not None:
            body["search_after"] = list(after)
        found = self._search(body, span, timeout_s)
        hits = tuple(_hit(hit) for hit in found.hits.hits[:limit])
        total = found.hits.total
        return Page(
            hits=hits,
            next=hits[-1].position if hits and len(found.hits.hits) > limit else None,
            total=None if total is None or not count_total else total.value,
            is_exact=total is None or total.relation == "eq",
        )

    def count(self, tenant: str, query: Node, span: Span = Span(), *, timeout_s: float = 5.0) -> int:
        body = {"query": _filtered(tenant, span, compile_query(query)), "size": 0, "track_total_hits": True}
        total = self._search(body, span, timeout_s).hits.total
        return 0 if total is None else total.value

    def get(self, tenant: str, id: str) -> Hit | None:
        body = {
            "query": _filtered(tenant, Span(), {"ids": {"values": [id]}}),
            "size": 1,
            "sort": [{"logsvc.seq": "asc"}],
            "track_total_hits": False,
        }
        hits = self._search(body, Span(), 30.0).hits.hits
        return _hit(hits[0]) if hits else None

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
        """Return the buckets as the protocol says; ``by`` is exact.

        The most frequent values come first, from terms that the server calls exact or else from
        all pages of a composite; then each bucket counts just those.
        """
        too_many = f"more than {MAX_BUCKETS} buckets; narrow the time or widen the interval"
        if span.start_us is not None and span.end_us is not None:
            first, last = span.start_us // interval_us, (span.end_us - 1) // interval_us
            if last - first >= MAX_BUCKETS:
                raise QueryTooExpensive(too_many)
        deadline = time.monotonic() + timeout_s
        asked = compile_query(query)
        per_interval = {"histogram": {"field": "logsvc.us", "interval": interval_us, "min_doc_count": 1}}
        aggs: Json = {"buckets": per_interval}
        if by is not None:
            aggs["top"] = _most_frequent(by, TOP_VALUES)
        body: Json = {"query": _filtered(tenant, span, asked), "size": 0, "track_total_hits": False, "aggs": aggs}
        found = self._search(body, span, timeout_s).aggregations
        if not found:
            return []
        buckets = {int(bucket["key"]): bucket["doc_count"] for bucket in found["buckets"]["buckets"]}
        if len(buckets) > MAX_BUCKETS:
            raise QueryTooExpensive(too_many)
        if by is None:
            return [Bucket(start, count) for start, count in sorted(buckets.items())]
        if found["top"]["doc_count_error_upper_bound"] == 0:
            values = [bucket["key"] for bucket in found["top"]["buckets"]]
        else:
            values = [value for value, _ in self._ranked(body["query"], by, span, deadline)[:TOP_VALUES]]
        per_value: Json = {"none": {"missing": {"field": by}}, "all": {"value_count": {"field": by}}}
        if values:
            per_value["top"] = {"terms": {"field": by, "include": values, "size": len(values)}}
        result = []
        # The server bounds the buckets of one response, those inside buckets included.
        for starts in _sliced(sorted(buckets), max(1, PAGE_BUCKETS // (len(values) + 1))):
            part = Span(starts[0], starts[-1] + interval_us)
            part_body = {
                **body,
                "query": _filtered(tenant, span, _span_filter("logsvc.us", part), asked),
                "aggs": {"buckets": {**per_interval, "aggs": per_value}},
            }
            part_found = self._search(part_body, part, deadline - time.monotonic()).aggregations
            for bucket in part_found.get("buckets", {}).get("buckets", []):
                split = {item["key"]: item["doc_count"] for item in bucket.get("top", {}).get("buckets", [])}
                rest = bucket["all"]["value"] - sum(split.values())
                if bucket["none"]["doc_count"]:
                    split[""] = split.get("", 0) + bucket["none"]["doc_count"]
                if rest > 0:
                    split["*"] = split.get("*", 0) + rest
                result.append(Bucket(int(bucket["key"]), bucket["doc_count"], split))
        return result

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
        """Return the values as the protocol says: exact, unless counting all of them takes too long."""
        deadline = time.monotonic() + timeout_s
        asked = compile_query(And((query, Prefix(field, prefix))) if prefix else query)
        wanted = _filtered(tenant, span, asked)
        aggs: Json = {
            "top": _most_frequent(field, limit),
            "all": {"value_count": {"field": field}},
            "none": {"missing": {"field": field}},
        }
        body: Json = {"query": wanted, "size": 0, "track_total_hits": False, "aggs": aggs}
        found = self._search(body, span, timeout_s).aggregations
        if not found:
            return Facets()
        top = [(bucket["key"], bucket["doc_count"]) for bucket in found["top"]["buckets"]]
        total, is_exact = found["all"]["value"], found["top"]["doc_count_error_upper_bound"] == 0
        known = resolve(field)
        # A hit of a prefix may have other values beside the one that it was found by.
        has_others = bool(prefix) and known is not None and known.is_list
        if not is_exact or has_others:
            with suppress(QueryTooExpensive):
                ranked = [item for item in self._ranked(wanted, field, span, deadline) if item[0].startswith(prefix)]
                top, total, is_exact = ranked[:limit], sum(count for _, count in ranked), True
        top = [item for item in top if item[0].startswith(prefix)]
        return Facets(tuple(top), total - sum(count for _, count in top), found["none"]["doc_count"], is_exact)

    def _ranked(self, query: Json, field: str, span: Span, deadline: float) -> list[tuple[str, int]]:
        """Return every value of ``field`` among the hits with its count, the most frequent first."""
        counts: Counter[str] = Counter()
        for bucket in self._composite(query, {"key": {"terms": {"field": field}}}, span, deadline):
            counts[bucket["key"]["key"]] += bucket["doc_count"]
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    def window_counts(
        self,
        tenant: str,
        *,
        ingested: Span,
        span: Span = Span(),
        step_us: int,
        dimensions: frozenset[Dimension] = frozenset(Dimension),
    ) -> list[WindowCount]:
        counts = []
        for dimension in sorted(dimensions, key=lambda dimension: dimension.value):
            what = _DIMENSIONS[dimension]
            parts = [_span_filter("logsvc.ingested_us", ingested)]
            if what.min_level is not None:
                parts.append({"range": {"event.severity": {"gte": LEVELS[what.min_level]}}})
            sources: Mapping[str, Json] = {
                "unit": {"terms": {"field": "logsvc.unit"}},
                "step": {"histogram": {"field": "logsvc.us", "interval": step_us}},
                "key": {"terms": {"field": what.key}},
            }
            for bucket in self._composite(_filtered(tenant, span, *parts), sources, span, None):
                key = bucket["key"]
                counts.append(
                    WindowCount(key["unit"], int(key["step"]), dimension, str(key["key"]), bucket["doc_count"])
                )
        return counts

    def last_seq(self) -> int:
        self._ask("POST", f"/{self._alias}/_refresh?ignore_unavailable=true", timeout_s=60)
        body: Json = {
            "query": {"match_all": {}},
            "size": 1,
            "sort": [{"logsvc.seq": "desc"}],
            "track_total_hits": False,
        }
        hits = self._search(body, Span(), 30.0).hits.hits
        return _hit(hits[0]).position.seq if hits else 0

    def tenants(self) -> list[str]:
        sources = {"tenant": {"terms": {"field": "data_stream.namespace"}}}
        return [bucket["key"]["tenant"] for bucket in self._composite({"match_all": {}}, sources, Span(), None)]

    # Remove

    def erase(self, tenant: str, query: Node, span: Span = Span()) -> int:
        return self._delete(_filtered(tenant, span, compile_query(query)))

    def _delete(self, query: Json) -> int:
        """Remove every hit and return how many there were; ``expire`` takes what is left of them from the disk."""
        wait(self._under_way)  # What is under way must not arrive after it; its outcome is told by ``flush``.
        deleted, conflicts = 0, 1
        self._ask("POST", f"/{self._alias}/_refresh?ignore_unavailable=true", timeout_s=60)
        while conflicts:  # A document that changed meanwhile is looked at again.
            answer = self._ask(
                "POST",
                f"/{self._alias}/_delete_by_query?ignore_unavailable=true&conflicts=proceed&refresh=true",
                {"query": query},
                timeout_s=SLOW_S,
            )
            done = _read(answer, Json)
            if done.get("failures"):
                raise StoreUnavailable(f"the store could not erase: {done['failures'][0]}")
            deleted += done.get("deleted", 0)
            conflicts = done.get("version_conflicts", 0)
        return deleted

    def expire(self, before_us: int) -> int:
        """Drop days as the protocol says; a day of several tenants counts once.

        An index goes whole when all tenants' days in it are old; a single tenant's old day in an
        index that lives on (``misc``, or a day that another still writes) is deleted from it.
        Deleted documents, erased ones too, leave the disk here: the server keeps them for an hour
        or so, in case a replica has yet to hear of the deletion.
        """
        wait(self._under_way)
        self._ask("POST", f"/{self._alias}/_refresh?ignore_unavailable=true", timeout_s=60)
        sources: Mapping[str, Json] = {
            "tenant": {"terms": {"field": "data_stream.namespace"}},
            "day": {"histogram": {"field": "logsvc.us", "interval": DAY_US}},
        }
        newest = {"newest": {"max": {"field": "logsvc.ingested_us"}}}
        old: list[tuple[str, int]] = []
        living: set[int] = set()
        for bucket in self._composite({"match_all": {}}, sources, Span(), None, newest):
            day = int(bucket["key"]["day"]) // DAY_US
            if bucket["newest"]["value"] < before_us:
                old.append((bucket["key"]["tenant"], day))
            else:
                living.add(day)
        behind = _read(self._ask("GET", f"/{self._alias}/_alias", missing=b"{}"), Json)  # with all their names
        # A reindexed day's name is an alias.
        standing = {name: index for index, body in behind.items() for name in (index, *body["aliases"])}
        for day in sorted({day for _, day in old} - living):
            index = self._day_index(day)
            if index in standing:
                self._ask("DELETE", f"/{standing[index]}?ignore_unavailable=true", timeout_s=60)
                self._forget(index)
        for tenant, day in old:
            self._delete(_filtered(tenant, Span(day * DAY_US, (day + 1) * DAY_US)))
        self._expunge()
        return len({day for _, day in old})

    def _expunge(self) -> None:
        """Rewrite the segments that still hold deleted documents, as far as the server lets go of them."""
        stats = _read(self._ask("GET", f"/{self._alias}/_stats/docs", missing=b'{"indices":{}}'), Json)
        for index, body in stats["indices"].items():
            if body["primaries"]["docs"].get("deleted"):
                path = f"/{index}/_forcemerge?ignore_unavailable=true&only_expunge_deletes=true"
                self._ask("POST", path, timeout_s=SLOW_S)

    # Life

    def link(self, directory: Path) -> None:
        """Do nothing: the server keeps its own snapshots (``Snapshots``)."""

    def health(self) -> StoreHealth:
        name = f"Elasticsearch at {self._address}"
        try:
            about = msgspec.json.decode(self._ask("GET", "/", timeout_s=5))
            name = f"Elasticsearch {about['version']['number']} at {self._address}"
            stats = msgspec.json.decode(
                self._ask("GET", f"/{self._alias}/_stats/docs,store", missing=b"{}", timeout_s=5)
            )
            state = msgspec.json.decode(self._ask("GET", "/_cluster/health", timeout_s=5))["status"]
        except (LogsvcError, KeyError, TypeError, msgspec.DecodeError) as exc:
            return StoreHealth(is_reachable=False, name=name, detail=str(exc))
        primaries = stats.get("_all", {}).get("primaries", {})
        return StoreHealth(
            is_reachable=True,
            name=name,
            detail=f"cluster {state}, {len(stats.get('indices', {}))} indices behind {self._alias}",
            records=primaries.get("docs", {}).get("count", 0),
            size_bytes=primaries.get("store", {}).get("size_in_bytes", 0),
        )

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._pool.shutdown()
        if all(future.exception() is None for future in self._under_way):
            with suppress(LogsvcError):  # Durable already; the server's own refresh makes up for ours.
                self.flush()
                self.refresh()
        self._transport.close()

    def _forget(self, index: str) -> None:
        with self._lock:
            self._created.discard(index)
            self._has_template = False

    # Talking to the server

    def _target(self, span: Span) -> str:
        """Return the indices that a search over ``span`` touches: a few days by name, or all."""
        if span.start_us is None or span.end_us is None:
            return self._alias
        first, last = span.start_us // DAY_US, (span.end_us - 1) // DAY_US
        if not 0 <= first <= last < first + MAX_NAMED_DAYS:
            return self._alias
        return ",".join([*(self._day_index(day) for day in range(first, last + 1)), f"{self._alias}-misc"])

    def _search(self, body: Json, span: Span, timeout_s: float) -> _Searched:
        too_slow = "the query did not end within its time; narrow it, above all its time range"
        if timeout_s <= 0:
            raise QueryTooExpensive(too_slow)
        path = f"/{self._target(span)}/_search?ignore_unavailable=true&allow_partial_search_results=false"
        body = {**body, "timeout": f"{max(1, round(timeout_s * 1_000))}ms"}
        deadline = time.monotonic() + timeout_s
        found: bytes | None = None
        while found is None:
            try:
                # The server watches its timeout only now and then, and the answer has to travel.
                found = self._ask("POST", path, body, timeout_s=timeout_s + 1)
            except _TimedOut:
                raise QueryTooExpensive(too_slow) from None
            except _NotStarted:
                # An index is in the alias as soon as it is made, a moment before its shard can be searched.
                if time.monotonic() > deadline:
                    raise
                time.sleep(_NOT_STARTED_POLL_S)
        searched = _read(found, _Searched)
        if searched.timed_out:
            raise QueryTooExpensive(too_slow)
        return searched

    def _composite(
        self, query: Json, sources: Mapping[str, Json], span: Span, deadline: float | None, aggs: Json | None = None
    ) -> Iterator[Json]:
        """Yield every bucket of a composite aggregation, page by page: exact, however many there are."""
        composite: Json = {"size": PAGE_BUCKETS, "sources": [{name: source} for name, source in sources.items()]}
        while True:
            agg = {"composite": composite, **({"aggs": aggs} if aggs else {})}
            body = {"query": query, "size": 0, "track_total_hits": False, "aggs": {"all": agg}}
            timeout_s = 60.0 if deadline is None else deadline - time.monotonic()
            found = self._search(body, span, timeout_s).aggregations.get("all", {})
            yield from found.get("buckets", ())
            if "after_key" not in found or len(found["buckets"]) < PAGE_BUCKETS:
                return
            composite["after"] = found["after_key"]

    def _ask(
        self,
        method: str,
        path: str,
        body: Json | bytes | None = None,
        *,
        timeout_s: float = 30.0,
        missing: bytes | None = None,
        allowed: Sequence[str] = (),
    ) -> bytes:
        """Return the body of a good answer; ``missing`` stands in for a 404, ``allowed`` are errors that are none.

        Raises:
            StoreUnavailable: If asking again may help.
            QueryTooExpensive: If a bound of the server was hit.
            LogsvcError: If the server finds the request wrong, which is our fault.
        """
        headers = {"accept": "application/json"}
        data = None
        if body is not None:
            is_lines = isinstance(body, bytes)
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
            headers["content-type"] = "application/x-ndjson" if is_lines else "application/json"
        try:
            meta, raw = self._transport.perform_request(
                method, path, body=data, headers=headers, request_timeout=timeout_s
            )
        except ConnectionTimeout:
            raise _TimedOut(f"the store at {self._address} did not answer within {timeout_s:g} s") from None
        except TransportError as exc:
            raise StoreUnavailable(f"cannot reach the store at {self._address}: {type(exc).__name__}") from exc
        except RuntimeError as exc:  # The pool was closed by another thread.
            raise StoreUnavailable("the store is closed") from exc
        answer: bytes = raw if isinstance(raw, bytes) else b""
        if meta.status < 300:
            return answer
        if meta.status == 404 and missing is not None:
            return missing
        failure = _failure(answer)
        if failure.type in allowed:
            return answer
        described = f"{meta.status} {_described(failure)}"
        if any(mark in answer.decode(errors="replace") for mark in _TOO_EXPENSIVE):
            raise QueryTooExpensive(f"the query ran into a bound of the store: {described}")
        if meta.status == 413:
            raise _Refused(f"too large for the store: {described}")
        if meta.status == 400:
            logger.error("the store does not understand {} {}: {}", method, path.partition("?")[0], described)
            raise LogsvcError("the store does not understand what was asked; the service's own log has the details")
        hint = "; check the user and password in its address" if meta.status in (401, 403) else ""
        # 404: the index was exchanged for another in the middle of a search.
        is_starting = meta.status == 404 or (meta.status == 503 and failure.type in _NO_SHARD)
        raise (_NotStarted if is_starting else StoreUnavailable)(
            f"the store at {self._address} answered {described}{hint}"
        )


class Reindexer:
    """Brings the indices of one store to this version's mapping while they are searched and written.

    Each is copied by the server into a new one, ``PREFIX.rN-DAY``, which nobody searches; then the old one
    takes no writes for a moment (the journal keeps them), the rest is copied, both are counted, and in one
    step the old name becomes an alias of the new index. What was copied stays when this is ended and begun again.
    """

    def __init__(self, store: ElasticStore) -> None:
        self._store = store

    def outdated(self) -> list[str]:
        """Return the indices whose mapping differs, the newest day first."""
        return sorted(self._store.differences(), key=lambda index: index.rpartition("-")[2], reverse=True)

    def run(self, on_progress: Callable[[str, int, int], None]) -> int:
        """Return how many indices were brought up to date; ``on_progress`` gets index, copied, and how many there are.

        Raises:
            StoreUnavailable: If the server is away; run it again.
        """
        self._store.put_template()
        outdated = self.outdated()
        for index in outdated:
            self._one(index, partial(on_progress, index))
        return len(outdated)

    def _one(self, old: str, on_progress: Callable[[int, int], None]) -> None:
        name, new = self._names(old)
        for _ in range(_REINDEX_TRIES):
            self._create(new)
            self._copy(old, new, None, on_progress)
            try:
                self._store._ask("PUT", f"/{old}/_block/write", timeout_s=SLOW_S)
                # Bulk requests overtake each other, so begin well before the last number.
                self._copy(old, new, self._last_seq(new) - _OVERTAKEN_RECORDS, on_progress)
                if self._count(new) < self._count(old):
                    self._copy(old, new, None, on_progress)
                if self._count(new) == self._count(old):
                    # Had someone removed it meanwhile, copying would have made one without a mapping of ours.
                    if differences := self._store.differences(new):
                        raise SchemaMismatch(f"the mapping of {new}", differences[new])
                    self._swap(old, name, new)
                    return
            except BaseException:
                self.unblock(old)
                raise
            # More than in the old one: something was erased meanwhile, and must not come back.
            self.unblock(old)
            self._store._ask("DELETE", f"/{new}", missing=b"", timeout_s=SLOW_S)
        raise StoreUnavailable(f"{old} changes faster than it can be copied; try again when nothing is being erased")

    def successor(self, old: str) -> str:
        """Return what the index is called that is to take the place of ``old``."""
        return self._names(old)[1]

    def _names(self, old: str) -> tuple[str, str]:
        """Return the name under which the store knows the index ``old``, and what its successor is to be called."""
        prefix = self._store._alias
        match = re.fullmatch(rf"{re.escape(prefix)}(?:\.r([0-9]+))?-(.+)", old)
        if match is None:
            raise LogsvcError(f"the index {old} behind {prefix} is none of ours; remove it from the alias")
        return f"{prefix}-{match[2]}", f"{prefix}.r{int(match[1] or 1) + 1}-{match[2]}"

    def _create(self, new: str) -> None:
        body = {"settings": {"index": index_settings()}, "mappings": mapping()}
        answer = self._store._ask("PUT", f"/{new}", body, allowed=_EXISTS)
        if _read(answer, Json).get("error") and self._store.differences(new):
            # Begun by another version.
            self._store._ask("DELETE", f"/{new}", timeout_s=SLOW_S)
            self._store._ask("PUT", f"/{new}", body)

    def _copy(self, old: str, new: str, after_seq: int | None, on_progress: Callable[[int, int], None]) -> None:
        """Copy what the new index lacks; all, or what has a higher number."""
        self._store._ask("POST", f"/{old}/_refresh", timeout_s=SLOW_S)
        query: Json = {"match_all": {}} if after_seq is None else {"range": {"logsvc.seq": {"gt": after_seq}}}
        body = {
            "conflicts": "proceed",
            "source": {"index": old, "query": query, "size": 5_000},
            "dest": {"index": new, "op_type": "create"},
        }
        path = "/_reindex?wait_for_completion=false&refresh=true"
        task = _read(self._store._ask("POST", path, body), Json)["task"]
        while True:
            found = _read(self._store._ask("GET", f"/_tasks/{task}"), Json)
            status = found["task"]["status"]
            on_progress(status["created"] + status["version_conflicts"], status["total"])
            if found["completed"]:
                break
            time.sleep(_TASK_POLL_S)
        failures = found.get("response", {}).get("failures") or found.get("error")
        if failures:
            raise StoreUnavailable(f"the store could not copy {old}: {str(failures)[:500]}")

    def _last_seq(self, index: str) -> int:
        body = {"size": 0, "aggs": {"last": {"max": {"field": "logsvc.seq"}}}}
        return int(
            _read(self._store._ask("POST", f"/{index}/_search", body), Json)["aggregations"]["last"]["value"] or 0
        )

    def _count(self, index: str) -> int:
        self._store._ask("POST", f"/{index}/_refresh", timeout_s=SLOW_S)
        return int(_read(self._store._ask("GET", f"/{index}/_count"), Json)["count"])

    def unblock(self, index: str) -> None:
        """Let it be written again."""
        with suppress(LogsvcError):
            self._store._ask("PUT", f"/{index}/_settings", {"index.blocks.write": False}, missing=b"")

    def _swap(self, old: str, name: str, new: str) -> None:
        actions: list[Json] = [
            {"remove_index": {"index": old}},
            {"add": {"index": new, "alias": self._store._alias}},
            {"add": {"index": new, "alias": name}},
        ]
        self._store._ask("POST", "/_aliases", {"actions": actions}, timeout_s=SLOW_S)


class Snapshots:
    """Snapshots of one store's records in a repository that the server knows (``_snapshot/REPOSITORY``).

    The server copies what the repository has not got yet; the repository's settings say where it lies.
    """

    def __init__(self, store: ElasticStore, repository: str) -> None:
        self._store = store
        self._repository = repository

    def name(self, id: str) -> str:
        """Return a name; the server takes only small letters, and backups of one second in several folders are several."""
        return f"{self._store._alias}-{id.lower()}-{secrets.token_hex(4)}"

    def create(self, name: str) -> None:
        """Return when every shard is kept; see ``backup.ServerSnapshots``."""
        if self._store._ask("GET", f"/_snapshot/{self._repository}", missing=b"") == b"":
            raise self._unknown()
        # Without a record there is no index, and no name would mean all.
        indices = self._store.indices() or [f"{self._store._alias}-none-*"]
        body = {"indices": indices, "ignore_unavailable": True, "include_global_state": False}
        with ExitStack() as undo:
            undo.callback(self.remove, name)
            self._store._ask("PUT", f"{self._path(name)}?wait_for_completion=true", body, timeout_s=SLOW_S)
            self.check(name)
            undo.pop_all()

    def _path(self, name: str) -> str:
        return f"/_snapshot/{self._repository}/{name}"

    def _unknown(self) -> SettingsError:
        return SettingsError(
            f"Elasticsearch knows no snapshot repository {self._repository!r}, which LOGSVC_STORE_REPOSITORY "
            "names; register it there (PUT _snapshot/NAME)"
        )

    def check(self, name: str) -> None:
        """Raise ``LogsvcError`` unless the snapshot is there, whole, and of this store."""
        answer = self._store._ask("GET", self._path(name), missing=b'{"snapshots":[]}', timeout_s=SLOW_S)
        found = msgspec.json.decode(answer)["snapshots"]
        if not found:
            raise NotFound(f"the repository {self._repository} of Elasticsearch has no snapshot {name}")
        if found[0]["state"] != "SUCCESS":
            reasons = [failure.get("reason", "") for failure in found[0].get("failures", ())][:1]
            raise LogsvcError(f"the snapshot {name} is {found[0]['state']}: {' '.join(reasons)}")
        ours = re.compile(re.escape(self._store._alias) + r"(\.r[0-9]+)?-([0-9]{4}\.[0-9]{2}\.[0-9]{2}|misc)")
        if others := [index for index in found[0]["indices"] if not ours.fullmatch(index)]:
            raise SettingsError(
                f"the snapshot {name} has indices such as {others[0]}, and LOGSVC_STORE_PREFIX is "
                f"{self._store._alias}; set it as it was"
            )

    def check_empty(self) -> None:
        """Raise ``BadInput`` if the store has indices that a restored snapshot would take the place of."""
        if standing := self._store.indices():
            raise BadInput(
                f"Elasticsearch has {len(standing)} indices such as {standing[0]}; take another server, "
                "or --overwrite what is there"
            )

    def restore(self, name: str) -> None:
        """Put the indices back in place of those that stand; see ``backup.ServerSnapshots``."""
        for names in _sliced(self._store.indices(), MAX_NAMED_DAYS):
            self._store._ask("DELETE", f"/{','.join(names)}?ignore_unavailable=true", timeout_s=SLOW_S)
        body = {"include_global_state": False, "include_aliases": True}
        answer = self._store._ask(
            "POST", f"{self._path(name)}/_restore?wait_for_completion=true", body, timeout_s=SLOW_S
        )
        shards = msgspec.json.decode(answer)["snapshot"]["shards"]
        if shards["failed"]:
            raise LogsvcError(f"{shards['failed']} of {shards['total']} shards could not be restored; try again")

    def remove(self, name: str) -> None:
        """Forget the snapshot; one that is not there is none to forget."""
        self._store._ask("DELETE", self._path(name), missing=b"", timeout_s=SLOW_S)


# The second where the name is that of an alias, after a reindexing.
_EXISTS = ("resource_already_exists_exception", "invalid_index_name_exception")
_REINDEX_TRIES = 3
_TASK_POLL_S = 0.2
_OVERTAKEN_RECORDS = 100_000

_NO_SHARD = ("search_phase_execution_exception", "no_shard_available_action_exception")
_NOT_STARTED_POLL_S = 0.1


class _TimedOut(StoreUnavailable):
    """No answer in time."""


class _NotStarted(StoreUnavailable):
    """A shard cannot be searched now: its index was just made, or its node is away."""


class _Refused(LogsvcError):
    """The request is too large as a whole."""


def _chunks(lines: Iterable[tuple[str, Entry]]) -> Iterator[list[tuple[str, bytes, Entry]]]:
    """Yield lines with their documents, each chunk at most ``MAX_BULK_BYTES`` or one document."""
    chunk: list[tuple[str, bytes, Entry]] = []
    size = 0
    for index, entry in lines:
        document = encode_document(entry)
        if chunk and size + len(document) > MAX_BULK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append((index, document, entry))
        size += len(document) + 100
    if chunk:
        yield chunk


def _most_frequent(name: str, size: int) -> Json:
    order = [{"_count": "desc"}, {"_key": "asc"}]
    return {"terms": {"field": name, "size": size, "shard_size": 10_000, "order": order}}


def _sliced(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@lru_cache(1_024)
def _day_name(day: int) -> str:
    return f"{datetime.fromtimestamp(day * 86_400, UTC):%Y.%m.%d}"


def _hit(found: _FoundHit) -> Hit:
    position, source = decode_document(bytes(found.source))
    return Hit(found.id, position, source)


def _read(answer: bytes, kind: type[_T]) -> _T:
    """Return the answer of a server, decoded.

    Raises:
        StoreUnavailable: If it is no such answer: cut off on its way, or from something before the server. What
            was asked may have been done all the same.
    """
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as exc:
        shown = answer[:80].decode(errors="replace")
        raise StoreUnavailable(f"the store's answer is not Elasticsearch's ({exc}): {shown!r}") from exc


def _failure(answer: bytes) -> _Failure:
    try:
        error = msgspec.json.decode(answer)["error"]
        if isinstance(error, dict) and error.get("root_cause"):
            error = error["root_cause"][0]
        return msgspec.convert(error, _Failure) if isinstance(error, dict) else _Failure(reason=str(error))
    except (msgspec.MsgspecError, KeyError, TypeError):
        return _Failure(reason=answer[:200].decode(errors="replace"))


def _described(failure: _Failure | None) -> str:
    if failure is None:
        return "without a reason"
    cause = failure.caused_by.get("reason") if isinstance(failure.caused_by, dict) else None
    return ": ".join(part for part in (failure.type, failure.reason, cause) if part)[:500]
