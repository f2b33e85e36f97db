"""Scores a text: rules over meanings, similarity to known attacks, and a linear model over windows.

Everything counts what the shared scanner found in its one pass; a text costs the same per character at any length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from tianji_mw.call import Call
from tianji_mw.guardrails.injection.decode import decoded
from tianji_mw.guardrails.injection.features import BLOCK, Block, Features, Matched
from tianji_mw.guardrails.injection.lexicon import Rule, lexicon, load
from tianji_mw.guardrails.injection.model import Model
from tianji_mw.guardrails.injection.similarity import Similarity
from tianji_mw.guardrails.scanner import Hit, Scanner
from tianji_mw.runtime import Runtime

#: What is found where no rule says what it is.
OTHER: Final = "other"
#: Frozen: the training script moves the model so that this is where enough clean texts of unseen sources pass.
THRESHOLD: Final = 0.5
SIMILAR: Final = 0.8
#: What words of a meaning are a sign of.
CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "override": ("override",), "instructions": ("override",), "system_prompt": ("extraction",),
    "reveal": ("extraction",), "secret": ("extraction",), "personal": ("extraction",), "new_role": ("jailbreak",),
    "unbound": ("jailbreak",), "loose": ("jailbreak",), "mode": ("jailbreak",), "fiction": ("jailbreak",),
    "refusal": ("jailbreak",), "persona": ("jailbreak",), "encode": ("obfuscation",), "split": ("obfuscation",),
    "disguised": ("obfuscation",), "delimiter": ("delimiter",), "to_reader": ("indirect",),
    "your_reply": ("indirect",), "exfiltrate": ("exfiltration",),
}  # fmt: skip
#: Blocks of a short text. In a long one much stands beside each other that does not belong together.
SHORT: Final = 8
#: Logits of a window that looks like an attack.
ALIKE: Final = 0.5


class Seen(NamedTuple):
    """What the parts of a text say, before it is judged."""

    blocks: list[Block]
    matched: list[Matched]
    #: Codes in which something was written that a rule knows.
    codes: list[str]
    #: A rule that matches is proof by itself: the text is short, and does not speak of attacks, which it may quote.
    proven: bool

    def floors(self, rules: Sequence[Rule], windows: Sequence[float], *, document: bool) -> Iterator[float]:
        """What each rule is worth: in a long text, where the window that it stands in looks like an attack, too."""
        for one in self.matched:
            at = one.at // BLOCK
            if self.proven or max(windows[max(0, at - 1) : at + 1], default=0.0) > ALIKE:
                yield rules[one.rule].document_floor if document else rules[one.rule].floor


class Finding(NamedTuple):
    """How much a text looks like an attack, 0 to 1; what it says, and the kinds of known sentences in it."""

    score: float
    seen: Seen
    similar: set[str]


class Detector:
    """One per process; it owns its words in the scanner."""

    def __init__(self) -> None:
        self.lexicon = lexicon()
        self._about = self.lexicon.meanings.index("about")
        self.features = Features(self.lexicon)
        self.similarity = Similarity(load("similar.yaml"))
        self.model = Model(self.features.names)

    @classmethod
    async def of(cls, runtime: Runtime) -> Detector:
        """The one of this process."""

        scanner = await Scanner.of(runtime)

        async def made() -> Detector:
            detector = cls()
            scanner.add(detector, detector.lexicon.words)
            return detector

        async def closed(detector: Detector) -> None:
            scanner.forget(detector)

        return await runtime.shared(cls, made, closed)

    def find(
        self, text: str, scanner: Scanner, call: Call | None = None, *,
        heuristics: bool = True, similarity: bool = True, document: bool = False,
    ) -> Finding:  # fmt: skip
        """How much a text looks like an attack. `document`: nobody who may give orders wrote it.

        Without `heuristics`, rules and words do not count.
        """
        seen = self.look(text, scanner, call)
        score = 0.0
        if heuristics:
            windows = self.model.windows(seen.blocks)
            floors = seen.floors(self.lexicon.rules, windows, document=document)
            score = max(self.model.probability(windows), *floors, 0.0)
        similar = self.similarity.find(seen.blocks) if similarity else set[str]()
        if similar and (seen.proven or not heuristics):
            score = max(score, SIMILAR)
        return Finding(score, seen, similar)

    def category(self, finding: Finding) -> str:
        """Of an attack, its technique: what most of its words and rules are about."""
        if finding.seen.codes:
            return "obfuscation"
        weights: defaultdict[str, float] = defaultdict(float)
        for one in finding.seen.matched:
            rule = self.lexicon.rules[one.rule]
            weights[rule.category] += 1 + max(rule.floor, 0.0)
        for name in {name for block in finding.seen.blocks for name in self.features.of(block.dense)}:
            for category in CATEGORIES.get(name, ()):
                weights[category] += 0.6
        for category in finding.similar:
            weights[category] += 2
        return max(weights, key=lambda kind: (weights[kind], kind), default=OTHER)

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
        blocks = self.features.blocks(scanned, [*inside, *hits], matched, coded=bool(codes))
        quotes = not codes and any(hit.what == self._about for hit in hits)
        return Seen(blocks, matched, codes, bool(codes) or (len(blocks) <= SHORT and not quotes))
