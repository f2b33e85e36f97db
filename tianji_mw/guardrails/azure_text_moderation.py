"""Azure AI Content Safety, text moderation: severities of four categories, and blocklists.

Texts of more than 10,000 code points are cut at blanks and scanned in pieces; the worst piece counts.

Source: Azure AI Content Safety REST reference 2024-09-01, "Text operations: analyze text"; LiteLLM's
`azure/text_moderations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

from pydantic import Field

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Said, Side, Verdict, block
from tianji_mw.guardrails.service import HttpGuardrail, at_once

Category = Literal["Hate", "SelfHarm", "Sexual", "Violence"]
#: 0 blocks everything, which is allowed: it shows that the guardrail is in place.
Severity = Annotated[int, Field(ge=0, le=7)]

_DEFAULT: Final = 2


class AzureContentSafety(HttpGuardrail):
    """What the guardrails of Azure AI Content Safety share: address, version, key and limit. Abstract, so no plugin."""

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("AZURE_CONTENT_SAFETY_API_KEY", "AZURE_CONTENT_SAFETY_KEY", "CONTENT_SAFETY_KEY"),
        "api_base": ("AZURE_CONTENT_SAFETY_API_BASE", "AZURE_CONTENT_SAFETY_ENDPOINT", "CONTENT_SAFETY_ENDPOINT"),
    }
    aliases: ClassVar[Mapping[str, str]] = {"endpoint": "api_base", "key": "api_key"}
    #: Unicode code points that the service reads in one text, or in all documents of one call.
    most: ClassVar[int] = 10_000

    api_version: str = Field(default="2024-09-01", pattern=r"^[0-9A-Za-z.-]+$")

    def login(self, key: str) -> Mapping[str, str]:
        return {"ocp-apim-subscription-key": key}

    async def act(self, action: str, body: JSON) -> dict[str, JSON]:
        """What `action`, such as `text:analyze`, answers."""
        return await self.post(f"/contentsafety/{action}?api-version={self.api_version}", body)


class _Found(NamedTuple):
    severities: Mapping[str, int]
    blocklists: Sequence[str]


class AzureTextModeration(AzureContentSafety):
    """Blocks a text whose severity reaches the threshold of its category, or that a blocklist matches.

    >>> AzureTextModeration(api_key="k", api_base="https://x.cognitiveservices.azure.com", severity_threshold=4)
    """

    title: ClassVar[str] = "Azure text moderation"
    aliases: ClassVar[Mapping[str, str]] = {
        **AzureContentSafety.aliases,
        "threshold": "severity_threshold", "thresholds": "severity_threshold_by_category",
        "blocklistNames": "blocklist_names", "haltOnBlocklistHit": "halt_on_blocklist_hit",
        "outputType": "output_type",
    }  # fmt: skip

    #: Of all categories; 2 without one.
    severity_threshold: Severity | None = None
    #: Goes before the common one.
    severity_threshold_by_category: dict[Category, Severity] = Field(default_factory=dict)
    categories: tuple[Category, ...] = Field(default=("Hate", "SelfHarm", "Sexual", "Violence"), min_length=1)
    blocklist_names: tuple[str, ...] = ()
    #: Leave the categories out once a blocklist has matched.
    halt_on_blocklist_hit: bool = False
    #: Severities 0, 2, 4 and 6, or 0 to 7.
    output_type: Literal["FourSeverityLevels", "EightSeverityLevels"] = "FourSeverityLevels"

    async def ask(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        cut = [(at, piece) for at, one in enumerate(said) for piece in pieces(one.text, self.most) if piece.strip()]
        found = await at_once(partial(self._analyze, piece) for _, piece in cut)
        of_text: list[list[_Found]] = [[] for _ in said]
        for (at, _), one in zip(cut, found, strict=True):
            of_text[at].append(one)
        return [self._verdict(parts) for parts in of_text]

    async def _analyze(self, text: str) -> _Found:
        body = {
            "text": text,
            "categories": list(self.categories),
            "blocklistNames": list(self.blocklist_names),
            "haltOnBlocklistHit": self.halt_on_blocklist_hit,
            "outputType": self.output_type,
        }
        answer = await self.act("text:analyze", body)
        blocklists = self._blocklists(answer.get("blocklistsMatch"))
        severities = self._severities(answer.get("categoriesAnalysis"))
        # After a hit the service may have left them out.
        if not blocklists and (missing := [name for name in self.categories if name not in severities]):
            raise self.malformed(f"has no severity for the category '{missing[0]}'")
        return _Found(severities, blocklists)

    def _blocklists(self, matches: JSON) -> list[str]:
        """Names of the lists that matched. The matched words are in the answer too, and stay there."""
        if matches is None:
            return []
        if not isinstance(matches, list) or not all(isinstance(one, dict) for one in matches):
            raise self.malformed("does not hold the matches of blocklists as a list")
        return [str(one.get("blocklistName", "")) for one in matches]

    def _severities(self, analysis: JSON) -> dict[str, int]:
        if not isinstance(analysis, list | None) or not all(isinstance(one, dict) for one in analysis or ()):
            raise self.malformed("does not hold the categories as a list")
        return {
            str(one.get("category")): one["severity"]
            for one in analysis or ()
            if isinstance(one.get("severity"), int) and not isinstance(one["severity"], bool)
        }

    def threshold_of(self, category: str) -> int:
        """The severity from which a category blocks."""
        for name, threshold in self.severity_threshold_by_category.items():
            if name == category:
                return threshold
        return _DEFAULT if self.severity_threshold is None else self.severity_threshold

    def _verdict(self, parts: Sequence[_Found]) -> Verdict:
        worst = {
            name: max(part.severities.get(name, -1) for part in parts)
            for name in dict.fromkeys(name for part in parts for name in part.severities)
        }
        over = {name: severity for name, severity in worst.items() if severity >= self.threshold_of(name)}
        lists = list(dict.fromkeys(name for part in parts for name in part.blocklists))
        if not over and not lists:
            return ALLOW
        return block(
            ",".join([*over, *(["blocklist"] if lists else [])]),
            error="Violated Azure Text Moderation guardrail policy",
            severities=over,
            thresholds={name: self.threshold_of(name) for name in over},
            blocklists=lists,
        )


def pieces(text: str, most: int) -> list[str]:
    """`text` in pieces of at most `most` characters, cut after blanks where there are any; together they are `text`."""
    found, start = [], 0
    while len(text) - start > most:
        end = start + most
        start_of_next = next((at for at in range(end, start, -1) if text[at - 1].isspace()), end)
        found.append(text[start:start_of_next])
        start = start_of_next
    return [*found, text[start:]]
