"""What an error of Azure or its SDK means for an object, and for those after it. Pure, and without their texts."""

from __future__ import annotations

import re
from typing import Any, Final

from tianji_mw.callbacks.objects.base import PutFailed

_CODE: Final = re.compile(r"[A-Za-z]{1,60}")
#: Azure does not know us, or not any more. AuthorizationFailure: a firewall, and what Azurite says to a wrong key.
_LOGIN: Final = frozenset(
    {"AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
)
#: Somebody must mend the account or the container; other objects do not arrive either.
_HALT: Final = frozenset(
    {
        "AccountIsDisabled", "ContainerBeingDeleted", "ContainerDisabled", "ContainerNotFound",
        "InvalidResourceName", "ResourceNotFound",
    }
)  # fmt: skip
#: The object is wrong, and will be wrong again, or the blob in its place may not be replaced.
_REFUSED: Final = frozenset(
    {
        "BlobImmutableDueToPolicy", "InvalidBlobType", "InvalidHeaderValue", "InvalidInput", "InvalidMetadata",
        "InvalidUri",
    }
)  # fmt: skip
_MOST_PAUSE_S: Final = 3600.0


class LoginRefused(PutFailed):
    """Who we are was refused; a secret manager may have another key by now."""


def refusal(error: Any) -> PutFailed:
    """What an AzureError means."""
    status = getattr(error, "status_code", None) or 0
    kind = type(error).__name__
    if not status:
        if kind in ("ClientAuthenticationError", "CredentialUnavailableError"):
            return LoginRefused(f"Entra ID gave no token ({kind})", "halt")
        # Silence in the middle of an answer may be one connection's; who cannot be reached at all stays so.
        return PutFailed(f"no answer ({kind})", "retry" if kind.startswith("ServiceResponse") else "halt")
    code = getattr(error, "error_code", None)
    code = str(getattr(code, "value", code) or "")
    code = code if _CODE.fullmatch(code) else "no code"
    told = f"{code} ({status})"
    pause = _pause(error)
    if status == 401 or code in _LOGIN or (kind == "ClientAuthenticationError" and code == "no code"):
        return LoginRefused(told, "halt", retry_after_s=pause)
    if status == 413 or code == "RequestBodyTooLarge":
        return PutFailed(told, "too_large")
    if code in _HALT:
        return PutFailed(told, "halt", retry_after_s=pause)
    if code in _REFUSED:
        return PutFailed(told, "refused")
    return PutFailed(told, "busy" if status in (429, 503) else "retry", retry_after_s=pause)


def _pause(error: Any) -> float | None:
    """`Retry-After` in seconds."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = str(headers.get("Retry-After") or headers.get("retry-after") or "").strip()
    return min(float(asked), _MOST_PAUSE_S) if asked.isascii() and asked.isdigit() else None
