"""Multiline: lines that belong to one record, joined; and what a stack says, read back from its text.

An exception is one event, but a file holds it as many lines. A ``Joiner`` is fed the lines of one
stream and gives back records: a log line with the stack that follows it, or a bare stack. Python
tracebacks are known, with chained causes, exception groups and messages of several lines; another
language is one more class with ``begins`` and ``continues`` in ``_STACKS``.

What always holds: no line is lost or changed, order is kept, and a record is bounded in lines and
characters (the rest starts a new one). State is only what is held back: at most one record.

Not here: where lines come from (tail.py), what else a line says (lines.py). Standard library only,
since the service joins lines with it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Optional, Protocol, TypeVar

MAX_LINES = 2000
MAX_CHARS = 256 * 1024

T = TypeVar("T")

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_GROUP_END = re.compile(r"\s*\+-{10,}$")
# What libraries append to an exception's message on lines of their own: SQLAlchemy, psycopg.
_MESSAGE_GOES_ON = ("[SQL:", "[parameters:", "[generated in", "(Background on this error", "DETAIL:", "HINT:", "LINE ")
_HEAD = re.compile(
    r"[\[(<\"' ]{0,2}(?:"
    r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d"  # 2024-12-25 13:00, also with slashes
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"  # Dec 25 13:00:00
    r"|\d\d:\d\d:\d\d[.,\s]"
    r"|(?:TRACE|DEBUG|INFO|NOTICE|SUCCESS|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|\{\s*\")"
)
_CALM = re.compile(r"\b(?:TRACE|DEBUG|INFO|SUCCESS|trace|debug|info)\b")


def begins_record(line: str) -> bool:
    """Tell whether a line looks like the first of a record: a time, a level or a JSON object.

    >>> [begins_record(line) for line in ("2024-12-25 13:00:00,123 ERROR x", "ERROR:root:x", "ValueError: x")]
    [True, True, False]
    """
    return _HEAD.match(line) is not None


class _Stack(Protocol):
    """A stack that has begun. Subclasses of one language each; one instance a stack."""

    @staticmethod
    def begins(line: str) -> bool:
        """Tell whether a stack of this language begins with ``line``."""

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        """Tell whether ``line`` (never blank) belongs to the stack, and remember where it stands.

        Args:
            line: The next line.
            is_after_blank: Whether blank lines came between.
            has_head: Whether the record began with a line that ``begins_record``, so that in this
                stream a line that does not is a continuation.
        """


class _PythonStack:
    """A traceback: frames, then the line of the exception, then perhaps another by chaining."""

    def __init__(self) -> None:
        self._is_in_frames = True
        self._is_chained = False

    @staticmethod
    def begins(line: str) -> bool:
        return line.rstrip().endswith(_TRACEBACK)

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        text = line.rstrip()
        if self._is_in_frames:
            if line[0] in " \t|+":
                if _GROUP_END.match(text):
                    self._is_in_frames = False
                return True
            self._is_in_frames = False
            return not begins_record(line)
        if text in _CHAINED:
            self._is_chained = True
            return True
        if self.begins(line):
            if self._is_chained:
                self._is_in_frames, self._is_chained = True, False
                return True
            return False
        if begins_record(line):
            return False
        return has_head or (not is_after_blank and (line[0] in " \t" or text.startswith(_MESSAGE_GOES_ON)))


_STACKS: tuple[type[_PythonStack], ...] = (_PythonStack,)


@dataclass(frozen=True)
class Joined(Generic[T]):
    """A record: its lines joined with line feeds, and the mark of its first line."""

    text: str
    mark: T


class Joiner(Generic[T]):
    r"""Joins the lines of one stream.

    >>> joiner = Joiner()
    >>> lines = [
    ...     "ERROR it broke",
    ...     "Traceback (most recent call last):",
    ...     '  File "a.py", line 1',
    ...     "KeyError: 1",
    ...     "INFO on",
    ... ]
    >>> [joined.text for line in lines for joined in joiner.feed(line, None)]
    ['ERROR it broke\nTraceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1']
    >>> [joined.text for joined in joiner.flush()]
    ['INFO on']
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._chars = 0
        self._mark: Optional[T] = None
        self._stack: _Stack | None = None
        self._has_head = False
        self._blanks: list[tuple[str, T]] = []  # they belong to the record only if what follows them does

    @property
    def is_holding(self) -> bool:
        """Whether a record waits to see how it goes on."""
        return bool(self._lines)

    @property
    def held_mark(self) -> T | None:
        """The mark of the first line held back; None if there is none."""
        return self._mark if self._lines else None

    def feed(self, line: str, mark: T) -> list[Joined[T]]:
        """Take the next line, without its line feed; return the records that it completes, oldest first.

        Args:
            line: The line.
            mark: Anything; a record carries the mark of its first line.
        """
        if not self._lines:
            self._begin(line, mark)
            return []
        if self._stack is not None:
            if not line.strip():
                if len(self._lines) + len(self._blanks) < MAX_LINES:
                    self._blanks.append((line, mark))
                    return []
            elif self._has_room(line) and self._stack.continues(
                line, is_after_blank=bool(self._blanks), has_head=self._has_head
            ):
                self._append([blank for blank, _ in self._blanks])
                self._blanks.clear()
                self._append([line])
                return []
        elif self._is_begun_by(line) and line.startswith((_TRACEBACK, " ", "\t")) and self._may_own_stack():
            self._append([line])
            return []
        completed = self.flush()
        self._begin(line, mark)
        return completed

    def flush(self) -> list[Joined[T]]:
        """Return what is held back: at the end of the stream, or after a pause."""
        completed: list[Joined[T]] = []
        if self._lines:
            completed.append(Joined("\n".join(self._lines), self._mark))  # type: ignore[arg-type]
        completed += [Joined(line, mark) for line, mark in self._blanks]
        self._lines, self._chars, self._mark, self._stack = [], 0, None, None
        self._blanks.clear()
        return completed

    def _begin(self, line: str, mark: T) -> None:
        self._lines, self._chars, self._mark = [line], len(line), mark
        self._has_head = begins_record(line)
        self._is_begun_by(line)

    def _is_begun_by(self, line: str) -> bool:
        for kind in _STACKS:
            if kind.begins(line):
                self._stack = kind()
                return True
        return False

    def _may_own_stack(self) -> bool:
        """Whether the held line is one that a stack would follow: not an info, not a JSON object."""
        first = self._lines[0]
        if first.strip() and not first.startswith("{") and _CALM.search(first, 0, 120) is None:
            return True
        self._stack = None
        return False

    def _has_room(self, line: str) -> bool:
        return len(self._lines) < MAX_LINES and self._chars + len(line) <= MAX_CHARS

    def _append(self, lines: list[str]) -> None:
        self._lines += lines
        self._chars += sum(map(len, lines))


