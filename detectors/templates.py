"""Templates: fingerprints that one statement of a program wrote, merged.

A fingerprint (masks alone, stateless) tells most messages apart rightly, but no mask knows that
``session closed for user news`` and ``… for user cyrus`` come from one statement. Here fingerprints
are compared with each other, in two steps:

1. Each text is brought to *words*: placeholders become one, units and dates join their numbers,
   host names, flags and lists become placeholders, punctuation stands alone.
2. Texts of the same length that differ in one word are looked at together. Many different words
   there, or words that look like names, or a placeholder among them, make it a variable; few plain
   words do not, for ``paid`` and ``refunded`` are two statements. Two places at once are variables
   where both vary freely of each other. That repeats until nothing merges, and what fits a merged
   text in the end belongs to it.

What is learned is a function of the set of texts, whatever their order and number: so it may be
learned anew at any time, and every replay agrees. Nothing is particular to one system.

Why not Drain: it depends on the order of lines, and splits by a message's first words, so that
those with a variable first are scattered, as are all lists of different length. ARCHITECTURE.md
has the figures.

Not here: masks (the service's fingerprints), where texts come from (the caller).
"""

from __future__ import annotations

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

ANY = "<*>"
"""What stands for a variable in a template."""

Words = tuple[str, ...]

MAX_TEXTS = 4_096
_MAX_TEXT_CHARS = 512
_HOUR_US = 3_600_000_000
_MAX_WORDS = 256
_MAX_ROUNDS = 8

# How many different words make a place a variable, by what they are and where they stand.
_LEAST_NAMES = 4  # words with capitals within, dots, slashes, underscores
_LEAST_PLAIN = 6
_LEAST_USERS = 3  # after "user", "host"
_LEAST_VALUES = 4  # after "="
_LEAST_FIRST_NAMES = 8  # the first word is mostly the statement's own
_LEAST_FIRST_PLAIN = 12
_LEAST_CONTEXT = 3  # constant words around a place that holds placeholders and some word
_LEAST_PAIRS = 6
_LEAST_OF_PAIR = 4
_FREE = 1.4
"""Two places vary freely if they show so many times more pairs than words: names of states that
follow each other (``from NEW to ASSIGNED``) show hardly more."""

_PLACEHOLDER = re.compile(r"<(?:num|hex|id|ip|path|url|uuid|time|str)>")
_DOMAIN = (
    r"com|net|org|edu|gov|mil|int|io|cn|de|uk|fr|jp|ru|br|in|it|nl|au|us|eu|info|biz|local|localdomain|internal|lan"
)
# Within one word, in this order: the text that must be in it, what becomes what.
_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (ANY, re.compile(r"<(?=<\*>)"), ""),  # <1 sec
    ("@", re.compile(r"(?:[\w.+-]|<\*>)+@(?:[\w.+-]|<\*>)*(?:\w|<\*>)"), ANY),
    (":" + ANY, re.compile(r"(?<![\w.-])[\w-]+(?:\.[\w-]+)+:<\*>"), ANY),  # host:port
    (".", re.compile(rf"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:{_DOMAIN})(?![\w.-]*\w)"), ANY),
    (
        ANY,  # blk_<*>, <*>-dynamic.example
        re.compile(
            r"[\w.%+~$#-]*(?:[\w%+~$#-]<\*>|\w\.<\*>|<\*>[\w%+~$#-]|<\*>\.\w)(?:[\w.%+~$#-]|<\*>)*(?<![.])",
        ),
        ANY,
    ),
    (ANY, re.compile(r"""(?<![\w>])[-+*]?<\*>(?:[^\w\s()\[\]{}<>,;"'=]+<\*>)+"""), ANY),  # <*>/<*>
    ("", re.compile(r"(?<![\w.])(?:true|false|True|False|TRUE|FALSE|null|NULL|None|nil)(?!\w)"), ANY),
    ("", re.compile(r"(?<!\w)[a-f]{7,}(?!\w)"), ANY),  # hex that holds no digit by chance
    ("()", re.compile(r"\A\(\)"), f"({ANY})"),  # where otherwise a value stands; f() is none
    ("[]", re.compile(r"\A\[\]"), f"[{ANY}]"),
)
_TOKEN = re.compile(r"""<\*>|\.{2,}|(?:[\w$/\\@#%&*+~!?|-]|\.(?!\.|\Z|[\])},;:"']))+|[^\s\w]""")
_UNITS = frozenset(
    "B KB MB GB TB kB KiB MiB GiB K M G bytes/s KB/s MB/s ns us ms s sec secs min mins h hr hrs Hz kHz MHz GHz %".split()
)
_CALENDAR = frozenset(
    "Mon Tue Wed Thu Fri Sat Sun Monday Tuesday Wednesday Thursday Friday Saturday Sunday Jan Feb Mar Apr May Jun Jul "
    "Aug Sep Oct Nov Dec January February March April June July August September October November December".split()
)
_OWNERS = frozenset(("user", "username", "host", "hostname"))
# Bounded, so that no text makes them slow.
_REPEATED = re.compile(r"(?<!\S)((?:\S{1,64} ){1,5}?\S{1,64})(?: \1)+(?= |$)")
_LIST = re.compile(r"(?<=\[ )[^\s\[\]]+(?: , [^\s\[\]]+)+(?= \])")
_PLAIN = re.compile(r"[A-Za-z][a-z]*|[A-Z]+|[a-z]+(?:-[a-z]+)+")
# A class of errors is what an error is, never its variable: TimeoutError, UndefinedColumn: …
_ERROR = re.compile(r"(?:Error|Exception|Warning|Fault|Failure|Timeout)\Z")
_TYPE = re.compile(r"(?:[\w$]+\.)*[A-Z]\w*[a-z]\w*")


