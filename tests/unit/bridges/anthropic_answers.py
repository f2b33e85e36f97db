"""Anthropic's answers and what chat makes of them, for the tests of `ChatOverMessages`."""

from __future__ import annotations

from typing import Any

from tests.unit.bridges.support import A_USAGE, CHAT_USAGE, json_values
from tianji_mw.bridges.chat_over_messages import ChatOverMessages

BRIDGE = ChatOverMessages()
FULL_USAGE = {**CHAT_USAGE, "cache_read_input_tokens": 5}
JSON_VALUES = json_values(
    ["type", "delta", "content_block", "index", "message", "usage", "error", "text", "partial_json", "stop_reason",
     "name"],
    ["tool_use", "text_delta", "input_json_delta", "thinking", "thinking_delta", "signature_delta"],
    entries=4,
    leaves=10,
)  # fmt: skip


def message(*content: Any, stop: str | None = "end_turn", **fields: Any) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": list(content),
        "stop_reason": stop, "stop_sequence": None, "usage": A_USAGE, **fields,
    }  # fmt: skip


def use(name: str = "f", call: str = "toolu_1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": given}


def called(arguments: str, name: str = "f", call: str = "toolu_1") -> dict[str, Any]:
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
