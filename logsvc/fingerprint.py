"""Fingerprint: which records say the same thing, told from the record alone.

A template is a message with its variables masked; its id is a hash of it. Nothing is learned and
nothing remembered, so every replica and every replay agrees, and an id means the same for ever
(``v1:``; a change of the rules is a new version).

What is masked: times, UUIDs, addresses, quoted values, URLs, paths, hex of eight digits and more,
numbers with or without unit, and every other word that holds a digit (but not what dots lead to it,
as in ``depth.......1``). Words stay, also
``snake_case`` ones: ``no column named ai_model`` and ``no column named region`` are two templates.
Quoted values do not stay, even when they look like identifiers: a known error with a new customer's
name in quotes must not look new, and errors that name a column in quotes differ by type and words.
The request line of an access log does stay, with its path masked.

A record with an exception takes the exception's type and masked message into its template; that is
the error as people read it. ``error_fingerprint`` is about the place: type and in-app frames
without line numbers. The two are kept apart, because a release that renames a function moves
every frame while the errors stay the known ones.

What always holds: the template depends on where digits stand, never on which digits they are.
So templates are cached by a message's shape, and the cache never changes a result.

Not here: masking of secrets (shippers/redact.py). Templates that differ in a word stay apart.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

VERSION = "v1"
MAX_TEXT_CHARS = 1_000
"""A template's text is cut here; its id is of the whole."""

_MAX_MESSAGE_CHARS = 4_096  # what follows is mostly a dump; the beginning tells templates apart
_MAX_FRAMES = 32

_ZEROS = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
"""All digits to 0: the shape of a message."""

# The request of an access log is quoted, but no value: GET and DELETE are two templates.
_QUOTED = re.compile(
    r"""(?<!\w)(?:("(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS)\ /[^"\n]{0,512}")"""
    r"""|"[^"\n]{0,512}"|'[^'\n]{0,512}'|`[^`\n]{0,512}`)(?!\w)""",
    re.ASCII,
)


def _unless_request(match: re.Match[str]) -> str:
    return match[1] or "<str>"


# Within one word: the first alternative that fits wins. Each starts at a border or at a character of
# its own, and nothing is repeated within a repetition, so it stays linear.
_VARIABLE = re.compile(
    r"""
      (?P<time> (?<!\w) \d{4}-\d\d-\d\d (?:T\d\d:\d\d (?::\d\d(?:[.,]\d+)?)? (?:Z|[+-]\d\d:?\d\d)?)? (?!\w)
              | (?<![\w:]) (?:\d{1,2}/[A-Z][a-z]{2}/\d{4}:)? \d{1,2}:\d\d:\d\d (?:[.,]\d+)? (?:Z|[+-]\d\d:?\d\d)? (?!:?\w) )
    | (?P<uuid> (?<!\w) [0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12} (?!\w) )
    | (?P<ip> (?<![\w.]) \d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3} (?:/\d{1,2}|:\d{1,5})? (?![\w.]*\w)
            | (?<![\w:]) (?=[0-9a-fA-F]*:[0-9a-fA-F]*:) [0-9a-fA-F:]{3,39} (?:%\w{1,16})? (?![\w:]) )
    | (?P<url> (?<!\w) [a-zA-Z][a-zA-Z0-9+.-]{1,15}://[^\s"'<>|\\^`{}]+ )
    | (?P<path> (?<![\w/.~]) (?: [A-Za-z]:\\ | \\\\ | \.{0,2}/ | ~/ ) [\w.@%+~-]+ (?:[/\\][\w.@%+~-]*)* )
    | (?P<hex> (?<!\w) (?:\dx[0-9a-fA-F]+ | [0-9a-fA-F]{8,}) (?!\w) )
    | (?P<num> (?<![\w.]) [-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?
               (?: % | (?:ns|us|µs|ms|s|m|h|d|[kKMGT]i?B|B|k|M)(?!\w) )? (?![\w-]|[.,]\d) )
    | (?P<class> (?<![\w.]) [A-Za-z_]\w* (?:\.[A-Za-z_]\w*)* \.[A-Z][a-z]+[A-Za-z]* (?![\w.]*\w) )
    | (?P<id> (?<![\w.+-]) (?![\w+-]*\.\.\.) [\w.+-]*\d [\w.+-]* )
    | (?P<digits> \d+ )
    """,
    re.VERBOSE | re.ASCII,
)


# Dates that hold spaces, after their parts were masked: 2024-12-25 13:00:00, Wed, 25 Dec 2024 13:00:00.
_SPACED_TIME = re.compile(
    r"(?:(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?"
    r"(?:(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) <num>|<num> (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) <num>) "
    r"|<time> )<time>"
)


def _placeholder(match: re.Match[str]) -> str:
    word, kind = match.group(), match.lastgroup
    if kind == "class":
        # psycopg2.errors.UndefinedColumn: the digit names a package, so the class is kept.
        return word if word.isascii() and not any(map(str.isdigit, word)) else word.rpartition(".")[2]
    if kind == "digits":  # what an alternative before left over
        return "<num>"
    # The full stop of a sentence is no part of its last word.
    trail = ".-+" if kind == "id" else ".,;:)]" if kind in ("url", "path") else ""
    return f"<{kind}>{word[len(word.rstrip(trail)) :]}" if trail else f"<{kind}>"


@lru_cache(maxsize=16_384)
def _mask_word(word: str) -> str:
    return _VARIABLE.sub(_placeholder, word)


def _digest(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "replace")
    return f"{VERSION}:{hashlib.blake2b(text, digest_size=8).hexdigest()}"


