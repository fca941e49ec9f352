from __future__ import annotations

import asyncio
import contextvars
import enum
import gc
import io
import logging
import logging.config
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
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


def test_the_stack_that_was_asked_for_is_no_part_of_the_message(rig: Rig) -> None:
    rig.logger.info("here", stack_info=True)
    (record,) = rig.records()
    assert record["message"] == "here"
    assert record["error.stack_trace"].startswith("Stack (most recent call last):")
    assert "error.type" not in record


def test_the_stack_that_was_asked_for_leaves_that_of_the_exception_alone(rig: Rig) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        rig.logger.exception("it broke", stack_info=True, extra={"order": 17})
    (record,) = rig.records()
    assert (record["message"], record["error.type"], record["order"]) == ("it broke", "KeyError", 17)
    assert record["error.stack_trace"].startswith("Traceback")
    assert record["error.stack_trace"].endswith("KeyError: 'x'\n")
    assert record["stack_info"].startswith("Stack (most recent call last):")


def test_an_exception_that_is_none_is_told_and_the_message_stays(rig: Rig) -> None:
    record = logging.LogRecord("x", 40, "f.py", 1, "it broke", (), None, "f")
    record.exc_info = ("a",)  # type: ignore[assignment]
    rig.handler.handle(record)
    (shipped,) = rig.records()
    assert shipped["message"] == "it broke"
    assert "exception not captured: IndexError" in shipped["error.stack_trace"]


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


def test_a_small_nest_that_unfolds_without_end_is_cut(rig: Rig) -> None:
    nest: list[Any] = [0] * 100
    for _ in range(5):
        nest = [nest] * 100
    rig.logger.info("x", extra={"nest": nest, "bytes": bytes(50_000_000)})
    (record,) = rig.records()
    assert len(str(record)) < 1_000_000
    assert "cut" in str(record["nest"])
    assert len(record["bytes"]) < 10_000


def test_a_record_that_lacks_parts_is_shipped_with_what_it_has(rig: Rig) -> None:
    record = logging.LogRecord("x", 40, "f.py", 1, "it %s", ("broke",), None, "f")
    del record.thread, record.stack_info
    rig.handler.handle(record)
    assert rig.records()[0]["message"] == "it broke"


def test_a_record_that_cannot_be_queued_is_counted(rig: Rig) -> None:
    rig.handler.handle(object())  # type: ignore[arg-type]
    assert rig.handler.batcher.stats()["dropped_failed"] == 1


def test_a_level_that_is_none_leaves_nothing_behind(rig: Rig) -> None:
    with pytest.raises(ValueError, match="LOUD"):
        shippers.LogHandler(transport=CapturingTransport(), level="LOUD")
    rig.handler.batcher.close()
    other = Rig()
    with shippers.task("t", report=True):
        pass
    assert len(other.reports()) == 2
    other.handler.close()


def test_without_a_home_records_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    handler = shippers.LogHandler("http://127.0.0.1:9", "k" * 32, service="shop")
    assert handler.batcher.stats()["spooled_batches"] == 0
    handler.close()


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


def test_an_exit_with_a_code_of_any_kind_passes_through(rig: Rig) -> None:
    class Code:
        def __eq__(self, other: object) -> bool:
            raise ValueError("not comparable")

        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(SystemExit), shippers.task("t", report=True):
        raise SystemExit(Code())
    assert [report["task.status"] for report in rig.reports()] == ["started", "failed"]


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


def test_the_run_of_a_generator_is_its_iteration(rig: Rig) -> None:
    @shippers.task("rows", report=True)
    def rows(count: int) -> Generator[int, str, str]:
        said = ""
        for number in range(count):
            rig.logger.info("row %d", number)
            said += yield number
        return said

    def all_rows() -> Generator[int, str, None]:
        said = yield from rows(2)
        rig.logger.info(said)

    run = rows(1)
    assert rig.reports() == []  # nothing has run
    run.close()
    assert rig.reports() == []
    with shippers.task("caller"):
        outer = all_rows()
        assert next(outer) == 0
        rig.logger.info("between")
        assert outer.send("a") == 1
        with pytest.raises(StopIteration):
            outer.send("b")
    first, between, second, result = rig.records()
    assert [first["task.name"], second["task.name"]] == ["rows", "rows"]
    assert first["task.id"] == second["task.id"]
    assert between["task.name"] == result["task.name"] == "caller"
    assert result["message"] == "ab"
    assert [report["task.status"] for report in rig.reports()] == ["started", "succeeded"]


