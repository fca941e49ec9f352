"""Golden corpora: real lines in, what becomes of them out; review reads the diff.

A corpus is a text file of pairs, ``< line`` and ``> result``, with blank lines and ``#`` comments
between them; ``\\n`` in a line stands for a line feed. ``LOGSVC_TEST_REWRITE_GOLDEN=1`` writes the
results anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def check(name: str, result: Callable[[str], str]) -> None:
    """Assert that ``result`` of every line of a corpus is what the corpus says, or rewrite the corpus."""
    path = GOLDEN / name
    source = ""
    written: list[str] = []
    expected: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("< "):
            source = line[2:]
            written += [line, "> " + result(source.replace("\\n", "\n")).replace("\n", "\\n")]
        elif line.startswith(">"):
            expected.append((source, line))
        else:
            written.append(line)
    if os.environ.get("LOGSVC_TEST_REWRITE_GOLDEN"):
        path.write_text("\n".join(written) + "\n", encoding="utf-8")
        return
    got = [line for line in written if line.startswith("> ")]
    assert list(zip([source for source, _ in expected], got, strict=True)) == expected
