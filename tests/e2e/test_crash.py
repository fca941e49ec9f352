"""kill -9 between every two steps of a record's way: what was acknowledged is stored, once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from logsvc.deadletters import letters
from logsvc.faults import POINTS
from tests.support.crash_process import record
from tests.support.sqlite_store import SqliteStore

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0
ON_THE_WAY = ("journal.", "indexer.", "deadletters.", "store.")  # what each record passes


def run(directory: Path, mode: str, first: int, count: int, kill_at: str = "") -> tuple[set[int], int]:
    """Run the process to its end; return the numbers of the records acknowledged, and its exit code."""
    environment = {**os.environ, "LOGSVC_TEST_KILL_AT": kill_at}
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.crash_process", str(directory), mode, str(first), str(count)],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    lines = result.stdout.decode().splitlines()
    if not kill_at:
        assert lines[-1:] == ["drained"], result.stderr.decode()
    acknowledged: set[int] = set()
    for line in lines:
        if line != "drained":
            start, size = map(int, line.split())
            acknowledged |= set(range(start, start + size))
    return acknowledged, result.returncode


def check(directory: Path, acknowledged: set[int]) -> None:
    """Each acknowledged record is in the store with its content, or a dead letter, exactly once."""
    store = SqliteStore(directory / "store.db")
    contents = store.contents()
    sequence = store.sequence()
    store.close()
    dead = [letter.source for letter in letters(directory / "deadletters", with_replayed=True)]
    assert len(dead) == len(set(dead))
    assert len(sequence) == len(set(sequence))
    for number in acknowledged:
        entry = record(number)
        if number % 50:
            assert contents[entry.id] == entry.source
            assert entry.source not in dead
        else:
            assert entry.id not in contents
            assert entry.source in dead


@pytest.mark.parametrize("nth", [1, 4])
def test_kills_at_every_point_in_a_row_lose_and_double_nothing_that_was_acknowledged(tmp_path: Path, nth: int) -> None:
    points = sorted(point for point in POINTS if point.startswith(ON_THE_WAY))
    random.Random(nth).shuffle(points)  # each finds what another left
    acknowledged: set[int] = set()
    for number, point in enumerate(points):
        more, code = run(tmp_path, "append", 1 + number * 1_000, 600, f"{point}:{nth}")
        assert code == -9, f"{point} was not reached {nth} times"
        acknowledged |= more
    more, code = run(tmp_path, "append", 100_001, 300)
    assert code == 0
    assert len(more) == 300
    check(tmp_path, acknowledged | more)


def test_a_kill_between_replaying_a_dead_letter_and_marking_it_replays_it_again(tmp_path: Path) -> None:
    _, code = run(tmp_path, "replay", 1, 300, "replay.after_append")
    assert code == -9
    run(tmp_path, "append", 10_001, 3)
    dead = list(letters(tmp_path / "deadletters"))
    # Replayed ones were refused again, under new numbers; the old ones are not marked yet.
    assert len(dead) == 12
    assert len({letter.id for letter in dead}) == 12
