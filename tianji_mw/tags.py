"""Tags of a call: labels by which guardrails, routing and reports tell calls apart. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tianji_mw.apis.base import JSON

if TYPE_CHECKING:
    from tianji_mw.call import Call


def tags_of(call: Call) -> list[str]:
    """Those of the key, of the request (`tags`, `metadata.tags`) and of the header `x-litellm-tags`, each once."""
    request = call.request
    metadata = request.get("metadata")
    header = call.headers.get("x-litellm-tags") or call.headers.get("x-tianji-tags") or ""
    found = [
        *(call.identity.tags if call.identity is not None else ()),
        *_texts(request.get("tags")),
        *_texts(metadata.get("tags") if isinstance(metadata, dict) else None),
        *(tag.strip() for tag in header.split(",")),
    ]
    return [tag for tag in dict.fromkeys(found) if tag]


def _texts(value: JSON) -> Iterator[str]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))
