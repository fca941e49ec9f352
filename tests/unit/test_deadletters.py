"""Dead letters: kept once, whole, bounded, and put back on request."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsvc import durable
from logsvc.deadletters import DeadLetters, find, letters
from logsvc.errors import NotFound
from logsvc.records import Entry
from logsvc.store import Refusal
from tests.support.records import T0, make_entry


def refusal(seq: int, message: str = "hello", tenant: str = "default") -> Refusal:
    return Refusal(make_entry(seq, T0 + seq, message, tenant=tenant), f"reason {seq}")


def test_a_letter_keeps_the_entry_byte_for_byte_and_says_why(tmp_path: Path) -> None:
    dead_letters = DeadLetters.open(tmp_path, clock=lambda: T0)
    refused = Refusal(make_entry(17, T0, "käse\n", labels={"a": "b"}), "no such field")
    assert dead_letters.add([refused]) == 1
    (letter,) = letters(tmp_path)
    assert letter == find(tmp_path, "17")
    assert (letter.id, letter.tenant, letter.reason, letter.event_id) == ("17", "default", "no such field", "e17")
    assert letter.time == "2026-11-22T12:00:00Z"
    assert letter.source == refused.entry.source
    entry = letter.to_entry()
    assert entry == msgspec.convert(
        [0 if name == "seq" else getattr(refused.entry, name) for name in Entry.__struct_fields__], Entry
    )
    dead_letters.close()


@given(source=st.one_of(st.binary(max_size=300), st.just(b'{"a":\n1}'), st.just(b"[1]"), st.just(b"{}")))
def test_any_source_is_kept_whole(tmp_path_factory: pytest.TempPathFactory, source: bytes) -> None:
    directory = tmp_path_factory.mktemp("letters")
    dead_letters = DeadLetters.open(directory)
    dead_letters.add([Refusal(Entry("t", "id", 3, T0, T0, "service:x", None, False, source), "why")])
    (letter,) = letters(directory)
    assert letter.source == source
    assert letter.to_entry().source == source
    assert len(letter.preview) <= 200
    dead_letters.close()


def test_letters_are_counted_by_tenant_and_time_until_they_are_replayed_or_dropped(tmp_path: Path) -> None:
    hour_us = 3_600_000_000
    refused = [
        Refusal(make_entry(seq, T0, ingested_us=T0 + (seq - 1) * hour_us, tenant=tenant), "why")
        for seq, tenant in enumerate(("a", "a", "a", "b"), 1)
    ]

    def counts(of: DeadLetters) -> tuple[int, int, int]:
        return of.count_of("a", 0, 2**62), of.count_of("a", T0 + hour_us, T0 + 2 * hour_us), of.count_of("b", 0, 2**62)

    dead_letters = DeadLetters.open(tmp_path)
    dead_letters.add(refused)
    dead_letters.add(refused)
    assert counts(dead_letters) == (3, 1, 1)
    dead_letters.mark_replayed(["2"])
    dead_letters.mark_replayed(["2", "4"])
    assert counts(dead_letters) == (2, 0, 0)
    dead_letters.close()
    dead_letters = DeadLetters.open(tmp_path)
    assert counts(dead_letters) == (2, 0, 0)
    dead_letters._drop_oldest()
    assert counts(dead_letters) == (0, 0, 0)
    dead_letters.close()


def test_a_letter_added_again_after_a_crash_is_there_once(tmp_path: Path) -> None:
    dead_letters = DeadLetters.open(tmp_path)
    assert dead_letters.add([refusal(1), refusal(2)]) == 2
    assert dead_letters.add([refusal(2), refusal(3)]) == 1
    dead_letters.close()
    dead_letters = DeadLetters.open(tmp_path)
    assert dead_letters.add([refusal(1), refusal(3), refusal(4)]) == 1
    assert [letter.id for letter in letters(tmp_path)] == ["1", "2", "3", "4"]
    assert dead_letters.count == 4
    dead_letters.close()


def test_a_line_torn_at_any_byte_is_cut_and_the_letter_can_be_added_again(tmp_path: Path) -> None:
    dead_letters = DeadLetters.open(tmp_path / "whole")
    dead_letters.add([refusal(1)])
    (path,) = (tmp_path / "whole").iterdir()
    kept = path.stat().st_size
    dead_letters.add([refusal(2)])
    dead_letters.close()
    whole = path.read_bytes()
    for size in range(kept, len(whole)):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:size])
        assert [letter.id for letter in letters(directory)] == ["1"]
        dead_letters = DeadLetters.open(directory)
        assert dead_letters.add([refusal(2)]) == 1
        assert [letter.id for letter in letters(directory)] == ["1", "2"]
        dead_letters.close()


def test_beyond_the_bound_the_oldest_are_dropped_and_counted_over_restarts(tmp_path: Path) -> None:
    kept: list[int] = []
    for start in (0, 1_000):
        dead_letters = DeadLetters.open(tmp_path, max_bytes=40_000)
        for seq in range(start, start + 300):
            dead_letters.add([refusal(seq)])
        assert dead_letters.size_bytes <= 40_000
        kept = [int(letter.id) for letter in letters(tmp_path)]
        assert kept[-1] == start + 299
        assert dead_letters.dropped_total + len(kept) == (start and 300) + 300
        assert dead_letters.count == len(kept)
        dead_letters.close()
    dead_letters = DeadLetters.open(tmp_path, max_bytes=40_000)
    assert dead_letters.dropped_total + len(kept) == 600
    dead_letters.close()


def test_a_full_disk_adds_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_letters = DeadLetters.open(tmp_path)
    dead_letters.add([refusal(1)])

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(durable, "sync", fail)
        with pytest.raises(OSError, match="No space left"):
            dead_letters.add([refusal(2)])
    assert [letter.id for letter in letters(tmp_path)] == ["1"]
    assert dead_letters.add([refusal(2)]) == 1
    assert [letter.id for letter in letters(tmp_path)] == ["1", "2"]
    dead_letters.close()


def test_a_damaged_line_does_not_hide_the_others(tmp_path: Path) -> None:
    dead_letters = DeadLetters.open(tmp_path)
    dead_letters.add([refusal(1), refusal(2), refusal(3)])
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff{nonsense\n" + b'{"id":"9"}\n' + lines[2])
    assert [letter.id for letter in letters(tmp_path)] == ["1", "3"]
    dead_letters.close()


def test_letters_are_listed_by_tenant_and_replayed_ones_only_on_request(tmp_path: Path) -> None:
    dead_letters = DeadLetters.open(tmp_path)
    dead_letters.add([refusal(1), refusal(2, tenant="other"), refusal(3)])
    dead_letters.mark_replayed(["1"])
    dead_letters.close()
    DeadLetters.open(tmp_path).close()
    assert [letter.id for letter in letters(tmp_path)] == ["2", "3"]
    assert [letter.id for letter in letters(tmp_path, tenant="other")] == ["2"]
    assert [(letter.id, letter.is_replayed) for letter in letters(tmp_path, with_replayed=True)] == [
        ("1", True),
        ("2", False),
        ("3", False),
    ]


def test_a_letter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='no dead letter "12"'):
        find(tmp_path, "12")


def test_erased_letters_are_gone_from_the_files_and_others_can_be_added(tmp_path: Path) -> None:
    dead_letters = DeadLetters.open(tmp_path)
    dead_letters.add([refusal(n, f"secret{n}") for n in (1, 2, 3)])
    dead_letters.mark_replayed(["3"])
    assert dead_letters.erase(lambda letter: letter.id in ("2", "3")) == 1
    dead_letters.add([refusal(4)])
    assert [letter.id for letter in letters(tmp_path, with_replayed=True)] == ["1", "4"]
    assert dead_letters.count == 2
    assert all(b"secret2" not in path.read_bytes() for path in tmp_path.iterdir())
    dead_letters.close()
