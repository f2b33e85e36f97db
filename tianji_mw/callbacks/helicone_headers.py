"""The headers of a call that goes through Helicone's proxy: who we are, and what Helicone shall know of the call. Pure.

A client may say what describes its call. Where the request goes, and what Helicone makes of it, is the operator's word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.apis.base import JSON
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: What clients may set, in headers and as `helicone_*` in a request's metadata. `helicone-target-url` and
#: `helicone-openai-api-base` are not among it: they would send the provider's key to any host.
_CLIENT: Final = frozenset(
    {
        "helicone-user-id", "helicone-session-id", "helicone-session-path", "helicone-session-name",
        "helicone-prompt-id", "helicone-cache-enabled", "helicone-cache-bucket-max-size", "helicone-cache-seed",
        "helicone-retry-enabled", "helicone-omit-request", "helicone-omit-response", "helicone-moderations-enabled",
        "helicone-llm-security-enabled",
    }
)  # fmt: skip
_PROPERTY: Final = "helicone-property-"
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_UNFIT: Final = re.compile(r"[^\x20-\x7e]")
_MOST: Final = 1000
_COUNT: Final = 64


def proxy_headers(call: Call, key: Secret, *, content: bool, own: Mapping[str, str]) -> dict[str, str]:
    """All of them, lower case; `content`: whether Helicone may keep what is said; `own`: the operator's headers."""
    found = {**_facts(call), **_of_client(call)}
    found |= {name.lower(): _value(value) for name, value in own.items() if _NAME.fullmatch(name.lower())}
    if not content:
        found |= {"helicone-omit-request": "true", "helicone-omit-response": "true"}
    found = {name: value for name, value in found.items() if value}
    if len(call.attempts) < 2:
        found["helicone-request-id"] = call.id  # another attempt is another request there
    return {**found, "helicone-auth": f"Bearer {key.reveal()}"}


def _facts(call: Call) -> dict[str, str]:
    """What we know of the call by ourselves."""
    request, headers, identity = call.request, call.headers, call.identity
    metadata = _metadata(call)
    user = request.get("user")
    session = request.get("litellm_session_id") or headers.get("x-litellm-session-id") or metadata.get("session_id")
    found: dict[str, JSON] = {"helicone-session-id": session}
    if identity is not None:
        user = user or identity.user
        found |= {f"{_PROPERTY}team": identity.team, f"{_PROPERTY}key": identity.alias}
    found["helicone-user-id"] = user
    return {name: _value(value) for name, value in found.items() if isinstance(value, str)}


def _of_client(call: Call) -> dict[str, str]:
    sent: dict[str, Any] = {name.replace("_", "-").lower(): value for name, value in _metadata(call).items()}
    for name, value in call.headers.raw:
        if name.startswith(b"helicone-"):
            sent[name.decode("latin-1")] = value.decode("latin-1")
    named = [name for name in sent if name in _CLIENT or name.startswith(_PROPERTY)]
    return {name: _value(sent[name]) for name in named[:_COUNT] if _NAME.fullmatch(name)}


def _metadata(call: Call) -> Mapping[str, JSON]:
    found = call.request.get("metadata")
    return found if isinstance(found, dict) else {}


def _value(value: JSON) -> str:
    """A value that a header can hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _UNFIT.sub("?", str(value))[:_MOST].strip() if isinstance(value, str | int | float) else ""
