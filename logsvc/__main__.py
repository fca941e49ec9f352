"""The commands: serve, and everything a person does from a terminal.

What a command ends with is one of ``client.Exit``; what goes wrong is one sentence on standard error.

``search``, ``tail``, ``erase`` and ``tickets`` talk to a running service (``LOGSVC_URL``, ``LOGSVC_API_KEY``);
``serve``, ``keys``, ``deadletters``, ``journal``, ``backup`` and ``restore`` work on the data directory (``LOGSVC_DATA_DIR``).

Modules are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
import typer
from typer.core import TyperGroup

from logsvc import __version__, terminal
from logsvc.client import Client, ClientError, Exit, SearchPage
from logsvc.errors import (
    BadInput,
    DataDirectoryLocked,
    LogsvcError,
    NotFound,
    SchemaMismatch,
    SettingsError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from logsvc.backtest import History

HELP = """Find out what broke, since when, and why we think so.

Start a service with `logsvc serve`, see it work with `logsvc demo`, and ask `logsvc doctor` when
something is off. Applications ship with `shippers.LogHandler`, `shippers.LoguruSink`, or
`python -m shippers.agent`.
"""

_BACKUPS = """Backups of everything a service keeps; `logsvc restore` puts one back.

`logsvc backup /mnt/backups/logsvc --keep 7` makes one, beside a running service.
"""

EPILOG = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in Exit) + "."

app = typer.Typer(
    help=HELP, epilog=EPILOG, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
tickets_app = typer.Typer(help="Tickets that anomalies became.", no_args_is_help=True)
tasks_app = typer.Typer()
keys_app = typer.Typer(help="Keys of the service; works on the data directory, running or not.", no_args_is_help=True)
deadletters_app = typer.Typer(help="Records that were accepted but the store will never take.", no_args_is_help=True)
journal_app = typer.Typer(help="The journal of accepted records.", no_args_is_help=True)
app.add_typer(tickets_app, name="tickets")
app.add_typer(tasks_app, name="tasks")
app.add_typer(keys_app, name="keys")
app.add_typer(deadletters_app, name="deadletters")
app.add_typer(journal_app, name="journal")


class Output(Enum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


_T = TypeVar("_T")
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text for people, json for programs.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="LOGSVC_URL", help="Address of the service.", show_default=False)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with settings; LOGSVC_* variables win over it.")
]
RecordsOption = Annotated[
    str | None,
    typer.Option(
        "--records-per-second",
        help="Records it may send a second, on average: a number, unlimited or default.",
        show_default=False,
    ),
]
BytesOption = Annotated[
    str | None,
    typer.Option(
        "--bytes-per-second", help="Bytes it may send a second, after decompression: such as 5MiB.", show_default=False
    ),
]
BurstOption = Annotated[
    str | None,
    typer.Option(
        "--burst", help="How many seconds' worth of that it may send at once: such as 30s.", show_default=False
    ),
]


def main() -> None:
    """Run a command; the entry point of ``logsvc`` and ``python -m logsvc``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without Unicode gets ?, not an error
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout = terminal.Output(sys.stdout)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except terminal.OutputFailed as exc:
        if not exc.is_unread:  # who reads no further, as head does, needs no explanation
            sys.stderr.write(f"error: cannot write what was found: {exc}\n")
        # What is still buffered cannot be written either; the interpreter must not try at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.UNREAD if exc.is_unread else Exit.OUTPUT)


@contextmanager
def _explained(query: str = "") -> Iterator[None]:
    """Turn what goes wrong into one sentence on standard error and the right exit code.

    Args:
        query: What was asked; shown with a caret where the service could not read on.
    """
    try:
        yield
    except ClientError as exc:
        _complain(str(exc), exc.exit_code, exc.problem, query)
    except (SettingsError, SchemaMismatch, DataDirectoryLocked) as exc:
        _complain(str(exc), Exit.REFUSED)
    except LogsvcError as exc:
        codes = {BadInput: Exit.INPUT, StoreUnavailable: Exit.AWAY, NotFound: Exit.MISSING}
        _complain(str(exc), next((code for kind, code in codes.items() if isinstance(exc, kind)), Exit.NO))
    except UnicodeEncodeError as exc:
        # The shell's bytes that are not UTF-8 come as halves of surrogate pairs, which nothing can send or store.
        _complain(f"{exc.object!r:.200} is not UTF-8; expected text", Exit.INPUT)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


def _complain(message: str, code: Exit, problem: Mapping[str, Any] | None = None, query: str = "") -> NoReturn:
    problem = problem or {}
    err = terminal.console(is_error=True)
    err.print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True)
    if query and isinstance(problem.get("position"), int):
        err.print(_escape(terminal.pointed(query, problem["position"])), soft_wrap=True)
    if problem.get("hint"):
        err.print(f"[green]hint:[/] {_escape(str(problem['hint']))}", soft_wrap=True)
    raise typer.Exit(code)


def _escape(text: str) -> str:
    return terminal.clean(text).replace("[", r"\[")


def _print_json(body: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(body), indent=2).decode() + "\n")


