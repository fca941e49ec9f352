from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from shippers import spool as spool_module
from shippers.seal import AesSeal
from shippers.spool import Seal, Spool, SpoolError
from shippers.transport import Batch

MANY = 10**9


def batch(name: str) -> Batch:
    return Batch.of([f'{{"message":"{name}"}}'.encode()])


def names(spool: Spool) -> list[str]:
    found = []
    while (spooled := spool.oldest()) is not None:
        found.append(spooled.batch.lines()[0].decode().split('"')[3])
        spool.remove(spooled)
    return found


@pytest.fixture
def opened() -> Iterator[Callable[..., Spool]]:
    spools: list[Spool] = []
    ticks = count(1)

    def make(root: Path, owner: str, max_bytes: int = MANY, seal: Seal | None = None) -> Spool:
        spool = Spool(root, max_bytes=max_bytes, owner=owner, seal=seal, clock_ns=lambda: next(ticks))
        spools.append(spool)
        return spool

    yield make
    for spool in spools:
        spool.close()


def test_batches_come_out_oldest_first_and_once(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path, "a")
    for name in ("one", "two", "three"):
        spool.append(batch(name))
    assert len(spool) == 3
    assert names(spool) == ["one", "two", "three"]
    assert spool.size_bytes == 0


def test_only_the_user_may_look(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path / "root", "a")
    spool.append(batch("one"))
    assert stat.S_IMODE(spool.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.directory.iterdir()} == {0o600}


def test_beyond_its_bound_the_newest_is_refused(opened: Callable[..., Spool], tmp_path: Path) -> None:
    size = len(batch("one").body) + spool_module._HEADER.size
    spool = opened(tmp_path, "a", max_bytes=2 * size)
    spool.append(batch("one"))
    spool.append(batch("two"))
    with pytest.raises(SpoolError) as caught:
        spool.append(batch("six"))
    assert caught.value.reason == "spool_full"
    assert names(spool) == ["one", "two"]
    assert sum(path.stat().st_size for path in spool.directory.iterdir()) <= 2 * size


def test_a_dead_process_leaves_its_batches_to_the_next(opened: Callable[..., Spool], tmp_path: Path) -> None:
    first = opened(tmp_path, "a")
    first.append(batch("one"))
    first.close()
    second = opened(tmp_path, "b")
    assert second.adopt() == 1
    assert names(second) == ["one"]
    assert not first.directory.exists()


def test_a_living_process_keeps_its_own(opened: Callable[..., Spool], tmp_path: Path) -> None:
    first, second = opened(tmp_path, "a"), opened(tmp_path, "b")
    first.append(batch("one"))
    assert second.adopt() == 0
    assert names(first) == ["one"]


def test_what_does_not_fit_is_left_for_another(opened: Callable[..., Spool], tmp_path: Path) -> None:
    first = opened(tmp_path, "a")
    for name in ("one", "two"):
        first.append(batch(name))
    size = first.size_bytes // 2
    first.close()
    assert opened(tmp_path, "b", max_bytes=size).adopt() == 1
    assert opened(tmp_path, "c").adopt() == 1


