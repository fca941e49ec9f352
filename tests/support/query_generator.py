"""Records and queries over all of Unicode, from a seed: the same seed, the same cases.

Half of the queries are built from what the records hold, so that they have hits; the other half
from nothing, or from something almost the same (another case, another normal form, cut short).
Queries are written as people type them and parsed, so the parser is on the path too; only what
exceeds the length of a query is built as a tree.

``CASES`` names every form of the grammar with every type of field that it takes.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from logsvc.errors import QuerySyntaxError
from logsvc.fields import LEVELS, MAX_TOKEN_CHARS, TASK_STATUSES, FieldType, resolve
from logsvc.matching import Candidate
from logsvc.query import MAX_QUERY_BYTES, Node, Words, parse
from logsvc.records import Entry
from tests.support.records import T0, make_entry, rfc3339

NOW_US = T0 + 3_600_000_000

ODD_WORDS = (
    "İstanbul", "ıI", "ΟΔΟΣ", "ὈΔΥΣΣΕΎΣ", "straße", "STRASSE", "ẞ", "ſtop", "\u212a", "Å", "ﬁn", "ǅ", "Ǆ", "ŉ", "ǰ",
    "Ა", "Ꭰ", "ꭰ", "\U00010400", "\U0001e900", "x\u0301", "e\u0323\u0302", "q\u0307", "\u0345a", "क्षत्रिय", "தமிழ்", "ไทย", "한국어",
    "東京", "々", "ー", "٣", "೬", "²", "Ⅷ", "ⅷ", "½", "〇", "\U0001d7d8", "ª", "_", "__x__", "a_b", "9", "a\u200db", "a\u00adb", "\ufeffa",
    "a\u0000b", "a\u001fb", "👩‍👧", "🇩🇪", "1️⃣", "☃", "\ue000", "\U00020000", "\U000e0041", "a\u2028b", "a\u0085b", "don't", "x-y", "x.y",
    "\U0001c8a5", "\U00010d6f", "\U0001e5d0", "\u1c89", "\ua7cb",  # letters of Unicode 15 and 16: unknown to some tables
)  # fmt: skip

TEXTS = ("message", "error.message", "error.stack_trace")
KEYWORDS = ("service.name", "url.path", "host.name", "tags", "task.name", "log.level", "task.status", "service.version")
FREE_KEYWORDS = tuple(name for name in KEYWORDS if name not in ("log.level", "task.status"))
LONGS = ("process.pid", "event.duration", "http.response.status_code", "log.offset")
DATES = ("@timestamp", "event.ingested", "event.created", "task.scheduled_at", "task.deadline")
LABEL_KEYS = ("k", "a.b", "a", "größe", "x y", "東", 'q"\\:(', "we*ird", "UPPER", "n")

FIELDS: dict[FieldType, tuple[str, ...]] = {
    FieldType.TEXT: TEXTS,
    FieldType.KEYWORD_TEXT: ("error.type",),
    FieldType.KEYWORD: KEYWORDS,
    FieldType.LONG: LONGS,
    FieldType.DATE: DATES,
    FieldType.LABELS: tuple(f"labels.{key}" for key in LABEL_KEYS),
}

_ORDERED = (FieldType.KEYWORD_TEXT, FieldType.KEYWORD, FieldType.LONG, FieldType.DATE)
_MATCHED = (FieldType.TEXT, FieldType.KEYWORD_TEXT, FieldType.KEYWORD)
_PREFIXED = (FieldType.TEXT, FieldType.KEYWORD_TEXT, FieldType.KEYWORD, FieldType.LABELS)

CASES: tuple[tuple[str, FieldType | None], ...] = (
    ("all", None),
    *[(form, None) for form in ("word", '"phrase"', "prefix*", "/regex/", "long token")],
    *[("field:value", kind) for kind in FIELDS],
    *[('field:"value"', kind) for kind in FIELDS],
    *[("field:prefix*", kind) for kind in _PREFIXED],
    *[("field:/regex/", kind) for kind in _MATCHED],
    *[("field:*", kind) for kind in FIELDS],
    *[("field:>value", kind) for kind in _ORDERED],
    *[("field:[a TO b]", kind) for kind in _ORDERED],
    *[("field:{a TO b}", kind) for kind in _ORDERED],
    *[("field:(a OR b)", kind) for kind in FIELDS],
    *[(form, kind) for form in ("AND", "OR", "NOT", "( )") for kind in (*FIELDS, None)],
)


@dataclass(frozen=True, slots=True)
class Case:
    """One query: the form and the type that it stands for, as typed (None if too long), and its tree."""

    form: str
    type: FieldType | None
    text: str | None
    node: Node


@cache
def _letters() -> tuple[dict[str, list[str]], list[str]]:
    """Return every code point but surrogates by its general category; private and unassigned ones thinned out."""
    by_category: dict[str, list[str]] = {}
    for number in range(0x110000):
        category = unicodedata.category(chr(number))
        if category == "Cs" or (category in ("Co", "Cn") and number % 257):
            continue
        by_category.setdefault(category, []).append(chr(number))
    return by_category, sorted(by_category)


class Generator:
    """Makes records, and then cases over them."""

    def __init__(self, seed: int, tenant: str = "default") -> None:
        self.rng = random.Random(seed)
        self.tenant = tenant
        self.records: list[Candidate] = []
        self.replaced = 0
        """Letters taken out of ``error.type`` because Python's Unicode tables do not know them yet: its words are
        split by Elasticsearch's own tables, the one known difference (logsvc/store/elastic.py)."""
        self._by_field: dict[str, list[Candidate]] = {}
        self._focus: Candidate | None = None  # Whose values the parts of a conjunction share, or it would have no hits.

    # Records

    def make_records(self, n: int) -> list[Entry]:
        """Return ``n`` records over a few days, in Unicode's form NFC as ingest leaves them."""
        entries = [self._entry(seq) for seq in range(1, n + 1)]
        self.records = [Candidate(entry.source) for entry in entries]
        for stored in self.records:
            for name in self._names(stored):
                self._by_field.setdefault(name, []).append(stored)
        return entries

    def _names(self, stored: Candidate) -> list[str]:
        return [*stored.source, *(f"labels.{key}" for key in stored.source.get("labels", ()))]

    def _entry(self, seq: int) -> Entry:
        rng = self.rng
        fields: dict[str, Any] = {}
        for name in ("error.message", "error.stack_trace"):
            if rng.random() < 0.4:
                fields[name] = self._text()
        if rng.random() < 0.6:
            name = _nfc(rng.choice((self._keyword(), f"app.errors.{self._word()}Error", "KeyError")))
            fields["error.type"] = "".join(c for c in name if unicodedata.category(c) != "Cn")
            self.replaced += len(name) - len(fields["error.type"])
        for name in ("url.path", "host.name", "task.name", "service.version"):
            if rng.random() < 0.6:
                fields[name] = self._keyword()
        if rng.random() < 0.4:
            fields["tags"] = [self._keyword() for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.5:
            fields["task.status"] = rng.choice(TASK_STATUSES)
        for name in LONGS:
            if rng.random() < 0.5:
                fields[name] = self._long()
        for name in ("event.created", "task.scheduled_at", "task.deadline"):
            if rng.random() < 0.4:
                fields[name] = rfc3339(self._time(), rng.choice((0, 1, 999)))
        labels = {key: self._keyword() for key in LABEL_KEYS if rng.random() < 0.3}
        return make_entry(
            seq,
            T0 + rng.choice((0, 86_400_000_000)) + rng.choice((0, 1, rng.randrange(40_000_000_000))),
            _nfc(self._text()),
            tenant=self.tenant,
            ingested_us=self._time(),
            level=rng.choice(tuple(LEVELS)),
            service=self._keyword() or "s",
            labels={_nfc(key): value for key, value in labels.items()},
            **fields,
        )

    def _time(self) -> int:
        rng = self.rng
        return rng.choice(
            (T0, T0 + 1, T0 + rng.randrange(10**9), T0 - rng.randrange(10**15), T0 + rng.randrange(10**14))
        )

    def _long(self) -> int:
        rng = self.rng
        spread = rng.randrange(-(10**12), 10**12)
        return rng.choice((0, 1, -1, 200, 500, rng.randrange(100), spread, 2**53 + 1, 2**63 - 1, -(2**63)))

    def _letter(self) -> str:
        by_category, names = _letters()
        return self.rng.choice(by_category[self.rng.choice(names)])

    def _word(self) -> str:
        rng = self.rng
        kind = rng.randrange(8)
        if kind < 3:
            return rng.choice(("connection", "Refused", "charge_failed", "db", "timeout", "order", "17", "User"))
        if kind < 5:
            return rng.choice(ODD_WORDS)
        if kind == 5:
            by_category, _ = _letters()
            alphabet = by_category[rng.choice(("Lu", "Ll", "Lt", "Lo", "Lm", "Nd", "Nl", "No"))]
            return "".join(rng.choices(alphabet, k=rng.randrange(1, 6)))
        return "".join(
            self._letter() if rng.random() < 0.4 else rng.choice("abcXYZ019_") for _ in range(rng.randrange(1, 7))
        )

    def _text(self) -> str:
        rng = self.rng
        if rng.random() < 0.02:
            return _nfc(rng.choice(("", "!!!", " \t\n", "\u0301", "…", "🎉🎉")))
        words = [self._word() for _ in range(rng.randrange(1, 12))]
        if rng.random() < 0.01:
            words.append(self._long_token())
        return _nfc(rng.choice((" ", " ", "-", ": ", "\n", "\u3000", "/")).join(words))

    def _long_token(self) -> str:
        rng = self.rng
        letter = rng.choice(("a", "é", "東", "\U00010428", "İ", "Ω", "9"))
        return letter * rng.choice((MAX_TOKEN_CHARS - 1, MAX_TOKEN_CHARS, MAX_TOKEN_CHARS + 1, 32_766, 33_000)) + "z"

    def _keyword(self) -> str:
        rng = self.rng
        if rng.random() < 0.01:
            return rng.choice(("", " ", "*", "p" * 8_191, "東" * 8_191, "p" * 8_192))
        return _nfc(
            rng.choice(("", "/", "a ", "app.")) + self._word() + rng.choice(("", "", ".x", " y", "*", "\\", '"'))
        )

    # Queries

    def make_case(self, form: str, kind: FieldType | None) -> Case:
        """Return a case of this form; what the parser refuses is made anew, since both stores would refuse it."""
        while True:
            if form == "long token":
                return Case(form, kind, None, self._long_case())
            text = self._query(form, kind)
            if len(text.encode()) > MAX_QUERY_BYTES:
                continue
            try:
                return Case(form, kind, text, parse(text, NOW_US))
            except QuerySyntaxError:
                continue

    def _long_case(self) -> Node:
        rng = self.rng
        field, tokens = rng.choice(self._long_tokens())
        token = rng.choice(tokens)
        if rng.random() < 0.5:
            return Words((field,), (token[: rng.choice((100, MAX_TOKEN_CHARS - 1, MAX_TOKEN_CHARS))],), is_prefix=True)
        at = tokens.index(token)
        return Words((field,), tuple(tokens[max(0, at - 1) : at + 1]) if rng.random() < 0.5 else (token,))

    @cache  # noqa: B019 - a generator lives as long as its test
    def _long_tokens(self) -> list[tuple[str, list[str]]]:
        found = [(name, stored.tokens(name)) for stored in self.records for name in TEXTS]
        return [(name, tokens) for name, tokens in found if any(len(token) > 8_000 for token in tokens)]

    def _query(self, form: str, kind: FieldType | None) -> str:
        if form in _FREE:
            return _FREE[form](self)
        if form == "AND":
            self._focus = self.rng.choice(self._by_field[self.rng.choice(FIELDS[kind])] if kind else self.records)
            query = self.rng.choice((" AND ", " AND ", " ")).join([self._leaf(kind), self._leaf(self._any_type())])
            self._focus = None
            return query
        if form == "OR":
            others = [self._leaf(self._any_type()) for _ in range(self.rng.randrange(1, 3))]
            return " OR ".join([self._leaf(kind), *others])
        if form == "NOT":
            return self.rng.choice(("NOT ", "-")) + self._leaf(kind)
        if form == "( )":
            inner = f"({self._leaf(kind)} OR {self._leaf(self._any_type())})"
            return f"{inner} {self.rng.choice(('AND', 'OR', 'AND NOT'))} ({self._leaf(kind)} {self._leaf(kind)})"
        assert kind is not None
        return self._field_query(form, kind)

    def _any_type(self) -> FieldType | None:
        return self.rng.choice((*FIELDS, None))

    def _leaf(self, kind: FieldType | None) -> str:
        forms = [
            form for form, of in CASES if of is kind and form not in ("AND", "OR", "NOT", "( )", "all", "long token")
        ]
        return self._query(self.rng.choice(forms), kind)

    def _field_query(self, form: str, kind: FieldType) -> str:
        rng = self.rng
        names = FIELDS[kind]
        if self._focus is not None:
            names = tuple(name for name in names if name in self._names(self._focus)) or names
        name = rng.choice(names)
        if form in ("field:>value", "field:[a TO b]", "field:{a TO b}") and name == "task.status":
            name = "log.level"
        typed = self._field_name(name)
        match form:
            case "field:value":
                return f"{typed}:{_bare(self._value(name))}"
            case 'field:"value"':
                return f"{typed}:{_quoted(self._value(name, is_phrase=True))}"
            case "field:prefix*":
                value = self._value(name)
                return f"{typed}:{_bare(value[: rng.randrange(1, len(value) + 1)] if value else 'a')}*"
            case "field:/regex/":
                return f"{typed}:{self._pattern(self._value(name))}"
            case "field:*":
                return f"{typed}:*"
            case "field:>value":
                return f"{typed}:{rng.choice(('>', '>=', '<', '<='))}{_quoted(self._value(name))}"
            case "field:(a OR b)":
                values = [_quoted(self._value(name)) for _ in range(rng.randrange(2, 5))]
                return f"{typed}:({' OR '.join(values)})"
        low, high = (rng.choice(("*", *[_quoted(self._value(name))] * 5)) for _ in range(2))
        opening, closing = ("[", rng.choice("]}")) if "[" in form else ("{", rng.choice("}]"))
        return f"{typed}:{opening}{low} TO {high}{closing}"

    def _field_name(self, name: str) -> str:
        if name.startswith("labels."):
            return "labels." + _bare(name.removeprefix("labels."))
        found = resolve(name)
        assert found is not None
        return self.rng.choice((name, name, *found.aliases))

    def _value(self, name: str, *, is_phrase: bool = False) -> str:
        """Return a value of the field, its words if it is text: usually one that some record has, or nearly."""
        rng = self.rng
        holders = self._by_field.get(name)
        if self._focus is not None and name in self._names(self._focus):
            holders = [self._focus]
        if name in LONGS:
            value = rng.choice(holders).source[name] if holders and rng.random() < 0.7 else self._long()
            return str(min(max(value + rng.choice((0, 0, 1, -1)), -(2**63)), 2**63 - 1))
        if name in DATES:
            text = rng.choice(holders).source[name] if holders and rng.random() < 0.7 else rfc3339(self._time(), 0)
            return str(rng.choice((text, text[:26] + "Z", text[:10], rfc3339(self._time()), "now-15m")))
        if not holders or rng.random() < 0.2:
            return self._word()
        stored = rng.choice(holders)
        if name.startswith("labels."):
            return self._nearly(stored.source["labels"][name.removeprefix("labels.")], 0.1)
        if name in TEXTS or (name == "error.type" and rng.random() < 0.5):
            tokens = stored.tokens(name)
            if not tokens:
                return "x"
            at = rng.randrange(len(tokens))
            return self._nearly(" ".join(tokens[at : at + (rng.randrange(1, 5) if is_phrase else 1)]), 0.4)
        value = stored.source[name]
        return self._nearly(rng.choice(value) if isinstance(value, list) else value, 0.1)

    def _pattern(self, text: str) -> str:
        """Return a regex that matches ``text``, or nearly."""
        rng = self.rng
        text = text[:60]
        parts = []
        for character in text:
            literal = character if character.isalnum() else f"\\{character}"
            other = rng.choice("ab0é")
            number = ord(character)
            near = (
                f"[{literal}-{chr(number + 3)}]" if character.isalnum() and number < 0xD000 else f"[{literal}{other}]"
            )
            parts.append(
                rng.choice(
                    (
                        *[literal] * 10, ".", f"[^{other}]", near, f"{literal}+", f"{literal}{{1,3}}", f"({literal}|{other})",
                        f"({other}{literal})?{literal}", rf"[\w\s{literal}]", r"\S", f"{other}*{literal}",
                    )
                )
            )  # fmt: skip
        cut = rng.randrange(len(parts) + 1)
        shapes = ("".join(parts), "".join(parts[:cut]) + ".*", ".*" + "".join(parts[cut:]), "|".join(("x", *parts)))
        return f"/{rng.choice(shapes)}/"

    def _nearly(self, text: str, chance: float) -> str:
        rng = self.rng
        if rng.random() >= chance:
            return text
        changes: Sequence[Callable[[str], str]] = (
            str.upper, str.lower, str.title, str.swapcase, str.casefold,
            lambda t: unicodedata.normalize("NFD", t), lambda t: unicodedata.normalize("NFKC", t),
            lambda t: t[: rng.randrange(1, len(t) + 1)] if t else t, lambda t: t + "x", lambda t: t[::-1],
        )  # fmt: skip
        return rng.choice(changes)(text)

    def _words_of_some_record(self, n: int) -> str:
        return self._value(self.rng.choice((*TEXTS, "message", "error.type")), is_phrase=n > 1)


def _prefix(generator: Generator) -> str:
    word = generator._words_of_some_record(1) or "a"
    return _bare(word[: generator.rng.randrange(1, len(word) + 1)]) + "*"


_FREE: dict[str, Callable[[Generator], str]] = {
    "all": lambda generator: generator.rng.choice(("", " ", "*")),
    "word": lambda generator: _bare(generator._words_of_some_record(1)),
    '"phrase"': lambda generator: _quoted(generator._words_of_some_record(3)),
    "prefix*": _prefix,
    "/regex/": lambda generator: generator._pattern(generator._words_of_some_record(1)),
}


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bare(text: str) -> str:
    """Return the text with a backslash before all that could mean something."""
    return "".join(c if c.isalnum() or c in "._/" else "\\" + c for c in text) if text else '""'
