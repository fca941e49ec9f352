"""``python -m tests.soak [CELL …]``: run the matrix of faults, or some of its cells, and show what came of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
import traceback

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.soak.cells import CELLS, Cell
from tests.soak.rig import Ended, Result, Rig, Unmountable
from tests.support.elasticsearch import Unobtainable, server

console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> int:
    """Run what the command line names; return 0 if every cell was well."""
    arguments = _parse()
    # An end from outside is one in order: nothing stays mounted, nothing goes on running.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    if arguments.list:
        _list()
        return 0
    known = {cell.name for cell in CELLS}
    for name in arguments.cells:
        if name not in known:
            console.print(f"[red]there is no cell {escape(name)!r}[/]; expected one of {', '.join(sorted(known))}")
            return 2
    chosen = [
        (cell, store)
        for cell in CELLS
        if not arguments.cells or cell.name in arguments.cells
        for store in (cell.short if arguments.short and not arguments.cells else cell.stores)
        if arguments.store in (None, store)
    ]
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(3), "big")
    form = "short" if arguments.short else "long"
    console.print(f"[bold]{len(chosen)} cells[/], {form} form, --seed {seed}")
    began = time.monotonic()
    results: list[tuple[Cell, str, Result]] = []
    with contextlib.ExitStack() as stack:
        url = ""
        if any(store == "elastic" for _, store in chosen):
            try:
                url = stack.enter_context(server())
            except Unobtainable as exc:
                console.print(f"[red]no Elasticsearch, so its cells fail:[/] {escape(str(exc))}")

        def lane(of: str, ended: threading.Event) -> None:
            try:
                for cell, store in chosen:
                    if store == of and not _is_ending.is_set():
                        result = _run(cell, store, f"{seed}-{cell.name}-{store}", arguments.short, url)
                        results.append((cell, store, result))
                        _tell(cell, store, result)
            finally:
                ended.set()

        # The stores side by side: much of a cell is waiting. Events, for a join that a signal interrupts takes its
        # thread for ended (CPython up to 3.12).
        lanes = {of: threading.Event() for of in ("embedded", "elastic")}
        for of, ended in lanes.items():
            threading.Thread(target=lane, args=(of, ended), daemon=True).start()
        stack.callback(_end_all, list(lanes.values()))
        for ended in lanes.values():
            ended.wait()
    _table(results, time.monotonic() - began)
    failed = [f"{cell.name}" for cell, _, result in results if result.problems]
    if failed:
        again = " ".join(dict.fromkeys(failed))
        short = " --short" if arguments.short else ""
        console.print(
            f"[red]{len(failed)} of {len(results)} cells failed.[/] Again: "
            f"make soak ARGS='{again}{short} --seed {seed}'"
        )
    return 1 if failed else 0


def _end(number: int, _frame: object) -> None:
    # Once: another one would interrupt what tidies up.
    for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(handled, signal.SIG_IGN)
    sys.exit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Break a real service in every way of the matrix, and find each acknowledged record exactly once.",
        epilog="Examples: python -m tests.soak --short   python -m tests.soak kill fsync --store embedded",
    )
    parser.add_argument("cells", nargs="*", metavar="CELL", help="cells to run; all if none is named (see --list)")
    parser.add_argument(
        "--short", action="store_true", help="the short form: fewer repetitions, no slow cells (minutes)"
    )
    parser.add_argument("--seed", type=int, help="repeat a run: when what is killed, what is sent")
    parser.add_argument("--store", choices=["embedded", "elastic"], help="only on this store")
    parser.add_argument("--list", action="store_true", help="show the cells and end")
    return parser.parse_args()


def _run(cell: Cell, store: str, seed: str, is_short: bool, url: str) -> Result:
    """Run one cell; whatever it raises is a problem of it."""
    began = time.monotonic()
    if store == "elastic" and not url:
        return Result(problems=["not run: there is no Elasticsearch"])
    rig = Rig(store, seed, is_short=is_short, budget_s=cell.budget_s * 2, elastic_url=url)
    _open.append(rig)
    try:
        if _is_ending.is_set():
            raise Ended
        cell.run(rig)
    except Ended:
        rig.result.problems.append("ended from outside")
    except (Unmountable, Unobtainable) as exc:
        rig.result.problems.append(f"not run: {exc}")
    except AssertionError as exc:
        rig.result.problems.append(str(exc) or _where(exc))
    except Exception as exc:
        rig.result.problems.append(f"{type(exc).__name__}: {exc} ({_where(exc)})")
    finally:
        rig.result.seconds = time.monotonic() - began
        _open.remove(rig)
        rig.close()
    return rig.result


_open: list[Rig] = []
_is_ending = threading.Event()
_END_S = 60.0


def _end_all(lanes: list[threading.Event]) -> None:
    """Let each cell that still runs close what it has started."""
    _is_ending.set()
    for rig in _open.copy():
        rig.end()
    for ended in lanes:
        ended.wait(_END_S)


def _where(exc: BaseException) -> str:
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{os.path.basename(last.filename)}:{last.lineno}: {last.line}"


def _tell(cell: Cell, store: str, result: Result) -> None:
    verdict = "[red]FAIL[/]" if result.problems else "[green]ok[/]  "
    console.print(f"{verdict} {cell.name:<16} {store:<9} {result.seconds:6.1f} s  [dim]{escape(cell.what)}[/]")
    for problem in result.problems:
        console.print(f"     [red]{escape(problem[:1500])}[/]")
    if result.problems:
        for note in result.notes:
            console.print(f"     [dim]{escape(note)}[/]")


def _table(results: list[tuple[Cell, str, Result]], seconds: float) -> None:
    table = Table(title=f"{len(results)} cells in {seconds / 60:.1f} min", title_justify="left")
    table.add_column("cell")
    table.add_column("store")
    for name in ("acknowledged", "refused", "unanswered", "kills", "lost", "doubled", "invented", "memory", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("it said so in")
    for cell, store, result in results:
        table.add_row(
            f"[red]{cell.name}[/]" if result.problems else cell.name,
            store,
            *(f"{n:,}" for n in (result.acknowledged, result.refused, result.unanswered, result.kills)),
            *(f"[red]{n:,}[/]" if n else "[green]0[/]" for n in (result.lost, result.doubled, result.invented)),
            f"{result.memory_bytes / 1e6:.0f} MB",
            f"{result.seconds:.0f}",
            ", ".join(dict.fromkeys(result.said)),
        )
    console.print(table)
    said = sum(result.acknowledged for _, _, result in results)
    kills = sum(result.kills for _, _, result in results)
    console.print(f"{said:,} records acknowledged, {kills} kills.")


def _list() -> None:
    table = Table("cell", "stores", "short form", "what happens")
    for cell in CELLS:
        table.add_row(cell.name, ", ".join(cell.stores), ", ".join(cell.short), cell.what)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
