"""The doctor: each trouble is found once, said plainly, and comes with advice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from logsvc.doctor import Finding, Grade, examine
from logsvc.lock import DataDirectoryLock
from tests.support.answering import Answer, answering

KEY = "lsk_" + "k" * 43
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of the test's own, and no setting of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("LOGSVC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOGSVC_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def look(url: str = NOBODY) -> dict[str, Finding]:
    """Return the findings by what they are about; nothing is said twice."""
    findings = examine(None, url)
    found = {finding.what: finding for finding in findings}
    assert len(found) == len(findings)
    return found


def look_at_metrics(text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    monkeypatch.setenv("LOGSVC_API_KEY", KEY)
    answers = {"/readyz": Answer({"status": "ready"}), "/metrics": Answer(text, media_type="text/plain")}
    with answering(answers) as url:
        return look(url)


@pytest.mark.parametrize("metrics", ["detection_cursor_lag_seconds +Inf\n", "detection_cursor_lag_seconds NaN\n", ""])
def test_a_service_that_has_not_judged_yet_is_said_to(metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at_metrics(metrics, monkeypatch)["detection"]
    assert (found.grade, found.text) == (Grade.WARNING, "has not judged yet")
    assert found.advice


@pytest.mark.parametrize(
    ("metrics", "grade"),
    [
        ("detection_cursor_lag_seconds 7\n", Grade.OK),
        ("detection_cursor_lag_seconds 7e5\n", Grade.WARNING),
        ("detection_cursor_lag_seconds 1e300\n", Grade.WARNING),
        ("detection_cursor_lag_seconds 7\ndetection_is_blind 1\n", Grade.WRONG),
    ],
)
def test_detection_is_graded_by_its_lag(metrics: str, grade: Grade, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_at_metrics(metrics, monkeypatch)["detection"].grade is grade


@pytest.mark.parametrize(
    ("metrics", "grade", "said"),
    [
        ("logsvc_canary_up 1\nlogsvc_canary_last_success_timestamp_seconds 1.7e9\n", Grade.OK, "2023-11-14 22:13:20"),
        ("logsvc_canary_up 0\nlogsvc_canary_last_success_timestamp_seconds 1.7e9\n", Grade.WRONG, "2023-11-14 22:13"),
        ("logsvc_canary_up 0\nlogsvc_canary_last_success_timestamp_seconds 0\n", Grade.WARNING, "none yet"),
    ],
)
def test_the_last_canary_is_shown(metrics: str, grade: Grade, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at_metrics(metrics, monkeypatch)["canary"]
    assert (found.grade, said in found.text) == (grade, True)


def test_what_answers_but_is_no_service_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"*": Answer("<h1>hello</h1>", media_type="text/html")}) as url:
        assert "is not logsvc" in look(url)["service"].text
    assert "is not logsvc" in look_at_metrics("<h1>hello</h1>", monkeypatch)["metrics"].text


def test_a_served_data_directory_is_not_told_to_be_served(own_place: Path) -> None:
    with DataDirectoryLock.acquire(own_place):
        found = look()["service"]
    assert f"not at {NOBODY}" in found.text
    assert "LOGSVC_URL" in found.advice
    assert "start" not in found.advice


def test_nothing_running_is_advised_to_be_started() -> None:
    assert look()["service"].advice == "start `logsvc serve`"


def test_a_service_on_another_data_directory_is_said_to_be() -> None:
    with answering({"/readyz": Answer({"status": "ready"})}) as url:
        found = look(url)["service"]
    assert found.grade is Grade.WARNING
    assert "another data directory" in found.text


def test_a_data_directory_that_cannot_be_made_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in ("/proc/none", str(tmp_path / "file" / "data"), str(tmp_path / "file")):
        monkeypatch.setenv("LOGSVC_DATA_DIR", place)
        found = look()["data directory"]
        assert found.grade is Grade.WRONG, place
        assert "LOGSVC_DATA_DIR" in found.advice


def test_a_data_directory_that_is_yet_to_be_made_is_no_trouble(own_place: Path) -> None:
    assert look()["data directory"].grade is Grade.WARNING
    assert not own_place.exists()
    assert list(own_place.parent.iterdir()) == []


def test_a_key_that_is_none_is_found_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSVC_API_KEY", f"{KEY}\n")
    found = look()["service"]
    assert found.grade is Grade.WRONG
    assert KEY not in f"{found}"
