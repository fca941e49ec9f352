from __future__ import annotations

from pathlib import Path

import pytest

from shippers.watch import expand


def names(directory: Path, pattern: str, *exclude: str) -> list[str]:
    return [str(Path(path).relative_to(directory)) for path in expand(str(directory / pattern), exclude)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("a.log", "b.log", "b.txt", "sub/c.log", "sub/deep/d.log"):
        (tmp_path / name).write_text("x\n")
    return tmp_path


def test_patterns_match_files_in_directories_and_below(directory: Path) -> None:
    assert names(directory, "*.log") == ["a.log", "b.log"]
    assert names(directory, "**/*.log") == ["a.log", "b.log", "sub/c.log", "sub/deep/d.log"]
    assert names(directory, "[b-z].*") == ["b.log", "b.txt"]
    assert names(directory, "s*") == []


def test_what_is_excluded_is_left_out(directory: Path) -> None:
    assert names(directory, "**/*.log", "b*") == ["a.log", "sub/c.log", "sub/deep/d.log"]
    assert names(directory, "**/*.log", f"{directory}/sub/*") == ["a.log", "b.log"]


def test_what_rotation_made_is_no_file_of_its_own(directory: Path) -> None:
    for name in ("a.log.1", "a.log.2.gz", "a.log-20241225", "a-20241225.log", "a.1.log", "b.log.old", "e.log.xz"):
        (directory / name).write_text("x\n")
    (directory / "other-2024-12-25.log").write_text("x\n")  # named by the day from the first: no rotation
    assert names(directory, "*.log*") == ["a.log", "b.log", "other-2024-12-25.log"]


def test_a_file_with_two_names_is_followed_once(directory: Path) -> None:
    (directory / "z.log").symlink_to(directory / "a.log")
    (directory / "gone.log").symlink_to(directory / "nowhere")
    assert names(directory, "[az].log") == ["a.log"]
    assert names(directory, "z.log") == ["z.log"]
