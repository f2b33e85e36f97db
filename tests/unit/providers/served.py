"""Stacks from config mappings for the tests of providers, closed when their test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tianji_mw.compose import compose
from tianji_mw.config import from_dict
from tianji_mw.testing import Driven, FakeLLM, drive

KEY = "sk-provider-key-123"
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "Hello you"}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip
EMBEDDING = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "model": "e",
    "usage": {},
}

Build = Callable[..., Any]


def config(llm: FakeLLM, model: str = "openai/gpt-4o-2024", name: str = "gpt-4o", **params: Any) -> dict[str, Any]:
    """One deployment at the fake upstream, asked once; a param that is None is left out."""
    base = {"model": model, "api_base": f"{llm.url}/v1", "api_key": KEY, **params}
    entry = {key: value for key, value in base.items() if value is not None}
    return {"model_list": [{"model_name": name, "litellm_params": entry}], "router_settings": {"num_retries": 0}}


@asynccontextmanager
async def stacks() -> AsyncIterator[Build]:
    """`build(mapping, env)` gives the app of a config; its clients are closed at the end of the block.

    `around` is a layer that is put around the whole.
    """
    built: list[Any] = []

    def build(mapping: Mapping[str, Any], env: Mapping[str, str] | None = None, around: Any = None) -> Any:
        app = compose(from_dict(mapping, env=env or {}), env=env or {}).app
        if around is not None:
            app = around(app)
        built.append(app)
        return app

    try:
        yield build
    finally:
        for app in built:
            if app.runtime is not None:
                await app.runtime.aclose()


class Asker:
    """Sends one request to a stack with one deployment."""

    def __init__(self, llm: FakeLLM, build: Build) -> None:
        self._llm = llm
        self._build = build

    async def __call__(self, body: Any, *, path: str = "/v1/chat/completions", **params: Any) -> Driven:
        return await drive(self._build(config(self._llm, **params)), body, path=path)


def error(driven: Driven) -> dict[str, Any]:
    """The error object of an answer."""
    found: dict[str, Any] = driven.json["error"]
    return found
