from __future__ import annotations

import asyncio
import enum
import io
import logging
import logging.config
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shippers
from shippers.testing import CapturingTransport
from shippers.transport import Batch, Outcome


class Rig:
    def __init__(self, **options: Any) -> None:
        self.transport = options.pop("transport", None) or CapturingTransport()
        self.handler = shippers.LogHandler(transport=self.transport, service="shop", spool_dir=None, **options)
        self.logger = logging.Logger("shop.billing", logging.DEBUG)  # noqa: LOG001 - one of its own, not the program\'s
        self.logger.addHandler(self.handler)

    def records(self) -> list[dict[str, Any]]:
        assert self.handler.flush(20.0)
        return [record for record in self.transport.records if record["log.logger"] != "shippers.task"]

    def reports(self) -> list[dict[str, Any]]:
        assert self.handler.flush(20.0)
        return [record for record in self.transport.records if record["log.logger"] == "shippers.task"]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(environment="test", version="1.2")
    yield rig
    rig.handler.close()


# --- what a record says ------------------------------------------------------------------------


def test_a_record_carries_ecs_names(rig: Rig) -> None:
    rig.logger.warning("charge %s failed", 17, extra={"order": 17, "tenant": "acme"})
    (record,) = rig.records()
    assert {
        "message": "charge 17 failed",
        "log.level": "warn",
        "event.severity": 13,
        "log.logger": "shop.billing",
        "log.origin.function": "test_a_record_carries_ecs_names",
        "service.name": "shop",
        "service.environment": "test",
        "service.version": "1.2",
        "process.thread.name": "MainThread",
        "event.sequence": 1,
        "order": 17,
        "tenant": "acme",
    }.items() <= record.items()
    assert record["log.origin.file.name"] == __file__
    assert record["@timestamp"].endswith("Z")
    assert {"host.name", "process.pid", "ingest.epoch", "event.id", "log.origin.file.line"} <= record.keys()


def test_every_record_has_an_id_of_its_own_and_the_next_number(rig: Rig) -> None:
    for _ in range(50):
        rig.logger.info("same")
    records = rig.records()
    assert len({record["event.id"] for record in records}) == 50
    assert [record["event.sequence"] for record in records] == list(range(1, 51))


def test_a_later_change_of_an_argument_changes_nothing(rig: Rig) -> None:
    argument, nested = ["first"], {"items": ["first"]}
    rig.logger.info("got %s", argument, extra={"nested": nested})
    argument.append("later")
    nested["items"].append("later")
    (record,) = rig.records()
    assert (record["message"], record["nested"]) == ("got ['first']", {"items": ["first"]})


def test_an_exception_has_qualified_type_message_and_the_stack_of_its_causes(rig: Rig) -> None:
    try:
        try:
            secret_local = "local-value"  # noqa: F841
            raise KeyError("inner")
        except KeyError as cause:
            raise asyncio.InvalidStateError("outer") from cause
    except asyncio.InvalidStateError:
        rig.logger.exception("it broke")
    (record,) = rig.records()
    assert record["error.type"] == "asyncio.exceptions.InvalidStateError"
    assert record["error.message"] == "outer"
    stack = record["error.stack_trace"]
    assert "KeyError: 'inner'" in stack
    assert "direct cause of the following exception" in stack


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
def test_an_exception_group_keeps_its_members(rig: Rig) -> None:
    rig.logger.error("many", exc_info=ExceptionGroup("two", [ValueError("a"), OSError("b")]))
    stack = rig.records()[0]["error.stack_trace"]
    assert "ValueError: a" in stack
    assert "OSError: b" in stack


def test_local_variables_are_never_sent(rig: Rig) -> None:
    try:
        password = "p4ssw0rd"
        int(password[:0])
    except ValueError:
        rig.logger.exception("it broke")
    assert "p4ssw0rd" not in rig.records()[0]["error.stack_trace"].replace('password = "p4ssw0rd"', "")


def test_the_stack_that_was_asked_for_follows_the_message(rig: Rig) -> None:
    rig.logger.info("here", stack_info=True)
    message = rig.records()[0]["message"]
    assert message.startswith("here\nStack (most recent call last):")


