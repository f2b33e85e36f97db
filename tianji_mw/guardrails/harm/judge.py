"""The harm scorer of `content_filter`: hate, violence, self-harm and sexual content, by words and rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from tianji_mw.guardrails.harm import pack as packs
from tianji_mw.guardrails.harm.clauses import BACK, Mark, Text
from tianji_mw.guardrails.harm.pack import BIT, Pack
from tianji_mw.guardrails.harm.rules import ANCHOR, CORE, Found, judge
from tianji_mw.guardrails.harm.tricks import Repair, Speller, original, repaired
from tianji_mw.guardrails.scanner import Hit, Scanned, Scanner
from tianji_mw.runtime import Runtime

#: A finding at or above it is harm; below, a mention. Severity 2 begins here.
THRESHOLD: Final = 0.5
_BASE: Final = (0.0, 0.25, 0.6, 0.85)

#: Words beside which a misspelt one is looked for, how far, and at how many places of a text.
_HALF: Final = (
    BIT["group"]
    | BIT["group_adjective"]
    | BIT["slur_ambiguous"]
    | BIT["dehumanising"]
    | BIT["contempt"]
    | BIT["violent"]
)
_GROUPS: Final = BIT["group"] | BIT["group_adjective"]
_AROUND: Final = 60
_MOST_LOOKS: Final = 6


class Finding(NamedTuple):
    """What was found of one category."""

    #: hate, violence, self_harm, sexual.
    category: str
    #: 1 mentions it, 2 is harm, 3 is grave.
    severity: int
    #: From 0 to 1; it rises with severity, and within one with the number of words.
    score: float
    #: The words, in characters of the folded text.
    words: tuple[tuple[int, int], ...]


class Harm:
    """The scorer of one process; `Harm.of(runtime)` gives it.

    The shared scanner looks for the telling words alone. Sentences that have one are read again, with all words.
    """

    def __init__(self, loaded: list[Pack], scanner: Scanner) -> None:
        self._packs = {pack.language: pack for pack in loaded}
        self._speller = Speller(loaded)
        self._words = Scanner()
        telling: dict[str, int] = {}
        small = BIT["small"]
        self._words.add_all(
            {pack.language: [(word, mask) for word, mask in pack.words.items() if mask != small] for pack in loaded}
        )
        for pack in loaded:
            for word, mask in pack.words.items():
                if mask & (ANCHOR | _HALF) and not mask & BIT["neutral"]:
                    telling[word] = telling.get(word, 0) | mask
        scanner.add(self, telling)

    @classmethod
    async def of(cls, runtime: Runtime) -> Harm:
        """The one of this process. Raises SetupError when a pack is wrong or a package is missing."""
        scanner = await Scanner.of(runtime)

        async def made() -> Harm:
            return cls(packs.load(), scanner)

        async def closed(harm: Harm) -> None:
            scanner.forget(harm)

        return await runtime.shared(cls, made, closed)

    def findings(self, scanned: Scanned) -> list[Finding]:
        """What the text holds, the gravest first. Pure: the same text has the same findings."""
        text, hits = scanned.text, scanned.of(self)
        found = self._read(Text(text, self._packs, self._words), hits) if hits else []
        if not any(one.severity > 1 for one in found):
            repairs = [*self._speller.odd(text), *self._beside(text, hits)]
            if repairs:
                found += self._second(text, repairs)
        by_category: dict[str, list[Found]] = {}
        for one in found:
            by_category.setdefault(one.category, []).append(one)
        findings = [_finding(category, every) for category, every in by_category.items()]
        return sorted(findings, key=lambda finding: -finding.score)

    def _read(self, text: Text, hits: list[Hit]) -> list[Found]:
        """What the sentences with these words hold; behind a group also those that may speak of it."""
        numbers: set[int] = set()
        for start, end, mask in hits:
            if mask & ANCHOR:
                number = text.number(start)
                numbers.add(number)
                if mask & _GROUPS:
                    numbers.update(range(number, text.number(end + BACK) + 1))
        return [found for number in sorted(numbers) for one in text.sentences(number, CORE) for found in judge(one)]

    def _beside(self, text: str, hits: list[Hit]) -> Iterator[Repair]:
        """Repairs near words that are half of a finding."""
        looked = -1
        for hit in [hit for hit in hits if hit.what & _HALF][:_MOST_LOOKS]:
            start, end = max(looked, hit.start - _AROUND), min(len(text), hit.end + _AROUND)
            # Whole words.
            while start > 0 and start != looked and text[start - 1] != " ":
                start -= 1
            while end < len(text) and text[end] != " ":
                end += 1
            if start < end:
                yield from self._speller.near(text, start, end)
                looked = end

    def _second(self, text: str, repairs: list[Repair]) -> list[Found]:
        """What the repaired text holds, in places of this one; no more than harm, as it is a guess."""
        read, places = repaired(text, repairs)
        again = Text(read, self._packs, self._words)
        numbers = {again.number(start) for start, _, _, _ in places}
        found = [
            one for number in sorted(numbers) for sentence in again.sentences(number, CORE) for one in judge(sentence)
        ]
        return [
            Found(
                one.category,
                min(one.severity, 2),
                tuple(Mark(*original(word.start, word.end, places), word.what) for word in one.words),
            )
            for one in found
        ]


def _finding(category: str, found: list[Found]) -> Finding:
    severity = max(one.severity for one in found)
    words = {(word.start, word.end) for one in found if one.severity == severity for word in one.words}
    score = min(_BASE[severity] + 0.02 * (len(found) - 1), _BASE[severity] + 0.14)
    return Finding(category, severity, score, tuple(sorted(words)))
