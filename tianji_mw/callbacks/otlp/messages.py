"""What was asked and answered, in the parts form of the GenAI conventions, from any API's shape. Pure and total.

`[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]`; messages of an answer have a `finish_reason`.
Source: OpenTelemetry GenAI conventions, `gen_ai.input.messages` and its JSON schemas. A tool's result is in
`response`, as the schema has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.otlp.spans import dicts, ours_of, text_of

Part = dict[str, JSON]
Message = dict[str, JSON]

#: APIs whose instructions stand beside the conversation. In the record they are its first message.
_APART: Final = frozenset({"messages", "responses"})
_INSTRUCTIONS: Final = frozenset({"system", "developer"})
_TEXTS: Final = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})
#: The providers' words for the end, in the conventions'.
_ENDS: Final[Mapping[str, str]] = {
    "end_turn": "stop", "stop_sequence": "stop", "completed": "stop", "max_tokens": "length",
    "max_output_tokens": "length", "tool_use": "tool_call", "tool_calls": "tool_call", "function_call": "tool_call",
    "refusal": "content_filter", "failed": "error",
}  # fmt: skip


def input_messages(data: Mapping[str, Any]) -> list[Message]:
    """What was asked, without instructions that stand apart."""
    asked = data.get("messages")
    if isinstance(asked, list) and asked and _has_instructions(data, asked):
        asked = asked[1:]
    return _messages(asked, "user")


def system_instructions(data: Mapping[str, Any]) -> list[Part]:
    """Instructions that stand apart from the conversation; those in its messages stay there."""
    asked = data.get("messages")
    if isinstance(asked, list) and asked and _has_instructions(data, asked):
        return _parts(asked[0].get("content"))
    return []


def output_messages(data: Mapping[str, Any]) -> list[Message]:
    """What was answered. Embeddings are numbers, and no messages."""
    answer = data.get("response")
    if isinstance(answer, str):
        return [_ended("assistant", _parts(answer), "stop")] if answer else []
    if isinstance(answer, list):
        return [{"finish_reason": "stop", **message} for message in _messages(answer, "assistant")]
    if not isinstance(answer, dict):
        return []
    if isinstance(answer.get("choices"), list):
        return [_choice(choice) for choice in dicts(answer["choices"])]
    if isinstance(answer.get("output"), list):
        return _responses(answer)
    if answer.get("content") is not None and not isinstance(answer.get("data"), list):
        role = text_of(answer.get("role")) or "assistant"
        return [_ended(role, _parts(answer["content"]), text_of(answer.get("stop_reason")))]
    return []


def finish_reasons(data: Mapping[str, Any]) -> list[str]:
    """Why the model ended, in the provider's own words; one for each choice."""
    answer = data.get("response")
    if not isinstance(answer, dict):
        return []
    if isinstance(answer.get("choices"), list):
        return [reason for choice in dicts(answer["choices"]) if (reason := text_of(choice.get("finish_reason")))]
    found = text_of(answer.get("stop_reason"))
    if not found and isinstance(answer.get("output"), list):
        found = _responses_end(answer)
    return [found] if found else []


def tool_definitions(data: Mapping[str, Any]) -> list[JSON]:
    """The tools that the model was offered: `{type, name, description, parameters}`."""
    params = data.get("model_parameters")
    tools = dicts(params.get("tools")) if isinstance(params, dict) else []
    return [_tool(tool) for tool in tools]


# --- messages


def _has_instructions(data: Mapping[str, Any], asked: list[JSON]) -> bool:
    first = asked[0]
    apart = text_of(ours_of(data).get("api")) in _APART
    return apart and isinstance(first, dict) and text_of(first.get("role")) in _INSTRUCTIONS


def _messages(asked: JSON, role: str) -> list[Message]:
    if asked is None or asked == "":
        return []
    if isinstance(asked, Mapping):
        # Rerank, or a marker that stands for a content of many megabytes.
        return [{"role": role, "parts": _parts(asked)}]
    if not isinstance(asked, list):
        return [{"role": role, "parts": _parts(asked)}]
    found: list[Message] = []
    for item in asked:
        if isinstance(item, dict):
            found.append(_message(item, role))
        else:
            found.append({"role": role, "parts": _parts(item)})
    return found


