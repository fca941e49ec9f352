"""Query: the language people type, parsed once into a tree that every store compiles.

The tree is already resolved: aliases are ECS names, values have their field's type, words are
tokens as the stores index them. A store only translates nodes, so no backend's language and no
backend's leniency can leak into the API.

Grammar, tightest first::

    primary  = "(" query ")" | field ":" value | word | "phrase" | prefix*
    value    = word | "phrase" | prefix* | "*" | (">" | ">=" | "<" | "<=") word
             | "[" low TO high "]" | "{" low TO high "}" | "(" value OR value … ")"
    unary    = ("NOT" | "-") unary | primary
    and      = unary (["AND"] unary)*        words side by side mean AND
    query    = and ("OR" and)*

Not here: how a node is searched (store/).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MatchAll:
    """Every record; what the empty query means."""


@dataclass(frozen=True, slots=True)
class Words:
    """``tokens`` stand side by side, in order, in at least one of the text ``fields``.

    One token is a plain word, several are a phrase. With ``is_prefix`` (one token only) a word
    that begins with the token is enough. Tokens are never empty: text without a letter or digit
    parses to an error.
    """

    fields: tuple[str, ...]
    tokens: tuple[str, ...]
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """The keyword, label, long or date ``field`` has exactly ``value`` (dates in microseconds)."""

    field: str
    value: str | int


@dataclass(frozen=True, slots=True)
class Prefix:
    """The keyword or label ``field`` begins with ``value``."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Exists:
    """The ``field`` has a value. For text: it has at least one word."""

    field: str


@dataclass(frozen=True, slots=True)
class Range:
    """``low`` and ``high`` bound the field; None is open. Never on text or labels.

    Keywords compare by their UTF-8 bytes, longs by value, dates in microseconds.
    """

    field: str
    low: str | int | None
    high: str | int | None
    includes_low: bool = True
    includes_high: bool = True


@dataclass(frozen=True, slots=True)
class And:
    """Every child matches; at least two children."""

    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some child matches; at least two children."""

    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The child does not match."""

    child: Node


Node = MatchAll | Words | Term | Prefix | Exists | Range | And | Or | Not