@lru_cache(maxsize=65_536)
def _split(part: str) -> Words:
    """Return the words of a part between two spaces."""
    text = _PLACEHOLDER.sub(ANY, part)
    for needle, pattern, word in _RULES:
        if needle in text:
            text = pattern.sub(word, text)
    return tuple(_TOKEN.findall(text))


@lru_cache(maxsize=65_536)
def _is_punctuation(word: str) -> bool:
    return word != ANY and not any(map(str.isalnum, word))


@lru_cache(maxsize=65_536)
def _is_type(word: str, after: str) -> bool:
    return _ERROR.search(word) is not None or (after == ":" and _TYPE.fullmatch(word) is not None)


@lru_cache(maxsize=65_536)
def _is_plain(word: str) -> bool:
    return _PLAIN.fullmatch(word) is not None


@lru_cache(maxsize=16_384)
def words(text: str) -> Words:
    """Return the words of a fingerprint's text; what follows the first 256 is left out.

    >>> " ".join(words("sent <num> KB to mail.example.com (Fri Jul <num> <time>)"))
    'sent <*> to <*> ( <*> )'
    >>> " ".join(words("deleting <id> <id>, <id>; ok=True"))
    'deleting <*> ; ok = <*>'
    """
    out: list[str] = []
    last = ""
    for part in text.split(" "):
        for word in _split(part):
            if last == ANY and (word == ANY or word in _UNITS):
                continue
            if word == ANY:
                if last in (",", ";") and len(out) > 1 and out[-2] == ANY:
                    out.pop()
                    last = ANY
                    continue
                while out and out[-1] in _CALENDAR:
                    out.pop()
                if out and out[-1] == ANY:
                    last = ANY
                    continue
            out.append(word)
            last = word
        if len(out) > _MAX_WORDS:
            out = out[:_MAX_WORDS]
            break
    is_long, has_list = len(out) > 5 and ANY in out, "[" in out and "," in out
    if is_long or has_list:
        joined = " ".join(out)
        short = _REPEATED.sub(lambda m: m[1] if ANY in m[1] else m[0], joined) if is_long else joined
        short = _LIST.sub(ANY, short) if has_list else short
        if short != joined:
            out = short.split(" ")
    return tuple(out)


