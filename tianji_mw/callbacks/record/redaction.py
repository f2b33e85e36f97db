"""Takes content, or who the caller is, out of a record: pure functions over its fields, and copies where they change.

What stays: ids, models, tokens, cost, times, statuses, the names and counts of guardrails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tianji_mw.apis.base import JSON

#: As LiteLLM writes it; dashboards look for it.
MARKER: Final = "redacted-by-litellm"
MARKED_MESSAGES: Final = [{"role": "user", "content": MARKER}]

#: Fields of an answer that hold no content, in any API.
_PLAIN: Final = frozenset(
    {
        "id", "object", "created", "created_at", "completed_at", "model", "usage", "system_fingerprint",
        "service_tier", "type", "role", "status", "index", "finish_reason", "stop_reason",
    }
)  # fmt: skip
#: Params of a request that are instructions or examples in themselves.
_SPEAKING: Final = frozenset({"tools", "functions", "response_format", "prediction", "stop", "stop_sequences", "text"})
#: Of a guardrail's information.
_JUDGED: Final = frozenset({"guardrail_request", "guardrail_response", "match_details", "classification"})
_KEY_INFO: Final = "user_api_key"


def without_content(data: Mapping[str, JSON]) -> dict[str, JSON]:
    """The record without a word of what was asked and answered."""
    out = {**data, "messages": MARKED_MESSAGES, "response": without_answer(data.get("response"))}
    params = data.get("model_parameters")
    if isinstance(params, dict):
        out["model_parameters"] = {k: MARKER if k in _SPEAKING else v for k, v in params.items()}
    info = data.get("guardrail_information")
    if isinstance(info, list):
        kept = [{k: v for k, v in one.items() if k not in _JUDGED} for one in info if isinstance(one, dict)]
        out["guardrail_information"] = kept
    return without_error_text(out)


def without_error_text(data: Mapping[str, JSON]) -> dict[str, JSON]:
    """The record with the class and the status of its error in the place of the text: providers quote requests."""
    error = data.get("error_information")
    if not isinstance(error, dict):
        return dict(data)
    told = f"{error.get('error_class')} {error.get('error_code')}"
    return {**data, "error_str": told, "error_information": {**error, "error_message": told, "traceback": ""}}


def without_answer(response: JSON) -> JSON:
    """An answer with every text replaced: the outline of a chat, completion, message or response; None stays."""
    if not isinstance(response, dict):
        return None if response is None else MARKER
    out: dict[str, Any] = {key: value for key, value in response.items() if key in _PLAIN}
    for field in ("choices", "content", "output"):
        if isinstance(response.get(field), list):
            out[field] = [_outline(item) for item in response[field]]
    return out


def _outline(item: JSON) -> JSON:
    if not isinstance(item, dict):
        return MARKER
    out: dict[str, Any] = {key: value for key, value in item.items() if key in _PLAIN}
    if "message" in item:
        out["message"] = {"role": "assistant", "content": MARKER}
    elif "content" in item:
        out["content"] = [{"type": "output_text", "text": MARKER}]
    else:
        out["text"] = MARKER
    return out


def without_key_info(data: Mapping[str, JSON]) -> dict[str, JSON]:
    """The record without the fields that say whose key it was (`user_api_key*`)."""
    metadata = data.get("metadata")
    if not isinstance(metadata, dict):
        return dict(data)
    kept = {key: value for key, value in metadata.items() if not key.startswith(_KEY_INFO)}
    asked = kept.get("requester_metadata")
    if isinstance(asked, dict):
        kept["requester_metadata"] = {k: v for k, v in asked.items() if not k.startswith(_KEY_INFO)}
    return {**data, "metadata": kept}
