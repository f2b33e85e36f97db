"""Whose answers a call may be given: nobody is ever given the answer of another tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.identity.base import Identity

#: How far an answer is shared.
CacheScope = Literal["global", "org", "team", "key", "end_user"]


def tenant_of(call: Call, scope: CacheScope, *, keyless: bool) -> tuple[str, ...] | None:
    """The tenant of a call, as what is hashed into its key; None for a call whose tenant nobody knows.

    `keyless`: there are no keys here, so that all calls are of one tenant.
    """
    if scope == "global":
        return ("global",)
    who = call.identity
    if who is not None:
        tenant = tenant_of_key(who, scope)
    elif keyless:
        tenant = ("keyless",)
    else:
        return None
    return (*tenant, "end_user", end_user(call)) if scope == "end_user" else tenant


def tenant_of_key(who: Identity, scope: CacheScope) -> tuple[str, ...]:
    """The tenant of a key's calls, apart from their end user. A key without a team (an organisation) is one itself."""
    if scope == "global":
        return ("global",)
    if scope == "org" and (org := who.metadata.get("organization_id")):
        return ("org", str(org))
    if scope in ("org", "team") and who.team:
        return ("team", who.team)
    return ("key", who.key_hash)


def end_user(call: Call) -> str:
    """The user of the client, as it names them; empty where it does not."""
    named = call.headers.get("x-litellm-end-user-id") or call.request.get("user")
    if not named and isinstance(metadata := call.request.get("metadata"), dict):
        named = metadata.get("user_id")  # Anthropic's place for it
    return named if isinstance(named, str) else ""
