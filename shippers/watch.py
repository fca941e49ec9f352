"""Watch: which files match the patterns now.

A pattern is a path with ``*``, ``?``, ``[…]`` and ``**`` (any directories). What rotation made of a
file that is followed (app.log.1 of app.log) is no file of its own, nor is a compressed one; a file
reached by two names, such as a symbolic link and its target, is followed once.

Not here: following (tail.py).
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable

from shippers.tail import COMPRESSED, ROTATED

_MAGIC = re.compile(r"[*?\[]")
_ROTATED_AFTER = re.compile(rf"(?P<base>.+?){ROTATED}")
_ROTATED_INSIDE = re.compile(rf"(?P<stem>.+?){ROTATED}(?P<extension>\.[A-Za-z]\w*)")


def is_pattern(path: str) -> bool:
    """Tell whether ``path`` stands for several files.

    >>> is_pattern("/var/log/*.log"), is_pattern("/var/log/app.log")
    (True, False)
    """
    return path != "-" and _MAGIC.search(path) is not None


def expand(pattern: str, exclude: Iterable[str] = ()) -> list[str]:
    """Return the files that ``pattern`` matches now, sorted, but for those that ``exclude`` names.

    Args:
        pattern: See the module.
        exclude: Patterns against the whole path or, without a slash, against the name.
    """
    found = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
    names = set(found)
    chosen: dict[str, str] = {}
    for path in sorted(found):
        if path.endswith(COMPRESSED) or _is_rotated(path, names) or is_excluded(path, exclude):
            continue
        chosen.setdefault(os.path.realpath(path), path)
    return sorted(chosen.values())


def is_excluded(path: str, exclude: Iterable[str]) -> bool:
    """Tell whether one of the patterns in ``exclude`` names ``path``.

    >>> is_excluded("/var/log/app/debug.log", ["debug*"]), is_excluded("/var/log/app/debug.log", ["/var/log/debug*"])
    (True, False)
    """
    name = os.path.basename(path)
    return any(fnmatch.fnmatchcase(path if "/" in pattern else name, pattern) for pattern in exclude)


def _is_rotated(path: str, names: set[str]) -> bool:
    directory, name = os.path.split(path)
    for form in (_ROTATED_AFTER, _ROTATED_INSIDE):
        match = form.fullmatch(name)
        if match is not None:
            groups = match.groupdict()
            base = os.path.join(directory, groups.get("base") or groups["stem"] + groups["extension"])
            if base in names or os.path.exists(base):
                return True
    return False
