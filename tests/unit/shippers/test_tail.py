from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shippers import tail
from shippers.tail import Checkpoints, FileSource, Position, Source, StreamSource, line_id


class Log:
    """A log file as a program writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)

    def rotate(self, name: str = "app.log.1") -> None:
        self.path.rename(self.path.with_name(name))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "app.log")


def follow(log: Log, resume: Position | None = None, **options: Any) -> FileSource:
    return FileSource(str(log.path), resume, **{"grace_s": 0.0, **options})


def drain(source: Source) -> list[str]:
    texts = []
    for _ in range(3):  # a truncation or a successor takes one more look
        while (chunk := source.read()) is not None:
            texts += [text for _, text in chunk.lines]
    return texts


def last_position(source: Source) -> Position:
    at = None
    while (chunk := source.read()) is not None:
        at = chunk.at
    assert at is not None
    return at


# --- the contract, over both -------------------------------------------------------------------


@pytest.fixture(params=["file", "stream"])
def source(request: pytest.FixtureRequest, log: Log) -> Any:
    if request.param == "file":
        log.write("")
        source: Source = follow(log)
        yield source, log.write, lambda: None
        source.close()
        return
    reading, writing = os.pipe()
    writer = os.fdopen(writing, "wb", buffering=0)
    yield StreamSource(reading), lambda text: writer.write(text.encode()), writer.close
    writer.close()
    os.close(reading)


def test_lines_come_once_and_in_order_and_never_half(source: tuple[Source, Callable[[str], object], object]) -> None:
    reader, write, _ = source
    assert reader.read() is None
    write("one\ntwo\nthr")
    assert drain(reader) == ["one", "two"]
    write("ee\n\nfour\r\n")
    assert drain(reader) == ["three", "", "four"]
    assert reader.read() is None
    assert not reader.is_finished


def test_offsets_name_each_line(source: tuple[Source, Callable[[str], object], object]) -> None:
    reader, write, _ = source
    write("one\nzwölf\nthree\n")
    chunk = reader.read()
    assert chunk is not None
    assert chunk.lines == [(0, "one"), (4, "zwölf"), (11, "three")]


def test_the_last_line_needs_no_line_feed_at_the_end(
    source: tuple[Source, Callable[[str], object], Callable[[], None]],
) -> None:
    reader, write, end = source
    write("one\nlast")
    assert drain(reader) == ["one"]
    end()
    chunk = reader.finish()
    if chunk is None:
        chunk = reader.read()
    assert chunk is not None
    assert [text for _, text in chunk.lines] == ["last"]


def test_bytes_that_are_no_text_are_kept_readable(log: Log) -> None:
    log.path.write_bytes(b"caf\xe9\n\x00\n")
    assert drain(follow(log)) == ["caf\ufffd", "\x00"]


def test_a_stream_ends(source: tuple[Source, Callable[[str], object], Callable[[], None]]) -> None:
    reader, _, end = source
    if isinstance(reader, StreamSource):
        end()
        assert drain(reader) == []
        assert reader.is_finished


# --- files -------------------------------------------------------------------------------------


def test_a_file_may_come_later(log: Log) -> None:
    source = follow(log)
    assert source.read() is None
    log.write("one\n")
    assert drain(source) == ["one"]
    source.close()


def test_after_a_rename_the_old_file_is_read_to_its_end_and_then_the_new(log: Log) -> None:
    log.write("one\n")
    source = follow(log)
    assert drain(source) == ["one"]
    log.write("two\nhalf")
    log.rotate()
    assert drain(source) == ["two"]
    log.write("three\n")
    assert drain(source) == ["half", "three"]
    source.close()


def test_a_writer_may_go_on_in_the_renamed_file_for_a_moment(log: Log) -> None:
    now = [0.0]
    log.write("one\n")
    source = follow(log, grace_s=1.0, clock=lambda: now[0])
    assert drain(source) == ["one"]
    with log.path.open("a") as writer:
        log.rotate()
        log.write("three\n")
        assert drain(source) == []
        writer.write("two\n")
    assert drain(source) == ["two"]
    now[0] += 2.0
    assert drain(source) == ["three"]
    source.close()


def test_after_a_truncation_reading_starts_at_the_top(log: Log) -> None:
    log.write("first line\nsecond line\n")
    source = follow(log)
    first = source.read()
    assert first is not None
    log.path.write_text("new\n")
    assert source.read() is None
    second = source.read()
    assert second is not None
    assert second.lines == [(0, "new")]
    assert first.identity != second.identity
    source.close()


def test_a_restart_goes_on_where_the_checkpoint_stood(log: Log) -> None:
    log.write("one\ntwo\n")
    source = follow(log)
    at = last_position(source)
    source.close()
    log.write("three\n")
    assert drain(follow(log, at)) == ["three"]


def test_a_restart_finds_the_file_that_was_renamed_meanwhile(log: Log) -> None:
    log.write("one\n")
    source = follow(log)
    at = last_position(source)
    source.close()
    log.write("two\n")
    log.rotate()
    log.write("three\n")
    assert drain(follow(log, at)) == ["two", "three"]


def test_a_restart_reads_a_file_that_was_truncated_meanwhile_from_the_top(log: Log) -> None:
    log.write("one line\nand another\n")
    source = follow(log)
    at = last_position(source)
    source.close()
    log.path.write_text("one line\n")
    again = follow(log, at)
    chunk = again.read()
    assert chunk is not None
    assert [text for _, text in chunk.lines] == ["one line"]
    assert chunk.at is not None
    assert chunk.at.generation == 1
    again.close()


def test_another_file_with_the_same_inode_is_another_file(log: Log) -> None:
    log.write("one\n")
    source = follow(log)
    at = last_position(source)
    source.close()
    log.path.write_text("uno\ndos\n")
    assert drain(follow(log, at)) == ["uno", "dos"]


def test_a_line_has_the_same_id_whenever_it_is_read(log: Log) -> None:
    log.write("one\ntwo\n")
    ids = []
    for _ in range(2):
        source = follow(log)
        chunk = source.read()
        assert chunk is not None
        ids.append([line_id(chunk.identity, offset) for offset, _ in chunk.lines])
        source.close()
        log.write("three\n")
    assert ids[0] == ids[1][:2]
    assert len(set(ids[1])) == 3


def test_a_file_may_be_followed_from_its_end(log: Log) -> None:
    log.write("old\nha")
    source = follow(log, is_from_end=True)
    assert drain(source) == []
    log.write("lf\nnew\n")
    assert drain(source) == ["half", "new"]
    source.close()


def test_a_line_without_end_is_cut(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_LINE_BYTES", 1500)
    log.write("x" * 4000 + "\nnext\n")
    texts = drain(follow(log))
    assert "".join(texts) == "x" * 4000 + "next"
    assert max(map(len, texts)) <= 1500


# --- checkpoints -------------------------------------------------------------------------------


def test_checkpoints_survive(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "state" / "checkpoints.json")
    assert checkpoints.load() == {}
    positions = {"/var/log/a": Position(7, "f", 3, "i", 1, 99, 5)}
    checkpoints.save(positions)
    assert checkpoints.load() == positions
    assert [path.name for path in checkpoints.path.parent.iterdir()] == ["checkpoints.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99, "files": {}}', '{"version": 2, "files": {"a": 1}}'])
def test_a_file_that_holds_no_checkpoints_is_an_error_with_a_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "checkpoints.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="remove it"):
        Checkpoints(path).load()
