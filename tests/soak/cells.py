"""Cells: the matrix of faults. Each takes a rig, breaks something under load, mends it, and settles."""

from __future__ import annotations

import itertools
import re
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from logsvc.faults import POINTS
from tests.soak.proxy import Mode
from tests.soak.rig import Rig

EMBEDDED, ELASTIC = ("embedded",), ("elastic",)
BOTH = ("embedded", "elastic")


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault. ``budget_s`` bounds its waiting, twice over on a busy machine; ``short`` are the stores of the short form."""

    name: str
    what: str
    stores: tuple[str, ...]
    run: Callable[[Rig], None]
    budget_s: float
    short: tuple[str, ...]


CELLS: list[Cell] = []


def cell(name: str, stores: tuple[str, ...], budget_s: float, *, short: tuple[str, ...]) -> Callable:
    """Enter a function into the matrix; its docstring's first line says what it does.

    What no store has a part in is done on one of them in the short form.
    """

    def enter(run: Callable[[Rig], None]) -> Callable[[Rig], None]:
        what = (run.__doc__ or "").splitlines()[0].rstrip(".")
        CELLS.append(Cell(name, what, stores, run, budget_s, short))
        return run

    return enter


# -- kills and stops ------------------------------------------------------------------------------


@cell("kill", BOTH, 240, short=BOTH)
def kill(rig: Rig) -> None:
    """kill -9 at random moments, also while it starts."""
    rig.start(pause_s=0.03)
    for n in range(3 if rig.is_short else 20):
        rig.more(rig.rng.randrange(200, 2_000))
        rig.run(rig.rng.random())
        rig.kill()
        if n % 4 == 2:  # again before it is up
            rig.service.launch()
            rig.run(rig.rng.uniform(0.3, 1.5))
            rig.kill()
        rig.start()
    rig.settle()


# What happens at every step of every record first, then what takes a full segment.
_AT_EACH = sorted(point for point in POINTS if point.startswith(("journal.", "indexer.", "store.")))
_AT_COMMITS = ["store.before_commit", "store.after_commit"]


@cell("kill-at", BOTH, 400, short=BOTH)
def kill_at_each_point(rig: Rig) -> None:
    """kill -9 between every two of write, fsync, acknowledge, add, commit, checkpoint, trim."""
    points = [point for point in _AT_EACH if rig.store == "embedded" or point not in _AT_COMMITS]
    if rig.is_short and rig.store == "elastic":  # the journal's own points know no store
        points = [point for point in points if not point.startswith("journal.") or point == "journal.after_trim"]
    rig.rng.shuffle(points)
    if rig.is_short:  # another half each time; tests/e2e/test_crash.py has them all on a small store
        points = points[: (len(points) + 1) // 2]
    rig.start(pause_s=0.03, LOGSVC_JOURNAL_MAX_BYTES="2MiB")
    rig.more()
    rig.kill()
    for point in points:
        # Early it happens in what was left by the last one, late under full load.
        nth = rig.rng.choice([1, 2, 5]) if "roll" not in point and "trim" not in point else rig.rng.choice([1, 2, 3])
        # It may be killed before it answers: each start begins a segment, and indexes what the last one left.
        rig.launch(LOGSVC_TEST_KILL_AT=f"{point}:{nth}", LOGSVC_JOURNAL_MAX_BYTES="2MiB")
        process = rig.service.process
        assert process is not None
        rig.wait(f"{point} to be reached", lambda process=process: process.poll() is not None, 0.02)
        assert process.returncode == -signal.SIGKILL, f"ended with {process.returncode} at {point}"
        rig.result.kills += 1
        rig.service.process = None
    rig.start(LOGSVC_JOURNAL_MAX_BYTES="2MiB")
    rig.more()
    rig.settle()
    rig.result.notes.append(f"points: {len(points)}")


@cell("sigterm", BOTH, 120, short=())
def sigterm(rig: Rig) -> None:
    """SIGTERM under load: ends in order, with code 0, and goes on."""
    rig.start(pause_s=0.02)
    for _ in range(2 if rig.is_short else 10):
        rig.more(rig.rng.randrange(200, 2_000))
        code = rig.service.stop()
        assert code == 0, f"SIGTERM under load ended with {code}"
        rig.start()
    assert "Traceback" not in rig.service.log, "a traceback in the log"
    rig.settle()


# -- Elasticsearch --------------------------------------------------------------------------------


def _away(rig: Rig, mode: Mode, seconds: float, said: str) -> None:
    rig.start()
    rig.more()
    with rig.proxy.broken(mode):
        rig.expect_unready(said)
        rig.expect_metric("indexer_lag_records", lambda lag: lag > 500)
        rig.expect_metric("store_up", lambda up: up == 0)
        rig.run(seconds)
        rig.more()
    rig.more()
    rig.expect_ready()
    rig.settle()


@cell("es-refused", ELASTIC, 400, short=ELASTIC)
def elasticsearch_stopped(rig: Rig) -> None:
    """Elasticsearch away: connections refused (for a minute in the long form)."""
    _away(rig, Mode.REFUSE, 2 if rig.is_short else 60, "cannot reach the store")


@cell("es-hanging", ELASTIC, 400, short=())
def elasticsearch_hangs(rig: Rig) -> None:
    """Elasticsearch takes connections and never answers, also across a restart of the service."""
    rig.start()
    rig.more()
    with rig.proxy.broken(Mode.HANG):
        rig.expect_unready("did not answer|the indexer is retrying")
        rig.kill()
        rig.start()
        rig.more(2_000)
        rig.expect_unready("did not answer|the indexer is retrying")
    rig.expect_ready()
    rig.settle()


def _spoilt(rig: Rig, mode: Mode, seconds: float) -> None:
    rig.start()
    rig.more()
    with rig.proxy.broken(mode):
        rig.run(seconds)
        rig.wait("answers to be spoilt", lambda: rig.proxy.spoilt[mode] >= (3 if rig.is_short else 20))
        rig.more()
    rig.more()
    if mode not in (Mode.SLOW, Mode.HALF):  # of these the store makes nothing that anybody need know of
        rig.expect_log("indexer: .*tried again until it works")
    rig.settle()
    dead = rig.metrics()["dead_letters_total"]
    assert dead == 0, f"{dead:.0f} good records became dead letters"


for _mode, _name, _short in [
    (Mode.SLOW, "es-slow", ()),
    (Mode.HALF, "es-half", ELASTIC),
    (Mode.GARBLE, "es-garbled", ()),
    (Mode.DEAF, "es-deaf", ()),
    (Mode.BUSY, "es-busy", ()),
]:

    def _run(rig: Rig, mode: Mode = _mode) -> None:
        _spoilt(rig, mode, 4 if rig.is_short else 20)

    _run.__doc__ = f"Elasticsearch {_mode.value}."
    cell(_name, ELASTIC, 180, short=_short)(_run)


@cell("es-read-only", ELASTIC, 240, short=ELASTIC)
def read_only_blocks(rig: Rig) -> None:
    """Elasticsearch makes its indices read-only, as it does on a full disk."""
    rig.start()
    rig.more()
    rig.wait("an index", lambda: rig.service.count() > 0)
    for block in ["read_only_allow_delete"] if rig.is_short else ["read_only_allow_delete", "read_only", "write"]:
        rig.elastic("PUT", f"/{rig.prefix}/_settings", {f"index.blocks.{block}": True})
        rig.expect_unready("block")
        rig.expect_metric("indexer_lag_records", lambda lag: lag > 300)
        rig.elastic("PUT", f"/{rig.prefix}/_settings", {f"index.blocks.{block}": None})
        rig.more()
        rig.expect_ready()
    rig.settle()


@cell("es-conflict", ELASTIC, 240, short=ELASTIC)
def mapping_conflicts(rig: Rig) -> None:
    """Somebody else's mapping refuses records: dead letters, found again once they are replayed."""
    rig.start()
    rig.more()
    rig.wait("an index", lambda: rig.service.count() > 0)
    # The index of a day that we are about to write stands before us, made by somebody else.
    at = time.gmtime(time.time() - 9 * 86_400)
    index = f"{rig.prefix}-{time.strftime('%Y.%m.%d', at)}"
    rig.elastic("DELETE", f"/_index_template/{rig.prefix}", missing=True)
    rig.elastic(
        "PUT", f"/{index}", {"mappings": {"properties": {"message": {"type": "long"}}}, "aliases": {rig.prefix: {}}}
    )
    is_killed = rig.rng.random() < 0.5
    if is_killed:
        rig.kill()
        rig.service.launch(LOGSVC_TEST_KILL_AT="deadletters.after_write")
    else:
        rig.send(50, time.strftime("%Y-%m-%dT%H:%M:%SZ", at))
        rig.expect_metric("dead_letters_total", lambda dead: dead == 50)
        rig.expect_log("50 records became dead letters")
        rig.kill()
        rig.service.launch()
    # The mapping is compared at the start, and a difference stops it, named.
    process = rig.service.process
    assert process is not None
    rig.wait("the start to be refused", lambda: process.poll() is not None)
    assert process.returncode == 6, f"a service with a wrong mapping ended with {process.returncode}"
    rig.service.process = None
    rig.expect_log("message: type expected text, found long")
    rig.elastic("DELETE", f"/{index}")
    rig.start()
    if not is_killed:
        rig.service.run("deadletters", "replay", "--all")
    rig.more()
    rig.settle()


