"""Rerank: `POST /v1/rerank` and `/v2/rerank`, in the shape Cohere introduced and Jina, Voyage, Together, vLLM share.

Source: Cohere API reference, "Rerank"; Jina and Voyage reranker references for `usage`; Hugging Face
text-embeddings-inference for `texts`. It never streams. Documents in an answer are the client's own, not the model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from tianji_mw.apis.base import JSON, NOTHING, Api, Part, Seen, Usage
from tianji_mw.errors import InvalidRequest


class Rerank(Api):
    """Requests with a `query` and `documents` (strings, or objects with any text fields).

    >>> [part.text for part in Rerank().texts({"query": "q", "documents": ["a", {"title": "b"}]})]
    ['q', 'a', 'b']
    """

    name: ClassVar[str] = "rerank"
    paths: ClassVar[tuple[str, ...]] = ("*/v1/rerank", "*/v2/rerank", "/rerank")
    required: ClassVar[tuple[str, ...]] = ("query",)
    usage_pattern: ClassVar[re.Pattern[bytes]] = re.compile(rb'"(?:usage|meta)"\s*:\s*\{')

    def validate(self, request: Mapping[str, JSON]) -> None:
        super().validate(request)
        if not isinstance(request["query"], str | dict):
            raise InvalidRequest("'query' must be a string.", param="query")
        if not isinstance(request.get("documents", request.get("texts")), list):
            raise InvalidRequest("'documents' must be a list of strings or objects.", param="documents")

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        yield from _fields(request.get("query"), ("query",), "user")
        for field in ("documents", "texts"):
            documents = request.get(field)
            for i, document in enumerate(documents if isinstance(documents, list) else ()):
                # A document is found text, like a tool's answer: nobody typed it into a chat.
                yield from _fields(document, (field, i), "tool")

    def see_whole(self, data: JSON) -> Seen:
        return Seen("error") if isinstance(data, dict) and data.get("error") else NOTHING

    def usage(self, data: JSON) -> Usage | None:
        """Cohere counts under `meta` (`tokens`, else what was billed), the others under `usage`."""
        if not isinstance(data, dict):
            return None
        meta, usage = _dict(data.get("meta")), _dict(data.get("usage"))
        counts = _dict(meta.get("tokens")) or _dict(meta.get("billed_units")) or usage
        names = ("input_tokens", "prompt_tokens", "total_tokens")
        inputs = next((n for name in names if isinstance(n := counts.get(name), int) and n > 0), None)
        if inputs is None:
            return None  # billed by search units: no tokens are known
        outputs = counts.get("output_tokens")
        return Usage(
            input_tokens=inputs,
            output_tokens=outputs if isinstance(outputs, int) and outputs > 0 else 0,
            source="provider",
        )


def _fields(value: JSON, path: tuple[str | int, ...], role: str) -> Iterator[Part]:
    """A text, or every text field of an object (`rank_fields` chooses among them, so all count)."""
    if isinstance(value, str):
        yield Part(path, role, value)
    elif isinstance(value, dict):
        for key, text in value.items():
            if isinstance(text, str):
                yield Part((*path, key), role, text)


def _dict(value: JSON) -> Mapping[str, JSON]:
    return value if isinstance(value, dict) else {}
