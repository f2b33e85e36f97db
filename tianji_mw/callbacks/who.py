"""Who called, and with what besides the request: the `metadata` of a record, in LiteLLM's fixed keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.apis.base import JSON
from tianji_mw.redact import SECRET_HEADERS

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Beginnings of the headers that are logged; vendors have names of their own.
_LOGGED: Final = (b"x-", b"helicone-", b"langfuse_", b"langfuse-")
#: Of a key's metadata: settings of ours, with credentials in them.
_SETTINGS: Final = frozenset({"logging", "guardrails", "disable_global_guardrails", "secret_manager_settings"})
_NOBODY: Final[Mapping[str, JSON]] = {}


def who_called(call: Call) -> dict[str, Any]:
    """The metadata of the call's record."""
    identity = call.identity
    found = identity.metadata if identity is not None else _NOBODY
    asked = call.request.get("metadata")
    if not isinstance(asked, dict):
        asked = call.request.get("litellm_metadata")
    usage = call.usage
    team = identity.team or None if identity is not None else None
    return {
        "user_api_key_hash": identity.key_hash if identity is not None else None,
        "user_api_key_alias": identity.alias or None if identity is not None else None,
        "user_api_key_user_id": identity.user or None if identity is not None else None,
        "user_api_key_user_email": found.get("user_email"),
        "user_api_key_team_id": team,
        "user_api_key_team_alias": found.get("team_alias") or team,
        "user_api_key_org_id": found.get("organization_id"),
        "user_api_key_end_user_id": None,
        "user_api_key_request_route": call.path,
        "user_api_key_auth_metadata": {k: v for k, v in found.items() if k not in _SETTINGS} if found else {},
        "spend_logs_metadata": asked.get("spend_logs_metadata") if isinstance(asked, dict) else None,
        "requester_ip_address": call.client or None,
        "user_agent": call.headers.get("user-agent"),
        "requester_metadata": asked if isinstance(asked, dict) else {},
        "requester_custom_headers": custom_headers(call),
        "prompt_management_metadata": None,
        "applied_guardrails": _applied(call),
        "usage_object": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "cache_creation_input_tokens": usage.cache_write_tokens,
            "cache_read_input_tokens": usage.cached_tokens,
        },
    }


def custom_headers(call: Call) -> dict[str, str]:
    """The client's headers of its own, `x-*` and those of vendors; no credential."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in call.headers.raw
        if name.startswith(_LOGGED) and name.decode("latin-1") not in SECRET_HEADERS
    }


def _applied(call: Call) -> list[str]:
    names = call.response_headers.get("x-litellm-applied-guardrails")
    return names.split(",") if names else []
