"""An upstream that says what it was told, plain or as a stream; and what a client reads of such answers."""

from __future__ import annotations

from typing import Any

import orjson

from tests.support.stack import ANSWER, DONE
from tianji_mw.testing import Driven, Received, Reply


def echo(request: Received, *, step: int = 5) -> Reply:
    """The answer of a model that repeats the last message; on streams in pieces of `step` characters."""
    text = request.json["messages"][-1]["content"]
    if request.json.get("stream"):
        deltas: list[Any] = [{"content": text[at : at + step]} for at in range(0, len(text), step)]
        events = [event(part) for part in [{"role": "assistant", "content": ""}, *deltas]]
        return Reply.events(*events, event({}, "stop"), DONE)
    message = {"role": "assistant", "content": text}
    return Reply.json({**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % orjson.dumps({**ANSWER, "object": "chat.completion.chunk", "choices": [choice]})


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The JSON of a stream's events."""
    return [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


def said(driven: Driven) -> str:
    """The text that the client has, plain or from a stream; empty for an error."""
    if not driven.headers.get("content-type", "").startswith("text/event-stream"):
        return "".join(choice["message"]["content"] for choice in driven.json.get("choices", ()))
    choices = [choice for event in events_of(driven.body) for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
