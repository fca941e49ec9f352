"""Terminal: how records, tickets and tables look to a person.

Everything that came from a log is printed as text, never as Rich markup, and stripped of control
characters: a log line must not move anybody's cursor.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from logsvc.quotas import Quota
from logsvc.settings import shown_size
from logsvc.timestamps import parse_rfc3339

LEVEL_STYLES = {
    "trace": "dim",
    "debug": "dim",
    "info": "cyan",
    "warn": "yellow",
    "error": "bold red",
    "fatal": "bold white on red",
}
STATE_STYLES = {"open": "bold red", "acknowledged": "yellow", "resolved": "green"}
SEVERITY_STYLES = {"critical": "bold white on red", "high": "bold red", "medium": "yellow", "low": "green"}
_MINUTE_S = 60.0
_WORD_MAX_WIDTH = 24  # longer words, such as paths, are folded
_FILE_WIDTH = 200  # of what is no terminal
_BLOCKS = " ▁▂▃▄▅▆▇█"
# Controls move the cursor, bidirectional overrides reorder what is read, halves of surrogate pairs cannot be printed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_SHOWN = 2_000


def clean(text: object) -> str:
    """Return ``text`` without what moves a cursor or turns the order of reading (newline and tab stay)."""
    return _CONTROL.sub("�", str(text))


def short(text: object) -> str:
    """Return ``text`` cleaned, and cut where it is too long to be read.

    >>> short("x" * 32_768)[-40:]
    'xxxxxx… (30,768 more; -o json shows all)'
    """
    whole = str(text)
    rest = len(whole) - MAX_SHOWN
    return clean(whole) if rest <= 0 else clean(whole[:MAX_SHOWN]) + f"… ({rest:,} more; -o json shows all)"


def pointed(query: str, position: int, width: int = 72) -> str:
    """Return a query with a caret below the column where its trouble is.

    >>> print(pointed("level:error AND (task:a", 16))
      level:error AND (task:a
                      ^
    """
    start = max(0, position - width // 2)
    shown = re.sub(r"\s", " ", clean(query[start : start + width]))
    before, after = "…" if start else "", "…" if start + width < len(query) else ""
    return f"  {before}{shown}{after}\n  {' ' * cell_len(before + shown[: position - start])}^"


def few(expected: float) -> str:
    """Return an expected count as people read it: two digits, and nothing below a tenth.

    >>> few(0.004), few(12.3)
    ('under 0.1', '12')
    """
    return "under 0.1" if expected < 0.1 else f"{expected:.2g}"


def _moment(time: object) -> str:
    return moment(str(time), None)


def moment(time: str, step: float | None = 60.0) -> str:
    """Return a time as people read it, to the minute if steps of ``step`` seconds are told apart so.

    >>> moment("2026-01-31T12:00:48Z"), moment("2026-01-31T12:00:48Z", step=12)
    ('2026-01-31 12:00', '2026-01-31 12:00:48')
    """
    return time[: 16 if step is not None and step >= _MINUTE_S else 19].replace("T", " ")


def step_s(starts: Sequence[str]) -> float | None:
    """Return how long a step of a series is, in seconds; None if one step alone does not say.

    >>> step_s(["2026-01-31T12:00:00Z", "2026-01-31T12:00:12Z"])
    12.0
    """
    if len(starts) < 2:
        return None
    return (parse_rfc3339(starts[1]) - parse_rfc3339(starts[0])) / 1e9


def record_line(record: Mapping[str, Any], *, with_stack: bool = True) -> Text:
    """Return one record as a line: time, level, service, task, message; the stack below it."""
    level = clean(record.get("log.level", ""))
    line = Text()
    line.append(clean(record.get("@timestamp", ""))[:23].replace("T", " "), style="dim")
    line.append(f" {level.upper():<5} ", style=LEVEL_STYLES.get(level, ""))
    line.append(clean(record.get("service.name", "")), style="magenta")
    if record.get("task.name"):
        line.append(f" {clean(record['task.name'])}", style="blue")
    line.append("  " + short(record.get("message", "")))
    error_type = record.get("error.type")
    if error_type and str(error_type) not in str(record.get("message", "")):
        line.append(f"  {clean(error_type)}: {short(record.get('error.message', ''))}", style="red")
    if with_stack and record.get("error.stack_trace"):
        rows = [row for row in clean(record["error.stack_trace"]).rstrip().splitlines() if row.strip(" ^~")]
        for row in rows[-6:]:
            line.append(f"\n    {short(row)}", style="dim")
    return line


def quota(quota: Quota) -> str:
    """Return what a key may send, in a few words.

    >>> from logsvc.quotas import Quota
    >>> quota(Quota(2000, 5 << 20, 30)), quota(Quota())
    ('2,000 records/s, 5MiB/s, burst 30 s', 'unlimited')
    """
    parts = [f"{quota.records_per_second:,} records/s"] if quota.records_per_second else []
    if quota.bytes_per_second:
        parts.append(f"{shown_size(quota.bytes_per_second)}/s")
    return ", ".join([*parts, f"burst {quota.burst_s} s"]) if parts else "unlimited"


def size(n_bytes: int) -> str:
    """Return a number of bytes as people say it.

    >>> size(512), size(3_500_000)
    ('512 B', '3.5 MB')
    """
    if n_bytes < 1_000:
        return f"{n_bytes} B"
    power = next(n for n in (1, 2, 3, 4) if n == 4 or n_bytes < 1_000 ** (n + 1))
    amount = n_bytes / 1_000**power
    return f"{amount:.{0 if amount >= 10 else 1}f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


class _Table:
    """A plain table; where the terminal is too narrow for its columns, each row becomes lines of ``column: value``."""

    def __init__(self, title: str | None, columns: Sequence[str], rows: list[list[Text]]) -> None:
        self._title = title
        self._columns = columns
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [[Text(name), *(row[number] for row in self._rows)] for number, name in enumerate(self._columns)]
        # A column can be no narrower than its longest word, or people read it downwards.
        needed = [max(min(longest_word(cell.plain), _WORD_MAX_WIDTH) for cell in column) for column in cells]
        if sum(needed) + 3 * len(needed) > options.max_width:
            yield self._stacked()
            return
        made = Table(title=self._title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for name, width in zip(self._columns, needed, strict=True):
            is_count = name in _COUNTS
            made.add_column(
                name, overflow="fold", min_width=width, no_wrap=is_count, justify="right" if is_count else "left"
            )
        for row in self._rows:
            made.add_row(*row)
        yield made

    def _stacked(self) -> Text:
        shown = Text(f"{self._title}\n\n" if self._title else "", style="")
        for row in self._rows:
            for name, cell in zip(self._columns, row, strict=True):
                if cell.plain:
                    shown.append(f"{name}: " if name else "", style="dim")
                    shown.append_text(cell)
                    shown.append("\n" if name else "  ")  # what has no name is the mark of what follows
            shown.append("\n")
        shown.rstrip()
        return shown


def longest_word(text: str) -> int:
    """Return how many columns the longest word takes.

    >>> longest_word("key_74c68d210afc of ann")
    16
    """
    return max(map(cell_len, text.split()), default=0)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> _Table:
    """Return a plain table."""
    return _Table(
        title, columns, [[cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row] for row in rows]
    )


def tickets_table(tickets: Sequence[Mapping[str, Any]]) -> _Table:
    """Return tickets, one a row."""
    return table(
        None,
        ("ID", "State", "Severity", "Opened (UTC)", "What"),
        [
            (
                str(ticket["id"]),
                Text(str(ticket["state"]), style=STATE_STYLES.get(str(ticket["state"]), "")),
                Text(str(ticket["severity"]), style=SEVERITY_STYLES.get(str(ticket["severity"]), "")),
                _moment(ticket["opened_at"]),
                str(ticket["title"]),
            )
            for ticket in tickets
        ],
    )


def backtest_table(tickets: Sequence[Mapping[str, Any]]) -> _Table:
    """Return the tickets that a history would have opened, the oldest first."""
    rows = [
        (
            moment(ticket["opened_at"]),
            ticket["kind"],
            f"{ticket['score']:.2f}",
            Text(clean(ticket["title"]) + (f" (merged into {into})" if (into := ticket.get("merged_into")) else "")),
        )
        for ticket in tickets
    ]
    return table("Tickets it would have opened (UTC)", ("Opened", "Kind", "Score", "What"), rows)


def tasks_view(answer: Mapping[str, Any]) -> Group:
    """Return which tasks are watched, for a terminal."""
    if not answer["tasks"]:
        return Group(Text("Nothing is watched yet: send records, then wait for the first window to end.", style="dim"))
    rows = [
        (
            clean(one["task"] or f"{one['service']} (no task)"),
            Text(one["state"], style="yellow" if one["state"] == "learning" else "green"),
            moment(one["since"]),
            f"{one['pinned']['errors']:g} a {one['pinned']['per']}" if one.get("pinned") else "",
            moment(one["pinned"]["pinned_at"]) if one.get("pinned") else "",
        )
        for one in answer["tasks"]
    ]
    about = f"{answer['total']:,} watched or learning; {answer['learning']:,} learning"
    if more := answer["total"] - len(rows):
        about += f"; {more:,} more, --limit shows them"
    hint = "While a task is learning, plain rules alone open tickets for it." if answer["learning"] else ""
    return Group(
        table(None, ("Task", "State", "Since (UTC)", "Errors", "Pinned (UTC)"), rows),
        Text(f"{about}. {hint}".rstrip(), style="dim"),
    )


def measures_view(measures: Any, no_forest: Any, grace_s: float) -> Iterator[str | _Table]:
    """Yield what ``evaluate`` says; both measures are those of ``detectors.evaluate``."""
    rows = [
        ("incidents detected", f"{measures.detected} of {measures.incidents}"),
        ("false tickets", f"{measures.false_tickets} of {measures.tickets} tickets"),
        ("  a task and day", f"{measures.false_per_task_day:.4f} over {measures.task_days:.1f} task-days"),
        ("precision", f"{measures.precision:.3f}"),
        ("recall", f"{measures.recall:.3f}"),
        ("F1", f"{measures.f1:.3f}"),
        ("  without the forest", f"{no_forest.f1:.3f}"),
        ("opened by the forest alone", f"{measures.forest_tickets}, {measures.forest_false} of them false"),
    ]
    if measures.lateness:
        delays = [f"{measures.delay(share, grace_s=grace_s):.2f}" for share in (0.5, 0.9)]
        rows.append(("delay, median / 90th percentile", f"{delays[0]} / {delays[1]} windows after the evidence"))
    if measures.tickets_per_incident is not None:
        rows.append(("tickets an incident", f"{measures.tickets_per_incident:.3f}"))
    if measures.cascades_on_one_ticket is not None:
        share, coverage = measures.cascades_on_one_ticket, measures.cascade_coverage
        rows.append(("cascades on one ticket", f"{share:.2f}, with {coverage:.2f} of their tasks"))
    yield table(None, ("Measure", "Value"), rows)
    kinds = {**measures.kinds, **measures.variants}
    if kinds:
        shown = [
            (
                f"  {name.partition('/')[2]}" if "/" in name else name,
                f"{kinds[name].detected}/{kinds[name].incidents}",
                ""
                if (delay := kinds[name].delay(0.5, grace_s=grace_s, window_s=measures.window_s)) is None
                else f"{delay:.2f}",
            )
            for name in sorted(kinds)
        ]
        yield table(None, ("Kind", "Detected", "Median delay"), shown)
    if measures.missed:
        yield f"missed: {', '.join(measures.missed)}"
    if measures.false_near:
        yield "false tickets beside: " + ", ".join(f"{name} {n}" for name, n in sorted(measures.false_near.items()))


def burst_chart(
    series: Sequence[Mapping[str, Any]],
    window: Mapping[str, str] | None = None,
    *,
    height: int = 8,
    width: int = 72,
) -> Text:
    """Return the burst against its baseline: bars for what was seen, a line where it was expected.

    Bars inside ``window``, that of the ticket, are odd.

    >>> print(burst_chart([{"start": "2026-01-01T00:00:00Z", "observed": 4, "expected": 1}], height=2).plain)
         4 ┤█
           │█
           └─
            00:00:00 UTC
    """
    start, end = (window["start"], window["end"]) if window else ("", "")
    points = [(float(p["observed"]), float(p["expected"]), start <= p["start"] < end) for p in series][-width:]
    if not points:
        return Text("no picture: the ticket has no series", style="dim")
    top = max(max(observed, expected) for observed, expected, _ in points) or 1.0
    chart = Text()
    for row in range(height, 0, -1):
        has_label = row == height or (row == height // 2 and height > 4)
        chart.append(f"{top * row / height:>6.3g} ┤" if has_label else " " * 7 + "│", style="dim")
        for observed, expected, is_odd in points:
            fill = min(max(observed / top * height - (row - 1), 0.0), 1.0)
            if fill > 0:
                chart.append(_BLOCKS[max(1, round(fill * 8))], style="red" if is_odd else "cyan")
            elif row - 1 <= expected / top * height < row:
                chart.append("─", style="green")
            else:
                chart.append(" ")
        chart.append("\n")
    chart.append(" " * 7 + "└" + "─" * len(points) + "\n", style="dim")
    step = step_s([str(point["start"]) for point in series])
    first, last = (moment(str(series[i]["start"]), step)[11:] for i in (-len(points), -1))
    axis = first if len(points) < 2 * len(first) + 4 else first + last.rjust(len(points) - len(first))
    chart.append(" " * 8 + axis + " UTC", style="dim")
    if step is not None:
        chart.append(f"\n{' ' * 8}bars: records per {step:g} s; red: odd; green line: expected", style="dim")
    return chart


def ticket_view(ticket: Mapping[str, Any]) -> Group:
    """Return one ticket, whole, for a terminal."""
    state, severity = str(ticket["state"]), str(ticket["severity"])
    head = Text()
    head.append(clean(ticket["title"]), style="bold")
    head.append("\n")
    head.append(f" {state} ", style=STATE_STYLES.get(state, ""))
    head.append(f" {severity} ", style=SEVERITY_STYLES.get(severity, ""))
    head.append(f"  score {float(ticket['score']):.2f}", style="dim")
    if not ticket.get("is_notified", True):
        head.append("  found in old records, nobody was told", style="yellow")
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("Task", ", ".join(ticket.get("tasks") or []) or "none"),
        (
            "Learning",
            f"{', '.join(names)}: plain rules alone open tickets" if (names := ticket.get("learning")) else "",
        ),
        ("Service", ticket.get("service") or "unknown"),
        ("Release", ", ".join(ticket.get("releases") or []) or "unknown"),
        ("Odd", f"{_moment(ticket['window']['start'])} to {_moment(ticket['window']['end'])} UTC"),
        ("Opened", _moment(ticket["opened_at"]) + " UTC"),
        ("Resolved", (_moment(ticket["resolved_at"]) + " UTC") if ticket.get("resolved_at") else ""),
        ("Merged into", ticket.get("merged_into") or ""),
        (
            "Judged by",
            f"{ticket['detector']['name']} {ticket['detector']['version']}, model {ticket['model']['version']}",
        ),
    ):
        if value:
            facts.add_row(Text(name, style="dim"), Text(clean(value)))
    parts: list[Any] = [Panel(head, box=box.ROUNDED, expand=False), facts]
    parts.append(
        Text(
            f"\n{float(ticket['observed']):g} {ticket['unit']}, {few(float(ticket['expected']))} expected", style="bold"
        )
    )
    parts.append(burst_chart(ticket.get("series") or [], ticket.get("window")))
    if ticket.get("evidence"):
        rows = [
            (e["feature"], f"{e['observed']:g}", few(e["expected"]), f"{e['score']:.2f}", e["text"])
            for e in ticket["evidence"]
        ]
        parts.append(table("Why", ("Feature", "Observed", "Expected", "Score", ""), rows))
    if ticket.get("fingerprints"):
        prints = [
            (str(f["count"]), Text("new", style="bold red") if f["is_new"] else "", f["text"])
            for f in ticket["fingerprints"]
        ]
        parts.append(table("What the records say", ("Count", "", "Template"), prints))
    if ticket.get("samples"):
        parts.append(Text("Samples\n", style="italic"))
        parts.extend(record_line(sample) for sample in ticket["samples"][:3])
    if missing := incomplete(ticket.get("data_completeness")):
        parts.append(Text.from_markup(missing))
    if ticket.get("deliveries"):
        sent = [
            (d["channel"], d["event_type"], d["state"], str(d["attempts"]), d.get("last_error") or "")
            for d in ticket["deliveries"]
        ]
        parts.append(table("\nWho was told", ("Channel", "Event", "State", "Attempts", "Last error"), sent))
    parts.append(  # In one piece, however narrow the terminal: it is there to be copied.
        Text(f"\nlogsvc search {shlex.quote(clean(ticket['query']))}", style="green", no_wrap=True, overflow="ignore")
    )
    if ticket.get("url"):
        parts.append(Text(str(ticket["url"]), style="blue underline"))
    return Group(*parts)


_MISSING_WORDS = {
    "waiting": ("waiting in shippers or on the way", "they arrive by themselves"),
    "backlog": ("accepted, not yet searchable", "wait, or see `logsvc doctor`"),
    "refused": ("refused", "their senders were told why; see `ingest_refused_records_total`"),
    "dropped": ("dropped in shippers", "see the reasons below; give them more queue, spool or bandwidth"),
    "lost": ("lost without a word", "a killed process or a gap in the numbers; see below"),
    "dead": ("dead letters", "`logsvc deadletters list`"),
}


def incomplete(completeness: Mapping[str, Any] | None) -> str:
    r"""Return a line on what a search could not find, as markup; empty if nothing is known to be missing.

    >>> incomplete({"share": 0.5, "missing": {"lost": 3, "dead": 0}})
    '\n[yellow]incomplete: 50 % of what was emitted can be found (3 lost); `logsvc loss` says more[/]'
    """
    if completeness is None or not any(completeness["missing"].values()):
        return ""
    where = ", ".join(f"{count:,} {name}" for name, count in completeness["missing"].items() if count)
    known = "some" if completeness["share"] is None else percent(completeness["share"])
    return f"\n[yellow]incomplete: {known} of what was emitted can be found ({where}); `logsvc loss` says more[/]"


def percent(share: float) -> str:
    """Return a share in percent, never rounded up to the whole.

    >>> percent(1.0), percent(0.99999), percent(0.5)
    ('100 %', '99.99 %', '50 %')
    """
    return f"{math.floor(share * 10_000) / 100:g} %"


def loss_view(report: Mapping[str, Any]) -> Group:
    """Return where records went, for a terminal."""
    about = report["data_completeness"]
    head = Text()
    if about["share"] is None:
        head.append("Unknown how complete: ", style="bold yellow")
        nothing = "nothing was counted in this range" if not about["emitted"] else "part of this range came before"
        head.append(f"{nothing}; records are counted since {moment(about['counted_from'])} UTC")
    else:
        style = "bold green" if about["share"] == 1 else "bold yellow" if about["share"] >= 0.999 else "bold red"
        head.append(f"{percent(about['share'])} ", style=style)
        head.append(
            f"of {about['emitted']:,} records emitted {moment(report['from'])} to {moment(report['to'])} UTC "
            f"can be found; the store holds {report['indexed']:,} that arrived"
        )
    parts: list[Any] = [head]
    rows = [(f"{count:,}", *_MISSING_WORDS.get(name, (name, ""))) for name, count in about["missing"].items() if count]
    if rows:
        parts.append(table(None, ("Missing", "Where", "What to do"), rows))
    if report["shippers"]:
        columns = ("Process", "State", "Heard (UTC)", "Emitted", "Accepted", "Dropped", "Waiting", "Lost")
        rows = [_shipper_row(shipper) for shipper in report["shippers"]]
        parts.append(table("Processes, since each started", columns, rows))
        if more := report["shippers_total"] - len(rows):
            parts.append(Text(f"{more:,} more; --limit shows them, --service and --host choose.", style="dim"))
    if report["clients"]:
        parts.append(
            table(
                "By key and protocol, in this range",
                ("Key", "Protocol", "Accepted", "Numbered", "Flagged", "Refused", "Dropped"),
                [
                    (
                        client["key_id"],
                        client["protocol"],
                        f"{client['accepted']:,}",
                        f"{client['numbered']:,}",
                        f"{client['flagged']:,}",
                        _by_reason(client["refused"]),
                        _by_reason(client["dropped"]),
                    )
                    for client in report["clients"]
                ],
            )
        )
    if about["numbered_share"] is not None and about["numbered_share"] < 1:
        parts.append(
            Text(
                f"{percent(about['numbered_share'])} of what was accepted carries shippers' numbers; "
                "of the rest nobody can know what never arrived.",
                style="dim",
            )
        )
    return Group(*parts)


_COUNTS = frozenset({"Emitted", "Accepted", "Waiting", "Lost", "Numbered", "Flagged", "Missing"})


def _shipper_row(shipper: Mapping[str, Any]) -> tuple[str | Text, ...]:
    lost = shipper["lost"]
    return (
        f"{shipper['service'] or 'unknown service'} on {shipper['host'] or 'unknown host'}, pid {shipper['pid']}",
        Text(shipper["state"], style={"live": "green", "silent": "yellow"}.get(shipper["state"], ""), no_wrap=True),
        moment(shipper["heard_at"])[5:],
        f"{shipper['emitted']:,}",
        f"{shipper['accepted']:,}",
        _by_reason(shipper["dropped"]),
        f"{shipper['waiting']:,}",
        Text(f"{lost:,}", style="bold red" if lost else ""),
    )


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "0"


def console(*, is_error: bool = False) -> Console:
    """Return a console for standard output, or for errors.

    What goes to a file or another program is as wide as it needs to be, unless ``COLUMNS`` says otherwise: an
    identifier that is broken over two lines is found by nobody.
    """
    stream = sys.stderr if is_error else sys.stdout
    is_narrow = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=is_error, highlight=False, width=None if is_narrow else _FILE_WIDTH)


class OutputFailed(Exception):
    """Standard output cannot be written to.

    Attributes:
        is_unread: Whether only nobody reads it any more.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.is_unread = isinstance(cause, BrokenPipeError)


class Output(TextIOWrapper):
    """Standard output whose errors are told from all others.

    Args:
        stream: What it takes the place of; not to be used any more.
    """

    def __init__(self, stream: TextIOWrapper) -> None:
        encoding, errors, is_line_buffered = stream.encoding, stream.errors, stream.line_buffering
        super().__init__(stream.detach(), encoding=encoding, errors=errors, line_buffering=is_line_buffered)

    def write(self, text: str) -> int:
        """Write ``text``.

        Raises:
            OutputFailed: If that cannot be done.
        """
        try:
            return super().write(text)
        except OSError as exc:
            raise OutputFailed(exc) from exc

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            OutputFailed: If that cannot be done.
        """
        try:
            super().flush()
        except OSError as exc:
            raise OutputFailed(exc) from exc
