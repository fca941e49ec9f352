r"""Regex: the small language of patterns that every store matches alike.

What Lucene and Rust both call a regular expression differs in its operators, its escapes and what
it costs. So a pattern is parsed here, bounded here, and each store writes it down in its own
dialect (``write``). A pattern always matches the whole word or value, by code points::

    alternatives = sequence ("|" sequence)*
    sequence     = repeated+
    repeated     = single ["*" | "+" | "?" | "{n}" | "{n,}" | "{n,m}"]
    single       = "." | [set] | [^set] | "(" alternatives ")" | character
                 | \d  \w  \s  \D  \W  \S       [0-9], [0-9A-Za-z_], blanks, and all but those, as in RE2

A backslash takes any other character that is no letter or digit literally.

What always holds: a pattern that was parsed takes about ``MAX_STATES`` states of an automaton over bytes
at most, so that it is no burden on either store. Known limit: tantivy orders what it compares, so that of
patterns made to be costly one in two hundred is still too much for it alone.

Not here: what words and values are, their case, and where a pattern stands in a query (query.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

MAX_CHARS = 300
MAX_REPEAT = 100
MAX_POSITIONS = 100
MAX_STATES = 500
"""tantivy gives up at 1,000 of its own, which are a little more finely cut."""

_MAX_NESTING = 20
_LAST = 0x10FFFF
_UTF8_STATES = 7  # that a set of characters beyond ASCII takes besides its end


@dataclass(frozen=True, slots=True)
class OneOf:
    """One character of the ``ranges`` (both ends inclusive), or of all but those."""

    ranges: tuple[tuple[str, str], ...]
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other; at least two."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Any of them; at least two."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The part from ``low`` to ``high`` times; None is without end."""

    part: Pattern
    low: int
    high: int | None


Pattern = OneOf | Sequence | Alternatives | Repeat

ANY = OneOf((), is_negated=True)
"""The dot: any character, line ends too."""

