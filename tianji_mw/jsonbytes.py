"""JSON at the byte level: strict parsing of requests, and replacing one top-level value without re-encoding the rest.

orjson keeps the last of two equal keys, other parsers the first: a guardrail would then read a text that the provider
never sees. So duplicate keys are refused here. Nothing in this file knows an API.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import orjson

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]', re.DOTALL)
#: A JSON string escape that could spell a key's letters: then bytes alone do not show where the key is. Keys here are
#: made of letters and underscores.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]", re.IGNORECASE)


def loads(body: bytes) -> Any:
    """Decode strictly: UTF-8, no NaN, no duplicate keys, bounded depth. Raises ValueError with the reason."""
    value = orjson.loads(body)
    try:
        again = orjson.dumps(value)
    except TypeError:  # its encoder goes less deep than its decoder: what could not be sent on is not let in
        raise ValueError("the body is nested too deeply") from None
    # Clients nearly always send compact JSON. If encoding gives the same bytes back, no key can stand twice.
    if again != body:
        try:
            json.loads(body, object_pairs_hook=_refuse_duplicates, parse_int=_keep, parse_float=_keep)
        except RecursionError:
            raise ValueError("the body is nested too deeply") from None
    return value


def _keep(text: str) -> str:
    return text


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} stands twice in one object")
            seen.add(key)


def replace_value(body: bytes, key: str, value: bytes) -> bytes | None:
    """`body` with the top-level string value of `key` replaced by the JSON `value`; all other bytes stay.

    None where the place cannot be told from the bytes alone (the key is written with escapes): encode anew then.
    """
    span = find_value(body, key)
    return None if span is None else body[: span[0]] + value + body[span[1] :]


def find_value(body: bytes, key: str) -> tuple[int, int] | None:
    """Start and end of the top-level string value of `key`, which the parsed body is known to hold.

    None where it is not a string, or where escapes hide the place.
    """
    needle = b'"%b"' % key.encode()
    if _ESCAPED_LETTER.search(body):
        return None
    if body.count(needle) == 1:
        # The caller has parsed the body and knows that the key is there, so the only occurrence is the key itself.
        match = re.compile(needle + rb'\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL).search(body)
        return match.span(1) if match else None
    depth = 0
    expect_key = False
    # Several occurrences: the nesting tells which one is the top-level key.
    tokens = _TOKEN.finditer(body)
    for token in tokens:
        text = token[0]
        if text in (b"{", b"["):
            depth += 1
            expect_key = text == b"{" and depth == 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif text == b",":
            expect_key = depth == 1
        elif depth == 1 and expect_key and text != b":":
            expect_key = False
            if text == needle:
                next(tokens)  # the colon
                found = next(tokens)
                return found.span() if found[0].startswith(b'"') else None
    return None


def append_field(body: bytes, key: str, value: bytes) -> bytes:
    """`body` (a JSON object that has no such key) with one more field at its end."""
    inner = body.rstrip()[:-1].rstrip()
    return b'%b%b"%b":%b}' % (inner, b"" if inner.endswith(b"{") else b",", key.encode(), value)
