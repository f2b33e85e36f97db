"""From what Presidio found in a text to the verdict about it. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tianji_mw.guardrails.base import Span, Verdict, block
from tianji_mw.guardrails.presidio_findings import Finding, strings_of, within
from tianji_mw.guardrails.presidio_tokens import Tokens, escaped, is_json, unescaped
from tianji_mw.guardrails.rewrite import replaced


class Text(NamedTuple):
    """A text that is judged: as it came, what is restored in it, and what then is the caller's own."""

    text: str
    restored: Sequence[Span]
    own: Sequence[tuple[int, int]]

    @property
    def now(self) -> str:
        """With what is restored."""
        return replaced(self.text, self.restored) if self.restored else self.text

    def verdict(self, spans: Sequence[Span]) -> Verdict:
        """The one that restores, and replaces these pieces of `now`."""
        moved, found = 0, list(self.restored)
        before = list(self.restored)
        for span in sorted(spans):
            while before and before[0].start + moved < span.start:
                one = before.pop(0)
                moved += len(one.replacement or "") - (one.end - one.start)
            found.append(span._replace(start=span.start - moved, end=span.end - moved))
        return Verdict(False, ",".join(dict.fromkeys(span.label for span in spans)), tuple(sorted(found)))


def refusal(entities: Sequence[str]) -> Verdict:
    """The verdict about entities that are blocked."""
    names = list(dict.fromkeys(entities))
    return block(names[0], error=f"Blocked entity detected: {', '.join(names)}", entities=[*names])


def masked(text: str, found: Sequence[Finding], tokens: Tokens | None) -> list[Span]:
    """`<TYPE>`, or a token, in the place of each finding."""
    as_json = tokens is not None and is_json(text)
    spans = []
    for one in found:
        new = f"<{one.entity}>"
        if tokens is not None:
            value = text[one.start : one.end]
            new = tokens.token(one.entity, unescaped(value) if as_json else value)
        spans.append(Span(one.start, one.end, one.entity, new))
    return fitting(text, spans)


def fitting(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans with replacements that leave JSON what it is: outside of its strings they become some."""
    if not spans or not is_json(text):
        return [*spans]
    strings = strings_of(text)
    fit = []
    for span in spans:
        if span.replacement is None:
            fit.append(span)
            continue
        new = escaped(span.replacement)
        fit.append(span._replace(replacement=new if within(strings, span.start) else f'"{new}"'))
    return fit
