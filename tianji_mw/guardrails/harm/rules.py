"""The rules, which are the same in all languages: what has to stand together to be harm, and what lowers it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from tianji_mw.guardrails.harm.clauses import MEANT, UNGOOD, Mark, Sentence
from tianji_mw.guardrails.harm.pack import BIT


def _bits(names: str) -> int:
    mask = 0
    for name in names.split("|"):
        mask |= _MORE.get(name) or BIT[name]
    return mask


_MORE: Final[Mapping[str, int]] = {"meant": MEANT, "ungood": UNGOOD}


class Rule(NamedTuple):
    """One word of each part, within `reach` times the reach of the pack, make a finding."""

    category: str
    severity: int
    parts: tuple[int, ...]
    #: The first, second and third of them; all bits where there is none. Tested one by one, which is fastest.
    first: int
    second: int
    third: int
    reach: float = 1.0
    ordered: bool = False
    #: With one of these in the sentence the rule does not hold.
    without: int = 0


def _rule(
    category: str, severity: int, *parts: str, reach: float = 1.0, ordered: bool = False, without: str = ""
) -> Rule:
    bits = tuple(map(_bits, parts))
    first, second, third = (*bits, -1, -1)[:3]
    return Rule(category, severity, bits, first, second, third, reach, ordered, _bits(without) if without else 0)


_THEM: Final = "group|meant|slur|slur_ambiguous"
_ANYBODY: Final = "person|minor|you|they|group|slur"

RULES: Final = (
    _rule("hate", 3, "slur"),
    _rule("hate", 3, "hate_idea"),
    _rule("hate", 2, "slur_ambiguous", "you|they", reach=0.6),
    _rule("hate", 2, "slur_ambiguous", "dehumanising|negative|contempt|violent|exclude|die"),
    _rule("hate", 3, _THEM, "dehumanising"),
    _rule("hate", 2, _THEM, "be", "negative", ordered=True),
    _rule("hate", 2, "be", _THEM, "negative", reach=0.7, ordered=True),
    _rule("hate", 2, "negative", _THEM, reach=0.06, ordered=True),
    _rule("hate", 2, "group", "you", "be", "negative", ordered=True),
    _rule("hate", 3, "contempt", _THEM, reach=0.7, ordered=True),
    _rule("hate", 3, _THEM, "should", "violent|exclude|die|negative"),
    _rule("hate", 3, "should|will|all", "violent|exclude|die", _THEM, ordered=True),
    _rule("hate", 2, "request", "violent|exclude|die", _THEM, reach=1.5, ordered=True),
    _rule("hate", 2, _THEM, "ungood"),
    _rule("hate", 2, "ungood", _THEM, reach=0.7),
    _rule("hate", 2, "request|write", "hate_genre", reach=2, ordered=True),
    _rule("hate", 1, "hate_genre"),
    _rule("hate", 1, _THEM, "violent|exclude"),
    _rule("hate", 1, "slur_ambiguous"),
    _rule("violence", 3, "i", "will", "violent", "you|person|minor|they", ordered=True),
    _rule("violence", 3, "request", "violent", "person|minor|group|they", reach=1.5, ordered=True),
    _rule("violence", 3, "request", "make", "weapon", reach=1.5, ordered=True),
    _rule("violence", 3, "weapon", "material", "make", reach=2),
    _rule("violence", 2, "request", "weapon", "material|person|minor|crime", reach=2),
    _rule("violence", 2, "request|write|will", "crime", reach=2, ordered=True),
    _rule("violence", 2, "should", "violent|die", _ANYBODY),
    _rule("violence", 2, "you|person|they", "should", "die|violent", ordered=True),
    _rule("violence", 2, "praise", "crime|violent|villain", reach=1.5),
    _rule("violence", 2, "gore", "gore", reach=1.5),
    _rule("violence", 1, "violent", _ANYBODY),
    _rule("violence", 1, "crime"),
    _rule("violence", 1, "make", "weapon"),
    _rule("violence", 1, "gore"),
    _rule("self_harm", 3, "incite"),
    _rule("self_harm", 3, "request", "suicide|suicidal|starve", "means", reach=2),
    _rule("self_harm", 3, "request", "suicidal", reach=2, ordered=True),
    _rule("self_harm", 2, "suicidal"),
    _rule("self_harm", 2, "starve"),
    _rule("self_harm", 2, "i", "suicide"),
    _rule("self_harm", 2, "suicide", "means", reach=1.5),
    _rule("self_harm", 2, "request|write", "suicide", ordered=True),
    _rule("self_harm", 1, "suicide|means"),
    _rule("sexual", 3, "minor", "sexual|explicit|porn", reach=1.5),
    _rule("sexual", 3, "request|make|write|will", "sex_crime", reach=2),
    _rule("sexual", 2, "sex_crime"),
    _rule("sexual", 2, "explicit"),
    _rule("sexual", 2, "sexual", "sexual", reach=1.5),
    _rule("sexual", 2, "sexual", "sensual", "sensual", reach=2),
    _rule("sexual", 2, "request|write|make", "porn", reach=1.5, ordered=True),
    _rule("sexual", 1, "sexual|porn"),
)
#: Something of these is in every finding.
CORE: Final = _bits(
    "slur|slur_ambiguous|dehumanising|negative|contempt|positive|ungood|exclude|hate_idea|hate_genre|violent|die|crime"
    "|weapon|gore|praise|suicidal|suicide|means|incite|starve|explicit|sexual|porn|sex_crime"
)
#: And something of these, which everyday texts have less often. What is `meant` was named before as a group.
ANCHOR: Final = _bits(
    "group|group_adjective|slur|slur_ambiguous|hate_idea|hate_genre|violent|die|crime|weapon|gore|villain"
    "|suicidal|suicide|means|incite|starve|explicit|sexual|porn|sex_crime"
)
#: How much what stands beside it lowers a finding.
_CONTEXT: Final[Mapping[str, Sequence[tuple[int, int]]]] = {
    "hate": tuple((_bits(name), by) for name, by in (("wrong", 2), ("inform", 1), ("prevent", 1), ("refusal", 2))),
    "violence": tuple((_bits(name), by) for name, by in (
        ("wrong", 1), ("inform", 1), ("prevent", 2), ("fiction", 2), ("refusal", 2))),
    "self_harm": tuple((_bits(name), by) for name, by in (("inform", 1), ("prevent", 1), ("refusal", 2))),
    "sexual": tuple((_bits(name), by) for name, by in (("inform", 1), ("prevent", 2), ("refusal", 2))),
}  # fmt: skip
_LIST: Final = 12
_SAY: Final = BIT["say"]
_I: Final = BIT["i"]
_SLURS: Final = _bits("slur|slur_ambiguous")
_AROUND: Final = _bits("say|wrong|you|i|but|prevent|others")
_DOUBT: Final = _bits("you|negation|but|wrong|others")


class Found(NamedTuple):
    """What a rule found, in the folded text."""

    category: str
    severity: int
    words: tuple[Mark, ...]


def judge(sentence: Sentence) -> Iterator[Found]:
    """What the rules find in one sentence, with the context already counted."""
    mask = sentence.mask
    # What is said of groups needs one; most sentences name none.
    for rule in [rule for rule in RULES if mask & rule.first and mask & rule.second and mask & rule.third]:
        if mask & rule.without:
            continue
        words = _match(sentence, rule)
        if words is not None:
            severity = rule.severity - _lowered(sentence, rule, words)
            if severity > 0:
                yield Found(rule.category, severity, words)


def _lowered(sentence: Sentence, rule: Rule, words: tuple[Mark, ...]) -> int:
    mask = sentence.mask
    lowered = max((by for bits, by in _CONTEXT[rule.category] if mask & bits), default=0)
    if rule.category not in ("hate", "violence") or lowered >= 2:
        return lowered
    if mask & _SAY or sentence.quotes:
        lowered = max(lowered, _reported(sentence, words))
    if words[0].what & _SLURS and _reclaimed(sentence, words):
        lowered = 2
    return lowered


def _reported(sentence: Sentence, words: tuple[Mark, ...]) -> int:
    """What somebody else said, and the sentence says so."""
    start, end = min(word.start for word in words), max(word.end for word in words)
    for opens, closes in sentence.quotes:
        if opens <= start and end <= closes:
            outside = [mark for mark in sentence.marks if not opens <= mark.start < closes]
            return 2 if any(mark.what & _AROUND for mark in outside) else 0
    # Where the verb stands last, so does the word of saying.
    last = sentence.pack.object != "after"
    said = [
        mark for mark in sentence.marks if mark.what & _SAY and (mark.start < start or (last and mark.start >= end))
    ]
    if not said or any(mark.what & _I and 0 <= said[0].start - mark.end <= 12 for mark in sentence.marks):
        return 0
    return 2 if any(mark.what & _DOUBT and not start <= mark.start < end for mark in sentence.marks) else 1


def _reclaimed(sentence: Sentence, words: tuple[Mark, ...]) -> bool:
    """Whether people use the word about themselves: `my`, `us`, `proud to be a` stand right before it."""
    near = (mark for mark in sentence.marks if 0 <= words[0].start - mark.end <= 14)
    return any(mark.what & (_I | BIT["positive"]) for mark in near)


def _match(sentence: Sentence, rule: Rule) -> tuple[Mark, ...] | None:
    lists = [[mark for mark in sentence.marks if mark.what & part][:_LIST] for part in rule.parts]
    if len(lists) == 1:
        return (lists[0][0],)
    pack = sentence.pack
    reach = rule.reach * pack.reach
    ordered = rule.ordered and pack.object == "after"
    for first in lists[0]:
        words = [first]
        for others in lists[1:]:
            best = None
            for other in others:
                if other in words or (ordered and other.start < words[-1].end):
                    continue
                gap = max(other.start - first.end, first.start - other.end)
                if gap <= reach and (best is None or gap < best[0]):
                    best = gap, other
            if best is None:
                break
            words.append(best[1])
        else:
            return tuple(words)
    return None
