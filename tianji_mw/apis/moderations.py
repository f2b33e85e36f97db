"""Moderations: `POST /v1/moderations`. It never streams; its answers hold scores, not text, and count no tokens.

Source: OpenAI API reference, "Moderations".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from tianji_mw.apis.base import JSON, NOTHING, Api, Part, Seen, content_parts
from tianji_mw.errors import InvalidRequest


class Moderations(Api):
    """Requests with an `input`: a string, strings, or typed parts (`text`, `image_url`); `model` may be missing.

    >>> [part.text for part in Moderations().texts({"input": [{"type": "text", "text": "a"}]})]
    ['a']
    """

    name: ClassVar[str] = "moderations"
    paths: ClassVar[tuple[str, ...]] = ("*/v1/moderations", "/moderations")
    required: ClassVar[tuple[str, ...]] = ("input",)

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        if not isinstance(request["input"], str | list):
            raise InvalidRequest("'input' must be a string, a list of strings, or a list of parts.", param="input")

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        yield from content_parts(request.get("input"), ("input",), "user")

    def see_whole(self, data: JSON) -> Seen:
        return Seen("error") if isinstance(data, dict) and data.get("error") else NOTHING
