"""A real service for end-to-end tests: ``logsvc serve`` as a process, talked to over HTTP, killed for real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from logsvc.keys import Keys, Scope
from logsvc.state import open_state
from logsvc.timestamps import system_clock

START_TIMEOUT_S = 120.0  # a busy machine
_ALL_SCOPES = ("ingest", "read", "respond")


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceProcess:
    """``logsvc serve`` on a data directory of its own; survives ``kill`` and ``start`` with its data."""

    def __init__(self, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.url = f"http://127.0.0.1:{free_port()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LOGSVC_")}
        self.environ = {
            **kept,
            "LOGSVC_DATA_DIR": str(self.data_dir),
            "LOGSVC_PORT": self.url.rpartition(":")[2],
            "LOGSVC_LOG_FORMAT": "json",
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)

    @property
    def log(self) -> str:
        """What the service has written so far."""
        return (self.directory / "serve.log").read_text(errors="replace")

    def run(self, *arguments: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ``logsvc`` on this service's data directory."""
        done = subprocess.run(
            [sys.executable, "-m", "logsvc", *arguments],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
        return done

    def make_key(self, *scopes: str, tenant: str = "default", **quota: int) -> str:
        """Return a new key with ``scopes``; ingest, read and respond if none are named."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = open_state(f"sqlite:///{self.data_dir / 'state.db'}")
        try:
            chosen = [Scope(scope) for scope in scopes or _ALL_SCOPES]
            return Keys(state, system_clock).create(tenant=tenant, name="test", scopes=chosen, **quota)[0]
        finally:
            state.close()

    def start(self, *, is_ready: bool = True, **environ: str) -> ServiceProcess:
        """Start the service and wait until it answers (until it is ready, unless told otherwise)."""
        self.launch(**environ)
        self.await_answer("/readyz" if is_ready else "/healthz")
        return self

    def await_answer(self, path: str) -> None:
        """Wait until a service that was launched answers 200 there."""
        self.wait(f"{path} to answer 200", lambda: self._answers(path), START_TIMEOUT_S)

    def launch(self, **environ: str) -> None:
        """Start the process and wait for nothing."""
        with (self.directory / "serve.log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "logsvc", "serve"],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def _answers(self, path: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the service ended with {self.process.returncode}:\n{self.log[-3000:]}"
        try:
            return self.http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End the service as a power cut would: SIGKILL, at once."""
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the service and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process = None
        return code

    def close(self) -> None:
        """End whatever still runs."""
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def use(self, key: str) -> None:
        """Send ``key`` with every request from now on."""
        self.http.headers["Authorization"] = f"Bearer {key}"

    def ingest(self, records: Iterable[Mapping[str, object]]) -> dict[str, Any]:
        """Send records as NDJSON; they must all be accepted."""
        body = b"\n".join(msgspec.json.encode(record) for record in records)
        answer = self.http.post("/api/v1/ingest", content=body)
        assert answer.status_code == 202, answer.text
        decoded: dict[str, Any] = answer.json()
        assert decoded["rejected"] == []
        return decoded

    def get(self, path: str, **params: str | int) -> Any:
        """Return the JSON of ``/api/v1`` + ``path``."""
        answer = self.http.get(f"/api/v1{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def count(self, q: str = "") -> int:
        """Return how many records match."""
        return int(self.get("/count", q=q)["count"])

    def walk(self, q: str = "", *, limit: int = 1000, order: str = "desc") -> Iterator[dict[str, Any]]:
        """Yield every record that matches, page by page."""
        params: dict[str, str | int] = {"q": q, "limit": limit, "order": order}
        while True:
            page = self.get("/search", **params)
            yield from page["records"]
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]

    @staticmethod
    def wait(what: str, is_true: Any, timeout_s: float = 30.0, every_s: float = 0.1) -> Any:
        """Return the first true answer of ``is_true``; fail after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not (answer := is_true()):
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}, in vain"
            time.sleep(every_s)
        return answer
