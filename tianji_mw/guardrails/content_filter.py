"""`content_filter`: harm by category, words and patterns of your own, and prebuilt patterns, without any service.

LiteLLM's keys of `litellm_content_filter` work as they are. Words are seen through Unicode tricks (`folding.py`);
patterns see the text as it stands. The matched text is in no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field, PrivateAttr, field_validator, model_validator

from tianji_mw.call import Call
from tianji_mw.errors import SetupError
from tianji_mw.guardrails import content_prebuilt as prebuilt
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Release, Said, Side, Span, Verdict, block, mask
from tianji_mw.guardrails.content_files import Files
from tianji_mw.guardrails.content_options import (
    BUILT_IN,
    CATEGORY_ALIASES,
    Action,
    BlockedWord,
    CategoryRule,
    CategoryWords,
    Pattern,
    Severity,
    level_name,
    unknown,
)
from tianji_mw.guardrails.content_regex import Regexes
from tianji_mw.guardrails.content_words import Category, Found, blocked, blocked_terms, categorised
from tianji_mw.guardrails.scanner import Scanned, Scanner
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.guardrails.harm.judge import Harm

#: Phrases of the harm scorer are no longer.
_HARM_WINDOW: Final = 400


class _Own:
    """What a started filter knows; it is also the owner of its words in the scanner."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.harm: Harm | None = None
        self.regexes: Regexes[Pattern | Category] = Regexes()
        self.longest = 0


