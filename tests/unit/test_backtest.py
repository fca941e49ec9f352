"""Backtest: a file gives the tickets that the service would have opened, in whatever order its lines are."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from detectors.simulate import PRESETS, Preset
from logsvc import backtest
from logsvc.__main__ import app
from logsvc.detection import new_history
from logsvc.normaliser import Normaliser, Origin
from logsvc.settings import DetectionSettings
from tests.support.records import rfc3339
from tests.unit.detectors.traffic import MINUTE_US, NOW_US, Event, burst, normal
from tests.unit.test_detection import TASKS, Bench

BEGIN_US = NOW_US + 6 * MINUTE_US


def events() -> list[Event]:
    """Return quiet hours that were sent in one go, then live traffic in which one task breaks."""
    out = []
    for unit in TASKS:
        start = NOW_US - 210 * MINUTE_US
        out += normal(unit, start, NOW_US, seed=4, per_minute=1, arrives_us=NOW_US + 1_000)
        out += normal(unit, NOW_US, NOW_US + 17 * MINUTE_US, seed=5, per_minute=3)
    out += burst(TASKS[0], BEGIN_US, n=40)
    # Some of what happened then came much later.
    return out + burst(TASKS[1], BEGIN_US, n=30, arrives_us=NOW_US + 14 * MINUTE_US)


def record(event: Event) -> dict[str, object]:
    """Return an event as a sender writes it."""
    name = event.unit.partition(":")[2]
    failed = {"error.type": "ValueError", "error.message": "no such order"} if event.level == "error" else {}
    return {
        "@timestamp": rfc3339(event.time_us),
        "event.ingested": rfc3339(event.ingested_us),
        "event": {"id": f"{event.unit} {event.time_us} {event.level}"},
        "level": event.level.upper(),
        "service": name.partition(".")[0],
        "task": name,
        "version": event.version,
        "message": f"{event.level} in {name}: order {event.time_us % 1000} {event.template}",
        **failed,
    }


def live(bench: Bench, happened: Sequence[Event]) -> list[tuple[str, str, str]]:
    """Return the tickets that the service opens, as (id, opened, kind)."""
    normaliser = Normaliser(b"key")
    for event in happened:
        origin = Origin("default", "test", "native", "k", event.ingested_us)
        _, entries, _ = normaliser.normalise([record(event)], origin)
        bench.store.entries += entries
    bench.detection.open()
    bench.go(NOW_US + 17 * MINUTE_US)
    bench.state.wait_for_cursor(NOW_US + 17 * MINUTE_US - 10_000_000)
    opened = [ticket for type_, ticket in bench.state.events if type_ == "anomaly.opened"]
    return sorted((ticket.id, ticket.opened_at, ticket.kind) for ticket in opened)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(path: Path, lines: Sequence[str], tmp_path: Path) -> tuple[list[dict[str, object]], str]:
    """Return (flags, what the terminal shows) of a backtest of ``lines``."""
    text = "".join(line + "\n" for line in lines).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text))
    output = tmp_path / "flags.json"
    asked = ["backtest", str(path), "--output", str(output), "--html", str(tmp_path / "report.html")]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return json.loads(output.read_text()), done.output


def test_a_file_in_any_order_and_packing_gives_the_tickets_of_the_service(bench: Bench, tmp_path: Path) -> None:
    happened = events()
    try:
        tickets = live(bench, happened)
    finally:
        bench.detection.close()
    assert {kind for _, _, kind in tickets} == {"new_error"}
    lines = [json.dumps(record(event)) for event in happened]
    results = []
    for seed, suffix in enumerate((".ndjson", ".gz", ".zst")):
        random.Random(seed).shuffle(lines)
        flags, said = run(tmp_path / f"logs{suffix}", lines, tmp_path)
        results.append(flags)
        assert f"{len(tickets)} ticket" in said
        assert "ValueError:nosuchorder" in "".join(said.split())
    assert results[0] == results[1] == results[2]
    first = {str(flag["ticket"]): str(flag["detected_at"]) for flag in reversed(results[0])}
    assert sorted(first) == [id for id, _, _ in tickets]
    assert sorted(first.values()) == sorted(opened for _, opened, _ in tickets)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<article") == page.count("<svg") == len(tickets)
    assert all(f'<article id="{id}">' in page for id, _, _ in tickets)
    assert "ValueError: no such order" in page


def test_tasks_still_being_learned_at_the_end_are_named(tmp_path: Path) -> None:
    _, said = run(
        tmp_path / "logs",
        [json.dumps(record(event)) for event in normal(TASKS[0], NOW_US, NOW_US + 600_000_000, seed=1)],
        tmp_path,
    )
    assert "1 task was still being learned at the end, with plain rules alone: billing.charge" in " ".join(said.split())


def test_a_flag_is_never_dated_before_a_record_that_it_used(tmp_path: Path) -> None:
    flags, _ = run(tmp_path / "logs", [json.dumps(record(event)) for event in events()], tmp_path)
    assert set(flags[0]) == {"task", "start", "end", "detected_at", "score", "kind", "ticket"}
    for flag in flags:
        if flag["task"] == "email.send":
            assert str(flag["detected_at"]) >= rfc3339(NOW_US + 14 * MINUTE_US)[:19]
        assert str(flag["detected_at"]) > str(flag["end"]) > str(flag["start"])


def test_without_times_of_arrival_records_came_when_they_happened(tmp_path: Path) -> None:
    lines = []
    for event in events():
        item = record(event)
        del item["event.ingested"]
        lines.append(json.dumps(item))
    flags, _ = run(tmp_path / "logs", lines, tmp_path)
    assert {flag["task"] for flag in flags} == {"billing.charge", "email.send"}
    assert min(str(flag["detected_at"]) for flag in flags) < rfc3339(BEGIN_US + 8 * MINUTE_US)


def test_what_is_read_at_once_counts_as_what_is_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    odd: list[dict[str, object]] = [
        {"duration_ms": 12.5},
        {"duration_ms": "250"},
        {"duration_s": 3},
        {"duration_ms": 1, "duration_s": 2},
        {"duration_ms": True},
        {"duration_ms": 10**25},
        {"level": 30},
        {"level": 30.0},
        {"level": True},
        {"level": "30"},
        {"level": None},
        {"level": ["warning"]},
        {"severity": "ERROR"},
        {"event.severity": 17},
        {"event.severity": 0},
        {"event.severity": "17", "level": "nonsense"},
        {"task": ""},
        {"task": {"name": "billing.charge"}},
        {"task": 7},
        {"task.name": "email.send"},
        {"task": "caf\u00e9"},
        {"task": "cafe\u0301"},
        {"task": "a\0b"},
        {"task": "mail from jane.doe@example.com"},
        {"service": None},
        {"service": "x" * 9_000},
        {"event.id": "one"},
        {"event.id": ""},
        {"event.id": 5},
        {"event.id": "i" * 2_000},
        {"event": {"id": "one"}},
        {"event": {"ingested": "2026-01-05T03:00:00Z"}},
        {"event.ingested": None},
        {"event.ingested": 1_767_582_000_000},
        {"event.ingested": "never"},
        {"ingested": "2026-01-05T04:00:00Z"},
        {"timestamp": "2026-01-05T05:00:00Z"},
        {"@timestamp": "2026-01-05 01:00:00+01:00"},
        {"@timestamp": "2026-01-05T01:59:60Z"},
        {"@timestamp": "2026-01-05T01:59:61Z"},
        {"@timestamp": "Mon, 05 Jan 2026 01:00:00 GMT"},
        {"@timestamp": 1_767_582_000},
        {"@timestamp": "yesterday"},
        {"@timestamp": "2400-01-01T00:00:00Z"},
        {"@timestamp": "1960-01-01T00:00:00Z"},
        {"@timestamp": None},
        {"labels": {"a": 1}},
        {"error.type": "ValueError"},
        {"message": {"text": "nested"}},
        {"tags": ["a"]},
    ]
    lines = []
    for n in range(6_000):
        plain = {
            "@timestamp": f"2026-01-05T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.{n % 1000:03}Z",
            "event.ingested": f"2026-01-05T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.9Z",
            "service": "billing",
            "task": rng.choice(["billing.charge", "email.send"]),
            "level": rng.choice(["INFO", "INFO", "debug", "WARNING"]),
            "message": f"order {n}",
        }
        item = plain | (rng.choice(odd) if n % 3 == 0 else {}) | (rng.choice(odd) if n % 11 == 0 else {})
        lines.append(json.dumps(item).encode())
    lines[7:7] = [b'{"a":1', b"[]", b"null", b'{"@timestamp":"2026-01-05T00:00:00Z","@timestamp":7}', b"\xff", b"{}"]

    def read(items: Sequence[bytes | dict[str, object]]) -> tuple[object, ...]:
        history = new_history("default", DetectionSettings())
        for item in items:
            history.add(item)
        return list(history.ticks()), history.records, history.refused, history.examples, history.units, history.texts

    found = read(lines)
    objects = [json.loads(line) for line in lines if line.startswith(b'{"') and line.endswith(b"}")]
    as_objects = read(objects)
    monkeypatch.setattr(backtest, "_MOST_ALIKE", 0)
    assert found == read(lines)
    assert as_objects == read(objects)
    assert found[1] > 5_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no records"),
        (b"{not json}\n", "no records"),
        (b"\x1f\x8bnot gzip", "cannot read"),
        (b"\x28\xb5\x2f\xfdnot zstd", "cannot read"),
        (b'{"message": "never"}\n', "without a time"),
        (None, "cannot read"),
    ],
)
def test_what_is_no_file_of_records_is_said_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "logs"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(app, ["backtest", str(path)])
    assert done.exit_code == 2
    assert said in done.output


def test_what_is_simulated_can_be_judged_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Preset({"api": 2}, 1, 0.75, 400, {"error_burst": 1}, new_tasks=0)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    sim = tmp_path / "sim"
    for arguments in (
        ["simulate", str(sim), "--preset", "tiny", "--seed", "5"],
        ["backtest", str(sim / "logs.ndjson.gz"), "--output", str(tmp_path / "flags.json")],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "flags.json"), "--truth", str(sim / "truth.json")])
    assert done.exit_code == 0, done.output
    assert re.search(r"incidents detected\s+\d of 1", done.output)
    assert "opened by the forest alone" in done.output
    done = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "flags.json"), "--truth", str(sim / "truth.json"), "-o", "json"]
    )
    assert json.loads(done.output)["incidents"] == 1


def test_what_cannot_be_evaluated_is_said(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    done = CliRunner().invoke(app, ["evaluate", str(wrong), "--truth", str(wrong)])
    assert (done.exit_code, "holds no JSON object" in done.output) == (2, True)
    done = CliRunner().invoke(app, ["simulate", str(tmp_path), "--preset", "odd"])
    assert (done.exit_code, "standard" in done.output) == (2, True)


def test_the_process_that_serves_does_without_scikit_learn() -> None:
    code = "import sys, logsvc.detection; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
