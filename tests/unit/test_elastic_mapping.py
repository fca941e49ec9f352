"""What the Elasticsearch store sends, without a server: mapping, queries, documents, addresses."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from logsvc.errors import LogsvcError, QueryTooExpensive, SettingsError, StoreUnavailable
from logsvc.fields import FIELDS, MAX_TOKEN_CHARS, WORD_FIELDS, FieldType
from logsvc.query import And, Exists, MatchAll, Node, Not, Or, Prefix, Range, Term, Words, parse
from logsvc.store import AppendResult, Position, Span
from logsvc.store.elastic import (
    ElasticStore,
    _differences,
    _flat_properties,
    compile_query,
    decode_document,
    encode_document,
    index_settings,
    mapping,
)
from tests.support.records import DAY_US, T0, make_entry, take

# Mapping.


def test_every_field_is_mapped_by_its_type_and_nothing_is_dynamic() -> None:
    expected = mapping()
    assert expected["dynamic"] == "false"
    assert expected["_meta"]["schema_version"]
    for field in FIELDS.values():
        body = expected["properties"][field.name]
        assert (
            body["type"]
            == {
                FieldType.KEYWORD: "keyword",
                FieldType.TEXT: "text",
                FieldType.KEYWORD_TEXT: "keyword",
                FieldType.LONG: "long",
                FieldType.DATE: "date_nanos",
                FieldType.LABELS: "flattened",
                FieldType.STORED: "keyword",
            }[field.type]
        )
    assert expected["properties"]["event.original"]["index"] is False


def test_the_mapping_stays_within_its_own_limit() -> None:
    assert len(dict(_flat_properties(mapping()["properties"]))) < index_settings()["mapping.total_fields.limit"]


def found_mapping() -> dict[str, Any]:
    copy = msgspec.json.decode(msgspec.json.encode(mapping()))
    return {"mappings": copy, "analysis": msgspec.json.decode(msgspec.json.encode(index_settings()["analysis"]))}


def test_an_equal_mapping_has_no_differences() -> None:
    assert list(_differences(mapping(), found_mapping())) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f["mappings"]["properties"].pop("task.name"), "task.name: missing"),
        (lambda f: f["mappings"]["properties"]["task.name"].update(type="text"), "task.name: type expected keyword, found text"),
        (lambda f: f["mappings"]["properties"].update(extra={"type": "long"}), "extra: not expected"),
        (lambda f: f["mappings"]["properties"]["message"].update(analyzer="standard"), "message: analyzer expected logsvc_words, found standard"),
        (lambda f: f["mappings"]["properties"]["error.type"].pop("fields"), "error.type.words: missing"),
        (lambda f: f["mappings"]["_meta"].update(schema_version="0"), "_meta.schema_version: expected 1, found 0"),
        (lambda f: f["mappings"].pop("_meta"), "_meta.schema_version: expected 1, found None"),
        (lambda f: f["mappings"].update(dynamic="true"), "dynamic: expected false, found true"),
        (lambda f: f["analysis"]["analyzer"].pop("logsvc_words"), "analyzer logsvc_words: expected"),
    ],
)  # fmt: skip
def test_a_difference_is_named(change: Callable[[dict[str, Any]], object], named: str) -> None:
    found = found_mapping()
    change(found)
    assert any(difference.startswith(named) for difference in _differences(mapping(), found))


# Queries.


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (MatchAll(), {"match_all": {}}),
        (Words(("message",), ("a",)), {"term": {"message": {"value": "a"}}}),
        (Words(("message",), ("a",), is_prefix=True), {"prefix": {"message": {"value": "a"}}}),
        (Words(("error.type",), ("a", "b")), {"match_phrase": {"error.type.words": {"query": "a b", "analyzer": "logsvc_tokens"}}}),
        (Term("log.level", "error"), {"term": {"log.level": {"value": "error"}}}),
        (Term("@timestamp", 5), {"range": {"logsvc.us": {"gte": 5, "lt": 6}}}),
        (Term("task.deadline", 1_500_000), {"range": {"task.deadline": {"gte": "1970-01-01T00:00:01.500Z", "lt": "1970-01-01T00:00:01.500001Z"}}}),
        (Range("task.deadline", 2**62, None), {"match_none": {}}),
        (Range("task.deadline", None, -1), {"match_none": {}}),
        (Range("task.deadline", -5, 2**62), {"exists": {"field": "task.deadline"}}),
        (Range("event.ingested", 5, 7, False, False), {"range": {"logsvc.ingested_us": {"gte": 6, "lt": 7}}}),
        (Range("process.pid", 1, None, False), {"range": {"process.pid": {"gt": 1}}}),
        (Exists("message"), {"term": {"message.any": {"value": "1"}}}),
        (Exists("labels.a*"), {"prefix": {"labels.a*": {"value": ""}}}),
        (Prefix("labels.a", "x"), {"prefix": {"labels.a": {"value": "x"}}}),
        (Not(MatchAll()), {"bool": {"must_not": [{"match_all": {}}]}}),
    ],
)  # fmt: skip
def test_a_node_compiles(node: Node, expected: object) -> None:
    assert compile_query(node) == expected


def nesting(query: object) -> int:
    if isinstance(query, dict):
        return max((nesting(value) for value in query.values()), default=0) + ("bool" in query)
    return max((nesting(item) for item in query), default=0) if isinstance(query, list) else 0


def test_deep_nesting_stays_below_the_bound_of_the_server() -> None:
    node: Node = Words(WORD_FIELDS, ("a",))
    for _ in range(50):
        node = Or((Term("host.name", "h"), And((node, Term("host.name", "h")))))
    levels = 0
    query = compile_query(node)
    while True:
        levels += 1
        assert nesting(query) < 25
        text = json.dumps(query)
        if '"wrapper"' not in text:
            break
        inner = text.partition('{"wrapper": {"query": "')[2].partition('"')[0]
        query = json.loads(base64.b64decode(inner))
    assert levels == 6


# Documents.


def test_a_source_comes_back_byte_for_byte() -> None:
    unit = 'a","logsvc":{"seq":1},"b'
    fields: dict[str, Any] = {"task.name": unit, "event.duration": 1_000}
    for labels in ({}, {"logsvc": "x"}, {'","logsvc":{': '},"logsvc":{"seq":9}}'}):
        entry = make_entry(7, labels=labels, **fields)
        document = encode_document(entry)
        assert b"\n" not in document
        assert decode_document(document) == (Position(T0, 7), entry.source)
        assert json.loads(document)["logsvc"] == {
            "seq": 7, "us": T0, "ingested_us": T0, "unit": f"task:{unit}", "duration_bucket": 72,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name", "indexed"),
    [
        ({"url.path": "p" * 9_000}, "url.path", "p" * MAX_TOKEN_CHARS),
        ({"tags": ["a", "t" * 9_000]}, "tags", ["a", "t" * MAX_TOKEN_CHARS]),
        ({"error.message": "a\U0003fffdb"}, "error.message", "a b"),
        ({"error.message": "x" * 9_000 + " y"}, "error.message", "x" * MAX_TOKEN_CHARS + " y"),
    ],
)
def test_what_the_server_would_index_otherwise_is_fitted_and_the_original_kept(
    fields: dict[str, Any], name: str, indexed: object
) -> None:
    entry = make_entry(1, **fields)
    document = encode_document(entry)
    assert json.loads(document)[name] == indexed
    assert decode_document(document)[1] == entry.source


def test_a_source_with_line_feeds_stays_one_line() -> None:
    entry = make_entry(1)
    pretty = msgspec.structs.replace(entry, source=json.dumps(json.loads(entry.source), indent=1).encode())
    document = encode_document(pretty)
    assert b"\n" not in document
    assert json.loads(decode_document(document)[1]) == json.loads(entry.source)


# Indices.


def test_the_index_follows_from_the_record_alone() -> None:
    store = ElasticStore("http://127.0.0.1:1", prefix="p")
    day = DAY_US
    cases = {
        (T0, T0): "p-2026.11.22",
        (T0 - 30 * day, T0): "p-2026.10.23",
        (T0 - 31 * day, T0): "p-misc",
        (T0 + day, T0): "p-2026.11.23",
        (T0 + 2 * day, T0): "p-misc",
        (0, T0): "p-misc",
    }
    for (time_us, ingested_us), index in cases.items():
        assert store._index_of(make_entry(1, time_us, ingested_us=ingested_us)) == index
    store.close()


# The server, played.

Answer = Callable[[str, str], tuple[int, object]]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, str]]]]:
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append({key.lower(): value for key, value in self.headers.items()})
            status, body = answer(self.command, self.path)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{http.server_address[1]}", seen
        finally:
            http.shutdown()
            thread.join(10)


def error(kind: str, reason: str = "because") -> dict[str, object]:
    return {"error": {"type": kind, "reason": reason, "root_cause": [{"type": kind, "reason": reason}]}}


@pytest.mark.parametrize(
    ("status", "body", "raised"),
    [
        (503, error("cluster_block_exception"), StoreUnavailable),
        (429, error("circuit_breaking_exception"), StoreUnavailable),
        (401, error("security_exception"), StoreUnavailable),
        (502, "not json of theirs", StoreUnavailable),
        (400, error("too_many_nested_clauses"), QueryTooExpensive),
        (503, error("too_many_buckets_exception"), QueryTooExpensive),
        (400, error("parsing_exception"), LogsvcError),
        (200, {"timed_out": True, "hits": {"hits": []}}, QueryTooExpensive),
        (200, "<html>of a proxy</html>", StoreUnavailable),
        (200, {"took": 3}, StoreUnavailable),
    ],
)
def test_an_answer_that_is_none_raises_what_it_means(status: int, body: object, raised: type[Exception]) -> None:
    with server(lambda method, path: (status, body)) as (address, _):
        store = ElasticStore(f"http://{address}")
        with pytest.raises(raised) as caught:
            store.count("default", MatchAll(), Span())
        assert type(caught.value) is raised
        store.close()


@pytest.mark.parametrize(
    ("status", "kind", "is_refused"),
    [
        (400, "document_parsing_exception", True),
        (400, "illegal_argument_exception", True),
        (400, "validation_exception", False),
        (403, "cluster_block_exception", False),
        (429, "es_rejected_execution_exception", False),
        (503, "unavailable_shards_exception", False),
    ],
)
def test_a_document_is_refused_only_for_what_will_never_change(status: int, kind: str, is_refused: bool) -> None:
    bulks = 0

    def answer(method: str, path: str) -> tuple[int, object]:
        nonlocal bulks
        if not path.startswith("/_bulk"):
            return 200, {}
        bulks += 1
        taken = [{"create": {"status": 201}}] if bulks == 1 else []  # and then only the other one is sent again
        failed = {"create": {"status": status, "error": {"type": kind, "reason": "because"}}}
        return 200, {"items": [*taken, failed]}

    with server(answer) as (address, _):
        store = ElasticStore(f"http://{address}")
        entries = [make_entry(1), make_entry(2)]
        if is_refused:
            result = take(store, entries)
            assert (result.appended, [refusal.entry.seq for refusal in result.refused]) == (1, [2])
            assert kind in result.refused[0].reason
        else:
            with pytest.raises(StoreUnavailable, match=kind):
                take(store, entries)
        store.close()


def test_an_append_waits_for_no_answer_and_a_flush_for_all_of_them() -> None:
    is_told = threading.Event()
    statuses = [201, 201, 503]

    def answer(method: str, path: str) -> tuple[int, object]:
        if not path.startswith("/_bulk"):
            return 200, {}
        if not is_told.wait(20):
            return 500, {}
        failed = {"status": (status := statuses.pop(0)), **({"error": {"type": "busy"}} if status > 299 else {})}
        return 200, {"items": [{"create": failed}]}

    with server(answer) as (address, _):
        store = ElasticStore(f"http://{address}")
        assert store.append([make_entry(1, id="a", ingested_us=T0 + 1)]) == AppendResult()
        # Its neighbour is under way, so nobody need ask about the second.
        assert store.append([make_entry(2, id="a", ingested_us=T0 + 1)]) == AppendResult(duplicates=1)
        is_told.set()
        assert store.flush() == AppendResult(appended=1)
        store.append([make_entry(3)])
        store.append([make_entry(4)])
        with pytest.raises(StoreUnavailable, match="busy"):
            store.flush()
        # Nobody knows what became of them: none is a repetition.
        statuses[:] = [201, 201]
        store.append([make_entry(3)])
        assert take(store, [make_entry(4)]).duplicates == 0
        assert statuses == []
        store.close()


def test_a_refresh_waits_for_nothing_that_is_under_way_and_the_next_one_is_of_that() -> None:
    may_answer = threading.Event()
    refreshed: list[str] = []

    def answer(method: str, path: str) -> tuple[int, object]:
        if "/_refresh" in path:
            refreshed.append(path.split("/")[1])
        if path.startswith("/_bulk"):
            assert may_answer.wait(20)
            return 200, {"items": [{"create": {"status": 201}}]}
        return 200, {}

    with server(answer) as (address, _):
        store = ElasticStore(f"http://{address}", prefix="p")
        may_answer.set()
        take(store, [make_entry(1)])
        may_answer.clear()
        store.append([make_entry(2, T0 - 86_400_000_000)])
        store.refresh()
        first = store._day_index(T0 // 86_400_000_000)
        assert refreshed == [first]
        may_answer.set()
        store.flush()
        store.refresh()
        store.refresh()
        assert refreshed == [first, store._day_index(T0 // 86_400_000_000 - 1)]
        store.close()


@pytest.mark.parametrize("body", ["<html>of a proxy</html>", {"took": 3}, {"items": []}, {"items": [{"create": {}}]}])
def test_an_answer_to_a_batch_that_is_none_is_asked_again_and_blames_no_record(body: object) -> None:
    def answer(method: str, path: str) -> tuple[int, object]:
        return 200, body if path.startswith("/_bulk") else {}

    with server(answer) as (address, _):
        store = ElasticStore(f"http://{address}")
        with pytest.raises(StoreUnavailable, match="the store"):
            take(store, [make_entry(1)])
        store.close()


def test_a_batch_too_large_for_the_server_is_halved_until_it_fits() -> None:
    def answer(method: str, path: str) -> tuple[int, object]:
        if not path.startswith("/_bulk"):
            return 200, {}
        return (413, {}) if not answers else (200, {"items": [{"create": {"status": 201}}] * answers.pop()})

    # The whole, its first half and that one's first quarter are too large; one record stays so.
    answers: list[int] = []
    with server(answer) as (address, _):
        store = ElasticStore(f"http://{address}")
        result = take(store, [make_entry(n) for n in range(1, 5)])
        assert len(result.refused) == 4
        answers.append(4)
        assert take(store, [make_entry(n) for n in range(1, 5)]).appended == 4
        store.close()


def test_what_was_erased_leaves_the_disk_when_days_expire() -> None:
    asked: list[str] = []

    def answer(method: str, path: str) -> tuple[int, object]:
        asked.append(f"{method} {path.partition('?')[0]}")
        if "/_stats/" in path:
            docs = {"clean": {"count": 5, "deleted": 0}, "dirty": {"count": 5, "deleted": 2}}
            return 200, {"indices": {index: {"primaries": {"docs": body}} for index, body in docs.items()}}
        return 200, {"hits": {"hits": []}} if path.partition("?")[0].endswith("_search") else {}

    with server(answer) as (address, _):
        store = ElasticStore(f"http://{address}")
        assert store.expire(T0) == 0
        store.close()
    assert [line for line in asked if "_forcemerge" in line] == ["POST /dirty/_forcemerge"]


def test_the_password_is_sent_and_never_shown() -> None:
    with server(lambda method, path: (401, error("security_exception"))) as (address, seen):
        store = ElasticStore(f"http://us%40er:p%2Fss-word@{address}")
        with pytest.raises(StoreUnavailable) as caught:
            store.count("default", MatchAll(), Span())
        health = store.health()
        store.close()
    assert seen[0]["authorization"] == "Basic " + base64.b64encode(b"us@er:p/ss-word").decode()
    for shown in (str(caught.value), repr(store), health.name, health.detail):
        assert "ss-word" not in shown
        assert "us@er" not in shown
    assert not health.is_reachable


def test_a_server_that_is_not_there_is_unavailable() -> None:
    store = ElasticStore("http://user:secret@127.0.0.1:1")
    with pytest.raises(StoreUnavailable) as caught:
        take(store, [make_entry(1)])
    assert "secret" not in str(caught.value)
    assert not store.health().is_reachable
    store.close()


def test_an_address_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(SettingsError) as caught:
        ElasticStore("user:secret@host")
    assert "secret" not in str(caught.value)


def test_in_a_set_no_range_begins_with_an_escaped_character() -> None:
    def written(pattern: str) -> str:
        query = compile_query(parse(f"url.path:/{pattern}/", T0))
        value: str = query["regexp"]["url.path"]["value"]
        return value

    assert written(r"a\s") == "a[\t-\n\f-\r ]"
    assert written(r"a\S") == "a[^\t-\n\f-\r ]"
    assert written(r"[+-0]\.\\") == r"[\+\,\-\.\/0]\.\\"
    assert written("[😀-😂]a") == "[😀-😂]a"
