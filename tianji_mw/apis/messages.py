"""Anthropic's Messages: `POST /v1/messages`, with named stream events and errors of its own shape.

It translates nothing: serving Messages on another upstream is `bridges/messages_over_chat.py`.
Source: Anthropic API reference, "Messages", "Streaming messages", "Errors".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Final

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON, NOTHING, Api, Ending, Kind, Part, Seen, Usage
from tianji_mw.apis.messages_events import events
from tianji_mw.apis.messages_tools import MessagesTools
from tianji_mw.apis.tools import Tools
from tianji_mw.errors import InvalidRequest, TianjiError

#: Fields of content blocks that hold no language: identifiers, addresses and opaque values.
_NO_TEXT: Final = frozenset(
    {"type", "id", "tool_use_id", "file_id", "name", "media_type", "url", "cache_control", "signature"}
    | {"encrypted_content", "encrypted_index", "role", "model", "index", "usage", "stop_reason"}
)
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Messages(Api):
    """Requests with `messages` and a separate `system`, answers with content blocks."""

    name: ClassVar[str] = "messages"
    paths: ClassVar[tuple[str, ...]] = ("*/v1/messages", "/messages")
    required: ClassVar[tuple[str, ...]] = ("messages",)
    tools: ClassVar[Tools] = MessagesTools()

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        messages = request["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise InvalidRequest("'messages' must be a list of message objects.", param="messages")
        limit = request.get("max_tokens")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise InvalidRequest("'max_tokens' must be a positive integer.", param="max_tokens")

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        yield from _parts(request.get("system"), ("system",), "system")
        messages = request.get("messages")
        for i, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict):
                role = message.get("role")
                role = role if isinstance(role, str) else "user"
                yield from _parts(message.get("content"), ("messages", i, "content"), role)

    def see(self, data: JSON, event: str) -> Seen:
        if not isinstance(data, dict):
            return NOTHING
        match data.get("type") or event:
            case "message_start":
                message = data.get("message")
                seen = self.see_whole(message)
                has_usage = isinstance(message, dict) and isinstance(message.get("usage"), dict)
                return Seen("usage") if seen.kind == "other" and has_usage else seen
            case "content_block_start":
                return _see_block(data.get("content_block"))
            case "content_block_delta":
                return _see_delta(data.get("delta"))
            case "message_delta":
                delta = data.get("delta")
                stopped = isinstance(delta, dict) and delta.get("stop_reason")
                return Seen("stop") if stopped else Seen("usage") if isinstance(data.get("usage"), dict) else NOTHING
            case "ping" | "content_block_stop" | "message_stop":
                return NOTHING
        return self.see_whole(data)

    def see_whole(self, data: JSON) -> Seen:
        if not isinstance(data, dict):
            return NOTHING
        if data.get("type") == "error" or data.get("error"):
            return Seen("error")
        content = data.get("content")
        if not isinstance(content, list):
            # Not a message: an event or a shape newer than this file. Whatever it says must not pass unseen.
            return _unknown(data)
        return _joined(_see_block(block) for block in content)

    def is_end(self, raw: bytes, data: JSON, event: str) -> bool:
        kind = data.get("type") if isinstance(data, dict) else None
        return (kind or event) in ("message_stop", "error")

    def ending(self, answer: JSON) -> Ending:
        if not isinstance(answer, dict) or answer.get("type") == "error" or answer.get("error"):
            return "unfinished"
        reason = answer.get("stop_reason")
        if reason == "max_tokens":
            return "limit"
        return "complete" if reason in ("end_turn", "stop_sequence", "tool_use") else "unfinished"

    def usage(self, data: JSON) -> Usage | None:
        if not isinstance(data, dict):
            return None
        holder = data.get("message") if data.get("type") == "message_start" else data
        return usage_of(holder.get("usage")) if isinstance(holder, dict) else None

    def split(self, answer: JSON) -> Sequence[bytes]:
        return [sse.encode(orjson.dumps(event), event["type"]) for event in events(answer)]

    def error(self, error: TianjiError, request_id: str) -> bytes:
        """Anthropic's error object. It has no fields for `param` and `code`: the message must do."""
        found = {"type": type_of_status(error.status), "message": error.message}
        return orjson.dumps({"type": "error", "error": found, "request_id": request_id})

    def error_event(self, error: TianjiError, request_id: str) -> bytes:
        return sse.encode(self.error(error, request_id), "error")


def type_of_status(status: int) -> str:
    """Anthropic's `error.type` for an HTTP status."""
    return _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")


