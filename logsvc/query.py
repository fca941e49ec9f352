"""Query: the language people type, parsed once into a tree that every store compiles.

The tree is already resolved: aliases are ECS names, values have their field's type, words are
tokens as the stores index them. A store only translates nodes, so no backend's language and no
backend's leniency can leak into the API.

Grammar, tightest first::

    primary  = "(" query ")" | field ":" value | word | "phrase" | prefix* | /regex/ | "*"
    value    = word | "phrase" | prefix* | /regex/ | "*" | (">" | ">=" | "<" | "<=") word
             | "[" low TO high "]" | "{" low TO high "}" | "(" value OR value … ")"
    unary    = ("NOT" | "-") unary | primary
    and      = unary (["AND"] unary)*        words side by side mean AND
    query    = and ("OR" and)*

A backslash takes the next character literally; within ``/regex/`` it stands before a slash or a space, and
before what regex.py says. A regex matches one whole word of a text in any case, or one whole value of a
keyword in its case; ``/a/b/``, in which a word goes on after the second slash, is text. What stands before a colon is a field only if it
looks like one, so ``http://x``, ``12:30`` and ``std::fs`` are words; so is ``Error:`` at the end
of a word unless there is a field of that name. Some fields have forms of their own:

- dates: RFC 3339, ``now-15m``, or a whole day (``@timestamp:2026-11-22``);
- ``event.duration``: nanoseconds, or with a unit (``>1.5s``); ``duration_ms`` and ``duration_s`` mean it too;
- enumerations in any case (``level:WARNING``), and ``level:>=warn`` compares severities;
- ``error.type:X`` means its words, as on text; ``error.type:["X" TO "X"]`` is exactly ``X``, and a regex
  that names a character of no word, such as a dot after a backslash, is for the whole type;
- labels are exact strings: a value, a ``prefix*`` or ``*``.

Words: text in NFC is cut into runs of letters, digits and underscore (``tokenize``), lower-cased
character by character, each cut at ``MAX_TOKEN_CHARS``. The stores' own analyzers do the same,
except for what ``indexable`` rewrites before they see it:

- ``İ`` (U+0130) is ``i`` here and in Java, ``i`` and a combining dot in Rust;
- letters younger than this Python's Unicode tables, which are no letters here;
- tokens beyond ``MAX_TOKEN_CHARS``.

Known limits of case folding, the same on both stores: ``Σ`` is always ``σ``, so ``ς`` is another
letter; ``ß`` and ``SS`` differ, as do ``ı`` and ``I``; a combining mark that NFC cannot join to
its letter separates words. A Python with other Unicode tables sees words with letters of the
newest scripts differently until they are indexed again.

Not here: how a node is searched (store/).
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import NoReturn

from logsvc import regex
from logsvc.errors import BadInput, QuerySyntaxError
from logsvc.fields import ALIASES, FIELDS, LEVELS, MAX_TOKEN_CHARS, WORD_FIELDS, Field, FieldType, resolve
from logsvc.timestamps import format_us, parse_time

MAX_QUERY_BYTES = 4096
MAX_DEPTH = 50
MAX_CLAUSES = 500
MAX_PATTERNS = 4


@dataclass(frozen=True, slots=True)
class MatchAll:
    """Every record; what the empty query means."""


@dataclass(frozen=True, slots=True)
class Words:
    """``tokens`` stand side by side, in order, in at least one of the text ``fields``.

    One token is a plain word, several are a phrase. With ``is_prefix`` (one token only) a word
    that begins with the token is enough. Tokens are never empty: text without a letter or digit
    parses to an error.
    """

    fields: tuple[str, ...]
    tokens: tuple[str, ...]
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """The keyword, label, long or date ``field`` has exactly ``value`` (dates in microseconds)."""

    field: str
    value: str | int


@dataclass(frozen=True, slots=True)
class Prefix:
    """The keyword or label ``field`` begins with ``value``."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Match:
    """Some whole word of one of the text ``fields`` matches ``pattern``; else some whole value of the one keyword."""

    fields: tuple[str, ...]
    pattern: regex.Pattern
    is_of_words: bool


