"""Kill points: every name in the list is reached somewhere, and every name reached is in the list."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from logsvc import faults

_BROKEN = """
import os, sys
from pathlib import Path
from logsvc import durable
from logsvc.timestamps import system_clock
directory, faults = Path(sys.argv[1]), Path(os.environ["LOGSVC_TEST_FAULTS"])
before = system_clock()
durable.replace(directory / "whole", b"1")
faults.write_text("fsync half\\nclock 3600\\n")
durable.replace(directory / "whole", b"2")
try:
    durable.replace(directory / "half", b"1")
except OSError as exc:
    print(exc.strerror, Path(exc.filename).name, (directory / "half").exists())
print((system_clock() - before) // 3_600_000_000)
faults.unlink()
durable.replace(directory / "half", b"2")
print((system_clock() - before) // 3_600_000_000)
"""

PACKAGE = Path(faults.__file__).parent


def test_the_list_names_what_the_code_reaches() -> None:
    reached = {
        name for path in PACKAGE.rglob("*.py") for name in re.findall(r'reach\("([a-z_.]+)"\)', path.read_text())
    }
    assert reached == faults.POINTS
    assert set(re.findall(r"``([a-z]+\.[a-z_]+)``", faults.__doc__ or "")) == faults.POINTS


def test_a_mistyped_point_is_named_at_once() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import logsvc.faults"],
        env={**os.environ, "LOGSVC_TEST_KILL_AT": "journal.after_lunch"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "'journal.after_lunch' is no kill point" in result.stderr


def test_a_running_process_is_told_what_breaks_and_that_it_is_mended(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _BROKEN, str(tmp_path)],
        env={**os.environ, "LOGSVC_TEST_FAULTS": str(tmp_path / "faults")},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout.splitlines() == ["Input/output error half.new False", "1", "0"], result.stderr
