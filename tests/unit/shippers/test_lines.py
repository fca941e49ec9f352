from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shippers.lines import parse_head, parse_record

READ_AT = "2025-01-01T00:00:00.000000Z"


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("line", "moment", "level", "message"),
    [
        ("2024-12-25T13:00:00Z ERROR it broke", "2024-12-25T13:00:00.000000Z", "error", "it broke"),
        ("2024-12-25T13:00:00.123456789Z it broke", "2024-12-25T13:00:00.123456789Z", None, "it broke"),
        ("2024-12-25 13:00:00,5+0200 [WARN] x", "2024-12-25T11:00:00.500000Z", "warn", "x"),
        ("[2024-12-25 13:00:00 UTC] [error] x", "2024-12-25T13:00:00.000000Z", "error", "x"),
        ("2024-12-25 13:00:00,123 INFO shop: x", "2024-12-25T12:00:00.123000Z", "info", "shop: x"),
        ("2024-07-01 13:00:00 x", "2024-07-01T11:00:00.000000Z", None, "x"),
        ("2024-12-25 13:00:00.123 | CRITICAL | a:b:3 - x", "2024-12-25T12:00:00.123000Z", "fatal", "a:b:3 - x"),
        ("2024-12-25 13:00:00 shop.web DEBUG x", "2024-12-25T12:00:00.000000Z", "debug", "shop.web DEBUG x"),
        ("2024/12/25 13:00:00 [error] 7#7: x", "2024-12-25T12:00:00.000000Z", "error", "7#7: x"),
        ("ERROR:root:x", None, "error", "root:x"),
        ("WARNING x", None, "warn", "x"),
        ("Error in the kitchen", None, None, "Error in the kitchen"),
        ("2024-13-45 99:00:00 x", None, None, "2024-13-45 99:00:00 x"),
        ("20241225 x", None, None, "20241225 x"),
        ("", None, None, ""),
    ],
)
def test_time_and_level_are_recognised(line: str, moment: str | None, level: str | None, message: str) -> None:
    assert parse_head(line) == (moment, level, message)


def test_a_line_that_says_nothing_is_its_own_message() -> None:
    assert parse_record("hello", READ_AT) == {
        "event.created": READ_AT,
        "@timestamp": READ_AT,
        "log.level": "info",
        "message": "hello",
    }


def test_a_json_object_keeps_its_own_fields() -> None:
    line = {"ts": 1, "level": "warning", "msg": "x", "order": {"id": 3}}
    assert parse_record(json.dumps(line), READ_AT) == {**line, "event.created": READ_AT}


def test_a_json_object_without_message_or_time_gets_them() -> None:
    record = parse_record('{"a": 1}', READ_AT)
    assert (record["message"], record["@timestamp"]) == ('{"a": 1}', READ_AT)


@pytest.mark.parametrize("line", ["[1, 2]", '{"half": ', '"text"', "{" * 5000, '{"a":' * 5000, "7"])
def test_what_is_no_json_object_is_text(line: str) -> None:
    assert parse_record(line, READ_AT)["message"] == line


def test_nan_in_json_becomes_text() -> None:
    assert parse_record('{"msg": "x", "value": NaN}', READ_AT)["value"] == "NaN"


def test_a_stack_becomes_an_error() -> None:
    text = '2024-12-25T13:00:00Z INFO odd\nTraceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1'
    record = parse_record(text, READ_AT)
    assert (record["log.level"], record["message"]) == ("error", "odd")
    assert (record["error.type"], record["error.message"]) == ("KeyError", "1")
    assert record["error.stack_trace"].startswith("Traceback")


def test_a_bare_stack_is_named_by_its_exception() -> None:
    record = parse_record('Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1', READ_AT)
    assert (record["log.level"], record["message"]) == ("error", "KeyError: 1")


@given(st.text())
def test_any_text_is_a_record(text: str) -> None:
    assert parse_record(text, READ_AT)["@timestamp"]
