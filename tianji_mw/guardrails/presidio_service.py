"""Presidio over REST: `/analyze` of an analyzer and `/anonymize` of an anonymizer, two addresses that may be one.

What they answer is checked before it is used. Source: Presidio's OpenAPI description, "Analyzer" and "Anonymizer".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.errors import SetupError
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.presidio_findings import Finding, Question, read
from tianji_mw.guardrails.service import HttpService
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime


class _Endpoint(HttpService):
    """The HTTP client of the other services, with their deadlines and errors."""

    title: ClassVar[str] = "Presidio"
    needs: ClassVar[tuple[str, ...]] = ("api_base",)

    def login(self, key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def _read(self, response: Any) -> dict[str, JSON]:
        """The analyzer answers a list: here it is the member `findings`."""
        if response.status_code == 200:
            if response.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise self.malformed("is no JSON")
            if response.content.lstrip()[:1] == b"[":
                try:
                    return {"findings": orjson.loads(response.content)}
                except orjson.JSONDecodeError:
                    raise self.malformed("is no JSON") from None
        return super()._read(response)


class _Item(NamedTuple):
    """What the anonymizer put in: its place in the text that it made, and the entity that stood there."""

    start: int
    end: int
    entity: str


class Service:
    """One address of Presidio. `start` before use."""

    def __init__(self, api_base: str, what: str, *, timeout_s: float, api_key: Secret | None = None) -> None:
        # LiteLLM's rule for addresses without a scheme.
        base = api_base if "://" in api_base else f"http://{api_base}"
        self._endpoint = _Endpoint(api_base=base, api_key=api_key, timeout_s=timeout_s)
        self._what = what

    async def start(self, runtime: Runtime) -> None:
        """Open the client. Raises SetupError when the address is none."""
        try:
            await self._endpoint.start(runtime)
        except SetupError:
            raise SetupError(f"Presidio: {self._what}_api_base is no address; write it as http://host:port.") from None

    async def aclose(self) -> None:
        await self._endpoint.aclose()

    async def analyze(self, text: str, question: Question) -> list[Finding]:
        """What the analyzer finds. Raises GuardrailFailed."""
        body: dict[str, JSON] = {"text": text, "language": question.language}
        for name, value in (
            ("entities", question.entities),
            ("ad_hoc_recognizers", question.recognizers),
            ("allow_list", question.allow_list),
            ("correlation_id", question.correlation_id),
        ):
            if value:
                body[name] = list(value) if isinstance(value, tuple) else value
        found = (await self._endpoint.post("/analyze", body)).get("findings")
        if not isinstance(found, list):
            raise self._endpoint.malformed("is no list of findings")
        try:
            return [read(one, len(text)) for one in found]
        except ValueError as error:
            raise self._endpoint.malformed(str(error)) from None

    async def anonymize(self, text: str, findings: Sequence[Finding]) -> list[Span]:
        """What the anonymizer puts in the place of the findings. Raises GuardrailFailed."""
        results = [
            {"entity_type": one.entity, "start": one.start, "end": one.end, "score": one.score} for one in findings
        ]
        answer = await self._endpoint.post("/anonymize", {"text": text, "analyzer_results": results})
        made = answer.get("text")
        if not isinstance(made, str):
            raise self._endpoint.malformed("has no text")
        try:
            items = _items(answer.get("items"), made)
            places = _places(text, made, items, findings)
        except ValueError as error:
            raise self._endpoint.malformed(str(error)) from None
        return [
            Span(start, end, item.entity, made[item.start : item.end])
            for (start, end), item in zip(places, items, strict=True)
        ]


def _items(found: JSON, made: str) -> list[_Item]:
    """In order and apart from each other. Raises ValueError otherwise."""
    if not isinstance(found, list) or not found:
        raise ValueError("does not say what was replaced")
    items = []
    for one in found:
        start, end, entity = (one.get(name) if isinstance(one, dict) else None for name in _FIELDS)
        if type(start) is not int or type(end) is not int or not isinstance(entity, str):
            raise ValueError("holds something else than items")
        if not 0 <= start <= end <= len(made) or one.get("text", made[start:end]) != made[start:end]:
            raise ValueError("has an item at the wrong place")
        items.append(_Item(start, end, entity))
    items.sort()
    if any(one.end > other.start for one, other in pairwise(items)):
        raise ValueError("has items that overlap")
    return items


_FIELDS = ("start", "end", "entity_type")


def _places(text: str, made: str, items: Sequence[_Item], findings: Sequence[Finding]) -> list[tuple[int, int]]:
    """Where each item stood in the original text, which follows from what was left as it was between them.

    Raises ValueError when the text cannot have been made so, or when a finding is still in it.
    """
    ends = sorted({one.end for one in findings})
    # An item stands for one finding at least, and for several only as far as there are fewer items; anonymizers make
    # neighbours one when blanks alone are between them. Without these two, thousands of findings would take minutes.
    most = max(len(ends) - len(items) + 1, 0)
    firsts = sorted(one.start for one in findings)
    starts = {one.start for one in findings} | {len(text)}
    gaps = [made[one.end : other.start] for one, other in pairwise(items)]
    gaps.append(made[items[-1].end :])
    first = items[0].start
    # For each item the places where it may have begun, with its end and the place of the one before.
    steps: list[dict[int, tuple[int, int]]] = [{first: (0, 0)} if text.startswith(made[:first]) else {}]
    for gap in gaps:
        reached: dict[int, tuple[int, int]] = {}
        for begin in steps[-1]:
            near = bisect_left(ends, begin + 1)
            for end in ends[near : near + most]:
                after = end + len(gap)
                if after in starts and after not in reached and text.startswith(gap, end):
                    reached[after] = (begin, end)
                following = bisect_left(firsts, end)
                if following < len(firsts) and text[end : firsts[following]].strip():
                    break
        steps.append(reached)
    at, places = len(text), []
    for step in reversed(steps[1:]):
        if at not in step:
            raise ValueError("does not fit the text that was sent")
        begin, end = step[at]
        places.append((begin, end))
        at = begin
    places.reverse()
    for one in findings:
        before = bisect_right(places, (one.start, len(text))) - 1
        if before < 0 or one.end > places[before][1]:
            raise ValueError("leaves something in that was found")
    return places
