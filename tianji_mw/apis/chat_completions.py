"""OpenAI's Chat Completions: `POST /v1/chat/completions`, the suite's lingua franca.

Source: OpenAI API reference, "Chat" and "Streaming".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON, NOTHING, Api, Ending, Part, Seen, Usage, content_parts
from tianji_mw.apis.chat_tools import ChatTools
from tianji_mw.apis.tools import Tools
from tianji_mw.errors import InvalidRequest

#: Finish reasons of a model that had said what it wanted to say.
_FINISHED: Final[frozenset[JSON]] = frozenset({"stop", "tool_calls", "function_call"})


class ChatCompletions(Api):
    """Requests with `messages`, answers with `choices`."""

    name: ClassVar[str] = "chat_completions"
    paths: ClassVar[tuple[str, ...]] = ("*/chat/completions",)
    required: ClassVar[tuple[str, ...]] = ("messages",)
    tools: ClassVar[Tools] = ChatTools()
    done: ClassVar[bytes] = b"data: [DONE]\n\n"

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        messages = request["messages"]
        if not isinstance(messages, list) or len(dicts(messages)) != len(messages):
            raise InvalidRequest("'messages' must be a list of message objects.", param="messages")

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        messages = request.get("messages")
        for i, message in enumerate(messages if isinstance(messages, list) else ()):
            if not isinstance(message, dict):
                continue
            role = str(message.get("role") or "user")
            yield from content_parts(message.get("content"), ("messages", i, "content"), role)
            # `function_call` is the older form of one call; some SDKs still send it.
            yield from _call_texts({"function": message.get("function_call")}, ("messages", i), "function_call", role)
            calls = message.get("tool_calls")
            for j, call in enumerate(calls if isinstance(calls, list) else ()):
                yield from _call_texts(call, ("messages", i, "tool_calls", j), "function", role)

    def see(self, data: JSON, event: str) -> Seen:
        if not isinstance(data, dict):
            return NOTHING
        found = NOTHING
        for choice in dicts(data.get("choices")):
            seen = _see_delta(choice.get("delta"))
            if seen.kind != "other":
                found = Seen(seen.kind, found.text + seen.text)
            elif choice.get("finish_reason") and found.kind == "other":
                found = Seen("stop")
        if data.get("error"):
            return Seen("error", found.text)  # text beside an error is still text the client receives
        if found.kind == "other" and isinstance(data.get("usage"), dict):
            return Seen("usage")
        return found

    def see_whole(self, data: JSON) -> Seen:
        if not isinstance(data, dict):
            return NOTHING
        pieces = [_see_delta(choice.get("message")) for choice in dicts(data.get("choices"))]
        pieces = [piece for piece in pieces if piece.kind != "other"]
        joined = "\n".join(piece.text for piece in pieces)
        if data.get("error"):
            return Seen("error", joined)
        return Seen(pieces[0].kind, joined) if pieces else NOTHING

    def is_end(self, raw: bytes, data: JSON, event: str) -> bool:
        if data is None and sse.parse(raw)[1] == b"[DONE]":
            return True
        # Some servers close after the finish reason without `[DONE]`.
        return isinstance(data, dict) and (
            bool(data.get("error")) or any(choice.get("finish_reason") for choice in dicts(data.get("choices")))
        )

    def usage(self, data: JSON) -> Usage | None:
        found = data.get("usage") if isinstance(data, dict) else None
        return usage_of(found)

    def ending(self, answer: JSON) -> Ending:
        return ending_of(answer, "message")

    def split(self, answer: JSON) -> Sequence[bytes]:
        head = {"id": answer.get("id"), "object": "chat.completion.chunk"}
        head |= {key: answer[key] for key in ("created", "model", "system_fingerprint") if key in answer}
        chunks: list[JSON] = []
        for choice in dicts(answer.get("choices")):
            found = choice.get("message")
            message = dict(found) if isinstance(found, dict) else {}
            if isinstance(message.get("tool_calls"), list):
                message["tool_calls"] = [{"index": i, **call} for i, call in enumerate(dicts(message["tool_calls"]))]
            index = choice.get("index", 0)
            first = {"index": index, "delta": message, "finish_reason": None}
            if choice.get("logprobs"):
                first["logprobs"] = choice["logprobs"]
            chunks.append({"choices": [first]})
            end = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}
            chunks.append({"choices": [end]})
        if isinstance(answer.get("usage"), dict):
            chunks.append({"choices": [], "usage": answer["usage"]})
        return [*(sse.encode(orjson.dumps({**head, **chunk})) for chunk in chunks), self.done]


def ending_of(answer: JSON, content: str) -> Ending:
    """The ending of an answer with `choices`, whose content stands in the field `content` of each."""
    if not isinstance(answer, dict) or answer.get("error"):
        return "unfinished"
    choices = dicts(answer.get("choices"))
    reasons = {choice.get("finish_reason") for choice in choices if choice.get(content)}
    if not choices or len(reasons) == 0 or any(not choice.get(content) for choice in choices):
        return "unfinished"
    if not reasons <= _FINISHED | {"length"}:
        return "unfinished"
    return "limit" if "length" in reasons else "complete"


def usage_of(found: JSON) -> Usage | None:
    """OpenAI's usage object, of chat, completions and embeddings alike; None for anything else."""
    if not isinstance(found, dict):
        return None
    inputs, outputs = found.get("prompt_tokens_details"), found.get("completion_tokens_details")
    return Usage(
        _count(found.get("prompt_tokens")),
        _count(found.get("completion_tokens")),
        _count(inputs.get("cached_tokens")) if isinstance(inputs, dict) else 0,
        _count(found.get("cache_creation_input_tokens")),
        _count(outputs.get("reasoning_tokens")) if isinstance(outputs, dict) else 0,
        "provider",
    )


