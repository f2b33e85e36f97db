"""What processes of one router tell each other, as bytes: cooldowns, recoveries, loads. Compact JSON with a version.

A message has at most `MOST_BYTES`; more news is told in several. Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import orjson

VERSION: Final = 1
MOST_BYTES: Final = 64 << 10
#: A message from elsewhere that is longer is not even parsed.
_MOST_HEARD: Final = 4 * MOST_BYTES
_LONGEST_S: Final = 86_400.0
_MOST_CALLS: Final = 1_000_000
_MOST_DETAIL: Final = 200
_HIGHEST_STATUS: Final = 999

Field = Literal["cooled", "closed", "load", "health"]
Item = str | Sequence[str | float | bool]


class Cooled(NamedTuple):
    """A deployment that was taken out, for so many seconds from now."""

    id: str
    seconds: float
    detail: str = ""
    soft: bool = False


class Checked(NamedTuple):
    """A deployment that was asked how it is: `healthy` or `unhealthy`, with the HTTP status of a failure."""

    id: str
    healthy: bool
    status: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class News:
    """One message."""

    sender: str
    cooled: Sequence[Cooled] = ()
    health: Sequence[Checked] = ()
    #: Deployments that were used with success after their cooldown.
    closed: Sequence[str] = ()
    #: Calls in flight, by deployment id; the others are as they were.
    load: dict[str, int] = field(default_factory=dict)
    #: The sender ends.
    bye: bool = False


def bye(sender: str) -> bytes:
    """The last message."""
    return orjson.dumps({"v": VERSION, "from": sender, "bye": True})


def written(sender: str, name: Field, items: Sequence[Item]) -> Iterator[bytes]:
    """Messages with all items; without any, one that says that the sender lives.

    >>> list(written("a", "load", [("d1", 3)]))
    [b'{"v":1,"from":"a","load":[["d1",3]]}']
    """
    message = orjson.dumps({"v": VERSION, "from": sender, name: items})
    if len(message) <= MOST_BYTES or len(items) < 2:
        yield message
        return
    half = len(items) // 2
    yield from written(sender, name, items[:half])
    yield from written(sender, name, items[half:])


def said(cooled: Cooled) -> Item:
    """An item of `cooled`."""
    return (cooled.id, round(cooled.seconds, 3), cooled.detail[:_MOST_DETAIL], cooled.soft)


def read(message: bytes) -> News | None:
    """What a message says; None where it is of another version. Raises ValueError for what no process would write."""
    if len(message) > _MOST_HEARD:
        raise ValueError("too long")
    told = orjson.loads(message)
    if not isinstance(told, dict) or type(told.get("v")) is not int:
        raise ValueError("no version")
    if told["v"] != VERSION:
        return None
    return News(
        sender=_text(told.get("from")),
        cooled=tuple(cooled_of(item) for item in _list(told, "cooled")),
        closed=tuple(_text(item) for item in _list(told, "closed")),
        health=tuple(_checked(item) for item in _list(told, "health")),
        load=dict(_load(item) for item in _list(told, "load")),
        bye=told.get("bye") is True,
    )


def cooled_of(item: Any) -> Cooled:
    """Raises ValueError."""
    if not isinstance(item, list) or len(item) != 4:
        raise ValueError("a cooldown has four parts")
    name, seconds, detail, soft = item
    if type(seconds) not in (int, float) or not 0 < seconds <= _LONGEST_S or not isinstance(detail, str):
        raise ValueError("no cooldown")
    return Cooled(_text(name), float(seconds), detail[:_MOST_DETAIL], soft is True)


def _checked(item: Any) -> Checked:
    if not isinstance(item, list) or len(item) != 3:
        raise ValueError("a check has three parts")
    name, healthy, status = item
    if type(healthy) is not bool or type(status) is not int or not 0 <= status <= _HIGHEST_STATUS:
        raise ValueError("no check")
    return Checked(_text(name), healthy, status)


def _load(item: Any) -> tuple[str, int]:
    if not isinstance(item, list) or len(item) != 2:
        raise ValueError("a load has two parts")
    name, count = item
    if type(count) is not int or not 0 <= count <= _MOST_CALLS:
        raise ValueError("no count")
    return _text(name), count


def _list(told: dict[str, Any], name: Field) -> list[Any]:
    found = told.get(name, [])
    if not isinstance(found, list):
        raise ValueError("no list")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no text")
    return value
