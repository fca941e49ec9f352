"""Multiline: lines that belong to one record, joined; and what a stack says, read back from its text.

An exception is one event, but a file holds it as many lines. A ``Joiner`` is fed the lines of one
stream and gives back records: a log line with the stack that follows it, or a bare stack. Known are
Python tracebacks (chained causes, exception groups, other processes' tracebacks, syntax errors, markers
under the code, messages of several lines, colours) and fatal errors of the interpreter, stacks whose frames begin with "at" (Java and other languages of the JVM, JavaScript, .NET),
and Go's panics and goroutines; another language is one more class in ``_STACKS``.

What always holds: no line is lost or changed, order is kept, and a record is bounded in lines and
characters (the rest starts a new one). State is only what is held back: at most one record.

Not here: where lines come from (tail.py), what else a line says (lines.py). Standard library only,
since the service joins lines with it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Optional, Protocol, TypeVar

MAX_LINES = 2000
MAX_CHARS = 256 * 1024

T = TypeVar("T")

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# What a worker process raised, between triple quotes: multiprocessing, concurrent.futures.
_REMOTE = re.compile(r"[\w.]*\b_?RemoteTraceback:\s*$")
# A syntax error that nobody imports has no heading, only its place.
_SYNTAX_PLACE = re.compile(r"  File \"[^\"]{1,1024}\", line \d+$")
_OF_TASK = re.compile(r"(?:future|task): <")
_TASK_FAILED = ("was never retrieved", "it is pending!")
_FATAL = "Fatal Python error: "
_FATAL_THREAD = re.compile(r"(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")
_FATAL_GOES_ON = re.compile(
    r"  (?:File|Binary file|<|\.\.\.)|Current thread's C stack trace|Extension modules: |Python runtime state: "
)
# Colours and other looks, which programs give what they believe to be a terminal.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_FRAME = re.compile(r"\s+at [\w$<\[/.(]")
_THROWABLE = r"(?:[A-Za-z_$][\w$.]*)?(?:Error|Exception|Throwable|Failure|Fault)"
# As the JVM, .NET and JavaScript print it: "Uncaught TypeError: …", "Error [ERR_X]: …", "java.io.IOException".
_THROWN = re.compile(
    rf"(?:Exception in thread \"[^\"]{{0,200}}\" |Unhandled exception\. |Uncaught )?(?P<type>{_THROWABLE})"
    r"(?: \[\w+\])?(?::\s?(?P<message>.*))?$"
)
_THROWN_INSIDE = re.compile(rf"(?<![\w$.])(?P<type>{_THROWABLE})(?: \[\w+\])?: (?P<message>.*)$")
_THROWN_AT = re.compile(r"(?:/|file://|node:|[A-Z]:\\)\S*:\d+$")
_AT_GOES_ON = re.compile(
    r"\s*(?:(?:Caused by|Suppressed|Wrapped by): |\.\.\. \d+ (?:more|common frames omitted|lines matching)|[}\]]+,?$"
    r"|Node\.js v\d|--- End of )"
)
_GOROUTINE = re.compile(r"goroutine \d+ (?:gp=\S+ )?[^\[]*\[[^\]]+\]:$")
_GO_GOES_ON = re.compile(
    r"\t|goroutine \d+ |\[signal |\[recovered|created by |exit status \d|\.\.\.additional frames|runtime stack:$"
    r"|panic: |[\w./*()\-~\[\]{}·%]+\(.*\)$"
)
# Substrings of which every line that begins or continues a stack has one; most lines have none.
_MARKS = (
    *("\n ", "\n\t", "Traceback", "Error", "Exception", "Throwable", "Failure", "Fault", "goroutine ", "panic: "),
    *("Fatal Python", *_TASK_FAILED, "\x1b["),
)
_GROUP_END = re.compile(r"\s*\+-{10,}$")
# What libraries append to an exception's message on lines of their own: SQLAlchemy, psycopg.
_MESSAGE_GOES_ON = (
    "[SQL:",
    "[parameters:",
    "[generated in",
    "(Background on this error",
    "DETAIL:",
    "HINT:",
    "LINE ",
    "Call stack:",
    "Message: ",
    "Arguments: ",
)
_HEAD = re.compile(
    r"[\[(<\"' ]{0,2}(?:"
    r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d"  # 2024-12-25 13:00, also with slashes
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"  # Dec 25 13:00:00
    r"|\d\d:\d\d:\d\d[.,\s]"
    r"|(?:TRACE|DEBUG|INFO|NOTICE|SUCCESS|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|\{\s*\")"
)
_CALM = re.compile(r"\b(?:TRACE|DEBUG|INFO|SUCCESS|trace|debug|info)\b")


def plain(text: str) -> str:
    r"""Return ``text`` without colours.

    >>> plain("\x1b[1;31mKeyError\x1b[0m: 1")
    'KeyError: 1'
    """
    return _COLOUR.sub("", text) if "\x1b[" in text else text


def begins_record(line: str) -> bool:
    """Tell whether a line looks like the first of a record: a time, a level or a JSON object.

    >>> [begins_record(line) for line in ("2024-12-25 13:00:00,123 ERROR x", "ERROR:root:x", "ValueError: x")]
    [True, True, False]
    """
    return _HEAD.match(line) is not None


class _Stack(Protocol):
    """A stack that has begun. Subclasses of one kind each; one instance a stack."""

    @classmethod
    def begin(cls, line: str) -> _Stack | None:
        """Return the stack that begins with ``line``, or None."""

    def belongs_to(self, line: str, before: str) -> bool:
        """Tell whether the stack that begins with ``line`` belongs to the record ``before`` it.

        Args:
            line: Its first line.
            before: The single line of that record.
        """

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        """Tell whether ``line`` (never blank) belongs to the stack, and remember where it stands.

        Args:
            line: The next line.
            is_after_blank: Whether blank lines came between.
            has_head: Whether the record began with a line that ``begins_record``, so that in this
                stream a line that does not is a continuation.
        """


def _may_fail(before: str) -> bool:
    """Tell whether a line is one that a stack would follow: not an info, not a JSON object."""
    return bool(before.strip()) and not before.startswith("{") and _CALM.search(before, 0, 120) is None


class _PythonStack:
    """A traceback: frames, then the line of the exception, then perhaps another by chaining."""

    def __init__(self, *, is_in_frames: bool = True, is_remote: bool = False) -> None:
        self._is_in_frames = is_in_frames
        self._is_chained = not is_in_frames
        self._is_remote = is_remote  # between triple quotes
        self._quotes = 0

    @classmethod
    def begin(cls, line: str) -> _PythonStack | None:
        text = line.rstrip()
        if text.endswith(_TRACEBACK) or _SYNTAX_PLACE.match(text):
            return cls()
        if text.endswith("RemoteTraceback:") and _REMOTE.match(text):
            return cls(is_remote=True)
        return cls(is_in_frames=False) if _OF_TASK.match(text) else None

    def belongs_to(self, line: str, before: str) -> bool:
        if not self._is_in_frames:
            return before.rstrip().endswith(_TASK_FAILED)
        return (self._is_remote or line.startswith((_TRACEBACK, " ", "\t"))) and _may_fail(before)

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        text = line.rstrip()
        if self._is_remote:
            self._quotes += text == '"""'
            self._is_remote = self._quotes < 2
            self._is_in_frames = self._is_remote
            return True
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
        if text.endswith(_TRACEBACK):
            if self._is_chained:
                self._is_in_frames, self._is_chained = True, False
                return True
            return False
        if begins_record(line):
            return False
        return has_head or (not is_after_blank and (line[0] in " \t" or text.startswith(_MESSAGE_GOES_ON)))