def _message(item: Mapping[str, Any], role: str) -> Message:
    """One message of a chat, or one item of a response."""
    kind = text_of(item.get("type"))
    if kind and kind != "message" and "role" not in item:
        return _item(item, kind, role)
    said = text_of(item.get("role")) or role
    parts = _thought(item)
    if said in ("tool", "function"):
        named = item.get("tool_call_id") or item.get("name")
        parts = [{"type": "tool_call_response", "id": named, "response": _plain(item.get("content"))}]
    else:
        parts += _parts(item.get("content"))
    if refusal := text_of(item.get("refusal")):
        parts.append(_text(refusal))
    parts += [_call(call) for call in dicts(item.get("tool_calls"))]
    if isinstance(item.get("function_call"), dict):
        parts.append(_call({"function": item["function_call"]}))
    message: Message = {"role": said, "parts": parts}
    name = text_of(item.get("name"))
    if name and said not in ("tool", "function"):
        message["name"] = name
    return message


def _item(item: Mapping[str, Any], kind: str, role: str) -> Message:
    """An item of OpenAI Responses that is no message."""
    if kind.endswith("_call_output"):
        result = {"type": "tool_call_response", "id": item.get("call_id"), "response": _plain(item.get("output"))}
        return {"role": "tool", "parts": [result]}
    if kind in ("function_call", "custom_tool_call", "mcp_call"):
        given = item.get("arguments", item.get("input"))
        call = {"id": item.get("call_id") or item.get("id"), "function": {"name": item.get("name"), "arguments": given}}
        return {"role": "assistant", "parts": [_call(call)]}
    if kind == "reasoning":
        said = [*dicts(item.get("summary")), *dicts(item.get("content"))]
        texts = [text for part in said if (text := text_of(part.get("text")))]
        return {"role": "assistant", "parts": [{"type": "reasoning", "content": text} for text in texts]}
    if kind.endswith("_call"):
        # Built-in tools, such as `web_search_call`.
        rest = {key: value for key, value in item.items() if key not in ("id", "type")}
        call = {"id": item.get("id"), "function": {"name": kind.removesuffix("_call"), "arguments": rest}}
        return {"role": "assistant", "parts": [_call(call)]}
    return {"role": role, "parts": [_part(item)]}


def _choice(choice: Mapping[str, Any]) -> Message:
    end = text_of(choice.get("finish_reason"))
    message = choice.get("message")
    if isinstance(message, dict):
        return {**_message(message, "assistant"), "finish_reason": _ENDS.get(end, end)}
    return _ended("assistant", _parts(choice.get("text")), end)


def _responses(answer: Mapping[str, Any]) -> list[Message]:
    """The items of an answer as one message: they are one turn."""
    parts: list[Part] = []
    for item in dicts(answer.get("output")):
        parts += _message(item, "assistant")["parts"]
    return [_ended("assistant", parts, _responses_end(answer))] if parts else []


def _responses_end(answer: Mapping[str, Any]) -> str:
    reason = answer.get("incomplete_details")
    found = text_of(reason.get("reason")) if isinstance(reason, dict) else ""
    return found or text_of(answer.get("status"))


def _ended(role: str, parts: list[Part], end: str) -> Message:
    return {"role": role, "parts": parts, "finish_reason": _ENDS.get(end, end)}


# --- parts


def _parts(content: JSON) -> list[Part]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [_text(content)]
    if isinstance(content, list):
        return [_part(part) if isinstance(part, dict) else _text(_shown(part)) for part in content]
    return [_text(_shown(content))]


