"""Values of records for metrics: label values that cannot break a page or grow without end, numbers that are numbers.

Any value may be of any type. No plugin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Any, Final

from tianji_mw import redact
from tianji_mw.apis import ALL
from tianji_mw.callbacks.metrics.catalogue import OTHER

#: Longer values are no names.
_LONGEST: Final = 200
_MOST: Final = 1e15
APIS: Final = {api.name: api for api in ALL}
_CLASS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_NONE: Final[Mapping[str, Any]] = {}


def text(value: Any) -> str:
    """A label value: empty for what is no text, `other` where it is too long; no control characters."""
    if not isinstance(value, str):
        return ""
    if len(value) > _LONGEST:
        return OTHER
    return value if value.isprintable() else "".join(one if one.isprintable() else "_" for one in value)


def route_of(api: Any, path: Any) -> str:
    """The route of a path as its API writes it, with `{id}` for parts that differ from call to call."""
    if not isinstance(path, str) or not isinstance(api, str):
        return ""
    if api in APIS:
        have = path.rstrip("/").split("/")
        for pattern in APIS[api].paths:
            want = pattern.lstrip("*").split("/")[1:]
            tail = have[-len(want) :]
            if len(tail) == len(want) and all(w in ("{id}", h) for w, h in zip(want, tail, strict=True)):
                version = ["v1"] if have[: -len(want)][-1:] == ["v1"] else []
                return "/" + "/".join(version + want)
    return OTHER


def address(value: Any) -> str:
    found = text(value)
    return redact.url(found) if "@" in found or "?" in found or "#" in found else found


def status(value: Any) -> str:
    """A HTTP status; empty where there was none."""
    if value is None or value in (0, ""):
        return ""
    shown = str(value) if isinstance(value, int | str) else ""
    return shown if len(shown) == 3 and shown.isdecimal() and shown.isascii() and shown[0] in "12345" else OTHER


def class_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        return ""
    return value if _CLASS.fullmatch(value) else OTHER


def number(value: Any) -> float | None:
    """A number that is not negative, and finite; texts of digits as well."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 16 else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MOST and math.isfinite(value) else None


def between(start: float | None, end: float | None) -> float | None:
    return max(0.0, end - start) if start is not None and end is not None else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NONE


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _inside(holder: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = holder
    for name in path:
        found = mapping(found).get(name)
    return found


@dataclass(frozen=True, slots=True)
class Custom:
    """Labels of the config: paths into a record's metadata, and patterns of tags, by label."""

    paths: Mapping[str, tuple[str, ...]]
    tags: Mapping[str, re.Pattern[str]]

    @classmethod
    def of(cls, paths: Mapping[str, str], tags: Mapping[str, str]) -> Custom:
        """`metadata.a.b` by label; tags with `*` by label."""
        parts = {label: tuple(path.removeprefix("metadata.").split(".")) for label, path in paths.items()}
        return cls(parts, {label: re.compile(_pattern(tag)) for label, tag in tags.items()})

    def values(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What the key says goes before what the request says."""
        said = ("user_api_key_auth_metadata", "spend_logs_metadata", "requester_metadata")
        holders = [*(mapping(metadata.get(name)) for name in said), metadata]
        for label, path in self.paths.items():
            yield label, next((found for holder in holders if (found := text(_inside(holder, path)))), "")
        tags = [tag for tag in items(data.get("request_tags")) if isinstance(tag, str)]
        for label, pattern in self.tags.items():
            yield label, "true" if any(pattern.fullmatch(tag) for tag in tags) else "false"


def _pattern(tag: str) -> str:
    """Only `*` is special, as in LiteLLM."""
    return translate(re.sub(r"([\[?])", r"[\1]", tag))