@cell("es-nodes", ELASTIC, 600, short=())
def one_of_three_nodes_killed(rig: Rig) -> None:
    """Three real nodes: one is killed with -9, another stopped for a while, under load."""
    from tests.soak.cluster import Cluster

    with Cluster.running(rig.kill_at_end) as cluster:
        rig.use_cluster(cluster.urls)
        rig.start()
        rig.more(1_000)
        cluster.kill(rig.rng.randrange(3))
        rig.more(2_000)
        rig.run(20)
        rig.more(1_000)
        stopped = cluster.pause()
        rig.run(15)
        cluster.resume(stopped)
        rig.more(1_000)
        rig.settle()
        rig.service.stop()


# -- disks ----------------------------------------------------------------------------------------


@cell("disk-journal", BOTH, 180, short=EMBEDDED)
def full_disk_under_the_journal(rig: Rig) -> None:
    """The disk under the journal fills up; senders are told to wait, and it goes on when there is room."""
    disk = rig.small_disk(rig.service.data_dir / "journal", 8 << 20)
    rig.start()
    rig.more()
    for n in range(2 if rig.is_short else 6):
        disk.fill()
        rig.expect_unready("the journal takes nothing: no room on the disk")
        rig.expect_refusals()
        if n % 2:
            rig.kill()
            disk.free()
            rig.start()
        else:
            disk.free()
        rig.more()
        rig.expect_ready()
    rig.settle()