@dataclass(frozen=True, slots=True)
class Exists:
    """The ``field`` has a value. For text: it has at least one word."""

    field: str


@dataclass(frozen=True, slots=True)
class Range:
    """``low`` and ``high`` bound the field; None is open. Never on text or labels.

    Keywords compare by their UTF-8 bytes, longs by value, dates in microseconds.
    """

    field: str
    low: str | int | None
    high: str | int | None
    includes_low: bool = True
    includes_high: bool = True


@dataclass(frozen=True, slots=True)
class And:
    """Every child matches; at least two children."""

    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some child matches; at least two children."""

    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The child does not match."""

    child: Node


Node = MatchAll | Words | Term | Prefix | Match | Exists | Range | And | Or | Not


# Words.

_TOKEN = re.compile(r"\w+")  # exactly [\p{L}\p{N}_] in Python: tests/unit/test_query.py holds it to that
_LONG_TOKEN = re.compile(rf"\w{{{MAX_TOKEN_CHARS + 1},}}")


def fold(text: str) -> str:
    """Return ``text`` in lower case, each character by itself.

    >>> fold("ΟΔΟΣ İ")
    'οδοσ i'
    """
    if text.isascii():
        return text.lower()
    # Python looks at a sigma's neighbours and gives İ two characters; the stores do neither.
    return text.replace("\u03a3", "\u03c3").replace("\u0130", "i").lower()


def tokenize(text: str) -> list[str]:
    """Return the words of ``text`` as the stores index and search them.

    >>> tokenize("Café: no_such-table!")
    ['café', 'no_such', 'table']
    """
    return [fold(token[:MAX_TOKEN_CHARS]) for token in _TOKEN.findall(unicodedata.normalize("NFC", text))]


def indexable(text: str) -> str:
    """Return ``text``, or what to index in its place so that a store's own analyzer finds ``tokenize(text)``.

    Nearly always the same object: only odd letters and huge tokens are rewritten.
    """
    if len(text) > MAX_TOKEN_CHARS and _LONG_TOKEN.search(text):
        return " ".join(tokenize(text))
    if not text.isascii() and any(map(_is_odd, set(text))):
        return " ".join(tokenize(text))
    return text


def _is_odd(character: str) -> bool:
    return character == "\u0130" or (character > "\x7f" and unicodedata.category(character) == "Cn")


# Parsing.

_FIELD = re.compile(r"[^\W\d][\w.\-]*|@timestamp")
_BARE_END = re.compile(r'[\s()"]')
_NEGATION = re.compile(r"-[^\s)]")
_PATTERN = re.compile(r"/((?:[^/\\\s]|\\.)+)/", re.DOTALL)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY_US = 86_400_000_000
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1

_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_NS |= {"m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_DURATION = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*(ns|us|µs|μs|ms|s|m|h|d)?")
_DURATION_NAMES = {"duration": 1, "duration_ns": 1, "duration_ms": 10**6, "duration_s": 10**9}

_SYNONYMS = {
    "log.level": {"warning": "warn", "err": "error", "critical": "fatal", "information": "info"},
    "task.status": {"success": "succeeded", "failure": "failed", "error": "failed", "timeout": "timed_out"},
}


