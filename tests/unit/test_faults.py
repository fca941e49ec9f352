"""Kill points: every name in the list is reached somewhere, and every name reached is in the list."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from logsvc import faults

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
