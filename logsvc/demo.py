"""Demo: the mission in miniature, with real programs, real exceptions and a real service.

Starts the service on a directory of its own, a task platform, its payment gateway and a storefront
with an agent, all as processes (``logsvc_demo``). They relive days of history in seconds, go on
live, and then something breaks. The demo watches from outside, as an engineer would: over the API.

With ``CI`` set it ends by itself and succeeds only if exactly the right tickets opened.
"""

from __future__ import annotations

import math
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from logsvc import terminal
from logsvc.client import Client, ClientError

WINDOW = "30s"
GRACE = "5s"
QUIET_S = 25.0  # live and healthy, before something breaks
LIVE_S = 75.0  # the same, before a silence: only a task that was live can fall silent
WATCH_S = 170.0  # how long a ticket may take before the demo gives up
AFTERMATH_S = 20.0  # how long to look for tickets too many
_FINE = 'level:>=warn AND NOT "slow, second try" AND NOT service:storefront'


class Break(Enum):
    """What goes wrong."""

    SCHEMA = "schema"
    DEPENDENCY = "dependency"
    SILENCE = "silence"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Expected:
    """The tickets that must open: none, or one about these tasks."""

    story: str
    tasks: frozenset[str]
    kinds: frozenset[str]
    words: tuple[str, ...] = ()
    release: str | None = None


EXPECTED: Mapping[Break, Expected] = {
    Break.SCHEMA: Expected(
        "release 2.0.0 rolls out; its migration forgets the column ai_model of execution_tasks",
        frozenset({"reports.summarize"}),
        frozenset({"new_error", "error_burst", "joint"}),
        ("OperationalError", "ai_model"),
        "2.0.0",
    ),
    Break.DEPENDENCY: Expected(
        "the payment gateway dies; two tasks depend on it",
        frozenset({"billing.charge", "reports.summarize"}),
        frozenset({"new_error", "error_burst", "joint"}),
        ("Connection",),
    ),
    Break.SILENCE: Expected(
        "release 1.9.1 rolls out; the consumer of email.send hangs without a word",
        frozenset({"email.send"}),
        frozenset({"silence"}),
    ),
    Break.NONE: Expected("release 2.0.0 rolls out, and all is well", frozenset(), frozenset()),
}


class DemoFailed(Exception):
    """The demo did not show what it should; the message says what it saw instead."""


_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off signals that end the demo until the block has ended; children begin with the usual handlers."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


class _Processes:
    """The programs of the demo, each with its output in a file, ended in reverse order."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._environ = dict(environ)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str, **environ: str) -> Path:
        """Start ``python -m ARGUMENTS`` as ``name`` and return the file with its output."""
        output = self._directory / f"{name}.log"
        with output.open("ab") as out, _uninterrupted():  # or a program could run that nobody knows of
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**self._environ, **environ},
                start_new_session=True,  # Ctrl-C ends the demo, which then ends them in order
            )
        return output

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End ``name`` and wait until it has ended."""
        process = self._running.pop(name)
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def check(self) -> None:
        """Raise DemoFailed if a program has ended that should run."""
        for name, process in self._running.items():
            if process.poll() is not None:
                tail = (self._directory / f"{name}.log").read_text(errors="replace")[-2000:]
                raise DemoFailed(f"{name} ended with code {process.returncode}:\n{tail}")

    def stop_all(self) -> None:
        """End everything, the last started first."""
        for name in reversed(list(self._running)):
            self.stop(name)


