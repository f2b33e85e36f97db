"""An upstream in process, for demos and tests: no key, no network. It echoes, says a fixed text, waits, or fails.

It answers in OpenAI's format through the same `Transport` protocol as real HTTP, so nothing else knows that it is not
one. What it says is made from the request alone: equal requests give equal answers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson
from pydantic import Field, field_validator

from tianji_mw.apis.base import JSON
from tianji_mw.apis.chat_completions import ChatCompletions, dicts
from tianji_mw.errors import InvalidRequest, type_of_status
from tianji_mw.providers.base import Provider
from tianji_mw.upstream import Transport, UpstreamRequest, UpstreamResponse

if TYPE_CHECKING:
    from tianji_mw.routing.base import Deployment

_CREATED: Final = 1_700_000_000
_DIMENSIONS: Final = 8
_MAX_DIMENSIONS: Final = 4096
#: Texts that stand for an error, as in LiteLLM: status and code.
_ERRORS: Final[Mapping[str, tuple[int, str | None]]] = {
    "litellm.RateLimitError": (429, "rate_limit_exceeded"),
    "litellm.InternalServerError": (500, None),
    "litellm.ContextWindowExceededError": (400, "context_length_exceeded"),
}


class Mock(Provider):
    """`model: mock/echo`. The model's name is free; the fields say what it does.

    >>> Mock(says="hello", latency_s=0.1)                  # doctest: +SKIP
    """

    name: str = "mock"
    #: What to say; empty echoes the last user message. `litellm.RateLimitError` and its like are errors.
    says: str = ""
    #: Pieces of a stream, one event each; empty cuts the text after each word.
    script: tuple[str, ...] = ()
    #: Seconds before the answer, and before each event of a stream.
    latency_s: float = Field(default=0.0, ge=0, le=600)
    chunk_latency_s: float = Field(default=0.0, ge=0, le=60)
    #: Answer with this HTTP status and OpenAI's error body.
    error_status: int = Field(default=0, ge=0, le=599)

    @field_validator("error_status")
    @classmethod
    def _an_error(cls, value: int) -> int:
        if 0 < value < 400:
            raise ValueError("must be a status from 400 to 599, or 0 for none")
        return value

    @property
    def speaks(self) -> frozenset[str]:
        return frozenset({"chat_completions", "embeddings", "moderations", "rerank"})

    @property
    def base(self) -> str:
        return "mock://mock"

    def transport(self) -> Transport:
        return MockTransport(self)


def mocked(deployment: Deployment, said: JSON) -> Deployment:
    """The deployment with a mock in the place of its provider, for a request with `mock_response`."""
    if not isinstance(said, str):
        raise InvalidRequest("'mock_response' must be text.", param="mock_response")
    return replace(deployment, provider=Mock(says=said))


class MockTransport:
    """The mock's side of the wire."""

    __slots__ = ("_mock",)

    def __init__(self, mock: Mock) -> None:
        self._mock = mock

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        mock = self._mock
        if mock.latency_s:
            await asyncio.sleep(mock.latency_s)
        status, code = _ERRORS.get(mock.says, (mock.error_status, None))
        if status:
            text = "The mock provider was told to fail."
            error = {"message": text, "type": type_of_status(status), "param": None, "code": code}
            return MockResponse([orjson.dumps({"error": error})], status=status)
        body: dict[str, JSON] = orjson.loads(request.body) if isinstance(request.body, bytes) else {}
        kind = request.url.rsplit("/", 1)[-1]
        if kind == "completions":
            answer = chat(body, mock.says, mock.script)
            if body.get("stream") is True:
                return MockResponse(_events(answer, body, mock.script), sse=True, pause_s=mock.chunk_latency_s)
        elif kind == "embeddings":
            answer = _embeddings(body)
        elif kind == "moderations":
            answer = {"id": "modr-mock", "model": body.get("model", "mock"), "results": _verdicts(body.get("input"))}
        else:
            answer = _rerank(body)
        return MockResponse([orjson.dumps(answer)])

    async def aclose(self) -> None:
        return None


class MockResponse:
    """A scripted answer: each part is one chunk."""

    __slots__ = ("_parts", "_pause_s", "headers", "status")

    def __init__(self, parts: Sequence[bytes], *, status: int = 200, sse: bool = False, pause_s: float = 0.0) -> None:
        self._parts = list(reversed(parts))
        self._pause_s = pause_s
        self.status = status
        kind = b"text/event-stream" if sse else b"application/json"
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", kind)]

    async def chunk(self) -> bytes:
        if self._pause_s and self._parts:
            await asyncio.sleep(self._pause_s)
        return self._parts.pop() if self._parts else b""

    async def read(self, limit: int) -> bytes:
        parts = []
        while part := await self.chunk():
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self._parts.clear()


