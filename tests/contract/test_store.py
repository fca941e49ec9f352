"""The contract of ``Store``, claim by claim, over every store.

Expected hits come from tests/support/oracle.py, never from another store.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import pytest

from logsvc.errors import QueryTooExpensive
from logsvc.query import And, Exists, MatchAll, Node, Not, Or, Prefix, Range, Term, Words, parse
from logsvc.records import Entry, stored_id
from logsvc.store import EXACT_TOTAL, AppendResult, Dimension, Facets, Order, Page, Position, Span, Store
from tests.support import oracle
from tests.support.records import DAY_US, T0, make_entry

ALL = MatchAll()
ALWAYS = Span()
MESSAGE = ("message",)


def put(store: Store, entries: Sequence[Entry]) -> AppendResult:
    """Append, and make it durable and searchable."""
    result = store.append(entries) + store.flush()
    store.refresh()
    return result


def walk(
    store: Store,
    query: Node = ALL,
    *,
    tenant: str = "default",
    span: Span = ALWAYS,
    limit: int = 50,
    order: Order = Order.NEWEST_FIRST,
    between: Callable[[], object] = lambda: None,
) -> list[Position]:
    """Return the positions of all hits, page by page."""
    found: list[Position] = []
    page: Page | None = None
    while page is None or page.next is not None:
        after = None if page is None else page.next
        page = store.search(tenant, query, span, limit=limit, after=after, order=order)
        assert len(page.hits) <= limit
        found += [hit.position for hit in page.hits]
        between()
    return found


def positions(entries: Iterable[Entry], order: Order = Order.NEWEST_FIRST) -> list[Position]:
    return sorted((Position(e.time_us, e.seq) for e in entries), reverse=order is Order.NEWEST_FIRST)


def seqs(store: Store, query: Node | str, tenant: str = "default") -> list[int]:
    node = parse(query, T0) if isinstance(query, str) else query
    return sorted(hit.position.seq for hit in store.search(tenant, node, limit=1000).hits)


# Append.


def test_an_appended_record_comes_back_as_it_was(store: Store) -> None:
    entry = make_entry(
        1,
        message='Café "x"\n\tline \u0001 🎉',
        labels={"a.b": "1", "empty": "", 'odd "key": é': "v"},
        tags=["x", "y", "x"],
        **{"event.duration": 5, "error.stack_trace": "a\nb", "event.original": "o" * 20_000, "service.version": ""},
    )
    assert put(store, [entry]) == AppendResult(appended=1)
    (hit,) = store.search("default", ALL).hits
    assert (hit.id, hit.position) == (entry.id, Position(entry.time_us, 1))
    assert msgspec.json.decode(hit.source) == msgspec.json.decode(entry.source)
    assert store.get("default", entry.id) == hit


def test_a_record_sent_twice_is_stored_once_and_the_first_stays(store: Store) -> None:
    first = make_entry(1, message="first", id="same")
    assert put(store, [first]) == AppendResult(appended=1)
    second = make_entry(2, T0 + 5, message="second", id="same")
    assert put(store, [second, make_entry(3, id="other")]) == AppendResult(appended=1, duplicates=1)
    assert seqs(store, ALL) == [1, 3]


def test_of_two_records_with_one_id_in_a_batch_the_first_stays(store: Store) -> None:
    batch = [make_entry(1, id="a", message="one"), make_entry(2, id="b"), make_entry(3, id="a", message="two")]
    assert put(store, batch) == AppendResult(appended=2, duplicates=1)
    assert seqs(store, "one") == [1]
    assert seqs(store, "two") == []


def test_a_duplicate_is_known_before_it_is_flushed(store: Store) -> None:
    store.append([make_entry(1, id="a")])
    again = store.append([make_entry(2, id="a")])
    assert (again + store.flush()).duplicates == 1
    store.refresh()
    assert seqs(store, ALL) == [1]


def test_a_duplicate_is_known_after_a_restart(store_factory: Callable[[], Store]) -> None:
    before = store_factory()
    put(before, [make_entry(1, id="a")])
    before.close()
    assert put(store_factory(), [make_entry(2, id="a")]) == AppendResult(duplicates=1)


def test_a_record_that_got_its_time_on_arrival_is_known_the_next_day(store: Store) -> None:
    midnight = T0 // DAY_US * DAY_US + DAY_US
    put(store, [make_entry(1, midnight - 5, id="a"), make_entry(2, midnight - 4, id="b")])
    again = [make_entry(3, midnight + 5, id="a"), make_entry(4, midnight + 6, id="c")]
    assert put(store, again) == AppendResult(appended=1, duplicates=1)
    assert seqs(store, ALL) == [1, 2, 4]


def test_one_id_of_two_tenants_is_two_records(store: Store) -> None:
    assert put(store, [make_entry(1, id="a"), make_entry(2, id="a", tenant="other")]).appended == 2


def test_what_is_appended_again_after_a_restart_is_skipped(store_factory: Callable[[], Store]) -> None:
    entries = [make_entry(n, T0 + n * DAY_US // 3, id=f"c{n}" if n % 2 else None) for n in range(1, 10)]
    before = store_factory()
    put(before, entries[:6])
    before.close()
    after = store_factory()
    result = put(after, entries)
    assert result.appended == 3
    assert result.skipped + result.duplicates == 6
    assert walk(after) == positions(entries)


def test_the_last_sequence_is_known_after_a_restart(store_factory: Callable[[], Store]) -> None:
    before = store_factory()
    assert before.last_seq() == 0
    put(before, [make_entry(7, T0 + DAY_US), make_entry(9, T0), make_entry(2**52, T0, tenant="other")])
    assert before.last_seq() == 2**52
    before.close()
    assert store_factory().last_seq() == 2**52


def test_an_empty_batch_is_nothing(store: Store) -> None:
    assert put(store, []) == AppendResult()
    assert store.search("default", ALL) == Page((), None)


# Search.

RECORDS = [
    make_entry(1, T0 + 10, "Connection refused by db-1", level="error", tags=["db", "net"], labels={"k": "v"}),
    make_entry(2, T0 + 20, "connection reset", level="warn", labels={"k": "V", "a.b": "x y", "n": "10"}),
    make_entry(3, T0 + 20, "charge_failed for order 17", level="error", **{"error.type": "app.errors.ChargeError"}),
    make_entry(4, T0 + 30, "Ünïcödé Straße ΟΔΟΣ İstanbul 東京 café", **{"process.pid": 0, "event.duration": -5}),
    make_entry(5, T0 - DAY_US, "!!! ???", **{"service.version": "", "process.pid": 12}),
    make_entry(6, T0 + DAY_US, "db refused connection", **{"task.name": "a*b c", "task.scheduled_at": "2026-11-22T00:00:00Z"}),
    make_entry(7, T0 + DAY_US + 1, "x", **{"process.pid": 2**63 - 1, "error.message": "the db", "url.path": "/é/\u00ff"}),
    make_entry(8, T0 + DAY_US + 2, "nothing", labels={"": "x", 'q"\\:( é\t': "z", "empty": "", "a": "b"}),
    make_entry(9, T0 + DAY_US + 3, "y" * 9000 + " tail", **{"url.path": "/" + "p" * 9000}),
]  # fmt: skip

QUERIES = [
    "*", "connection", "CONNECTION refused", '"connection refused"', '"refused connection"', "conn*", "charge*",
    "charge_failed", "charge", "charg*", "db", "db-1", "message:db", "error.message:db", "tags:db", "tags:n*", "tags:*",
    "NOT tags:*", "NOT connection", "-connection -x", "connection OR x", "(connection OR x) NOT reset",
    "level:error", "level:>=warn", "level:<warn", "level:[warn TO error]", "level:{info TO error}",
    "error.type:ChargeError", "error.type:app.errors.ChargeError", 'error.type:"app errors"', "error.type:app.errors.*",
    "error.type:charge*", 'error.type:["app.errors.ChargeError" TO "app.errors.ChargeError"]', "error.type:*",
    "chargeerror", "labels.k:v", "labels.k:V", "labels.k:*", "labels.a.b:\"x y\"", "labels.a.b:x*", "labels.a:*", "labels.n:10",
    "labels.n:1*", "labels.missing:*", "labels.empty:\"\"", "labels.empty:*", "labels.k:W*",
    "straße", "STRASSE", "οδοσ", "ΟΔΟς", "istanbul", "İSTANBUL", "東京", "東*", "ünïcödé", "CAFÉ",
    "message:*", "NOT message:*", "error.stack_trace:*", "service.version:*", 'service.version:""', "process.pid:0",
    "process.pid:>0", "process.pid:>=12", "process.pid:[* TO 12}", "process.pid:*", "NOT process.pid:>0",
    "process.pid:9223372036854775807", "event.duration:<0", "event.duration:-5", "task.name:\"a*b c\"", "task.name:a\\**",
    "task.scheduled_at:2026-11-22", "task.scheduled_at:>2026-11-22", "task.scheduled_at:*", "@timestamp:>now",
    "@timestamp:2026-11-22", "@timestamp:*", "url.path:>/a", "url.path:[\"/é\" TO *]", "url.path:/é*", "service:shop", "service:sho*",
    "service:Shop", "service.name:{shop TO *]", "service.name:[shop TO shop]", "event.id:(e1 OR e2 OR e77)",
    "log.template.id:v1\\:0", "y*", "tail",
]  # fmt: skip


@pytest.fixture(scope="module")
def filled(shared_store: Store) -> Store:
    """The store under test with ``RECORDS``, to be read only: an index of its own for each query would take minutes."""
    put(shared_store, RECORDS)
    return shared_store


@pytest.mark.parametrize("text", QUERIES)
def test_a_query_finds_what_the_oracle_finds(filled: Store, text: str) -> None:
    node = parse(text, T0 + 25)
    expected = oracle.hits(RECORDS, "default", node)
    assert seqs(filled, node) == sorted(entry.seq for entry in expected)
    assert filled.count("default", node) == len(expected)


def test_queries_over_odd_label_keys_find_exactly_that_key(filled: Store) -> None:
    for key, value in {"": "x", 'q"\\:( é\t': "z", "a": "b"}.items():
        for node in (Term(f"labels.{key}", value), Prefix(f"labels.{key}", value), Exists(f"labels.{key}")):
            if key:
                assert seqs(filled, node) == [8], node
    assert seqs(filled, Exists("labels.a.b")) == [2]


def test_the_nodes_nest(filled: Store) -> None:
    db, conn = Words(MESSAGE, ("db",)), Words(MESSAGE, ("conn",), is_prefix=True)
    for node in (
        Not(Not(db)),
        And((Not(db), Not(conn))),
        Or((Not(db), conn)),
        Not(ALL),
        Not(Or((db, ALL))),
        And((ALL, Or((db, And((conn, Not(Range("process.pid", 0, None)))))))),
        Words(("message", "error.message"), ("db",)),
        Words(("error.message",), ("the", "db")),
    ):
        assert seqs(filled, node) == sorted(e.seq for e in oracle.hits(RECORDS, "default", node)), node


def test_a_span_is_half_open(filled: Store) -> None:
    for span in (Span(T0 + 20), Span(None, T0 + 20), Span(T0 + 10, T0 + 20), Span(T0 + 20, T0 + 20), Span(T0 - DAY_US, T0 + DAY_US + 1)):  # fmt: skip
        expected = oracle.hits(RECORDS, "default", ALL, span)
        assert walk(filled, span=span, limit=2) == positions(expected)
        assert filled.count("default", ALL, span) == len(expected)


@pytest.mark.parametrize("order", Order)
def test_pages_follow_time_and_sequence(filled: Store, order: Order) -> None:
    for limit in (1, 2, 3, 1000):
        assert walk(filled, limit=limit, order=order) == positions(RECORDS, order)


def test_the_last_page_says_so(store: Store) -> None:
    put(store, RECORDS[:4])
    assert store.search("default", ALL, limit=4).next is None
    page = store.search("default", ALL, limit=3)
    assert page.next == page.hits[-1].position
    assert [hit.position.seq for hit in page.hits] == [4, 3, 2]


def test_a_minimal_sequence_hides_what_is_older(filled: Store) -> None:
    page = filled.search("default", ALL, min_seq=7, order=Order.OLDEST_FIRST)
    assert [hit.position.seq for hit in page.hits] == [7, 8, 9]
    assert filled.search("default", ALL, min_seq=10).hits == ()


def test_a_total_is_exact_up_to_its_bound(filled: Store) -> None:
    page = filled.search("default", ALL, limit=2, count_total=True)
    assert (page.total, page.is_exact) == (len(RECORDS), True)
    again = filled.search("default", ALL, limit=2, after=page.next, count_total=True)
    assert (again.total, again.is_exact) == (len(RECORDS), True)
    assert filled.search("default", ALL, limit=2).total is None


@pytest.mark.slow(seconds=25)
def test_12000_records_of_one_microsecond_are_walked_once_each_under_writes(store: Store) -> None:
    # More than one request to Elasticsearch may look through.
    entries = [make_entry(n, message="burst") for n in range(1, 12_001)]
    for start in range(0, len(entries), 6_000):
        put(store, entries[start : start + 6_000])
    next_seq = 12_001

    def write() -> None:
        nonlocal next_seq
        put(store, [make_entry(next_seq + n, T0 + later_us) for n, later_us in enumerate((1, -1, DAY_US))])
        next_seq += 3

    for order in Order:
        found = walk(store, Words(MESSAGE, ("burst",)), order=order, limit=300, between=write)
        assert found == positions(entries, order)
    total = store.search("default", ALL, limit=1, count_total=True)
    assert total.total is not None
    assert total.total >= EXACT_TOTAL
    assert not total.is_exact or total.total == store.count("default", ALL)


def test_a_query_out_of_time_says_so(filled: Store) -> None:
    for ask in (filled.search, filled.count):
        with pytest.raises(QueryTooExpensive):
            ask("default", ALL, timeout_s=0.0)


# Get.


def test_get_finds_by_id_within_the_tenant_only(store: Store) -> None:
    put(store, [*RECORDS, make_entry(20, id="x", tenant="other")])
    hit = store.get("default", stored_id("default", "e5"))
    assert hit is not None
    assert hit.position.seq == 5
    assert store.get("default", stored_id("other", "x")) is None
    assert store.get("default", "no such id") is None


# Facets.


def test_facets_count_each_value_of_a_field_the_most_frequent_first(store: Store) -> None:
    put(store, [*RECORDS, make_entry(20, T0, tenant="other", level="fatal")])
    assert store.facets("default", ALL, field="log.level") == Facets((("info", 6), ("error", 2), ("warn", 1)))
    assert store.facets("default", ALL, field="log.level", limit=1) == Facets((("info", 6),), other=3)
    assert store.facets("default", ALL, field="labels.k") == Facets((("V", 1), ("v", 1)), missing=7)
    assert store.facets("default", ALL, field="service.version") == Facets((("", 1),), missing=8)
    of_hits = store.facets("default", parse("level:>=warn", T0), Span(T0, T0 + DAY_US), field="log.level")
    assert of_hits == Facets((("error", 2), ("warn", 1)))
    assert store.facets("nobody", ALL, field="log.level") == Facets()


def test_facets_of_a_prefix_are_its_values_alone(store: Store) -> None:
    tags = [["red", "rot"], ["red", "blue"], ["blue"], []]
    labels = [{"k": "v.1"}, {"k": "v.2"}, {"k": "vx1"}, {"k2": "v.1"}]
    put(store, [make_entry(n, T0, tags=tags[n], labels=labels[n], service=f"shop{n % 2}") for n in range(1, 4)])
    put(store, [make_entry(9, T0, tags=tags[0], labels=labels[0], service="web")])
    assert store.facets("default", ALL, field="tags", prefix="r") == Facets((("red", 2), ("rot", 1)))
    assert store.facets("default", ALL, field="tags", prefix="r", limit=1) == Facets((("red", 2),), other=1)
    assert store.facets("default", ALL, field="labels.k", prefix="v.") == Facets((("v.1", 1), ("v.2", 1)))
    assert store.facets("default", ALL, field="service.name", prefix="shop1") == Facets((("shop1", 2),))
    assert store.facets("default", ALL, field="service.name", prefix="Shop") == Facets()


def test_facets_of_many_rare_values_are_exact(store: Store) -> None:
    names = [f"s{n * 7919 % 400}" for n in range(1, 1_200)]
    put(store, [make_entry(n, T0 + n % 3 * DAY_US, service=name) for n, name in enumerate(names, 1)])
    truth = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    found = store.facets("default", ALL, field="service.name", limit=50)
    assert found == Facets(tuple(truth[:50]), other=sum(count for _, count in truth[50:]))


# Histogram.


def test_a_histogram_counts_each_interval(filled: Store) -> None:
    buckets = filled.histogram("default", ALL, Span(), interval_us=20)
    expected = Counter(e.time_us // 20 * 20 for e in RECORDS)
    assert [(b.start_us, b.count) for b in buckets] == sorted(expected.items())
    assert all(b.by == {} for b in buckets)
    (day,) = filled.histogram("default", parse("db", T0), Span(T0, T0 + DAY_US), interval_us=DAY_US)
    assert (day.start_us, day.count) == (T0 // DAY_US * DAY_US, 1)


def test_a_histogram_splits_by_a_field(filled: Store) -> None:
    week = 7 * DAY_US
    by_level = filled.histogram("default", ALL, Span(), interval_us=week, by="log.level")
    assert sum((Counter(b.by) for b in by_level), Counter()) == {"error": 2, "warn": 1, "info": 6}
    by_label = filled.histogram("default", ALL, Span(), interval_us=week, by="labels.k")
    assert sum((Counter(b.by) for b in by_label), Counter()) == {"": 7, "v": 1, "V": 1}
    by_version = filled.histogram("default", ALL, Span(), interval_us=week, by="service.version")
    assert sum((Counter(b.by) for b in by_version), Counter()) == {"": 9}


def test_a_histogram_counts_a_record_of_several_values_with_each(store: Store) -> None:
    put(store, [make_entry(n, tags=tags) for n, tags in enumerate([["a", "b"], ["a"], []], 1)])
    (bucket,) = store.histogram("default", ALL, Span(), interval_us=DAY_US, by="tags")
    assert (bucket.count, bucket.by) == (3, {"a": 2, "b": 1, "": 1})


def test_a_histogram_sums_rare_values(store: Store) -> None:
    entries = [make_entry(n, T0 + n, service=f"s{min(n, 150 - n) % 120}") for n in range(1, 150)]
    put(store, entries)
    (bucket,) = store.histogram("default", ALL, Span(), interval_us=DAY_US, by="service.name")
    truth = Counter(f"s{min(n, 150 - n) % 120}" for n in range(1, 150))
    assert bucket.count == 149 == sum(bucket.by.values())
    assert len(bucket.by) <= 101
    assert all(truth[value] == count for value, count in bucket.by.items() if value != "*")


def test_too_many_buckets_are_refused(filled: Store) -> None:
    with pytest.raises(QueryTooExpensive):
        filled.histogram("default", ALL, Span(T0 - DAY_US, T0 + DAY_US), interval_us=1_000_000)


# Window counts.


def window_entries() -> list[Entry]:
    statuses = ("queued", "started", "succeeded", "failed")
    levels = ("debug", "info", "warn", "error", "fatal")
    entries = []
    for n in range(1, 2_001):
        fields: dict[str, object] = {"log.template.id": f"v1:{n % 37}"}
        if n % 3:
            fields["task.name"] = f"t{n % 23}"
        if n % 4 == 0:
            fields["task.status"] = statuses[n % 16 // 4]
        if n % 5:
            fields["organization.id"] = f"c{n % 301}"
        if n % 2:
            fields["event.duration"] = n * 1_000_003
        if n % 7:
            fields["service.version"] = f"1.{n % 3}"
        time_us = T0 + n * 47_000_000 + (n % 11) * 3_600_000_000
        entries.append(make_entry(n, time_us, level=levels[n % 5], ingested_us=T0 + 2 * DAY_US + n * 1_000, **fields))
    return entries


@pytest.mark.parametrize("step_us", [60_000_000, 300_000_000])
def test_window_counts_are_exact(store: Store, step_us: int) -> None:
    entries = window_entries()
    put(store, [*entries, make_entry(5_000, tenant="other")])
    first = T0 + 2 * DAY_US
    everything = frozenset(Dimension)
    for ingested, span, dimensions in (
        (Span(), Span(), everything),
        (Span(first, first + 700_000), Span(), everything),
        (Span(first + 700_000, None), Span(T0 + DAY_US // 2, T0 + DAY_US), everything),
        (Span(first, first + 5_000), Span(), frozenset({Dimension.LEVEL})),
        (Span(first + 10**9, None), Span(), everything),
    ):
        found = store.window_counts("default", ingested=ingested, span=span, step_us=step_us, dimensions=dimensions)
        assert len(set(found)) == len(found)
        assert set(found) == oracle.window_counts(entries, "default", ingested, span, step_us, dimensions)


# Tenants, erasing, retention.


def test_tenants_are_walls(store: Store) -> None:
    names = ["default", "Default", "a/b", "../x", "ü", "a b", "*", "-", "con", "x" * 200]
    put(store, [make_entry(n, tenant=name, id="same") for n, name in enumerate(names, 1)])
    assert sorted(store.tenants()) == sorted(names)
    for n, name in enumerate(names, 1):
        assert seqs(store, ALL, name) == [n]
        assert store.count(name, ALL) == 1
    assert seqs(store, ALL, "nobody") == []
    assert store.erase("default", ALL) == 1
    assert store.count("Default", ALL) == 1
    assert store.histogram("nobody", ALL, Span(), interval_us=DAY_US) == []
    assert store.window_counts("nobody", ingested=Span(), step_us=DAY_US) == []


def test_erased_records_are_gone_for_good(store_factory: Callable[[], Store]) -> None:
    store = store_factory()
    put(store, RECORDS)
    query = parse("connection", T0)
    gone = {e.seq for e in oracle.hits(RECORDS, "default", query)}
    assert store.erase("default", query) == len(gone)
    assert store.erase("default", query) == 0
    left = [e for e in RECORDS if e.seq not in gone]
    assert walk(store) == positions(left)
    store.close()
    assert walk(store_factory()) == positions(left)


def test_erasing_keeps_to_its_span_and_takes_what_is_not_yet_searchable(store: Store) -> None:
    store.append(RECORDS)
    assert store.erase("default", ALL, Span(T0, T0 + DAY_US)) == 4
    store.flush()
    store.refresh()
    assert seqs(store, ALL) == [5, 6, 7, 8, 9]


def test_expired_days_are_those_whose_last_write_is_old(store: Store) -> None:
    put(
        store,
        [
            make_entry(1, T0, ingested_us=T0),
            make_entry(2, T0 - 9 * DAY_US, ingested_us=T0 + 5),  # written late, so it stays
            make_entry(3, T0 + DAY_US, ingested_us=T0 + DAY_US),
            make_entry(4, T0, ingested_us=T0 + 1, tenant="other"),
        ],
    )
    assert store.expire(T0) == 0
    assert store.expire(T0 + 2) == 1  # one day, of two tenants
    assert seqs(store, ALL) == [2, 3]
    assert store.tenants() == ["default"]
    put(store, [make_entry(5, T0, ingested_us=T0 + DAY_US)])
    assert seqs(store, ALL) == [2, 3, 5]


def test_days_long_past_are_found_counted_erased_and_expire_like_any_other(store: Store) -> None:
    long_past = [
        # Indexed when their days were young, so that days of their own lie between those of the others.
        *(make_entry(n, T0 - 10 * n * DAY_US, id=f"r{n}") for n in range(1, 20, 2)),
        *(make_entry(20 + n, T0 - 7 * n * DAY_US + n, id=f"l{n}", ingested_us=T0 + n % 2) for n in range(20)),
    ]
    put(store, long_past)
    for order in Order:
        for limit in (1, 3, 50):
            assert walk(store, limit=limit, order=order) == positions(long_past, order)
    span = Span(T0 - 77 * DAY_US, T0 - 40 * DAY_US)
    within = [e for e in long_past if span.start_us <= e.time_us < span.end_us]
    assert walk(store, span=span) == positions(within)
    assert store.count("default", ALL, span) == len(within)
    again = [
        make_entry(90 + n, long_past[n].time_us, id=id, ingested_us=T0 + DAY_US) for n, id in ((0, "r1"), (29, "l19"))
    ]
    assert put(store, again).duplicates == 2
    assert store.erase("default", ALL, span) == len(within)
    left = [e for e in long_past if e not in within]
    assert put(store, left).skipped == len(left)  # a replay
    assert walk(store) == positions(left)
    assert store.expire(T0 + 1) >= len({e.time_us // DAY_US for e in left if e.ingested_us < T0 + 1})
    assert walk(store) == positions(e for e in left if e.ingested_us >= T0 + 1)


# Life.


def test_a_new_store_has_the_expected_schema(store_factory: Callable[[], Store]) -> None:
    store = store_factory()
    assert store.check_schema() == []
    put(store, RECORDS)
    assert store.check_schema() == []
    store.close()
    assert store_factory().check_schema() == []


def test_health_names_the_store_and_counts(store: Store) -> None:
    put(store, RECORDS)
    health = store.health()
    assert health.is_reachable
    assert health.name
    assert health.records == len(RECORDS)
    assert health.size_bytes


def test_closing_keeps_what_was_appended_and_may_be_repeated(store_factory: Callable[[], Store]) -> None:
    store = store_factory()
    store.append(RECORDS)
    store.close()
    store.close()
    assert walk(store_factory()) == positions(RECORDS)


def test_readers_are_right_while_a_writer_writes(store: Store) -> None:
    put(store, [make_entry(n, T0 + n) for n in range(1, 101)])
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                page = store.search("default", ALL, Span(T0, T0 + 101), limit=1000)
                if len(page.hits) != 100 or store.count("default", ALL, Span(T0, T0 + 101)) != 100:
                    wrong.append(len(page.hits))
            except Exception as exc:
                wrong.append(exc)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(10):
        put(store, [make_entry(1_000 + n * 10 + k, T0 + (n % 3) * DAY_US + 1_000 + k) for k in range(10)])
    stop.set()
    for reader in readers:
        reader.join(30)
    assert wrong == []
    assert store.count("default", ALL) == 200
