"""A record as an item of DynamoDB: scalars as attributes of their own, nested parts as JSON text. Pure.

Sources: API reference "AttributeValue", developer guide "Service, account, and table quotas".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any, Final

import orjson

from tianji_mw.apis.base import JSON

Item = dict[str, dict[str, Any]]

#: Bytes of an item with the names of its attributes; a little below AWS's 400 KB, for what encoding adds.
MAX_ITEM: Final = 400 * 1024 - 2048
_DIGITS: Final = Context(prec=38)
_SMALLEST, _LARGEST = Decimal("1e-130"), Decimal("9.9e125")
#: What is given up first when an item is too large.
_LONG: Final = ("response", "messages", "model_parameters", "metadata")


def item_of(data: Mapping[str, Any], key: str, ttl: int | None) -> Item | None:
    """The item under `key` (the attribute `id`); None where it is too large even without content.

    The payload's own `id` becomes `response_id`: providers give an id twice, and then one call would overwrite another.
    """
    fields = {name: value for name, value in data.items() if name != "id"}
    item: Item = {"id": {"S": key}}
    for name, value in {"response_id": data.get("id"), **fields}.items():
        if (attribute := _attribute(value)) is not None:
            item[name] = attribute
    if ttl is not None:
        item["ttl"] = {"N": str(ttl)}
    return _fitted(item)


def size_of(item: Item) -> int:
    """Bytes that AWS counts: names and values in UTF-8; of a number at most 21."""
    return sum(len(name.encode()) + _size(value) for name, value in item.items())


def _size(attribute: Mapping[str, Any]) -> int:
    ((kind, value),) = attribute.items()
    if kind == "S":
        return len(value.encode())
    return 21 if kind == "N" else 1


def _attribute(value: JSON) -> dict[str, Any] | None:
    """None for what DynamoDB has no value for: nothing, and numbers that are none."""
    if value is None:
        return None
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return {"S": value.encode("utf-8", "replace").decode()}
    return {"S": orjson.dumps(value).decode()}


def _number(value: float) -> dict[str, Any] | None:
    """At most 38 digits (API reference, "AttributeValue"); None for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    number = _DIGITS.create_decimal(repr(value))
    if number and not _SMALLEST <= abs(number) <= _LARGEST:
        return {"S": repr(value)}
    return {"N": format(number, "f") if -20 < number.adjusted() < 20 else str(number)}


def _fitted(item: Item) -> Item | None:
    """The item within its limit: long parts give way to their sizes, one after the other."""
    size = size_of(item)
    for name in _LONG:
        if size <= MAX_ITEM:
            return item
        if name in item:
            held = _size(item[name])
            item[name] = {"S": orjson.dumps({"truncated": True, "bytes": held}).decode()}
            size += _size(item[name]) - held
    return item if size <= MAX_ITEM else None
