"""The native protocol: whatever a body looks like, its good items get through and the bad ones are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsvc.errors import BadInput, BodyTooLarge
from logsvc.normaliser import Normaliser, Origin
from logsvc.protocols import native
from tests.unit.test_normaliser import NOW_US

NORMALISER = Normaliser(b"key")
ORIGIN = Origin("default", "10.0.0.7", "native", "k1", NOW_US)


def taken(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the answer to a body and the records that it left."""
    results, entries, _ = NORMALISER.normalise(native.decode(body), ORIGIN)
    return native.render(results), [json.loads(entry.source) for entry in entries]


def messages(body: bytes) -> list[str]:
    return [record["message"] for record in taken(body)[1]]


@pytest.mark.parametrize(
    "body",
    [
        b'{"msg":"a"}\n{"msg":"b"}\n',
        b'{"msg":"a"}\n{"msg":"b"}',
        b'{"msg":"a"}\r\n\r\n  \n{"msg":"b"}\r\n',
        b'\xef\xbb\xbf{"msg":"a"}\n{"msg":"b"}\n',
        b'[{"msg":"a"},{"msg":"b"}]',
        b'\n [ {"msg":"a"} ,\n {"msg":"b"} ] \n',
        b'[{"msg":"a","x":NaN},{"msg":"b"}]',
    ],
)
def test_lines_and_arrays_are_told_apart_by_content(body: bytes) -> None:
    assert messages(body) == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"msg":"a"}',
        b'{\n  "msg": "a",\n  "list": [1,\n 2]\n}\n',
        b'{\n"msg":"a",\n"x":NaN\n}',
        b'{"msg":\r\n"a"}',
    ],
)
def test_one_object_may_be_written_over_several_lines(body: bytes) -> None:
    assert taken(body)[0] == {"accepted": 1, "rejected": []}
    assert messages(body) == ["a"]


@pytest.mark.parametrize("body", [b"", b" \r\n\t\n", b"\xef\xbb\xbf", b"\0\0", b"[]", b"[ ]"])
def test_an_empty_body_is_bad_input(body: bytes) -> None:
    with pytest.raises(BadInput, match="empty"):
        taken(body)


@pytest.mark.parametrize(
    "body", [b"plain text", b'{"half', b"[1, 2]", b"17", b'{"half\n{"half', b"\xff\xfe\x00", b"[[[["]
)
def test_a_body_of_which_nothing_can_be_used_is_bad_input(body: bytes) -> None:
    with pytest.raises(BadInput, match="the first: "):
        taken(body)


def test_a_bad_line_is_refused_alone_by_its_index() -> None:
    answer, records = taken(b'{"msg":"a"}\n\nnonsense\n{"msg":"b"}\n[1]\n{"msg":"c"')
    assert answer["accepted"] == 2
    assert [rejected["index"] for rejected in answer["rejected"]] == [1, 3, 4]
    assert all(rejected["reason"] for rejected in answer["rejected"])
    assert [record["message"] for record in records] == ["a", "b"]


def test_a_line_of_ten_megabytes_is_refused_and_its_neighbours_stored() -> None:
    body = b'{"msg":"a"}\n{"msg":"' + b"x" * 10_000_000 + b'"}\n{"msg":"b"}\n'
    answer, records = taken(body)
    assert answer["accepted"] == 2
    (rejected,) = answer["rejected"]
    assert rejected["index"] == 1
    assert "1048576" in rejected["reason"]
    assert [record["message"] for record in records] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "accepted", "rejected"),
    [
        (b'[{"msg":"a"},{"msg":"b","x":' + b"[" * 5_000 + b"]" * 5_000 + b'},{"msg":"c"}]', 2, [1]),
        (b'[{"msg":"a"},{"msg":"b"},{"msg":"c', 2, [2]),
        (b'[{"msg":"a"},17,{"msg":"b"}]', 2, [1]),
        (b'[{"msg":"a]}"},{"msg":"b\\"]"},{nonsense},{"msg":"c"}]', 3, [2]),
        (b'[{"msg":"a"}] trailing', 1, [1]),
        (b'[{"msg":"a"},{"msg":"\xff"}]', 2, []),
    ],
)
def test_a_damaged_array_loses_only_its_damaged_items(body: bytes, accepted: int, rejected: list[int]) -> None:
    answer, _ = taken(body)
    assert answer["accepted"] == accepted
    assert [entry["index"] for entry in answer["rejected"]] == rejected


def test_a_line_that_is_not_utf_8_is_kept_and_flagged() -> None:
    answer, records = taken(b'{"msg":"caf\xe9"}\n{"msg":"b"}\n')
    assert answer == {"accepted": 2, "rejected": []}
    assert records[0]["message"] == "caf\ufffd"
    assert records[0]["ingest.conflicts"] == ["message"]


def test_a_body_of_too_many_items_is_refused_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAX_ITEMS", 10)
    assert len(native.decode(b"{}\n" * 10)) == 10
    for body in (b"{}\n" * 11, b"[" + b"{}," * 10 + b"{}]", b"[" + b"{}," * 11 + b"{NaN"):
        with pytest.raises(BodyTooLarge, match=r"more than|too long"):
            native.decode(body)


@given(st.binary(max_size=80) | st.text(alphabet='[]{}",:\\ \n0aN', max_size=40).map(str.encode))
def test_any_bytes_give_items_or_bad_input(body: bytes) -> None:
    try:
        results, entries, _ = NORMALISER.normalise(native.decode(body), ORIGIN)
        answer = native.render(results)
    except BadInput:
        return
    assert answer["accepted"] == len(entries) > 0


@given(
    st.lists(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3), min_size=1, max_size=5),
    st.sampled_from(["lines", "array", "pretty"]),
)
def test_the_same_objects_give_the_same_items_in_every_form(objects: list[dict[str, str]], form: str) -> None:
    body = {
        "lines": "\n".join(json.dumps(item) for item in objects),
        "array": json.dumps(objects),
        "pretty": json.dumps(objects, indent=2),
    }[form]
    items = [json.loads(bytes(item)) for item in native.decode(body.encode())]
    assert items == objects