def _version(shown: bool) -> None:
    if shown:
        print(f"logsvc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the service until it is told to stop.

    Settings come from `LOGSVC_*` variables or a TOML file; docs/settings.md lists them. The
    first start makes an admin key: shown on a terminal, else written to
    `DATA_DIR/first-admin-key`.
    """
    from logsvc.app import run
    from logsvc.settings import load

    with _explained():
        raise typer.Exit(run(load(config)))


@app.command()
def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUERY]...", help="Such as: level:>=error task:billing.charge", show_default=False),
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="RFC 3339, or relative: now-15m.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="RFC 3339, or relative.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many records.")] = 50,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Begin at the other end.")] = False,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Find records, the newest first.

    Words and "phrases" search messages and errors; `field:value`, `field:*`, `prefix*`,
    `field:>=10`, `field:[a TO b]`, `/regex/` for a word or `field:/regex/`, AND, OR, NOT and parentheses narrow down.

    Examples: `logsvc search 'timeout AND NOT service:web' --from now-1h` ·
    `logsvc search 'task:"billing.charge" level:>=error' -o json`

    Text shows the newest at the bottom, next to the prompt; JSON has the newest first.
    """
    q = " ".join(words or ())
    with _explained(q):
        client = Client(url)
        records: list[dict[str, Any]] = []
        cursor: str | None = None
        total: dict[str, Any] = {"value": 0, "relation": "eq"}
        took_ms = 0
        completeness: dict[str, Any] | None = None
        while len(records) < limit:
            page = client.get(
                "/api/v1/search",
                SearchPage,
                **{"q": q, "from": start, "to": end, "cursor": cursor},
                limit=min(1000, limit - len(records)),
                order="asc" if oldest_first else "desc",
            )
            records.extend(page["records"])
            total, cursor = page["total"], page["next_cursor"]
            took_ms += page["took_ms"]
            completeness = page.get("data_completeness")
            if cursor is None:
                break
        if output is Output.JSON:
            about_data = {} if completeness is None else {"data_completeness": completeness}
            _print_json({"records": records, "next_cursor": cursor, "total": total, **about_data, "took_ms": took_ms})
            return
        out = terminal.console()
        # The newest stands last, next to the prompt, as in any log.
        for record in records if oldest_first else reversed(records):
            out.print(terminal.record_line(record), soft_wrap=True)
        about = "at least " if total["relation"] == "gte" else ""
        terminal.console(is_error=True).print(
            f"[dim]{len(records)} of {about}{total['value']} records, {took_ms} ms[/]"
            + ("" if records else "\n[dim]nothing found; try a wider --from, or fewer words[/]")
            + terminal.incomplete(completeness)
        )


@app.command()
def tail(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY]...", help="As for search.", show_default=False)
    ] = None,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show records as they arrive, until Ctrl-C or the service's end. With `-o json`, one JSON object a line."""
    q = " ".join(words or ())
    with _explained(q):
        out = terminal.console()
        with Client(url).events("/api/v1/tail", q=q) as records:
            if output is Output.TEXT:
                terminal.console(is_error=True).print("[dim]following; Ctrl-C ends[/]")
            for record in records:
                if output is Output.JSON:
                    sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
                    sys.stdout.flush()
                else:
                    out.print(terminal.record_line(record), soft_wrap=True)


