"""Anthropic's Messages on an upstream that speaks Chat Completions.

Only JSON to JSON. What chat has no field for and Anthropic alone understands is refused or left out and noted; what
neither side knows goes on. Source: Anthropic API reference, "Messages"; OpenAI API reference, "Chat".
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import messages_over_chat_turns as turns
from tianji_mw.bridges import names, shape
from tianji_mw.bridges.base import Context, unsupported
from tianji_mw.bridges.chat_and_messages import messages_usage, stop_reason
from tianji_mw.bridges.messages_over_chat_stream import MessagesOverChatStream, client_id
from tianji_mw.errors import UnsupportedParams, UpstreamMalformed

_MALFORMED: Final = "The provider's answer is not a chat completion: it has no choice with a message."
_TIERS: Final[Mapping[str, str]] = {"auto": "auto", "standard_only": "default"}
#: Fields without which the answer is still an answer: caching, sampling hints, bookkeeping at Anthropic.
_HINTS: Final = (
    "top_k", "cache_control", "context_management", "inference_geo", "speed", "diagnostics", "user_profile_id",
    "workspace_id",
)  # fmt: skip
#: Fields that ask Anthropic to do something nobody else does.
_REFUSED: Final = ("container", "mcp_servers")
_HANDLED: Final = frozenset(_HINTS) | frozenset(_REFUSED) | frozenset(
    {
        "messages", "system", "tools", "tool_choice", "stop_sequences", "thinking", "metadata", "service_tier",
        "output_config", "output_format", "stream",
    }
)  # fmt: skip
#: OpenAI's limit on `user`.
_USER_LIMIT: Final = 64


class MessagesOverChat:
    """The bridge. It keeps no state: what the answer needs from the request stands in `context.notes`.

    >>> context = Context(call_id="1", model="m", created=0)
    >>> MessagesOverChat().request({"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}, context)
    {'max_tokens': 9, 'messages': [{'role': 'user', 'content': 'Hi'}]}
    """

    def request(self, body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
        for name in _REFUSED:
            if body.get(name):
                error = UnsupportedParams(f"This provider has no parameter '{name}'.", param=name)
                unsupported(name, context, error)
        context.dropped.extend(name for name in _HINTS if body.get(name) is not None)
        out = {key: value for key, value in body.items() if key not in _HANDLED}
        out["messages"] = turns.messages(body, context)
        out |= turns.tools(body, context)
        if stops := body.get("stop_sequences"):
            out["stop"] = stops
        if user := shape.string(shape.record(body.get("metadata")).get("user_id")):
            out["user"] = user if len(user) <= _USER_LIMIT else sha256(user.encode("utf-8", "replace")).hexdigest()
        tier = body.get("service_tier")
        if isinstance(tier, str):
            out["service_tier"] = _TIERS.get(tier, tier)
        out |= _thinking(body) | _format(body)
        if isinstance(body.get("stream"), bool):
            out["stream"] = body["stream"]
        if body.get("stream") is True:
            # The closing events of the client's stream carry usage, so the upstream must always tell it.
            out["stream_options"] = {**shape.record(body.get("stream_options")), "include_usage": True}
        return out

    def answer(self, body: JSON, context: Context) -> JSON:
        choices = shape.records(shape.record(body).get("choices"))
        if not choices or not isinstance(choices[0].get("message"), dict):
            raise UpstreamMalformed(_MALFORMED)
        message = choices[0]["message"]
        blocks = _blocks(message, context)
        has_calls = any(block["type"] == "tool_use" for block in blocks)
        reason = stop_reason(choices[0].get("finish_reason"), has_calls)
        refused = bool(shape.string(message.get("refusal"))) and reason == "end_turn"
        return {
            "id": client_id(body.get("id"), context),
            "type": "message",
            "role": "assistant",
            "model": shape.string(body.get("model")) or context.model,
            "content": blocks,
            "stop_reason": "refusal" if refused else reason,
            "stop_sequence": None,
            "usage": messages_usage(shape.record(body.get("usage"))),
        }

    def stream(self, context: Context) -> MessagesOverChatStream:
        return MessagesOverChatStream(context)


def _blocks(message: dict[str, JSON], context: Context) -> list[dict[str, JSON]]:
    """The content of an answer: thoughts, then text, then tool calls."""
    kept = shape.records(message.get("thinking_blocks"))
    reasoning = shape.string(message.get("reasoning_content")) or shape.string(message.get("reasoning"))
    blocks = [dict(block) for block in kept if block.get("type") == "redacted_thinking"]
    blocks += [{"thinking": "", "signature": "", **block} for block in kept if block.get("type") == "thinking"]
    if not blocks and reasoning:
        blocks = [{"type": "thinking", "thinking": reasoning, "signature": ""}]
    text = "".join(shape.texts(message.get("content"))) + shape.string(message.get("refusal"))
    if text:
        blocks.append({"type": "text", "text": text})
    calls = shape.records(message.get("tool_calls"))
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [{"function": message["function_call"]}]
    for j, call in enumerate(calls):
        function = shape.record(call.get("function"))
        block = {
            "type": "tool_use",
            "id": names.client_call_id(shape.string(call.get("id")), j, context),
            "name": names.restored(shape.string(function.get("name")), context),
            "input": shape.arguments(function.get("arguments")),
        }
        blocks.append(block)
    return blocks


def _thinking(body: Mapping[str, JSON]) -> dict[str, JSON]:
    """`reasoning_effort` from Anthropic's thinking budget or effort."""
    thinking = shape.record(body.get("thinking"))
    effort = shape.string(shape.record(body.get("output_config")).get("effort"))
    if thinking.get("type") == "enabled" and not effort:
        budget = shape.count(thinking.get("budget_tokens"))
        effort = "low" if budget <= 1024 else "medium" if budget <= 2048 else "high"
    if not effort or thinking.get("type") == "disabled":
        return {}
    return {"reasoning_effort": effort}


def _format(body: Mapping[str, JSON]) -> dict[str, JSON]:
    """`response_format` from Anthropic's output format."""
    wanted = shape.record(shape.record(body.get("output_config")).get("format") or body.get("output_format"))
    if wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
        return {}
    # OpenAI wants a name; Anthropic has none to give.
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted["schema"]}}}
