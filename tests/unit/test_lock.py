"""One serve per data directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from logsvc.errors import DataDirectoryLocked, SettingsError
from logsvc.lock import DataDirectoryLock

_HOLDER = """
import sys
from pathlib import Path
from logsvc.lock import DataDirectoryLock
lock = DataDirectoryLock.acquire(Path(sys.argv[1]), "logsvc serve")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_the_first_is_and_may_start_when_that_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(DataDirectoryLocked, match=f"logsvc serve, process {first.pid} ") as caught:
            DataDirectoryLock.acquire(tmp_path)
        assert str(first.pid) in caught.value.holder
        first.kill()
        first.wait(30)
    with DataDirectoryLock.acquire(tmp_path), pytest.raises(DataDirectoryLocked, match=f"process {os.getpid()} "):
        DataDirectoryLock.acquire(tmp_path)
    DataDirectoryLock.acquire(tmp_path).release()


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with DataDirectoryLock.acquire(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["file", "file/below", "directory"])
def test_a_directory_that_cannot_be_is_named_with_the_way_out(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory" / "lock").mkdir(parents=True)
    with pytest.raises(SettingsError, match=rf"cannot use .*{place} as the data directory: .*set LOGSVC_DATA_DIR"):
        DataDirectoryLock.acquire(tmp_path / place)
