"""`prompt_injection`: attacks in what users write, and in what tools bring back, without any service.

Rules over words in 20 languages, a small linear model and the likeness to known attacks (`injection/`) look for them.
System and developer messages are instructions by nature, and what the model said before is its own: neither is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from pydantic import Field, PrivateAttr, model_validator

from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Said, Side, Verdict, block
from tianji_mw.guardrails.injection.detector import THRESHOLD, Detector
from tianji_mw.guardrails.scanner import Scanner
from tianji_mw.runtime import Runtime

#: Who is not judged.
_TRUSTED: Final = frozenset({"system", "developer", "assistant"})
#: Who brings back what others wrote; `function` is OpenAI's older word.
_TOOLS: Final = frozenset({"tool", "function"})
#: What LiteLLM can and this cannot; and what belongs to that.
_UNSUPPORTED: Final = ("llm_api_check", "vector_db_check", "reject_as_response")
_UNUSED: Final = (*_UNSUPPORTED, "llm_api_name", "llm_api_system_prompt", "llm_api_fail_call_string")
#: As LiteLLM says it.
_REJECTED: Final = "Rejected message. This is a prompt injection attack."


class PromptInjection(Guardrail):
    """Blocks prompt injections and jailbreaks, and names the technique: `override`, `extraction`, `jailbreak`,
    `delimiter`, `indirect`, `exfiltration`, `obfuscation` or `other`.

    >>> PromptInjection(threshold=0.7)
    """

    sides: ClassVar[frozenset[Side]] = frozenset({"input"})
    aliases: ClassVar[Mapping[str, str]] = {"heuristics_check": "heuristics", "similarity_check": "similarity"}

    mode: tuple[str, ...] = ("pre_call",)
    #: Look for words and rules, weighed by the model.
    heuristics: bool = True
    #: Look for sentences that are nearly those of known attacks.
    similarity: bool = True
    #: Judge what tools bring back, too.
    documents: bool = True
    #: Score from 0 to 1 above which a text is an attack. Raise it to block less.
    threshold: float = Field(default=THRESHOLD, gt=0, lt=1)

    _own: tuple[Detector, Scanner] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _of_litellm(cls, given: Any) -> Any:
        """Its names for ours; keys of it that would have no effect stop the start."""
        if not isinstance(given, dict):
            return given
        for name in _UNSUPPORTED:
            if given.get(name):
                raise ValueError(f"{name} is not supported; take it out")
        return {cls.aliases.get(name, name): value for name, value in given.items() if name not in _UNUSED}

    @model_validator(mode="after")
    def _looks_for_something(self) -> PromptInjection:
        if not (self.heuristics or self.similarity):
            raise ValueError("heuristics and similarity are both off: nothing would be looked for")
        return self

    async def start(self, runtime: Runtime) -> None:
        self._own = await Detector.of(runtime), await Scanner.of(runtime)

    async def aclose(self) -> None:
        self._own = None

    async def check(self, text: str, call: Call) -> Verdict:
        return self._verdict(Said(text), call)

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        return [self._verdict(one, call) for one in said]

    def _verdict(self, said: Said, call: Call) -> Verdict:
        if self._own is None:
            raise GuardrailFailed("prompt_injection was not started")
        document = said.role in _TOOLS
        if said.role in _TRUSTED or (document and not self.documents):
            return ALLOW
        detector, scanner = self._own
        found = detector.find(
            said.text, scanner, call, heuristics=self.heuristics, similarity=self.similarity, document=document
        )
        if found.score <= self.threshold:
            return ALLOW
        where = "document" if document else "user"
        return block("prompt_injection", error=_REJECTED, technique=detector.category(found), found_in=where)
