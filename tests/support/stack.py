"""Small stacks for tests: a gateway over a `FakeLLM`, layers that note what they see, requests and streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import orjson

from tianji_mw.call import Call
from tianji_mw.driver import LLMMiddleware
from tianji_mw.frames import Frame
from tianji_mw.gateway import Gateway
from tianji_mw.guardrails.base import ALLOW, Guardrail, Verdict, block
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.params import ParamRules
from tianji_mw.providers.anthropic import Anthropic
from tianji_mw.providers.base import Provider
from tianji_mw.providers.openai import OpenAI
from tianji_mw.redact import Secret
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.table import Deployments
from tianji_mw.taps import Batch, Head
from tianji_mw.upstream import Deadlines

KEY = "sk-upstream-secret-key"
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
STREAM: dict[str, Any] = {**CHAT, "stream": True}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello you"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
DONE = b"data: [DONE]\n\n"

#: The fixture `serve`.
Serve = Callable[[Any], Awaitable[Any]]


def deployment(url: str, *, provider: Provider | None = None, **fields: Any) -> Deployment:
    options: dict[str, Any] = {
        "id": "d1",
        "model_name": "gpt-4o",
        "model": "gpt-4o-2024",
        "provider": provider or OpenAI(api_base=f"{url}/v1", api_key=Secret(KEY)),
        "deadlines": Deadlines(),
        "rules": ParamRules(),
        **fields,
    }
    return Deployment(**options)


def gateway(
    url: str, *, provider: Provider | None = None, fields: dict[str, Any] | None = None, **options: Any
) -> Gateway:
    return Gateway(Deployments([deployment(url, provider=provider, **(fields or {}))]), **options)


def anthropic(url: str) -> Anthropic:
    return Anthropic(api_base=url, api_key=Secret(KEY))


def delta(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream."""
    part = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": {**part, **more}, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: %b\n\n" % orjson.dumps({**head, "choices": [choice]})


def stream_of(*texts: str) -> list[bytes]:
    """A whole chat stream, one event for each text."""
    return [delta(role="assistant"), *(delta(text) for text in texts), delta(finish="stop"), DONE]


class Probe(LLMMiddleware):
    """Notes everything that its hooks see."""

    phase: ClassVar[int] = 500

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.calls: list[Call] = []
        self.ends: list[Call] = []
        self.heads: list[int] = []
        self.batches: list[list[Frame]] = []
        self.lasts = 0

    async def on_request(self, call: Call) -> None:
        self.calls.append(call)

    async def on_start(self, call: Call, head: Head) -> None:
        self.heads.append(head.status)

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        self.batches.append(list(batch.frames))
        self.lasts += batch.last
        return batch.frames

    async def on_end(self, call: Call) -> None:
        self.ends.append(call)

    @property
    def call(self) -> Call:
        assert self.calls
        return self.calls[-1]


class Reader(Probe):
    """A probe that decodes each frame, as a guardrail or a ledger does."""

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        for frame in batch.frames:
            _ = frame.kind, frame.text
        return await super().on_frames(call, batch)


class Ends(LLMMiddleware):
    """A layer with `on_end` alone; `then` runs in it."""

    phase: ClassVar[int] = 300

    def __init__(self, app: Any, then: Callable[[Call], Any] | None = None, **options: Any) -> None:
        super().__init__(app, **options)
        self.ends: list[Call] = []
        self.outcomes: list[str | None] = []
        self._then = then

    async def on_end(self, call: Call) -> None:
        self.ends.append(call)
        self.outcomes.append(call.outcome)
        if self._then is not None:
            await self._then(call)


class NoCodename(Guardrail):
    """Blocks one word."""

    word: str = "bluebird"

    async def check(self, text: str, call: Call) -> Verdict:
        return block("codename") if self.word in text.lower() else ALLOW


def guarded(app: Any, **options: Any) -> Guardrails:
    return Guardrails(app, checks=[NoCodename()], **options)


def error_of(body: bytes) -> dict[str, Any]:
    """The error object in the last event of a chat stream."""
    last = [event for event in body.split(b"\n\n") if event][-1]
    found: dict[str, Any] = orjson.loads(last.removeprefix(b"data: "))["error"]
    return found
