"""Rig: one cell's service on one store, its load, what is broken about it, and the checks at the end."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.soak.load import Ledger, Load
from tests.soak.programs import AgentProcess, Program
from tests.soak.proxy import Proxy
from tests.support.elasticsearch import drop_indices
from tests.support.service import ServiceProcess

_migrating = threading.Lock()  # alembic keeps its state in a module, and two cells run side by side


class Ended(Exception):
    """The matrix is told to end; what the cell has started it closes on its way out."""


MAX_MEMORY_BYTES = 500_000_000
SETTLE_S = 120.0
NUMBERED = "labels.n:*"
"""Finds what senders sent; shippers add a record of their own about what they dropped."""


@dataclass(slots=True)
class Result:
    """What a cell came to."""

    acknowledged: int = 0
    unanswered: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    invented: int = 0
    kills: int = 0
    memory_bytes: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Rig:
    """See the module. ``store`` is ``embedded`` or ``elastic``; the latter is reached through a proxy."""

    def __init__(
        self,
        store: str,
        seed: str,
        *,
        is_short: bool,
        budget_s: float,
        elastic_url: str = "",
        through_proxy: bool = True,
    ) -> None:
        self.store, self.is_short = store, is_short
        self.rng = random.Random(seed)
        self.result = Result()
        self.directory = Path(tempfile.mkdtemp(prefix="logsvc-soak-"))
        self.faults = self.directory / "faults"
        self.elastic_url = elastic_url
        self.prefix = f"soak-{secrets.token_hex(4)}"
        self._deadline = time.monotonic() + budget_s
        self._stack = contextlib.ExitStack()
        self._load: Load | None = None
        self._ledger = Ledger()  # of cells without a load of their own
        self._proxy: Proxy | None = None
        environ = {"LOGSVC_TEST_FAULTS": str(self.faults), "LOGSVC_LOG_FORMAT": "text"}
        if store == "elastic":
            url = elastic_url
            if through_proxy:
                self._proxy = Proxy(elastic_url, random.Random(seed))
                self._stack.callback(self._proxy.close)
                url = self._proxy.url
            environ |= {"LOGSVC_STORE_URL": url, "LOGSVC_STORE_PREFIX": self.prefix}
            self._stack.callback(drop_indices, elastic_url.split(",", maxsplit=1)[0], self.prefix)
        self.service = ServiceProcess(self.directory, **environ)
        self._stack.callback(self.service.close)
        self._is_over = threading.Event()
        self._is_ended = threading.Event()
        self._starting = threading.Lock()
        self._to_kill: list[Callable[[], None]] = []
        self._watcher = threading.Thread(target=self._watch_memory, daemon=True)
        self._watcher.start()

    # -- the service and its load -------------------------------------------------------------

    @property
    def proxy(self) -> Proxy:
        """What stands between service and Elasticsearch."""
        assert self._proxy is not None, "this cell has no proxy"
        return self._proxy

    def start(self, *, load: bool = True, senders: int = 2, pause_s: float = 0.2, **environ: str) -> None:
        """Start the service, and the load if it does not run yet."""
        if "Authorization" not in self.service.http.headers:
            with _migrating:
                self.service.use(self.service.make_key())
        self.launch(**environ)
        self.service.await_answer("/healthz")
        if load and self._load is None:
            self._load = Load(self.service.url, self._key, self.rng, senders=senders, pause_s=pause_s)

    def launch(self, **environ: str) -> None:
        """Start the service and wait for nothing."""
        with self._starting:
            self._check_ended()
            self.service.launch(**environ)

    def end(self) -> None:
        """Have the cell's thread find nothing that it could wait for, from another thread: it unwinds, with ``Ended``."""
        with self._starting:
            self._is_ended.set()
            process = self.service.process
            for kill in self._to_kill:
                kill()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def kill_at_end(self, kill: Callable[[], None]) -> None:
        """Call ``kill`` if the cell is told to end, so that nobody waits for what it ends."""
        with self._starting:
            self._to_kill.append(kill)

    def _check_ended(self) -> None:
        if self._is_ended.is_set():
            raise Ended

    def kill(self) -> None:
        """kill -9."""
        self.service.kill()
        self.result.kills += 1

    def run(self, seconds: float) -> None:
        """Let things go on for so long under load."""
        # The load is what goes on meanwhile; there is no event to wait for but the end.
        self._is_ended.wait(seconds)
        self._check_ended()

    def more(self, records: int = 500) -> None:
        """Wait until so many further records were acknowledged."""
        goal = self.acknowledged + records
        self.wait(f"{records} more acknowledged records", lambda: self.acknowledged >= goal)

    def wait(self, what: str, is_true: Callable[[], object], every_s: float = 0.1) -> None:
        """Wait until something is true; the cell's budget ends it."""
        while not is_true():
            self._check_ended()
            assert time.monotonic() < self._deadline, f"waited in vain for {what}"
            self._is_ended.wait(every_s)

    @property
    def ledger(self) -> Ledger:
        """What the senders know."""
        return self._load.ledger if self._load is not None else self._ledger

    @property
    def acknowledged(self) -> int:
        """How many records were acknowledged so far."""
        return len(self.ledger.acknowledged)

    def send(self, records: int, at: str) -> None:
        """Send records of one moment; they must be acknowledged."""
        names = [f"extra-{len(self.ledger.acknowledged)}-{n}" for n in range(records)]
        self.service.ingest(
            {"@timestamp": at, "service": "soak", "message": "words", "labels": {"n": name}} for name in names
        )
        self.ledger.acknowledged.update(names)

    def elastic(self, method: str, path: str, body: object = None, *, missing: bool = False) -> None:
        """Ask Elasticsearch itself, not through the proxy."""
        answer = httpx.request(method, f"{self.elastic_url}{path}", json=body, timeout=60, trust_env=False)
        assert answer.is_success or (missing and answer.status_code == 404), answer.text

    def use_cluster(self, urls: list[str]) -> None:
        """Have the service talk to these nodes instead."""
        self.service.environ["LOGSVC_STORE_URL"] = ",".join(urls)

    @contextlib.contextmanager
    def program(self, spool: Path) -> Iterator[Program]:
        """Run a program that logs through a handler; afterwards what arrived and what it counted must make up all."""
        program = Program(self.service, self._key, spool)
        try:
            yield program
        finally:
            program.close()
        self.expect_ready()
        self.wait("everything to be searchable", lambda: self.metrics()["indexer_lag_records"] == 0, 0.2)
        stats, logged = program.handler.batcher.stats(), len(program.names)
        arrived = self.service.count(NUMBERED)
        self.result.notes.append(f"{logged} logged, {arrived} arrived, {stats['dropped']} dropped and counted")
        if arrived + stats["dropped"] != logged:
            self.result.problems.append(f"{logged} logged, {arrived} arrived, {stats['dropped']} counted as dropped")
        if arrived < logged // 4:
            self.result.problems.append(f"only {arrived} of {logged} records arrived")
        # Each may be among the dropped; whether all others arrived was just counted.
        self._ledger.acknowledged |= {_number(record) for record in self.service.walk(NUMBERED)}
        self._ledger.unanswered |= program.names - self._ledger.acknowledged

    @contextlib.contextmanager
    def agent(self) -> Iterator[AgentProcess]:
        """Run the agent on a file; every whole line counts as acknowledged, for the file is its buffer."""
        agent = AgentProcess(self.directory / "files", self.service, self._key, self._ledger)
        try:
            yield agent
        finally:
            agent.close()

    @property
    def _key(self) -> str:
        return self.service.http.headers["Authorization"].removeprefix("Bearer ")

    def tell(self, *faults: str) -> None:
        """Have the running service break in the ways of ``logsvc.faults``; none mends it."""
        aside = self.faults.with_suffix(".new")
        aside.write_text("".join(f"{fault}\n" for fault in faults))
        aside.replace(self.faults)

    # -- what the service says ----------------------------------------------------------------

    def ready(self) -> tuple[int, str]:
        """Return the status and the text of /readyz."""
        try:
            answer = self.service.http.get("/readyz")
        except httpx.TransportError as exc:
            return 0, type(exc).__name__
        return answer.status_code, answer.text

    def expect_unready(self, pattern: str) -> None:
        """Wait until /readyz says, in these words, what is wrong."""
        seen: list[tuple[int, str]] = []

        def says() -> bool:
            seen.append(self.ready())
            return seen[-1][0] == 503 and re.search(pattern, seen[-1][1]) is not None

        try:
            self.wait(f"/readyz to say {pattern!r}", says, 0.2)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it said {dict.fromkeys(seen)}") from None
        self.result.said.append("readyz")

    def expect_ready(self) -> None:
        """Wait until the service is well again."""
        seen: list[tuple[int, str]] = []

        def is_well() -> bool:
            seen.append(self.ready())
            return seen[-1][0] == 200

        try:
            self.wait("/readyz to answer 200", is_well, 0.2)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it said {seen[-1]}") from None

    def expect_log(self, pattern: str) -> None:
        """Wait until the service's log has a line like this."""
        self.wait(f"the log to say {pattern!r}", lambda: re.search(pattern, self.service.log))
        self.result.said.append("log")

    def expect_refusals(self) -> None:
        """Wait until senders are told to come again."""
        before = self.ledger.answers["503"]
        self.wait("senders to be refused", lambda: self.ledger.answers["503"] > before + 1)
        self.result.said.append("503")

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels."""
        answer = self.service.http.get("/metrics")
        assert answer.status_code == 200, answer.text
        lines = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def expect_metric(self, name: str, is_wanted: Callable[[float], bool]) -> None:
        """Wait until a metric says what it should."""
        self.wait(f"the metric {name}", lambda: is_wanted(self.metrics().get(name, -1.0)), 0.3)
        self.result.said.append("metrics")

    # -- disks --------------------------------------------------------------------------------

    def small_disk(self, path: Path, size_bytes: int) -> Disk:
        """Put a small file system of its own at ``path``."""
        disk = Disk(path, size_bytes)
        self._stack.callback(disk.close)
        return disk

    # -- the end ------------------------------------------------------------------------------

    def settle(self, *, lost_at_most: int = 0) -> set[str]:
        """End the load, let the service finish, walk all records, and compare; return the numbers of those lost.

        ``lost_at_most`` is for damage that nothing could survive, and that was reported.
        """
        ledger = self._load.stop() if self._load is not None else self._ledger
        result = self.result
        result.acknowledged, result.refused = len(ledger.acknowledged), len(ledger.refused)
        result.unanswered = len(ledger.unanswered)
        result.notes.append(", ".join(f"{n} × {answer}" for answer, n in sorted(ledger.answers.items())))
        self._deadline = max(self._deadline, time.monotonic() + SETTLE_S)
        self.expect_ready()
        self.wait("everything to be searchable", lambda: self.metrics()["indexer_lag_records"] == 0, 0.2)
        for problem in dict.fromkeys(ledger.wrong):
            result.problems.append(f"answered {problem}")
        lost = self._compare(ledger)
        result.lost = len(lost)
        if len(lost) > lost_at_most:
            result.problems.append(f"{len(lost)} acknowledged records are lost, such as {sorted(lost)[:3]}")
        if not ledger.acknowledged:
            result.problems.append("nothing was ever acknowledged")
        if result.memory_bytes > MAX_MEMORY_BYTES:
            result.problems.append(f"the service took {result.memory_bytes / 1e6:.0f} MB of memory")
        return lost

    def _compare(self, ledger: Ledger) -> set[str]:
        """Walk forwards or backwards by cursor; note what is doubled or was never sent."""
        result = self.result
        # A cell that acknowledged much would spend its time on small pages.
        limit = self.rng.choice([97, 1_000]) if len(ledger.acknowledged) < 10_000 else 1_000
        order = self.rng.choice(["asc", "desc"])
        found = Counter(_number(record) for record in self.service.walk(NUMBERED, limit=limit, order=order))
        doubled = [name for name, times in found.items() if times > 1]
        sent = ledger.acknowledged | ledger.unanswered | ledger.refused
        invented = [name for name in found if name not in sent]
        kept = [name for name in found if name in ledger.refused]
        result.doubled, result.invented = len(doubled), len(invented) + len(kept)
        if doubled:
            result.problems.append(f"{len(doubled)} records are there twice, such as {doubled[:3]}")
        if invented:
            result.problems.append(f"{len(invented)} records were never sent, such as {invented[:3]}")
        if kept:
            result.problems.append(f"{len(kept)} records were kept although their sender was told they were not")
        return ledger.acknowledged - set(found)

    def close(self) -> None:
        """End everything; the directory goes if the cell was well."""
        self._is_over.set()
        self._watcher.join(5)
        if self._load is not None:
            with contextlib.suppress(AssertionError):
                self._load.stop()
        self._stack.close()
        if self.result.problems and not self._is_ended.is_set():
            self.result.notes.append(f"kept: {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _watch_memory(self) -> None:
        while not self._is_over.wait(0.2):
            process = self.service.process
            if process is not None:
                with contextlib.suppress(psutil.Error):
                    self.result.memory_bytes = max(
                        self.result.memory_bytes, psutil.Process(process.pid).memory_info().rss
                    )


def _number(record: dict[str, object]) -> str:
    return str(record["labels.n"])


class Unmountable(Exception):
    """This machine mounts nothing for us; the message says why."""


class Disk:
    """A tmpfs: a real file system that is really full once ``fill`` has been called."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except OSError as exc:
            raise Unmountable(f"cannot mount a small tmpfs: {exc}") from exc
        if done.returncode:
            raise Unmountable(f"cannot mount a small tmpfs: {done.stderr.strip()}; run as root, or allow mounting")
        self._ballast = path / "ballast"
        self._is_freed = threading.Event()
        self._filler: threading.Thread | None = None

    def fill(self) -> None:
        """Take all the room that is left, and all that becomes free, as some other program would; until ``free``."""
        self._is_freed.clear()
        self._fill()
        self._filler = threading.Thread(target=self._keep_filling, daemon=True)
        self._filler.start()

    def free(self) -> None:
        """Give the room back; idempotent."""
        self._is_freed.set()
        if self._filler is not None:
            self._filler.join(10)
        self._ballast.unlink(missing_ok=True)

    def _keep_filling(self) -> None:
        while not self._is_freed.wait(0.02):
            self._fill()

    def _fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def close(self) -> None:
        """Take the file system away."""
        self.free()
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, timeout=30)


@contextlib.contextmanager
def file_size_limit(pid: int, size_bytes: int) -> Iterator[None]:
    """Let no file of a running process grow beyond ``size_bytes`` for the block: a full disk where none can be made."""
    process = psutil.Process(pid)
    before = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, before)
