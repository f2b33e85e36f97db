"""What a request, a key or a team wants of logging: no log, no content, some destinations left out. Pure.

A request may have less logged of it. More, it may only have where the operator allows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tianji_mw.apis.base import JSON

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.headers import RequestHeaders

_NONE: Final[frozenset[str]] = frozenset()
_DISABLE: Final = frozenset({b"x-litellm-disable-callbacks", b"x-tianji-disable-callbacks"})
_REDACT: Final = frozenset(
    {b"litellm-enable-message-redaction", b"x-litellm-enable-message-redaction", b"x-tianji-redact"}
)
_REVEAL: Final = frozenset({b"litellm-disable-message-redaction"})
_FIELD: Final = "turn_off_message_logging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator lets callers decide."""

    #: `no-log: true` in a request keeps it out of every destination.
    allow_no_log: bool = True
    #: The header `x-litellm-disable-callbacks: name,name`.
    allow_disabling: bool = True
    #: A request may have its content logged although the config turns that off.
    allow_revealing: bool = False

    def without(self, call: Call) -> frozenset[str] | None:
        """Destinations that do not hear of the call; None: none does."""
        if call.request.get("no-log") is True and self.allow_no_log:
            return None
        if not self.allow_disabling or call.headers.isdisjoint(_DISABLE):
            return _NONE
        listed = call.headers.get("x-litellm-disable-callbacks") or call.headers.get("x-tianji-disable-callbacks")
        return frozenset(name.strip() for name in (listed or "").split(",") if name.strip())

    def content(self, call: Call, default: bool) -> bool:
        """Whether what was asked and answered is logged; `default` is the config's word."""
        headers = call.headers
        if self.allow_revealing and not headers.isdisjoint(_REVEAL) and _truthy(headers, _REVEAL):
            return True
        asked = _switch(call.request.get(_FIELD))
        if asked is not None and (asked or self.allow_revealing):
            return not asked
        if not headers.isdisjoint(_REDACT) and _truthy(headers, _REDACT):
            return False
        identity = call.identity
        of_key = _switch(identity.metadata.get(_FIELD)) if identity is not None else None
        return default if of_key is None else not of_key


def _truthy(headers: RequestHeaders, names: frozenset[bytes]) -> bool:
    return any(_switch(headers.get(name.decode())) for name in names)


def _switch(value: JSON) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    return None
