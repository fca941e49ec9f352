"""Properties and examples of the query language: what parses to what, and where errors point."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
import tantivy
from hypothesis import given, settings
from hypothesis import strategies as st

from logsvc import regex
from logsvc.errors import QuerySyntaxError
from logsvc.fields import FIELDS, MAX_TOKEN_CHARS, WORD_FIELDS, FieldType
from logsvc.query import (
    MAX_CLAUSES,
    MAX_DEPTH,
    MAX_PATTERNS,
    MAX_QUERY_BYTES,
    And,
    Exists,
    Match,
    MatchAll,
    Node,
    Not,
    Or,
    Prefix,
    Range,
    Term,
    Words,
    fold,
    indexable,
    parse,
    render,
    tokenize,
)
from tests.support.records import DAY_US, T0

DAY = T0 // DAY_US * DAY_US


def word(*tokens: str, is_prefix: bool = False) -> Words:
    return Words(WORD_FIELDS, tokens, is_prefix)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", MatchAll()),
        ("  \t\n", MatchAll()),
        ("*", MatchAll()),
        ("Charge", word("charge")),
        ("charge failed", And((word("charge"), word("failed")))),
        ("a AND b", And((word("a"), word("b")))),
        ("a b OR c d", Or((And((word("a"), word("b"))), And((word("c"), word("d")))))),
        ("a (b OR c)", And((word("a"), Or((word("b"), word("c")))))),
        ("a (b c)", And((word("a"), word("b"), word("c")))),
        ("NOT a", Not(word("a"))),
        ("-a -(b OR c) -\"d e\"", And((Not(word("a")), Not(Or((word("b"), word("c")))), Not(word("d", "e"))))),
        ("and or not", And((word("and"), word("or"), word("not")))),
        ('"AND"', word("and")),
        ("ANDROID ORDER NOTE", And((word("android"), word("order"), word("note")))),
        ('"a b"', word("a", "b")),
        (r'"say \"hi\" \\ now"', word("say", "hi", "now")),
        ("no-such-table", word("no", "such", "table")),
        ("conn*", word("conn", is_prefix=True)),
        ("[ERROR]", word("error")),
        ("http://host:80/x", word("http", "host", "80", "x")),
        ("12:30:00", word("12", "30", "00")),
        ("std::fs::File", word("std", "fs", "file")),
        ("OperationalError: table", And((word("operationalerror"), word("table")))),
        ("/var/log", word("var", "log")),
        (r"foo\:bar", word("foo", "bar")),
        (r"a\*", word("a")),
        ("level:error", Term("log.level", "error")),
        ("LEVEL\\:error", word("level", "error")),
        ("level:WARNING", Term("log.level", "warn")),
        ("level:critical", Term("log.level", "fatal")),
        ("level:>=warn", Range("event.severity", 13, None)),
        ("level:>warn", Range("event.severity", 17, None)),
        ("level:<=warn", Range("event.severity", None, 17, True, False)),
        ("level:<warn", Range("event.severity", None, 13, True, False)),
        ("level:[info TO warn]", Range("event.severity", 9, 17, True, False)),
        ("level:err*", Prefix("log.level", "err")),
        ("task.status:success", Term("task.status", "succeeded")),
        ("service:shop", Term("service.name", "shop")),
        ("service:Shop*", Prefix("service.name", "Shop")),
        ("service:*", Exists("service.name")),
        ('service:"a b"', Term("service.name", "a b")),
        ("service:(a OR b)", Or((Term("service.name", "a"), Term("service.name", "b")))),
        ("service:(a)", Term("service.name", "a")),
        ("service:>=b", Range("service.name", "b", None)),
        ("service:[a TO b}", Range("service.name", "a", "b", True, False)),
        ("service:[* TO *]", Exists("service.name")),
        ("service:[a TO a]", Term("service.name", "a")),
        ("exception.message:boom", Words(("error.message",), ("boom",))),
        ("message:bo*", Words(("message",), ("bo",), is_prefix=True)),
        ("error.type:ValueError", Words(("error.type",), ("valueerror",))),
        ("error.type:a.b.Oops", Words(("error.type",), ("a", "b", "oops"))),
        ("error.type:Val*", Words(("error.type",), ("val",), is_prefix=True)),
        ("error.type:a.b*", Prefix("error.type", "a.b")),
        ('error.type:["A" TO "A"]', Term("error.type", "A")),
        ("pid:12", Term("process.pid", 12)),
        ("pid:-12", Term("process.pid", -12)),
        ("pid:{1 TO 5]", Range("process.pid", 1, 5, False, True)),
        ("pid:(1 OR >5)", Or((Term("process.pid", 1), Range("process.pid", 5, None, False, True)))),
        ("duration_ms:>=100", Range("event.duration", 100_000_000, None)),
        ("duration_s:<0.5", Range("event.duration", None, 500_000_000, True, False)),
        ("event.duration:>1.5s", Range("event.duration", 1_500_000_000, None, False, True)),
        ("event.duration:250", Term("event.duration", 250)),
        ("@timestamp:2026-11-22", Range("@timestamp", DAY, DAY + DAY_US, True, False)),
        ("time:>2026-11-22", Range("@timestamp", DAY + DAY_US, None)),
        ("time:<=2026-11-22", Range("@timestamp", None, DAY + DAY_US, True, False)),
        ("time:<2026-11-22", Range("@timestamp", None, DAY, True, False)),
        ("time:>=now-15m", Range("@timestamp", T0 - 900_000_000, None)),
        ("time:2026-11-22T12:00:00Z", Term("@timestamp", T0)),
        ("labels.order:17", Term("labels.order", "17")),
        ("labels.a.b:x*", Prefix("labels.a.b", "x")),
        ("labels.a:*", Exists("labels.a")),
        (r"labels.odd\ key\::v", Term("labels.odd key:", "v")),
        ('labels.é:""', Term("labels.é", "")),
        ("labels.x:(1 OR 2*)", Or((Term("labels.x", "1"), Prefix("labels.x", "2")))),
        ("cafe\u0301", word("café")),
    ],
)  # fmt: skip
def test_a_query_parses_to_its_tree_and_back(text: str, tree: Node) -> None:
    assert parse(text, T0) == tree
    assert parse(render(tree), T0 + 12_345) == tree


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("levl:error", 0, "did you mean level"),
        ("a foo:bar", 2, "labels.foo:value"),
        ("log.level:eror", 10, "did you mean error"),
        ("task.status:zzz", 12, "one of queued"),
        ("(a", 0, '"(" without ")"'),
        ("a)", 1, '")" without "("'),
        ("()", 0, "nothing between"),
        ('a "b', 2, "never closed"),
        ("a OR", 4, "ends where a word was expected"),
        ("OR a", 0, "OR where a word"),
        ("a AND AND b", 6, "AND where a word"),
        ("!!!", 0, "no letter or digit"),
        ("a && b", 2, "write AND"),
        ("*foo", 0, "may only end a word"),
        ("f*o", 1, "may only end a word"),
        ("no-such*", 0, "not one word"),
        ("/a(b/", 2, '"(" without ")"'),
        ("x /ab**/", 6, "repeated twice"),
        ("/a{9}{9}/", 5, "repeated twice"),
        ("/^a/", 1, "whole word"),
        ("/a{101}/", 2, "from 1 to 100"),
        ("/(a{50}){50}/", 1, "too many ways"),
        ("/(a|b)*a(a|b){9}/", 1, "too many ways"),
        (f"/{'a' * 301}/", 1, "at most 300"),
        ("/a|/", 3, "nothing to match"),
        (r"/\b/", 1, "means nothing"),
        ("/[z-a]/", 2, "rises"),
        (r"message:/a\.b/", 8, "matches no word"),
        ("labels.x:/a/", 9, "exact string"),
        ("pid:/1+/", 4, "no regular expression"),
        ("/a/ /b/ /c/ /d/ /e/", 16, "more than 4 regular"),
        ("service: x", 8, "has no value"),
        ("labels.x:>3", 9, "exact string"),
        ("labels.x:[1 TO 2]", 9, "exact string"),
        ("labels:x", 0, "labels.KEY"),
        ('labels."a b":x', 12, "not quoted"),
        ('"service":billing', 9, "not quoted"),
        ("message:>a", 8, "not compared"),
        ("event.original:x", 0, "cannot be searched"),
        ("pid:x", 4, "not a number"),
        ("pid:1.5", 4, "not whole"),
        ("pid:99999999999999999999", 4, "64 bits"),
        ("pid:1*", 4, "has no prefix"),
        ("pid:>=", 4, "nothing to compare"),
        ("pid:[1 TO", 4, "low and a high bound"),
        ("pid:[1 5]", 4, "expected TO"),
        ("pid:[1 TO 5", 4, 'without "]"'),
        ("pid:(1 2)", 7, "expected OR"),
        ("pid:(1 OR", 4, '"(" without ")"'),
        ("time:yesterday", 5, "cannot read the time"),
        ("time:2026-13-01", 5, "cannot read the time"),
        ("a\\", 1, "backslash"),
        ("\ud800", 0, "surrogate"),
    ],
)
def test_an_error_points_at_its_column_and_helps(text: str, position: int, says: str) -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse(text, T0)
    assert caught.value.position == position
    assert says in f"{caught.value} {caught.value.hint}"


def test_a_regex_matches_a_whole_word_in_any_case_or_a_whole_value_in_its_case() -> None:
    def pattern(text: str) -> str:
        (found,) = [node] if isinstance(node := parse(text, T0), Match) else []
        return ("words " if found.is_of_words else "value ") + regex.render(found.pattern)

    assert pattern("/Time[A-Z]ut.*/") == "words time[a-z]ut.*"
    assert pattern("error.type:/Time.*/") == "words time.*"
    assert pattern(r"error.type:/psycopg\.Time.*/") == r"value psycopg\.Time.*"
    assert pattern(r"url.path:/\/API\/v\d+\ x/") == r"value \/API\/v[0-9]+\ x"
    assert pattern("level:/WARN|err.*/") == "value warn|err.*"
    assert parse("/var/log/ x", T0) == parse('"var log" x', T0)  # a path is text
    assert parse("-/a+/ OR message:(/b/ OR c)", T0) == Or(
        (
            Not(Match(WORD_FIELDS, regex.parse("a+"), True)),
            Match(("message",), regex.parse("b"), True),
            Words(("message",), ("c",)),
        )
    )


def test_bounds_are_errors_not_crashes() -> None:
    for text in (
        "a" * (MAX_QUERY_BYTES + 1),
        "é" * (MAX_QUERY_BYTES // 2 + 1),
        "(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1),
        "NOT " * (MAX_DEPTH + 1) + "a",
        "-" * (MAX_DEPTH + 1) + "a",
        " ".join("a" * (MAX_CLAUSES + 1)),
        "pid:(" + " OR ".join("1" * (MAX_CLAUSES + 1)) + ")",
    ):
        with pytest.raises(QuerySyntaxError):
            parse(text, T0)
    assert parse("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH, T0) == word("a")


# Properties.

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_SYNTAX = st.lists(
    st.sampled_from(
        ["a", "foo", "é", "level:", "pid:", "labels.x:", "time:", "error.type:", "message:", "service:", "AND", "OR",
         "NOT", "-", "(", ")", '"', "*", ">=", "<", "[", "]", "{", "}", "TO", " ", "  ", "\\", ":", "/", "warn", "12",
         "1.5s", "2026-11-22", "now-1h", "東京", "İ", "x*", "\x00", "/", "/a.*[b-d]{2}/", "(c|d)?", "\\d+"]
    ) | _TEXT,
    max_size=12,
).map("".join)  # fmt: skip


@given(_SYNTAX)
@settings(max_examples=500)
def test_any_text_parses_to_a_tree_that_renders_back_or_is_an_error_within_it(text: str) -> None:
    try:
        tree = parse(text, T0)
    except QuerySyntaxError as error:
        position = error.position
    else:
        position = 0
        assert parse(render(tree), T0 + 99) == tree
    assert 0 <= position <= len(text)


@st.composite
def _leaves(draw: st.DrawFn) -> Node:
    """Every leaf that ``parse`` can return, for every type of field."""
    words = _TEXT.map(tokenize).filter(bool).map(tuple)
    nfc = _TEXT.map(lambda text: unicodedata.normalize("NFC", text))
    kind = draw(st.sampled_from(["word", "keyword", "label", "long", "date", "text"]))
    if kind in ("word", "text"):
        fields = WORD_FIELDS if kind == "word" else (draw(st.sampled_from(WORD_FIELDS)),)
        if draw(st.booleans()):
            text = draw(st.sampled_from(["a+", "(ab|c{2,})*d?", r"[^a-c\-é].\w{3}"]))
            return Match(fields, regex.parse(text, fold), is_of_words=True)
        tokens = draw(words)
        return Words(fields, tokens[:1], True) if draw(st.booleans()) else Words(fields, tokens)
    if kind == "keyword":
        field = draw(st.sampled_from([f.name for f in FIELDS.values() if f.type is FieldType.KEYWORD and not f.values]))
        low, high = draw(nfc), draw(nfc)
        includes_low, includes_high = draw(st.booleans()), draw(st.booleans())
        ranges = [Range(field, low, None, includes_low), Range(field, None, high, True, includes_high)]
        if low != high:
            ranges.append(Range(field, low, high, includes_low, includes_high))
        return draw(st.sampled_from([Term(field, low), Term(field, ""), Prefix(field, low), Exists(field), *ranges]))
    if kind == "label":
        field = "labels." + draw(nfc)
        return draw(st.sampled_from([Term(field, draw(nfc)), Term(field, ""), Prefix(field, draw(nfc)), Exists(field)]))
    if kind == "long":
        field = draw(st.sampled_from([f.name for f in FIELDS.values() if f.type is FieldType.LONG]))
        number = draw(st.integers(-(2**63), 2**63 - 2))
        return draw(st.sampled_from([Term(field, number), Exists(field), Range(field, number, number + 1, False)]))
    field = draw(st.sampled_from([f.name for f in FIELDS.values() if f.type is FieldType.DATE]))
    us = draw(st.integers(0, 9_214_646_400_000_000 - 2))
    return draw(st.sampled_from([Term(field, us), Exists(field), Range(field, us, us + 1, True, False)]))


def _joined(kind: type[And] | type[Or], children: list[Node]) -> Node:
    flat: list[Node] = []
    for child in children:
        flat.extend(child.children if isinstance(child, kind) else [child])
    once = tuple(dict.fromkeys(flat))
    return kind(once) if len(once) > 1 else once[0]


_TREES = st.recursive(
    _leaves(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map(lambda c: _joined(And, c)),
        st.lists(inner, min_size=2, max_size=4).map(lambda c: _joined(Or, c)),
        inner.map(Not),
    ),
    max_leaves=8,
)


def test_a_condition_said_twice_is_searched_once() -> None:
    assert parse(" ".join(["message:*"] * 200), T0) == parse("message:*", T0)
    assert parse("a OR b OR a", T0) == parse("a OR b", T0)


@given(_TREES)
@settings(max_examples=500)
def test_every_tree_survives_rendering(tree: Node) -> None:
    text = render(tree)
    if len(text.encode()) <= MAX_QUERY_BYTES and str(tree).count("Match(") <= MAX_PATTERNS:
        assert parse(text, T0) == tree


# Words.


def test_a_word_character_is_a_letter_a_number_or_an_underscore() -> None:
    pattern = re.compile(r"\w")
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        is_word = character == "_" or unicodedata.category(character)[0] in "LN"
        assert bool(pattern.match(character)) is is_word, hex(code)


def test_tantivy_makes_the_same_words_of_every_character_once_indexable() -> None:
    analyzer = (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(r"[\p{L}\p{N}_]+"))
        .filter(tantivy.Filter.lowercase())
        .build()
    )
    characters = [c for c in map(chr, range(sys.maxunicode + 1)) if not 0xD800 <= ord(c) <= 0xDFFF]
    for start in range(0, len(characters), 4096):
        text = unicodedata.normalize("NFC", " ".join(f"{c} x{c}Y" for c in characters[start : start + 4096]))
        assert analyzer.analyze(indexable(text)) == tokenize(text)


@given(_TEXT)
def test_tokens_are_words_and_folding_is_stable(text: str) -> None:
    for token in tokenize(text):
        assert re.fullmatch(r"\w+", token)
        assert fold(token) == token
        assert tokenize(token) == [token]


def test_indexable_keeps_ordinary_text_and_cuts_long_tokens() -> None:
    for text in ("plain", "Ünïcödé 東京", "x " * 20_000):
        assert indexable(text) is text
    long = "y" * (MAX_TOKEN_CHARS + 5) + " tail"
    assert tokenize(indexable(long)) == tokenize(long) == ["y" * MAX_TOKEN_CHARS, "tail"]
    assert tokenize("İSTANBUL ΟΔΟΣ") == ["istanbul", "οδοσ"]
