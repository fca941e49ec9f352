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
    ],
)
@pytest.mark.parametrize("head", ["", HEAD])
def test_type_and_message_are_read_back(stack: str, kind: str, message: str, head: str) -> None:
    parsed = parse_stack(f"{head}\n{stack}" if head else stack)
    assert parsed is not None
    assert (parsed.head, parsed.type, parsed.message, parsed.stack) == (head, kind, message, stack)


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
