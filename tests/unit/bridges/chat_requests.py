"""Chat requests and Anthropic's counterparts, for the tests of `ChatOverMessages`."""

from __future__ import annotations

from typing import Any

from tests.unit.bridges.support import kept, texts
from tianji_mw.bridges.base import Context
from tianji_mw.bridges.chat_over_messages import ChatOverMessages

USER_TURN = {"role": "user", "content": texts("Hi")}
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}
A_TOOL = {"name": "f", "description": "d", "input_schema": FUNCTION["parameters"]}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":"x"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": ""}},
    ],
}


def bridged(body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    return kept(ChatOverMessages().request, body, ctx)
