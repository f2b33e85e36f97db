"""A tiny model for the wrapped apps: it says the last message back, word by word. No framework, no gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

#: Aliases of the callers that the endpoints saw; None where there was none.
SEEN: list[str | None] = []
HEAD: dict[str, Any] = {"id": "chatcmpl-own", "created": 1735689600, "model": "own-1"}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": said(asked), "refusal": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}


def events(asked: dict[str, Any]) -> Iterator[bytes]:
    """The same as a stream."""
    words = said(asked).split(" ")
    for i, word in enumerate(words):
        yield _event({"content": word + (" " if i < len(words) - 1 else "")}, None)
    yield _event({}, "stop")
    yield b"data: [DONE]\n\n"


def said(asked: dict[str, Any]) -> str:
    """The last message's text, with `echo:` before it and without `_`: so it can say what nobody asked."""
    return f"echo: {asked['messages'][-1]['content'].replace('_', '')}"


def _event(delta: dict[str, Any], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return b"data: " + json.dumps({**HEAD, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
