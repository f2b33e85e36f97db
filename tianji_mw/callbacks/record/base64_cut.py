"""Cuts base64 out of what is logged: an image of megabytes becomes its first characters and its length. Pure."""

from __future__ import annotations

import re
from typing import Final

from tianji_mw.apis.base import JSON

#: LiteLLM's MAX_BASE64_LENGTH_FOR_LOGGING.
DEFAULT_KEPT: Final = 64
_DATA_URL: Final = re.compile(r"(data:[^,;\s]{0,100}(?:;[^,;\s]{0,100})*;base64,)([A-Za-z0-9+/=_-]+)")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
#: Fields that hold bare base64 in the APIs: images, audio and files.
_FIELDS: Final = frozenset({"data", "b64_json", "file_data"})
_DEPTH: Final = 40


def holds_base64(body: bytes) -> bool:
    """Whether it is worth a look: a cheap test of the whole text."""
    return b"base64" in body or b"b64_json" in body or b'"input_audio"' in body


def shortened(value: JSON, kept: int = DEFAULT_KEPT) -> JSON:
    """The value with every base64 text cut to `kept` characters; the same object where there is none."""
    return _shortened(value, "", kept, _DEPTH)


def _shortened(value: JSON, field: str, kept: int, depth: int) -> JSON:
    if isinstance(value, str):
        return _cut(value, field, kept)
    if depth == 0:
        return value
    if isinstance(value, list):
        items = [_shortened(item, field, kept, depth - 1) for item in value]
        return value if all(map(lambda a, b: a is b, items, value)) else items
    if isinstance(value, dict):
        fields = {key: _shortened(item, key, kept, depth - 1) for key, item in value.items()}
        return value if all(fields[key] is item for key, item in value.items()) else fields
    return value


def _cut(text: str, field: str, kept: int) -> str:
    if len(text) <= kept:
        return text
    if field in _FIELDS and _BASE64.fullmatch(text):
        return f"{text[:kept]}... ({len(text)} characters of base64)"
    if ";base64," in text:
        return _DATA_URL.sub(lambda found: found[1] + _short(found[2], kept), text)
    return text


def _short(data: str, kept: int) -> str:
    return data if len(data) <= kept else f"{data[:kept]}... ({len(data)} characters of base64)"
