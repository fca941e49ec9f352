"""Templates: fingerprints of one statement are one, of two are two, whatever the order they came in."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.templates import MAX_TEXTS, Merging, Templates, words
from tests.support import log_lines
from tests.support.grouping import LOGHUB, grouping, loghub, templates


def learn(pattern: str, *values: str) -> Templates:
    return Templates.learn(pattern.format(value) for value in values)


def test_made_up_lines_of_many_systems_are_grouped_by_their_statement() -> None:
    # None of the rules was written for one of them; seeds differ from those looked at while writing.
    figures = {}
    for system in log_lines.SYSTEMS:
        made = log_lines.lines(system, 2_000, seed=71)
        figures[system] = grouping(templates([line for line, _ in made]), [true for _, true in made])
    accuracy, f1 = (sum(column) / len(figures) for column in zip(*figures.values(), strict=True))
    assert accuracy > 0.94, figures
    assert f1 > 0.88, figures


def test_real_lines_are_grouped_as_well_as_is_claimed() -> None:
    sets = sorted(LOGHUB.glob("*_2k.log_structured.csv"))
    if not sets and not os.environ.get("CI"):
        pytest.skip(f"no sets of real lines in {LOGHUB}")
    figures = {}
    for path in sets:
        lines, true = loghub(path)
        figures[path.name] = grouping(templates(lines), true)
    accuracy, f1 = (sum(column) / len(figures) for column in zip(*figures.values(), strict=True))
    assert accuracy > 0.985, figures
    assert f1 > 0.96, figures


def test_names_become_a_variable_where_they_are_many() -> None:
    known = learn("session closed for user {}", "ann", "bob", "cyd")
    assert known.of("session closed for user dan") == "session closed for user <*>"
    assert known.of("session closed for user") == "session closed for user"


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("order <num> {}", ("paid", "refunded", "cancelled", "shipped")),
        (
            "task failed: {}: no route",
            ("TimeoutError", "IOError", "ValueError", "KeyError", "OSError", "ArithmeticError"),
        ),
        (
            "{}: no route",
            ("UndefinedColumn", "DoesNotExist", "Bad", "Missing", "Gone", "Unknown", "Lost", "Late", "No"),
        ),
        ("{} set to <num>", ("maxSize", "minSize", "tickTime", "initLimit")),
        ("from {} now", ("NEW to ASSIGNED", "ASSIGNED to RUNNING", "RUNNING to SUCCEEDED", "NEW to FAILED")),
        ("Failed to start {} now", ("a b", "c d", "e f", "g h")),
    ],
)
def test_few_words_and_classes_of_errors_are_no_variable(pattern: str, values: tuple[str, ...]) -> None:
    known = learn(pattern, *values)
    assert len({known.of(pattern.format(value)) for value in values}) == len(values)


def test_two_places_that_vary_freely_are_variables() -> None:
    users, tables = "ann bob cyd dan eve".split(), "orders invoices sessions carts".split()
    texts = [f"permission denied for {user} on table {table}" for user in users for table in tables]
    known = Templates.learn(texts)
    assert {known.of(text) for text in texts} == {"permission denied for <*> on table <*>"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("deleting <id> <id> <id>", "deleting <id>"),
        ("nodes <id> <hex> <ok> <id> <hex> <ok> seen", "nodes <id> <hex> <ok> seen"),
        ("free <num> KB", "free <num> B"),
        ("lifetime <<num> sec", "lifetime <time>"),
        ("connected to www.example.com:<num> now", "connected to <ip> now"),
        ("from <ip> () at noon", "from <ip> (<id>) at noon"),
        ("seen on Fri Jul <num> <time> <num>", "seen on <time>"),
        ("visible=true, at <num>", "visible=false, at <num>"),
        ("size <hex>", "size <num>"),
        ("to [ann, bob] sent", "to [ann, bob, cyd] sent"),
        ("token edffbec of <num>", "token <id> of <num>"),
    ],
)
def test_values_of_any_form_and_number_have_one_text(one: str, other: str) -> None:
    assert words(one) == words(other)


@given(st.permutations([f"user {name} logged in from <ip>" for name in "ann bob cyd dan".split()]), st.integers(1, 3))
def test_what_is_learned_does_not_depend_on_order_or_number(texts: list[str], times: int) -> None:
    known = Templates.learn(texts * times)
    assert {known.of(text) for text in texts} == {"user <*> logged in from <*>"}


@given(
    st.lists(
        st.lists(st.sampled_from("a bc <num> D.e = ( ) [ , ] x-y :".split()), max_size=8).map(" ".join), max_size=30
    )
)
def test_any_texts_have_templates_and_what_was_learned_is_kept(texts: list[str]) -> None:
    known = Templates.learn(texts)
    again = Templates.learn(reversed(texts))
    assert [known.of(text) for text in texts] == [again.of(text) for text in texts]


def test_another_process_learns_the_same() -> None:
    code = (
        "from tests.support import log_lines\nfrom tests.support.grouping import templates\n"
        "print(hash_of(templates([line for line, _ in log_lines.lines('unit', 300, 5)])))"
    )
    code = "import hashlib\nhash_of = lambda found: hashlib.sha256('\\n'.join(found).encode()).hexdigest()\n" + code
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_texts_made_to_be_slow_have_words_all_the_same() -> None:
    # A pattern that grew with the square of its text, or worse, would not end here.
    rng = random.Random(1)
    parts = ("a", "<num>", ".", "-", ":", "@", "[ ", " , ", " ]", " ", "()", "=", "é", "<*>")
    texts = [part * (1000 // len(part)) for part in parts]
    texts += ["".join(rng.choices(parts, k=600))[:1000] for _ in range(200)]
    assert max(len(words(text)) for text in texts) <= 256


# ------------------------------------------------------------------------------------------------- by the hour

HOUR_US = 3_600_000_000


def refused(*names: str) -> dict[str, str]:
    return {f"v1:{name}": f"login of user {name} refused" for name in names}


def test_fingerprints_are_merged_from_the_hour_after_they_were_seen() -> None:
    merging = Merging()
    merging.add({"v1:x": "x", **refused("ann")}, HOUR_US)
    merging.add(refused("bob"), HOUR_US + 5)
    merging.add(refused("cyd"), HOUR_US + 10)
    assert len({merging.of[id] for id in refused("ann", "bob", "cyd")}) == 3
    merging.add(refused("zoe"), 2 * HOUR_US)
    assert {merging.of[id] for id in refused("ann", "bob", "cyd", "zoe")} == {"login of user <*> refused"}
    assert merging.of["v1:x"] == "x"


def test_merging_goes_on_from_what_was_kept_as_if_nothing_had_been() -> None:
    steps = [
        (refused("ann", "bob"), 1),
        (refused("cyd"), 3),
        (refused("dan"), 4),
        (refused("eve"), HOUR_US + 1),
        ({}, 2 * HOUR_US),
    ]
    for stop in range(len(steps)):
        merging, other = Merging(), Merging()
        kept = None
        for at, (texts, cutoff_us) in enumerate(steps):
            merging.add(texts, cutoff_us)
            other.add(texts, cutoff_us)
            kept = other.encode() or kept
            if at == stop:
                other = Merging(kept)
                assert kept is not None
                assert Merging.ids(kept) == other.of.keys()
            assert other.of == merging.of


def test_what_is_no_longer_seen_is_forgotten() -> None:
    merging = Merging()
    merging.add(refused("ann", "bob", "cyd"), HOUR_US)
    merging.add({}, 2 * HOUR_US)
    merging.keep(set(refused("ann", "bob")))
    assert merging.of == refused("ann", "bob")


def test_fingerprints_are_kept_within_a_bound() -> None:
    merging = Merging()
    merging.add({str(number): "a" * number for number in range(MAX_TEXTS + 10)}, HOUR_US)
    assert len(merging.of) == MAX_TEXTS