class Demo:
    """One run of the demo in ``directory``."""

    def __init__(
        self, what: Break, directory: Path, console: Console, *, store_url: str | None, history_days: float
    ) -> None:
        self.what = what
        self._history = ("--history-days", f"{history_days:g}")
        self.expected = EXPECTED[what]
        self.directory = directory
        self._console = console
        # People get the port they know. Several demos at once, as in tests, would all find it free.
        self.url = f"http://127.0.0.1:{_free_port(8080 if sys.stdout.isatty() else 0)}"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LOGSVC_")}
        environ |= {
            "LOGSVC_DATA_DIR": str(directory / "data"),
            "LOGSVC_PORT": self.url.rpartition(":")[2],
            "LOGSVC_WINDOW": WINDOW,
            "LOGSVC_GRACE": GRACE,
            "PYTHONUNBUFFERED": "1",
            # Spools and checkpoints of shippers: another demo's must not be taken up here.
            "XDG_STATE_HOME": str(directory / "shippers"),
        }
        if store_url:
            environ["LOGSVC_STORE_URL"] = store_url
            # Indices of its own: never among records that somebody needs, nor among an earlier demo's.
            environ["LOGSVC_STORE_PREFIX"] = f"logsvc-demo-{secrets.token_hex(3)}"
        self._processes = _Processes(directory, environ)
        self._environ = environ
        self._started = time.monotonic()

    def run(self) -> list[dict[str, Any]]:
        """Run until the tickets are known and right; return them. The programs go on until ``close``.

        Raises:
            DemoFailed: If anything but the right tickets opened, or a program ended.
        """
        say = self._say
        say(f"starting the service at {self.url}, its data in {self.directory}")
        key = self._make_key()
        self._processes.start("service", "logsvc", "serve")
        client = Client(self.url, key)
        self._wait("the service to be ready", 60, lambda: _is_ready(client))
        self._write_environment(key)

        port_file = self.directory / "gateway.port"
        self._processes.start("gateway", "logsvc_demo.gateway", "--port-file", str(port_file))
        self._wait("the gateway", 10, port_file.exists)
        shop_log = self.directory / "storefront.log.txt"
        shop_log.touch()
        ship = {"LOGSVC_URL": self.url, "LOGSVC_API_KEY": key}
        self._processes.start("storefront", "logsvc_demo.storefront", "--log", str(shop_log), *self._history)
        self._processes.start("agent", "shippers.agent", "--service", "storefront", str(shop_log), **ship)
        platform = (
            "logsvc_demo.platform",
            "--database",
            str(self.directory / "platform.db"),
            "--gateway-port",
            port_file.read_text(),
        )
        say(f"three tasks, a gateway and a shop relive {self._history[1]} days in seconds")
        output = self._processes.start("platform-1", *platform, *self._history, **ship)
        with self._console.status("") as status:

            def progress() -> int:
                count = _count(client)
                status.update(f"{count:>9,} records searchable")
                return count

            def judged() -> float:
                return client.metrics().get("detection_windows_total", 0)

            # A slow machine takes its time: only standing still is a failure.
            self._wait("the history", 60, lambda: "live" in output.read_text(), every_s=0.5, progress=progress)
            self._wait("detection to have judged it", 60, lambda: _is_judged(client), every_s=0.5, progress=judged)
        say(f"{_count(client):,} records are searchable; live now, and healthy")

        with self._shown_live(client):
            self._watch_quiet(client, LIVE_S if self.what is Break.SILENCE else QUIET_S, allowed=0)
            say(self.expected.story, style="bold yellow")
            broken_at = time.time()
            if self.what is Break.DEPENDENCY:
                self._processes.stop("gateway", signal.SIGKILL)
            else:
                self._processes.stop("platform-1")
                self._processes.start("platform-2", *platform, *self._release(), **ship)
            tickets = self._await_tickets(client)
        if tickets:
            say(f"the ticket opened {_seconds(tickets[0]['opened_at'], broken_at)}", style="bold green")
        self._verify(tickets)
        return [client.get(f"/api/v1/tickets/{ticket['id']}") for ticket in tickets]

    def close(self) -> None:
        """End every program."""
        self._processes.stop_all()

    def commands(self, tickets: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return what a person may type next."""
        shown = [f"logsvc tickets show {ticket['id']}" for ticket in tickets]
        query = 'task:"reports.summarize" level:>=error' if not tickets else str(tickets[0]["query"])
        return [
            f"source {shlex.quote(str(self.directory / 'env'))}",
            *shown,
            f"logsvc search {shlex.quote(query)}",
            "logsvc tail",
            "logsvc doctor",
        ]

    def _release(self) -> tuple[str, ...]:
        if self.what is Break.SILENCE:
            return ("--release", "1.9.1", "--stall", "email.send")
        return ("--release", "2.0.0", *(("--forget-column",) if self.what is Break.SCHEMA else ()))

    def _say(self, text: str, style: str = "") -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"[dim]{elapsed:6.1f} s[/]  ", end="")
        self._console.print(terminal.clean(text), style=style, markup=False)

    def _make_key(self) -> str:
        made = subprocess.run(
            [sys.executable, "-m", "logsvc", "keys", "create", "--scope", "ingest", "--scope", "read", "-o", "json"],
            env=self._environ,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if made.returncode:
            raise DemoFailed(f"no key could be made: {made.stderr.decode(errors='replace')}")
        return str(msgspec.json.decode(made.stdout)["key"])

    def _write_environment(self, key: str) -> None:
        path = self.directory / "env"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(f"export LOGSVC_URL={self.url} LOGSVC_API_KEY={key}\n")
            out.write(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")

    def _wait(
        self,
        what: str,
        seconds: float,
        is_done: Callable[[], bool],
        every_s: float = 0.2,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """Wait until it is done, as long as ``progress`` has another value at least every ``seconds``."""
        deadline, last = time.monotonic() + seconds, progress()
        while not is_done():
            self._processes.check()
            if (reached := progress()) != last:
                deadline, last = time.monotonic() + seconds, reached
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"waited {seconds:g} s for {what}, in vain; the programs' output is in {self.directory}"
                )
            time.sleep(every_s)

    @contextmanager
    def _shown_live(self, client: Client) -> Iterator[None]:
        """Print what an engineer would watch: warnings and worse, as they arrive."""
        stop = threading.Event()

        thread = threading.Thread(target=self._follow, args=(client, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()

    def _follow(self, client: Client, stop: threading.Event) -> None:
        try:
            with client.events("/api/v1/tail", q=_FINE) as records:
                for record in records:
                    if stop.is_set():
                        return
                    self._console.print("          ", terminal.record_line(record, with_stack=False), soft_wrap=True)
        except ClientError:
            return  # the service has ended, and the demo says so itself

    def _watch_quiet(self, client: Client, seconds: float, allowed: int, tasks: frozenset[str] | None = None) -> None:
        """Look for tickets too many, as long as said or until the tickets have all of ``tasks``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._processes.check()
            tickets = _tickets(client)
            if len(tickets) > allowed:
                titles = "; ".join(ticket["title"] for ticket in tickets)
                raise DemoFailed(f"{len(tickets)} tickets, where {allowed} were right: {titles}")
            if tasks is not None and tasks.issubset(task for ticket in tickets for task in ticket["tasks"]):
                return
            time.sleep(1)

    def _await_tickets(self, client: Client) -> list[dict[str, Any]]:
        if self.what is Break.NONE:
            self._watch_quiet(client, WATCH_S * 0.6, allowed=0)
            return []
        self._wait("a ticket", WATCH_S, lambda: bool(_tickets(client)), every_s=1)
        # A task that fails less often joins some windows later.
        self._watch_quiet(client, WATCH_S, allowed=1, tasks=self.expected.tasks)
        # Others may follow that do not belong here.
        self._watch_quiet(client, AFTERMATH_S, allowed=1)
        return _tickets(client)

    def _verify(self, tickets: Sequence[Mapping[str, Any]]) -> None:
        expected = self.expected
        if len(tickets) != (1 if expected.tasks else 0):
            raise DemoFailed(f"{len(tickets)} tickets opened: {[ticket['title'] for ticket in tickets]}")
        for ticket in tickets:
            said = msgspec.json.encode(ticket).decode()
            wrong = []
            if set(ticket["tasks"]) != expected.tasks:
                wrong.append(f"its tasks are {ticket['tasks']}, not {sorted(expected.tasks)}")
            if ticket["kind"] not in expected.kinds:
                wrong.append(f"its kind is {ticket['kind']}, not one of {sorted(expected.kinds)}")
            wrong += [f"it does not say {word!r}" for word in expected.words if word not in said]
            if expected.release and expected.release not in ticket["releases"]:
                wrong.append(f"its releases are {ticket['releases']}, without {expected.release}")
            if wrong:
                raise DemoFailed(f"the ticket {ticket['title']!r} is not right: {'; '.join(wrong)}")


def run(what: Break, directory: Path, *, store_url: str | None, history_days: float) -> int:
    """Run the demo for a person (until Ctrl-C) or, with ``CI`` set, to its end; return the exit code."""
    console = terminal.console()
    for number in _ENDING:  # a closed window ends it as Ctrl-C does, and with it all it started
        signal.signal(number, signal.default_int_handler)
    demo = Demo(what, directory, console, store_url=store_url, history_days=history_days)
    is_ci = bool(os.environ.get("CI"))
    try:
        tickets = demo.run()
        console.print()
        for ticket in tickets:
            console.print(terminal.ticket_view(ticket), crop=False)
        if not tickets:
            console.print("[bold green]No ticket opened, and none should have.[/]")
        if is_ci:
            return 0
        console.print("\nIt goes on running until Ctrl-C. In another terminal:\n")
        for command in demo.commands(tickets):
            console.print(f"  {terminal.clean(command)}", style="green", markup=False, soft_wrap=True)
        console.print(f"\nor {demo.url}/ in a browser; any name, and as password the key in {directory / 'env'}\n")
        signal.pause()
    except DemoFailed as exc:
        terminal.console(is_error=True).print(f"[bold red]the demo failed:[/] {terminal.clean(exc)}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nending")
    finally:
        demo.close()
    return 0


def _free_port(preferred: int) -> int:
    for port in dict.fromkeys((preferred, 0)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("no free port on 127.0.0.1")


def _is_ready(client: Client) -> bool:
    try:
        client.get("/readyz")
    except ClientError:
        return False
    return True


def _count(client: Client) -> int:
    return int(client.get("/api/v1/count")["count"])


def _tickets(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/v1/tickets")["tickets"]
    return found


def _is_judged(client: Client) -> bool:
    return client.metrics().get("detection_cursor_lag_seconds", math.inf) < 20


def _seconds(opened_at: str, since: float) -> str:
    from datetime import datetime

    moment = datetime.fromisoformat(opened_at.replace("Z", "+00:00")).timestamp()
    return f"{moment - since:.0f} s after that"
