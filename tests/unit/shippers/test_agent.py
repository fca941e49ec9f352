from __future__ import annotations

import dataclasses
import gzip
import lzma
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

import shippers
from shippers import Settings
from shippers import batcher as batcher_module
from shippers.agent import Agent, Rate, _Discovery, main
from shippers.agent_config import Config, FileConfig, read_config
from shippers.agent_metrics import METRICS
from shippers.batcher import Batcher
from shippers.record import Origin
from shippers.tail import Checkpoints, FileSource
from shippers.testing import CapturingTransport
from tests.unit.shippers.support import KEY, Service, free_port

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nKeyError: 1\n'


class Rig:
    """An agent over a file, its parts at hand, started and stopped as often as one likes."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "shop.log"
        self.checkpoints = Checkpoints(directory / "state" / "checkpoints.json")
        self.transport = CapturingTransport()
        self.now = 0.0

    def start(self, **settings: Any) -> None:
        self.batcher = Batcher(
            self.transport,
            Origin("agent"),
            settings=Settings(**{"flush_interval_s": 0.01, "backoff_max_s": 0.01, "is_replayable": True, **settings}),
        )
        source = FileSource(str(self.log), self.checkpoints.load().get(str(self.log)), grace_s=0.0)
        self.agent = Agent([(source, {"service.name": "shop"})], self.batcher, self.checkpoints, clock=lambda: self.now)

    def stop(self) -> bool:
        self.agent.stop.set()
        self.agent.run()
        self.agent._clock = time.monotonic
        arrived = self.agent.finish(20.0, 20.0)
        self.batcher.close(0.5)
        return arrived

    def write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)

    def offset(self) -> int:
        """How far the checkpoint says that everything has arrived."""
        position = self.checkpoints.load().get(str(self.log))
        return 0 if position is None else position.offset

    def messages(self) -> list[str]:
        return [record["message"] for record in self.transport.records]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_lines_become_records_that_name_their_place(rig: Rig) -> None:
    rig.write('2024-12-25T13:00:00Z ERROR it broke\n{"msg": "json", "order": 3}\nlast\n')
    rig.start()
    rig.agent.run(is_once=True)
    rig.stop()
    first, second, last = rig.transport.records
    assert (first["message"], first["log.level"], first["service.name"]) == ("it broke", "error", "shop")
    assert (first["log.file.path"], first["log.offset"], second["log.offset"]) == (str(rig.log), 0, 36)
    assert (second["msg"], second["order"]) == ("json", 3)
    assert last["message"] == "last"
    assert len({record["event.id"] for record in rig.transport.records}) == 3


def test_a_line_that_names_its_own_service_is_believed(rig: Rig) -> None:
    rig.write('{"msg": "a", "service.name": "x"}\n{"msg": "b", "service": {"name": "x"}}\n{"msg": "c", "env": "e"}\n')
    rig.start()
    rig.agent.run(is_once=True)
    rig.stop()
    dotted, nested, other = rig.transport.records
    assert dotted["service.name"] == "x"
    assert "service.name" not in nested
    assert other["service.name"] == "shop"
    assert "service.environment" not in other


def test_a_traceback_joins_its_line(rig: Rig) -> None:
    rig.write(f"ERROR:root:it broke\n{TRACE}INFO:root:on\n")
    rig.start()
    rig.agent.run(is_once=True)
    rig.stop()
    broke, on = rig.transport.records
    assert (broke["message"], broke["error.type"], on["message"]) == ("root:it broke", "KeyError", "root:on")


def test_a_record_that_might_go_on_is_sent_after_a_pause(rig: Rig) -> None:
    rig.write("one\n")
    rig.start()
    rig.agent.step()
    assert rig.batcher.flush(20.0)
    assert rig.messages() == []
    rig.now += 2.0
    rig.agent.step()
    assert rig.batcher.flush(20.0)
    assert rig.messages() == ["one"]
    rig.stop()


def test_checkpoints_move_only_when_records_have_arrived(rig: Rig) -> None:
    rig.transport.go_away()
    rig.write("one\ntwo\nthree\n")
    rig.start()
    rig.agent.step()
    rig.now += 2.0
    rig.agent.step()
    rig.transport.wait_for_attempts(2)
    assert rig.offset() == 0
    rig.transport.come_back()
    assert rig.stop()
    assert rig.checkpoints.load()[str(rig.log)].offset == rig.log.stat().st_size


def test_what_did_not_arrive_before_the_end_is_read_again(rig: Rig) -> None:
    rig.transport.go_away()
    rig.write("one\ntwo\n")
    rig.start()
    rig.agent.run(is_once=True)
    rig.agent.stop.set()
    rig.agent._clock = time.monotonic
    assert not rig.agent.finish(0.1, 0.1)
    rig.batcher.close(0.1)
    rig.agent.settle()
    assert rig.offset() == 0
    assert rig.batcher.stats()["dropped"] == 0


def test_a_restart_sends_neither_twice_nor_too_little(rig: Rig) -> None:
    for number in range(5):
        rig.write(f"m{number}\nx{number}\n")
        rig.start()
        rig.agent.step()
        rig.now += 2.0
        rig.agent.step()
        assert rig.stop()
    assert rig.messages() == [text for number in range(5) for text in (f"m{number}", f"x{number}")]


def test_what_was_held_at_a_stop_is_read_again(rig: Rig) -> None:
    rig.write(f"ERROR:root:it broke\n{TRACE[:40]}")
    rig.start()
    rig.agent.step()
    assert rig.stop()
    rig.write(f"{TRACE[40:]}INFO:root:on\n")
    rig.start()
    rig.agent.run(is_once=True)
    rig.stop()
    assert [record.get("error.type") for record in rig.transport.records] == ["KeyError", None]


def test_lines_that_were_not_acknowledged_come_again_under_the_same_id(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.checkpoints, "save", lambda positions: None)
    rig.write("one\ntwo\n")
    rig.start()
    rig.agent.run(is_once=True)
    assert rig.batcher.flush(20.0)  # arrived, but the agent dies before it has written that down
    rig.batcher.close()
    rig.start()
    rig.agent.run(is_once=True)
    rig.stop()
    ids = [record["event.id"] for record in rig.transport.records]
    assert ids[:2] == ids[2:]


def test_while_the_service_is_away_reading_waits_in_bounded_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "_OUTBOX_MAX_BYTES", 1)
    rig.transport.go_away()
    rig.write("".join(f"m{number}\n" for number in range(3000)))
    rig.start(queue_max_records=50, batch_max_records=10)
    reader = threading.Thread(target=lambda: rig.agent.run(is_once=True))
    reader.start()
    rig.transport.wait_for_attempts(2)
    assert rig.batcher.stats()["queued"] <= 75
    assert reader.is_alive()
    rig.transport.come_back()
    reader.join(30.0)
    rig.stop()
    assert rig.messages() == [f"m{number}" for number in range(3000)]
    assert rig.batcher.stats()["dropped"] == 0


# --- as a program ------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Any]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "shippers.agent", "--state-dir", str(tmp_path / "state"), *arguments]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LOGSVC_API_KEY": KEY},
            **options,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_once_sends_what_is_there_and_exits(service: Service, tmp_path: Path, program: Any) -> None:
    (tmp_path / "a.log").write_text("one\ntwo")
    for _ in range(2):
        process = program("--once", "--url", service.url, "--service", "shop", str(tmp_path / "a.log"))
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
    assert service.messages() == ["one", "two"]
    assert service.records[0]["service.name"] == "shop"
    assert service.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_stop_signal_flushes_and_keeps_the_checkpoint(service: Service, tmp_path: Path, program: Any) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"m{number}\n" for number in range(500)))
    process = program("--url", service.url, str(log))
    service.wait_for(499)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    process = program("--once", "--url", service.url, str(log))
    process.communicate(timeout=60)
    assert service.messages() == [f"m{number}" for number in range(500)]


def test_killed_hard_again_and_again_it_loses_nothing(service: Service, tmp_path: Path, program: Any) -> None:
    log = tmp_path / "a.log"
    for turn in range(3):
        with log.open("a") as file:
            file.writelines(f"m{turn}-{number}\n" for number in range(300))
        process = program("--url", service.url, str(log))
        service.wait_for(len(service.records) + 100)
        process.kill()
        process.communicate()
    program("--once", "--url", service.url, str(log)).communicate(timeout=60)
    by_id = {record["event.id"]: record["message"] for record in service.records}
    assert sorted(by_id.values()) == sorted(f"m{turn}-{number}" for turn in range(3) for number in range(300))


def test_standard_input_is_read_to_its_end_and_spooled_while_the_service_is_away(
    service: Service, tmp_path: Path, program: Any
) -> None:
    spool = str(tmp_path / "spool")
    away = f"http://127.0.0.1:{free_port()}"
    process = program("--url", away, "--spool-dir", spool, "--service", "w", "-", stdin=subprocess.PIPE)
    process.communicate(b"one\ntwo\n", timeout=60)
    assert process.returncode == 0
    assert list(Path(spool).rglob("*.batch"))


def test_what_cannot_arrive_is_an_exit_code_and_not_a_loss(tmp_path: Path, program: Any, service: Service) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\n")
    process = program("--once", "--url", f"http://127.0.0.1:{free_port()}", str(log))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.0)  # it tries for a minute
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"sent at the next start" in errors
    process = program("--once", "--url", service.url, str(log))
    process.communicate(timeout=60)
    assert service.messages() == ["one", "two"]


def test_two_agents_never_share_their_state(service: Service, tmp_path: Path, program: Any) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\n")
    program("--url", service.url, str(log))
    service.wait_for(1)
    second = program("--once", "--url", service.url, str(log))
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert b"another agent uses" in errors


def test_once_with_a_file_that_is_not_there_is_an_error_and_the_others_are_sent(
    service: Service, tmp_path: Path, program: Any
) -> None:
    (tmp_path / "a.log").write_text("one\n")
    process = program("--once", "--url", service.url, str(tmp_path / "a.log"), str(tmp_path / "b.log"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.decode() == f"shippers.agent: cannot read {tmp_path}/b.log: No such file or directory\n"
    assert service.messages() == ["one"]


def test_a_file_that_is_not_there_yet_is_awaited_and_that_is_said_once(rig: Rig, capfd: Any) -> None:
    rig.start()
    reader = threading.Thread(target=rig.agent.run)
    reader.start()
    said = ""
    deadline = time.monotonic() + 20.0
    while "waiting" not in said and time.monotonic() < deadline:
        said += capfd.readouterr().err
        time.sleep(0.01)
    assert said == f"shippers.agent: waiting for {rig.log} to appear\n"
    rig.write("one\ntwo\n")
    rig.transport.wait_for(1)  # the last line may go on
    rig.agent.stop.set()
    reader.join(20.0)
    rig.agent._clock = time.monotonic
    rig.agent.finish(20.0, 20.0)
    rig.batcher.close(0.5)
    assert rig.messages() == ["one"]
    assert capfd.readouterr().err == ""


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 30.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pattern_follows_what_appears_and_leaves_what_is_gone(service: Service, tmp_path: Path, program: Any) -> None:
    (tmp_path / "a.log").write_text("a1\na2\n")
    (tmp_path / "debug.log").write_text("d1\n")
    port = free_port()
    config = tmp_path / "agent.toml"
    config.write_text(
        f'url = "{service.url}"\nmetrics = "127.0.0.1:{port}"\nexclude = ["debug*"]\n'
        f'[[files]]\npath = "{tmp_path}/*.log"\nzone = "Europe/Berlin"\n'
    )
    process = program("--config", str(config))
    wait_until(lambda: len(service.records) == 2)
    (tmp_path / "b.log").write_text("2024-07-01 13:00:00 WARN b1\n")
    wait_until(lambda: len(service.records) == 3)
    assert service.records[-1]["@timestamp"] == "2024-07-01T11:00:00.000000Z"
    (tmp_path / "b.log").unlink()

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return {name: float(value) for name, value in (line.split(" ") for line in lines if line[0] != "#")}

    wait_until(lambda: metrics()["agent_files"] == 1)
    wait_until(lambda: metrics()["agent_sent_records_total"] == 3)
    assert metrics()["agent_read_lines_total"] == 3
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert service.messages() == ["a1", "a2", "b1"]


def test_killed_hard_amid_rotation_again_and_again_it_loses_nothing(
    service: Service, tmp_path: Path, program: Any
) -> None:
    log, written = tmp_path / "a.log", 0
    for turn in range(4):
        process = program("--url", service.url, str(log))
        for part in range(3):
            with log.open("a") as file:
                file.writelines(f"m{number}\n" for number in range(written, written + 200))
            written += 200
            if turn or part:
                log.rename(tmp_path / f"a.log.{100 - turn * 10 - part}")
            else:
                service.wait_for(100)
        service.wait_for(len(service.records) + 1)
        process.kill()
        process.communicate()
    log.write_text("last\n")
    program("--once", "--url", service.url, str(log)).communicate(timeout=60)
    by_id = {record["event.id"]: record["message"] for record in service.records}
    assert sorted(by_id.values()) == sorted(["last", *(f"m{number}" for number in range(written))])


def test_a_file_reached_by_two_patterns_is_followed_once(rig: Rig, tmp_path: Path) -> None:
    rig.log.touch()
    (tmp_path / "link.log").symlink_to(rig.log)
    rig.start()
    discovery = _Discovery([FileConfig(f"{tmp_path}/shop.*"), FileConfig(f"{tmp_path}/*.log")], is_once=True)
    agent = Agent([], rig.batcher, discover=discovery, clock=lambda: rig.now)
    for _ in range(3):
        agent.step()
        rig.now += 5.0
    assert agent.names == [str(rig.log)]
    rig.stop()


def test_a_rate_limit_slows_reading_and_loses_nothing(rig: Rig) -> None:
    rig.write("".join(f"m{number}\n" for number in range(100)))
    rig.start()
    now = [0.0]
    agent = Agent([], rig.batcher, clock=lambda: now[0])
    source = FileSource(str(rig.log), grace_s=0.0)
    agent.follow(source, {}, rate=Rate(10.0, None, lambda: now[0]))
    assert agent.step()
    rig.write("later\n")
    assert not agent.step()
    now[0] += 8.0
    assert not agent.step()
    now[0] += 2.0
    assert agent.step()
    agent.run(is_once=True)
    assert rig.batcher.flush(20.0)
    assert len(rig.messages()) == 101
    rig.stop()


def test_stacks_may_stay_apart(rig: Rig) -> None:
    rig.write(f"ERROR:root:it broke\n{TRACE}")
    rig.start()
    agent = Agent([], rig.batcher)
    agent.follow(FileSource(str(rig.log), grace_s=0.0), {}, joins_lines=False)
    agent.run(is_once=True)
    assert rig.batcher.flush(20.0)
    assert len(rig.messages()) == 5
    rig.stop()


# --- configuration -----------------------------------------------------------------------------


def test_check_says_what_would_be_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.log").write_text("x\n")
    (tmp_path / "agent.toml").write_text(
        f'url = "http://127.0.0.1:1"\nenvironment = "test"\n'
        f'[[files]]\npath = "{tmp_path}/a.log"\nservice = "web"\n[[files]]\npath = "{tmp_path}/b.log"\n'
    )
    assert main(["--check", "--config", str(tmp_path / "agent.toml")]) == 0
    out = capsys.readouterr().out
    assert "a.log: readable; service.name=web service.environment=test" in out
    assert "first line read as @timestamp: when it is read; log.level: info; message: x" in out
    assert "b.log: not there yet" in out
    assert "LOGSVC_API_KEY" in out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour = 'red'", "unknown key colour"),
        ("api_key = 'x'", "LOGSVC_API_KEY"),
        ("url = 3", "expected a string"),
        ("files = 3", r"\[\[files\]\]"),
        ("[[files]]\nservice = 'x'", "lacks path"),
        ("[[files]]\npath = 'x'\nnope = 'x'", "unknown key files.nope"),
        ("not toml", "cannot read"),
        ("exclude = 'x'", "a list of patterns"),
        ("records_per_s = 0", "above 0"),
        ("memory_max_bytes = true", "a number of bytes"),
        ("multiline = 1", "true or false"),
    ],
)
def test_a_wrong_configuration_is_an_error_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    from shippers.agent_config import ConfigError

    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_config(str(path))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "/nonexistent.toml"],
        ["/"],
        ["--check", "--zone", "Mars/Olympus", "a.log"],
        ["--url", "http://127.0.0.1:9", "--metrics", "nowhere", "a.log"],
    ],
)
def test_a_wrong_command_line_exits_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOGSVC_API_KEY", KEY)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("shippers.agent: ")


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "examples:" in out
    assert "[[files]]" in out


def test_every_metric_and_setting_is_documented() -> None:
    readme = (Path(shippers.__file__).parent / "README.md").read_text("utf-8")
    for name in METRICS:
        assert f"`{name}`" in readme, name
    for field in (*dataclasses.fields(Config), *dataclasses.fields(FileConfig)):
        assert f"`{field.name}`" in readme, field.name


def test_many_files_are_followed_with_few_held_open(tmp_path: Path) -> None:
    transport = CapturingTransport()
    batcher = Batcher(transport, Origin("agent"), settings=Settings(flush_interval_s=0.01, is_replayable=True))
    sources = [FileSource(str(tmp_path / f"{number}.log"), grace_s=0.0) for number in range(30)]
    now = 0.0
    agent = Agent([(source, {}) for source in sources], batcher, open_files_max=3, clock=lambda: now)
    written = []

    def write(number: int, text: str) -> None:
        written.append(text)
        with (tmp_path / f"{number}.log").open("a") as file:
            file.write(f"{text}\n")

    def read() -> None:
        nonlocal now
        misses = 0
        while misses < 3:  # a successor takes one more look
            now += 2.0
            misses = 0 if agent.step() else misses + 1
            assert sum(source.is_open for source in sources) <= 3

    for number in range(30):
        write(number, f"first of {number}")
    read()
    for number in range(0, 30, 3):
        write(number, f"second of {number}")
        (tmp_path / f"{number}.log").rename(tmp_path / f"{number}.log.1")
        write(number, f"third of {number}")
    for number in range(1, 30, 3):
        os.truncate(tmp_path / f"{number}.log", 0)
        write(number, f"after the truncation of {number}")
    read()
    assert agent.finish(20.0, 20.0)
    batcher.close(1.0)
    assert sorted(record["message"] for record in transport.records) == sorted(written)


@pytest.mark.parametrize(
    ("suffix", "pack", "unpacker"),
    [
        (".gz", gzip.compress, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
        (".xz", lzma.compress, lzma.LZMADecompressor),
        (".zst", zstandard.compress, lambda: zstandard.ZstdDecompressor().decompressobj()),
    ],
)
def test_of_a_torn_rotated_file_all_that_can_be_read_is_sent(
    rig: Rig,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    pack: Callable[[bytes], bytes],
    unpacker: Callable[[], Any],
) -> None:
    rig.write("first\n")
    rig.start(queue_max_records=100_000)
    rig.agent.run(is_once=True)
    rig.log.unlink()
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(5_000)]
    written = "".join(f"line {n} {' '.join(rng.choices(words, k=3))}\n" for n in range(12_000))
    whole = pack(written.encode())
    packed = whole[: len(whole) * 9 // 10]
    readable = unpacker().decompress(packed).decode()
    assert 200_000 < len(readable) < len(written)
    rig.log.with_name(f"shop.log.1{suffix}").write_bytes(packed)
    rig.write("next\n")
    rig.agent.run(is_once=True)
    assert rig.stop()
    assert rig.messages() == ["first", *readable.splitlines(), "next"]
    assert rig.agent.metrics()["agent_files_skipped_total"] == 1
    assert "ended before" in capsys.readouterr().err


def test_a_rotated_file_that_cannot_be_read_is_named_and_counted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard" if sys.version_info < (3, 14) else "compression.zstd", None)
    rig.write("first\n")
    rig.start()
    rig.agent.run(is_once=True)
    rig.log.unlink()
    rig.log.with_name("shop.log.1.zst").write_bytes(b"(\xb5/\xfd")
    rig.write("next\n")
    rig.agent.run(is_once=True)
    rig.stop()
    assert rig.messages() == ["first", "next"]
    assert "logsvc-shippers[zstd]" in capsys.readouterr().err
    assert rig.agent.metrics()["agent_files_skipped_total"] == 1