def _part(part: Mapping[str, Any]) -> Part:
    """One block of a content, of any API; unknown ones go on as they are."""
    kind = text_of(part.get("type"))
    if kind in _TEXTS or (not kind and isinstance(part.get("text"), str)):
        return _text(text_of(part.get("text")))
    if kind == "refusal":
        return _text(text_of(part.get("refusal")))
    if kind in ("tool_use", "server_tool_use"):
        return _call({"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}})
    if kind.endswith("tool_result"):
        return {"type": "tool_call_response", "id": part.get("tool_use_id"), "response": _plain(part.get("content"))}
    if kind == "thinking":
        return {"type": "reasoning", "content": text_of(part.get("thinking"))}
    return _media(part, kind) or dict(part)


def _media(part: Mapping[str, Any], kind: str) -> Part | None:
    """Images, sounds and files: a `uri`, a `blob` of base64, or a `file` with its id."""
    inner = part.get(kind)
    if kind in ("image_url", "input_image"):
        return _located(_url(inner) or text_of(part.get("image_url")), "image") or _filed(part, "image")
    if kind == "input_audio" and isinstance(inner, dict):
        form = text_of(inner.get("format")) or "wav"
        return _blob(inner.get("data"), f"audio/{form}", "audio")
    if kind in ("file", "input_file"):
        held: Mapping[str, Any] = inner if isinstance(inner, dict) else part
        where = text_of(held.get("file_data")) or text_of(held.get("file_url"))
        return _located(where, "document") or _filed(held, "document")
    source = part.get("source")
    if kind in ("image", "document") and isinstance(source, dict):
        if source.get("type") == "base64":
            return _blob(source.get("data"), text_of(source.get("media_type")), kind)
        if source.get("type") == "text":
            return _text(text_of(source.get("data")))
        return _located(text_of(source.get("url")), kind) or _filed(source, kind)
    return None


def _url(value: Any) -> str:
    return text_of(value.get("url")) if isinstance(value, dict) else text_of(value)


def _located(url: str, modality: str) -> Part | None:
    if not url:
        return None
    if url.startswith("data:"):
        head, _, content = url[5:].partition(",")
        return _blob(content, head.partition(";")[0], modality)
    return {"type": "uri", "modality": modality, "uri": url}


def _filed(part: Mapping[str, Any], modality: str) -> Part | None:
    found = part.get("file_id")
    return {"type": "file", "modality": modality, "file_id": found} if isinstance(found, str) else None


def _blob(content: JSON, mime_type: str, modality: str) -> Part:
    found: Part = {"type": "blob", "modality": modality, "content": text_of(content)}
    return {**found, "mime_type": mime_type} if mime_type else found


def _text(content: str) -> Part:
    return {"type": "text", "content": content}


def _call(call: Mapping[str, Any]) -> Part:
    """A tool's call; arguments that are JSON in a text become JSON."""
    found = call.get("function")
    function: Mapping[str, Any] = found if isinstance(found, dict) else call
    part: Part = {"type": "tool_call", "name": text_of(function.get("name"))}
    if isinstance(call.get("id"), str):
        part["id"] = call["id"]
    given = function.get("arguments", function.get("input"))
    if isinstance(given, str):
        try:
            given = orjson.loads(given) if given else {}
        except orjson.JSONDecodeError:
            pass
    return {**part, "arguments": given}


def _thought(message: Mapping[str, Any]) -> list[Part]:
    for name in ("reasoning_content", "reasoning"):
        if thought := text_of(message.get(name)):
            return [{"type": "reasoning", "content": thought}]
    return []


def _plain(content: JSON) -> JSON:
    """A tool's result: its text where it is one block of text."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        text = content[0].get("text")
        return text if isinstance(text, str) else content
    return content


def _shown(value: JSON) -> str:
    return (
        value if isinstance(value, str) else orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    )


def _tool(tool: Mapping[str, Any]) -> JSON:
    found = tool.get("function")
    function: Mapping[str, Any] = found if isinstance(found, dict) else tool
    out: dict[str, JSON] = {"type": text_of(tool.get("type")) or "function", "name": text_of(function.get("name"))}
    if isinstance(function.get("description"), str):
        out["description"] = function["description"]
    schema = function.get("parameters", function.get("input_schema"))
    return out if schema is None else {**out, "parameters": schema}


def texts(messages: Sequence[Message]) -> str:
    """All text of the messages, one line after the other; for destinations that show one text."""
    said = [part["content"] for message in messages for part in message["parts"] if part.get("type") == "text"]
    return "\n".join(text for text in said if isinstance(text, str))