def parse(text: str, now_us: int) -> Node:
    """Return the tree of a query; the empty query matches everything.

    Args:
        text: What was typed, at most ``MAX_QUERY_BYTES`` of UTF-8.
        now_us: What ``now`` means, in microseconds since 1970.

    Raises:
        QuerySyntaxError: With the column of the trouble and, where there is one, a hint.

    >>> parse("level:error charge*", now_us=0).children[0]
    Term(field='log.level', value='error')
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise QuerySyntaxError("the query holds half of a surrogate pair; expected Unicode text", exc.start) from exc
    if size > MAX_QUERY_BYTES:
        raise QuerySyntaxError(f"the query is {size} bytes long; at most {MAX_QUERY_BYTES} are taken", 0)
    return _Parser(text, now_us).parse()


@dataclass(frozen=True, slots=True)
class _Lexeme:
    """A word or quoted string: its text without escapes, where it begins, how it was written."""

    text: str
    position: int
    is_quoted: bool
    is_prefix: bool = False
    is_star: bool = False


class _Parser:
    """Recursive descent over the characters of one query."""

    def __init__(self, text: str, now_us: int) -> None:
        self.text = text
        self.now_us = now_us
        self.at = 0
        self.depth = 0
        self.clauses = 0
        self.patterns = 0

    def parse(self) -> Node:
        self._skip_space()
        if self.at == len(self.text):
            return MatchAll()
        node = self._query()
        if self.at < len(self.text):
            self._fail('")" without "("', self.at, "quote text that contains parentheses")
        return node

    # query, and, unary, primary

    def _query(self) -> Node:
        children = [self._and()]
        while self._take_keyword("OR"):
            children.append(self._and())
        return _join(Or, children)

    def _and(self) -> Node:
        children = [self._unary()]
        while True:
            if self._take_keyword("AND"):
                children.append(self._unary())
                continue
            self._skip_space()
            if self.at == len(self.text) or self.text[self.at] == ")" or self._peek_keyword() == "OR":
                return _join(And, children)
            children.append(self._unary())

    def _unary(self) -> Node:
        self._skip_space()
        start = self.at
        if self._take_keyword("NOT"):
            return Not(self._nested(self._unary, start))
        if _NEGATION.match(self.text, self.at):
            self.at += 1
            return Not(self._nested(self._unary, start))
        return self._primary()

    def _nested(self, rule: Callable[[], Node], position: int) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(f"nested more than {MAX_DEPTH} deep", position)
        node = rule()
        self.depth -= 1
        return node

    def _primary(self) -> Node:
        self._skip_space()
        start = self.at
        if start == len(self.text):
            self._fail("the query ends where a word was expected", start)
        if self.text[start] == ")":
            self._fail('")" where a word was expected', start, "quote text that contains parentheses")
        if self.text[start] == "(":
            return self._parenthesised(start)
        keyword = self._peek_keyword()
        if keyword is not None:
            self._fail(f"{keyword} where a word was expected", start, f'to search for the word, write "{keyword}"')
        self.clauses += 1
        if self.clauses > MAX_CLAUSES:
            self._fail(f"more than {MAX_CLAUSES} words and conditions", start)
        field_name = self._take_field()
        if field_name is not None:
            return self._field(field_name, start)
        if self.text.startswith('":', start - 1) and start:
            self._fail("a field's name is not quoted", start, r"write name:value, and a space in a label's key as \ ")
        if (found := self._take_pattern()) is not None:
            return Match(WORD_FIELDS, self._word_pattern(found), is_of_words=True)
        return self._words(WORD_FIELDS, self._lexeme())

    def _parenthesised(self, start: int) -> Node:
        self.at += 1
        self._skip_space()
        if self.text.startswith(")", self.at):
            self._fail("nothing between the parentheses", start, "quote text that contains parentheses")
        node = self._nested(self._query, start)
        self._skip_space()
        if not self.text.startswith(")", self.at):
            self._fail('"(" without ")"', start)
        self.at += 1
        return node

    # Words of text

    def _words(self, fields: tuple[str, ...], word: _Lexeme) -> Node:
        if word.is_star:
            return MatchAll()
        tokens = tuple(tokenize(word.text))
        if not tokens:
            hint = {"&&": "write AND", "||": "write OR", "!": "write NOT"}.get(word.text)
            self._fail(f"{_quoted(word.text)} has no letter or digit to search for", word.position, hint)
        if word.is_prefix and (len(tokens) > 1 or not _TOKEN.fullmatch(_nfc(word.text)[-1])):
            self._fail(
                f"{word.text}* is not one word, and only the end of a word can be left open",
                word.position,
                f"write {' '.join(tokens)}*",
            )
        return Words(fields, tokens, word.is_prefix)

    # Fields

    def _field(self, name: str, start: int) -> Node:
        scale = _DURATION_NAMES.get(name)
        field = FIELDS["event.duration"] if scale else resolve(name)
        if field is None:
            self._unknown_field(name, start)
        field = Field(_nfc(field.name), field.type, field.help) if field.type is FieldType.LABELS else field
        if field.type is FieldType.STORED:
            self._fail(f"{field.name} is kept but cannot be searched", start)
        if field.name == "labels":
            self._fail("labels needs a key", start, "write labels.KEY:value")
        return self._value(_Scope(field, scale or 1))

    def _value(self, scope: _Scope, is_listed: bool = False) -> Node:
        start = self.at
        if self._has_no_value():
            self._fail(f"{scope.field.name} has no value", start, f"write {scope.field.name}:* for any value")
        if self.text.startswith("(", start):
            if is_listed:
                self._fail("a list of values cannot hold another", start)
            return self._value_list(scope)
        if self.text[start] in "<>":
            return self._comparison(scope)
        if self.text[start] in "[{":
            return self._interval(scope)
        if (found := self._take_pattern()) is not None:
            return self._match(scope.field, found)
        value = self._lexeme()
        if value.is_star:
            return Exists(scope.field.name)
        if scope.field.type is FieldType.TEXT:
            return self._words((scope.field.name,), value)
        if scope.field.type is FieldType.KEYWORD_TEXT:
            return self._keyword_text(scope.field, value)
        if value.is_prefix:
            return self._prefix(scope.field, value)
        if scope.field.type is FieldType.DATE and _DATE.fullmatch(value.text):
            low = self._date(value)
            return Range(scope.field.name, low, low + _DAY_US, True, False)
        return Term(scope.field.name, self._typed(scope, value))

    def _value_list(self, scope: _Scope) -> Node:
        opened = self.at
        self.at += 1
        children: list[Node] = []
        while True:
            self._skip_space()
            self.clauses += 1
            if self.clauses > MAX_CLAUSES:
                self._fail(f"more than {MAX_CLAUSES} words and conditions", self.at)
            if self.at == len(self.text):
                self._fail('"(" without ")"', opened)
            children.append(self._value(scope, is_listed=True))
            self._skip_space()
            if self.text.startswith(")", self.at):
                self.at += 1
                return _join(Or, children)
            if not self._take_keyword("OR"):
                if self.at == len(self.text):
                    self._fail('"(" without ")"', opened)
                self._fail("expected OR between the values", self.at, f"write {scope.field.name}:(a OR b)")

    def _keyword_text(self, field: Field, value: _Lexeme) -> Node:
        tokens = tuple(tokenize(value.text))
        if value.is_prefix:
            if tokens == (fold(_nfc(value.text)),):
                return Words((field.name,), tokens, is_prefix=True)
            return self._prefix(field, value)
        # What equals the value has its words, so the words alone are enough.
        return Words((field.name,), tokens) if tokens else Term(field.name, _keyword(value.text))

    def _prefix(self, field: Field, value: _Lexeme) -> Node:
        if field.type in (FieldType.LONG, FieldType.DATE):
            self._fail(
                f"{field.name} is a {field.type.value}, which has no prefix",
                value.position,
                f"write a range, such as {field.name}:>={_EXAMPLES[field.type]}",
            )
        return Prefix(field.name, _keyword(fold(value.text) if field.values else value.text))

    # Patterns

    def _take_pattern(self) -> _Lexeme | None:
        """Take ``/regex/`` if that stands here: no space in it, and after it the word is over."""
        found = _PATTERN.match(self.text, self.at)
        if found is None or not _ends_word(self.text, found.end()):
            return None
        self.patterns += 1
        if self.patterns > MAX_PATTERNS:
            self._fail(f"more than {MAX_PATTERNS} regular expressions", self.at, "take them together: /(a|b)/")
        pattern = _Lexeme(found[1], self.at + 1, False)
        self.at = found.end()
        return pattern

    def _match(self, field: Field, found: _Lexeme) -> Node:
        if field.type not in (FieldType.TEXT, FieldType.KEYWORD, FieldType.KEYWORD_TEXT):
            is_label = field.type is FieldType.LABELS
            what = "an exact string: it takes a value, a prefix* or *" if is_label else f"a {field.type.value}"
            self._fail(f"{field.name} is {what}, and no regular expression", found.position - 1, _quote_it(found, "/"))
        if field.type is FieldType.TEXT:
            return Match((field.name,), self._word_pattern(found), is_of_words=True)
        pattern = self._pattern(found, fold if field.values else str)
        if field.type is FieldType.KEYWORD_TEXT and _is_of_words(pattern):
            return Match((field.name,), self._word_pattern(found), is_of_words=True)
        return Match((field.name,), pattern, is_of_words=False)

    def _word_pattern(self, found: _Lexeme) -> regex.Pattern:
        pattern = self._pattern(found, fold)
        if not _is_of_words(pattern):
            self._fail(
                f"/{found.text}/ matches no word: a word has only letters, digits and _",
                found.position - 1,
                "write one pattern for each word, with AND between them",
            )
        return pattern

    def _pattern(self, found: _Lexeme, fold: Callable[[str], str]) -> regex.Pattern:
        text = _nfc(found.text)
        try:
            return regex.parse(text, fold)
        except regex.PatternError as exc:
            self._fail(str(exc), found.position + (exc.position if text == found.text else 0), exc.hint, exc)

    # Comparisons

    def _comparison(self, scope: _Scope) -> Node:
        start = self.at
        self.at += 1
        includes = self.text.startswith("=", self.at)
        self.at += includes
        is_low = self.text[start] == ">"
        self._check_ordered(scope.field, start)
        if _ends_word(self.text, self.at) and not self.text.startswith('"', self.at):
            operator = self.text[start : self.at]
            self._fail(f"nothing to compare with after {operator}", start, f"write the value next to {operator}")
        value = self._lexeme()
        if is_low:
            return self._range(scope, value, None, includes, True)
        return self._range(scope, None, value, True, includes)

    def _interval(self, scope: _Scope) -> Node:
        start = self.at
        self._check_ordered(scope.field, start)
        includes_low = self.text[start] == "["
        self.at += 1
        low = self._bound(start)
        self._skip_space()
        if self._take_word(start).text != "TO":
            self._fail("expected TO between the bounds", start, f"write {scope.field.name}:[low TO high]")
        high = self._bound(start)
        self._skip_space()
        if not self.text.startswith(("]", "}"), self.at):
            self._fail(f'"{self.text[start]}" without "]" or "}}"', start)
        includes_high = self.text[self.at] == "]"
        self.at += 1
        if low is None and high is None:
            return Exists(scope.field.name)
        return self._range(scope, low, high, includes_low, includes_high)

    def _bound(self, start: int) -> _Lexeme | None:
        self._skip_space()
        bound = self._take_word(start)
        if bound.is_prefix:
            self._fail("a bound cannot be a prefix", bound.position)
        return None if bound.is_star else bound

    def _take_word(self, start: int) -> _Lexeme:
        """Return a bound or TO, which a closing bracket ends as a space does."""
        if self.at == len(self.text) or self.text[self.at] in "]}":
            self._fail("expected a low and a high bound", start, "write field:[low TO high], with * for an open end")
        return self._lexeme("]}")

    def _check_ordered(self, field: Field, position: int) -> None:
        if field.type is FieldType.LABELS:
            self._fail(
                f"{field.name} is an exact string: it takes a value, a prefix* or *, and is not compared", position
            )
        if field.type is FieldType.TEXT:
            self._fail(f"{field.name} is text: it takes words and phrases, and is not compared", position)

    def _range(
        self, scope: _Scope, low: _Lexeme | None, high: _Lexeme | None, includes_low: bool, includes_high: bool
    ) -> Node:
        field = scope.field
        if field.name == "log.level":
            return self._severity_range(scope, low, high, includes_low, includes_high)
        low_value = None if low is None else self._typed(scope, low)
        high_value = None if high is None else self._typed(scope, high)
        if field.type is FieldType.DATE:
            # A day is all of it: after it, up to its end.
            if low is not None and _DATE.fullmatch(low.text) and not includes_low:
                low_value, includes_low = self._date(low) + _DAY_US, True
            if high is not None and _DATE.fullmatch(high.text) and includes_high:
                high_value, includes_high = self._date(high) + _DAY_US, False
        if low_value is not None and low_value == high_value and includes_low and includes_high:
            return Term(field.name, low_value)
        return Range(
            field.name, low_value, high_value, includes_low or low_value is None, includes_high or high_value is None
        )

    def _severity_range(
        self, scope: _Scope, low: _Lexeme | None, high: _Lexeme | None, includes_low: bool, includes_high: bool
    ) -> Node:
        """Compare levels by their severity numbers; a level is the band from its number to the next level's."""
        low_number = high_number = None
        if low is not None:
            low_number = _band(str(self._typed(scope, low)))[0 if includes_low else 1]
        if high is not None:
            high_number = _band(str(self._typed(scope, high)))[1 if includes_high else 0]
        if low_number is not None and high_number is not None and low_number + 1 == high_number:
            return Term("event.severity", low_number)
        return Range("event.severity", low_number, high_number, True, high_number is None)

    # Typed values

    def _typed(self, scope: _Scope, value: _Lexeme) -> str | int:
        field = scope.field
        if field.type is FieldType.DATE:
            return self._date(value)
        if field.type is FieldType.LONG:
            return self._long(scope, value)
        return self._enumerated(field, value) if field.values else _keyword(value.text)

    def _date(self, value: _Lexeme) -> int:
        text = value.text + "T00:00:00Z" if _DATE.fullmatch(value.text) else value.text
        try:
            return parse_time(text, self.now_us)
        except (BadInput, ValueError) as exc:
            self._fail(
                f"cannot read the time {_quoted(value.text)}",
                value.position,
                "write RFC 3339, such as 2026-11-22T10:00:00Z, a day, such as 2026-11-22, or now-15m",
                exc,
            )

    def _long(self, scope: _Scope, value: _Lexeme) -> int:
        is_duration = scope.field.name == "event.duration"
        match = _DURATION.fullmatch(value.text) if value.text.isascii() or is_duration else None
        if match is None or (match[2] and not is_duration):
            example = "250ms or 1500000 (nanoseconds)" if is_duration else "a whole number"
            self._fail(f"{_quoted(value.text)} is not a number, but {scope.field.name} is", value.position, example)
        try:
            number = Decimal(match[1]) * (_NS[match[2]] if match[2] else scope.scale)
            whole = int(number)
        except (InvalidOperation, OverflowError) as exc:  # pragma: no cover - the pattern admits none
            self._fail(f"{_quoted(value.text)} is not a number", value.position, None, exc)
        if whole != number and not is_duration:
            self._fail(f"{value.text} is not whole, but {scope.field.name} is", value.position)
        if not _LONG_MIN <= whole <= _LONG_MAX:
            self._fail(f"{_quoted(value.text)} does not fit into 64 bits", value.position)
        return whole

    def _enumerated(self, field: Field, value: _Lexeme) -> str:
        wanted = fold(value.text)
        wanted = _SYNONYMS.get(field.name, {}).get(wanted, wanted)
        if wanted not in field.values:
            close = difflib.get_close_matches(wanted, field.values, n=1, cutoff=0.5)
            known = "one of " + ", ".join(field.values)
            self._fail(
                f"{field.name} is never {_quoted(value.text)}",
                value.position,
                f"did you mean {close[0]}? It is {known}" if close else f"it is {known}",
            )
        return wanted

    # Characters

    def _skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _peek_keyword(self) -> str | None:
        for keyword in ("AND", "OR", "NOT"):
            end = self.at + len(keyword)
            if self.text.startswith(keyword, self.at) and _ends_word(self.text, end):
                return keyword
        return None

    def _take_keyword(self, keyword: str) -> bool:
        self._skip_space()
        if self._peek_keyword() != keyword:
            return False
        self.at += len(keyword)
        return True

    def _take_field(self) -> str | None:
        """Take ``name:`` if one stands here and means a field, else nothing."""
        start, at, name = self.at, self.at, ""
        is_escaped = False
        while not _ends_word(self.text, at):
            if self.text[at] == ":":
                break
            if self.text[at] == "\\" and at + 1 < len(self.text):
                is_escaped, at = True, at + 1
            name += self.text[at]
            at += 1
        else:
            return None
        is_label = name.startswith("labels.")
        if not is_label and (is_escaped or not _FIELD.fullmatch(name)):
            return None
        is_known = is_label or name in _DURATION_NAMES or resolve(name) is not None
        self.at = at + 1
        if not is_known and (self.text.startswith(("//", ":"), self.at) or self._has_no_value()):
            self.at = start
            return None
        return name

    def _has_no_value(self) -> bool:
        return _ends_word(self.text, self.at) and not self.text.startswith(("(", '"'), self.at)

    def _lexeme(self, also_ends: str = "") -> _Lexeme:
        start = self.at
        if self.text[start] == '"':
            return self._quoted_lexeme()
        characters: list[str] = []
        star_at = -1
        while not _ends_word(self.text, self.at) and self.text[self.at] not in also_ends:
            character = self.text[self.at]
            if star_at >= 0:
                self._fail(
                    "* may only end a word",
                    star_at,
                    r"write the beginning of the word and *, or \* for the star itself",
                )
            if character == "\\":
                self.at += 1
                if self.at == len(self.text):
                    self._fail("a backslash ends the query", self.at - 1, r"write \\ for the backslash itself")
                character = self.text[self.at]
            elif character == "*":
                star_at = self.at
                self.at += 1
                continue
            characters.append(character)
            self.at += 1
        text = "".join(characters)
        is_star = star_at >= 0 and not text
        return _Lexeme(text, start, False, is_prefix=star_at >= 0 and not is_star, is_star=is_star)

    def _quoted_lexeme(self) -> _Lexeme:
        start = self.at
        self.at += 1
        characters: list[str] = []
        while self.at < len(self.text) and self.text[self.at] != '"':
            if self.text[self.at] == "\\" and self.at + 1 < len(self.text):
                self.at += 1
            characters.append(self.text[self.at])
            self.at += 1
        if self.at == len(self.text):
            self._fail("the quote is never closed", start, r"write \" for a quote inside quotes")
        self.at += 1
        return _Lexeme("".join(characters), start, True)

    def _unknown_field(self, name: str, start: int) -> NoReturn:
        names = [*FIELDS, *ALIASES, *_DURATION_NAMES]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}? " if close else ""
        hint += f"For an application's own attribute write labels.{name}:value; for the text itself, quote it"
        self._fail(f"there is no field {_quoted(name)}", start, hint)

    def _fail(
        self, message: str, position: int, hint: str | None = None, cause: BaseException | None = None
    ) -> NoReturn:
        raise QuerySyntaxError(f"{message} (column {position + 1})", position, hint) from cause