class ContentFilter(Guardrail):
    """Blocks or masks harm, words and patterns. Without any option: the four built-in categories.

    >>> ContentFilter(blocked_words=[{"keyword": "project x", "action": "MASK"}])
    """

    #: Words stand in sentences: a stream is judged by whole ones.
    release: ClassVar[Release] = "sentence"

    #: Which categories are looked for; None for the built-in ones, or for none where words or patterns are given.
    categories: tuple[CategoryRule, ...] | None = None
    #: Categories as in a `category_file`, written here.
    own_categories: tuple[CategoryWords, ...] = ()
    blocked_words: tuple[BlockedWord, ...] = ()
    blocked_words_file: Path | None = None
    patterns: tuple[Pattern, ...] = ()
    severity_threshold: Severity = 2
    #: Score from 0 to 1 from which a built-in category counts, as well as its severity; the Go port's key.
    threshold: float = Field(default=0.0, ge=0, le=1)
    #: What stands in place of what a pattern found, and in place of a word.
    pattern_redaction_format: str = "[{pattern_name}_REDACTED]"
    keyword_redaction_tag: str = "[KEYWORD_REDACTED]"
    #: Files that are named are relative to it, and in it.
    folder: Path = Path()

    _own: _Own | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        """Keys of LiteLLM that would have no effect stop the start."""
        for name in ("image_model", "competitor_intent_config") if isinstance(given, dict) else ():
            if given.get(name):
                raise ValueError(f"{name} is not supported; take it out")
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given

    @field_validator("categories")
    @classmethod
    def _known(cls, given: tuple[CategoryRule, ...] | None) -> tuple[CategoryRule, ...] | None:
        return given or None  # an empty list is none, as in LiteLLM

    @model_validator(mode="after")
    def _all_known(self) -> ContentFilter:
        """A category that nobody defines must never pass for one that is looked for."""
        own = {words.category_name for words in self.own_categories}
        if taken := own & {*BUILT_IN, *CATEGORY_ALIASES}:
            raise ValueError(f"own_categories: {min(taken)!r} is a built-in category; take another name")
        for rule in self.categories or ():
            if not rule.built_in and rule.category_file is None and rule.category not in own:
                raise ValueError(
                    f"categories: {unknown('category', rule.category, {*BUILT_IN, *CATEGORY_ALIASES, *own})}; "
                    "write one of your own under own_categories or in a category_file"
                )
        return self

    @property
    def window(self) -> int:  # type: ignore[override]
        """The longest thing that it was told to find."""
        return self._own.longest if self._own is not None else 0

    @property
    def built_in(self) -> tuple[CategoryRule, ...]:
        """The rules of the harm scorer's categories."""
        if self.categories is not None:
            return tuple(rule for rule in self.categories if rule.enabled and rule.built_in)
        if self.patterns or self.blocked_words or self.blocked_words_file or self.own_categories:
            return ()
        return tuple(CategoryRule(category=name) for name in BUILT_IN)

    async def start(self, runtime: Runtime) -> None:
        """Read the files, and add the words to the scanner. Raises SetupError for what cannot be looked for."""
        own = _Own(await Scanner.of(runtime))
        files = Files(self.folder)
        own.longest = prebuilt.longest(self._prebuilt)
        if self.built_in:
            from tianji_mw.guardrails.harm.judge import Harm

            own.harm = await Harm.of(runtime)
            own.longest = max(own.longest, _HARM_WINDOW)
        words = [*self.blocked_words]
        if self.blocked_words_file is not None:
            words += files.blocked_words(self.blocked_words_file)
        categories = list(self._own_categories(files))
        for pattern in self.patterns:
            if pattern.pattern_type == "regex":
                own.regexes.add(pattern.title, pattern.pattern or "", pattern, once=pattern.action == "block")
        for category in categories:
            for form in category.words.phrase_patterns:
                own.regexes.add(category.name, form, category, once=False)
        terms = [*blocked_terms(words), *(term for category in categories for term in category.terms())]
        own.longest = max(own.longest, own.regexes.longest, *(2 * len(word) for word, _ in terms), 1)
        own.scanner.add(own, terms)
        self._own = own

    async def aclose(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            own.scanner.forget(own)

    async def check(self, text: str, call: Call) -> Verdict:
        return self._verdict(Said(text), call)

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        return [self._verdict(one, call) for one in said]

    @property
    def _prebuilt(self) -> list[str]:
        return [one.pattern_name or "" for one in self.patterns if one.pattern_type == "prebuilt"]

    def _own_categories(self, files: Files) -> Iterator[Category]:
        rules = {rule.category: rule for rule in self.categories or ()}
        for at, words in enumerate(self.own_categories):
            rule = rules.get(words.category_name) or CategoryRule(category=words.category_name)
            if rule.enabled and rule.category_file is None:
                yield self._category(rule, files.inherited(words, f"own_categories[{at}]"))
        for at, rule in enumerate(self.categories or ()):
            if rule.enabled and rule.category_file is not None:
                key = f"categories[{at}].category_file"
                words = files.category(rule.category_file, key)
                yield self._category(rule, words)

    def _category(self, rule: CategoryRule, words: CategoryWords) -> Category:
        pairs = bool(words.identifier_words) and bool(words.additional_block_words)
        if not (pairs or words.keywords or words.always_block_keywords or words.phrase_patterns):
            text = "has nothing to look for; give it keywords, phrase_patterns, or both kinds of words for pairs"
            raise SetupError(f"content_filter: the category {rule.category!r} {text}")
        action: Action = rule.action or words.default_action
        return Category(rule.category, action, rule.severity_threshold or self.severity_threshold, words)

    def _verdict(self, said: Said, call: Call) -> Verdict:
        own = self._own
        if own is None:
            raise GuardrailFailed("content_filter was not started")
        scanned = own.scanner.scan(said.text, call)
        spans: list[Span] = []
        for found in self._found(own, scanned, every=said.seen > 0):
            if _judged_before(found, said.seen):
                continue
            if found.action == "block":
                return block(found.label, **found.detail)
            spans.append(Span(found.start, found.end, found.label, self._replacement(found)))
        return mask(*spans) if spans else ALLOW

    def _found(self, own: _Own, scanned: Scanned, *, every: bool) -> Iterator[Found]:
        """Everything, in LiteLLM's order: categories, patterns, words."""
        if own.harm is not None:
            yield from self._harm(own.harm, scanned, every)
        matches = list(own.regexes.find(scanned.original, every=every))
        hits = scanned.of(own)
        yield from categorised(
            scanned, hits, [(m.what, m.start, m.end) for m in matches if isinstance(m.what, Category)]
        )
        yield from (_pattern(m.start, m.end, m.what) for m in matches if isinstance(m.what, Pattern))
        if names := self._prebuilt:
            yield from self._known_forms(scanned.original, names)
        yield from blocked(scanned, hits)

    def _harm(self, harm: Harm, scanned: Scanned, every: bool) -> Iterator[Found]:
        rules = self.built_in
        for finding in harm.findings(scanned):
            for rule in rules:
                if rule.built_in != finding.category or finding.score < self.threshold:
                    continue
                if finding.severity >= (rule.severity_threshold or self.severity_threshold):
                    detail = {"severity": level_name(finding.severity)}
                    action = rule.action or "block"
                    if action == "block" and not every:  # where it stands makes no difference
                        yield Found(0, len(scanned.original), action, finding.category, detail, depends=True)
                        continue
                    for word in finding.words:
                        start, end = scanned.span(*word)
                        yield Found(start, end, action, finding.category, detail, depends=True)

    def _known_forms(self, text: str, names: Iterable[str]) -> Iterator[Found]:
        spans = list(prebuilt.find(text, names))
        for pattern in self.patterns if spans else ():
            if pattern.pattern_type == "prebuilt":
                yield from (
                    _pattern(span.start, span.end, pattern) for span in spans if span.label == pattern.pattern_name
                )

    def _replacement(self, found: Found) -> str:
        if "pattern" not in found.detail:
            return self.keyword_redaction_tag
        return self.pattern_redaction_format.replace("{pattern_name}", found.detail["pattern"].upper())


def _pattern(start: int, end: int, pattern: Pattern) -> Found:
    return Found(start, end, pattern.action, pattern.title, {"pattern": pattern.title})


def _judged_before(found: Found, seen: int) -> bool:
    """Of a stream, whether it was judged with more of what stands before it, which may excuse it or begin its word."""
    return found.end < seen and (found.depends or found.start == 0)
