"""The demo as a test: real programs break, and exactly the right tickets open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


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


def test_a_forgotten_column_opens_one_ticket_that_names_it(tmp_path: Path) -> None:
    said = _demo("schema", tmp_path)
    assert "reports.summarize" in said
    assert "ai_model" in said
    assert "2.0.0" in said


@pytest.mark.elasticsearch
def test_a_forgotten_column_opens_one_ticket_on_elasticsearch(tmp_path: Path, elasticsearch_url: str) -> None:
    assert "ai_model" in _demo("schema", tmp_path, "--store-url", elasticsearch_url, *_SHORT)


def test_a_dead_dependency_opens_one_ticket_for_all_its_tasks(tmp_path: Path) -> None:
    said = _demo("dependency", tmp_path, *_SHORT)
    assert "billing.charge" in said
    assert "reports.summarize" in said


def test_a_task_that_falls_silent_opens_one_ticket(tmp_path: Path) -> None:
    assert "email.send" in _demo("silence", tmp_path, *_SHORT)


def test_a_release_that_works_opens_no_ticket(tmp_path: Path) -> None:
    assert "No ticket opened" in _demo("none", tmp_path, *_SHORT)