def join(lines: Iterable[str]) -> Iterator[str]:
    """Return the records in ``lines``, for a text that is there as a whole."""
    joiner: Joiner[None] = Joiner()
    for line in lines:
        for joined in joiner.feed(line, None):
            yield joined.text
    for joined in joiner.flush():
        yield joined.text


@dataclass(frozen=True)
class Parsed:
    """What a text with a stack says.

    Attributes:
        head: What stood before the stack, perhaps nothing.
        type: Class of the exception, qualified as printed.
        message: Its message, perhaps of several lines.
        stack: The stack itself.
    """

    head: str
    type: str
    message: str
    stack: str


_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*(?:\.<locals>\.\w+)*)(?:: ?(.*))?$", re.DOTALL)


def parse_stack(text: str) -> Parsed | None:
    r"""Return what a record with a Python traceback says; None if it holds none.

    Of chained exceptions the last counts, of a group the group itself.

    >>> parsed = parse_stack('it broke\nTraceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1')
    >>> parsed.head, parsed.type, parsed.message
    ('it broke', 'KeyError', '1')
    """
    if _TRACEBACK not in text:
        return None
    lines = text.split("\n")
    starts = [
        number
        for number, line in enumerate(lines)
        if line.rstrip().endswith(_TRACEBACK) and not line.lstrip().startswith("|")
    ]
    if not starts:
        return None
    first, last = starts[0], starts[-1]
    # "failed: Traceback (most recent call last):" is head and start in one line.
    column = lines[first].rfind("Traceback")
    before = lines[first][:column]
    is_group = "Exception Group" in lines[last]
    is_bare = not before.replace("Exception Group", "").strip(" +")
    head = "\n".join(lines[:first] if is_bare else [*lines[:first], before.rstrip()]).strip()
    stack = "\n".join(lines[first:] if is_bare else [lines[first][column:], *lines[first + 1 :]])
    for number in range(last + 1, len(lines)):
        line = lines[number]
        if is_group:
            if not line.startswith("  | ") or line.startswith("  |   "):
                continue
            line = line[4:]
        elif not line or line[0] in " \t":
            continue
        match = _EXCEPTION.match(line)
        if match is None:
            break
        message = match.group(2) or ""
        if not is_group:
            message = "\n".join([message, *lines[number + 1 :]]).rstrip()
        return Parsed(head, match.group(1), message, stack)
    return Parsed(head, "", "", stack)
