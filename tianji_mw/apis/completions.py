"""OpenAI's older text completions: `POST /v1/completions`.

Source: OpenAI API reference, "Completions" (legacy). A prompt of token ids holds text that nobody can read here; it
gives no `Part`, and `has_tokens` tells a guard that this is so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON, NOTHING, Api, Ending, Part, Seen, Usage
from tianji_mw.apis.chat_completions import dicts, ending_of, usage_of
from tianji_mw.errors import InvalidRequest


class Completions(Api):
    """Requests with a `prompt`, answers with `choices[].text`; chunks of a stream have the same shape.

    >>> list(Completions().texts({"prompt": ["Hello", "Bye"]}))[1].path
    ('prompt', 1)
    """

    name: ClassVar[str] = "completions"
    paths: ClassVar[tuple[str, ...]] = (
        "*/v1/completions",
        "*/engines/{id}/completions",
        "*/deployments/{id}/completions",
        "/completions",
    )
    required: ClassVar[tuple[str, ...]] = ("prompt",)
    done: ClassVar[bytes] = b"data: [DONE]\n\n"

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        prompt = request["prompt"]
        if isinstance(prompt, str) or (isinstance(prompt, list) and (_all(prompt, str) or has_tokens(prompt))):
            return
        raise InvalidRequest("'prompt' must be a string, a list of strings, or token ids.", param="prompt")

    def unreadable(self, request: Mapping[str, JSON]) -> str:
        return "prompt" if has_tokens(request.get("prompt")) else ""

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        yield from strings(request.get("prompt"), ("prompt",))
        yield from strings(request.get("suffix"), ("suffix",))

    def see(self, data: JSON, event: str) -> Seen:
        if not isinstance(data, dict):
            return NOTHING
        choices = dicts(data.get("choices"))
        text = "".join(choice["text"] for choice in choices if isinstance(choice.get("text"), str))
        if data.get("error"):
            return Seen("error", text)
        if text:
            return Seen("text", text)
        if any(choice.get("finish_reason") for choice in choices):
            return Seen("stop")
        return Seen("usage") if isinstance(data.get("usage"), dict) else NOTHING

    def see_whole(self, data: JSON) -> Seen:
        if not isinstance(data, dict):
            return NOTHING
        found = [choice["text"] for choice in dicts(data.get("choices")) if isinstance(choice.get("text"), str)]
        if data.get("error"):
            return Seen("error", "\n".join(found))
        return Seen("text", "\n".join(found)) if found else NOTHING

    def usage(self, data: JSON) -> Usage | None:
        return usage_of(data.get("usage")) if isinstance(data, dict) else None

    def ending(self, answer: JSON) -> Ending:
        return ending_of(answer, "text")

    def is_end(self, raw: bytes, data: JSON, event: str) -> bool:
        if data is None:
            return sse.parse(raw)[1] == b"[DONE]"
        return isinstance(data, dict) and (
            bool(data.get("error")) or any(choice.get("finish_reason") for choice in dicts(data.get("choices")))
        )

    def split(self, answer: JSON) -> Sequence[bytes]:
        head = {key: answer[key] for key in ("id", "object", "created", "model", "system_fingerprint") if key in answer}
        chunks: list[JSON] = [{"choices": [choice]} for choice in dicts(answer.get("choices"))]
        if isinstance(answer.get("usage"), dict):
            chunks.append({"choices": [], "usage": answer["usage"]})
        return [*(sse.encode(orjson.dumps({**head, **chunk})) for chunk in chunks), self.done]


def strings(value: JSON, path: tuple[str | int, ...], role: str = "user") -> Iterator[Part]:
    """Parts of a field that is a string or a list of strings; token ids give none."""
    if isinstance(value, str):
        yield Part(path, role, value)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, str):
                yield Part((*path, i), role, item)


def has_tokens(value: JSON) -> bool:
    """Whether a `prompt` or `input` is a list of token ids, or a list of such lists: text no guard can read."""
    if not isinstance(value, list) or not value:
        return False
    return _all(value, int) or all(isinstance(item, list) and _all(item, int) for item in value)


def _all(values: list[JSON], kind: type) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
