"""Files as programs and logrotate leave them: whatever is done to them, each line is read once."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from shippers.tail import FileSource, Position, line_id
from tests.support import logrotate
from tests.support.elasticsearch import Unobtainable

OPERATIONS = (
    "write",
    "write",
    "half",
    "rename",
    "copytruncate",
    "compress",
    "recreate",
    "read",
    "chunk",
    "park",
    "restart",
    "kill",
)


class Model:
    """A log that is written, rotated and read, against a list of what was written."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "app.log"
        self.written: list[str] = []
        self.half = ""
        self.read: dict[str, str] = {}
        self.settled: Position | None = None
        self.acknowledged: Position | None = None
        self.source = self.open()
        self.write()
        self.drain()
        self.acknowledged = self.settled

    def open(self) -> FileSource:
        return FileSource(str(self.path), self.acknowledged, grace_s=0.0)

    def write(self) -> None:
        line = f"line {len(self.written)} {'x' * (len(self.written) % 7)}"
        with self.path.open("a") as file:
            file.write(f"{line[len(self.half) :] if self.half else line}\n")
        self.half = ""
        self.written.append(line)

    def write_half(self) -> None:
        if not self.half:
            self.half = f"line {len(self.written)}"
            with self.path.open("a") as file:
                file.write(self.half)

    def rotated(self) -> list[Path]:
        return sorted(self.path.parent.glob("app.log.*"), key=lambda path: int(path.name.split(".")[2]), reverse=True)

    def make_room(self) -> Path:
        if self.half:
            self.write()
        for path in self.rotated():
            number = path.name.split(".")[2]
            path.rename(path.with_name(path.name.replace(f".{number}", f".{int(number) + 1}", 1)))
        return self.path.with_name("app.log.1")

    def do(self, operation: str) -> None:
        exists = self.path.exists() and self.path.stat().st_size > 0
        if operation == "write":
            self.write()
        elif operation == "half":
            self.write_half()
        elif operation == "rename" and exists:
            os.rename(self.path, self.make_room())
        elif operation == "copytruncate" and exists:
            shutil.copyfile(self.path, self.make_room())
            os.truncate(self.path, 0)
        elif operation == "compress":
            for path in self.rotated():
                if path.suffix not in (".gz", ".zst"):
                    # In turn, so that one log has both, as after a change of logrotate's configuration.
                    suffix, pack = ((".gz", gzip.compress), (".zst", zstandard.compress))[len(self.written) % 2]
                    packed = path.with_name(path.name + suffix)
                    packed.write_bytes(pack(path.read_bytes()))
                    shutil.copystat(path, packed)
                    path.unlink()
        elif operation == "recreate" and exists:
            if self.half:
                self.write()
            self.drain()  # what is removed before it was read is lost, for anybody
            self.path.unlink()
            self.write()
        elif operation == "read":
            self.drain()
        elif operation == "chunk":
            self.take()
        elif operation == "park":
            self.source.park()
        elif operation in ("restart", "kill"):
            if operation == "restart":
                self.drain()
                self.acknowledged = self.settled
            self.settled = self.acknowledged
            self.source.close()
            self.source = self.open()

    def take(self) -> bool:
        chunk = self.source.read()
        if chunk is None:
            return False
        for offset, text in chunk.lines:
            name = line_id(chunk.identity, offset)
            assert self.read.setdefault(name, text) == text
        self.acknowledged, self.settled = self.settled, chunk.at
        return True

    def drain(self) -> None:
        misses = 0
        while misses < 3:  # a truncation or a successor takes one more look
            misses = 0 if self.take() else misses + 1


def check(operations: list[str]) -> None:
    with TemporaryDirectory() as directory:
        model = Model(Path(directory))
        for operation in operations:
            model.do(operation)
        model.do("write")
        model.drain()
        model.source.close()
        assert list(model.read.values()) == model.written


@given(st.lists(st.sampled_from(OPERATIONS), max_size=40))
@example(["write", "read", "write", "copytruncate", "write", "read"])
@example(["write", "read", "write", "rename", "write", "rename", "write", "read"])
@example(["write", "read", "write", "rename", "write", "rename", "compress", "write", "restart"])
@example(["write", "read", "write", "copytruncate", "compress", "kill", "write", "read"])
@example(["write", "read", "park", "write", "rename", "write", "rename", "compress", "write", "read"])
@example(["write", "read", "rename", "write", "read", "park", "write", "copytruncate", "write", "read"])
def test_each_line_is_read_once_and_in_order_whatever_is_done_to_its_file(operations: list[str]) -> None:
    check(operations)


@pytest.fixture(scope="module")
def has_logrotate() -> None:
    """Have the real program; skips loudly without it, and fails in CI."""
    try:
        logrotate.program()
    except Unobtainable as exc:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NO LOGROTATE: what it does is NOT tested. {exc}")


@pytest.mark.usefixtures("has_logrotate")
@pytest.mark.parametrize(
    "options",
    [
        ["create"],
        ["copytruncate"],
        ["create", "compress"],
        ["create", "compress", "delaycompress"],
        ["copytruncate", "compress", "delaycompress"],
        ["create", "compress", "dateext"],
    ],
    ids=", ".join,
)
@pytest.mark.parametrize("seed", range(3))
def test_each_line_is_read_once_and_in_order_while_the_real_logrotate_is_at_work(
    tmp_path: Path, options: list[str], seed: int
) -> None:
    rng = random.Random(f"{options} {seed}")
    (tmp_path / "logs").mkdir()
    model = Model(tmp_path / "logs")
    for number in range(30):
        operation = rng.choice(["write", "write", "half", "rotate", "read", "chunk", "park", "restart", "kill"])
        if operation != "rotate":
            model.do(operation)
            continue
        if model.half:
            model.write()
        # As if each were of another second.
        dated = [f"dateformat -%Y%m%d-{number:02d}"] if "dateext" in options else []
        logrotate.rotate(model.path, [*options, *dated], tmp_path)
    model.do("write")
    model.drain()
    model.source.close()
    assert list(model.read.values()) == model.written
