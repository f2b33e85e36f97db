"""Embeddings: `POST /v1/embeddings`. It never streams, and its answers hold vectors, not text.

Source: OpenAI API reference, "Embeddings". As in completions, token ids are text that nobody can read here
(`completions.has_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from tianji_mw.apis.base import JSON, NOTHING, Api, Ending, Part, Seen, Usage, content_parts
from tianji_mw.apis.chat_completions import usage_of
from tianji_mw.apis.completions import has_tokens
from tianji_mw.errors import InvalidRequest


class Embeddings(Api):
    """Requests with an `input`: a string, strings, token ids, or (some providers) objects with texts.

    >>> [part.text for part in Embeddings().texts({"input": ["a", "b"]})]
    ['a', 'b']
    """

    name: ClassVar[str] = "embeddings"
    paths: ClassVar[tuple[str, ...]] = ("*/v1/embeddings", "*/deployments/{id}/embeddings", "/embeddings")
    required: ClassVar[tuple[str, ...]] = ("input",)

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        if not isinstance(request["input"], str | list):
            raise InvalidRequest("'input' must be a string, a list of strings, or token ids.", param="input")

    def unreadable(self, request: Mapping[str, JSON]) -> str:
        return "input" if has_tokens(request.get("input")) else ""

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        yield from content_parts(request.get("input"), ("input",), "user")

    def see_whole(self, data: JSON) -> Seen:
        return Seen("error") if isinstance(data, dict) and data.get("error") else NOTHING

    def ending(self, answer: JSON) -> Ending:
        data = answer.get("data") if isinstance(answer, dict) and not answer.get("error") else None
        return "complete" if data and isinstance(data, list) else "unfinished"

    def usage(self, data: JSON) -> Usage | None:
        return usage_of(data.get("usage")) if isinstance(data, dict) else None
