"""Programs: those that log during a cell, a handler with a spool and an agent that follows a rotated file."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import shippers
from tests.soak.load import Ledger
from tests.support import logrotate
from tests.support.service import ServiceProcess


class Program:
    """Logs through a handler; what it says was dropped may be missing, and nothing else."""

    def __init__(self, service: ServiceProcess, key: str, spool: Path) -> None:
        self.handler = shippers.LogHandler(
            service.url,
            key,
            service="soak",
            spool_dir=str(spool),
            settings=shippers.Settings(
                backoff_max_s=1.0, queue_max_records=500, batch_max_records=200, compression="identity"
            ),
        )
        self._logger = logging.Logger("soak")  # noqa: LOG001 - of nobody else
        self._logger.addHandler(self.handler)
        self._names: set[str] = set()

    def log(self, records: int) -> None:
        """Log so many records."""
        for number in range(len(self._names), len(self._names) + records):
            name = f"p-{number}"
            self._names.add(name)
            self._logger.info("order %s was handled %s", number, "x" * 100, extra={"n": name})
            if number % 200 == 0:
                time.sleep(0.01)  # a program does something else, too

    def close(self) -> None:
        """Send what waits."""
        self.handler.close(20.0)

    @property
    def names(self) -> set[str]:
        """The numbers of all records logged."""
        return self._names


class AgentProcess:
    """``python -m shippers.agent`` on one file that is written and rotated; an oracle knows each line."""

    def __init__(self, directory: Path, service: ServiceProcess, key: str, ledger: Ledger) -> None:
        directory.mkdir()
        self.path = directory / "shop.log"
        self._state = directory / "state"
        self._service, self._ledger = service, ledger
        self._environ = {**os.environ, "LOGSVC_API_KEY": key, "LOGSVC_URL": service.url}
        self._log = directory / "agent.log"
        self._written = 0
        self._half = ""
        self._writing = threading.Lock()
        self._open: IO[str]
        self.process: subprocess.Popen[bytes] | None = None
        self.write(5)
        self.start()
        self.wait_for_all()

    def start(self) -> None:
        """Start the agent."""
        command = [sys.executable, "-m", "shippers.agent", "--service", "soak", "--state-dir", str(self._state)]
        with self._log.open("ab") as out:
            self.process = subprocess.Popen([*command, str(self.path)], env=self._environ, stdout=out, stderr=out)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def write(self, lines: int) -> None:
        """Append lines, completing one that was left half."""
        with self.path.open("a") as file:
            for _ in range(lines):
                name = f"a-{self._written}"
                line = f'{{"message": "order was handled", "level": "info", "n": "{name}"}}\n'
                file.write(line[len(self._half) :] if self._half else line)
                self._half = ""
                self._written += 1
                self._ledger.acknowledged.add(name)

    def rotate(self, way: str) -> None:
        """Rotate the file, or leave a half line at its end."""
        first = self.path.with_name("shop.log.1")
        if way == "half":
            self._half = f'{{"message": "order was handled", "level": "info", "n": "a-{self._written}'[:30]
            with self.path.open("a") as file:
                file.write(self._half)
            return
        if self._half:
            self.write(1)
        if way in ("recreate", "truncate", "compress", "copytruncate"):
            # What is removed before it was read is lost for anybody, and rotation keeps but a few files.
            self.wait_for_all()
        if way == "rename":
            self._shift()
            os.rename(self.path, first)
            self.path.touch()
        elif way == "copytruncate":
            self._shift()
            shutil.copyfile(self.path, first)
            os.truncate(self.path, 0)
        elif way == "compress":
            for path in self.path.parent.glob("shop.log.*"):
                if path.suffix != ".gz":
                    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
                        shutil.copyfileobj(plain, packed)
                    shutil.copystat(path, f"{path}.gz")
                    path.unlink()
        elif way == "recreate":
            self.path.unlink()
            self.path.touch()
        elif way == "truncate":
            os.truncate(self.path, 0)

    def _shift(self) -> None:
        rotated = sorted(self.path.parent.glob("shop.log.*"), key=lambda path: -int(path.name.split(".")[2]))
        for path in rotated:
            number = path.name.split(".")[2]
            path.rename(path.with_name(path.name.replace(f".{number}", f".{int(number) + 1}", 1)))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write on and on for the block, as a program does that opens its file anew only after a rotation."""
        ended = threading.Event()

        def write() -> None:
            while not ended.wait(0.002):
                with self._writing:
                    name = f"a-{self._written}"
                    self._open.write(f'{{"message": "order was handled", "level": "info", "n": "{name}"}}\n')
                    self._open.flush()
                    self._written += 1
                    self._ledger.acknowledged.add(name)

        self._open = self.path.open("a")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join()
            self._open.close()

    def logrotate(self, options: str, *, is_raced: bool) -> None:
        """Have the real logrotate rotate the file, and then the program open it anew.

        Args:
            options: What its configuration says of the file.
            is_raced: Whether the program writes meanwhile; with some options logrotate itself loses what it does.

        Raises:
            Unobtainable: If there is no logrotate, and it cannot be installed.
        """
        with contextlib.ExitStack() as held:
            if not is_raced:
                held.enter_context(self._writing)
            logrotate.rotate(self.path, options.split(", "), self.path.parent)
            if is_raced:
                held.enter_context(self._writing)
            self._open.close()
            self._open = self.path.open("a")

    def wait_for_all(self) -> None:
        """Wait until the service has every whole line."""
        if self.process is None:
            self.start()
        whole = self._written
        self._service.wait("every line to be there", lambda: self._service.count() >= whole, 60, 0.2)

    def close(self) -> None:
        """End the agent."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
