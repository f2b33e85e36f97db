"""Whose answers a call may be given: nobody is ever given the answer of another tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: How far an answer is shared.
CacheScope = Literal["global", "org", "team", "key", "end_user"]


def tenant_of(call: Call, scope: CacheScope, *, keyless: bool) -> tuple[str, ...] | None:
    """The tenant of a call, as what is hashed into its key; None for a call whose tenant nobody knows.

    A key without a team (an organisation) is a tenant of its own. `keyless`: there are no keys here, so that all calls
    are of one tenant.
    """
    if scope == "global":
        return ("global",)
    who = call.identity
    if who is None:
        if not keyless:
            return None
        tenant: tuple[str, ...] = ("keyless",)
    elif scope == "org" and (org := who.metadata.get("organization_id")):
        return ("org", str(org))
    elif scope in ("org", "team") and who.team:
        return ("team", who.team)
    else:
        tenant = ("key", who.key_hash)
    return (*tenant, "end_user", end_user(call)) if scope == "end_user" else tenant


def end_user(call: Call) -> str:
    """The user of the client, as it names them; empty where it does not."""
    named = call.headers.get("x-litellm-end-user-id") or call.request.get("user")
    if not named and isinstance(metadata := call.request.get("metadata"), dict):
        named = metadata.get("user_id")  # Anthropic's place for it
    return named if isinstance(named, str) else ""