def shape(message: str) -> bytes:
    """Return the message with all digits 0. Messages of one shape have one template."""
    return message.encode("utf-8", "replace").translate(_ZEROS)


def mask_variables(message: str) -> str:
    """Return the template of ``message``, whole: variables masked, white space folded.

    >>> mask_variables("charged order 1234 in 35ms for t-17 at 10.0.0.7:8080")
    'charged order <num> in <num> for <id> at <ip>'
    >>> mask_variables('no column named ai_model in "/srv/app/jobs.py"')
    'no column named ai_model in <str>'
    """
    return _template(shape(message[:_MAX_MESSAGE_CHARS]))[2]


@lru_cache(maxsize=16_384)
def _template(shaped: bytes) -> tuple[str, str, str]:
    """Return id, text cut to its bound, and whole text of the template of a shape."""
    text = shaped.decode("utf-8", "ignore")
    if '"' in text or "'" in text or "`" in text:
        text = _QUOTED.sub(_unless_request, text)
    # Word by word: most are plain, and words repeat far more often than messages do.
    words = [word if len(word) < 8 and word.isalpha() else _mask_word(word) for word in text.split()]
    whole = " ".join(words)
    if "<time>" in whole:
        whole = _SPACED_TIME.sub("<time>", whole)
    return _digest(whole), whole[:MAX_TEXT_CHARS], whole


def fingerprint(message: str) -> tuple[str, str]:
    """Return the id and the text of the template of ``message``.

    >>> fingerprint("order 17 paid") == fingerprint("order 4711 paid")
    True
    """
    return _template(shape(message[:_MAX_MESSAGE_CHARS]))[:2]


def exception_fingerprint(message: str, error_type: str, error_message: str) -> tuple[str, str]:
    """Return the id and the text of the template of a record that carries an exception.

    The text reads ``message: Type: error message``; what the message already says is not repeated.

    >>> exception_fingerprint("task failed", "sqlite3.OperationalError", "no such column: ai_model")[1]
    'task failed: sqlite3.OperationalError: no such column: ai_model'
    """
    head = mask_variables(message.partition("\nTraceback (most recent call last):")[0])
    # SQLAlchemy appends statement and parameters; the parameters are values.
    tail = mask_variables(error_message.partition("[parameters:")[0])
    error = f"{error_type}: {tail}" if tail else error_type
    if head in ("", tail):
        whole = error
    elif error in head:
        whole = head
    else:
        whole = f"{head}: {error}"
    return _digest(whole), whole[:MAX_TEXT_CHARS]


# ---------------------------------------------------------------------------------------- frames

_PYTHON_FRAME = re.compile(r'^[ \t]*(?:[|] *)?File "([^"\n]{1,1024})", line \d+(?:, in ([^\n]{1,256}))?', re.MULTILINE)
_JAVA_FRAME = re.compile(r"^[ \t]*at ([\w.$<>/@-]{1,512})\(([^()\n]{0,256})\)", re.MULTILINE)
_SCRIPT_FRAME = re.compile(
    r"^[ \t]*at (?:async )?(?:([\w.$<>\[\] ]{1,256}) \()?((?:[^()\n:]|:(?!\d)){1,512}):\d+(?::\d+)?\)?$", re.MULTILINE
)
_FOREIGN = re.compile(
    r"site-packages|dist-packages|<frozen |[/\\]lib[/\\]python\d|[/\\]Lib[/\\](?!site)|node_modules|^node:|^internal/"
    r"|^(?:java|javax|jdk|sun|com\.sun|org\.springframework|kotlin|scala)\."
)
_VOLATILE = re.compile(r"0x[0-9a-fA-F]+|\d+")


def frames(stack_trace: str) -> list[str]:
    r"""Return the frames of a stack as ``file:function``, the application's own if there are any.

    Neither line numbers nor folders take part: releases move both. Understands Python, JVM and
    JavaScript; empty for anything else.

    >>> frames('  File "/srv/app/jobs.py", line 7, in run\n  File "/x/site-packages/db.py", line 1, in go')
    ['jobs.py:run']
    """
    found: list[tuple[str, str]] = []  # what tells whose it is, what is kept
    for path, function in _PYTHON_FRAME.findall(stack_trace):
        found.append((path, f"{_basename(path)}:{function or '<module>'}"))
    if not found:
        for method, place in _JAVA_FRAME.findall(stack_trace):
            if ":" in place and "/" in place:
                continue  # a JavaScript frame
            found.append((method, f"{place.partition(':')[0]}:{method}"))
    if not found:
        for function, place in _SCRIPT_FRAME.findall(stack_trace):
            found.append((place, f"{_basename(place)}:{function or '<anonymous>'}"))
    own = [kept for whose, kept in found if not _FOREIGN.search(whose)]
    return [_VOLATILE.sub("#", frame) for frame in (own or [kept for _, kept in found])[-_MAX_FRAMES:]]


def _basename(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def error_fingerprint(error_type: str, stack_trace: str, message: str) -> str:
    """Return the fingerprint of an exception: its type and in-app frames, else its type and masked message.

    >>> a = error_fingerprint("ValueError", 'File "/a/jobs.py", line 7, in run', "bad 17")
    >>> b = error_fingerprint("ValueError", 'File "/b/jobs.py", line 9, in run', "bad 18")
    >>> a == b != error_fingerprint("KeyError", 'File "/b/jobs.py", line 9, in run', "bad 18")
    True
    """
    where = frames(stack_trace) if stack_trace else []
    return _digest("error", error_type, *(where or [mask_variables(message)]))
