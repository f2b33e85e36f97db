"""Keeps attributes below their limit: long texts inside of them are cut first, so that JSON stays JSON. Pure."""

from __future__ import annotations

from typing import Any, Final

import orjson

from tianji_mw.apis.base import JSON

#: Bytes of one attribute.
LIMIT: Final = 64 << 10
_MARK: Final = "...(truncated, {} bytes)"
#: Characters that a text inside keeps, tried in this order.
_KEPT: Final = (16_384, 4_096, 1_024, 256, 64)
_DEPTH: Final = 40
_OPTIONS: Final = orjson.OPT_NON_STR_KEYS


def clean(text: str) -> str:
    """The text as valid Unicode: halves of pairs become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def cut(text: str, limit: int = LIMIT) -> str:
    """The text, or its beginning and a mark with its length, in `limit` bytes of UTF-8 at most."""
    if len(text) * 4 <= limit:
        return clean(text)
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    mark = _MARK.format(len(raw))
    return raw[: max(limit - len(mark), 0)].decode("utf-8", "ignore") + mark


def json_text(value: JSON, limit: int = LIMIT) -> str:
    """The value as JSON of at most `limit` bytes; what does not fit even with short texts loses its end."""
    raw = _dumped(value)
    if len(raw) <= limit:
        return raw.decode()
    for kept in _KEPT:
        raw = _dumped(_shorter(value, kept, _DEPTH))
        if len(raw) <= limit:
            return raw.decode()
    if isinstance(value, list) and len(value) > 1:
        return _ends(value, limit)
    return _dumped({"truncated": True, "bytes": len(_dumped(value))}).decode()


def _ends(items: list[JSON], limit: int) -> str:
    """The first item and as many of the last as fit: of a conversation those are what matters."""
    short = [_dumped(_shorter(item, _KEPT[-1], _DEPTH)) for item in items]
    left = limit - 200
    tail: list[bytes] = []
    head = [short[0]] if len(short[0]) < left // 2 else []
    left -= sum(len(item) + 1 for item in head)
    for item in reversed(short[1:]):
        if len(item) + 1 > left:
            break
        left -= len(item) + 1
        tail.append(item)
    gone = len(items) - len(head) - len(tail)
    mark = _dumped({"role": "system", "parts": [{"type": "text", "content": f"...({gone} items truncated)"}]})
    return (b"[" + b",".join([*head, mark, *reversed(tail)]) + b"]").decode()


def _dumped(value: JSON) -> bytes:
    try:
        return orjson.dumps(value, default=str, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        # Half a pair of surrogates somewhere, a number of more than 64 bits, or more levels than the encoder takes.
        return orjson.dumps(_safe(value, _DEPTH), default=str)


def _safe(value: Any, depth: int) -> JSON:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value) if abs(value) < 1 << 4096 else "(a number)"
    if isinstance(value, (dict, list, tuple)) and not depth:
        return "(more levels)"
    if isinstance(value, dict):
        return {clean(str(key)): _safe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(item, depth - 1) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else clean(str(value))


def _shorter(value: JSON, kept: int, depth: int) -> JSON:
    if isinstance(value, str):
        return cut(value, kept) if len(value) > kept else value
    if isinstance(value, (dict, list)) and not depth:
        return "(more levels)"
    if isinstance(value, dict):
        return {key: _shorter(item, kept, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorter(item, kept, depth - 1) for item in value]
    return value
