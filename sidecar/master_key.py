"""Whether a request to one of the sidecar's own endpoints on the main port has the master key."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from tianji_mw.redact import Secret


def has_master_key(headers: Headers, key: Secret) -> bool:
    """In `Authorization: Bearer` or `x-api-key`; compared in constant time. Nobody has a key that is not there yet."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return key.ready and hmac.compare_digest(given.encode(), key.reveal().encode())
