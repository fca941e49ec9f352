"""Report: the tickets of a backtest as one page that needs nothing else, for reading and for handing on.

Everything that came from a record is escaped, and the page forbids scripts and anything from
elsewhere, so that a log line can neither act nor call home.

Not here: which tickets there are (detection.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

_WIDTH, _HEIGHT = 720, 140
_STYLE = """
:root { color-scheme: light dark; --odd: #c8321e; --usual: #2668b2; --soft: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid var(--soft); margin-top: 2rem; }
h2 { font-size: 1.1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top; white-space: nowrap; }
td:last-child, th:last-child { width: 100%; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 40rem) { td, th { white-space: normal; } td:last-child { min-width: 9rem; } }
svg { width: 100%; height: auto; }
.odd { fill: var(--odd); } .calm { fill: #8889; } .span { fill: var(--odd); opacity: .12; }
.usual { fill: none; stroke: var(--usual); stroke-width: 2; }
text { font-size: 11px; fill: currentColor; }
.verdict { color: var(--odd); font-weight: 600; } .quiet { opacity: .7; }
code { overflow-wrap: anywhere; }
"""


class Shown(Protocol):
    """What is shown of a ticket; ``detection.Opened`` is the real one."""

    id: str
    opened_at: str
    resolved_at: str | None
    kind: str
    score: float
    tasks: list[str]
    title: str
    merged_into: str | None
    start: str
    end: str
    is_notified: bool
    evidence: list[str]
    templates: list[tuple[int, bool, str]]
    releases: list[str]
    series: list[tuple[str, float, float]]


def still_learning(names: Sequence[str]) -> str:
    """Return a sentence on tasks that were still being learned when the records ended; there is one at least.

    >>> still_learning(["b.sync", "a.load"])
    '2 tasks were still being learned at the end, with plain rules alone: b.sync, a.load'
    """
    some = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    count = "1 task was" if len(names) == 1 else f"{len(names):,} tasks were"
    return f"{count} still being learned at the end, with plain rules alone: {some}"


def page(name: str, records: int, tasks: int, tickets: Sequence[Shown], learning: Sequence[str] = ()) -> str:
    """Return the page, in HTML; ``learning`` are tasks that were still being learned at the end."""
    rows = "".join(
        f"<tr><td>{_moment(one.opened_at)}</td><td>{escape(_words(one.kind))}</td><td>{one.score:.2f}</td>"
        f'<td><a href="#{escape(one.id)}">{escape(one.title)}</a></td></tr>'
        for one in tickets
    )
    table = f"<table><tr><th>Opened (UTC)<th>Kind<th>Score<th>What</tr>{rows}</table>" if tickets else ""
    count = f"{len(tickets):,} ticket{'' if len(tickets) == 1 else 's'}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Backtest of {escape(name)}</title><style>{_STYLE}</style>"
        f"<h1>Backtest of {escape(name)}</h1>"
        f"<p>{count} from {records:,} records of {tasks:,} tasks and services.</p>"
        + (f"<p>{escape(still_learning(learning))}.</p>" if learning else "")
        + table
        + "".join(map(_article, tickets))
        + "</html>\n"
    )


def write(path: Path, html: str) -> None:
    """Write the page; text that is no Unicode is replaced."""
    path.write_bytes(html.encode("utf-8", "replace"))


def _article(one: Shown) -> str:
    until = f", resolved {_moment(one.resolved_at)}" if one.resolved_at else ", not resolved by the end"
    told = "people would have been told" if one.is_notified else "too old when it arrived: nobody would have been told"
    facts = [
        ("Tasks", ", ".join(one.tasks) or "none"),
        ("Odd", f"{_moment(one.start)} to {_moment(one.end)} UTC"),
        ("Releases", ", ".join(one.releases)),
        ("Merged into", one.merged_into or ""),
    ]
    templates = "".join(
        f"<tr><td>{n:,}<td>{'<b>new</b>' if is_new else ''}<td><code>{escape(text)}</code></tr>"
        for n, is_new, text in one.templates
    )
    return (
        f'<article id="{escape(one.id)}"><h2>{escape(one.title)}</h2>'
        f'<p><span class="verdict">{escape(_words(one.kind))}, score {one.score:.2f}</span>: '
        f"opened {_moment(one.opened_at)}{until}; {told}.</p>"
        + _chart(one)
        + "<ul>"
        + "".join(f"<li>{escape(text)}</li>" for text in one.evidence)
        + "</ul><table>"
        + "".join(f"<tr><th>{name}<td>{escape(value)}</tr>" for name, value in facts if value)
        + "</table>"
        + (f"<table><tr><th>Records<th><th>Template</tr>{templates}</table>" if templates else "")
        + "</article>"
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _chart(one: Shown) -> str:
    """Return the burst against its baseline: a bar for what was seen in each step, a line for what was expected."""
    if not one.series:
        return '<p class="quiet">No picture: nothing was counted step by step.</p>'
    most = max(1.0, *(max(seen, usual) for _, seen, usual in one.series))
    width = _WIDTH / len(one.series)
    bars, points, odd = [], [], []
    for index, (start, seen, usual) in enumerate(one.series):
        is_odd = one.start <= start < one.end
        x, height = index * width, seen / most * _HEIGHT
        if is_odd:
            odd.append(x)
        bars.append(
            f'<rect class="{"odd" if is_odd else "calm"}" x="{x:.1f}" y="{_HEIGHT - height:.1f}" '
            f'width="{max(width - 1, 0.5):.1f}" height="{height:.1f}"><title>{_moment(start)}: {seen:g}, '
            f"{usual:.2g} expected</title></rect>"
        )
        points.append(f"{x + width / 2:.1f},{_HEIGHT - usual / most * _HEIGHT:.1f}")
    shade = (
        f'<rect class="span" x="{odd[0]:.1f}" y="0" width="{odd[-1] + width - odd[0]:.1f}" height="{_HEIGHT}"/>'
        if odd
        else ""
    )
    first, last = _moment(one.series[0][0]), _moment(one.series[-1][0])
    return (
        f'<svg viewBox="0 -14 {_WIDTH} {_HEIGHT + 32}" role="img" aria-label="what was seen against what was expected">'
        f'{shade}{"".join(bars)}<polyline class="usual" points="{" ".join(points)}"/>'
        f'<text x="0" y="-3">at most {most:g} in a step; the line is what was expected</text>'
        f'<text x="0" y="{_HEIGHT + 14}">{first}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{last}</text></svg>'
    )


def _moment(time: str) -> str:
    return escape(time[:19].replace("T", " "))
