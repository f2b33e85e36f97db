"""Who called, and with what besides the request: the `metadata` of a record, in LiteLLM's fixed keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tianji_mw.apis.base import JSON

_NOBODY: Final[Mapping[str, JSON]] = {"hash": None, "alias": "", "team": "", "user": "", "metadata": {}}
_NOT_CUSTOM: Final = frozenset({"user-agent", "traceparent", "tracestate"})


def metadata_of(facts: Mapping[str, Any], asked: Mapping[str, JSON]) -> dict[str, JSON]:
    """The metadata of a call's record; `asked` is the metadata of the request itself."""
    identity = facts.get("identity", _NOBODY)
    found: Mapping[str, JSON] = identity["metadata"]
    headers: Mapping[str, str] = facts["headers"]
    team = identity["team"] or None
    return {
        "user_api_key_hash": identity["hash"],
        "user_api_key_alias": identity["alias"] or None,
        "user_api_key_user_id": identity["user"] or None,
        "user_api_key_user_email": found.get("user_email"),
        "user_api_key_team_id": team,
        "user_api_key_team_alias": found.get("team_alias") or team,
        "user_api_key_org_id": found.get("organization_id"),
        "user_api_key_end_user_id": None,
        "user_api_key_request_route": facts["path"],
        "user_api_key_auth_metadata": found,
        "spend_logs_metadata": asked.get("spend_logs_metadata"),
        "requester_ip_address": facts["client"] or None,
        "user_agent": headers.get("user-agent"),
        "requester_metadata": asked,
        "requester_custom_headers": {name: text for name, text in headers.items() if name not in _NOT_CUSTOM},
        "prompt_management_metadata": None,
        "applied_guardrails": facts["applied"].split(",") if facts.get("applied") else [],
        "usage_object": _usage(*facts["usage"]),
    }


def _usage(inputs: int, outputs: int, cached: int, written: int, reasoning: int, source: str) -> dict[str, JSON]:
    return {
        "prompt_tokens": inputs,
        "completion_tokens": outputs,
        "total_tokens": inputs + outputs,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "source": source,
    }
