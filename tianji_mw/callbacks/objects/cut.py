"""Takes files, or answers, out of a record before it is stored: LiteLLM's `strip_base64_files` and `log_prompts_only`.

Copies where it changes something; the record itself stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tianji_mw.apis.base import JSON

#: Stands where base64 was inside a text.
MARK: Final = "[base64 removed]"
#: Parts of messages that are a file: OpenAI's chat and Responses, Anthropic's Messages.
_FILES: Final = frozenset(
    {
        "file", "image", "image_url", "input_audio", "audio", "video", "document",
        "input_file", "input_image", "image_generation_call",
    }
)  # fmt: skip
#: Fields whose text is bare base64 when it is long and looks like it.
_BARE: Final = frozenset({"data", "b64_json", "file_data", "partial_image_b64"})
_BARE_TEXT: Final = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_DATA_URL: Final = re.compile(r"data:[^,;\s]{0,100}(?:;[^,;\s]{0,100}){0,8};base64,[A-Za-z0-9+/=_-]*")
_DEPTH: Final = 64


def without_files(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record with no file in `messages` and `response`: such parts are gone, base64 in texts has become `MARK`."""
    return {**data, **{field: _clean(data[field], "", _DEPTH) for field in ("messages", "response") if field in data}}


def prompts_only(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record without the answer."""
    return {**data, "response": None}


def _clean(value: JSON, field: str, depth: int) -> JSON:
    if isinstance(value, str):
        if field in _BARE and _BARE_TEXT.fullmatch(value):
            return MARK
        return _DATA_URL.sub(MARK, value) if ";base64," in value else value
    if depth == 0 and isinstance(value, list | dict):
        return None  # deeper than any API goes; it could hide a file
    if isinstance(value, list):
        return [_clean(item, field, depth - 1) for item in value if not _is_file(item)]
    if isinstance(value, dict):
        return {key: _clean(item, key, depth - 1) for key, item in value.items()}
    return value


def _is_file(part: JSON) -> bool:
    return isinstance(part, dict) and (str(part.get("type")) in _FILES or "file" in part)