_CLASSES = {
    "d": OneOf((("0", "9"),)),
    "w": OneOf((("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))),
    "s": OneOf((("\t", "\n"), ("\f", "\r"), (" ", " "))),
}
_CLASSES |= {name.upper(): OneOf(of.ranges, is_negated=True) for name, of in _CLASSES.items()}


class PatternError(ValueError):
    """The pattern cannot be read or is too costly. ``position`` is an offset into it."""

    def __init__(self, message: str, position: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.position = position
        self.hint = hint


def parse(text: str, fold: Callable[[str], str] = lambda character: character) -> Pattern:
    """Return the pattern of ``text``, each of its characters folded.

    Raises:
        PatternError: With the place of the trouble and, where there is one, a hint.

    >>> parse("[0-9]+")
    Repeat(part=OneOf(ranges=(('0', '9'),), is_negated=False), low=1, high=None)
    """
    if len(text) > MAX_CHARS:
        raise PatternError(f"the pattern has {len(text)} characters; at most {MAX_CHARS} are taken", 0)
    pattern = _Parser(text, fold).parse()
    if _positions(pattern) > MAX_POSITIONS or _states(pattern) > MAX_STATES:
        raise PatternError("the pattern has too many ways to match", 0, "repeat less, or take it apart with OR")
    return pattern


class _Parser:
    def __init__(self, text: str, fold: Callable[[str], str]) -> None:
        self.text = text
        self.fold = fold
        self.at = 0
        self.depth = 0

    def parse(self) -> Pattern:
        pattern = self._alternatives()
        if self.at < len(self.text):
            raise PatternError('")" without "("', self.at, r"write \) for the character")
        return pattern

    def _alternatives(self) -> Pattern:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return _joined(Alternatives, parts)

    def _sequence(self) -> Pattern:
        parts: list[Pattern] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated())
        if not parts:
            self._fail("nothing to match here", "write (…)? for what may be missing")
        return _joined(Sequence, parts)

    def _repeated(self) -> Pattern:
        part = self._single()
        start = self.at
        low: int
        high: int | None
        if self._take("*"):
            low, high = 0, None
        elif self._take("+"):
            low, high = 1, None
        elif self._take("?"):
            low, high = 0, 1
        elif self._take("{"):
            low, high = self._bounds(start)
        else:
            return part
        if self.at < len(self.text) and self.text[self.at] in "*+?{":
            self._fail("repeated twice", "leave one out; a pattern matches a whole word, so greed makes no difference")
        return part if (low, high) == (1, 1) else Repeat(part, low, high)

    def _bounds(self, start: int) -> tuple[int, int | None]:
        end = self.text.find("}", start)
        low, comma, high = self.text[start + 1 : end].partition(",")
        numbers = [number for number in (low, high) if number]
        if end < 0 or not low or not all(n.isascii() and n.isdigit() and len(n) < 4 for n in numbers):
            raise PatternError("a count of repetitions was expected", start, r"write {2}, {2,} or {2,5}; \{ is a brace")
        least = int(low)
        most = int(high) if high else None if comma else least
        if max(map(int, numbers)) > MAX_REPEAT or most == 0 or (most is not None and most < least):
            raise PatternError(
                f"cannot repeat {self.text[start : end + 1]}", start, f"take rising numbers from 1 to {MAX_REPEAT}"
            )
        self.at = end + 1
        return least, most

    def _single(self) -> Pattern:
        start = self.at
        character = self.text[start]
        if character == "(":
            return self._group()
        if character == "[":
            return self._set()
        if character in "*+?{":
            self._fail(f"nothing to repeat before {character}", f"write \\{character} for the character")
        if character in "^$":
            self._fail(
                f"{character} has no place here: a pattern always matches a whole word or value",
                f"leave it out, and write .* where something may follow or precede; \\{character} is the character",
            )
        self.at += 1
        if character == ".":
            return ANY
        if character == "\\":
            if self.at < len(self.text) and (found := _CLASSES.get(self.text[self.at])):
                self.at += 1
                return OneOf(tuple(sorted({self._folded(low, high) for low, high in found.ranges})), found.is_negated)
            character = self._escaped(start)
        return OneOf((self._folded(character, character),))

    def _group(self) -> Pattern:
        start = self.at
        self.at += 1
        if self.text.startswith("?", self.at):
            self._fail("groups have no options here", "write plain parentheses")
        self.depth += 1
        if self.depth > _MAX_NESTING:
            raise PatternError(f"nested more than {_MAX_NESTING} deep", start)
        pattern = self._alternatives()
        self.depth -= 1
        if not self._take(")"):
            raise PatternError('"(" without ")"', start, r"write \( for the character")
        return pattern

    def _set(self) -> Pattern:
        start = self.at
        self.at += 1
        is_negated = self._take("^")
        ranges: set[tuple[str, str]] = set()
        while not self._take("]"):
            at = self.at
            low = self._member(start, ranges)
            if low is None:
                continue
            high: str | None = low
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self._member(start, None)
            if high is None or high < low:
                raise PatternError("a range was expected that rises", at, r"write [a-z]; \- is the character")
            bounds = self._folded(low, high)
            if bounds[1] < bounds[0]:
                raise PatternError("capital letters mean small ones here, and so this range falls", at)
            ranges.add(bounds)
        if not ranges:
            raise PatternError("a set of nothing", start, r"write \[ for the character")
        return OneOf(tuple(sorted(ranges)), is_negated)

    def _member(self, start: int, ranges: set[tuple[str, str]] | None) -> str | None:
        r"""Return the next character of a set; None after a class such as ``\d``, which goes to ``ranges``."""
        if self.at == len(self.text):
            raise PatternError('"[" without "]"', start, r"write \[ for the character")
        at = self.at
        character = self.text[at]
        if character == "[":
            self._fail("a set inside a set", r"write \[ for the character")
        self.at += 1
        if character != "\\":
            return character
        name = self.text[self.at : self.at + 1]
        if ranges is not None and name in ("d", "w", "s"):
            self.at += 1
            ranges.update(self._folded(low, high) for low, high in _CLASSES[name].ranges)
            return None
        return self._escaped(at)

    def _escaped(self, start: int) -> str:
        if self.at == len(self.text):
            raise PatternError("nothing follows the backslash", start, "write \\\\ for the backslash itself")
        character = self.text[self.at]
        if character.isalnum():
            raise PatternError(f"\\{character} means nothing here", start, r"known are \d, \w, \s and \D, \W, \S")
        self.at += 1
        return character

    def _folded(self, low: str, high: str) -> tuple[str, str]:
        return self.fold(low), self.fold(high)

    def _take(self, character: str) -> bool:
        if not self.text.startswith(character, self.at):
            return False
        self.at += 1
        return True

    def _fail(self, message: str, hint: str | None = None) -> NoReturn:
        raise PatternError(message, self.at, hint)


def _joined(kind: type[Sequence] | type[Alternatives], parts: list[Pattern]) -> Pattern:
    flat: list[Pattern] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, kind) else (part,))
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


# Writing.


def write(
    pattern: Pattern, escape: Callable[[str], str], any_character: str = ".", *, is_escaped_start: bool = True
) -> str:
    """Return ``pattern`` in a dialect.

    Args:
        pattern: As ``parse`` returned it.
        escape: Makes of any character what stands for it literally, in a set and outside.
        any_character: What stands for any character, line ends too.
        is_escaped_start: Whether a range may begin with an escaped character; otherwise such are written one by one.
    """

    def member(low: str, high: str) -> str:
        singles = ""
        while low < high and not is_escaped_start and escape(low) != low:
            singles += escape(low)
            low = chr(ord(low) + 1)
        return singles + (escape(low) if low == high else f"{escape(low)}-{escape(high)}")

    def inner(part: Pattern, is_whole: bool) -> str:
        match part:
            case OneOf((), True):
                return any_character
            case OneOf(((low, high),), False) if low == high:
                return escape(low)
            case OneOf(ranges, is_negated):
                members = "".join(member(low, high) for low, high in ranges)
                return f"[{'^' if is_negated else ''}{members}]"
            case Sequence(parts):
                text = "".join(inner(each, isinstance(each, Repeat)) for each in parts)
                return text if is_whole else f"({text})"
            case Alternatives(parts):
                text = "|".join(inner(each, is_whole=True) for each in parts)
                return text if is_whole else f"({text})"
            case Repeat(part, low, high):
                counts = {(0, None): "*", (1, None): "+", (0, 1): "?", (low, low): f"{{{low}}}"}
                count = counts.get((low, high), f"{{{low},{'' if high is None else high}}}")
                text = inner(part, is_whole=False) + count
                return text if is_whole else f"({text})"

    return inner(pattern, is_whole=True)


def render(pattern: Pattern) -> str:
    """Return the text that parses back to ``pattern``.

    >>> render(parse("(timed?|[a-z]{2,})_out"))
    '(timed?|[a-z]{2,})_out'
    """
    return write(pattern, lambda character: character if character.isalnum() or character == "_" else f"\\{character}")


def literals(pattern: Pattern) -> Iterator[str]:
    """Yield every character that stands for itself, outside of sets."""
    match pattern:
        case OneOf(((low, high),), False) if low == high:
            yield low
        case Sequence(parts) | Alternatives(parts):
            for part in parts:
                yield from literals(part)
        case Repeat(part):
            yield from literals(part)


# What it costs.


def _positions(pattern: Pattern) -> int:
    """Return how many characters the pattern has once its repetitions are written out."""
    match pattern:
        case OneOf():
            return 1
        case Sequence(parts) | Alternatives(parts):
            return sum(map(_positions, parts))
        case Repeat(part, low, high):
            return _positions(part) * max(low, 1 if high is None else high)


class _Automaton:
    """The positions of a pattern, as bits, and which may follow which (Glushkov, 1961)."""

    def __init__(self) -> None:
        self.sets: list[OneOf] = []
        self.follow: list[int] = []

    def add(self, pattern: Pattern) -> tuple[bool, int, int]:
        """Return whether the pattern may match nothing, its first positions and its last ones."""
        match pattern:
            case OneOf():
                self.sets.append(pattern)
                self.follow.append(0)
                bit = 1 << (len(self.sets) - 1)
                return False, bit, bit
            case Alternatives(parts):
                found = [self.add(part) for part in parts]
                firsts = lasts = 0
                for _, first, last in found:
                    firsts, lasts = firsts | first, lasts | last
                return any(is_empty for is_empty, _, _ in found), firsts, lasts
            case Sequence(parts):
                return self._chain([self.add(part) for part in parts])
            case Repeat(part, low, high):
                copies = [self.add(part) for _ in range(max(low, 1 if high is None else high))]
                if high is None:
                    _, first, last = copies[-1]
                    self._connect(last, first)
                return self._chain([(is_empty or n >= low, f, la) for n, (is_empty, f, la) in enumerate(copies)])

    def _chain(self, parts: list[tuple[bool, int, int]]) -> tuple[bool, int, int]:
        is_empty, first, last = parts[0]
        for next_empty, next_first, next_last in parts[1:]:
            self._connect(last, next_first)
            first |= next_first if is_empty else 0
            last = next_last | (last if next_empty else 0)
            is_empty = is_empty and next_empty
        return is_empty, first, last

    def _connect(self, lasts: int, firsts: int) -> None:
        for position in _bits(lasts):
            self.follow[position] |= firsts


def _states(pattern: Pattern) -> int:
    """Return about how many states a deterministic automaton over UTF-8 has; a little beyond the bound at most."""
    automaton = _Automaton()
    _, first, _ = automaton.add(pattern)
    edges = {0, 0x80}
    for of in automaton.sets:
        for low, high in of.ranges:
            edges |= {ord(low), ord(high) + 1}
    atoms = []  # the positions that take the characters from one edge to the next
    for edge in sorted(edges - {_LAST + 1}):
        taken = sum(1 << n for n, of in enumerate(automaton.sets) if _takes(of, edge))
        atoms.append((edge >= 0x80, taken))
    atoms = list(dict.fromkeys(atoms))
    seen, pending, cost = {first}, [first], 0
    while pending and cost <= MAX_STATES:
        state = pending.pop()
        cost += 1 + _UTF8_STATES * any(is_wide and state & taken for is_wide, taken in atoms)
        for _, taken in atoms:
            reached = 0
            for position in _bits(state & taken):
                reached |= automaton.follow[position]
            # What has been matched decides whether the end is reached, so it tells states apart.
            key = reached | (state & taken) << len(automaton.sets)
            if state & taken and key not in seen:
                seen.add(key)
                pending.append(reached)
    return cost


def _takes(of: OneOf, code: int) -> bool:
    return of.is_negated is not any(ord(low) <= code <= ord(high) for low, high in of.ranges)


def _bits(number: int) -> Iterator[int]:
    while number:
        yield (number & -number).bit_length() - 1
        number &= number - 1
