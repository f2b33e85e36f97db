"""Readings of JSON that came from outside: each gives its type, whatever the value is.

Bridges must not fail on an answer's odd spots; the shape as a whole is judged by the bridge itself.
"""

from __future__ import annotations

import json
from typing import Final

import orjson

from tianji_mw.apis.base import JSON

#: Under this many brackets a text cannot nest deeper than orjson encodes (254 levels).
_SHALLOW: Final = 200
#: Tool arguments that are no JSON object go under this key: a model wrote them, so the conversation must go on.
RAW_ARGUMENTS: Final = "raw_arguments"


def record(value: JSON) -> dict[str, JSON]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def records(value: JSON) -> list[dict[str, JSON]]:
    """The objects in a list; none for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def string(value: JSON) -> str:
    """The value if it is a string, else the empty one."""
    return value if isinstance(value, str) else ""


def count(value: JSON) -> int:
    """The value if it is a number of things, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def texts(content: JSON) -> list[str]:
    """The texts of a `content`: a string, or the text parts of a list, in order, without empty ones."""
    if isinstance(content, str):
        found = [content]
    else:
        items = content if isinstance(content, list) else []
        found = [item if isinstance(item, str) else string(record(item).get("text")) for item in items]
    return [text for text in found if text]


def dumps(value: JSON) -> str:
    """Compact JSON text of any value; `{}` for one nested too deeply to write."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return "{}"


def arguments(text: JSON) -> dict[str, JSON]:
    """Tool arguments (a string of JSON) as an object; empty ones are `{}`.

    >>> arguments('{"a": 1}'), arguments(""), arguments("{oops")
    ({'a': 1}, {}, {'raw_arguments': '{oops'})
    """
    if isinstance(text, dict):
        return text
    text = string(text)
    if not text.strip():
        return {}
    try:
        value = orjson.loads(text)
        if text.count("{") + text.count("[") > _SHALLOW:
            orjson.dumps(value)
    except (ValueError, TypeError):
        value = None
    return value if isinstance(value, dict) else {RAW_ARGUMENTS: text}
