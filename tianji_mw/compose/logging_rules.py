"""What the config says of all records together: what is in them, what callers may wish, where they wait."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tianji_mw.callbacks.record.base64_cut import DEFAULT_KEPT
from tianji_mw.callbacks.record.payload import RecordRules
from tianji_mw.callbacks.record.snapshot import ContentRules
from tianji_mw.callbacks.record.wishes import Wishes

if TYPE_CHECKING:
    from tianji_mw.config.settings import Settings


def rules_of(settings: Settings, env: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of the `Callbacks` layer."""
    keys = settings.settings
    kept = env.get("MAX_BASE64_LENGTH_FOR_LOGGING", "")
    base64_kept = int(kept) if kept.isdecimal() else DEFAULT_KEPT
    return {
        "rules": RecordRules(
            key_info=not keys.redact_user_api_key_info,
            error_messages=not keys.redact_messages_in_exceptions,
            user_agent_tags=not keys.disable_add_user_agent_to_request_tags,
            tag_headers=tuple(name.lower() for name in keys.extra_spend_tag_headers),
            correlation=keys.request_correlation_in_logs,
            base64_kept=base64_kept,
        ),
        "content": ContentRules(
            content=not keys.turn_off_message_logging,
            base64_kept=base64_kept,
            max_bytes=int(keys.max_logged_mb * (1 << 20)),
            headers=tuple(name.lower() for name in keys.extra_spend_tag_headers),
        ),
        "wishes": Wishes(
            allow_no_log=not keys.global_disable_no_log_param,
            allow_disabling=keys.allow_dynamic_callback_disabling,
            allow_revealing=keys.allow_dynamic_message_logging,
        ),
        "spool_max_bytes": int(keys.spool_max_mb * (1 << 20)),
        "forward_trace": keys.forward_traceparent_to_llm_provider,
        "flush_s": settings.general_settings.flush_s,
        **_spool(keys.spool_dir or env.get("TIANJI_SPOOL_DIR", ""), env),
    }


def _spool(named: str, env: Mapping[str, str]) -> dict[str, Any]:
    """A folder that was named must be usable; the usual one may be missing, and records then wait in memory."""
    if named == "memory":
        return {"spool": None}
    if named:
        return {"spool": Path(named).expanduser()}
    home = env.get("XDG_STATE_HOME") or (f"{env['HOME']}/.local/state" if env.get("HOME") else "")
    usual = Path(home) / "tianji" / "spool" if home else None
    return {"spool": usual, "spool_required": False}
