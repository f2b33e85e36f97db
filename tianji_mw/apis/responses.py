"""OpenAI's Responses API: `POST /v1/responses`. Requests with `input`, answers with `output` items, named events.

Stateless: `previous_response_id`, `conversation` and `background` go to providers that keep state themselves; nothing
is stored here. Building events is done in `responses_events.py`, reading them here.

Source: OpenAI API reference, "Responses" and "Streaming events".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON, NOTHING, Api, Ending, Kind, Part, Seen, Usage, openai_error
from tianji_mw.apis.chat_completions import dicts
from tianji_mw.apis.responses_events import Events, item_events
from tianji_mw.apis.responses_tools import ResponsesTools
from tianji_mw.apis.tools import Tools
from tianji_mw.errors import InvalidRequest, TianjiError

#: Fields that hold an identifier, an enumeration or binary data: nothing a person wrote or a model says.
_OPAQUE: Final = frozenset(
    {
        "call_id",
        "container_id",
        "data",
        "detail",
        "encrypted_content",
        "file_data",
        "file_id",
        "file_url",
        "format",
        "id",
    }
    | {"image_url", "item_id", "logprobs", "obfuscation", "partial_image_b64", "phase", "role", "status", "type"}
)
#: Items whose text comes as deltas; their `*.done` events only repeat it.
_STREAMED: Final = frozenset({"message", "function_call", "custom_tool_call", "reasoning"})
_KIND_OF_ITEM: Final[Mapping[str, Kind]] = {"message": "text", "reasoning": "thinking"}
_OPENING: Final = frozenset({"response.created", "response.in_progress", "response.queued"})
_STOP: Final = frozenset({"response.completed", "response.incomplete"})
_FAILED: Final = frozenset({"response.failed", "response.cancelled", "error"})
#: Numbers must increase, and whoever reports a failure of the gateway does not know the last one.
_LAST_NUMBER: Final = 2**31 - 1


class Responses(Api):
    """Requests with `input` and `instructions`.

    >>> [part.role for part in Responses().texts({"instructions": "Be brief.", "input": "Hello"})]
    ['system', 'user']
    """

    name: ClassVar[str] = "responses"
    paths: ClassVar[tuple[str, ...]] = ("*/v1/responses", "*/openai/responses", "/responses")
    required: ClassVar[tuple[str, ...]] = ("input", "prompt", "previous_response_id", "conversation")
    repeating: ClassVar[bool] = True
    tools: ClassVar[Tools] = ResponsesTools()

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        found = request.get("input")
        if isinstance(found, list):
            if not all(isinstance(item, dict) for item in found):
                raise InvalidRequest("'input' must be a string or a list of item objects.", param="input")
        elif found is not None and not isinstance(found, str):
            raise InvalidRequest("'input' must be a string or a list of item objects.", param="input")
        if not isinstance(request.get("instructions"), str | None):
            raise InvalidRequest("'instructions' must be a string.", param="instructions")

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        yield from _walk(request.get("instructions"), ("instructions",), "system")
        prompt = request.get("prompt")
        if isinstance(prompt, dict):  # a stored template: its variables are what this caller wrote
            yield from _walk(prompt.get("variables"), ("prompt", "variables"), "user")
        found = request.get("input")
        if isinstance(found, str):
            yield Part(("input",), "user", found)
        for i, item in enumerate(found if isinstance(found, list) else ()):
            yield from _walk(item, ("input", i), _role(item))

    def see(self, data: JSON, event: str) -> Seen:
        """What one event adds.

        `*.done` and `response.completed` repeat what came before and add nothing: see `repeats`. Seen, too, are the
        ways around deltas: an item or part that is added with content, the items of hosted tools (they have no deltas),
        citations, and events this version does not know.
        """
        if not isinstance(data, dict):
            return NOTHING
        kind = data.get("type") or event
        if not isinstance(kind, str):
            return NOTHING
        if kind.endswith(".delta"):
            return _see_delta(kind, data.get("delta"))
        if kind in _STOP:
            return Seen("stop")
        if kind in _FAILED or data.get("error"):
            return Seen("error")
        if kind in _OPENING:
            response = data.get("response")
            return _see_items(response.get("output") if isinstance(response, dict) else None)
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = data.get("item")
            repeats = kind.endswith(".done") and isinstance(item, dict) and item.get("type") in _STREAMED
            return NOTHING if repeats else _see_items([item])
        if kind.endswith(".done"):
            return NOTHING
        text = _join(data)
        if not text:
            return NOTHING
        return Seen("thinking" if "reasoning" in kind else "text" if "content_part" in kind else "tool", text)

    def repeats(self, data: JSON, event: str) -> Iterator[Part]:
        if not isinstance(data, dict) or self.see(data, event).text:
            return
        kind = data.get("type") or event
        if kind in _STOP | _FAILED:
            response = data.get("response")
            if isinstance(response, dict):
                yield from _walk(response.get("output"), ("response", "output"), "")
        elif isinstance(kind, str) and kind.endswith(".done"):
            yield from _walk(data, (), "")

    def see_whole(self, data: JSON) -> Seen:
        """The joined text of a response, or of everything that one event of a stream repeats."""
        if not isinstance(data, dict):
            return NOTHING
        response = data["response"] if isinstance(data.get("response"), dict) else data
        if isinstance(response.get("output"), list):
            seen = _see_items(response["output"])
        elif "item" in response:
            seen = _see_items([response["item"]])
        else:
            kind = response.get("type")
            seen = Seen("text", _join(response) if isinstance(kind, str) and kind.startswith("response.") else "")
        if response.get("error"):
            return Seen("error", seen.text)
        return seen if seen.text else NOTHING

    def usage(self, data: JSON) -> Usage | None:
        if not isinstance(data, dict):
            return None
        response = data["response"] if isinstance(data.get("response"), dict) else data
        found = response.get("usage")
        if not isinstance(found, dict):
            return None
        inputs, outputs = found.get("input_tokens_details"), found.get("output_tokens_details")
        return Usage(
            input_tokens=_count(found, "input_tokens"),
            output_tokens=_count(found, "output_tokens"),
            cached_tokens=_count(inputs, "cached_tokens"),
            cache_write_tokens=_count(inputs, "cache_write_tokens"),
            reasoning_tokens=_count(outputs, "reasoning_tokens"),
            source="provider",
        )

    def ending(self, answer: JSON) -> Ending:
        if not isinstance(answer, dict) or answer.get("error"):
            return "unfinished"
        if answer.get("status") == "completed":
            return "complete"
        details = answer.get("incomplete_details")
        limited = isinstance(details, dict) and details.get("reason") == "max_output_tokens"
        return "limit" if answer.get("status") == "incomplete" and limited else "unfinished"

    def is_end(self, raw: bytes, data: JSON, event: str) -> bool:
        if not isinstance(data, dict):
            return data is None and sse.parse(raw)[1] == b"[DONE]"  # some servers add chat's end marker
        kind = data.get("type") or event
        return isinstance(kind, str) and (kind in _STOP or kind in _FAILED)

    def split(self, answer: JSON) -> Sequence[bytes]:
        events = Events()
        opening = {
            **answer,
            "status": "in_progress",
            "output": [],
            "usage": None,
            "error": None,
            "incomplete_details": None,
        }
        made = [events.make(kind, response=opening) for kind in ("response.created", "response.in_progress")]
        for index, item in enumerate(dicts(answer.get("output"))):
            made += item_events(events, index, item)
        status = answer.get("status")
        last = status if status in ("incomplete", "failed") else "completed"
        made.append(events.make(f"response.{last}", response=answer))
        return [sse.encode(orjson.dumps(event), event["type"]) for event in made]

    def error_event(self, error: TianjiError, request_id: str) -> bytes:
        """The `error` event. Its fields stand at the top as documented, and once more under `error` as elsewhere.

        The OpenAI SDK raises `APIError` for the second form only; without it a broken stream would look like one that
        ended without an answer.
        """
        event = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        body = {**event, "sequence_number": _LAST_NUMBER, **openai_error(error)}
        return sse.encode(orjson.dumps(body), "error")


def _role(item: JSON) -> str:
    if not isinstance(item, dict):
        return "user"
    role, kind = item.get("role"), item.get("type")
    if isinstance(role, str):
        return role
    if isinstance(kind, str) and kind != "message":
        return "tool" if kind.endswith("_output") else "assistant"
    return "user"


def _walk(value: JSON, path: tuple[str | int, ...], role: str) -> Iterator[Part]:
    """Every text below `value`, in order. Without recursion: a request may nest as deep as its decoder allows."""
    stack: list[tuple[tuple[str | int, ...], JSON]] = [(path, value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str):
            yield Part(path, role, value)
        elif isinstance(value, list):
            stack += [((*path, i), value[i]) for i in reversed(range(len(value)))]
        elif isinstance(value, dict):
            image = value.get("type") == "image_generation_call"  # its `result` is the picture
            names = [name for name in value if name not in _OPAQUE and not (image and name == "result")]
            stack += [((*path, name), value[name]) for name in reversed(names)]


def _join(value: JSON) -> str:
    return "".join(part.text for part in _walk(value, (), ""))


def _see_delta(kind: str, delta: JSON) -> Seen:
    if kind == "response.audio.delta":
        return NOTHING  # base64 sound; what is said comes as transcript
    text = delta if isinstance(delta, str) else _join(delta)
    if kind == "response.output_text.delta":
        return Seen("text", text)
    if "reasoning" in kind:
        return Seen("thinking", text)
    return Seen("tool" if "_call" in kind else "text", text)


def _see_items(items: JSON) -> Seen:
    """The texts of output items, joined by LF; visible text gives the kind before tool calls, these before thoughts."""
    found: dict[Kind, bool] = {}
    texts = []
    for item in dicts(items):
        if text := _join(item):
            kind = item.get("type")
            found[_KIND_OF_ITEM.get(kind, "tool") if isinstance(kind, str) else "text"] = True
            texts.append(text)
    kinds: tuple[Kind, ...] = ("text", "tool", "thinking")
    return next((Seen(kind, "\n".join(texts)) for kind in kinds if kind in found), NOTHING)


def _count(found: JSON, key: str) -> int:
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, int) and value > 0 else 0
