"""Scores a text: rules over meanings, similarity to known attacks, and a linear model over windows.

Everything counts what the shared scanner found in its one pass; a text costs the same per character at any length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final, NamedTuple

from tianji_mw.call import Call
from tianji_mw.guardrails.injection.decode import decoded
from tianji_mw.guardrails.injection.features import Block, Features, Matched, windows
from tianji_mw.guardrails.injection.lexicon import Lexicon, lexicon, load
from tianji_mw.guardrails.injection.model import Model
from tianji_mw.guardrails.injection.similarity import Similarity
from tianji_mw.guardrails.scanner import Hit, Scanner
from tianji_mw.runtime import Runtime

#: What is found where no rule says what it is.
OTHER: Final = "other"
_SIMILAR: Final = 0.8
_MOST_NAMED: Final = 8


class Seen(NamedTuple):
    """What the parts of a text say, before it is judged."""

    blocks: list[Block]
    matched: list[Matched]
    #: Codes in which something was written that a rule knows.
    codes: list[str]


class Finding(NamedTuple):
    """How much a text looks like an attack, 0 to 1, of which category, and the rules that matched."""

    score: float
    category: str = OTHER
    rules: tuple[str, ...] = ()


class Detector:
    """One per process; it owns its words in the scanner."""

    def __init__(self, words: Lexicon | None = None) -> None:
        self.lexicon = lexicon() if words is None else words
        self.features = Features(self.lexicon)
        self.similarity = Similarity(load("similar.yaml"))

    @classmethod
    async def of(cls, runtime: Runtime) -> Detector:
        """The one of this process."""

        async def made() -> Detector:
            detector = cls()
            (await Scanner.of(runtime)).add(detector, detector.lexicon.words)
            return detector

        async def closed(_: Detector) -> None:
            pass

        return await runtime.shared(cls, made, closed)

    def look(self, text: str, scanner: Scanner, call: Call | None = None) -> Seen:
        """Meanings, rules and words of a text, and of what is written in code in it."""
        scanned = scanner.scan(text, call)
        hits = scanned.of(self)
        matched = self.features.matched(hits)
        codes: list[str] = []
        inside: list[Hit] = []
        for kind, said in decoded(text):
            found = scanner.scan(said).of(self)
            rules = self.features.matched(found)
            if rules:
                codes.append(kind)
                matched += [Matched(one.rule, 0) for one in rules]
                inside += [Hit(0, 1, hit.what) for hit in found]
        whole = self.features.structure(text, decoded=bool(codes))
        return Seen(self.features.blocks(scanned.text, [*inside, *hits], matched, whole), matched, codes)

    def judge(self, seen: Seen, model: Model | None, *, similarity: bool, document: bool, off: Collection[str]) -> Finding:
        """The verdict. Without a model, rules and words do not count. `off`: categories that are none."""
        parts = list(windows(seen.blocks))
        best, category, names = 0.0, "", []
        weights: Counter[str] = Counter()
        for at in sorted({one.rule for one in seen.matched}) if model else ():
            rule = self.lexicon.rules[at]
            if rule.category in off:
                continue
            floor = rule.document_floor if document else rule.floor
            names.append(rule.name)
            weights[rule.category] += max(floor, model.weight(self.features.rule(at)), 0.01) if model else 0
            best = max(best, floor)
        if similarity:
            kinds = {self.similarity.find(part) for part in parts} - {"", *off}
            for kind in sorted(kinds):
                names.append(f"similar_{kind}")
                weights[kind] += _SIMILAR
                best = max(best, _SIMILAR)
        names += [f"written_in_{code}" for code in dict.fromkeys(seen.codes)]
        category = weights.most_common(1)[0][0] if weights else OTHER
        if model and category not in off:
            best = max(best, model.probability([model.window(part) for part in parts]))
        return Finding(best, category, tuple(names[:_MOST_NAMED]))