class _AtStack:
    """The line of the exception, then frames that begin with "at", then perhaps a cause with its own.

    Node.js prints the place and the code before an error that nobody catches, and properties of an
    error in braces after it.
    """

    def __init__(self, *, is_in_preface: bool = False, is_announced: bool = False) -> None:
        self._is_in_preface = is_in_preface
        self._preface_lines = 0
        self._is_before_frames = True
        self._is_announced = is_announced

    @classmethod
    def begin(cls, line: str) -> _AtStack | None:
        if _FRAME.match(line):
            stack = cls()
            stack._is_before_frames = False
            return stack
        if _THROWN.match(line):
            return cls(is_announced=line.startswith("Exception in thread"))
        return cls(is_in_preface=True) if _THROWN_AT.match(line) else None

    def belongs_to(self, line: str, before: str) -> bool:
        if self._is_in_preface or self._is_announced:
            return False
        if not self._is_before_frames:
            return not before.startswith("{")
        return begins_record(before) and _may_fail(before)

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        if self._is_in_preface:
            self._preface_lines += 1
            if _THROWN.match(line):
                self._is_in_preface = False
                return True
            return self._preface_lines <= 4 and not begins_record(line)
        if _FRAME.match(line):
            self._is_before_frames = False
            return True
        if begins_record(line):
            return False
        if _AT_GOES_ON.match(line):
            self._is_before_frames = self._is_before_frames or line.lstrip().startswith("Caused by")
            return True
        if has_head:
            return True
        return not is_after_blank and (line[0] in " \t" or (self._is_announced and self._is_before_frames))


