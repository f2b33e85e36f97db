"""Replacing pieces of texts: nothing that was marked stays, nothing else changes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.rewrite import merged, put, replaced

TEXT = st.text(max_size=40)
SPANS = st.lists(st.builds(Span, st.integers(-3, 45), st.integers(-3, 45), st.just("X")), max_size=6)


@given(TEXT, SPANS)
def test_marked_characters_go_and_the_others_stay(text: str, spans: list[Span]) -> None:
    marked = {at for span in spans for at in range(max(0, span.start), min(len(text), span.end))}
    out = replaced(text, [span._replace(replacement="") for span in spans])
    assert out == "".join(char for at, char in enumerate(text) if at not in marked)
    apart = merged(spans, len(text))
    assert all(a.end <= b.start for a, b in pairwise(apart))


def test_labels_and_replacements() -> None:
    assert replaced("a b c", [Span(4, 5, "C", "3"), Span(0, 1, "A")]) == "[A] b 3"
    assert replaced("my key is k1", [Span(0, 12, "REWRITTEN", "MY KEY IS k1"), Span(10, 12, "KEY")]) == "[KEY]"
    assert replaced("abcdef", [Span(1, 4, "ONE"), Span(2, 5, "TWO")]) == "a[ONE]f"


def test_places() -> None:
    data = {"choices": [{"message": {"content": "one"}}]}
    put(data, ("choices", 0, "message", "content"), "2")
    assert data == {"choices": [{"message": {"content": "2"}}]}
