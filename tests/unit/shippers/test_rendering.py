from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shippers.lines import LineParser
from shippers.multiline import Joined
from shippers.record import Finisher, Origin
from shippers.rendering import Renderer

READ_AT = "2025-01-01T00:00:00.000000Z"
FIELDS = {"service.name": "shop", "service.version": "1"}

LINES = [
    "2024-12-25T13:00:00Z ERROR it broke",
    '{"msg": "x", "order": 3, "level": "warn"}',
    '{"msg": "x", "ts": "2024-12-25 13:00:00"}',
    '{"msg": "x", "time": 17}',
    '{"msg": "ann@example.com", "password": "hunter2"}',
    '{"msg": "a\\u0040b.de", "n": null}',
    '{"msg": "x", "service": {"name": "y"}}',
    '{"msg": "x", "service.name": "y", "event.id": "mine"}',
    '{"message": "x", "labels": {"a": 1}}',
    '{"event": {"id": 1}, "msg": "x"}',
    '{"a": NaN, "msg": "x"}',
    '{"order": 3}',
    "{}",
    '{"msg": "x"} ',
    '{"msg": ',
    "[1]",
    'level=warn msg="no card" order=3',
    'ERROR:root:it broke\nTraceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1',
    "login of ann@example.com with token=abc",
    'say "hi"\t\x00\x1f \\ \u2028 é \ud800',
    "x",
]


def records(texts: list[str], *, parser: LineParser, is_quick: bool) -> list[dict[str, Any]]:
    origin = Origin("agent", "test", host="h", labels={"k": "v"}, epoch="e")
    renderer = Renderer(Finisher(origin), parser, FIELDS, "/var/log/a.log")
    if not is_quick:
        renderer._quickly = lambda *_: None  # type: ignore[method-assign, assignment, misc]
    lines = renderer.render("id", [Joined(text, number) for number, text in enumerate(texts)], READ_AT)
    return [json.loads(line) for line in lines]


@given(
    st.lists(
        st.sampled_from(LINES)
        | st.text(st.characters(codec="utf-8"))
        | st.from_regex(r'\{"[a-z]{1,3}": "?[a-z0-9@.=]{1,9}"?(, "msg": "x")?\}'),
        max_size=40,
    ),
    st.sampled_from(["auto", "plain", "json", "logfmt"]),
)
def test_the_quick_way_makes_the_same_records(texts: list[str], form: str) -> None:
    quick = records(texts, parser=LineParser(form, zone="Europe/Berlin"), is_quick=True)
    thorough = records(texts, parser=LineParser(form, zone="Europe/Berlin"), is_quick=False)
    assert quick == thorough


def test_most_lines_take_the_quick_way() -> None:
    renderer = Renderer(Finisher(Origin("agent")), LineParser(), FIELDS, "a.log")
    assert renderer._quickly(Joined("2024-12-25T13:00:00Z ERROR it broke", 0), renderer._start, READ_AT)
    assert renderer._quickly(Joined('{"msg": "x", "order": 3}', 0), renderer._start, READ_AT)


@pytest.mark.parametrize(
    "text", ["login of ann@example.com", '{"msg": "x", "api_key": "abc"}', '{"msg": "token=abcdef1"}']
)
def test_a_secret_among_many_lines_is_masked(text: str) -> None:
    texts = ["plain words"] * 50 + [text] + ["plain words"] * 50
    result = records(texts, parser=LineParser(), is_quick=True)
    assert len(result) == 101
    assert [number for number, record in enumerate(result) if record.get("ingest.redactions")] == [50]
    assert len({record["event.id"] for record in result}) == 101
    assert [record["event.sequence"] for record in result] == list(range(1, 102))