def test_a_process_killed_hard_leaves_whole_batches(opened: Callable[..., Spool], tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from shippers.spool import Spool
from shippers.transport import Batch
spool = Spool(Path(sys.argv[1]), max_bytes=10**9, owner="victim")
for number in range(20):
    spool.append(Batch.of([b'{"message":"m%d"}' % number]))
(spool.directory / "half.batch.tmp").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    heir = opened(tmp_path, "heir")
    assert heir.adopt() == 20
    assert names(heir) == [f"m{number}" for number in range(20)]
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("damage", [b"", b"short", b"X" * 200])
def test_a_corrupt_file_is_set_aside_and_counted(opened: Callable[..., Spool], tmp_path: Path, damage: bytes) -> None:
    spool = opened(tmp_path, "a")
    for name in ("one", "two", "three"):
        spool.append(batch(name))
    sorted(spool.directory.glob("*.batch"))[1].write_bytes(damage)
    assert names(spool) == ["one", "three"]
    assert (spool.corrupt_batches, spool.corrupt_records) == (1, 1)
    assert len(list(spool.directory.glob("*.corrupt"))) == 1


def test_a_flipped_bit_is_noticed(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path, "a")
    spool.append(batch("one"))
    (path,) = spool.directory.glob("*.batch")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert names(spool) == []


def test_a_full_disk_is_told_and_leaves_nothing_behind(
    opened: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path, "a")
    spool.append(batch("one"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpoolError) as caught:
        spool.append(batch("two"))
    monkeypatch.undo()
    assert caught.value.reason == "disk_full"
    assert not list(spool.directory.glob("*.tmp"))
    spool.append(batch("three"))
    assert names(spool) == ["one", "three"]


KEY = "00112233445566778899aabbccddeeff" * 2


def test_a_key_keeps_the_plain_text_from_the_disk(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path, "a", seal=AesSeal(KEY))
    plain = Batch.of([b'{"message":"one"}'], "identity")
    spool.append(plain)
    (path,) = spool.directory.glob("*.batch")
    assert b"message" not in path.read_bytes()
    spooled = spool.oldest()
    assert spooled is not None
    assert spooled.batch == plain


def test_what_another_key_sealed_waits_for_that_key(opened: Callable[..., Spool], tmp_path: Path) -> None:
    first = opened(tmp_path, "a", seal=AesSeal(KEY))
    first.append(batch("one"))
    first.close()
    for seal in (AesSeal(KEY[::-1]), None):
        other = opened(tmp_path, f"b{seal}", seal=seal)
        other.adopt()
        other.append(batch("mine"))
        assert names(other) == ["mine"]
        assert (other.locked_batches, other.corrupt_batches) == (1, 0)
        other.close()
    again = opened(tmp_path, "c", seal=AesSeal(KEY))
    assert again.adopt() == 1
    assert names(again) == ["one"]


def test_without_damage_to_the_checksum_a_forged_batch_is_still_noticed(
    opened: Callable[..., Spool], tmp_path: Path
) -> None:
    spool = opened(tmp_path, "a", seal=AesSeal(KEY))
    spool.append(batch("one"))
    (path,) = spool.directory.glob("*.batch")
    data = path.read_bytes()
    magic, encoding, records, key_id, _ = spool_module._HEADER.unpack_from(data)
    forged = data[spool_module._HEADER.size :][::-1]
    digest = hashlib.blake2b(forged, digest_size=16).digest()
    path.write_bytes(spool_module._HEADER.pack(magic, encoding, records, key_id, digest) + forged)
    assert names(spool) == []
    assert spool.corrupt_batches == 1


@pytest.mark.parametrize("key", ["", "short", "z" * 64, "ab" * 31])
def test_a_key_that_is_none_is_an_error_that_says_how_to_make_one(key: str) -> None:
    with pytest.raises(ValueError, match="token_hex"):
        AesSeal(key)


def test_a_clock_that_is_set_back_changes_no_order(tmp_path: Path) -> None:
    times = iter([500, 100, 100, 600])
    spool = Spool(tmp_path, max_bytes=MANY, owner="a", clock_ns=lambda: next(times))
    for name in ("one", "two", "three", "four"):
        spool.append(batch(name))
    assert names(spool) == ["one", "two", "three", "four"]
    spool.close()


def test_what_cannot_be_read_now_is_kept(
    opened: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path, "a")
    spool.append(batch("one"))

    def exhausted(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(Path, "read_bytes", exhausted)
    with pytest.raises(SpoolError, match="too many open files"):
        spool.oldest()
    monkeypatch.undo()
    assert names(spool) == ["one"]
    assert spool.corrupt_batches == 0


def test_a_directory_that_was_cleared_away_is_made_anew(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path / "root", "a")
    spool.append(batch("one"))
    shutil.rmtree(tmp_path / "root")
    spool.append(batch("two"))
    assert names(spool) == ["two"]
    assert spool.corrupt_records == 1
    other = opened(tmp_path / "root", "b")
    spool.append(batch("three"))
    assert other.adopt() == 0


def test_damaged_files_are_kept_in_bounded_number(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path, "a")
    for number in range(30):
        spool.append(batch(str(number)))
    for path in spool.directory.glob("*.batch"):
        path.write_bytes(b"damaged")
    assert names(spool) == []
    assert spool.corrupt_batches == 30
    assert len(list(spool.directory.iterdir())) <= 17


def test_processes_that_start_and_die_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from shippers.spool import Spool
from shippers.transport import Batch
root, name = Path(sys.argv[1]), sys.argv[2]
spool = Spool(root, max_bytes=10**9, owner=name)
for number in range(30):
    spool.append(Batch.of([b'{"message":"%s-%d"}' % (name.encode(), number)]))
    spool.adopt()
os.kill(os.getpid(), signal.SIGKILL)
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), f"p{n}"]) for n in range(4)]
    assert [process.wait(60) for process in running] == [-9] * 4
    heir = Spool(tmp_path, max_bytes=MANY, owner="heir")
    assert heir.adopt() == 120
    assert sorted(names(heir)) == sorted(f"p{n}-{number}" for n in range(4) for number in range(30))
    heir.close()


def test_an_empty_spool_touches_no_disk(opened: Callable[..., Spool], tmp_path: Path) -> None:
    spool = opened(tmp_path / "never", "a")
    assert (len(spool), spool.oldest(), spool.adopt()) == (0, None, 0)
    spool.close()
    assert not (tmp_path / "never").exists()