class Merging:
    """Which fingerprints are of one template, learned by the hour, and when they have doubled, from all known before.

    So it is a function of when each fingerprint was first seen, to the tick; a replay agrees. At most
    4,096 fingerprints are kept; each further one is a template of its own.

    Args:
        memory: What ``encode`` returned, for going on where that was.
    """

    def __init__(self, memory: bytes | None = None) -> None:
        self.of: dict[str, str] = {}  # fingerprint → text of its template; changed in place
        self._texts: dict[str, str] = {}
        self._learned: list[str] = []
        self._hour: int | None = None
        self._is_changed = False
        if memory is not None:
            kept = json.loads(zlib.decompress(memory))
            self._hour, self._learned, self._texts = kept["hour"], kept["learned"], kept["texts"]
        self._known = Templates.learn(self._texts[id] for id in self._learned)
        self.of.update((id, self._known.of(text)) for id, text in self._texts.items())

    def add(self, texts: Mapping[str, str], cutoff_us: int) -> bool:
        """Take the texts of fingerprints seen for the first time at a tick; ticks rise.

        Returns:
            Whether it was learned anew, so that any fingerprint's template may be another.
        """
        hour = cutoff_us // _HOUR_US
        known, learned = len(self._texts), len(self._learned)
        # A history that is sent in one go need not wait for the hour.
        is_due = known > learned and (hour != self._hour or known >= 2 * learned)
        if is_due:
            self._learn()
        self._hour = hour
        for id, text in sorted(texts.items()):
            if id not in self._texts and len(self._texts) < MAX_TEXTS:
                self._texts[id] = text = text[:_MAX_TEXT_CHARS]
                self.of[id] = self._known.of(text)
                self._is_changed = True
        return is_due

    def keep(self, ids: set[str]) -> None:
        """Forget all other fingerprints, and learn from those that are left."""
        if any(id not in ids for id in self._texts):
            self._texts = {id: text for id, text in self._texts.items() if id in ids}
            self._learn()

    def _learn(self) -> None:
        self._learned = sorted(self._texts)
        self._known = Templates.learn(self._texts.values())
        self.of.clear()
        self.of.update((id, self._known.of(text)) for id, text in self._texts.items())
        self._is_changed = True

    def encode(self) -> bytes | None:
        """Return what must be kept, or ``None`` if nothing changed since the last call."""
        if not self._is_changed:
            return None
        self._is_changed = False
        kept = {"hour": self._hour, "learned": self._learned, "texts": dict(sorted(self._texts.items()))}
        return zlib.compress(json.dumps(kept, separators=(",", ":")).encode())

    @staticmethod
    def ids(memory: bytes) -> set[str]:
        """Return the fingerprints whose texts are kept in what ``encode`` returned."""
        return set(json.loads(zlib.decompress(memory))["texts"])


class Templates:
    """What was learned from fingerprints: which template a text belongs to.

    >>> known = Templates.learn(f"session closed for user {name}" for name in ("ann", "bob", "cyd"))
    >>> known.of("session closed for user dan")
    'session closed for user <*>'
    >>> known.of("session opened for user dan")
    'session opened for user dan'
    """

    def __init__(self, merged: Mapping[Words, Words], opened: Mapping[Words, Collection[int]]) -> None:
        """Take what became of the words of each text, and the places that were found to be variables."""
        self._merged = merged
        self._opened = frozenset(opened)
        places = {(len(template), tuple(sorted(at))) for template, at in opened.items()}
        self._places: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for length, at in sorted(places):
            self._places[length].append(at)

    @classmethod
    def learn(cls, texts: Iterable[str]) -> Templates:
        """Return what a set of fingerprints' texts tells, whatever their order."""
        current = {words(text) for text in texts}
        merged = {one: one for one in current}
        opened: dict[Words, set[int]] = {}
        for _ in range(_MAX_ROUNDS):
            found = _pairs_of_places(current) or _single_places(current)
            if not found:
                break
            after: dict[Words, Words] = {}
            for one, at in found.items():
                after[one] = template = _with_any(one, at)
                opened.setdefault(template, set()).update(at | opened.get(one, set()))
            merged = {one: after.get(template, template) for one, template in merged.items()}
            current = set(merged.values())
        learned = cls({}, {template: at for template, at in opened.items() if template in current})
        return cls(
            {one: learned._match(template) for one, template in merged.items()},
            {template: at for template, at in opened.items() if template in current},
        )

    def of(self, text: str) -> str:
        """Return the text of the template that a fingerprint's text belongs to: its own words if it fits none."""
        own = words(text)
        template = self._merged.get(own)
        return " ".join(self._match(own) if template is None else template)

    def _match(self, own: Words) -> Words:
        if own in self._opened:
            return own
        for at in self._places.get(len(own), ()):
            if not any(_is_punctuation(own[place]) for place in at):
                template = _with_any(own, at)
                if template in self._opened:
                    return template
        return own