@cell("disk-restart", EMBEDDED, 120, short=())
def a_start_on_a_full_disk(rig: Rig) -> None:
    """The service starts while the disk of its data is full: it says so, and starts once there is room."""
    disk = rig.small_disk(rig.service.data_dir, 24 << 20)
    rig.start()
    rig.more()
    disk.fill()
    rig.kill()
    rig.service.launch()
    process = rig.service.process
    assert process is not None
    rig.wait("the start to fail or to succeed", lambda: process.poll() is not None or rig.ready()[0])
    disk.free()
    if process.poll() is not None:
        rig.expect_log("(?i)no space left|no room|full")
        rig.service.process = None
        rig.start()
    rig.more()
    rig.settle()


@cell("disk-index", EMBEDDED, 180, short=EMBEDDED)
def full_disk_under_the_index(rig: Rig) -> None:
    """The disk under the index fills up; records wait in the journal."""
    disk = rig.small_disk(rig.service.data_dir / "index", 24 << 20)
    rig.start()
    rig.more()
    for n in range(1 if rig.is_short else 5):
        disk.fill()
        rig.expect_unready("the indexer is retrying: cannot (write|commit|create|open)")
        rig.expect_metric("indexer_lag_records", lambda lag: lag > 0)
        if n % 2:
            rig.kill()
            rig.start()
        disk.free()
        rig.more()
        rig.expect_ready()
    rig.settle()


@cell("disk-data", BOTH, 240, short=EMBEDDED)
def full_disk_under_everything(rig: Rig) -> None:
    """The disk under journal, index, state and checkpoint fills up at once."""
    disk = rig.small_disk(rig.service.data_dir, 40 << 20)
    rig.start()
    rig.more()
    for n in range(1 if rig.is_short else 5):
        disk.fill()
        rig.expect_unready("no room on the disk|the indexer is retrying|No space left")
        rig.run(2)
        if n % 2:
            rig.kill()
        disk.free()
        if n % 2:
            rig.start()
        rig.more()
        rig.expect_ready()
    rig.settle()


