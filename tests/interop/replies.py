"""What the providers say in these tests: shapes from their API references, texts of our own."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from tianji_mw.testing import Reply

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
HEAD = {"id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG", "created": 1741570283, "model": "gpt-4.1-2025-04-14"}
USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
}
LIMITS = {"x-ratelimit-remaining-requests": "4999", "x-request-id": "req_upstream"}


def js(data: Any) -> bytes:
    return json.dumps(data, indent=1, ensure_ascii=False).encode()


def plain(data: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON answer, indented as OpenAI indents it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers={"content-type": "application/json", **LIMITS, **named}, parts=[js(data)])


def stream(*events: bytes, **options: Any) -> Reply:
    return Reply.events(*events, **options)


def tool_call(number: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def chat(content: str | None = "Guten Tag, wie geht's? 👋", calls: list[Any] | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else "stop"}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE, "service_tier": "default"}


def chunk(delta: dict[str, Any] | None, reason: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    data = {**HEAD, "object": "chat.completion.chunk", "service_tier": "default", "choices": choices, **more}
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chat_stream(*words: str, usage: bool = False) -> list[bytes]:
    events = [chunk({"role": "assistant", "content": "", "refusal": None}), *(chunk({"content": w}) for w in words)]
    events.append(chunk({}, "stop"))
    return [*events, *([chunk(None, usage=USAGE)] if usage else []), DONE]


def tool_stream() -> list[bytes]:
    """Two parallel calls, their arguments in pieces."""

    def part(index: int, arguments: str, **start: Any) -> bytes:
        function = {**({"name": start.pop("name")} if start else {}), "arguments": arguments}
        return chunk({"tool_calls": [{"index": index, **start, "function": function}]})

    return [
        chunk({"role": "assistant", "content": None}),
        part(0, "", id="call_1", type="function", name="weather"),
        part(0, '{"city":'),
        part(0, '"Ulm"}'),
        part(1, "", id="call_2", type="function", name="weather"),
        part(1, '{"city":"Bonn"}'),
        chunk({}, "tool_calls"),
        DONE,
    ]


def completion() -> dict[str, Any]:
    choice = {"text": " and so on", "index": 0, "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1741570283, "model": "gpt-4.1-2025-04-14"}
    return {**head, "choices": [choice], "usage": usage}


VECTOR = (0.25, -0.5, 1.0)


def embeddings(encoded: bool) -> dict[str, Any]:
    packed = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
    data = [{"object": "embedding", "index": 0, "embedding": packed if encoded else list(VECTOR)}]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    return {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}


def moderation() -> dict[str, Any]:
    names = ("harassment", "hate", "self-harm", "sexual", "violence", "illicit", "self-harm/intent")
    result = {
        "flagged": True,
        "categories": {name: name == "violence" for name in names},
        "category_scores": {name: 0.9 if name == "violence" else 1e-05 for name in names},
        "category_applied_input_types": {name: ["text"] for name in names},
    }
    return {"id": "modr-1", "model": "omni-moderation-latest", "results": [result]}


def response(text: str = "Once upon a time.", status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg_1", "status": status, "role": "assistant", "content": [part]}
    usage = {
        "input_tokens": 36,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 87,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 123,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1741476542,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": "gpt-4.1-2025-04-14",
        "output": [item] if status == "completed" else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if status == "completed" else None,
        "metadata": {},
    }


def response_stream(*words: str) -> list[bytes]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    text, part = "".join(words), {"type": "output_text", "text": "", "annotations": []}
    done = {**item, "status": "completed", "content": [{**part, "text": text}]}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": response("", "in_progress")}),
        ("response.in_progress", {"response": response("", "in_progress")}),
        ("response.output_item.added", {"output_index": 0, "item": item}),
        ("response.content_part.added", {**place, "part": part}),
        *(("response.output_text.delta", {**place, "delta": word}) for word in words),
        ("response.output_text.done", {**place, "text": text}),
        ("response.content_part.done", {**place, "part": {**part, "text": text}}),
        ("response.output_item.done", {"output_index": 0, "item": done}),
        ("response.completed", {"response": response(text)}),
    ]
    return [_named(name, {"type": name, **data, "sequence_number": i}) for i, (name, data) in enumerate(events)]


def message(*content: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    """Anthropic's plain answer."""
    usage = {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 6,
        "service_tier": "standard",
    }
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": list(content or ({"type": "text", "text": "Hi! My name is Claude."},)),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def tool_use(number: int, name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": given}


def message_stream(*words: str) -> list[bytes]:
    start = {**message(), "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": w}} for w in words),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 15},
        },
        {"type": "message_stop"},
    ]
    return [_named(event["type"], event) for event in events]


def openai_error(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic_error(message: str, kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011"}


def _named(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: ".encode() + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
