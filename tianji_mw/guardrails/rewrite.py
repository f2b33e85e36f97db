"""Replaces pieces of texts, where they stand in a request or an answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tianji_mw.apis.base import JSON
from tianji_mw.guardrails.base import Span


def replaced(text: str, spans: Iterable[Span]) -> str:
    """The text with all pieces replaced. Pieces that overlap become one, with a label in its place.

    >>> replaced("call 555-0100 now", [Span(5, 13, "PHONE")])
    'call [PHONE] now'
    """
    out: list[str] = []
    end = 0
    for span in merged(spans, len(text)):
        out += [text[end : span.start], span.replacement if span.replacement is not None else f"[{span.label}]"]
        end = span.end
    return "".join([*out, text[end:]])


def merged(spans: Iterable[Span], length: int) -> list[Span]:
    """In order and apart from each other, within the text."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        start, end = max(0, span.start), min(length, span.end)
        if start >= end:
            continue
        if found and start < found[-1].end:
            found[-1] = _united(found[-1], span, max(found[-1].end, end))
        else:
            found.append(span._replace(start=start, end=end))
    return found


def _united(one: Span, other: Span, end: int) -> Span:
    """Two pieces that overlap as one. What one wants in its place may hold what the other wants gone: a label it is."""
    if one.replacement == other.replacement:
        return one._replace(end=end)
    label = one.label if one.replacement is None or other.replacement is not None else other.label
    return Span(one.start, end, label)


def put(root: JSON, path: tuple[str | int, ...], text: str) -> None:
    """Set the string at `path`."""
    place: Any = root
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = text
