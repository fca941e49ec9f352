"""The demo as a test: real programs break, and exactly the right tickets open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.elasticsearch import drop_indices
from tests.support.service import ServiceProcess

pytestmark = [pytest.mark.slow(seconds=150), pytest.mark.timeout(900)]


_SHORT = ("--days", "0.75")  # more history shows nothing more; one test has all of it


def _demo(what: str, directory: Path, *options: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOGSVC_")} | {"CI": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "logsvc", "demo", "--break", what, "--dir", str(directory), *options],
        env=environ,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


_BREAKS = {  # what breaks → options, and what must be said
    "schema": ((), ("reports.summarize", "ai_model", "2.0.0")),
    "dependency": (_SHORT, ("billing.charge", "reports.summarize")),
    "silence": (_SHORT, ("email.send",)),
    "none": (_SHORT, ("No ticket opened",)),
}


@pytest.mark.slow(seconds=300)
def test_each_break_opens_exactly_the_right_ticket_and_none_opens_none(tmp_path: Path) -> None:
    # Two at a time in one test: for most of its minutes a demo waits for its clock, not for the processor.
    with ThreadPoolExecutor(2) as pool:
        running = {what: pool.submit(_demo, what, tmp_path / what, *options) for what, (options, _) in _BREAKS.items()}
    failed = {what: str(error) for what, demo in running.items() if (error := demo.exception()) is not None}
    assert failed == {}
    for what, (_, words) in _BREAKS.items():
        said = running[what].result()
        assert [word for word in words if word not in said] == [], f"{what}: {said[-3000:]}"


@pytest.mark.slow(seconds=15)
def test_a_demo_whose_window_is_closed_leaves_no_program_behind(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOGSVC_") and name != "CI"}
    command = [sys.executable, "-m", "logsvc", "demo", "--break", "none", "--dir", str(tmp_path), *_SHORT]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children")
        ServiceProcess.wait("its programs to run", lambda: len(children.read_text().split()) >= 3, 120)
        started = children.read_text().split()
        demo.send_signal(signal.SIGHUP)
        said, _ = demo.communicate(timeout=90)
    assert [pid for pid in started if Path("/proc", pid).exists()] == [], said.decode()
    assert demo.returncode == 0, said.decode()


@pytest.mark.elasticsearch
def test_a_forgotten_column_opens_one_ticket_on_elasticsearch(tmp_path: Path, elasticsearch_url: str) -> None:
    try:
        assert "ai_model" in _demo("schema", tmp_path, "--store-url", elasticsearch_url, *_SHORT)
    finally:
        drop_indices(elasticsearch_url, "logsvc-demo-*")
