"""The commands: what a person or a script gets from each, and never a traceback."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from logsvc.__main__ import app
from logsvc.client import Exit
from tests.support.answering import Answer, answering
from tests.support.tickets import make_ticket

ROOT = Path(__file__).parents[2]
KEY = "lsk_" + "k" * 43
RECORD = {"@timestamp": "2026-01-31T12:00:00Z", "log.level": "error", "message": "charge failed", "event.id": "a"}


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data directory of the test's own, and no setting of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("LOGSVC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOGSVC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


def run(*arguments: str, **environ: str) -> Result:
    """Run a command in this process; what it did not handle fails the test."""
    result = CliRunner().invoke(app, arguments, env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def page(*records: dict[str, Any]) -> Answer:
    """Return the answer of a search that found these."""
    total = {"value": len(records), "relation": "eq"}
    return Answer({"records": records, "next_cursor": None, "total": total, "took_ms": 1})


# ---------------------------------------------------------------------------------------------------------- exit codes


def test_exit_codes_are_documented_once_and_as_they_are() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\d+)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(str(code.value), code.meaning) for code in Exit]


def test_help_lists_every_exit_code() -> None:
    shown = " ".join(run("--help").stdout.split())
    assert [code for code in Exit if f"{code.value} {code.meaning}" not in shown] == []


def test_no_command_ends_with_a_number_that_has_no_name() -> None:
    found = [
        (path.name, line)
        for path in (ROOT / "logsvc").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(typer\.Exit|sys\.exit|SystemExit)\(\d|exit_code *[=!]= *\d|EXIT_", line)
    ]
    assert found == []


def test_every_command_has_help_and_is_named_in_a_document() -> None:
    documents = "".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

    def names(command: Any, prefix: str = "logsvc") -> list[tuple[str, str]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [(prefix, command.help or "")]
        return [found for name, sub in inner.items() for found in names(sub, f"{prefix} {name}")]

    commands = names(typer.main.get_command(app))
    assert len(commands) > 10
    assert [name for name, help in commands if not help] == []
    # A group's commands may be listed behind its name: logsvc keys create|list|revoke.
    groups = {name.rpartition(" ")[0] if name.count(" ") > 1 else name for name, _ in commands}
    assert [name for name in groups if name not in documents] == []


# -------------------------------------------------------------------------------------------------------------- search


def test_a_query_that_cannot_be_read_is_shown_with_a_caret_and_its_hint_once() -> None:
    problem = {"detail": "there is no field levl (column 5)", "position": 4, "hint": "did you mean level?"}
    with answering({"*": Answer(problem, 400, "application/problem+json")}) as url:
        result = run("search", "foo levl:error", "--url", url)
    assert result.exit_code == Exit.INPUT
    assert result.stderr.splitlines() == [
        "error: there is no field levl (column 5)",
        "  foo levl:error",
        "      ^",
        "hint: did you mean level?",
    ]


@pytest.mark.parametrize("position", [-1, 10**6, "x", None, True])
def test_a_strange_position_harms_nothing(position: object) -> None:
    with answering({"*": Answer({"detail": "bad", "position": position}, 400)}) as url:
        assert run("search", "foo", "--url", url).exit_code == Exit.INPUT


def test_text_has_the_newest_at_the_bottom_and_json_first() -> None:
    newest, oldest = {**RECORD, "message": "newest"}, {**RECORD, "message": "oldest"}
    with answering({"/api/v1/search": page(newest, oldest)}) as url:
        text, body = run("search", "--url", url), run("search", "--url", url, "-o", "json")
    assert text.stdout.index("oldest") < text.stdout.index("newest")
    assert [record["message"] for record in msgspec.json.decode(body.stdout)["records"]] == ["newest", "oldest"]
    assert "newest at the bottom" in " ".join(run("search", "--help").stdout.split())


@pytest.mark.parametrize("command", [["search"], ["tail"], ["tickets", "list"], ["tickets", "show", "t-1"]])
def test_another_server_is_named_as_such(command: list[str]) -> None:
    with answering({"*": Answer("<!doctype html><p>a page</p>", media_type="text/html")}) as url:
        result = run(*command, "--url", url)
    assert result.exit_code == Exit.AWAY
    assert f"what answers at {url} is not logsvc" in result.stderr
    assert "<p>" not in result.output


@pytest.mark.parametrize("command", [["search"], ["tail"], ["tickets", "list"], ["tickets", "show", "t-1"]])
def test_nobody_answering_is_one_sentence(command: list[str]) -> None:
    result = run(*command, "--url", "http://127.0.0.1:1")
    assert result.exit_code == Exit.AWAY
    assert "no service answers" in result.stderr


def test_tail_says_that_the_service_has_ended() -> None:
    stream = Answer(f"data: {msgspec.json.encode(RECORD).decode()}\n\n", media_type="text/event-stream")
    with answering({"/api/v1/tail": stream}) as url:
        result = run("tail", "--url", url)
    assert result.exit_code == Exit.AWAY
    assert "charge failed" in result.stdout
    assert "has ended" in result.stderr


@pytest.mark.parametrize("command", [["search"], ["tail"], ["tickets", "list"], ["doctor"]])
def test_a_broken_key_is_refused_and_never_printed(command: list[str]) -> None:
    for key in (f"{KEY}\n", f"{KEY}ü"):
        result = run(*command, LOGSVC_API_KEY=key)
        assert result.exit_code in (Exit.KEY, Exit.NO)
        assert "LOGSVC_API_KEY" in result.output
        assert KEY not in result.output


@pytest.mark.parametrize(
    "command",
    [
        ["search"],
        ["search", "--from"],
        ["tail"],
        ["tickets", "show"],
        ["tickets", "list", "--task"],
        ["keys", "create", "--scope"],
        ["keys", "create", "--scope", "read", "--name"],
        ["keys", "create", "--scope", "read", "--tenant"],
        ["keys", "create", "--scope", "read", "--expires-in"],
        ["keys", "change"],
        ["keys", "change", "key_1", "--bytes-per-second"],
        ["keys", "revoke"],
        ["deadletters", "show"],
        ["deadletters", "replay"],
        ["demo", "--break"],
    ],
)
def test_an_argument_that_is_not_utf_8_is_one_sentence(command: list[str]) -> None:
    with answering({"*": Answer({"detail": "no such thing"}, 404)}) as url:
        result = run(*command, "\udcff", LOGSVC_URL=url)
    assert result.exit_code in (Exit.INPUT, Exit.MISSING)
    assert result.stderr.startswith("error: ")


def test_bytes_of_a_shell_that_are_not_utf_8_end_in_one_sentence() -> None:
    command = [sys.executable, "-m", "logsvc", "search", b"\xff", "--url", "http://127.0.0.1:1"]
    done = subprocess.run(
        command, capture_output=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == Exit.INPUT
    assert b"is not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_terminal_without_unicode_gets_replacements_and_no_error() -> None:
    with answering({"*": page({**RECORD, "message": "naïve ✓"})}) as url:
        command = [sys.executable, "-m", "logsvc", "search", "--url", url]
        environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environ, text=True)
    assert (done.returncode, "na?ve ?" in done.stdout) == (Exit.DONE, True), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [["--version"], ["--help"], ["keys", "list", "-o", "json"]])
def test_a_full_disk_under_the_output_is_one_sentence(command: list[str]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "logsvc", *command], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == Exit.OUTPUT
    assert done.stderr == b"error: cannot write what was found: No space left on device\n"


def test_a_reader_that_wants_no_more_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "logsvc", "--help"], stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (Exit.UNREAD, b"")


# ------------------------------------------------------------------------------------------------------------- tickets


def test_a_ticket_is_shown_whole() -> None:
    body = {**msgspec.to_builtins(make_ticket("t-54c102d5837e")), "url": "http://x/t", "deliveries": []}
    tickets = {"/api/v1/tickets/t-54c102d5837e": Answer(body), "/api/v1/tickets": Answer({"tickets": [body], "next_cursor": None, "learning": 0})}  # fmt: skip
    with answering(tickets) as url:
        shown = run("tickets", "show", "t-54c102d5837e", "--url", url, COLUMNS="40")
        listed = run("tickets", "list", "--url", url, "-o", "json")
    assert (shown.exit_code, listed.exit_code) == (Exit.DONE, Exit.DONE)
    assert "no such column" in shown.stdout
    command = f"logsvc search {shlex.quote(body['query'])}"
    assert command in shown.stdout.splitlines(), "the search is there to be copied, however narrow the terminal"
    assert msgspec.json.decode(listed.stdout)["tickets"] == [body]


def test_an_id_cannot_lead_to_another_address() -> None:
    with answering({"/api/v1/search": page()}) as url:
        assert run("tickets", "show", "../search", "--url", url).exit_code == Exit.AWAY
        assert run("tickets", "show", "", "--url", url).exit_code == Exit.INPUT


# ---------------------------------------------------------------------------------------------- on the data directory


def test_keys_are_made_listed_and_revoked() -> None:
    made = msgspec.json.decode(run("keys", "create", "--scope", "ingest", "--scope", "read", "-o", "json").stdout)
    assert re.fullmatch(r"[A-Za-z0-9_]{32,64}", made["key"])
    assert run("keys", "revoke", made["id"]).exit_code == Exit.DONE
    [listed] = msgspec.json.decode(run("keys", "list", "-o", "json").stdout)["keys"]
    assert (listed["id"], listed["scopes"]) == (made["id"], ["ingest", "read"])
    assert listed["revoked_at"]
    assert made["key"] not in run("keys", "list").output
    for columns in ("20", "30", "40", "60", "80"):  # an identifier is there to be copied
        assert made["id"] in run("keys", "list", COLUMNS=columns).output
    assert run("keys", "revoke", "key_none").exit_code == Exit.MISSING


@pytest.mark.parametrize(
    ("option", "text", "way_out"),
    [
        ("--records-per-second", "0", "unlimited"),
        ("--bytes-per-second", "0", "unlimited"),
        ("--burst", "0s", "more than 0"),
        ("--burst", "1000d", "1h at most"),
    ],
)
def test_a_quota_that_would_be_none_is_refused(option: str, text: str, way_out: str) -> None:
    refused = run("keys", "create", "--scope", "ingest", option, text)
    assert refused.exit_code == 2
    assert way_out in refused.stderr


def test_backups_into_a_folder_without_a_name_are_refused(tmp_path: Path) -> None:
    for command in (["backup", ""], ["backup", "verify", " "], ["restore", ""]):
        refused = run(*command)
        assert refused.exit_code == 2, refused.stdout
        assert "an empty name is no folder" in refused.stderr


def test_a_quota_is_given_shown_and_changed_and_what_is_not_named_stays() -> None:
    options = ("--records-per-second", "2000", "--bytes-per-second", "2MiB")
    made = msgspec.json.decode(run("keys", "create", "--scope", "ingest", *options, "-o", "json").stdout)
    listed = run("keys", "list").stdout
    assert [word for word in ("2,000 records/s", "2MiB/s", "burst 10 s") if word not in listed] == []
    assert made["id"] in run("keys", "list", COLUMNS="80").stdout  # in one piece, to be copied
    changed = run("keys", "change", made["id"], "--records-per-second", "unlimited", "--burst", "1m")
    assert changed.stdout == f"{made['id']} may send: 2MiB/s, burst 60 s\n"
    run("keys", "change", made["id"], "--records-per-second", "default", "--bytes-per-second", "default")
    assert "7 records/s" in run("keys", "list", LOGSVC_QUOTA_RECORDS_PER_SECOND="7").stdout
    for wrong in (["--records-per-second", "-1"], ["--bytes-per-second", "5 parsecs"], ["--burst", "0s"], []):
        result = run("keys", "change", made["id"], *wrong)
        assert (result.exit_code, result.stderr.count("expected") or "nothing to change" in result.stderr) == (2, 1)
    assert run("keys", "change", "key_none", "--burst", "1s").exit_code == Exit.MISSING


@pytest.mark.parametrize("tenant", ["Acme", "a b", "x" * 64, "../x", "é", "-a"])
def test_a_tenant_of_a_key_obeys_the_rule_of_the_setting(tenant: str) -> None:
    result = run("keys", "create", "--scope", "read", "--tenant", tenant)
    setting = run("keys", "create", "--scope", "read", LOGSVC_TENANT=tenant)
    assert (result.exit_code, setting.exit_code) == (Exit.INPUT, Exit.REFUSED)
    assert "at most 63 of a-z" in result.stderr
    assert "at most 63 of a-z" in setting.stderr


@pytest.mark.parametrize("command", [["serve"], ["keys", "list"], ["keys", "create", "--scope", "read"]])
def test_a_data_directory_that_cannot_be_is_one_sentence(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(*command, LOGSVC_DATA_DIR=str(tmp_path / "file"))
    assert result.exit_code == Exit.REFUSED
    assert "set LOGSVC_DATA_DIR to a directory" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_without_a_journal_is_wrong_input(tmp_path: Path) -> None:
    run("keys", "create", "--scope", "read")  # makes the data directory
    result = run("journal", "replay", str(tmp_path))
    assert result.exit_code == Exit.INPUT
    assert "holds no journal" in result.stderr


def test_dead_letters_of_nothing_are_none() -> None:
    assert msgspec.json.decode(run("deadletters", "list", "-o", "json").stdout) == {"deadletters": []}
    assert run("deadletters", "show", "x").exit_code == Exit.MISSING
    assert run("deadletters", "replay").exit_code == Exit.INPUT


def test_doctor_in_json_has_every_finding_and_ends_with_no_if_one_is_wrong() -> None:
    for place, code in ((None, Exit.DONE), ("/proc/none", Exit.NO)):
        environ = {"LOGSVC_DATA_DIR": place} if place else {}
        result = run("doctor", "-o", "json", "--url", "http://127.0.0.1:1", **environ)
        grades = {finding["grade"] for finding in msgspec.json.decode(result.stdout)["findings"]}
        assert result.exit_code == code
        assert ("wrong" in grades) == (code is Exit.NO)


def test_demo_knows_what_can_break() -> None:
    result = run("demo", "--break", "wrong")
    assert result.exit_code == Exit.INPUT
    assert "schema, dependency, silence, none" in result.stderr


def test_an_unknown_command_is_wrong_input() -> None:
    assert run("serch").exit_code == Exit.INPUT