def usage_of(found: JSON) -> Usage | None:
    """Anthropic's usage object; None for anything else.

    Anthropic's `input_tokens` leaves out what was read from or written to the cache; ours counts it in. Where an
    event does not repeat `input_tokens` (the last one of a stream may not), no input is counted: the sum would be
    wrong, and the first event's stays (`Usage.merged`).
    """
    if not isinstance(found, dict):
        return None
    details = found.get("output_tokens_details")
    usage = Usage(
        output_tokens=_count(found.get("output_tokens")),
        cached_tokens=_count(found.get("cache_read_input_tokens")),
        cache_write_tokens=_count(found.get("cache_creation_input_tokens")),
        reasoning_tokens=_count(details.get("thinking_tokens")) if isinstance(details, dict) else 0,
        source="provider",
    )
    if found.get("input_tokens") is not None:
        usage.input_tokens = _count(found["input_tokens"]) + usage.cached_tokens + usage.cache_write_tokens
    return usage


def _count(value: JSON) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# --- texts ------------------------------------------------------------------------------------------------------


def _parts(content: JSON, path: tuple[str | int, ...], role: str) -> Iterator[Part]:
    """Texts of `system` or `content`, in order: strings, and every string of a block that can hold language.

    Blocks are walked rather than looked up by type, so that block types newer than this file are read too. Not
    recursive: the depth of a request is the client's choice. What tools and documents say has the role `tool`: it
    stands in messages of the user, who did not write it.
    """
    stack: list[tuple[tuple[str | int, ...], JSON, bool, str]] = [(path, content, False, role)]
    while stack:
        where, value, free, said = stack.pop()
        if isinstance(value, str):
            yield Part(where, said, value)
        elif isinstance(value, list):
            stack.extend(((*where, i), value[i], free, said) for i in range(len(value) - 1, -1, -1))
        elif isinstance(value, dict):
            if role == "user" and not free and _found(value.get("type")):
                said = "tool"
            # The arguments of a tool are free JSON: there, `id` or `name` is a text like any other.
            keys = list(value) if free else [key for key in value if key not in _NO_TEXT and not _opaque(value, key)]
            stack.extend(((*where, key), value[key], free or key == "input", said) for key in reversed(keys))


def _found(kind: JSON) -> bool:
    """Whether a block of this type brings what was found: results of tools, also newer ones, and documents."""
    return isinstance(kind, str) and (kind in ("document", "search_result") or kind.endswith("tool_result"))


def _opaque(block: Mapping[str, JSON], key: str) -> bool:
    return key == "data" and block.get("type") in ("base64", "redacted_thinking")


def _unknown(value: JSON) -> Seen:
    found = "".join(part.text for part in _parts(value, (), ""))
    return Seen("text", found) if found else NOTHING


def _see_block(block: JSON) -> Seen:
    if not isinstance(block, dict):
        return NOTHING
    match block.get("type"):
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            name, given = block.get("name"), block.get("input")
            return Seen("tool", (name if isinstance(name, str) else "") + _json(given))
        case "thinking":
            text = block.get("thinking")
            return Seen("thinking", text) if isinstance(text, str) and text else NOTHING
    return _unknown(block)


def _json(value: JSON) -> str:
    """Tool input as the client will read it; only its strings where it nests too deeply to encode."""
    if value in ({}, None):
        return ""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return "\n".join(part.text for part in _parts({"input": value}, (), ""))


def _see_delta(delta: JSON) -> Seen:
    if not isinstance(delta, dict):
        return NOTHING
    match delta.get("type"):
        case "input_json_delta":
            text = delta.get("partial_json")
            return Seen("tool", text if isinstance(text, str) else "")
        case "thinking_delta":
            text = delta.get("thinking")
            return Seen("thinking", text if isinstance(text, str) else "")
    return _unknown(delta)


def _joined(pieces: Iterable[Seen]) -> Seen:
    """All blocks of an answer. Blocks of one kind continue each other (citations cut a sentence into blocks)."""
    found: list[Seen] = [piece for piece in pieces if piece.kind != "other"]
    if not found:
        return NOTHING
    text = found[0].text
    for before, piece in pairwise(found):
        text += piece.text if piece.kind == before.kind == "text" else "\n" + piece.text
    order: tuple[Kind, ...] = ("text", "tool", "thinking")
    kinds = {piece.kind for piece in found}
    return Seen(next(kind for kind in order if kind in kinds), text)