class _GoStack:
    """A panic or fatal error, then goroutines with their calls, each followed by its place."""

    @classmethod
    def begin(cls, line: str) -> _GoStack | None:
        return cls() if line.startswith(("panic: ", "fatal error: ")) or _GOROUTINE.match(line) else None

    def belongs_to(self, line: str, before: str) -> bool:
        # net/http logs "http: panic serving …" before the goroutine; a panic itself stands alone.
        return line.startswith("goroutine ") and begins_record(before)

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        return _GO_GOES_ON.match(line) is not None


class _FatalStack:
    """The end of an interpreter, as ``faulthandler`` writes it: threads, each with its frames."""

    @classmethod
    def begin(cls, line: str) -> _FatalStack | None:
        return cls() if line.startswith(_FATAL) or _FATAL_THREAD.match(line) else None

    def belongs_to(self, line: str, before: str) -> bool:
        return False

    def continues(self, line: str, *, is_after_blank: bool, has_head: bool) -> bool:
        return _FATAL_THREAD.match(line) is not None or _FATAL_GOES_ON.match(line) is not None


_STACKS: tuple[type[_Stack], ...] = (_PythonStack, _AtStack, _GoStack, _FatalStack)


@dataclass  # not frozen: that makes each several times as dear, and there is one for every line
class Joined(Generic[T]):
    """A record: its lines joined with line feeds, and the mark of its first line."""

    __slots__ = ("mark", "text")

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
                plain(line), is_after_blank=bool(self._blanks), has_head=self._has_head
            ):
                self._append([blank for blank, _ in self._blanks])
                self._blanks.clear()
                self._append([line])
                return []
        else:
            stack = _begin(plain(line))
            if stack is not None and self._has_room(line) and stack.belongs_to(plain(line), plain(self._lines[0])):
                self._stack = stack
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

    def feed_plain(self, lines: list[tuple[T, str]]) -> list[Joined[T]]:
        """Like ``feed`` for each of ``lines``, and fast if none of them begins or continues a stack."""
        text = "\n".join([line for _, line in lines])
        if self._stack is not None or text[:1] in " \t" or "\n/" in text or any(mark in text for mark in _MARKS):
            completed: list[Joined[T]] = []
            for mark, line in lines:
                completed += self.feed(line, mark)
            return completed
        completed = self.flush()
        completed += [Joined(line, mark) for mark, line in lines[:-1]]
        self._begin(lines[-1][1], lines[-1][0])
        return completed

    def _begin(self, line: str, mark: T) -> None:
        self._lines, self._chars, self._mark = [line], len(line), mark
        self._has_head = begins_record(plain(line))
        self._stack = _begin(plain(line))

    def _has_room(self, line: str) -> bool:
        return len(self._lines) < MAX_LINES and self._chars + len(line) <= MAX_CHARS

    def _append(self, lines: list[str]) -> None:
        self._lines += lines
        self._chars += sum(map(len, lines))


