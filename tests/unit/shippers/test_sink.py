from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from loguru import logger

import shippers
from shippers.testing import CapturingTransport


class Rig:
    def __init__(self) -> None:
        self.transport = CapturingTransport()
        self.sink = shippers.LoguruSink(transport=self.transport, service="shop", spool_dir=None)

    def records(self) -> list[dict[str, Any]]:
        assert self.sink.flush(20.0)
        return self.transport.records


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    logger.remove()
    number = logger.add(rig.sink, level="TRACE", diagnose=True, catch=False)
    yield rig
    logger.remove(number)
    rig.sink.close()


def test_a_message_carries_ecs_names(rig: Rig) -> None:
    logger.info("charge {} failed", 17)
    (record,) = rig.records()
    assert {
        "message": "charge 17 failed",
        "log.level": "info",
        "log.logger": __name__,
        "log.origin.file.name": __file__,
        "log.origin.function": "test_a_message_carries_ecs_names",
        "service.name": "shop",
        "process.thread.name": "MainThread",
    }.items() <= record.items()


def test_bound_contextual_and_keyword_values_are_fields(rig: Rig) -> None:
    with logger.contextualize(request="r1"):
        logger.bind(tenant="acme").info("order {order}", order=17)
    (record,) = rig.records()
    assert (record["request"], record["tenant"], record["order"]) == ("r1", "acme", 17)


def test_an_exception_has_type_message_and_a_stack_without_values(rig: Rig) -> None:
    amount = "value-of-a-variable"[:5]
    try:
        int(amount)
    except ValueError:
        logger.exception("it broke")
    (record,) = rig.records()
    assert (record["error.type"], record["message"]) == ("ValueError", "it broke")
    assert "invalid literal" in record["error.message"]
    assert record["error.stack_trace"].startswith("Traceback (most recent call last):")
    assert "└" not in record["error.stack_trace"]


def test_errors_caught_by_loguru_are_shipped(rig: Rig) -> None:
    @logger.catch
    def divide() -> float:
        return 1 / 0

    divide()
    assert rig.records()[0]["error.type"] == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("level", "canonical", "severity", "original"),
    [
        ("TRACE", "trace", 1, None),
        ("SUCCESS", "info", 10, "SUCCESS"),
        ("WARNING", "warn", 13, None),
        ("CRITICAL", "fatal", 21, None),
    ],
)
def test_levels_are_canonical(rig: Rig, level: str, canonical: str, severity: int, original: str | None) -> None:
    logger.log(level, "x")
    (record,) = rig.records()
    assert (record["log.level"], record["event.severity"], record.get("log.level_original")) == (
        canonical,
        severity,
        original,
    )


def test_records_carry_the_running_task_and_reports_leave_through_the_sink(rig: Rig) -> None:
    with shippers.task("billing.charge", report=True):
        logger.info("inside")
    started, inside, succeeded = rig.records()
    assert inside["task.id"] == started["task.id"] == succeeded["task.id"]
    assert (started["event.action"], succeeded["event.action"]) == ("task.started", "task.succeeded")


def test_a_later_change_of_an_argument_changes_nothing(rig: Rig) -> None:
    argument = ["first"]
    logger.bind(bound=argument).info("got {}", argument)
    argument.append("later")
    (record,) = rig.records()
    assert (record["message"], record["bound"]) == ("got ['first']", ["first"])


def test_through_a_queue_of_loguru_it_works_too() -> None:
    rig = Rig()
    number = logger.add(rig.sink, enqueue=True)
    try:
        try:
            raise KeyError("x")
        except KeyError:
            logger.exception("queued")
        logger.complete()
        logger.remove(number)
        assert rig.records()[0]["error.type"] == "KeyError"
    finally:
        rig.sink.close()


@pytest.mark.parametrize("message", [None, "text", object(), {"record": 1}])
def test_what_is_no_loguru_message_raises_nothing(rig: Rig, message: object) -> None:
    rig.sink(message)


def test_a_loguru_record_that_lacks_parts_is_told_as_it_is(rig: Rig) -> None:
    class Message:
        def __init__(self) -> None:
            self.record = {"message": "half a record", "thread": type("Thread", (), {"id": 1})}

    rig.sink(Message())
    assert "half a record" in rig.records()[0]["message"]


def test_importing_shippers_needs_no_loguru() -> None:
    assert "loguru" in sys.modules  # here it is; the package itself never names it
    assert not any("loguru" in vars(module) for name, module in sys.modules.items() if name.startswith("shippers."))
