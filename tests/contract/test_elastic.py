"""What only Elasticsearch can get wrong: mappings that drift, days that leave the retention, traces of the erased."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from logsvc.query import And, MatchAll, Node, Not, Or, Term, Words
from logsvc.store import AppendResult, Span
from logsvc.store.elastic import MAX_NAMED_DAYS, ElasticStore
from tests.support.elasticsearch import drop_indices
from tests.support.records import DAY_US, T0, make_entry

pytestmark = pytest.mark.elasticsearch

ALL = MatchAll()
OpenStore = Callable[..., ElasticStore]


@pytest.fixture
def prefix(elasticsearch_url: str) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex}"
    yield name
    drop_indices(elasticsearch_url, name)


@pytest.fixture
def open_store(elasticsearch_url: str, prefix: str) -> Iterator[OpenStore]:
    opened: list[ElasticStore] = []

    def make(**options: Any) -> ElasticStore:
        opened.append(ElasticStore(elasticsearch_url, prefix=prefix, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def ask(url: str, method: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_mapping_that_drifted_is_named_with_its_index(
    elasticsearch_url: str, prefix: str, open_store: OpenStore
) -> None:
    store = open_store()
    store.append([make_entry(1), make_entry(2, T0 + DAY_US)])
    body = {"properties": {"extra": {"type": "long"}, "service.name": {"type": "keyword", "ignore_above": 9}}}
    ask(elasticsearch_url, "PUT", f"/{prefix}-2026.11.22/_mapping", body)
    assert store.check_schema() == [
        f"extra: not expected (in {prefix}-2026.11.22)",
        f"service.name: ignore_above expected the default, found 9 (in {prefix}-2026.11.22)",
    ]


def test_a_duplicate_is_known_after_its_day_left_the_retention(open_store: OpenStore) -> None:
    store = open_store(retention=timedelta(days=2))
    store.append([make_entry(1, T0, id="a")])
    again = make_entry(2, T0, id="a", ingested_us=T0 + 5 * DAY_US)
    assert store.append([again, make_entry(3, T0, id="b", ingested_us=T0 + 5 * DAY_US)]) == AppendResult(1, 1)
    assert store.append([make_entry(3, T0, id="b", ingested_us=T0 + 5 * DAY_US)]) == AppendResult(skipped=1)
    store.refresh()
    assert store.count("default", ALL) == 2


def test_days_outside_the_retention_share_an_index_and_expire_apart(
    elasticsearch_url: str, prefix: str, open_store: OpenStore
) -> None:
    store = open_store(retention=timedelta(days=2))
    store.append(
        [
            make_entry(1, T0),
            make_entry(2, T0 - 50 * DAY_US, ingested_us=T0),
            make_entry(3, T0 - 70 * DAY_US, ingested_us=T0 + 9),
        ]
    )
    store.refresh()
    assert set(ask(elasticsearch_url, "GET", f"/_alias/{prefix}")) == {f"{prefix}-2026.11.22", f"{prefix}-misc"}
    assert store.expire(T0 + 5) == 2
    assert [hit.position.seq for hit in store.search("default", ALL).hits] == [3]
    assert set(ask(elasticsearch_url, "GET", f"/_alias/{prefix}")) == {f"{prefix}-misc"}


def test_a_record_without_a_time_of_its_own_is_known_from_the_day_before(open_store: OpenStore) -> None:
    store = open_store()
    midnight = T0 // DAY_US * DAY_US
    assert store.append([make_entry(1, midnight - 1, id="a")]).appended == 1
    assert store.append([make_entry(2, midnight, id="a")]) == AppendResult(duplicates=1)


def test_a_query_nested_as_deep_as_the_parser_takes_it_is_answered(open_store: OpenStore) -> None:
    store = open_store()
    store.append([make_entry(1, message="deep"), make_entry(2)])
    store.refresh()
    node: Node = Words(("message",), ("deep",))
    for _ in range(50):
        node = Not(And((Not(node), Or((Term("service.name", "shop"), Term("service.name", "x"))))))
    assert [hit.position.seq for hit in store.search("default", node).hits] == [1]


def test_a_span_finds_the_same_whether_its_days_are_named_or_not(open_store: OpenStore) -> None:
    store = open_store()
    store.append([make_entry(n, T0 + n * DAY_US, ingested_us=T0 + n * DAY_US) for n in range(3)])
    store.refresh()
    for days in (1, MAX_NAMED_DAYS + 5):
        span = Span(T0 + DAY_US, T0 + DAY_US + days * DAY_US)
        assert store.count("default", ALL, span) == min(days, 2)


def test_an_interrupted_append_is_completed_by_the_next(open_store: OpenStore) -> None:
    entries = [make_entry(n, T0 + n) for n in range(1, 11)]
    open_store().append(entries[:4])
    result = open_store().append(entries)
    assert (result.appended, result.skipped, result.duplicates) == (6, 4, 0)