def _begin(line: str) -> _Stack | None:
    for kind in _STACKS:
        stack = kind.begin(line)
        if stack is not None:
            return stack
    return None


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
    r"""Return what a record with a stack says; None if it holds none.

    Of chained exceptions that counts which ended the program, of a group the group itself.

    >>> parsed = parse_stack('it broke\nTraceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1')
    >>> parsed.head, parsed.type, parsed.message
    ('it broke', 'KeyError', '1')
    >>> parsed = parse_stack("it broke\njava.lang.IllegalStateException: closed\n\tat shop.Till.pay(Till.java:3)")
    >>> parsed.head, parsed.type, parsed.message
    ('it broke', 'java.lang.IllegalStateException', 'closed')
    """
    if "\n" not in text:
        return None
    text = plain(text)
    if _TRACEBACK in text:
        return _parse_python(text)
    lines = text.split("\n")
    if _FATAL in text or "(most recent call first):" in text:
        return _parse_fatal(lines)
    if "SyntaxError" in text or "IndentationError" in text or "TabError" in text:
        start = next((number for number, line in enumerate(lines) if _SYNTAX_PLACE.match(line)), None)
        if start is not None:
            parsed = _parse_python("\n".join([*lines[:start], _TRACEBACK, *lines[start:]]))
            return parsed and replace(parsed, stack="\n".join(lines[start:]))
    if "\n\t" in text and any(_GOROUTINE.match(line) for line in lines):
        return _parse_go(lines)
    for number, line in enumerate(lines):
        if number and _FRAME.match(line):
            return _parse_at(lines, number)
    return None


def _parse_at(lines: list[str], frame: int) -> Parsed | None:
    for number, line in enumerate(lines[:frame]):
        match = _THROWN.match(line)
        if match is not None:
            head = lines[:number]
            if head and _THROWN_AT.match(head[0]):
                head = []  # the place and the code, which Node.js prints, are part of the stack
            announced = line[: match.start("type")].rstrip()
            head += [announced] if announced else []
            message = "\n".join([match["message"] or "", *lines[number + 1 : frame]]).rstrip()
            return Parsed("\n".join(head).strip(), match["type"], message, "\n".join(lines[len(head) and number :]))
    match = _THROWN_INSIDE.search(lines[frame - 1])
    if match is None:
        return Parsed("\n".join(lines[:frame]).strip(), "", "", "\n".join(lines[frame:]))
    return Parsed("\n".join(lines[:frame]).strip(), match["type"], match["message"], "\n".join(lines[frame:]))


def _parse_fatal(lines: list[str]) -> Parsed | None:
    start = next((number for number, line in enumerate(lines) if _FatalStack.begin(line) is not None), None)
    if start is None:
        return None
    kind, _, message = lines[start].partition(": ") if lines[start].startswith(_FATAL) else ("", "", "")
    return Parsed("\n".join(lines[:start]).strip(), kind, message, "\n".join(lines[start:]))


def _parse_go(lines: list[str]) -> Parsed:
    start = next(number for number, line in enumerate(lines) if _GoStack.begin(line) is not None)
    head, stack = "\n".join(lines[:start]).strip(), "\n".join(lines[start:])
    kind, _, message = lines[start].partition(": ")
    if _GOROUTINE.match(lines[start]):
        return Parsed(head, "panic", "", stack)
    for line in lines[start + 1 :]:
        if not line.startswith("\t"):
            break
        message += "\n" + line[1:]
    return Parsed(head, kind, message, stack)


def _parse_python(text: str) -> Parsed | None:
    lines = text.split("\n")
    starts = [
        number
        for number, line in enumerate(lines)
        if line.rstrip().endswith(_TRACEBACK) and not line.lstrip().startswith("|")
    ]
    if not starts:
        return None
    first, last = starts[0], starts[-1]
    if first > 1 and _REMOTE.match(lines[first - 2]):
        first -= 2  # its quotes are part of it
    # "failed: Traceback (most recent call last):" is head and start in one line.
    column = max(0, lines[first].rfind("Traceback")) if first in starts else 0
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
