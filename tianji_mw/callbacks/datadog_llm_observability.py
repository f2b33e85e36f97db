"""Datadog LLM Observability: every call as a span, with messages, tokens and cost; attempts are its children.

Source: Datadog's LLM Observability HTTP API reference (`POST /api/intake/llm-obs/v1/trace/spans`). Its tracer uses
another, private route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw.callbacks._groups import Delivery, Item, Limits, built, groups, joined
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.datadog_shared import DatadogCallback, tags_of
from tianji_mw.callbacks.datadog_spans import Shape, spans_of
from tianji_mw.callbacks.record import content

_PATH: Final = "/api/intake/llm-obs/v1/trace/spans"
#: How an agent passes a request on to a host of Datadog's.
_PROXY: Final = "/evp_proxy/v2"
_SPAN_BYTES: Final = 1_000_000
_LIMITS: Final = Limits(1000, 4_900_000)
#: Older spans are refused by the service.
_TOO_OLD_S: Final = 24 * 3600.0


class DatadogLLMObservability(DatadogCallback):
    """Sends calls to Datadog's LLM Observability.

    >>> DatadogLLMObservability(api_key="...", site="datadoghq.eu", ml_app="gateway")
    """

    title: ClassVar[str] = "Datadog LLM Observability"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **DatadogCallback.env_fields,
        "agent_port": ("LITELLM_DD_LLM_OBS_PORT",),
        "ml_app": ("DD_LLMOBS_ML_APP",),
    }

    agent_port: int = Field(default=8126, ge=1, le=65535)
    #: The application that the spans belong to; the service when empty.
    ml_app: str = ""

    #: Whether the agent takes spans through its proxy alone.
    _proxied: bool = PrivateAttr(default=False)

    async def write(self, batch: Sequence[Record]) -> None:
        items, refused = await built(batch, self._spans, _LIMITS)
        delivery = Delivery(self.title, refused)
        oldest = self._wall() - _TOO_OLD_S if self._wall is not None else 0.0
        if old := [item.record for item in items if content.times(item.record)[0] < oldest]:
            text = f"{self.title}: {len(old)} records are older than the 24 hours that it takes"
            delivery.missed(old, NotDelivered(text, retry=False))
            items = [item for item in items if content.times(item.record)[0] >= oldest]
        await delivery.send(groups(items, _LIMITS), self._send)
        delivery.done()

    async def _send(self, group: list[Item]) -> None:
        attributes: dict[str, Any] = {"ml_app": self.ml_app or self.service, "tags": self.own_tags()}
        sessions = {content.session_id(item.record) for item in group}
        if len(sessions) == 1 and (session := sessions.pop()) is not None:
            attributes["session_id"] = session
        # Its end without the brace, into which the spans go.
        head = orjson.dumps({"data": {"type": "span", "attributes": attributes}})[:-3]
        body = b'%b,"spans":[%b]}}}' % (head, joined(group))
        await self._offer(body)

    async def _offer(self, body: bytes) -> None:
        base = self.base("api")
        if not self._proxied:
            try:
                await self.post(base + _PATH, body, self.login())
            except _NoSuchPath:
                if not self.agent_host:
                    raise
            else:
                return
        # Agents have a path for what they pass on, and none for each of Datadog's APIs.
        await self.post(base + _PROXY + _PATH, body, {"x-datadog-evp-subdomain": "api"})
        self._proxied = True

    def failure(self, response: Any) -> NotDelivered:
        problem = super().failure(response)
        return _NoSuchPath(problem.message) if response.status_code == 404 else problem

    def _spans(self, record: Record) -> list[bytes]:
        tags = [*self.own_tags(), *tags_of(record)]
        for shape in (Shape.WHOLE, Shape.CUT, Shape.BARE):
            spans = [orjson.dumps(span) for span in spans_of(record, tags, shape)]
            if all(len(span) <= _SPAN_BYTES for span in spans):
                return spans
        raise ValueError("a record is too large even without its content")


class _NoSuchPath(NotDelivered):
    """The server has no such path."""
