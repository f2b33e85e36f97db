"""What Anthropic's clients get from a chat answer, for the tests of `MessagesOverChat`."""

from __future__ import annotations

from typing import Any

from tests.unit.bridges.support import json_values
from tianji_mw.bridges.messages_over_chat import MessagesOverChat

BRIDGE = MessagesOverChat()
ZERO = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
JSON_VALUES = json_values(
    ["choices", "delta", "index", "usage", "error", "content", "tool_calls", "function", "name", "arguments", "id",
     "thinking_blocks", "signature", "thinking", "type", "finish_reason", "prompt_tokens"],
    entries=5,
    leaves=12,
)  # fmt: skip


def use(name: str = "f", call: str = "call_1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": given}


def thought(value: str, signature: str = "") -> dict[str, Any]:
    return {"type": "thinking", "thinking": value, "signature": signature}
