from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shippers.lines import LineParser, parse_logfmt

READ_AT = "2025-01-01T00:00:00.000000Z"


def parse_head(text: str) -> tuple[str | None, str | None, str]:
    return LineParser().parse_head(text, READ_AT)


def parse_record(text: str, read_at: str) -> dict[str, Any]:
    return LineParser().parse(text, read_at)


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
        ("Dec 25 13:00:00 host app[1]: x", "2024-12-25T12:00:00.000000Z", None, "host app[1]: x"),
        ("<13>Jan  1 00:30:00 host app: x", "2024-12-31T23:30:00.000000Z", None, "host app: x"),
        (
            '10.0.0.1 - - [25/Dec/2024:13:00:00 +0100] "GET / HTTP/1.1" 200 5',
            "2024-12-25T12:00:00.000000Z",
            None,
            '10.0.0.1 - - [25/Dec/2024:13:00:00 +0100] "GET / HTTP/1.1" 200 5',
        ),
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


# --- zones and the hour that comes twice ---------------------------------------------------------


def test_a_time_without_a_zone_is_of_the_zone_given() -> None:
    parser = LineParser(zone="America/New_York")
    assert parser.parse_head("2024-12-25 13:00:00 x", READ_AT)[0] == "2024-12-25T18:00:00.000000Z"
    assert parser.parse_head("2024-07-01 13:00:00 x", READ_AT)[0] == "2024-07-01T17:00:00.000000Z"
    assert (
        parser.parse('{"time": "2024-07-01T13:00:00.5", "msg": "x"}', READ_AT)["time"] == "2024-07-01T17:00:00.500000Z"
    )
    assert parser.parse('{"time": "2024-07-01T13:00:00+02:00"}', READ_AT)["time"] == "2024-07-01T13:00:00+02:00"


def test_in_the_hour_that_comes_twice_times_go_on() -> None:
    parser = LineParser(zone="Europe/Berlin")
    clocks = [
        "01:59:59",
        "02:00:01",
        "02:30:00",
        "02:59:59",
        "02:00:01",
        "02:00:00",
        "02:30:00",
        "02:59:59",
        "03:00:00",
    ]
    times = [parser.parse_head(f"2024-10-27 {clock} x", READ_AT)[0] or "" for clock in clocks]
    assert [time[11:19] for time in times] == [
        "23:59:59", "00:00:01", "00:30:00", "00:59:59", "01:00:01", "01:00:00", "01:30:00", "01:59:59", "02:00:00",
    ]  # fmt: skip


@pytest.mark.parametrize(("now", "expected"), [("00:30:05", "00:30:00"), ("01:30:05", "01:30:00")])
def test_a_live_file_begun_in_that_hour_is_of_now(now: str, expected: str) -> None:
    parser = LineParser(zone="Europe/Berlin")
    time, _, _ = parser.parse_head("2024-10-27 02:30:00 x", f"2024-10-27T{now}.000000Z")
    assert (time or "")[11:19] == expected


def test_a_time_that_the_clock_skips_is_read_all_the_same() -> None:
    assert (
        LineParser(zone="Europe/Berlin").parse_head("2024-03-31 02:30:00 x", READ_AT)[0]
        == "2024-03-31T01:30:00.000000Z"
    )


# --- logfmt and patterns ---------------------------------------------------------------------------


def test_logfmt_is_recognised() -> None:
    line = r'time=2024-12-25T13:00:00Z lvl=warn msg="no \"card\"" order=17 took=1.5 id=007 empty= user.name=ann'
    assert parse_record(line, READ_AT) == {
        "event.created": READ_AT,
        "time": "2024-12-25T13:00:00Z",
        "level": "warn",
        "msg": 'no "card"',
        "order": 17,
        "took": 1.5,
        "id": "007",
        "empty": "",
        "user.name": "ann",
    }


@pytest.mark.parametrize("line", ["a=1 and words", "x = 3", 'msg="open', "retry=3 count=4", "=", "msg==x"])
def test_what_only_looks_like_logfmt_is_text(line: str) -> None:
    assert parse_record(line, READ_AT)["message"] == line


def test_any_pairs_are_logfmt_where_that_was_said() -> None:
    assert LineParser("logfmt").parse("retry=3 count=4", READ_AT)["retry"] == 3


def test_a_pattern_names_fields() -> None:
    parser = LineParser(
        pattern=r"(?P<time>\S+ \S+) (?P<level>\w+) <(?P<http__request__method>\w+)> (?P<message>.*?)(?: order=(?P<order>\d+))?$",
        zone="UTC",
    )
    record = parser.parse("2024-12-25 13:00:00 WARNING <GET> hello", READ_AT)
    assert record == {
        "event.created": READ_AT,
        "@timestamp": "2024-12-25T13:00:00.000000Z",
        "log.level": "warn",
        "http.request.method": "GET",
        "message": "hello",
    }
    assert parser.parse("another line", READ_AT)["message"] == "another line"
    assert parser.unmatched == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"form": "xml"}, "expected one of"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": ".*"}, "names no field"),
        ({"zone": "Mars/Olympus"}, "IANA"),
        ({"zone": "../etc/passwd"}, "IANA"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_says_so(options: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LineParser(**options)


@given(st.text(alphabet=st.sampled_from('abc=" \\1.')))
def test_any_text_may_be_asked_whether_it_is_logfmt(text: str) -> None:
    parse_logfmt(text, is_certain=True)
