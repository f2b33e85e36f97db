"""OpenAI's moderation endpoint, and servers that speak it. All texts go in one call, and every result counts.

Source: OpenAI API reference, "Create moderation"; LiteLLM's `openai_moderation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Said, Side, Verdict, block
from tianji_mw.guardrails.service import HttpGuardrail

Score = Annotated[float, Field(ge=0, le=1)]


class OpenAIModeration(HttpGuardrail):
    """Blocks what the model flags. A category of `thresholds` is judged by its score from 0 to 1 alone; the others by
    the model's own word.

    >>> OpenAIModeration(api_key="sk-1", thresholds={"violence": 0.9})
    """

    title: ClassVar[str] = "OpenAI moderation"
    # The variables for OpenAI's address are not asked: they often name a server of models without this endpoint.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"api_key": ("OPENAI_API_KEY",)}
    aliases: ClassVar[Mapping[str, str]] = {"category_thresholds": "thresholds"}

    #: With the version in it, as OpenAI's clients want it.
    api_base: str = "https://api.openai.com/v1"
    model: str = Field(default="omni-moderation-latest", min_length=1)
    thresholds: dict[str, Score] = Field(default_factory=dict)

    def login(self, key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {key}"}

    async def ask(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        answer = await self.post("/moderations", {"model": self.model, "input": [one.text for one in said]})
        results = answer.get("results")
        if not isinstance(results, list) or len(results) != len(said):
            raise self.malformed(f"does not hold {len(said)} results")
        return [self._verdict(result) for result in results]

    def _verdict(self, result: JSON) -> Verdict:
        flagged, found, scores = self._parts(result)
        if missing := self.thresholds.keys() - scores.keys():
            # A threshold that is never compared would be a hole that nobody sees.
            raise self.malformed(f"has no score for the category '{min(missing)}', which has a threshold")
        violated = [
            name
            for name in dict.fromkeys((*found, *self.thresholds))
            if (scores[name] >= self.thresholds[name] if name in self.thresholds else found[name])
        ]
        if not violated and not (flagged and not any(found.values())):
            return ALLOW
        told = {
            "violated_categories": violated,
            "category_scores": {name: scores[name] for name in violated if name in scores},
            "thresholds": {name: self.thresholds[name] for name in violated if name in self.thresholds},
        }
        return block(",".join(violated) or "flagged", error="Violated OpenAI moderation policy", moderation_result=told)

    def _parts(self, result: JSON) -> tuple[bool, dict[str, bool], dict[str, float]]:
        """`flagged`, the categories and their scores. Newer models may have categories that older ones give as null."""
        if not isinstance(result, dict) or not isinstance(flagged := result.get("flagged"), bool):
            raise self.malformed("does not say whether a text is flagged")
        categories, scores = result.get("categories", {}), result.get("category_scores", {})
        if not isinstance(categories, dict) or not isinstance(scores, dict):
            raise self.malformed("does not hold the categories of a result")
        numbers = {
            name: float(score)
            for name, score in scores.items()
            if isinstance(score, int | float) and not isinstance(score, bool)
        }
        return flagged, {name: value is True for name, value in categories.items()}, numbers
