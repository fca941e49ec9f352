from __future__ import annotations

import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shippers import multiline
from shippers.multiline import Joiner, join, parse_stack

TRACEBACK = """\
Traceback (most recent call last):
  File "/app/billing.py", line 3, in charge
    return cards[number]
           ~~~~~^^^^^^^^
KeyError: 'x'"""

CHAINED = f"""\
{TRACEBACK}

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/billing.py", line 9, in run
    raise Refused("no") from None
shop.errors.Refused: no"""

SQL = """\
Traceback (most recent call last):
  File "/app/db.py", line 3, in f
    execute()
sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) no such column: ai_model
[SQL: SELECT ai_model FROM execution_tasks]
(Background on this error at: https://sqlalche.me/e/20/e3q8)"""

GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/app/a.py", line 3, in <module>
  |     raise ExceptionGroup("two", errors)
  | ExceptionGroup: two (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/app/a.py", line 1, in f
    | ValueError: a
    +---------------- 2 ----------------
    | OSError: b
    +------------------------------------"""

CHARGED = """\
Traceback (most recent call last):
  File "/app/t.py", line 6, in <module>
    try: f()
         ~^^
  File "/app/t.py", line 5, in f
    raise RuntimeError("no")
  [Previous line repeated 996 more times]
RuntimeError: no"""

SYNTAX = """\
Traceback (most recent call last):
  File "/app/t.py", line 18, in <module>
    exec(compile("x = (1,", "f.py", "exec"))
  File "f.py", line 1
    x = (1,
        ^
SyntaxError: '(' was never closed"""

LOGGING = """\
Traceback (most recent call last):
  File "/app/logging/__init__.py", line 400, in getMessage
    msg = msg % self.args
          ~~~~^~~~~~~~~~~
TypeError: %d format: a real number is required, not str
Call stack:
  File "/app/t.py", line 26, in <module>
    logging.error("%d", "x")
Message: '%d'
Arguments: ('x',)"""

JAVA = """\
java.lang.IllegalStateException: charge failed
\tat shop.Billing.charge(Billing.java:4)
\tat shop.Billing.main(Billing.java:6)
\tSuppressed: java.io.IOException: close
\t\t... 2 more
Caused by: java.lang.NullPointerException: Cannot invoke "java.lang.Integer.intValue()"
\tat shop.Billing.get(Billing.java:3)
\t... 2 more"""

JAVA_THREAD = 'Exception in thread "main" ' + JAVA.replace("failed", "failed\nsecond line")

NODE = """\
ChargeError: charge failed
    at charge (/app/billing.js:3:45)
    at Object.<anonymous> (/app/billing.js:4:7)
    ... 5 lines matching cause stack trace ...
    at node:internal/main/run_main_module:28:49 {
  code: 'E17',
  [cause]: TypeError: Cannot read properties of null (reading 'x')
      at get (/app/billing.js:2:20)
      at node:internal/main/run_main_module:28:49
}"""

NODE_UNCAUGHT = """\
/app/billing.js:6
Promise.reject(new Error("unhandled"));
               ^

Error: unhandled
    at Object.<anonymous> (/app/billing.js:6:16)
    at node:internal/main/run_main_module:28:49

Node.js v20.20.2"""

GO = """\
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x49eae4]

goroutine 1 [running]:
main.get(...)
\t/app/billing.go:4
main.main()
\t/app/billing.go:10 +0xe4

goroutine 19 [runnable]:
main.main.func2()
\t/app/billing.go:9
created by main.main in goroutine 1
\t/app/billing.go:9 +0xd6
exit status 2"""

GO_AGAIN = """\
panic: no money
\tsecond line

goroutine 1 [running]:
panic({0x4ae560?, 0x57f2f0?})
\t/go/src/runtime/panic.go:860 +0x13a
shop/billing.(*Till).Pay(0x0, {0x1, 0x2})
\t/app/billing.go:3 +0x3b"""

SAMPLES = {
    "charged": CHARGED,
    "syntax": SYNTAX,
    "logging": LOGGING,
    "java": JAVA,
    "java_thread": JAVA_THREAD,
    "node": NODE,
    "node_uncaught": NODE_UNCAUGHT,
    "go": GO,
    "go_again": GO_AGAIN,
}

HEAD = "2024-12-25 13:00:00,123 ERROR shop: charge failed"
NEXT = "2024-12-25 13:00:01,123 INFO shop: going on"


@pytest.mark.parametrize("stack", [TRACEBACK, CHAINED, SQL, GROUP], ids=["plain", "chained", "sql", "group"])
def test_a_stack_joins_the_line_that_logged_it(stack: str) -> None:
    text = f"{NEXT}\n{HEAD}\n{stack}\n{NEXT}\n{NEXT}"
    assert list(join(text.split("\n"))) == [NEXT, f"{HEAD}\n{stack}", NEXT, NEXT]


@pytest.mark.parametrize("stack", [TRACEBACK, CHAINED, SQL, GROUP], ids=["plain", "chained", "sql", "group"])
@pytest.mark.parametrize("following", ["INFO:root:next", '{"a": 1}', "plain words follow", ""])
def test_a_bare_stack_is_a_record_of_its_own(stack: str, following: str) -> None:
    assert list(join([NEXT, *stack.split("\n"), following])) == [NEXT, stack, following]


@pytest.mark.parametrize("stack", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("following", [NEXT, '{"a": 1}'])
def test_a_stack_of_any_language_is_one_record(stack: str, following: str) -> None:
    assert list(join([NEXT, *stack.split("\n"), following])) == [NEXT, stack, following]


@pytest.mark.parametrize("name", ["charged", "syntax", "logging", "java", "node"])
def test_a_stack_of_any_language_joins_the_line_that_logged_it(name: str) -> None:
    stack = SAMPLES[name]
    assert list(join([NEXT, HEAD, *stack.split("\n"), NEXT])) == [NEXT, f"{HEAD}\n{stack}", NEXT]


@pytest.mark.parametrize("name", ["java_thread", "node_uncaught", "go"])
def test_what_kills_a_program_has_nothing_to_do_with_the_line_before(name: str) -> None:
    stack = SAMPLES[name]
    assert list(join([HEAD, *stack.split("\n")])) == [HEAD, stack]


def test_the_goroutine_of_a_server_joins_the_line_that_logged_its_panic() -> None:
    head = "2024/12/25 13:00:00 http: panic serving 127.0.0.1:5000: boom"
    goroutine = GO_AGAIN.split("\n\n")[1]
    assert list(join([head, *goroutine.split("\n"), NEXT])) == [f"{head}\n{goroutine}", NEXT]
    parsed = parse_stack(f"{head}\n{goroutine}")
    assert parsed is not None
    assert (parsed.head, parsed.type, parsed.stack) == (head, "panic", goroutine)


def test_frames_join_the_line_that_names_their_error() -> None:
    text = f"{HEAD} Error: no such card\n    at charge (/app/billing.js:3:45)"
    assert list(join([*text.split("\n"), NEXT])) == [text, NEXT]
    parsed = parse_stack(text)
    assert parsed is not None
    assert (parsed.head, parsed.type, parsed.message) == (f"{HEAD} Error: no such card", "Error", "no such card")


def test_a_message_of_several_lines_belongs_to_a_stack_of_java() -> None:
    stack = JAVA.replace("failed", "failed\nsecond line")
    assert list(join([HEAD, *stack.split("\n"), NEXT])) == [f"{HEAD}\n{stack}", NEXT]
    parsed = parse_stack(f"{HEAD}\n{stack}")
    assert parsed is not None
    assert (parsed.type, parsed.message) == ("java.lang.IllegalStateException", "charge failed\nsecond line")


def test_two_stacks_in_a_row_are_two_records() -> None:
    assert list(join([*TRACEBACK.split("\n"), *SQL.split("\n")])) == [TRACEBACK, SQL]


def test_a_message_of_several_lines_belongs_to_its_stack_where_records_begin_with_a_time() -> None:
    stack = f"{TRACEBACK}\nsecond line of the message\n\nand a third"
    assert list(join([HEAD, *stack.split("\n"), NEXT])) == [f"{HEAD}\n{stack}", NEXT]


def test_a_head_and_its_stack_may_share_a_line() -> None:
    text = f"{HEAD}: {TRACEBACK}"
    assert list(join([*text.split("\n"), NEXT])) == [text, NEXT]


def test_an_interrupted_stack_does_not_swallow_the_next_record() -> None:
    torn = TRACEBACK.split("\n")[:3]
    assert list(join([*torn, NEXT])) == ["\n".join(torn), NEXT]


def test_lines_that_belong_to_nothing_stay_alone() -> None:
    lines = ["one", "", "  two", "File three", "KeyError: four"]
    assert list(join(lines)) == lines


@given(
    st.lists(
        st.lists(
            st.sampled_from(sorted({line for text in (GROUP, CHAINED, *SAMPLES.values()) for line in text.split("\n")}))
            | st.sampled_from([HEAD, NEXT, "plain", "", "/a b"]),
            min_size=1,
        )
    )
)
def test_lines_taken_together_are_joined_as_one_by_one(blocks: list[list[str]]) -> None:
    one, together = Joiner[int](), Joiner[int]()
    number, expected, got = 0, [], []
    for block in blocks:
        numbered = list(enumerate(block, number))
        number += len(block)
        got += together.feed_plain(numbered)
        for mark, line in numbered:
            expected += one.feed(line, mark)
    assert got + together.flush() == expected + one.flush()


@given(
    st.lists(st.sampled_from([*TRACEBACK.split("\n"), *GROUP.split("\n"), HEAD, NEXT, "", "x", *multiline._CHAINED]))
)
def test_no_line_is_lost_changed_or_moved(lines: list[str]) -> None:
    joiner: Joiner[int] = Joiner()
    joined = [record for number, line in enumerate(lines) for record in joiner.feed(line, number)]
    joined += joiner.flush()
    assert "\n".join(record.text for record in joined) == "\n".join(lines)
    assert [record.text.split("\n")[0] for record in joined] == [lines[record.mark] for record in joined]
    assert not joiner.is_holding


def test_an_endless_stack_is_cut_into_records() -> None:
    lines = ["Traceback (most recent call last):", *['  File "a.py", line 1, in f'] * (3 * multiline.MAX_LINES)]
    records = list(join(lines))
    assert "\n".join(records).split("\n") == lines
    assert max(record.count("\n") for record in records) < multiline.MAX_LINES


@pytest.mark.parametrize(
    ("stack", "kind", "message"),
    [
        (TRACEBACK, "KeyError", "'x'"),
        (CHAINED, "shop.errors.Refused", "no"),
        (SQL, "sqlalchemy.exc.OperationalError", SQL.split("OperationalError: ", 1)[1]),
        (GROUP, "ExceptionGroup", "two (2 sub-exceptions)"),
        (CHARGED, "RuntimeError", "no"),
        (SYNTAX, "SyntaxError", "'(' was never closed"),
        (JAVA, "java.lang.IllegalStateException", "charge failed"),
        (NODE, "ChargeError", "charge failed"),
        (GO, "panic", "runtime error: invalid memory address or nil pointer dereference"),
        (GO_AGAIN, "panic", "no money\nsecond line"),
    ],
)
@pytest.mark.parametrize("head", ["", HEAD])
def test_type_and_message_are_read_back(stack: str, kind: str, message: str, head: str) -> None:
    parsed = parse_stack(f"{head}\n{stack}" if head else stack)
    assert parsed is not None
    assert (parsed.head, parsed.type, parsed.message, parsed.stack) == (head, kind, message, stack)


def test_the_stack_of_an_error_that_nobody_catches_is_read_back() -> None:
    uncaught, threaded = parse_stack(NODE_UNCAUGHT), parse_stack(JAVA_THREAD)
    assert uncaught is not None
    assert threaded is not None
    assert (uncaught.head, uncaught.type, uncaught.message) == ("", "Error", "unhandled")
    assert (threaded.head, threaded.type) == ('Exception in thread "main"', "java.lang.IllegalStateException")


def test_what_python_prints_is_read_back() -> None:
    class Odd(Exception):
        pass

    def fail() -> None:
        try:
            int("x")
        except ValueError as exc:
            raise Odd("first\nsecond") from exc

    text = ""
    try:
        fail()
    except Odd:
        text = traceback.format_exc()
    parsed = parse_stack(text)
    assert parsed is not None
    assert parsed.type.endswith("Odd")
    assert parsed.message == "first\nsecond"
    assert list(join([HEAD, *text.rstrip("\n").split("\n"), NEXT])) == [f"{HEAD}\n{text.rstrip()}", NEXT]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
def test_a_group_that_python_prints_is_joined_whole() -> None:
    text = ""
    try:
        raise ExceptionGroup("outer", [ValueError("a"), ExceptionGroup("inner", [OSError("b")])])
    except ExceptionGroup:
        text = traceback.format_exc().rstrip("\n")
    assert list(join([HEAD, *text.split("\n"), NEXT])) == [f"{HEAD}\n{text}", NEXT]
    parsed = parse_stack(text)
    assert parsed is not None
    assert (parsed.type, parsed.message) == ("ExceptionGroup", "outer (2 sub-exceptions)")


@pytest.mark.parametrize("text", ["", "no stack", "Traceback of a journey"])
def test_a_text_without_a_stack_is_none(text: str) -> None:
    assert parse_stack(text) is None


@given(st.text(alphabet=st.sampled_from('Traceback (most recent call last):\n |+-File "x"E:.'), max_size=300))
def test_any_text_is_parsed_without_error(text: str) -> None:
    parse_stack(text + "Traceback (most recent call last):\n" + text)


# ------------------------------------------------------------------------------ as Python up to 3.14 prints it

_CODE, _LOUD, _END = "\x1b[35m", "\x1b[1;31m", "\x1b[0m"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        pytest.param(
            "\n".join(
                [
                    "2024-12-25 13:00:00 ERROR it broke",
                    "Traceback (most recent call last):",
                    f'  File {_CODE}"/app/a.py"{_END}, line {_CODE}3{_END}, in {_CODE}<module>{_END}',
                    f"    {_LOUD}f{_END}{_CODE}(){_END}",
                    f"    {_LOUD}^{_END}{_CODE}^^{_END}",
                    f"{_LOUD}ValueError{_END}: {_CODE}bad thing{_END}",
                ]
            ),
            "ValueError",
            "bad thing",
            id="coloured 3.13/3.14",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in f',
                    "ValueError: 1",
                    "",
                    "During handling of the above exception, another exception occurred:",
                    "",
                    "  + Exception Group Traceback (most recent call last):",
                    '  |   File "a.py", line 3, in <module>',
                    "  | ExceptionGroup: many (1 sub-exception)",
                    "  +-+---------------- 1 ----------------",
                    "    | ValueError: 1",
                    "    +------------------------------------",
                ]
            ),
            "ExceptionGroup",
            "many (1 sub-exception)",
            id="group nested in chain",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "  + Exception Group Traceback (most recent call last):",
                    '  |   File "a.py", line 3, in <module>',
                    "  | ExceptionGroup: many (1 sub-exception)",
                    "  +-+---------------- 1 ----------------",
                    "    | ValueError: 1",
                    "    +------------------------------------",
                    "",
                    "During handling of the above exception, another exception occurred:",
                    "",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in f',
                    "RuntimeError: after",
                ]
            ),
            "RuntimeError",
            "after",
            id="group then chained",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    f"  + {_CODE}Exception Group Traceback (most recent call last):{_END}",
                    f'  |   File {_CODE}"a.py"{_END}, line {_CODE}3{_END}, in {_CODE}<module>{_END}',
                    f"  | {_LOUD}ExceptionGroup{_END}: {_CODE}many (1 sub-exception){_END}",
                    "  +-+---------------- 1 ----------------",
                    f"    | {_LOUD}ValueError{_END}: {_CODE}1{_END}",
                    "    +------------------------------------",
                ]
            ),
            "ExceptionGroup",
            "many (1 sub-exception)",
            id="coloured group",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in f',
                    "    g()",
                    "    ~^^",
                    "ValueError: bad",
                    "a note",
                    "second note: with colon",
                ]
            ),
            "ValueError",
            "bad\na note\nsecond note: with colon",
            id="notes",
        ),
        pytest.param(
            "\n".join(
                [
                    '  File "/app/b.py", line 2',
                    "    x = (1,",
                    "        ^",
                    "SyntaxError: '(' was never closed",
                ]
            ),
            "SyntaxError",
            "'(' was never closed",
            id="bare syntax error",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in <module>',
                    "    import b",
                    '  File "/app/b.py", line 2',
                    "    x = (1,",
                    "        ^",
                    "SyntaxError: '(' was never closed",
                ]
            ),
            "SyntaxError",
            "'(' was never closed",
            id="syntax error",
        ),
        pytest.param(
            "\n".join(
                [
                    "Exception in thread Thread-1 (worker):",
                    "Traceback (most recent call last):",
                    '  File "/usr/lib/python3.14/threading.py", line 1081, in _bootstrap_inner',
                    "    self._context.run(self.run)",
                    "    ~~~~~~~~~~~~~~~~~^^^^^^^^^^",
                    '  File "a.py", line 1, in f',
                    "ValueError: 1",
                ]
            ),
            "ValueError",
            "1",
            id="thread",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "multiprocessing.pool.RemoteTraceback: ",
                    '"""',
                    "Traceback (most recent call last):",
                    '  File "/usr/lib/python3.11/multiprocessing/pool.py", line 125, in worker',
                    "    result = (True, func(*args, **kwds))",
                    "ValueError: 1",
                    '"""',
                    "",
                    "The above exception was the direct cause of the following exception:",
                    "",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 9, in <module>',
                    "    pool.map(f, [1])",
                    "ValueError: 1",
                ]
            ),
            "ValueError",
            "1",
            id="remote",
        ),
        pytest.param(
            "\n".join(
                [
                    "Exception ignored while calling deallocator <function A.__del__ at 0x7f>:",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in __del__',
                    "ValueError: 1",
                ]
            ),
            "ValueError",
            "1",
            id="ignored 3.14",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in f',
                    "    f()",
                    "    ~^^",
                    "  [Previous line repeated 996 more times]",
                    "RecursionError: maximum recursion depth exceeded",
                ]
            ),
            "RecursionError",
            "maximum recursion depth exceeded",
            id="repeated frames",
        ),
        pytest.param(
            "\n".join(
                [
                    "ERROR x",
                    "  + Exception Group Traceback (most recent call last):",
                    '  |   File "a.py", line 3, in <module>',
                    "  | ExceptionGroup: many (20 sub-exceptions)",
                    "  +-+---------------- 1 ----------------",
                    "    | ValueError: 1",
                    "    +---------------- ... ----------------",
                    "    | and 5 more exceptions",
                    "    +------------------------------------",
                ]
            ),
            "ExceptionGroup",
            "many (20 sub-exceptions)",
            id="more sub",
        ),
        pytest.param(
            "\n".join(
                [
                    "Task exception was never retrieved",
                    "future: <Task finished name='Task-2' coro=<f() done, defined at a.py:3> exception=ValueError(1)>",
                    "Traceback (most recent call last):",
                    '  File "a.py", line 1, in f',
                    "ValueError: 1",
                ]
            ),
            "ValueError",
            "1",
            id="asyncio",
        ),
        pytest.param(
            "\n".join(
                [
                    "Fatal Python error: Segmentation fault",
                    "",
                    "Current thread 0x00007f (most recent call first):",
                    '  File "a.py", line 1 in f',
                    '  File "a.py", line 2 in <module>',
                    "",
                    "Extension modules: numpy (total: 1)",
                ]
            ),
            "Fatal Python error",
            "Segmentation fault",
            id="faulthandler",
        ),
    ],
)
def test_what_python_prints_of_an_exception_is_one_record(text: str, kind: str, message: str) -> None:
    assert list(join([*text.split("\n"), "INFO next"])) == [text, "INFO next"]
    assert joined_plainly([*text.split("\n"), "INFO next"]) == [text, "INFO next"]
    parsed = parse_stack(text)
    assert parsed is not None
    assert (parsed.type, parsed.message) == (kind, message)
    assert "\x1b" not in parsed.stack


def joined_plainly(lines: list[str]) -> list[str]:
    joiner: Joiner[int] = Joiner()
    return [one.text for one in [*joiner.feed_plain(list(enumerate(lines))), *joiner.flush()]]
