"""The events of a stream as the plain answer they amount to: for logs, and whoever else wants one from the other. Pure.

Total: events that are none of the API's are left out, and a stream that broke off gives what had come until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON, Usage

Events = Iterable[tuple[str, dict[str, JSON]]]

_JOINED: Final = ("content", "refusal", "reasoning_content", "reasoning", "arguments", "input")


def assemble(api: str, raw: bytes) -> dict[str, JSON] | None:
    """The answer in these bytes of an event stream; None for an API that does not stream, or without an event."""
    build = _BUILD.get(api)
    return build(_events(raw)) if build else None


def _events(raw: bytes) -> Events:
    return map(_read, _split(raw))


def _split(raw: bytes) -> Iterator[bytes]:
    splitter = sse.Splitter(max(len(raw), 1) + 4)
    yield from splitter.feed(raw)
    yield splitter.finish() or b""


def _read(event: bytes) -> tuple[str, dict[str, JSON]]:
    """The event's name and content; nothing for what is no JSON object."""
    name, payload = sse.parse(event)
    try:
        data = orjson.loads(payload) if payload else None
    except orjson.JSONDecodeError:
        data = None
    return name, data if isinstance(data, dict) else {}


def first_content(api: str, raw: bytes) -> int:
    """How many bytes of the stream are there when its first content is; 0 where there is none."""
    from tianji_mw import apis

    known = next((one for one in apis.ALL if one.name == api), None)
    size = 0
    for event in _split(raw):
        size += len(event)
        name, data = _read(event)
        if known is not None and known.see(data, name).kind in ("text", "tool", "thinking"):
            return size
    return 0


def usage_in(api: str, raw: bytes, *, events: bool) -> Usage | None:
    """The usage that an answer tells of, plain or as a stream; None where it tells of none."""
    from tianji_mw import apis

    known = next((one for one in apis.ALL if one.name == api), None)
    if known is None or not known.usage_pattern.search(raw):
        return None
    if not events:
        try:
            return known.usage(orjson.loads(raw))
        except orjson.JSONDecodeError:
            return None
    found: Usage | None = None
    for event in _split(raw):
        if known.usage_pattern.search(event) and (usage := known.usage(_read(event)[1])) is not None:
            found = usage if found is None else found.merged(usage)
    return found


# --- OpenAI chat completions and completions


def _chat(events: Events) -> dict[str, JSON] | None:
    answer: dict[str, JSON] = {}
    choices: dict[int, dict[str, JSON]] = {}
    for _, data in events:
        answer |= {key: value for key, value in data.items() if key != "choices" and value is not None}
        for choice in _dicts(data.get("choices")):
            _add_choice(choices, choice)
    if not answer and not choices:
        return None
    if answer.get("object") == "chat.completion.chunk":
        answer["object"] = "chat.completion"
    return {**answer, "choices": [choices[index] for index in sorted(choices)]}


def _add_choice(choices: dict[int, dict[str, JSON]], choice: Mapping[str, JSON]) -> None:
    index = choice.get("index")
    index = index if isinstance(index, int) else 0
    whole = choices.setdefault(index, {"index": index})
    if isinstance(choice.get("text"), str):
        whole["text"] = whole.get("text", "") + choice["text"]
    delta = choice.get("delta")
    if isinstance(delta, dict):
        _add_delta(whole.setdefault("message", {"role": "assistant", "content": None}), delta)
    if choice.get("finish_reason") is not None:
        whole["finish_reason"] = choice["finish_reason"]
    whole.setdefault("finish_reason", None)
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        kept = whole.setdefault("logprobs", {})
        for key, value in logprobs.items():
            kept[key] = [*(kept.get(key) or []), *value] if isinstance(value, list) else value


