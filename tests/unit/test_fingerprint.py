"""Fingerprints: the same thing said twice has one id, a new thing has a new one, everywhere and for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logsvc.fingerprint import (
    MAX_TEXT_CHARS,
    error_fingerprint,
    exception_fingerprint,
    fingerprint,
    frames,
    mask_variables,
)
from shippers.redact import mask
from tests.support import golden


def test_real_messages_have_the_templates_of_the_golden_corpus() -> None:
    golden.check("templates.txt", mask_variables)


def test_real_lines_are_masked_as_in_the_golden_corpus() -> None:
    golden.check("masks.txt", lambda line: mask(line)[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 17 paid", "order 4711 paid"),
        ("user 'alice' not found", "user 'bob' not found"),
        ("KeyError: 'ai_model'", "KeyError: 'region'"),
        ("open /srv/a/b.txt failed", "open /var/c.txt failed"),
        ("peer 10.0.0.1:80 gone", "peer 192.168.7.44:443 gone"),
        ("id 550e8400-e29b-41d4-a716-446655440000", "id 123e4567-e89b-42d3-a456-426614174000"),
        ("blob deadbeef00 ok", "blob cafebabe11223344 ok"),
        ("took 35ms", "took 2.5s"),
        ("at 2024-12-25T13:00:00Z", "at 2025-01-01 00:00:00,5"),
        ("a  b\n c", "a b c"),
    ],
)
def test_a_known_message_with_new_values_is_not_new(one: str, other: str) -> None:
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no column named ai_model", "no column named region"),
        ("table execution_tasks has no column named ai_model", "database is locked"),
        ('column "ai_model" of relation "t" does not exist', 'relation "t" does not exist'),
        ("order 17 paid", "order 17 refunded"),
        ("connection refused", "connection reset"),
    ],
)
def test_other_words_are_another_template(one: str, other: str) -> None:
    assert fingerprint(one)[0] != fingerprint(other)[0]


def test_ids_never_change() -> None:
    # These are stored in records and in the state; whoever changes the rules changes the version.
    assert fingerprint("charged order 1234 in 35 ms")[0] == "v1:935995dbe8e3cc5e"
    assert exception_fingerprint("task failed", "ValueError", "bad 17")[0] == "v1:820544f571410aab"
    assert error_fingerprint("ValueError", 'File "/a/jobs.py", line 7, in run', "") == "v1:d467830c6535c65f"


def test_another_process_gives_the_same_ids() -> None:
    code = "from logsvc.fingerprint import fingerprint; print(fingerprint('order 17 for \\'ann\\' paid')[0])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert result.stdout.strip() == fingerprint("order 4711 for 'bob' paid")[0]


@given(st.text(max_size=200) | st.text(alphabet="0123456789abcdef-:./\\'\"` =@x", max_size=60))
@example("0.0A")
@example("0..1")
def test_any_text_has_a_template_without_digits_in_it(text: str) -> None:
    identifier, template = fingerprint(text)
    assert identifier.startswith("v1:")
    assert len(template) <= MAX_TEXT_CHARS
    assert not any(char in "0123456789" for char in template if char.isascii())


@given(st.text(alphabet="0123456789abcdefx-:./ '\"", max_size=60), st.integers(0, 2**32))
def test_the_template_depends_on_where_digits_stand_not_on_which_they_are(text: str, seed: int) -> None:
    other = "".join(str((int(char) * 7 + seed + i) % 10) if char.isdigit() else char for i, char in enumerate(text))
    assert fingerprint(text) == fingerprint(other)


def test_the_text_is_cut_and_the_id_is_of_the_whole() -> None:
    long = "word " * 500
    assert len(fingerprint(long)[1]) == MAX_TEXT_CHARS
    assert fingerprint(long + "end")[0] != fingerprint(long + "other end")[0]


# ------------------------------------------------------------------------------------------ exceptions


def test_an_exception_is_told_apart_by_type_and_message_words() -> None:
    missing = exception_fingerprint("task failed", "sqlite3.OperationalError", "table t has no column named ai_model")
    locked = exception_fingerprint("task failed", "sqlite3.OperationalError", "database is locked")
    other_type = exception_fingerprint("task failed", "sqlite3.IntegrityError", "database is locked")
    assert len({missing[0], locked[0], other_type[0]}) == 3


def test_an_exception_with_new_values_is_known() -> None:
    one = exception_fingerprint("task 17 failed", "ValueError", "bad value 'x' at 10.0.0.1")
    other = exception_fingerprint("task 18 failed", "ValueError", "bad value 'yy' at 10.0.0.2")
    assert one == other


def test_parameters_of_a_statement_take_no_part() -> None:
    error = "(sqlite3.OperationalError) no such column: ai_model\n[SQL: SELECT 1]\n[parameters: {}]"
    assert exception_fingerprint("x", "E", error.format("('a', None)")) == exception_fingerprint(
        "x", "E", error.format("(b, c, d)")
    )


def test_what_the_message_says_already_is_not_repeated() -> None:
    assert exception_fingerprint("boom", "ValueError", "boom")[1] == "ValueError: boom"
    assert exception_fingerprint("run: ValueError: boom", "ValueError", "boom")[1] == "run: ValueError: boom"
    assert exception_fingerprint("", "ValueError", "")[1] == "ValueError"


PYTHON = """Traceback (most recent call last):
  File "/srv/app/{folder}/jobs.py", line {line}, in run
    charge(order)
  File "/srv/venv/lib/python3.11/site-packages/sqlalchemy/engine/base.py", line 1967, in _execute
    raise
