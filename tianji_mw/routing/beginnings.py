"""The beginnings of a prompt, as keys: a conversation that has grown begins as it did the last time.

What providers cache is a prefix: tools, then the system prompt, then message after message. Each end of a message that
is far enough in has a key. Marks of `cache_control` move on from turn to turn and are no part of it. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from tianji_mw.apis.base import JSON

#: Providers cache nothing shorter than 1,024 tokens; four bytes each, as in `demand.py`.
LEAST_TOKENS: Final = 1024
_LEAST_BYTES: Final = 4 * LEAST_TOKENS
#: Turns from the end that have a key: those of earlier requests are not further back.
_MOST: Final = 64
_HEAD: Final = ("tools", "functions", "system", "instructions")
_SYSTEM: Final = frozenset({"system", "developer"})
_TEXT: Final = frozenset({"type", "text", "cache_control"})
#: In bytes of JSON, only a key looks like this: quotes in texts are escaped.
_MARK: Final = b'"cache_control":'


class Beginnings(NamedTuple):
    """Keys of one request; empty where a part is too short."""

    #: Those of the last turns, the longest first; and `head`.
    keys: list[str]
    #: Up to the last mark; without one, up to before the last message of the user: what a next request will share.
    stable: str
    #: Without any turn of a conversation: what many conversations share.
    head: str


def beginnings_of(request: Mapping[str, JSON], scope: str) -> Beginnings:
    """One pass over the request. Keys of different scopes differ."""
    hashed = hashlib.sha256(scope.encode("utf-8", "replace"))  # twice as fast as BLAKE2 where the CPU helps
    size, marked = 0, -1
    turns = _turns(request)
    leading = next((n for n, turn in enumerate(turns) if _role(turn) not in _SYSTEM), len(turns))
    head = [*((name, request[name]) for name in _HEAD if name in request), *(("", turn) for turn in turns[:leading])]
    for name, part in head:
        raw, mark = _raw(part)
        hashed.update(b"%b:%b\0" % (name.encode(), raw))
        size += len(raw)
        marked = 0 if mark else marked
    #: At [n]: the key of what ends after n turns of the conversation.
    ends, asked, old = [_key(hashed, size)], 1, len(turns) - leading - _MOST
    for number, turn in enumerate(turns[leading:], 1):
        raw, mark = _raw(turn)
        hashed.update(raw + b"\0")
        size += len(raw)
        ends.append(_key(hashed, size) if number > old else "")
        marked = number if mark else marked
        asked = number if _role(turn) == "user" else asked
    return Beginnings([key for key in reversed(ends) if key], ends[marked if marked >= 0 else asked - 1], ends[0])


def _key(hashed: Any, size: int) -> str:
    return hashed.hexdigest()[:32] if size >= _LEAST_BYTES else ""


def _turns(request: Mapping[str, JSON]) -> list[Any]:
    turns = request.get("messages", request.get("input"))
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    return turns if isinstance(turns, list) else []


def _role(turn: Any) -> str:
    role = turn.get("role") if isinstance(turn, dict) else None
    return role if isinstance(role, str) else ""


def _raw(value: JSON) -> tuple[bytes, bool]:
    """A part as bytes, and whether a mark stood in it."""
    if isinstance(value, dict) and "cache_control" not in value:
        content = value.get("content")
        if isinstance(content, str):
            return orjson.dumps(value), False
        if isinstance(content, list) and len(content) == 1 and _is_text(part := content[0]):
            # Clients that mark a text write it as a list of one part, and as a text when the mark has moved on.
            return orjson.dumps({**value, "content": part["text"]}), "cache_control" in part
    raw = orjson.dumps(value)
    return (orjson.dumps(_bare(value)), True) if _MARK in raw else (raw, False)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str) and part.keys() <= _TEXT


def _bare(value: Any) -> Any:
    """Without marks."""
    if isinstance(value, dict):
        return {name: _bare(inner) for name, inner in value.items() if name != "cache_control"}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value