def test_a_generator_that_fails_or_is_given_up_says_so(rig: Rig) -> None:
    closed = []

    @shippers.task("rows", report=True)
    def rows(error: Exception | None) -> Iterator[int]:
        try:
            yield 1
            if error is not None:
                raise error
            yield 2
        finally:
            rig.logger.info("closing")
            closed.append(1)

    error = ValueError("no more")
    with pytest.raises(ValueError, match="no more") as caught:
        list(rows(error))
    assert caught.value is error
    for number in rows(None):
        assert number == 1
        break
    gc.collect()
    assert closed == [1, 1]
    assert [report["task.status"] for report in rig.reports()] == ["started", "failed", "started", "cancelled"]
    assert [record["task.name"] for record in rig.records()] == ["rows", "rows"]


def test_what_is_thrown_into_a_generator_arrives_in_its_body(rig: Rig) -> None:
    @shippers.task("rows", report=True)
    def rows() -> Generator[str, None, None]:
        with shippers.task("inner"):
            try:
                yield "first"
            except KeyError:
                rig.logger.info("caught")
                yield "second"
        rig.logger.info("left")

    run = rows()
    assert next(run) == "first"
    rig.logger.info("outside")
    assert run.throw(KeyError("x")) == "second"
    assert list(run) == []
    outside, caught, left = rig.records()
    assert "task.name" not in outside
    assert (caught["task.name"], left["task.name"]) == ("inner", "rows")
    assert rig.reports()[-1]["task.status"] == "succeeded"


def test_the_run_of_an_async_generator_is_its_iteration(rig: Rig) -> None:
    @shippers.task("rows", report=True)
    async def rows(count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            rig.logger.info("row %d", number)
            yield number
        if count == 3:
            raise ValueError("three")

    async def main() -> None:
        async for _ in rows(2):
            rig.logger.info("between")
        with pytest.raises(ValueError, match="three"):
            [row async for row in rows(3)]
        given_up = rows(5)
        assert await anext(given_up) == 0
        await given_up.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert [record.get("task.name") for record in rig.records()] == ["rows", None, "rows", None, *["rows"] * 4]
    statuses = [report["task.status"] for report in rig.reports()]
    assert statuses == ["started", "succeeded", "started", "failed", "started", "cancelled"]


def test_one_task_object_entered_by_threads_at_once_keeps_their_runs_apart(rig: Rig) -> None:
    run = shippers.task("t", report=True)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    ids = {}

    def first() -> None:
        with run:
            first_in.set()
            assert second_in.wait(10.0)
            ids["first"] = run.id
            rig.logger.info("first")
        first_out.set()

    def second() -> None:
        assert first_in.wait(10.0)
        with run:
            second_in.set()
            assert first_out.wait(10.0)
            ids["second"] = run.id
            rig.logger.info("second")
            raise KeyError("second")

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(first), pool.submit(second)]
    done[0].result()
    with pytest.raises(KeyError, match="second"):
        done[1].result()
    assert {record["message"]: record["task.id"] for record in rig.records()} == ids
    ends = {report["task.id"]: report["task.status"] for report in rig.reports() if report["task.status"] != "started"}
    assert ends == {ids["first"]: "succeeded", ids["second"]: "failed"}


def test_a_task_left_in_another_context_than_entered_still_ends(rig: Rig) -> None:
    run = shippers.task("t", report=True)
    contextvars.copy_context().run(run.__enter__)
    run.__exit__(None, None, None)
    run.__exit__(None, None, None)
    assert [report["task.status"] for report in rig.reports()] == ["started", "succeeded"]


def test_reports_leave_through_the_next_shipper_when_one_is_closed_by_its_batcher() -> None:
    first, second = Rig(), Rig()
    first.handler.batcher.close()
    with shippers.task("t", report=True):
        pass
    try:
        assert [report["task.status"] for report in second.reports()] == ["started", "succeeded"]
        assert first.handler.batcher.stats()["dropped"] == 0
    finally:
        first.handler.close()
        second.handler.close()