@tasks_app.callback(invoke_without_command=True)
def tasks(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many to show.")] = 100,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Which tasks are watched, and which are still being learned?

    A task is learning until it has a few hours of history; until then plain rules alone open tickets for it.

    Examples: `logsvc tasks` · `logsvc tasks -o json` · `logsvc tasks accept billing.charge`
    """
    if context.invoked_subcommand is not None:
        return
    with _explained():
        body = Client(url).get("/api/v1/tasks", limit=limit)
        if output is Output.JSON:
            _print_json(body)
        else:
            terminal.console().print(terminal.tasks_view(body))


@tasks_app.command("accept")
def tasks_accept(
    name: Annotated[str, typer.Argument(help="Name of the task.", show_default=False)],
    service: Annotated[
        bool, typer.Option("--service", help="It is a service's, for what it does without a task.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Take all that a task did since yesterday for normal, and forget what was usual before.

    For what changed for good: a release with other errors, a task that runs half as often. Its tickets resolve by
    themselves soon after, and growth is measured against that day from then on. The key needs the scope `respond`.

    Example: `logsvc tasks accept billing.charge`
    """
    with _explained():
        body = Client(url).post("/api/v1/tasks/accept", **{"service" if service else "task": name})
        if output is Output.JSON:
            _print_json(body)
        else:
            since = terminal.moment(body["accepted_since"])
            terminal.console().print(
                f"What {terminal.clean(name)} does since {since} UTC is normal: {body['errors']:g} errors a {body['per']}.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


@app.command()
def loss(
    start: Annotated[str | None, typer.Option("--from", help="RFC 3339, or relative; a day ago if missing.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="RFC 3339, or relative.")] = None,
    service: Annotated[str | None, typer.Option(help="Only processes of this service.")] = None,
    host: Annotated[str | None, typer.Option(help="Only processes on this host.")] = None,
    key: Annotated[str | None, typer.Option(help="Only what came with the key of this id.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many processes to show.")] = 20,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Did I lose logs: whose, where, since when, how many?

    Every record that is known to have been emitted is searchable, or stands in one line of the table,
    with what to do about it. Our shippers number their records, so what never arrived is known; other
    clients are counted by key and protocol as they arrive.

    Examples: `logsvc loss` · `logsvc loss --from now-1h --service billing` · `logsvc loss -o json`
    """
    with _explained():
        body = Client(url).get(
            "/api/v1/loss",
            **{"from": start, "to": end},
            service=service,
            host=host,
            key=key,
            limit=limit,
        )
        if output is Output.JSON:
            _print_json(body)
        else:
            terminal.console().print(terminal.loss_view(body))


@app.command()
def erase(
    q: Annotated[str, typer.Argument(help="As for search; * for everything.")],
    start: Annotated[str | None, typer.Option("--from", help="RFC 3339, or relative: now-15m.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="RFC 3339, or relative; now if missing.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many records it would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Erase every record that a query finds, for good; needs a key with the scope `admin`.

    It shows how many there are, asks, and writes down in `DATA_DIR/erasures.jsonl` what is wanted and
    what came of it. Gone are the records in the store, the journal and the dead letters. Not gone are
    those in backups (`logsvc backup --keep` drops old ones) and the samples on tickets.

    Example: `logsvc erase 'user.hash:9f2c…' --dry-run`
    """
    with _explained(q):
        client = Client(url)
        asked = {"q": q, "from": start}
        found = client.post("/api/v1/erasures", **asked, to=end)
        matched, until = found["matched"], found["to"]
        if dry_run:
            _say_erased(output, found, f"{matched} records match; nothing was erased")
            return
        if not yes:
            if not sys.stdin.isatty():
                raise BadInput(f"{matched} records match; say --yes to erase them where nobody can be asked")
            typer.confirm(f"Erase {matched} records for good?", abort=True, err=True)
        # The same records as those that were counted: up to the same moment, and as many.
        found = client.post("/api/v1/erasures", **asked, to=until, expected=matched)
        _say_erased(output, found, f"erased {found['erased']} records and {found['dead_letters']} dead letters")


def _say_erased(output: Output, found: dict[str, Any], sentence: str) -> None:
    if output is Output.JSON:
        _print_json(found)
    else:
        terminal.console().print(sentence)


@tickets_app.command("list")
def tickets_list(
    state: Annotated[str | None, typer.Option(help="open, acknowledged or resolved.")] = None,
    task: Annotated[str | None, typer.Option(help="Only tickets about this task.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200)] = 50,
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List tickets, the newest first."""
    from logsvc.tickets import TicketList

    with _explained():
        body = Client(url).get("/api/v1/tickets", TicketList, state=state, task=task, limit=limit)
        if output is Output.JSON:
            _print_json(body)
        elif body["tickets"]:
            terminal.console().print(terminal.tickets_table(body["tickets"]))
        else:
            terminal.console().print("No tickets: nothing has looked wrong so far.")
        if output is Output.TEXT and (learning := body.get("learning")):
            terminal.console(is_error=True).print(
                f"[dim]tasks still learning: {learning:,}, for which plain rules alone open tickets; `logsvc tasks` shows them[/]"
            )


@tickets_app.command("show")
def tickets_show(
    id: Annotated[str, typer.Argument(help="As `tickets list` shows it.")],
    url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show one ticket: the burst against its baseline, the evidence, sample records."""
    from logsvc.tickets import Ticket

    with _explained():
        if not id.strip():
            raise BadInput("an empty ID names no ticket; `logsvc tickets list` shows those there are")
        ticket = Client(url).get(f"/api/v1/tickets/{quote(id, safe='')}", Ticket)
        if output is Output.JSON:
            _print_json(ticket)
        else:
            terminal.console().print(terminal.ticket_view(ticket), crop=False)


@keys_app.command("create")
def keys_create(
    scope: Annotated[
        list[str], typer.Option("--scope", help="ingest, report, read, respond or admin; repeat for several.")
    ],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    tenant: Annotated[str | None, typer.Option(help="Whose records it reaches; LOGSVC_TENANT if missing.")] = None,
    expires_in: Annotated[str | None, typer.Option("--expires-in", help="Such as 90d; never if missing.")] = None,
    records_per_second: RecordsOption = None,
    bytes_per_second: BytesOption = None,
    burst: BurstOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a key. It is shown once, now, and kept only as a hash.

    An application that ships logs needs `--scope ingest` and no more. With a quota it cannot crowd out others:
    what it sends beyond is refused with 429 and Retry-After, and our shippers keep it until then.
    """
    from logsvc.keys import Scope
    from logsvc.settings import load
    from logsvc.timestamps import parse_duration, system_clock

    with _explained():
        settings = load(config)
        try:
            scopes = [Scope(text.lower()) for text in scope]
        except ValueError:
            names = ", ".join(known.value for known in Scope)
            raise BadInput(f"--scope {' '.join(scope)}: expected one of {names}") from None
        expires_us = None
        if expires_in:
            expires_us = system_clock() + round(parse_duration(expires_in).total_seconds() * 1_000_000)
        with _keys(settings) as keys:
            key, info = keys.create(
                tenant=tenant or settings.tenant,
                name=name or "+".join(scope),
                scopes=scopes,
                expires_us=expires_us,
                **_quota(records_per_second, bytes_per_second, burst),
            )
        if output is Output.JSON:
            _print_json({"key": key, **msgspec.to_builtins(info)})
            return
        terminal.console(is_error=True).print(
            f"[dim]{info.id}, tenant {info.tenant}, may {', '.join(info.scopes)}, "
            f"quota {terminal.quota(keys.quota_of(info))}; shown once:[/]"
        )
        print(key)


@keys_app.command("list")
def keys_list(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """List keys: what each may do and send, and when it was last used; never the key itself."""
    from logsvc.settings import load

    with _explained(), _keys(load(config)) as keys:
        found = keys.list()
        if output is Output.JSON:
            _print_json({"keys": found})
            return
        if not found:
            terminal.console().print("No keys yet: `logsvc serve` makes the first, `logsvc keys create` more.")
            return
        rows = [
            (
                key.id,
                key.name,
                key.tenant,
                ", ".join(key.scopes),
                terminal.quota(keys.quota_of(key)).replace(", ", "\n"),
                key.created_at[:10],
                (key.last_used_at or "never")[:16].replace("T", " "),
                "revoked" if key.revoked_at else (key.expires_at or "")[:10],
            )
            for key in found
        ]
        columns = ("ID", "Name", "Tenant", "Scopes", "Quota", "Created", "Last used (UTC)", "Ends")
        terminal.console().print(terminal.table(None, columns, rows))


@keys_app.command("change")
def keys_change(
    id: Annotated[str, typer.Argument(help="As `keys list` shows it.")],
    records_per_second: RecordsOption = None,
    bytes_per_second: BytesOption = None,
    burst: BurstOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a key another quota, in a running service within seconds; what is not named stays.

    Examples: `logsvc keys change key_0f3a --records-per-second 2000 --bytes-per-second 2MiB --burst 30s` ·
    `logsvc keys change key_0f3a --records-per-second unlimited`
    """
    from logsvc.settings import load

    with _explained():
        quota = _quota(records_per_second, bytes_per_second, burst)
        if not quota:
            raise BadInput("nothing to change; name --records-per-second, --bytes-per-second or --burst")
        with _keys(load(config)) as keys:
            info = keys.change(id, **quota)
            terminal.console().print(f"{terminal.clean(info.id)} may send: {terminal.quota(keys.quota_of(info))}")


@keys_app.command("revoke")
def keys_revoke(
    id: Annotated[str, typer.Argument(help="As `keys list` shows it.")], config: ConfigOption = None
) -> None:
    """Make a key useless, in a running service within seconds."""
    from logsvc.settings import load

    with _explained(), _keys(load(config)) as keys:
        keys.revoke(id)
        terminal.console().print(f"revoked {terminal.clean(id)}")


def _quota(records_per_second: str | None, bytes_per_second: str | None, burst: str | None) -> dict[str, int | None]:
    """Return the parts of a quota that options name; None where one says default."""
    from logsvc.quotas import MAX_BURST_S
    from logsvc.settings import whole_number, whole_seconds, whole_size

    words = {"unlimited": "0"}
    quota: dict[str, int | None] = {}
    for name, text, parse in (
        ("records_per_second", records_per_second, whole_number),
        ("bytes_per_second", bytes_per_second, whole_size),
        ("burst_s", burst, whole_seconds),
    ):
        if text is None:
            continue
        option = "--burst" if name == "burst_s" else "--" + name.replace("_", "-")
        try:
            quota[name] = None if text == "default" else parse(words.get(text, text))
        except ValueError as exc:
            raise BadInput(f"{option} is {text!r}; expected {exc}, or default") from None
        if quota[name] == 0 and text not in words:
            # Whoever writes 0 may mean "nothing", and would get the contrary.
            raise BadInput(
                f"{option} is {text!r}; expected more than 0"
                + (", or unlimited; `logsvc keys revoke` takes a key's right to send" * (name != "burst_s"))
            )
        if name == "burst_s" and (quota[name] or 0) > MAX_BURST_S:
            raise BadInput(f"--burst is {text!r}; expected {MAX_BURST_S // 3600}h at most")
    return quota


class _Backups(TyperGroup):
    """Commands on backups; ``logsvc backup FOLDER`` makes one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["create", *args])


backup_app = typer.Typer(cls=_Backups, help=_BACKUPS, no_args_is_help=True)
app.add_typer(backup_app, name="backup")


def _folder(text: str) -> Path:
    if not text.strip():
        # A variable that is not set, say; the current folder is nobody's place for backups.
        raise typer.BadParameter("an empty name is no folder; name one outside the data directory, or . for this one")
    return Path(text)


FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", parser=_folder, help="Folder of backups, outside the data directory.")
]
IdOption = Annotated[str | None, typer.Option("--backup", help="Which one, as `backup list` shows it; the newest.")]


@backup_app.command("create")
def backup_create(
    folder: FolderArgument,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="How many to keep, this one included; all if missing.")
    ] = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a backup while the service runs, or of what it left; `logsvc backup FOLDER` is enough.

    It holds records, journal, dead letters, tickets and keys (hashed). What did not change since the
    last backup in the folder is not copied again. Erased records stay in earlier backups until
    `--keep` removes those.
    """
    from datetime import UTC, datetime

    from logsvc import backup
    from logsvc.settings import load

    with _explained():
        settings = load(config)
        state = backup.state_path(settings.state.url)
        report = backup.back_up(
            settings.data_dir,
            folder,
            now=datetime.now(UTC),
            state=state,
            store_name=_store_name(settings),
            open_store=lambda: _open_store(settings),
            server=_snapshots(settings),
            keep=keep,
        )
        made = report.manifest
        if output is Output.JSON:
            _print_json({**_about(made), "copied_bytes": report.copied_bytes})
            return
        terminal.console().print(
            f"[green]backup {made.id}[/]: {terminal.size(made.size_bytes)} in {len(made.files)} files, "
            f"{terminal.size(report.copied_bytes)} of them new; holds every record up to {made.through_seq}",
            soft_wrap=True,
        )
        if made.store == "elasticsearch" and made.snapshot is None:
            terminal.console(is_error=True).print(
                "[yellow]Records are in Elasticsearch and not in it: register a snapshot repository there and name it "
                "in LOGSVC_STORE_REPOSITORY, or have a snapshot taken now (PUT _snapshot).[/]",
                soft_wrap=True,
            )
        if not made.has_state:
            terminal.console(is_error=True).print(
                "[yellow]Tickets, keys and cursors are in PostgreSQL and not in it; back them up with pg_dump.[/]"
            )


def _store_name(settings: Any) -> str:
    return "embedded" if settings.store.is_embedded else "elasticsearch"


def _snapshots(settings: Any) -> Any:
    from logsvc.app import open_snapshots

    return open_snapshots(settings)


def _open_store(settings: Any) -> Any:
    from logsvc.app import open_store

    return open_store(settings)


def _records_of(made: Any) -> str:
    if made.store == "embedded":
        return "in it"
    return "in Elasticsearch's snapshot" if made.snapshot is not None else "not in it (Elasticsearch)"


def _about(made: Any) -> dict[str, Any]:
    names = ("id", "created_at", "version", "store", "snapshot", "has_state", "through_seq", "size_bytes")
    return {name: getattr(made, name) for name in names}


@backup_app.command("list")
def backup_list(folder: FolderArgument, output: OutputOption = Output.TEXT) -> None:
    """List the backups in a folder, the oldest first."""
    from logsvc import backup

    with _explained():
        found = backup.manifests(folder)
        if output is Output.JSON:
            _print_json({"backups": [_about(made) for made in found]})
            return
        rows = [
            (made.id, _records_of(made), terminal.size(made.size_bytes), str(made.through_seq), made.version)
            for made in found
        ]
        columns = ("ID", "Records", "Size", "Up to record", "logsvc")
        terminal.console().print(terminal.table(None, columns, rows))


@backup_app.command("verify")
def backup_verify(
    folder: FolderArgument, id: IdOption = None, config: ConfigOption = None, output: OutputOption = Output.TEXT
) -> None:
    """Read a backup and compare every byte with what was written; ends with 1 if anything differs.

    What is damaged is set aside, so that the next backup copies it anew. Whether a snapshot of
    records is there and whole, Elasticsearch is asked.
    """
    from logsvc import backup
    from logsvc.settings import load

    with _explained():
        made = backup.manifest(folder, id)
        wrong = backup.verify(folder, made, None if made.snapshot is None else _snapshots(load(config)))
        if output is Output.JSON:
            _print_json({**_about(made), "wrong": wrong})
        else:
            for text in wrong:
                terminal.console().print(f"[red]✗[/] {_escape(text)}", soft_wrap=True)
            if not wrong:
                terminal.console().print(
                    f"[green]{made.id} is whole:[/] {len(made.files)} files, {terminal.size(made.size_bytes)}"
                )
        if wrong:
            raise typer.Exit(Exit.NO)


@app.command()
def restore(
    folder: FolderArgument,
    id: IdOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the data directory.")] = False,
    config: ConfigOption = None,
) -> None:
    """Put a backup back into the data directory (`LOGSVC_DATA_DIR`); `logsvc serve` goes on from it.

    The service must not run. Every file is checked before anything is replaced. Records that were
    erased after the backup was made come back with it: erase them again.
    """
    from logsvc import backup
    from logsvc.settings import load

    with _explained():
        settings = load(config)
        made = backup.manifest(folder, id)
        backup.restore(
            folder,
            made,
            settings.data_dir,
            state=backup.state_path(settings.state.url),
            store_name=_store_name(settings),
            server=_snapshots(settings),
            overwrite=overwrite,
        )
        terminal.console().print(
            f"restored [green]{made.id}[/] into {_escape(str(settings.data_dir))}; start it with `logsvc serve`",
            soft_wrap=True,
        )


@app.command()
def reindex(config: ConfigOption = None) -> None:
    """Bring the records' indices to this version, after an upgrade that says that they differ.

    The embedded index is written anew beside the running service; stop that then and run the command
    again: it does what came since and puts the new index in place, within seconds. In Elasticsearch
    each index is copied and exchanged while the service runs. What was done before an interruption is
    not done again.
    """
    from rich.progress import Progress

    from logsvc.app import REINDEXED
    from logsvc.app import reindex as bring_up_to_date
    from logsvc.settings import load

    with _explained():
        settings = load(config)
        with Progress(console=terminal.console(is_error=True), transient=True) as progress:
            tasks: dict[str, Any] = {}

            def show(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = progress.add_task(_escape(name), total=total)
                progress.update(tasks[name], completed=done, total=total)

            done = bring_up_to_date(settings, show)
        is_prepared = settings.store.is_embedded and (settings.data_dir / REINDEXED).exists()
        terminal.console().print(
            f"{done} indices written anew; stop the service and run this again to put them in place"
            if is_prepared
            else f"{done} indices brought up to date"
        )


@contextmanager
def _keys(settings: Any) -> Iterator[Any]:
    from logsvc.keys import Keys
    from logsvc.lock import make_data_dir
    from logsvc.state import open_state
    from logsvc.timestamps import system_clock

    make_data_dir(settings.data_dir)
    state = open_state(settings.state.url)
    try:
        yield Keys(state, system_clock, settings.quota.default)
    finally:
        state.close()


@deadletters_app.command("list")
def deadletters_list(
    with_replayed: Annotated[bool, typer.Option("--with-replayed", help="Also those put back already.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List dead letters: when, whose, why."""
    from logsvc.deadletters import DIRECTORY, letters
    from logsvc.settings import load

    with _explained():
        found = letters(load(config).data_dir / DIRECTORY, with_replayed=with_replayed)
        if output is Output.JSON:
            fields = ("id", "time", "tenant", "reason", "is_replayed", "preview")
            _print_json(
                {
                    "deadletters": [
                        {"event.id": letter.event_id, **{name: getattr(letter, name) for name in fields}}
                        for letter in found
                    ]
                }
            )
            return
        rows = [
            (letter.id, letter.time[:19].replace("T", " "), letter.tenant, letter.reason, letter.preview[:80])
            for letter in found
        ]
        if rows:
            columns = ("ID", "Time (UTC)", "Tenant", "Reason", "Record")
            terminal.console().print(terminal.table(None, columns, rows))
        else:
            terminal.console().print("No dead letters: the store has taken every record.")


@deadletters_app.command("show")
def deadletters_show(
    id: Annotated[str, typer.Argument(help="As `deadletters list` shows it.")], config: ConfigOption = None
) -> None:
    """Show one dead letter whole, as JSON."""
    from logsvc.deadletters import DIRECTORY, find
    from logsvc.settings import load

    with _explained():
        _print_json(find(load(config).data_dir / DIRECTORY, id))


@deadletters_app.command("replay")
def deadletters_replay(
    ids: Annotated[list[str] | None, typer.Argument(help="As `deadletters list` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put dead letters back into the journal, once the reason is mended."""
    from logsvc.replay import ReplayRequest

    with _explained():
        if bool(ids) == every:
            raise BadInput(
                "name dead letters, or give --all for all of them; `logsvc deadletters list` shows their IDs"
            )
        _replay(config, output, ReplayRequest(dead_letters=tuple(ids or ()), all_dead_letters=every))


@journal_app.command("replay")
def journal_replay(
    directory: Annotated[Path, typer.Argument(help="Journal of a node that is gone.", exists=True, file_okay=False)],
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Take over the records of a dead node's journal; those that the store has already stay single."""
    from logsvc.replay import ReplayRequest

    with _explained():
        _replay(config, output, ReplayRequest(journal=str(directory.absolute())))


def _replay(config: Path | None, output: Output, request: Any) -> None:
    from logsvc.replay import replay
    from logsvc.settings import load

    report = replay(load(config).data_dir, request, wait_s=600)
    if output is Output.JSON:
        _print_json(report)
    else:
        print(f"{report.replayed} replayed, {report.unreadable} unreadable, {report.lost or 0} lost to damage")


@app.command()
def doctor(config: ConfigOption = None, url: UrlOption = None, output: OutputOption = Output.TEXT) -> None:
    """Say what is configured, reachable, behind or wrong, and what to do about it.

    Looks at the settings and the data directory, and at the running service if there is one.
    Ends with 1 if something is wrong.
    """
    from logsvc.doctor import Grade, examine

    with _explained():
        findings = examine(config, url)
        if output is Output.JSON:
            _print_json({"findings": findings})
        else:
            styles = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.WRONG: "bold red"}
            marks = {Grade.OK: "ok", Grade.WARNING: "look", Grade.WRONG: "wrong"}
            from rich.text import Text

            rows = [(Text(marks[f.grade], style=styles[f.grade]), f.what, f.text, f.advice or "") for f in findings]
            terminal.console().print(terminal.table(None, ("", "What", "Found", "What to do"), rows))
        if any(finding.grade is Grade.WRONG for finding in findings):
            raise typer.Exit(Exit.NO)


@app.command()
def backtest(
    file: Annotated[Path | None, typer.Argument(help="NDJSON, plain, gzip or zstd.", show_default=False)] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query", help="Take what a service has instead, such as: service:web; '' is all.", show_default=False
        ),
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="With --query: RFC 3339, or relative: now-14d.")] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="With --query: RFC 3339, or relative; now if missing.")
    ] = None,
    url: UrlOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write every odd window, as a JSON list.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Where to write a page with each ticket's chart and evidence.")
    ] = None,
    window: Annotated[str, typer.Option(help="Length of a window, as LOGSVC_WINDOW.")] = "5m",
    grace: Annotated[str, typer.Option(help="How long a window waits for late records, as LOGSVC_GRACE.")] = "60s",
    false_tickets: Annotated[
        str, typer.Option("--false-tickets", help="How many a task may open a day, as LOGSVC_FALSE_TICKETS.")
    ] = "0.01",
    false_tickets_for: Annotated[
        str,
        typer.Option("--false-tickets-for", metavar="NAME=N,…", help="The same for some, as LOGSVC_FALSE_TICKETS_FOR."),
    ] = "",
) -> None:
    """Show which tickets records would have opened: a file's, or those of a service that match a query.

    A file needs no service, key or store. With --query the records come from the service at LOGSVC_URL
    with the key in LOGSVC_API_KEY; a connection that breaks is taken up again.

    The same code as the service's judges it, tick by tick. `event.ingested` says when a record came;
    without it, it came when it happened.

    Examples: `logsvc backtest logs.ndjson.gz --output flags.json --html report.html` ·
    `logsvc backtest --query 'service:billing' --from now-14d`
    """
    from logsvc import detection, report
    from logsvc.backtest import write_flags
    from logsvc.settings import DetectionSettings, budget, budgets
    from logsvc.timestamps import parse_duration

    with _explained(query or ""):
        if (file is None) == (query is None):
            raise BadInput("expected a FILE, or --query with what a service has: one of them")
        if query is None and (start or end):
            raise BadInput("--from and --to go with --query; a file is taken as a whole")
        settings = DetectionSettings(
            window=parse_duration(window),
            grace=parse_duration(grace),
            false_tickets=_option("--false-tickets", budget, false_tickets),
            false_tickets_for=_option("--false-tickets-for", budgets, false_tickets_for),
        )
        history = detection.new_history("default", settings)
        name = str(file) if file is not None else query or "all records"
        _fill(history, file, query or "", start, end, url)
        for reason, n in history.refused.items():
            terminal.console(is_error=True).print(
                f"[yellow]{n:,} record{'' if n == 1 else 's'} refused:[/] {_escape(reason)} "
                f"[dim](first: {_escape(history.examples[reason])})[/]",
                soft_wrap=True,
            )
        if not history.records:
            expected = "one JSON object a line" if file is not None else "some that match; try a wider --from"
            raise BadInput(f"no records in {name!r}; expected {expected}")
        flags, tickets, learning = detection.backtest(history, settings)
        if output is not None:
            try:
                write_flags(output, [msgspec.to_builtins(flag) for flag in flags])
            except OSError as exc:
                raise BadInput(f"cannot write {str(output)!r}: {exc.strerror}") from exc
        if html is not None:
            try:
                report.write(
                    html,
                    report.page(
                        file.name if file is not None else name, history.records, len(history.units), tickets, learning
                    ),
                )
            except OSError as exc:
                raise BadInput(f"cannot write {str(html)!r}: {exc.strerror}") from exc
        out = terminal.console()
        if tickets:
            out.print(terminal.backtest_table([msgspec.to_builtins(ticket) for ticket in tickets]))
        joint = sum(ticket.kind == "joint" for ticket in tickets)
        out.print(
            f"{len(tickets):,} ticket{'' if len(tickets) == 1 else 's'} from {history.records:,} records of {len(history.units):,} tasks and services; "
            f"only the forest opened {joint:,}",
            highlight=False,
        )
        if learning:
            out.print(terminal.clean(report.still_learning(learning)), style="yellow", highlight=False, markup=False)


def _fill(history: History, file: Path | None, query: str, start: str | None, end: str | None, url: str | None) -> None:
    """Read all records into ``history``, and show how far it is."""
    from rich.progress import BarColumn, Progress, TextColumn

    from logsvc.backtest import EXPORTED, lines
    from logsvc.timestamps import format_us, parse_time, system_clock

    err = terminal.console(is_error=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        shown = progress.add_task("reading records", total=None, at="")
        if file is not None:
            found: Iterator[Any] = lines(file, lambda why: history.refuse("the rest of a damaged file", why))
        else:
            now_us = system_clock()
            until = format_us(parse_time(end, now_us) if end else now_us)
            since = format_us(parse_time(start, now_us)) if start else None
            found = Client(url).export(query, since, until, EXPORTED)
        for n, record in enumerate(found, 1):
            history.add(record)
            if n % 1000 == 0:
                reached = f", at {record['@timestamp'][:16]}" if file is None else ""
                progress.update(shown, at=f"{n:,}{reached}")


@app.command()
def simulate(
    directory: Annotated[Path, typer.Argument(help="Where logs.ndjson.gz and truth.json go.", show_default=False)],
    preset: Annotated[
        str,
        typer.Option(
            help="standard (25 tasks, 14 days), hard (43 tasks, 14 of them sparse), quiet (no incident, every trap), "
            "small (12 tasks, 8 days) or wobble (tasks that are never steady)."
        ),
    ] = "standard",
    seed: Annotated[int, typer.Option(help="The same seed gives the same records.", min=0)] = 1,
    messages: Annotated[
        str, typer.Option("--messages", help="Which messages: a or b; what works on one alone has learned words.")
    ] = "a",
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="KIND", help="Leave a kind of incident out; repeatable.")
    ] = None,
) -> None:
    """Make up traffic with known incidents and quiet traps, to judge detection by.

    Writes DIRECTORY/logs.ndjson.gz, by time of arrival, and DIRECTORY/truth.json.

    Incidents: error bursts (known, mixed, since a release; at night), errors never seen, one customer
    or host that fails, more warnings, slow durations (all, or the tail), silence, batches that do not
    come, errors that grow for hours or days, cascades, flapping.

    Traps, on which any ticket is false: deployments, restarts, load spikes, holidays and weekends,
    nightly batches with their usual errors, DEBUG switched on, blips of two to four failures, odd
    warnings and runs, late records, clock skew, new customers and tasks, durations that wobble.

    To evaluate your own settings:
    `logsvc simulate sim --seed 3`, `logsvc backtest sim/logs.ndjson.gz --output flags.json`,
    `logsvc evaluate flags.json --truth sim/truth.json`
    """
    from logsvc import detection
    from logsvc.backtest import write_records

    with _explained():
        records, truth = detection.simulate(preset, seed, messages, without or ())
        try:
            directory.mkdir(parents=True, exist_ok=True)
            n = write_records(directory / "logs.ndjson.gz", records)
            (directory / "truth.json").write_bytes(msgspec.json.format(msgspec.json.encode(truth), indent=1))
        except OSError as exc:
            raise BadInput(f"cannot write into {str(directory)!r}: {exc.strerror}") from exc
        scored = sum(incident["scored"] for incident in truth["incidents"])
        terminal.console().print(f"{n:,} records of {len(truth['tasks'])} tasks, {scored} incidents", highlight=False)


@app.command()
def evaluate(
    flags: Annotated[Path, typer.Argument(help="As `backtest --output` writes it.", show_default=False)],
    truth: Annotated[Path, typer.Option("--truth", help="What really happened.", show_default=False)],
    grace: Annotated[
        str, typer.Option(help="What every window waits, as LOGSVC_GRACE; taken off the delays. 0s leaves them whole.")
    ] = "60s",
    output: OutputOption = Output.TEXT,
) -> None:
    """Say how well detection did where the truth is known: recall, false tickets, delay, by kind.

    `--truth` is what `simulate` wrote, or your own: a JSON object with `window_s`, `eval_start` and
    `t_end` (seconds since 1970), `tasks` (each with `name` and `cold_start`, or null), `benign` (may
    be empty) and `incidents`, each with `id`, `kind`, `tasks`, `start`, `end`, `scored` and
    `evidence_at`, the moment from which its records proved it.

    A ticket that hits no incident is false, and counts once for every two hours it stays open.

    Example: `logsvc evaluate flags.json --truth sim/truth.json`
    """
    import dataclasses

    from logsvc import detection
    from logsvc.timestamps import parse_duration

    with _explained():
        grace_s = parse_duration(grace).total_seconds()
        known, found = _read_json(truth, dict), _read_json(flags, list)
        measures = detection.evaluate(known, found)
        no_forest = detection.evaluate(known, found, with_forest=False)
        if output is Output.JSON:
            rates = {name: getattr(measures, name) for name in ("precision", "recall", "f1", "false_per_task_day")}
            delays = {
                f"delay_{name}": measures.delay(q, grace_s=grace_s) for name, q in (("median", 0.5), ("p90", 0.9))
            }
            _print_json({**dataclasses.asdict(measures), **rates, **delays, "f1_without_forest": no_forest.f1})
            return
        for shown in terminal.measures_view(measures, no_forest, grace_s):
            terminal.console().print(shown, highlight=False)


def _option(name: str, parse: Callable[[str], _T], text: str) -> _T:
    """Return what an option says, read as the setting of the same meaning is."""
    try:
        return parse(text)
    except ValueError as exc:
        raise BadInput(f"{name} is {text!r}; expected {exc}") from None


def _read_json(path: Path, kind: type[_T]) -> _T:
    try:
        found: object = msgspec.json.decode(path.read_bytes())
    except OSError as exc:
        raise BadInput(f"cannot read {str(path)!r}: {exc.strerror}") from exc
    except msgspec.MsgspecError as exc:
        raise BadInput(f"{str(path)!r} is not JSON: {exc}") from exc
    if not isinstance(found, kind):
        raise BadInput(f"{str(path)!r} holds no JSON {'list' if kind is list else 'object'}")
    return found


@app.command()
def demo(
    what: Annotated[
        str, typer.Option("--break", help="What goes wrong: schema, dependency, silence or none.")
    ] = "schema",
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where its files go; a new temporary directory if missing.")
    ] = None,
    store_url: Annotated[
        str | None, typer.Option("--store-url", help="An Elasticsearch to use in place of the embedded store.")
    ] = None,
    days: Annotated[
        float, typer.Option("--days", min=0.5, max=14, help="How many past days the programs relive first.")
    ] = 2.0,
) -> None:
    """See it work: an application breaks, and a ticket says what, since when and why.

    Starts a service of its own on a free port, and real programs that log to it. With `CI` set it
    ends by itself, with 0 only if exactly the right tickets opened.
    """
    import tempfile

    from logsvc.demo import Break, run

    with _explained():
        try:
            chosen = Break(what)
        except ValueError:
            raise BadInput(f"--break {what}: expected one of {', '.join(kind.value for kind in Break)}") from None
        place = directory or Path(tempfile.mkdtemp(prefix="logsvc-demo-"))
        place.mkdir(parents=True, exist_ok=True)
        raise typer.Exit(run(chosen, place.absolute(), store_url=store_url, history_days=days))


if __name__ == "__main__":
    main()
