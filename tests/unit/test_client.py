"""The client: whatever answers, a command gets what it asked for or one sentence with an exit code."""

from __future__ import annotations

import pytest

from logsvc.client import Client, ClientError, Exit, SearchPage
from logsvc.tickets import Ticket, TicketList
from tests.support.answering import Answer, answering

KEY = "lsk_" + "k" * 43
SHAPES = {"/api/v1/search": SearchPage, "/api/v1/tickets": TicketList, "/api/v1/tickets/t-1": Ticket}
STRANGE = {
    "a page": Answer("<!doctype html><h1>It works!</h1>", 200, "text/html"),
    "an empty object": Answer({}),
    "a list": Answer([1, 2]),
    "null": Answer(None),
    "half JSON": Answer(b'{"records": ['),
    "bytes": Answer(b"\xff\xfe\x00"),
    "nothing": Answer(b""),
    "other types": Answer({"records": 5, "tickets": "none", "next_cursor": [], "total": 1, "took_ms": "x"}),
    "other items": Answer({"records": [1], "tickets": [{}], "next_cursor": None, "total": {}, "took_ms": 1}),
    "a redirection": Answer("moved", 301, "text/html"),
    "a page that is not there": Answer("<h1>404</h1>", 404, "text/html"),
    "a proxy's error": Answer("<h1>502 Bad Gateway</h1>", 502, "text/html"),
    "a problem of another shape": Answer({"detail": [{"msg": "field required"}]}, 422),
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("name", STRANGE)
def test_an_answer_that_is_not_ours_is_one_sentence(name: str, path: str) -> None:
    with answering({"*": STRANGE[name]}) as url, pytest.raises(ClientError, match="is not logsvc") as caught:
        Client(url).get(path, SHAPES[path])
    assert caught.value.exit_code is Exit.AWAY
    assert url in str(caught.value)
    assert "<" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", STRANGE)
def test_a_stream_that_is_not_ours_is_one_sentence(name: str) -> None:
    with (
        answering({"*": STRANGE[name]}) as url,
        pytest.raises(ClientError, match="is not logsvc"),
        Client(url).events("/api/v1/tail") as records,
    ):
        list(records)


def test_a_stream_that_ends_says_that_the_service_ended() -> None:
    stream = Answer(': following\n\nid: 1\ndata: {"message":"a"}\n\n', media_type="text/event-stream")
    with answering({"*": stream}) as url, Client(url).events("/api/v1/tail") as records:
        assert next(records) == {"message": "a"}
        with pytest.raises(ClientError, match="has ended") as caught:
            next(records)
    assert caught.value.exit_code is Exit.AWAY


def test_a_stream_is_cut_where_it_says_and_not_where_a_message_has_a_line_end_of_its_own() -> None:
    message = "one\u2028two\u0085three\x0bfour\rfive"
    event = b'data: {"message":"' + message.replace("\r", "\\r").replace("\x0b", "\\u000b").encode() + b'"}\n\n'
    stream = Answer(event, media_type="text/event-stream")
    with answering({"*": stream}) as url, Client(url).events("/api/v1/tail") as records:
        assert next(records) == {"message": message}


def test_metrics_are_numbers_or_not_ours() -> None:
    text = '# HELP a b\na 1.5\nb{c="d"} 2\ndetection_cursor_lag_seconds +Inf\n'
    with answering({"/metrics": Answer(text, media_type="text/plain")}) as url:
        assert Client(url).metrics() == {"a": 1.5, "detection_cursor_lag_seconds": float("inf")}
    with answering({"*": STRANGE["a page"]}) as url, pytest.raises(ClientError, match="is not logsvc"):
        Client(url).metrics()


@pytest.mark.parametrize(
    ("status", "code"), [(400, Exit.INPUT), (401, Exit.KEY), (403, Exit.KEY), (404, Exit.MISSING), (503, Exit.AWAY)]
)
def test_a_problem_keeps_its_words_and_becomes_an_exit_code(status: int, code: Exit) -> None:
    problem = Answer({"detail": "so it is", "position": 3}, status, "application/problem+json")
    with answering({"*": problem}) as url, pytest.raises(ClientError, match="so it is") as caught:
        Client(url).get("/api/v1/search", SearchPage)
    assert caught.value.exit_code is code
    assert caught.value.problem["position"] == 3


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}é", f" {KEY}", "short", "lsk_" + "\udcff" * 40, "x" * 65])
def test_what_is_no_key_is_refused_and_never_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSVC_API_KEY", key)
    with pytest.raises(ClientError, match="LOGSVC_API_KEY") as caught:
        Client("http://127.0.0.1:1")
    assert caught.value.exit_code is Exit.KEY
    assert key.strip() not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[", "http://a:b:c", "nonsense", "ftp://x", "http://\udcff/", "http://a b/"])
def test_what_is_no_address_is_one_sentence(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        Client(url).get("/readyz")
    assert caught.value.exit_code in (Exit.INPUT, Exit.AWAY)