@pytest.mark.parametrize(
    ("level", "expected"),
    [(10, "debug"), (20, "info"), (25, "info"), (30, "warn"), (40, "error"), (50, "fatal"), (5, "trace")],
)
def test_levels_are_canonical(rig: Rig, level: int, expected: str) -> None:
    rig.logger.setLevel(1)
    rig.logger.log(level, "x")
    assert rig.records()[0]["log.level"] == expected


def test_extras_that_contend_with_a_field_of_the_record_become_labels(rig: Rig) -> None:
    rig.logger.info("x", extra={"service": "other", "version": 3, "host": None, "time": {"a": 1}})
    record = rig.records()[0]
    assert record["service.name"] == "shop"
    assert record["labels"] == {"service": "other", "version": "3", "host": "null", "time": '{"a":1}'}


def test_personal_data_is_masked_before_it_leaves(rig: Rig) -> None:
    try:
        raise ValueError("no such user ann@example.com")
    except ValueError:
        rig.logger.exception(
            "mail to %s", "ann@example.com", extra={"password": "hunter2", "who": {"mail": "ann@example.com"}}
        )
    (record,) = rig.records()
    assert "ann@example.com" not in str({**record, "log.origin.file.name": ""}).replace(
        'raise ValueError("no such user ann@example.com")', ""
    )
    assert "hunter2" not in str(record)
    assert record["ingest.redactions"] >= 4


def test_filters_decide_and_may_replace() -> None:
    rig = Rig()
    rig.handler.addFilter(lambda record: "secret" not in record.getMessage())
    rig.logger.info("secret")
    rig.logger.info("public")
    assert [record["message"] for record in rig.records()] == ["public"]
    rig.handler.close()


def test_dict_config_builds_it() -> None:
    transport = CapturingTransport()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "ship": {
                    "class": "shippers.LogHandler",
                    "transport": transport,
                    "service": "shop",
                    "level": "WARNING",
                }
            },
            "loggers": {"configured": {"handlers": ["ship"], "propagate": False}},
        }
    )
    logger = logging.getLogger("configured")
    logger.info("no")
    logger.warning("yes")
    (handler,) = logger.handlers
    handler.flush()
    handler.close()
    assert [record["message"] for record in transport.records] == ["yes"]


def test_setup_ships_what_the_root_logger_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSVC_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LOGSVC_API_KEY", "k")
    handler = shippers.setup(service="shop")
    try:
        assert handler in logging.getLogger().handlers
        assert logging.getLogger().isEnabledFor(logging.INFO)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(logging.WARNING)
        handler.close()


def test_a_missing_address_or_key_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="LOGSVC_URL"):
        shippers.LogHandler()
    monkeypatch.setenv("LOGSVC_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="LOGSVC_API_KEY"):
        shippers.LogHandler()


# --- it never raises ---------------------------------------------------------------------------


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no str")

    __repr__ = __str__


class Colour(str, enum.Enum):  # noqa: UP042 - what people have
    RED = "red"


def test_arguments_that_do_not_fit_are_shown_all_the_same(rig: Rig) -> None:
    rig.logger.info("%d items of %s", "three")
    message = rig.records()[0]["message"]
    assert message.startswith("%d items of %s (arguments not rendered: TypeError")
    assert "'three'" in message


def test_an_argument_that_cannot_be_printed_is_named(rig: Rig) -> None:
    rig.logger.info("got %s", Hostile())
    assert "<Hostile without repr: RuntimeError>" in rig.records()[0]["message"]


def test_an_exception_that_cannot_be_printed_keeps_its_type_and_frames(rig: Rig) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no str")

    try:
        raise Broken
    except Broken:
        rig.logger.exception("it broke")
    (record,) = rig.records()
    assert record["error.type"].endswith("Broken")
    assert "test_handler.py" in record["error.stack_trace"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**80, b"\xff", {1, 2}, Colour.RED, object(), "\ud800"])
def test_extras_that_json_lacks_become_text(rig: Rig, value: object) -> None:
    rig.logger.info("x", extra={"value": value})
    assert rig.records()[0]["message"] == "x"
    assert "value" in rig.records()[0]