def _with_any(own: Words, at: Collection[int]) -> Words:
    out = list(own)
    for place in at:
        out[place] = ANY
    return tuple(out)


def _single_places(texts: Collection[Words]) -> dict[Words, set[int]]:
    """Return, for texts that differ in one word from others, the places that are variables."""
    # A text without one word is known by the hashes of what stands before and after it.
    alike: dict[tuple[int, int, int], list[Words]] = defaultdict(list)
    for text in texts:
        after = [0] * (len(text) + 1)
        for place in range(len(text) - 1, -1, -1):
            after[place] = hash((after[place + 1], text[place]))
        before = len(text)
        for place, word in enumerate(text):
            if not _is_punctuation(word):
                alike[place, before, after[place + 1]].append(text)
            before = hash((before, word))
    found: dict[Words, set[int]] = defaultdict(set)
    for (place, _, _), group in alike.items():
        if (
            len(group) > 1
            and not _has_type(group, place)
            and _is_variable({text[place] for text in group}, group[0], place)
        ):
            for text in group:
                found[text].add(place)
    return found


def _is_variable(values: set[str], text: Words, place: int) -> bool:
    """Return whether a place that shows these words in otherwise equal texts holds a variable."""
    number = len(values)
    has_plain = any(map(_is_plain, values))
    if ANY in values:
        if not has_plain or number >= _LEAST_NAMES:
            return True
        constant = sum(word != ANY and not _is_punctuation(word) for word in text) - (text[place] != ANY)
        return constant >= _LEAST_CONTEXT
    if place == 0:
        return number >= (_LEAST_FIRST_PLAIN if has_plain else _LEAST_FIRST_NAMES)
    if text[place - 1] in _OWNERS:
        return number >= _LEAST_USERS
    if text[place - 1] == "=":
        return number >= _LEAST_VALUES
    return number >= (_LEAST_PLAIN if has_plain else _LEAST_NAMES)


def _has_type(group: Collection[Words], place: int) -> bool:
    return any(_is_type(text[place], text[place + 1] if place + 1 < len(text) else "") for text in group)


def _pairs_of_places(texts: Collection[Words]) -> dict[Words, set[int]]:
    """Return, for texts that differ in two words from others, the places that vary freely of each other."""
    alike: dict[Words, list[Words]] = defaultdict(list)  # by punctuation and placeholders
    for text in texts:
        alike[tuple(word if word == ANY or _is_punctuation(word) else "" for word in text)].append(text)
    found: dict[Words, set[int]] = defaultdict(set)
    for outline, group in alike.items():
        if len(group) < _LEAST_PAIRS:
            continue
        # A place with one word in all is no variable.
        open_places = [
            place
            for place, word in enumerate(outline)
            if word == "" and len({text[place] for text in group}) >= _LEAST_OF_PAIR
        ]
        pairs: dict[tuple[int, int, int], list[Words]] = defaultdict(list)
        for text in group:
            hashes = [hash((place, word)) for place, word in enumerate(text)]
            whole = sum(hashes)
            for index, one in enumerate(open_places):
                for other in open_places[index + 1 :]:
                    pairs[one, other, whole - hashes[one] - hashes[other]].append(text)
        for (one, other, _), members in pairs.items():
            if len(members) < _LEAST_PAIRS:
                continue
            ones, others = {text[one] for text in members}, {text[other] for text in members}
            least, most = sorted((len(ones), len(others)))
            if least < _LEAST_OF_PAIR or len(members) < _FREE * most:
                continue
            if not _has_type(members, one) and not _has_type(members, other):
                for text in members:
                    found[text] |= {one, other}
    return found
