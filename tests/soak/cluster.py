"""Cluster: three real nodes of Elasticsearch, one of which can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.support import elasticsearch

NODES = 3
JAVA_OPTIONS = "-Xms400m -Xmx400m -XX:TieredStopAtLevel=1"


class Cluster:
    """See the module."""

    def __init__(self, launchers: list[subprocess.Popen[bytes]], urls: list[str]) -> None:
        self._launchers, self.urls = launchers, urls
        self._killed: set[int] = set()

    @classmethod
    @contextlib.contextmanager
    def running(cls, kill_at_end: Callable[[Callable[[], None]], None]) -> Iterator[Cluster]:
        """Run the nodes for the block, stopping each of them afterwards.

        Args:
            kill_at_end: Gets what kills them all, for whoever must not wait until they have started.
        """
        # Beside the system's temporary files: the server's user must be able to reach it.
        root = Path(tempfile.mkdtemp(prefix="logsvc-soak-nodes-"))
        root.chmod(0o755)
        launchers: list[subprocess.Popen[bytes]] = []

        def kill() -> None:
            for launcher in launchers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)

        kill_at_end(kill)
        try:
            started = elasticsearch.start_cluster(root, NODES, JAVA_OPTIONS, launchers)
            yield cls(launchers, started)
        finally:
            for launcher in launchers:
                for process in _servers(launcher):
                    with contextlib.suppress(psutil.Error):
                        process.resume()
                elasticsearch._stop(launcher)
            shutil.rmtree(root, ignore_errors=True)

    def kill(self, number: int) -> None:
        """kill -9 of a node."""
        self._killed.add(number)
        os.killpg(self._launchers[number].pid, signal.SIGKILL)
        self._launchers[number].wait(30)

    def pause(self) -> int:
        """SIGSTOP one of the nodes that are left."""
        number = next(n for n in range(NODES) if n not in self._killed)
        for process in _servers(self._launchers[number]):
            process.suspend()
        return number

    def resume(self, number: int) -> None:
        """Let it go on."""
        for process in _servers(self._launchers[number]):
            process.resume()


def _servers(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(launcher.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