def _call_texts(call: JSON, path: tuple[str | int, ...], field: str, role: str) -> Iterator[Part]:
    """What a tool call in the history says: a function's arguments, or the free text of a custom tool."""
    if not isinstance(call, dict):
        return
    function, custom = call.get("function"), call.get("custom")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        yield Part((*path, field, "arguments"), role, function["arguments"])
    if isinstance(custom, dict) and isinstance(custom.get("input"), str):
        yield Part((*path, "custom", "input"), role, custom["input"])


def _see_delta(delta: JSON) -> Seen:
    """What a `delta` or `message` adds. Everything readable counts: a frame may carry several kinds at once."""
    if not isinstance(delta, dict):
        return NOTHING
    content, audio = delta.get("content"), delta.get("audio")
    if len(delta) == 1 and isinstance(content, str):  # nearly every chunk of a stream
        return Seen("text", content) if content else NOTHING
    visible = _text(content) + _text(delta.get("refusal"))
    if isinstance(audio, dict):
        visible += _text(audio.get("transcript"))
    thinking, other = _text(delta.get("reasoning_content")), _text(delta.get("reasoning"))
    thinking += other if other != thinking else ""  # some servers send both names with the same text
    # Mistral sends reasoning as content parts of type `thinking`.
    thinking += "".join(_text(part.get("thinking")) for part in dicts(content))
    calls = dicts(delta.get("tool_calls"))
    functions = [call.get(kind) for call in calls for kind in ("function", "custom")] + [delta.get("function_call")]
    fields = ("name", "arguments", "input")
    tool = "".join(_text(f.get(field)) for f in functions if isinstance(f, dict) for field in fields)
    joined = thinking + visible + tool
    if visible:
        return Seen("text", joined)
    if any(functions):
        return Seen("tool", joined)
    return Seen("thinking", joined) if thinking else NOTHING


def _text(value: JSON) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(
            text for part in dicts(value) for text in (part.get("text"), part.get("refusal")) if isinstance(text, str)
        )
    return ""


def dicts(value: JSON) -> list[dict[str, JSON]]:
    """The objects of a list; nothing for anything else. Answers are read, never trusted."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _count(value: JSON) -> int:
    return value if isinstance(value, int) and value > 0 else 0
