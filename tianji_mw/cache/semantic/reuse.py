"""When the answer to one question may be given to another: near enough, and nothing that speaks against it."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from tianji_mw.cache.semantic._stems import opposed
from tianji_mw.cache.semantic.agreement import Signature, different, disagreement, same_words, signature
from tianji_mw.cache.semantic.conversation import Question


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a question says, as far as it has to agree; made once, kept beside its vector."""

    said: Signature
    answered: Signature | None = None
    before: Signature | None = None

    @classmethod
    def of(cls, question: Question, day: str = "") -> Meaning:
        """The meaning of a question that was asked on this day."""
        said = signature(question.said, day)
        if question.alone:
            return cls(said)
        return cls(said, signature(question.answered), signature(question.before))

    def encode(self) -> str:
        """As JSON text."""
        parts = (self.said, self.answered, self.before)
        return orjson.dumps([part.encode() if part is not None else None for part in parts]).decode()

    @classmethod
    def decode(cls, text: str) -> Meaning:
        """The meaning in this text. Raises ValueError for anything else."""
        try:
            said, answered, before = orjson.loads(text)
        except (orjson.JSONDecodeError, TypeError) as error:
            raise ValueError("no meaning") from error
        return cls(
            Signature.decode(said),
            Signature.decode(answered) if answered is not None else None,
            Signature.decode(before) if before is not None else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The least cosines, and whether words count as well.

    `threshold` holds for other words, `same_words` for the same ones in another order or spelling, and `follow_up` for
    a turn that depends on what was said before.
    """

    threshold: float = 0.84
    same_words: float = 0.70
    follow_up: float = 0.85
    lexical: bool = True

    @classmethod
    def at(cls, similarity: float, *, lexical: bool = True) -> Rule:
        """LiteLLM's `similarity_threshold`: one cosine for all."""
        return cls(threshold=similarity, same_words=similarity, follow_up=similarity, lexical=lexical)

    def refusal(self, asked: Meaning, cached: Meaning, similarity: float) -> str | None:
        """Why the cached answer is not for this question; None when it may be given."""
        if self.lexical and (reason := speaks_against(asked, cached)) is not None:
            return reason
        if asked.before is not None:
            least = self.follow_up
        else:
            least = self.same_words if same_words(asked.said, cached.said) else self.threshold
        return None if similarity >= least else "far"


def speaks_against(one: Meaning, other: Meaning) -> str | None:
    """What in the words speaks against one answer for both; None when nothing does. Symmetric."""
    if (reason := disagreement(one.said, other.said)) is not None:
        return reason
    if (one.before is None) != (other.before is None):
        return "context"
    if one.before is None or other.before is None or one.answered is None or other.answered is None:
        return None
    if not same_words(one.said, other.said):
        return "follow-up"
    if contradicts(one.answered, other.answered) or contradicts(one.before, other.before):
        return "context"
    if one.answered.negations % 2 != other.answered.negations % 2:
        return "context"
    mine, theirs = different(one.answered, other.answered)
    return "context" if any(opposed(a, b) for a in mine for b in theirs) else None


def contradicts(one: Signature, other: Signature) -> bool:
    """Whether each speaks of numbers, names or codes that the other does not have: one alone may say more."""
    return (
        bool(set(one.numbers) - set(other.numbers) and set(other.numbers) - set(one.numbers))
        or bool(one.names - other.stems and other.names - one.stems)
        or bool(one.codes - other.codes and other.codes - one.codes)
    )
