"""platform: the task platform of the demo. It runs tasks against a real SQLite database.

    python -m logsvc_demo.platform --database FILE --gateway-port N --release 1.9.0

Each release migrates the database when it starts. Release 2.0.0 rebuilds ``execution_tasks``; with
``--forget-column`` its migration forgets the column ``ai_model``, so that the task that writes it
fails from then on. ``--stall TASK`` makes the consumer of a task hang after a while: it neither
fails nor logs, it is just silent.

Everything is logged through loguru and ``shippers.LoguruSink``, with ``LOGSVC_URL`` and
``LOGSVC_API_KEY`` from the environment.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import sqlite3
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

import shippers
from logsvc_demo.world import World, schedule
from shippers.batcher import Settings

if TYPE_CHECKING:
    import loguru

PERIODS_S = {"billing.charge": 15.0, "email.send": 5.0, "reports.summarize": 15.0}
_MODELS = ("small-2", "large-1")

_SCHEMA_1 = """
CREATE TABLE IF NOT EXISTS execution_tasks (id TEXT PRIMARY KEY, task TEXT NOT NULL, ai_model TEXT);
CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY, customer TEXT NOT NULL, cents INTEGER CHECK (cents > 0));
CREATE TABLE IF NOT EXISTS outbox (id TEXT PRIMARY KEY, address TEXT NOT NULL);
"""
_MIGRATION_2 = """
CREATE TABLE new_tasks (id TEXT PRIMARY KEY, task TEXT NOT NULL, duration_ms INTEGER{ai_model});
INSERT INTO new_tasks (id, task) SELECT id, task FROM execution_tasks;
DROP TABLE execution_tasks;
ALTER TABLE new_tasks RENAME TO execution_tasks;
"""


class CardDeclined(Exception):
    """A customer's card was refused: the usual failure of billing, no incident."""


class Gateway:
    """Connection to the payment gateway, opened again when it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, line: str) -> str:
        """Send one line and return the answer; raises OSError when the gateway is away."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=5.0)
        try:
            self._socket.sendall(line.encode() + b"\n")
            answer = self._socket.recv(4096)
            if not answer:
                raise ConnectionResetError("the payment gateway closed the connection")
        except OSError:
            self._socket.close()
            self._socket = None
            raise
        return answer.decode().strip()


class Platform:
    """The runner: one method a task, each run under ``shippers.task``."""

    def __init__(self, database: sqlite3.Connection, gateway: Gateway, world: World, rng: random.Random) -> None:
        self._database = database
        self._gateway = gateway
        self._world = world
        self._rng = rng
        # History carries its own time; loguru lets a patcher set it.
        self._logger = logger.patch(self._set_time)
        self._tasks = {
            "billing.charge": self.charge,
            "email.send": self.send,
            "reports.summarize": self.summarize,
        }

    def _set_time(self, record: loguru.Record) -> None:
        record["time"] = self._world.when()

    def run(self, name: str) -> None:
        """Run the task ``name`` once; a failure is logged and reported, and the runner goes on."""
        run_id = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        try:
            with shippers.task(name, id=run_id, report=True, clock=self._world.now):
                self._world.spend(self._rng.lognormvariate(-3.0, 0.25))
                self._tasks[name](run_id, self._logger)
        except Exception:  # noqa: BLE001, S110 - reported by the task itself; the runner outlives its tasks
            pass

    def charge(self, run_id: str, log: loguru.Logger) -> None:
        """Charge a customer through the gateway."""
        customer, cents = f"customer-{self._rng.randrange(40)}", self._rng.randrange(100, 20_000)
        self._gateway.ask(f"charge {customer} {cents}")
        if self._rng.random() < 0.01:
            raise CardDeclined(f"card of {customer} was declined")
        with self._database:
            self._database.execute("INSERT INTO charges VALUES (?, ?, ?)", (run_id, customer, cents))
        log.bind(**{"organization.id": customer}).info("charged {} cents", cents)

    def send(self, run_id: str, log: loguru.Logger) -> None:
        """Queue an e-mail."""
        address = f"user{self._rng.randrange(5000)}@shop.example"
        with self._database:
            self._database.execute("INSERT INTO outbox VALUES (?, ?)", (run_id, address))
        if self._rng.random() < 0.02:
            log.warning("mail server was slow, second try for {}", address)
        else:
            log.info("sent receipt to {}", address)

    def summarize(self, run_id: str, log: loguru.Logger) -> None:
        """Write a report with a language model, and record which one."""
        model = self._rng.choice(_MODELS)
        self._gateway.ask(f"balance {run_id}")
        with self._database:
            self._database.execute(
                "INSERT INTO execution_tasks (id, task, ai_model) VALUES (?, ?, ?)",
                (run_id, "reports.summarize", model),
            )
        log.info("summarized report {} with model {}", self._rng.randrange(10_000), model)


def migrate(database: sqlite3.Connection, release: str, *, forgets_column: bool) -> None:
    """Bring the database to what ``release`` expects, or to what it thinks so."""
    database.executescript(_SCHEMA_1)
    if release >= "2" and database.execute("PRAGMA user_version").fetchone()[0] < 2:
        database.executescript(_MIGRATION_2.format(ai_model="" if forgets_column else ", ai_model TEXT"))
        database.execute("PRAGMA user_version = 2")


def main() -> None:
    """Run tasks: the past days in seconds if asked, then live until ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--gateway-port", type=int, required=True)
    parser.add_argument("--release", default="1.9.0")
    parser.add_argument("--history-days", type=float, default=0.0)
    parser.add_argument("--forget-column", action="store_true")
    parser.add_argument("--stall", metavar="TASK", choices=sorted(PERIODS_S))
    parser.add_argument("--stall-after", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    stop, rng = threading.Event(), random.Random(f"{args.seed} {args.release}")
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    sink = shippers.LoguruSink(
        service="task-platform",
        version=args.release,
        environment="demo",
        # Days in seconds are more than any queue holds: history waits for its shipper.
        settings=Settings(when_full="block", block_timeout_s=30.0),
    )
    logger.remove()
    logger.add(sink, level="DEBUG")

    start = time.time() - args.history_days * 86_400
    world = World(start, stop)
    database = sqlite3.connect(args.database)
    database.execute("PRAGMA synchronous = OFF")  # a demo's data may go with the power
    migrate(database, args.release, forgets_column=args.forget_column)
    platform = Platform(database, Gateway(args.gateway_port), world, rng)
    stalls_at = time.time() + args.stall_after if args.stall else float("inf")
    announced = False
    for moment, name in schedule(world, PERIODS_S, rng, start, None):
        if stop.is_set():
            break
        if world.is_live and not announced:
            announced = True
            logger.info("release {} runs live", args.release)
            print("live", flush=True)
        if name == args.stall and moment >= stalls_at:
            continue
        platform.run(name)
    sink.close()
    sys.exit(0)


if __name__ == "__main__":
    main()
