"""How well lines are grouped by the statement that wrote them, by the two usual measures.

Source: Zhu et al., "Tools and Benchmarks for Automated Log Parsing", ICSE 2019 (grouping accuracy);
Jiang et al., "A Large-Scale Evaluation for Log Parsing Techniques", ISSTA 2024 (F1 of grouping).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

from detectors.templates import Templates
from logsvc.fingerprint import mask_variables

LOGHUB = Path(__file__).parents[3] / "shared/data/detection/loghub_2k"
"""Real lines with their templates (loghub, 2,000 lines a system); no part of the project, used where they are."""


def grouping(found: Sequence[Hashable], true: Sequence[Hashable]) -> tuple[float, float]:
    """Return grouping accuracy and F1 of grouping: lines, and groups, that are exactly one true group.

    >>> grouping("aabc", "xxyy")
    (0.5, 0.4)
    """
    sizes, true_sizes = Counter(found), Counter(true)
    right = [
        n for (one, other), n in Counter(zip(found, true, strict=True)).items() if sizes[one] == n == true_sizes[other]
    ]
    return sum(right) / len(true), 2 * len(right) / (len(sizes) + len(true_sizes))


def templates(lines: Sequence[str]) -> list[str]:
    """Return the template of each line: masked, then merged with what all of them tell."""
    masked = [mask_variables(line) for line in lines]
    known = Templates.learn(set(masked))
    of = {text: known.of(text) for text in set(masked)}
    return [of[text] for text in masked]


def loghub(path: Path) -> tuple[list[str], list[str]]:
    """Return the lines of a set and the ids of their templates."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["Content"] for row in rows], [row["EventId"] for row in rows]
