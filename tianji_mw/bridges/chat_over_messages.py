"""Chat Completions on an upstream that speaks Anthropic's Messages.

Only JSON to JSON; addresses, keys and headers are the provider's. What Anthropic has no word for is refused or, where
allowed, left out and noted. Source: OpenAI API reference, "Chat"; Anthropic API reference, "Messages".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import chat_over_messages_params as params
from tianji_mw.bridges import chat_over_messages_tools as tools
from tianji_mw.bridges import chat_over_messages_turns as turns
from tianji_mw.bridges import names, shape
from tianji_mw.bridges.base import Context
from tianji_mw.bridges.chat_and_messages import chat_usage, finish_reason
from tianji_mw.bridges.chat_over_messages_stream import INCLUDE_USAGE, ChatOverMessagesStream
from tianji_mw.errors import UpstreamMalformed

_MALFORMED: Final = "The provider's answer is not an Anthropic message: it has no list 'content'."


class ChatOverMessages:
    """The bridge. It keeps no state: what the answer needs from the request stands in `context.notes`.

    >>> context = Context(call_id="1", model="m", created=0)
    >>> ChatOverMessages().request({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, context)
    {'model': 'm', 'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}], 'max_tokens': 4096}
    """

    def request(self, body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
        params.refuse(body, context)
        out = {key: value for key, value in body.items() if key not in params.HANDLED}
        found = turns.split(body["messages"], context)
        # `system` beside the messages is Anthropic's own form; a client may use both.
        beside = body.get("system")
        ahead = [{"type": "text", "text": beside}] if isinstance(beside, str) and beside else shape.records(beside)
        if system := [*ahead, *found.system]:
            out["system"] = system
        out["messages"] = found.turns()
        params.apply(body, out, context)
        tools.apply(body, out, context)
        params.think(body, out, context)
        if shape.record(body.get("stream_options")).get("include_usage") is True:
            context.notes[INCLUDE_USAGE] = True
        return out

    def answer(self, body: JSON, context: Context) -> JSON:
        if not isinstance(body, dict) or not isinstance(body.get("content"), list):
            raise UpstreamMalformed(_MALFORMED)
        message, has_calls = _message(shape.records(body["content"]), context)
        native = body.get("stop_reason")
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(native, has_calls)}
        if "function_call" in message and choice["finish_reason"] == "tool_calls":
            choice["finish_reason"] = "function_call"
        if isinstance(native, str):
            choice["provider_specific_fields"] = {"native_finish_reason": native}
        answer: dict[str, JSON] = {
            "id": shape.string(body.get("id")) or f"chatcmpl-{context.call_id}",
            "object": "chat.completion",
            "created": context.created,
            "model": shape.string(body.get("model")) or context.model,
            "choices": [choice],
        }
        if isinstance(body.get("usage"), dict):
            answer["usage"] = chat_usage(body["usage"])
        return answer

    def stream(self, context: Context) -> ChatOverMessagesStream:
        return ChatOverMessagesStream(context)


def _message(blocks: list[dict[str, JSON]], context: Context) -> tuple[dict[str, JSON], bool]:
    """The assistant's message, and whether it calls tools.

    Blocks of tools that ran at the provider, and citations, have no place in a chat message: they are left out.
    """
    text, thinking, kept, calls = "", "", [], []
    formatted: str | None = None
    for block in blocks:
        match block.get("type"):
            case "text":
                text += shape.string(block.get("text"))
            case "thinking" | "redacted_thinking":
                thinking += shape.string(block.get("thinking"))
                kept.append(dict(block))
            case "tool_use" if block.get("name") == context.notes.get(tools.JSON_TOOL):
                formatted = shape.dumps(block.get("input") or {})
            case "tool_use":
                function = {
                    "name": names.restored(shape.string(block.get("name")), context),
                    "arguments": shape.dumps(block.get("input") or {}),
                }
                calls.append({"id": shape.string(block.get("id")), "type": "function", "function": function})
    # Whatever stands beside a formatted answer would break its format.
    content = formatted if formatted is not None else text
    message: dict[str, JSON] = {"role": "assistant", "content": content or ("" if not calls else None), "refusal": None}
    if thinking:
        message["reasoning_content"] = thinking
    if kept:
        message["thinking_blocks"] = kept
    if calls and context.notes.get(tools.LEGACY):
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return message, bool(calls)