sqlite3.OperationalError: {message}"""


def test_frames_are_the_applications_own_without_lines_and_folders() -> None:
    assert frames(PYTHON.format(folder="a", line=7, message="x")) == ["jobs.py:run"]


def test_a_stack_of_others_frames_only_keeps_them() -> None:
    assert frames('  File "/usr/lib/python3.11/asyncio/base_events.py", line 1, in run') == ["base_events.py:run"]


def test_the_error_is_the_same_after_lines_moved_and_values_changed() -> None:
    one = error_fingerprint("E", PYTHON.format(folder="a", line=7, message="no 17"), "no 17")
    other = error_fingerprint("E", PYTHON.format(folder="b", line=99, message="no 18"), "no 18")
    assert one == other
    assert one != error_fingerprint("F", PYTHON.format(folder="a", line=7, message="no 17"), "no 17")


def test_without_a_stack_the_masked_message_stands_in() -> None:
    assert error_fingerprint("E", "", "bad 17") == error_fingerprint("E", "", "bad 18")
    assert error_fingerprint("E", "", "bad 17") != error_fingerprint("E", "", "worse 17")


def test_java_and_javascript_frames_are_understood() -> None:
    java = "java.lang.IllegalStateException: x\n\tat com.acme.Jobs.run(Jobs.java:42)\n\tat java.lang.Thread.run(Thread.java:1)"
    assert frames(java) == ["Jobs.java:com.acme.Jobs.run"]
    script = (
        "Error: x\n    at run (/srv/app/jobs.js:7:13)\n    at node:internal/process:1:2\n    at /srv/app/main.js:1:1"
    )
    assert frames(script) == ["jobs.js:run", "main.js:<anonymous>"]


@given(st.text(max_size=300))
def test_any_stack_has_a_fingerprint(stack: str) -> None:
    assert error_fingerprint("E", stack, stack).startswith("v1:")


def test_no_message_makes_fingerprinting_take_more_than_its_length() -> None:
    # A quadratic pattern over the bound of 4,096 characters, or over a long stack, would take minutes.
    for piece in ("a", "1", "a.1-", '"', "/", "0:", "://", "a/", "-", "1.", "1,", "x=1", "::", "0x", "'a"):
        fingerprint(piece * 100_000)
        frames(("at " + piece * 50 + "(") * 2_000)
        frames(('  File "' + piece * 50) * 2_000)