def test_an_extra_that_holds_itself_ends_somewhere(rig: Rig) -> None:
    circle: list[Any] = []
    circle.append(circle)
    rig.logger.info("x", extra={"circle": circle})
    assert rig.records()[0]["message"] == "x"


def test_an_argument_that_logs_while_it_is_printed_is_no_loop(rig: Rig) -> None:
    class Chatty:
        def __str__(self) -> str:
            rig.logger.info("printing myself")
            return "chatty"

    rig.logger.info("got %s", Chatty())
    assert [record["message"] for record in rig.records()] == ["printing myself", "got chatty"]


def test_an_argument_that_logs_itself_for_ever_ends(rig: Rig) -> None:
    class Endless:
        def __str__(self) -> str:
            rig.logger.info("%s", self)
            return "endless"

    rig.logger.info("%s", Endless())
    assert rig.records()


def test_a_huge_message_is_cut_and_says_so(rig: Rig) -> None:
    rig.logger.info("x" * 3_000_000)
    message = rig.records()[0]["message"]
    assert len(message) < 200_000
    assert "characters cut" in message


weird = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(Hostile)
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.tuples(inner)
    ),
    max_leaves=10,
)


@given(
    message=st.text() | weird, args=st.lists(weird, max_size=3), extras=st.dictionaries(st.text(), weird, max_size=5)
)
def test_whatever_is_logged_nothing_is_raised_and_one_record_comes(
    message: Any, args: list[Any], extras: dict[str, Any]
) -> None:
    rig = Rig()
    record = logging.LogRecord("fuzz", 20, "f.py", 1, message, tuple(args), None, "f")
    record.__dict__.update({key: value for key, value in extras.items() if key not in record.__dict__})
    # On standard error would be as bad as raised: nothing may be printed either.
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        rig.handler.handle(record)
        assert rig.handler.flush(20.0)
        assert sys.stderr.getvalue() == ""
    finally:
        sys.stderr = stderr
        rig.handler.close()
    assert len(rig.transport.records) == 1


# --- it never feeds itself ---------------------------------------------------------------------


def test_what_the_transport_logs_is_not_shipped() -> None:
    class LoggingTransport(CapturingTransport):
        def send(self, batch: Batch) -> Outcome:
            logging.getLogger("noisy.transport").error("sending %d", batch.records)
            return super().send(batch)

    rig = Rig(transport=LoggingTransport())
    noisy = logging.getLogger("noisy.transport")
    noisy.addHandler(rig.handler)
    noisy.propagate = False
    try:
        for number in range(3):
            rig.logger.info("m%d", number)
            assert [record["message"] for record in rig.records()] == [f"m{n}" for n in range(number + 1)]
    finally:
        noisy.removeHandler(rig.handler)
        rig.handler.close()


# --- tasks -------------------------------------------------------------------------------------


def test_records_carry_the_task_that_runs_and_its_parents(rig: Rig) -> None:
    rig.logger.info("before")
    with shippers.task("outer", id=1) as outer:
        with shippers.task("middle", id=2), shippers.task("inner", id=3, attempt=2, max_attempts=5, queue="q"):
            rig.logger.info("inside")
        rig.logger.info("between")
    rig.logger.info("after")
    before, inside, between, after = rig.records()
    assert outer.id == "1"
    assert "task.name" not in before
    assert "task.name" not in after
    assert (between["task.name"], between["task.id"]) == ("outer", "1")
    names = ["name", "id", "parent.id", "root.id", "attempt", "max_attempts", "queue"]
    assert [inside[f"task.{name}"] for name in names] == ["inner", "3", "2", "1", 2, 5, "q"]


def test_a_run_reports_its_start_and_its_success(rig: Rig) -> None:
    with shippers.task("billing.charge", report=True) as run:
        pass
    started, succeeded = rig.reports()
    assert (started["event.action"], started["task.status"]) == ("task.started", "started")
    assert (succeeded["event.action"], succeeded["task.status"]) == ("task.succeeded", "succeeded")
    assert started["task.id"] == succeeded["task.id"] == run.id
    assert succeeded["event.duration"] >= 0
    assert (succeeded["event.outcome"], succeeded["log.level"]) == ("success", "info")


