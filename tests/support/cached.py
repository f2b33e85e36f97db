"""Cached stacks before a fake upstream: answers, streams and stacks that tests of the cache share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from tests.unit.providers.served import config
from tianji_mw.cache.base import CacheStore
from tianji_mw.cache.middleware import Cache
from tianji_mw.cache.rules import CacheRules
from tianji_mw.cache.semantic.layer import Semantic
from tianji_mw.compose import compose
from tianji_mw.config import from_dict
from tianji_mw.identity.base import Identity
from tianji_mw.identity.middleware import Authentication
from tianji_mw.testing import Driven, FakeLLM, Received, Reply, drive

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}


def ask(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **fields}


def answer(text: str = "Hi!", reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
    told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024"}
    return {**told, "choices": [choice], "usage": USAGE}


def chunk(delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> bytes:
    """An event of a chat stream."""
    choices = more.pop("choices", [{"index": 0, "delta": delta, "finish_reason": reason}])
    told = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024"}
    return b"data: " + orjson.dumps({**told, "choices": choices, **more}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM = (chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi"}), chunk({"content": "!"}))
END = chunk({}, "stop")
COUNTED = chunk({}, choices=[], usage=USAGE)


def stream(*parts: bytes, **options: Any) -> Reply:
    """A whole stream."""
    return Reply.events(*(parts or (*STREAM, END, DONE)), **options)


def counting(reply: Callable[[int, Received], Reply]) -> Callable[[Received], Reply]:
    """A default answer of a fake upstream that is told how many came before."""
    numbers = itertools.count()
    return lambda request: reply(next(numbers), request)


class Wall:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Keyed:
    """An identifier that takes the key of a request for its name: `team/alias`, or an alias alone."""

    async def identify(self, headers: Any) -> Identity | None:
        name = headers.get("authorization", "").removeprefix("Bearer ")
        team, _, alias = name.rpartition("/")
        return Identity(key_hash=f"hash-{name}", alias=alias, team=team) if name else None


class Cached:
    """A gateway behind a cache; each call is one HTTP request to the fake upstream, unless the cache answers it."""

    def __init__(
        self,
        llm: FakeLLM,
        *,
        store: CacheStore | None = None,
        keys: bool = False,
        semantic: Semantic | None = None,
        **rules: Any,
    ) -> None:
        self.llm = llm
        settings = from_dict(config(llm), env={})
        gateway = compose(settings, env={}).app
        self.wall = Wall()
        self.cache = Cache(gateway, store=store, rules=CacheRules(keyless=not keys, **rules), semantic=semantic)
        self.app: Any = Authentication(self.cache, identifier=Keyed()) if keys else self.cache

    async def __call__(self, body: Any, **options: Any) -> Driven:
        key = options.pop("key", None)
        if key:
            options["headers"] = {**options.get("headers", {}), "authorization": f"Bearer {key}"}
        return await drive(self.app, body, **options)

    async def aclose(self) -> None:
        runtime = self.app.runtime
        if runtime is not None:
            await runtime.aclose()
