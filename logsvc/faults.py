"""Faults: named places where a test may kill the process, as a power cut would, and what it may break in between.

What a crash leaves behind depends on the moment. Between every two steps of a record's way to the
store there is a name; with ``LOGSVC_TEST_KILL_AT=NAME`` (or ``NAME:3``, the third time it is
reached) in the environment, the process ends there with SIGKILL. Without it, ``reach`` is one test
of a bool.

The points, in the order of the path:

- ``journal.before_write``: taken from the queue, nothing on disk
- ``journal.half_written``: the first half of the first frame of a group is written
- ``journal.after_write``: written, not fsynced
- ``journal.after_fsync``: durable, the sender does not know
- ``journal.after_acknowledge``: the sender's future is resolved
- ``journal.before_roll``, ``journal.after_roll``: around a new segment
- ``indexer.before_append``, ``indexer.after_append``: around handing a batch to the store
- ``deadletters.after_write``: a dead letter is durable, the checkpoint has not moved
- ``store.before_commit``, ``store.after_commit``: around each commit of a store (called by store/)
- ``indexer.after_flush``: all is in the store, the checkpoint has not moved
- ``indexer.checkpoint_written``: the new checkpoint lies beside the old one
- ``indexer.after_checkpoint``: the checkpoint has moved, the journal is untrimmed
- ``journal.after_trim``: one segment is removed
- ``replay.after_append``: a replayed record is in the journal again, not yet marked
- ``backup.copied``: all files of a backup are copied, and nothing says yet that it is one
- ``backup.snapshotted``: so is its snapshot in Elasticsearch
- ``restore.copied``, ``restore.moving``, ``restore.moved``: all is aside, about to be moved, one part is in place

What no test can bring about from outside without breaking the machine for everybody is told to a
running process by the file that ``LOGSVC_TEST_FAULTS`` names, one line each, read anew at every use:

- ``fsync TEXT``: an fsync of a file whose path contains TEXT fails, as on a dying disk
- ``clock SECONDS``: the machine's clock is so much ahead (or behind)

Not here: full disks, networks and stores that fail; tests bring those about with real ones (tests/soak/).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

POINTS = frozenset(
    {
        "journal.before_write",
        "journal.half_written",
        "journal.after_write",
        "journal.after_fsync",
        "journal.after_acknowledge",
        "journal.before_roll",
        "journal.after_roll",
        "indexer.before_append",
        "indexer.after_append",
        "deadletters.after_write",
        "store.before_commit",
        "store.after_commit",
        "indexer.after_flush",
        "indexer.checkpoint_written",
        "indexer.after_checkpoint",
        "journal.after_trim",
        "replay.after_append",
        "backup.copied",
        "backup.snapshotted",
        "restore.copied",
        "restore.moving",
        "restore.moved",
    }
)

_name, _, _nth = os.environ.get("LOGSVC_TEST_KILL_AT", "").partition(":")
is_armed = bool(_name)
_remaining = int(_nth or 1)
_lock = threading.Lock()

if is_armed and _name not in POINTS:
    raise ValueError(f"LOGSVC_TEST_KILL_AT={_name!r} is no kill point; expected one of {', '.join(sorted(POINTS))}")

_told = os.environ.get("LOGSVC_TEST_FAULTS", "")
is_told = bool(_told)
"""Whether a file tells what shall break."""


def reach(name: str) -> None:
    """Kill this process if the environment asks for it at ``name``; else do nothing."""
    if is_armed:
        _reach_armed(name)


def _reach_armed(name: str) -> None:
    global _remaining
    if name != _name:
        return
    with _lock:
        _remaining -= 1
        if _remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def fail_fsync(fd: int) -> None:
    """Raise what a dying disk raises if the file of faults says so for what is open as ``fd``.

    Raises:
        OSError: EIO.
    """
    targets = _lines("fsync")
    if targets:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if any(target in path for target in targets):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def clock_offset_us() -> int:
    """Return by how many microseconds the machine's clock is to be wrong."""
    return sum(round(float(seconds) * 1_000_000) for seconds in _lines("clock"))


def _lines(kind: str) -> list[str]:
    try:
        text = Path(_told).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [rest for first, _, rest in (line.partition(" ") for line in text.splitlines()) if first == kind]