def test_a_failed_run_reports_the_exception_and_lets_it_pass(rig: Rig) -> None:
    error = ValueError("no money")
    with pytest.raises(ValueError, match="no money") as caught, shippers.task("billing.charge", report=True):
        raise error
    assert caught.value is error
    failed = rig.reports()[1]
    assert (failed["event.action"], failed["event.outcome"], failed["log.level"]) == ("task.failed", "failure", "error")
    assert (failed["error.type"], failed["error.message"]) == ("ValueError", "no money")
    assert "Traceback" in failed["error.stack_trace"]


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(0), "succeeded"), (SystemExit(3), "failed"), (KeyboardInterrupt(), "cancelled")]
)
def test_an_exit_is_no_failure_and_an_interruption_a_cancellation(rig: Rig, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), shippers.task("t", report=True):
        raise error
    assert rig.reports()[1]["task.status"] == status


def test_without_report_nothing_is_reported(rig: Rig) -> None:
    with shippers.task("t"):
        pass
    assert rig.reports() == []


def test_a_decorated_function_is_a_new_run_each_time_plain_or_async(rig: Rig) -> None:
    @shippers.task("plain", report=True)
    def plain(value: int) -> int:
        rig.logger.info("in plain")
        return value

    @shippers.task("coroutine", report=True)
    async def coroutine(value: int) -> int:
        await asyncio.sleep(0)
        rig.logger.info("in coroutine")
        return value

    async def both() -> list[int]:
        return list(await asyncio.gather(coroutine(1), coroutine(2)))

    assert plain(7) == 7
    assert plain.__name__ == "plain"
    assert asyncio.run(both()) == [1, 2]
    ids = {record["task.id"] for record in rig.records()}
    assert len(ids) == 3
    assert {report["task.id"] for report in rig.reports()} == ids
    assert len(rig.reports()) == 6


def test_concurrent_asyncio_tasks_do_not_mix(rig: Rig) -> None:
    async def work(name: str, turn: asyncio.Event, other: asyncio.Event) -> None:
        async with shippers.task(name):
            other.set()
            await turn.wait()
            rig.logger.info("from %s", name)

    async def main() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        await asyncio.gather(work("a", first, second), work("b", second, first))

    asyncio.run(main())
    assert sorted((record["message"], record["task.name"]) for record in rig.records()) == [
        ("from a", "a"),
        ("from b", "b"),
    ]


def test_a_thread_starts_without_the_task_unless_it_is_carried(rig: Rig) -> None:
    with shippers.task("t"):
        for target in (lambda: rig.logger.info("bare"), shippers.carry(lambda: rig.logger.info("carried"))):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    bare, carried = rig.records()
    assert "task.name" not in bare
    assert carried["task.name"] == "t"


def test_a_pool_carries_the_task_to_all_its_threads_at_once(rig: Rig) -> None:
    barrier = threading.Barrier(3)

    def work(number: int) -> int:
        barrier.wait(10.0)
        rig.logger.info("w%d", number)
        return number

    with ThreadPoolExecutor(3) as pool, shippers.task("t"):
        assert list(pool.map(shippers.carry(work), range(3))) == [0, 1, 2]
    assert [record["task.name"] for record in rig.records()] == ["t"] * 3


def test_hostile_names_and_ids_of_tasks_raise_nothing(rig: Rig) -> None:
    with shippers.task(Hostile(), id=Hostile(), report=True, fields={"task.type": Hostile()}):  # type: ignore[arg-type]
        rig.logger.info("inside")
    assert rig.records()[0]["task.id"] == "<Hostile>"
    assert len(rig.reports()) == 2


def test_a_run_in_simulated_time_is_reported_in_it(rig: Rig) -> None:
    now = [1_735_128_000.0]
    with shippers.task("t", report=True, clock=lambda: now[0]):
        now[0] += 2.5
    started, succeeded = rig.reports()
    assert started["@timestamp"] == "2024-12-25T12:00:00.000000Z"
    assert succeeded["@timestamp"] == "2024-12-25T12:00:02.500000Z"
    assert succeeded["event.duration"] == 2_500_000_000