@dataclass(frozen=True, slots=True)
class _Scope:
    """The field whose value is being read, and how many of its units one plain number means."""

    field: Field
    scale: int = 1


_EXAMPLES = {FieldType.LONG: "10", FieldType.DATE: "now-15m"}


def _join(kind: type[And] | type[Or], children: list[Node]) -> Node:
    """Return one node of ``kind``, without a level for children of the same kind, and each child once."""
    flat: dict[Node, None] = {}
    for child in children:
        flat.update(dict.fromkeys(child.children if isinstance(child, kind) else (child,)))
    return next(iter(flat)) if len(flat) == 1 else kind(tuple(flat))


def _ends_word(text: str, at: int) -> bool:
    return at >= len(text) or _BARE_END.match(text, at) is not None


def _band(level: str) -> tuple[int, int]:
    """Return the severity numbers of a level: the first, and the first that is beyond."""
    numbers = [*LEVELS.values(), 25]
    place = list(LEVELS).index(level)
    return numbers[place], numbers[place + 1]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _keyword(text: str) -> str:
    return _nfc(text)[:MAX_TOKEN_CHARS]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quote_it(word: _Lexeme, around: str = "") -> str:
    return f"to search for the text, write {_quoted(around + word.text + around)}"


def _is_of_words(pattern: regex.Pattern) -> bool:
    return all(map(_TOKEN.fullmatch, regex.literals(pattern)))