def _add_delta(message: dict[str, JSON], delta: Mapping[str, JSON]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for at, call in enumerate(_dicts(value)):
                _add_call(calls, call, at)
        elif isinstance(value, str) and key in _JOINED:
            message[key] = (message.get(key) or "") + value
        elif isinstance(value, list) and isinstance(message.get(key), list):
            message[key] = [*message[key], *value]
        elif isinstance(value, dict) and isinstance(message.get(key), dict):
            message[key] = {**message[key], **value}
        elif value is not None:
            message[key] = value


def _add_call(calls: list[JSON], call: Mapping[str, JSON], at: int) -> None:
    index = call.get("index")
    index = index if isinstance(index, int) and 0 <= index < 1024 else at
    while len(calls) <= index:
        calls.append({})
    whole = calls[index]
    for key, value in call.items():
        if key in ("function", "custom") and isinstance(value, dict):
            inner = whole.setdefault(key, {})
            for name, part in value.items():
                joined = name in _JOINED and isinstance(part, str)
                inner[name] = inner.get(name, "") + part if joined else part
        elif key != "index" and value is not None:
            whole[key] = value


# --- Anthropic messages


def _messages(events: Events) -> dict[str, JSON] | None:
    message: dict[str, JSON] | None = None
    blocks: dict[int, dict[str, JSON]] = {}
    for name, data in events:
        kind = data.get("type") or name
        if kind == "message_start" and isinstance(data.get("message"), dict):
            message = dict(data["message"])
        elif kind == "content_block_start" and isinstance(data.get("content_block"), dict):
            blocks[_index(data)] = dict(data["content_block"])
        elif kind == "content_block_delta" and isinstance(data.get("delta"), dict):
            _add_block(blocks.setdefault(_index(data), {"type": "text", "text": ""}), data["delta"])
        elif kind == "message_delta":
            message = {**(message or {}), **(data.get("delta") or {})}
            message["usage"] = {**(message.get("usage") or {}), **(data.get("usage") or {})}
        elif kind == "error":
            message = {**(message or {}), "error": data.get("error")}
    if message is None and not blocks:
        return None
    return {**(message or {}), "content": [_closed(blocks[index]) for index in sorted(blocks)]}


def _add_block(block: dict[str, JSON], delta: Mapping[str, JSON]) -> None:
    fields = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    kind = str(delta.get("type"))
    if kind == "input_json_delta":
        block["_json"] = block.get("_json", "") + str(delta.get("partial_json") or "")
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or []), delta.get("citation")]
    elif (field := fields.get(kind)) and isinstance(delta.get(field), str):
        block[field] = (block.get(field) or "") + delta[field]


def _closed(block: dict[str, JSON]) -> dict[str, JSON]:
    """The block with its tool input decoded; input that broke off stays text."""
    text = block.pop("_json", "")
    if text:
        try:
            block["input"] = orjson.loads(text)
        except orjson.JSONDecodeError:
            block["input"] = text
    return block


def _index(data: Mapping[str, JSON]) -> int:
    index = data.get("index")
    return index if isinstance(index, int) else 0


# --- OpenAI responses


def _responses(events: Events) -> dict[str, JSON] | None:
    """The response object of the last event that has one; where the stream broke off, with the text that had come."""
    found: dict[str, JSON] | None = None
    texts: dict[tuple[int, int], str] = {}
    for _, data in events:
        if isinstance(data.get("response"), dict):
            found = data["response"]
        elif data.get("type") == "response.output_text.delta" and isinstance(data.get("delta"), str):
            place = _place(data)
            texts[place] = texts.get(place, "") + data["delta"]
    if found is not None and not found.get("output") and texts:
        parts = [{"type": "output_text", "text": texts[place]} for place in sorted(texts)]
        return {**found, "output": [{"type": "message", "role": "assistant", "content": parts}]}
    return found


def _place(data: Mapping[str, JSON]) -> tuple[int, int]:
    output, content = data.get("output_index"), data.get("content_index")
    return output if isinstance(output, int) else 0, content if isinstance(content, int) else 0


def _dicts(value: JSON) -> list[dict[str, JSON]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


_BUILD: Final[Mapping[str, Callable[[Events], dict[str, JSON] | None]]] = {
    "chat_completions": _chat,
    "completions": _chat,
    "messages": _messages,
    "responses": _responses,
}
