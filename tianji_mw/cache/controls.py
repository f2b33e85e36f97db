"""What a request says about the cache: the field `cache`, LiteLLM's `caching`, and HTTP's `Cache-Control`.

The field goes before the header, and both before what the caller's key says. `allowed_cache_controls` of a key names
the directives that its requests may use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tianji_mw.apis.base import JSON
from tianji_mw.errors import InvalidRequest, PermissionDenied

if TYPE_CHECKING:
    from tianji_mw.call import Call

_NAMES: Final[Mapping[str, str]] = {"s-max-age": "s-maxage", "no_cache": "no-cache", "no_store": "no-store"}
_KNOWN: Final = frozenset({"no-cache", "no-store", "ttl", "s-maxage", "namespace", "use-cache"})
_DIRECTIVE: Final = re.compile(r"(no-cache|no-store|max-age|s-maxage)\s*(?:=\s*\"?(\d{1,10})\"?)?", re.IGNORECASE)
_MAX_NAMESPACE: Final = 256
_NOTHING: Final[Mapping[str, JSON]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """How this call uses the cache."""

    read: bool = True
    write: bool = True
    #: Seconds for what is stored now; None for the cache's own.
    ttl_s: float | None = None
    #: The oldest answer that is good enough, in seconds.
    max_age_s: float | None = None
    #: A name of the client's own, within its tenant.
    namespace: str = ""

    @property
    def used(self) -> bool:
        """Whether the cache has anything to do for it."""
        return self.read or self.write


DEFAULT: Final = Controls()
_OFF: Final = Controls(read=False, write=False)


def controls_of(call: Call, *, default_on: bool) -> Controls:
    """The controls of a call. Raises InvalidRequest for wrong ones, PermissionDenied for those its key may not use."""
    request, header = call.request, call.headers.get("cache-control")
    of_key = call.identity.metadata if call.identity is not None else _NOTHING
    asked = request.get("cache")
    if asked is None and header is None and "caching" not in request and not of_key:
        return DEFAULT if default_on else _OFF
    found = {**_of_header(header or ""), **_named(asked)}
    _allow(found, of_key.get("allowed_cache_controls"))
    of_key_cache = of_key.get("cache")
    found = {**(_named(of_key_cache) if isinstance(of_key_cache, dict) else {}), **found}
    switch = request.get("caching")
    if switch is False or not (default_on or found.get("use-cache") is True or switch is True):
        return _OFF
    return Controls(
        read=not _flag(found, "no-cache"),
        write=not _flag(found, "no-store"),
        ttl_s=_seconds(found, "ttl"),
        max_age_s=_seconds(found, "s-maxage"),
        namespace=_text(found),
    )


def _named(asked: JSON) -> dict[str, JSON]:
    if asked is None:
        return {}
    if not isinstance(asked, dict):
        raise InvalidRequest("'cache' must be an object such as {\"no-cache\": true}.", param="cache")
    return {name: value for key, value in asked.items() if (name := _NAMES.get(key, key)) in _KNOWN}


def _of_header(header: str) -> dict[str, JSON]:
    """`Cache-Control` (RFC 9111, 5.2.1), as far as it says something here; LiteLLM's `s-maxage` sets the ttl."""
    found: dict[str, JSON] = {}
    for directive, seconds in _DIRECTIVE.findall(header):
        name = directive.lower()
        if name in ("no-cache", "no-store"):
            found[name] = True
        elif seconds:
            found["s-maxage" if name == "max-age" else "ttl"] = int(seconds)
    return found


def _allow(found: Mapping[str, JSON], allowed: JSON) -> None:
    if not allowed or not isinstance(allowed, list | tuple):
        return
    names = {_NAMES.get(name, name) for name in allowed if isinstance(name, str)}
    for name in found:
        if name not in names:
            raise PermissionDenied(
                f"cache control '{name}' not allowed for this key", code="cache_control_not_allowed", param="cache"
            )


def _flag(found: Mapping[str, JSON], name: str) -> bool:
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"'cache.{name}' must be true or false.", param="cache")
    return value is True


def _seconds(found: Mapping[str, JSON], name: str) -> float | None:
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidRequest(f"'cache.{name}' must be a number of seconds.", param="cache")
    return float(value)


def _text(found: Mapping[str, JSON]) -> str:
    value = found.get("namespace") or ""
    if not isinstance(value, str) or len(value) > _MAX_NAMESPACE:
        raise InvalidRequest(f"'cache.namespace' must be text of at most {_MAX_NAMESPACE} characters.", param="cache")
    return value
