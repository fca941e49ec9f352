"""The native protocol: JSON objects with ECS names or their short aliases, as our shippers send them.

A body is NDJSON, a JSON array or one object (also written over several lines); its content says
which, never its Content-Type. Items are cut out here and read in ``Ingest.accept``, slice by slice
off the event loop, so that a bad one is refused alone.

The last line of a shipper's body is what its ledger says (ledger.py), and no item.

What always holds: ``index`` counts the items of a body from 0, blank lines left out; any bytes give
items or ``BadInput``.

Not here: Content-Encoding (bodies.py), what the keys mean (drafts.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from logsvc.errors import BadInput, BodyTooLarge
from logsvc.ledger import Statement, read_statement
from logsvc.normaliser import Item, ItemResult, decode_item

MAX_ITEMS = 200_000
"""Records of a body. A few bytes become a whole record, so the body's length alone is no bound."""

_LINE = re.compile(rb"[^\r\n]+")
_BLANK = b" \t\r\n\f\v\0"
_BOM = b"\xef\xbb\xbf"
_scan_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_scan = msgspec.json.Decoder(msgspec.Raw).decode

# Strings as a whole, so that brackets inside them do not count; possessive, so that a string of
# megabytes needs no memory to go back.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)
_MAX_TOKENS = 16_000_000  # an honest array of 64 MiB has half as many


def decode(body: bytes) -> list[Item]:
    """Cut a body into items, for ``Ingest.accept``.

    Raises:
        BadInput: If it is empty.
        BodyTooLarge: If it has more than ``MAX_ITEMS`` items.
    """
    body = body.removeprefix(_BOM)
    text = body.strip(_BLANK)
    if not text:
        raise BadInput("the body is empty; expected NDJSON, a JSON array or one JSON object")
    if text[:1] == b"[":
        items = _array(text)
    elif _is_one_object(text):
        items = [text]
    else:
        items = _lines(text)
    if not items:
        raise BadInput("the array is empty; expected at least one JSON object")
    if len(items) > MAX_ITEMS:
        raise _too_many()
    return items


def cut_statement(body: bytes) -> tuple[bytes, Statement | None]:
    """Return a body without the statement that it ends with, if it does, and the statement."""
    text = body.rstrip(_BLANK)
    start = text.rfind(b"\n") + 1
    statement = read_statement(text[start:])
    return (body, None) if statement is None else (body[:start], statement)


def render(results: Sequence[ItemResult], statement: Statement | None = None) -> dict[str, object]:
    """Return the answer's body: how many were accepted, and which were not, and why.

    Raises:
        BadInput: If nothing was accepted; but not to a shipper, whose statement was.

    >>> render([ItemResult("a1"), ItemResult(reason="not JSON", code="not_json")])
    {'accepted': 1, 'rejected': [{'index': 1, 'reason': 'not JSON'}]}
    """
    rejected = [{"index": index, "reason": result.reason} for index, result in enumerate(results) if result.reason]
    if len(rejected) == len(results) and statement is None:
        first = rejected[0]["reason"] if rejected else "the body holds no items"
        raise BadInput(f"none of {len(results)} items could be used; the first: {first}")
    return {"accepted": len(results) - len(rejected), "rejected": rejected}


def _too_many() -> BodyTooLarge:
    return BodyTooLarge(f"the body holds more than {MAX_ITEMS} items; send smaller batches")


def _is_one_object(text: bytes) -> bool:
    """Tell whether a body is one object over several lines, rather than one item a line."""
    first = _LINE.match(text)
    if first is None or first.end() == len(text) or text[:1] != b"{":
        return False
    if _is_json(first.group()):
        return False
    return _is_json(text)


def _is_json(text: bytes) -> bool:
    try:
        _scan(text)
    except RecursionError:
        return True
    except msgspec.MsgspecError:
        # Nearly JSON counts, as it does when the item is read. Long texts are refused there anyway.
        return not isinstance(decode_item(text), ItemResult)
    return True


def _lines(text: bytes) -> list[Item]:
    items: list[Item] = []
    for match in _LINE.finditer(text):
        line = match.group()
        if line.strip(_BLANK):
            items.append(line)
            if len(items) > MAX_ITEMS:
                raise _too_many()
    return items


def _array(text: bytes) -> list[Item]:
    try:
        return list(_scan_array(text))
    except (msgspec.MsgspecError, RecursionError):
        return _damaged_array(text)


def _damaged_array(text: bytes) -> list[Item]:
    """Cut an array that is not all JSON at its commas, so that only the damaged items are lost."""
    items: list[Item] = []
    depth = 0
    start = 1
    end = len(text)
    for count, match in enumerate(_TOKEN.finditer(text)):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
        elif token in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                end = match.start()
                break
        elif token == b"," and depth == 1:
            items.append(text[start : match.start()])
            start = match.end()
        if count > _MAX_TOKENS or len(items) > MAX_ITEMS:
            raise BodyTooLarge("the body is a damaged array, too long to be mended; send valid JSON or NDJSON")
    last = text[start:end]
    if last.strip(_BLANK):
        items.append(last)
    rest = text[end + 1 :]
    if rest.strip(_BLANK):
        items.append(rest)  # refused with its reason
    return items
