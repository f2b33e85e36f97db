"""Answers with calls of tools as the three APIs write them: plain, streamed, cut anywhere; and rules about tools."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import httpx2
import openai
import orjson
from anthropic import Anthropic

from tests.support.stack import ANSWER, DONE, delta
from tianji_mw.apis import by_name
from tianji_mw.testing import Driven, Reply, drive

Call = tuple[str, str]


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def chat_answer(*calls: Call, content: str | None = None) -> dict[str, Any]:
    made = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": made}
    return {**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}


def message_answer(*calls: Call, content: str | None = None) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if content else []
    blocks += [
        {"type": "tool_use", "id": f"toolu_{i}", "name": name, "input": orjson.loads(arguments)}
        for i, (name, arguments) in enumerate(calls)
    ]
    usage = {"input_tokens": 1, "output_tokens": 2}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_sequence": None}
    return {**head, "content": blocks, "stop_reason": "tool_use", "usage": usage}


def response_answer(*calls: Call, content: str | None = None) -> dict[str, Any]:
    said = {"type": "output_text", "text": content, "annotations": []}
    output: list[dict[str, Any]] = []
    if content:
        message = {"id": "m0", "type": "message", "status": "completed", "role": "assistant", "content": [said]}
        output.append(message)
    output += [
        {
            "id": f"fc_{i}", "type": "function_call", "status": "completed", "call_id": f"call_{i}",
            "name": name, "arguments": arguments,
        }
        for i, (name, arguments) in enumerate(calls)
    ]  # fmt: skip
    head = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "gpt-4o"}
    rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    usage = {
        "input_tokens": 1, "output_tokens": 2, "total_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    return {**head, **rest, "output": output, "usage": usage}


ANSWERS = {"chat_completions": chat_answer, "messages": message_answer, "responses": response_answer}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat_completions": ("/v1/chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}),
    "messages": (
        "/v1/messages",
        {"model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]},
    ),
    "responses": ("/v1/responses", {"model": "gpt-4o", "input": "hi"}),
}
APIS = sorted(REQUESTS)


def cut(text: str, at: Iterable[int]) -> list[str]:
    places = [0, *sorted({place for place in at if 0 < place < len(text)}), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def stream(api: str, *calls: Call, content: str | None = None, cuts: Iterable[int] = ()) -> list[bytes]:
    """Events of a stream, the arguments of each call in pieces."""
    cuts = list(cuts)
    if api == "chat_completions":
        events = [delta(content, role="assistant")]
        for i, (name, arguments) in enumerate(calls):
            head = {"index": i, "id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": ""}}
            events.append(delta(tool_calls=[head]))
            events += [
                delta(tool_calls=[{"index": i, "function": {"arguments": piece}}]) for piece in cut(arguments, cuts)
            ]
        return [*events, delta(finish="tool_calls"), DONE]
    events = []
    for event in by_name(api).split(ANSWERS[api](*calls, content=content)):
        name, _, rest = event.partition(b"\ndata: ")
        data = orjson.loads(rest)
        pieces = [data]
        if data.get("delta", None) and data["type"] == "content_block_delta" and "partial_json" in data["delta"]:
            parts = cut(data["delta"]["partial_json"], cuts)
            pieces = [{**data, "delta": {**data["delta"], "partial_json": part}} for part in parts]
        elif data["type"] == "response.function_call_arguments.delta":
            pieces = [{**data, "delta": part} for part in cut(data["delta"], cuts)]
        events += [b"%b\ndata: %b\n\n" % (name, orjson.dumps(piece)) for piece in pieces]
    if api == "responses":
        return numbered(events)
    return events


def numbered(events: list[bytes]) -> list[bytes]:
    out = []
    for i, event in enumerate(events):
        name, _, rest = event.partition(b"\ndata: ")
        out.append(b"%b\ndata: %b\n\n" % (name, orjson.dumps({**orjson.loads(rest), "sequence_number": i})))
    return out


def spoken(api: str, data: dict[str, Any]) -> tuple[str, list[tuple[str, Any]], str]:
    """Text, calls and the reason of the end, of a plain answer."""
    if api == "chat_completions":
        choice = data["choices"][0]
        calls = [
            (call["function"]["name"], orjson.loads(call["function"]["arguments"]))
            for call in choice["message"].get("tool_calls") or ()
        ]
        return choice["message"]["content"] or "", calls, choice["finish_reason"]
    blocks = data["content" if api == "messages" else "output"]
    if api == "messages":
        text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
        called = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
        return text, called, data["stop_reason"]
    text = "\n".join(part["text"] for item in blocks if item["type"] == "message" for part in item["content"])
    called = [(item["name"], orjson.loads(item["arguments"])) for item in blocks if item["type"] == "function_call"]
    return text, called, data["status"]


def sdk_reads(api: str, body: bytes) -> dict[str, Any]:
    """What the official client makes of a stream."""
    http = httpx2.Client(
        transport=httpx2.MockTransport(
            lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
        )
    )
    found: Any
    if api == "messages":
        claude = Anthropic(api_key="k", http_client=http, max_retries=0)
        with claude.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}]) as events:
            found = events.get_final_message()
        return dict(found.to_dict(mode="json"))
    client = openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)
    if api == "responses":
        with client.responses.stream(model="m", input="x") as responses:
            snapshots = [event for event in responses if event.type != "error"]
            assert [event.sequence_number for event in snapshots] == list(range(len(snapshots)))
            found = responses.get_final_response()
    else:
        with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as chunks:
            found = chunks.get_final_completion()
    return dict(found.to_dict(mode="json"))


FINISHED = {"chat_completions": "stop", "messages": "end_turn", "responses": "completed"}
CALLED = {"chat_completions": "tool_calls", "messages": "tool_use", "responses": "completed"}


async def ask(app: Any, api: str, *, streamed: bool = False, key: str = "", **more: Any) -> Driven:
    path, body = REQUESTS[api]
    headers = {"authorization": f"Bearer {key}"} if key else None
    return await drive(app, {**body, **more, **({"stream": True} if streamed else {})}, path=path, headers=headers)


def reply(api: str, *calls: Call, streamed: bool = False, content: str | None = None) -> Reply:
    if streamed:
        return Reply.events(*stream(api, *calls, content=content, cuts=(3, 9)))
    return Reply.json(ANSWERS[api](*calls, content=content))


def rule(decision: str = "allow", **fields: Any) -> dict[str, Any]:
    return {"id": "r", "decision": decision, **fields}