def chat(body: Mapping[str, JSON], text: str = "", script: Sequence[str] = ()) -> dict[str, JSON]:
    """A whole chat completion for this request."""
    said = text or "".join(script) or _last_user(body)
    message: dict[str, JSON] = {"role": "assistant", "content": said}
    reason = "stop"
    if name := _forced_tool(body):
        call = {"id": "call_mock", "type": "function", "function": {"name": name, "arguments": "{}"}}
        message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    asked = sum(_words(m.get("content")) for m in body.get("messages") or () if isinstance(m, dict))
    answered = len(said.split())
    return {
        "id": "chatcmpl-mock-" + _digest(body)[:12],
        "object": "chat.completion",
        "created": _CREATED,
        "model": body.get("model", "mock"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
    }


def _events(answer: dict[str, JSON], body: Mapping[str, JSON], script: Sequence[str]) -> list[bytes]:
    """The stream form: one event per piece, then the end, usage if asked for, `[DONE]`."""
    content = answer["choices"][0]["message"]["content"]
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": _CREATED, "model": answer["model"]}
    whole = dict(answer)
    options = body.get("stream_options")
    if not (isinstance(options, dict) and options.get("include_usage")):
        del whole["usage"]
    rest = ChatCompletions().split(whole)
    if not content:
        return list(rest)
    pieces = list(script) or [word + " " for word in content.split(" ")[:-1]] + [content.split(" ")[-1]]
    deltas: list[dict[str, JSON]] = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
    frames = [
        b"data: %b\n\n" % orjson.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        for delta in deltas
    ]
    return [*frames, *rest[1:]]


def _last_user(body: Mapping[str, JSON]) -> str:
    for message in reversed(body.get("messages") or ()):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            if isinstance(content, list):
                return "".join(
                    str(p.get("text", "")) for p in content if isinstance(p, dict) and p.get("type") == "text"
                )
    return "Hello from the mock provider."


def _forced_tool(body: Mapping[str, JSON]) -> str:
    """The function a request insists on; the mock calls it without arguments."""
    choice = body.get("tool_choice")
    if choice == "required":
        functions = [tool.get("function") for tool in dicts(body.get("tools"))]
        return next((f["name"] for f in dicts(functions) if isinstance(f.get("name"), str)), "")
    named = choice.get("function") if isinstance(choice, dict) else None
    return str(named.get("name", "")) if isinstance(named, dict) else ""


def _embeddings(body: Mapping[str, JSON]) -> dict[str, JSON]:
    given = body.get("input", "")
    items = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    asked = body.get("dimensions")
    size = min(asked, _MAX_DIMENSIONS) if type(asked) is int and asked > 0 else _DIMENSIONS
    data = []
    for i, item in enumerate(items):
        digest = hashlib.shake_128(orjson.dumps(item)).digest(size * 2)
        vector = [(digest[2 * k] * 256 + digest[2 * k + 1]) / 32768 - 1 for k in range(size)]
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        value: JSON = packed if body.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": i, "embedding": value})
    tokens = sum(_words(item) for item in items)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.get("model", "mock"), "usage": usage}


def _verdicts(given: JSON) -> list[JSON]:
    items = given if isinstance(given, list) else [given]
    categories = ("harassment", "hate", "self-harm", "sexual", "violence")
    return [
        {
            "flagged": False,
            "categories": dict.fromkeys(categories, False),
            "category_scores": dict.fromkeys(categories, 0.0),
        }
        for _ in items
    ]


def _rerank(body: Mapping[str, JSON]) -> dict[str, JSON]:
    """Documents by the share of the query's words they hold."""
    wanted = set(str(body.get("query", "")).lower().split())
    scored = []
    for i, document in enumerate(body.get("documents") or ()):
        text = document.get("text", "") if isinstance(document, dict) else str(document)
        scored.append({"index": i, "relevance_score": len(wanted & set(text.lower().split())) / max(1, len(wanted))})
    scored.sort(key=lambda item: (-item["relevance_score"], item["index"]))
    return {"id": "rerank-mock", "results": scored[: body.get("top_n") or len(scored)], "meta": {}}


def _words(content: JSON) -> int:
    return len(content.split()) if isinstance(content, str) else len(orjson.dumps(content)) // 4 if content else 0


def _digest(body: Mapping[str, JSON]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
