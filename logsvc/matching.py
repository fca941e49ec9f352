"""Matching: a query tree evaluated over one record at a time, the slow and obvious way.

For the few records that no store holds (dead letters), and as the oracle that both stores are
tested against. It shares with them only ``tokenize``, ``regex`` and the table of fields.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from logsvc import regex
from logsvc.fields import MAX_TOKEN_CHARS, FieldType, resolve
from logsvc.query import And, Exists, Match, MatchAll, Node, Not, Or, Prefix, Range, Term, Words, tokenize
from logsvc.timestamps import parse_rfc3339


class Candidate:
    """One record with its source decoded, and its words kept once they were asked for."""

    def __init__(self, source: bytes) -> None:
        self.source: dict[str, Any] = msgspec.json.decode(source)
        self._tokens: dict[str, list[str]] = {}

    def values(self, field_name: str) -> list[Any]:
        """Return the comparable values of a field: keywords as bytes, dates in microseconds."""
        field = resolve(field_name)
        if field is None:
            raise ValueError(f"the query names {field_name!r}, which is no field")
        if field.type is FieldType.LABELS:
            value = self.source.get("labels", {}).get(field_name.removeprefix("labels."))
        else:
            value = self.source.get(field_name)
        if value is None:
            return []
        values = value if isinstance(value, list) else [value]
        if field.type is FieldType.DATE:
            return [parse_rfc3339(value) // 1000 for value in values]
        if field.type is FieldType.LONG:
            return values
        return [value[:MAX_TOKEN_CHARS].encode() for value in values]

    def tokens(self, field_name: str) -> list[str]:
        """Return the words of a field."""
        if field_name not in self._tokens:
            self._tokens[field_name] = tokenize(self.source.get(field_name) or "")
        return self._tokens[field_name]


def _comparable(value: str | int | None) -> Any:
    return value.encode() if isinstance(value, str) else value


def matches(node: Node, stored: Candidate) -> bool:
    """Return whether the record is a hit."""
    match node:
        case MatchAll():
            return True
        case Words(fields, tokens, is_prefix):
            return any(_has_words(stored.tokens(field), tokens, is_prefix) for field in fields)
        case Term(field, value):
            return _comparable(value) in stored.values(field)
        case Prefix(field, value):
            return any(found.startswith(value.encode()) for found in stored.values(field))
        case Match(fields, pattern, is_of_words):
            compiled = re.compile(regex.write(pattern, re.escape), re.DOTALL)
            texts = [stored.tokens(f) if is_of_words else [v.decode() for v in stored.values(f)] for f in fields]
            return any(compiled.fullmatch(text) for of_field in texts for text in of_field)
        case Exists(field):
            found = resolve(field)
            if found is not None and found.type is FieldType.TEXT:
                return bool(stored.tokens(field))
            return bool(stored.values(field))
        case Range():
            return any(_in_range(node, value) for value in stored.values(node.field))
        case And(children):
            return all(matches(child, stored) for child in children)
        case Or(children):
            return any(matches(child, stored) for child in children)
        case Not(child):
            return not matches(child, stored)


def _has_words(tokens: list[str], wanted: tuple[str, ...], is_prefix: bool) -> bool:
    if is_prefix:
        return any(token.startswith(wanted[0]) for token in tokens)
    n = len(wanted)
    return any(tuple(tokens[i : i + n]) == wanted for i in range(len(tokens) - n + 1))


def _in_range(node: Range, value: Any) -> bool:
    low, high = _comparable(node.low), _comparable(node.high)
    if low is not None and (value < low or (value == low and not node.includes_low)):
        return False
    return not (high is not None and (value > high or (value == high and not node.includes_high)))
