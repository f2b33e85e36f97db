"""Anthropic's `system`, turns and tools as chat messages and functions.

Source: Anthropic API reference, "Messages", "Tool use"; OpenAI API reference, "Chat", "Function calling".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import media, names, shape
from tianji_mw.bridges.base import Context, unsupported
from tianji_mw.errors import InvalidRequest, UnsupportedParams

#: Default of a deployment (`context.defaults`): the upstream takes reasoning back in the assistant's messages.
REASONING: Final = "reasoning_content"
#: OpenAI's limit on tool call ids.
_ID_LIMIT: Final = 40
_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}

Message = dict[str, JSON]


def messages(body: Mapping[str, JSON], context: Context) -> list[Message]:
    """All messages, the system prompt first. Raises InvalidRequest or UnsupportedParams naming the place."""
    found: list[Message] = []
    if system := _parts(body.get("system"), "system"):
        found.append({"role": "system", "content": _content(system)})
    for i, message in enumerate(body["messages"]):
        message, where = shape.record(message), f"messages[{i}]"
        match message.get("role"):
            case "user":
                found.extend(_user(message.get("content"), f"{where}.content"))
            case "assistant":
                found.append(_assistant(message.get("content"), f"{where}.content", context))
            case "system":
                if parts := _parts(message.get("content"), f"{where}.content"):
                    found.append({"role": "system", "content": _content(parts)})
            case role:
                raise InvalidRequest(f"{where} has the unknown role {role!r}.", param=f"{where}.role")
    return found


def _user(content: JSON, where: str) -> list[Message]:
    """A user turn: the results of tools as messages of their own, ahead of what the user says."""
    blocks = _blocks(content, where)
    results: list[Message] = []
    rest: list[Message] = []
    for j, block in enumerate(blocks):
        place = f"{where}[{j}]"
        if block.get("type") != "tool_result":
            rest.extend(_part(block, place))
            continue
        parts = _parts(block.get("content"), place)
        # A tool message holds text only; what a tool shows goes with the user's part of the turn.
        rest.extend(part for part in parts if part["type"] != "text")
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        call = names.call_id(shape.string(block.get("tool_use_id")), _ID_LIMIT)
        results.append({"role": "tool", "tool_call_id": call, "content": text})
    if rest or not results:
        results.append({"role": "user", "content": _content(rest)})
    return results


def _assistant(content: JSON, where: str, context: Context) -> Message:
    text: list[Message] = []
    calls: list[Message] = []
    thinking: list[Message] = []
    for j, block in enumerate(_blocks(content, where)):
        match block.get("type"):
            case "tool_use":
                function = {
                    "name": names.sent(shape.string(block.get("name")), context),
                    "arguments": shape.dumps(block.get("input") or {}),
                }
                call = names.call_id(shape.string(block.get("id")), _ID_LIMIT)
                calls.append({"id": call, "type": "function", "function": function})
            case "thinking" | "redacted_thinking":
                thinking.append(block)
            case "text":
                text.extend(_part(block, f"{where}[{j}]"))
            # Other blocks are tools that ran at Anthropic, and their results: nothing a chat upstream could read.
    message: Message = {"role": "assistant", "content": _content(text) if text or not calls else None}
    if thinking and context.defaults.get(REASONING):
        message["reasoning_content"] = "".join(shape.string(block.get("thinking")) for block in thinking)
        message["thinking_blocks"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def _blocks(content: JSON, where: str) -> list[Message]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidRequest(f"'{where}' must be a string or a list of blocks.", param=where)
    return content


def _parts(content: JSON, where: str) -> list[Message]:
    blocks = _blocks(content, where)
    return [part for j, block in enumerate(blocks) for part in _part(block, f"{where}[{j}]")]


def _part(block: Message, where: str) -> list[Message]:
    """A block as content parts; `cache_control` and citations stay behind, for OpenAI refuses unknown fields."""
    match block.get("type"):
        case "text":
            text = shape.string(block.get("text"))
            return [{"type": "text", "text": text}] if text else []
        case "image":
            return [media.part_of_image(block, where)]
        case "document":
            return media.parts_of_document(block, where)
        case "search_result":
            lines = [
                shape.string(block.get("title")),
                shape.string(block.get("source")),
                *shape.texts(block.get("content")),
            ]
            return [{"type": "text", "text": "\n".join(line for line in lines if line)}]
        case kind:
            raise UnsupportedParams(f"This provider takes no content of type {kind!r}.", param=where)


def _content(parts: list[Message]) -> JSON:
    """A string where one will do: every server takes that."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


# --- tools ------------------------------------------------------------------------------------------------------


def tools(body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
    """`tools`, `tool_choice` and `parallel_tool_calls`. Raises UnsupportedParams for tools that run at Anthropic."""
    listed = body.get("tools")
    if listed is not None and not isinstance(listed, list):
        raise InvalidRequest("'tools' must be a list.", param="tools")
    found = [tool for i, item in enumerate(listed or ()) if (tool := _tool(item, f"tools[{i}]", context))]
    if not found:
        return {}
    out: dict[str, JSON] = {"tools": found}
    choice = shape.record(body.get("tool_choice"))
    kind = shape.string(choice.get("type"))
    if kind == "tool":
        name = names.sent(shape.string(choice.get("name")), context)
        out["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in _CHOICES:
        out["tool_choice"] = _CHOICES[kind]
    elif choice:
        raise InvalidRequest("'tool_choice.type' is none of 'auto', 'any', 'tool', 'none'.", param="tool_choice")
    if choice.get("disable_parallel_tool_use") is True:
        out["parallel_tool_calls"] = False
    return out


def _tool(tool: JSON, where: str, context: Context) -> Message | None:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} must be an object.", param=where)
    name, kind = shape.string(tool.get("name")), tool.get("type")
    if kind not in (None, "custom"):
        unsupported("tools", context, UnsupportedParams(f"This provider does not run the tool {kind!r}.", param=where))
        return None
    if not name:
        raise InvalidRequest(f"{where} has no name.", param=f"{where}.name")
    schema = tool.get("input_schema")
    function = {
        "name": names.sent(name, context),
        "parameters": schema if isinstance(schema, dict) else {"type": "object"},
    }
    function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}
