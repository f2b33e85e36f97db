"""What answers of Vault mean: logins, bodies, errors of a store. Texts of the server are looked into, never shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tianji_mw.redact import Secret
from tianji_mw.secrets.base import (
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretNotFound,
    StoreMisconfigured,
    StoreUnreachable,
)

#: 429 rate limit or standby, 412 not replicated yet, 472 and 473 other kinds of standby.
_PASSING: Final = frozenset({412, 429, 472, 473})


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A token, and how long it holds."""

    token: Secret
    #: Seconds that it was given for; None without an end.
    ttl: float | None
    #: On the clock of `time.monotonic`.
    until: float = 0.0
    renewable: bool = False

    def left(self) -> float | None:
        return None if self.ttl is None else max(0.0, self.until - time.monotonic())


def login_of(token: Secret, data: object, ttl_key: str) -> Login:
    found = data if isinstance(data, dict) else {}
    left = found.get(ttl_key)
    left = float(left) if isinstance(left, int | float) and left > 0 else None
    whole = found.get("creation_ttl")
    ttl = max(left, float(whole)) if left is not None and isinstance(whole, int | float) else left
    until = time.monotonic() + (left or 0.0)
    return Login(token=token, ttl=ttl, until=until, renewable=bool(found.get("renewable")))


def given(where: str, answer: Any) -> Login:
    """The login in an answer to a login or a renewal."""
    auth = body_of(where, answer).get("auth")
    token = auth.get("client_token") if isinstance(auth, dict) else None
    if not isinstance(token, str) or not token:
        raise SecretMalformed(f"{where}: the answer to the login holds no token")
    return login_of(Secret(token), auth, "lease_duration")


def _json(answer: Any) -> dict[str, Any] | None:
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def body_of(where: str, answer: Any) -> dict[str, Any]:
    body = _json(answer)
    if body is None:
        raise SecretMalformed(f"{where}: the answer of the server is no JSON object (status {answer.status_code})")
    return body


def refusal(where: str, answer: Any) -> SecretError:
    """What an answer means. The server's reasons are looked into, and never shown."""
    status, body = answer.status_code, _json(answer) or {}
    if status == 404:
        return SecretNotFound(f"{where}: {_absent(body)}")
    if status in (401, 403):
        return SecretDenied(f"{where}: permission denied; the token is not valid, or its policies do not allow this")
    if status == 501:
        return StoreUnreachable(f"{where}: the server is not initialised")
    if status == 503 and (body.get("sealed") is True or "sealed" in str(body.get("errors"))):
        return StoreUnreachable(f"{where}: the server is sealed")
    if status in _PASSING or status >= 500:
        return StoreUnreachable(f"{where}: the server failed or asks for a pause (status {status})")
    return StoreMisconfigured(f"{where}: the server refused the question (status {status}); check mount and address")


def _absent(body: Mapping[str, Any]) -> str:
    data = body.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if isinstance(metadata, dict):
        state = "destroyed" if metadata.get("destroyed") else "deleted"
        return f"version {metadata.get('version')} of the secret is {state}"
    if body.get("warnings"):
        return "there is no such secret; check kv_version"
    return "there is no such secret, version or mount"