@cell("disk-spool", EMBEDDED, 180, short=EMBEDDED)
def full_disk_under_the_spool(rig: Rig) -> None:
    """The service is away and the disk under a program's spool fills up: sent and counted drops make up all."""
    disk = rig.small_disk(rig.directory / "spool", 1 << 20)
    rig.start(load=False)
    with rig.program(disk.path) as program:
        program.log(2_000)
        rig.kill()
        program.log(3_000)
        disk.fill()
        program.log(3_000)
        rig.run(2)
        rig.start(load=False)
        disk.free()
        program.log(1_000)
        rig.wait("the spool to be sent", lambda: program.handler.batcher.stats()["spooled_batches"] == 0)
    rig.settle()


# -- damage ---------------------------------------------------------------------------------------


def _backlog(rig: Rig) -> None:
    """Leave a journal of records that no store has, as a crash does."""
    if rig.store == "elastic":
        rig.start()
        rig.more()
        with rig.proxy.broken(Mode.REFUSE):
            rig.more(2_000)
            rig.kill()
        return
    disk = rig.small_disk(rig.service.data_dir / "index", 24 << 20)
    rig.start()
    rig.more()
    disk.fill()
    rig.expect_unready("the indexer is retrying")
    rig.more(2_000)
    rig.kill()
    disk.free()


