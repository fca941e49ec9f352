"""How well and how fast lines are grouped into templates, beside Drain in the same run.

Grouping accuracy and F1 of grouping (tests/support/grouping.py), means over sets: real lines
(loghub, where the sets are at hand) and made-up ones (tests/support/log_lines.py, seeds apart from
those the rules were written with). Each set is learned from nothing, so the speed includes all
learning; ``known`` is the speed on the same lines once they were seen.

The peer is Drain3 with its default settings, alone and on masked lines. It is published as source
only and pins two old libraries, so it is no dependency: install ``drain3`` to see its figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from typing import Any

from detectors import templates as merging
from logsvc import fingerprint
from tests.support import log_lines
from tests.support.grouping import LOGHUB, grouping, loghub, templates

_Set = tuple[list[str], list[str]]
_SEEDS = (71,)


def run() -> dict[str, Any]:
    """Return the figures; speeds in lines a second on one core."""
    found: dict[str, Any] = {}
    real = {path.name.partition("_")[0]: loghub(path) for path in sorted(LOGHUB.glob("*_2k.log_structured.csv"))}
    made: dict[str, _Set] = {}
    for system in log_lines.SYSTEMS:
        for seed in _SEEDS:
            lines, true = zip(*log_lines.lines(system, 2_000, seed), strict=True)
            made[f"{system} {seed}"] = list(lines), list(true)
    methods: dict[str, Callable[[Sequence[str]], Sequence[Hashable]]] = {
        "": _cold,
        "masks alone ": lambda lines: [fingerprint.mask_variables(line) for line in lines],
    }
    try:
        drain = import_module("drain3.drain").Drain
    except ImportError:
        found["drain3"] = "not installed"
    else:
        methods["drain3 "] = lambda lines: _drain(drain, lines)
        methods["drain3 on masked "] = lambda lines: _drain(drain, [fingerprint.mask_variables(line) for line in lines])
    for kind, sets in (("loghub", real), ("made up", made)):
        for name, method in methods.items():
            if sets:
                found |= {f"{name}{kind} {key}": value for key, value in _measure(method, sets).items()}
    for system, one in real.items():
        accuracy, f1 = grouping(templates(one[0]), one[1])
        found[f"loghub {system}"] = f"{accuracy:.3f} / {f1:.3f}"
    everything = [line for lines, _ in (real or made).values() for line in lines]
    known = merging.Templates.learn(map(fingerprint.mask_variables, everything))
    begin = time.process_time()
    of: dict[str, str] = {}
    for line in everything:
        text = fingerprint.mask_variables(line)
        if text not in of:
            of[text] = known.of(text)
    found["known lines_per_s"] = round(len(everything) / (time.process_time() - begin))
    return found


def _measure(method: Callable[[Sequence[str]], Sequence[Hashable]], sets: dict[str, _Set]) -> dict[str, Any]:
    took, figures = 0.0, []
    for lines, true in sets.values():
        fingerprint._template.cache_clear()
        begin = time.process_time()
        groups = method(lines)
        took += time.process_time() - begin
        figures.append(grouping(groups, true))
    accuracy, f1 = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    number = sum(len(lines) for lines, _ in sets.values())
    return {"accuracy": round(accuracy, 3), "f1": round(f1, 3), "lines_per_s": round(number / took)}


def _cold(lines: Sequence[str]) -> list[str]:
    merging.words.cache_clear()
    return templates(lines)


def _drain(drain: Any, lines: Sequence[str]) -> list[int]:
    miner = drain(sim_th=0.4, depth=4)
    return [miner.add_log_message(line)[0].cluster_id for line in lines]
