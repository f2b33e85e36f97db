"""Azure AI Content Safety, Prompt Shields: attacks in what users write, and in what tools bring back.

What users say goes out as `userPrompt`, results of tools as `documents`: an attack that hides in a web page or a mail
is as good as one that was typed. System and developer messages are instructions by nature and are not sent.

Source: Azure AI Content Safety REST reference 2024-09-01, "Shield prompt"; LiteLLM's `azure/prompt_shield`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import ClassVar, Final, NamedTuple

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.guardrails.azure_text_moderation import AzureContentSafety, pieces
from tianji_mw.guardrails.base import ALLOW, Said, Side, Verdict, block
from tianji_mw.guardrails.service import at_once

_MOST_DOCUMENTS: Final = 5
#: Who is not judged: the operator's instructions, and what the model said before.
_NOT_JUDGED: Final = frozenset({"system", "developer", "assistant"})
#: Who brings back what others wrote; `function` is OpenAI's older word.
_TOOLS: Final = frozenset({"tool", "function"})


class _Piece(NamedTuple):
    #: Which text it is a part of.
    at: int
    text: str


class AzurePromptShield(AzureContentSafety):
    """Blocks requests with a direct or an indirect attack.

    >>> AzurePromptShield(api_key="k", api_base="https://x.cognitiveservices.azure.com")
    """

    title: ClassVar[str] = "Azure Prompt Shield"
    sides: ClassVar[frozenset[Side]] = frozenset({"input"})

    mode: tuple[str, ...] = ("pre_call",)

    async def ask(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        prompts: list[_Piece] = []
        documents: list[_Piece] = []
        for at, one in enumerate(said):
            if one.role not in _NOT_JUDGED:
                kind = documents if one.role in _TOOLS else prompts
                kind += [_Piece(at, piece) for piece in pieces(one.text, self.most) if piece.strip()]
        calls = list(zip_longest(prompts, _batches(documents, self.most)))
        found = await at_once(partial(self._shield, prompt, batch or ()) for prompt, batch in calls)
        attacked: dict[int, str] = {}
        for one_call in found:
            attacked.update(one_call)
        return [_verdict(attacked[at]) if at in attacked else ALLOW for at in range(len(said))]

    async def _shield(self, prompt: _Piece | None, documents: Sequence[_Piece]) -> dict[int, str]:
        """The texts that hold an attack, and its kind."""
        body: dict[str, JSON] = {"documents": [one.text for one in documents]}
        if prompt is not None:
            body["userPrompt"] = prompt.text
        answer = await self.act("text:shieldPrompt", body)
        analyses = answer.get("documentsAnalysis") or []
        if not isinstance(analyses, list) or len(analyses) != len(documents):
            raise self.malformed(f"does not judge {len(documents)} documents")
        attacked = {
            one.at: "indirect_attack"
            for one, analysis in zip(documents, analyses, strict=True)
            if self._is_attack(analysis)
        }
        if prompt is not None and self._is_attack(answer.get("userPromptAnalysis")):
            attacked[prompt.at] = "user_prompt_attack"
        return attacked

    def _is_attack(self, analysis: JSON) -> bool:
        attack = analysis.get("attackDetected") if isinstance(analysis, dict) else None
        if not isinstance(attack, bool):
            raise self.malformed("does not say whether there is an attack")
        return attack


def _batches(documents: Iterable[_Piece], most: int) -> Iterator[list[_Piece]]:
    """The documents in their order, as many in one call as its limits allow."""
    batch: list[_Piece] = []
    size = 0
    for one in documents:
        if batch and (len(batch) == _MOST_DOCUMENTS or size + len(one.text) > most):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += len(one.text)
    if batch:
        yield batch


def _verdict(kind: str) -> Verdict:
    where = "the user prompt" if kind == "user_prompt_attack" else "a document"
    return block(
        kind,
        error="Violated Azure Prompt Shield guardrail policy",
        detection_message=f"Attack detected: {where}",
    )