@cell("journal-torn", BOTH, 120, short=EMBEDDED)
def torn_journal(rig: Rig) -> None:
    """The journal ends in half a frame, zeros or rubbish, as a power cut leaves it."""
    tails = [b"\0" * 5_000, rig.rng.randbytes(3_000), b"half"]
    for tail in tails[:1] if rig.is_short else tails:
        rig.start()
        rig.more()
        rig.kill()
        last = max((rig.service.data_dir / "journal").glob("*.log"))
        whole = last.read_bytes()
        frame = whole.rfind(bytes.fromhex("f8fffefdfcfbfaf9"))
        half = whole[frame : frame + (len(whole) - frame) // 2] if tail == b"half" and frame > 0 else tail
        with last.open("ab") as file:
            file.write(half)
        rig.start()
        rig.expect_log("journal: cut a torn tail")
        rig.more()
    rig.settle()


@cell("journal-flipped", BOTH, 120, short=EMBEDDED)
def bit_flips_in_the_journal(rig: Rig) -> None:
    """A bit of an acknowledged frame flips on the disk: that frame is lost, counted, and nothing else."""
    _backlog(rig)
    journal = rig.service.data_dir / "journal"
    last = max(journal.glob("*.log"), key=lambda path: path.stat().st_size)
    data = bytearray(last.read_bytes())
    magic = bytes.fromhex("f8fffefdfcfbfaf9")
    frames, at = [], data.find(magic)
    while at >= 0:
        frames.append(at)
        at = data.find(magic, at + 1)
    # One in the middle: those before it may be in the store, and the last one's loss looks like a torn tail.
    middle = frames[len(frames) * 3 // 4]
    records = struct.unpack_from("<8sIIQI", data, middle)[4]
    data[middle + 60] ^= 1 << rig.rng.randrange(8)
    last.write_bytes(data)
    rig.start()
    rig.expect_log("are damaged; records lost: ")
    rig.more()
    lost = rig.settle(lost_at_most=records)
    # A frame is what one call sent, and perhaps the ledger's note of that, which is counted with the records.
    if not records - 1 <= len(lost) <= records:
        rig.result.problems.append(f"{len(lost)} records are lost; the damaged frame held {records}")
    said = [int(n) for n in re.findall(r"are damaged; records lost: ([0-9]+)", rig.service.log)]
    if sum(said) != records:
        rig.result.problems.append(f"the log says {said} records lost; it were {records}")
    rig.result.notes.append(f"{records} in the flipped frame, all reported")
    rig.result.lost -= len(lost)


# -- clock and fsync ------------------------------------------------------------------------------


@cell("clock", BOTH, 180, short=())
def clock_jumps(rig: Rig) -> None:
    """The clock jumps an hour forward, back, and back again by two days, also across a restart."""
    rig.start()
    rig.more()
    for seconds in (3_600, 0, -2 * 86_400, 5, -3_600):
        rig.tell(f"clock {seconds}")
        rig.more(400)
        if rig.rng.random() < 0.5:
            rig.kill()
            rig.start()
            rig.more(400)
    rig.tell()
    rig.expect_log("the clock of this machine")
    rig.more()
    rig.settle()


@cell("fsync", BOTH, 180, short=EMBEDDED)
def fsync_fails(rig: Rig) -> None:
    """fsync of the journal fails: nothing is acknowledged, its file is never written again, and it goes on."""
    rig.start()
    rig.more()
    for n in range(2 if rig.is_short else 6):
        rig.tell("fsync /journal/")
        rig.expect_unready("the journal takes nothing")
        before = rig.acknowledged
        rig.expect_refusals()
        assert rig.acknowledged == before, "acknowledged without an fsync"
        segments = {path: path.stat().st_size for path in (rig.service.data_dir / "journal").glob("*.log")}
        if n % 2:
            rig.kill()
        rig.tell()
        if n % 2:
            rig.start()
        rig.more()
        rig.expect_ready()
        grown = [path.name for path, size in segments.items() if path.exists() and path.stat().st_size > size]
        assert not grown, f"{grown} was written after a failed fsync"
    rig.settle()


@cell("fsync-checkpoint", BOTH, 120, short=())
def fsync_of_the_checkpoint_fails(rig: Rig) -> None:
    """fsync of the checkpoint fails: the store goes on, the journal is kept."""
    rig.start()
    rig.more()
    rig.tell("fsync indexer.checkpoint")
    rig.expect_unready("the indexer is retrying")
    rig.more()
    rig.kill()
    rig.start()
    rig.more()
    rig.tell()
    rig.expect_ready()
    rig.settle()


# -- the agent ------------------------------------------------------------------------------------


@cell("agent", BOTH, 240, short=ELASTIC)
def agent_and_service_killed(rig: Rig) -> None:
    """Agent and service are killed while the file is rotated in every way: each line once."""
    rig.start(load=False)
    with rig.agent() as agent:
        ways = ["rename", "copytruncate", "compress", "recreate", "truncate", "half"]
        for n in itertools.count():
            if n == (len(ways) if rig.is_short else 3 * len(ways)):
                break
            agent.write(rig.rng.randrange(50, 400))
            agent.rotate(ways[n % len(ways)])
            match rig.rng.randrange(3):
                case 0:
                    agent.kill()
                    agent.write(20)
                    agent.start()
                case 1:
                    rig.kill()
                    agent.write(20)
                    rig.start(load=False)
                case _:
                    pass
        agent.write(10)
        agent.wait_for_all()
    rig.settle()


def _logrotate(rig: Rig, options: str, *, is_raced: bool) -> None:
    rig.start(load=False)
    with rig.agent() as agent:
        with agent.writing():
            for _ in range(5 if rig.is_short else 20):
                rig.run(rig.rng.uniform(1.0, 2.0))  # files are told from each other by the second
                agent.logrotate(options, is_raced=is_raced)
                match rig.rng.randrange(3):
                    case 0:
                        agent.kill()
                        rig.run(rig.rng.uniform(1.0, 1.5))
                        agent.logrotate(options, is_raced=is_raced)
                        agent.start()
                    case 1:
                        rig.kill()
                        rig.start(load=False)
                    case _:
                        pass
        agent.wait_for_all()
    rig.settle()


# What a program writes while logrotate copies and truncates, or compresses at once, is lost by that alone.
for _name, _options, _is_raced in [
    ("create", "create", True),
    ("copytruncate", "copytruncate", False),
    ("compress", "create, compress", False),
    ("delaycompress", "create, compress, delaycompress", True),
    ("dateext", "create, compress, delaycompress, dateext, dateformat -%Y%m%d-%s", True),
]:

    def _run_logrotate(rig: Rig, options: str = _options, is_raced: bool = _is_raced) -> None:
        _logrotate(rig, options, is_raced=is_raced)

    _run_logrotate.__doc__ = f"The real logrotate ({_options}) under load, agent and service killed: each line once."
    cell(f"logrotate-{_name}", EMBEDDED, 240, short=())(_run_logrotate)
