"""The crew: the same entries from a process as from here, whatever becomes of the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from logsvc import crew as crews
from logsvc.crew import MIN_ITEMS, Crew
from logsvc.normaliser import Item, ItemResult, Normaliser, Origin, Tally
from logsvc.records import Entry

ORIGIN = Origin("default", "10.0.0.7", "native", "k1", 1_764_000_000_000_000)
ITEMS: list[Item] = [
    b'{"event.id":"e%d","msg":"mail ann@example.org","user_id":"u1"}' % number for number in range(MIN_ITEMS)
]
ODD: list[Item] = [b"{", {"msg": "a dict", "event.id": "d"}, msgspec.Raw(b'{"msg":"raw","event.id":"r"}')]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew(b"key", 1)
    yield crew
    crew.close()


def pid_of(crew: Crew) -> int:
    """Return the id of the one process, once it has taken a slice."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        crew.normalise(ITEMS, ORIGIN)
        (member,) = crew._members
        if member._is_ready:
            assert member._process is not None
            return member._process.pid
    raise AssertionError("the process did not begin within a minute")


def comparable(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.has_client_id]


def test_a_process_makes_the_same_of_a_slice_as_this_one(crew: Crew) -> None:
    expected = Normaliser(b"key").normalise(ITEMS + ODD, ORIGIN)
    assert pid_of(crew) != os.getpid()
    results, entries, tally = crew.normalise(ITEMS + ODD, ORIGIN)
    assert results == expected[0]
    assert comparable(entries) == comparable(expected[1])
    assert tally == expected[2]
    assert tally.redactions == MIN_ITEMS


def test_small_slices_start_no_process(crew: Crew) -> None:
    _, entries, _ = crew.normalise(ITEMS[:-1], ORIGIN)
    assert len(entries) == MIN_ITEMS - 1
    assert crew._members[0]._process is None


def test_a_process_works_on_while_the_service_is_told_to_end(crew: Crew) -> None:
    first = pid_of(crew)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(first, number)
    crew.normalise(ITEMS, ORIGIN)
    assert pid_of(crew) == first


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_slice_whose_process_ends_or_hangs_is_done_here(
    crew: Crew, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "_ANSWER_S", 0.5)
    monkeypatch.setattr(crews, "_END_S", 0.1)
    first = pid_of(crew)
    os.kill(first, how)
    results, entries, _ = crew.normalise(ITEMS, ORIGIN)
    assert len(results) == len(entries) == MIN_ITEMS
    assert not os.path.exists(f"/proc/{first}"), "a process that hangs is ended"
    assert pid_of(crew) != first, "another one takes over"


def test_many_threads_share_a_process_and_each_gets_its_own_answer(crew: Crew) -> None:
    pid_of(crew)
    wrong: list[str] = []

    def ask(name: int) -> None:
        items: list[Item] = [b'{"event.id":"t%d-%d","msg":"x"}' % (name, number) for number in range(MIN_ITEMS)]
        for _ in range(5):
            results, _, _ = crew.normalise(items, ORIGIN)
            wrong.extend(str(result.id) for result in results if not str(result.id).startswith(f"t{name}-"))

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_thread_that_waits_for_a_process_gets_it_before_one_that_just_had_it(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    began = threading.Event()
    patient = threading.Thread(target=lambda: crew.normalise(ITEMS, ORIGIN))

    def normalise(_member: object, _items: object, _origin: object) -> tuple[list[ItemResult], list[Entry], Tally]:
        order.append("patient" if threading.current_thread() is patient else "hasty")
        if not began.is_set():
            began.set()
            patient.start()
            deadline = time.monotonic() + 60
            while not crew._waiting and time.monotonic() < deadline:
                time.sleep(0.001)
        return [], [], Tally()

    monkeypatch.setattr(crews._Member, "normalise", normalise)
    for _ in range(3):
        crew.normalise(ITEMS, ORIGIN)
    patient.join(60)
    assert order == ["hasty", "patient", "hasty", "hasty"]


def test_the_process_ends_with_its_parent() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.write(writing, b"%d" % pid_of(Crew(b"key", 1)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        pid = int(pipe.read())
    os.waitpid(child, 0)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