# Rendering.


def render(node: Node) -> str:
    """Return text that parses back to ``node``, whatever ``now`` is then.

    The same tree for every tree that ``parse`` returns, one with the same meaning for others.

    >>> render(parse('level:>=warn (a OR "b c")', now_us=0))
    'event.severity:[13 TO *] (a OR "b c")'
    """
    match node:
        case MatchAll():
            return "*"
        case Words():
            return _render_words(node)
        case Term(field, value):
            if _type_of(field) is FieldType.KEYWORD_TEXT and isinstance(value, str) and tokenize(value):
                return f"{field}:[{_quoted(value)} TO {_quoted(value)}]"
            return f"{_render_name(field)}:{_render_value(field, value)}"
        case Prefix(field, value):
            return f"{_render_name(field)}:{_escaped(value)}*"
        case Match(fields, pattern):
            return _render_alternatives(fields, f"/{regex.render(pattern)}/")
        case Exists(field):
            return f"{_render_name(field)}:*"
        case Range(field, low, high, includes_low, includes_high):
            opening, closing = "[" if includes_low else "{", "]" if includes_high else "}"
            return f"{field}:{opening}{_render_value(field, low)} TO {_render_value(field, high)}{closing}"
        case And(children):
            return " ".join(
                f"({render(child)})" if isinstance(child, And | Or) else render(child) for child in children
            )
        case Or(children):
            return " OR ".join(f"({render(child)})" if isinstance(child, Or) else render(child) for child in children)
        case Not(child):
            return f"NOT ({render(child)})" if isinstance(child, And | Or) else f"NOT {render(child)}"


def _render_words(node: Words) -> str:
    text = " ".join(node.tokens)
    word = f"{text}*" if node.is_prefix else text if len(node.tokens) == 1 else f'"{text}"'
    return _render_alternatives(node.fields, word)


def _render_alternatives(fields: tuple[str, ...], word: str) -> str:
    if fields == WORD_FIELDS:
        return word
    alternatives = [f"{field}:{word}" for field in fields]
    return alternatives[0] if len(alternatives) == 1 else f"({' OR '.join(alternatives)})"


def _type_of(field_name: str) -> FieldType:
    field = resolve(field_name)
    return FieldType.KEYWORD if field is None else field.type


def _render_name(field_name: str) -> str:
    return "labels." + _escaped(field_name[len("labels.") :]) if field_name.startswith("labels.") else field_name


def _render_value(field_name: str, value: str | int | None) -> str:
    if value is None:
        return "*"
    if isinstance(value, str):
        return _quoted(value)
    return format_us(value) if _type_of(field_name) is FieldType.DATE else str(value)


def _escaped(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else f"\\{c}" for c in text)
