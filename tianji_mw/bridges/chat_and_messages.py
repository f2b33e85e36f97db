"""What the two bridges between Chat Completions and Messages share: stop reasons, usage, errors in a stream.

Source: OpenAI API reference, "Chat"; Anthropic API reference, "Messages", "Errors".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.messages import type_of_status
from tianji_mw.bridges.shape import count, record, string
from tianji_mw.errors import type_of_status as openai_type_of_status

_FINISH: Final[Mapping[str, str]] = {
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "compaction": "length",
    "refusal": "content_filter",
}
_STOP: Final[Mapping[str, str]] = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_STATUS: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "overloaded_error": 503,
    "timeout_error": 504,
    # What OpenAI calls some of them.
    "rate_limit_exceeded": 429,
    "tokens": 429,
    "requests": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "overloaded": 503,
}


def finish_reason(native: JSON, has_calls: bool) -> str:
    """OpenAI's finish reason; an answer with tool calls never says `stop`, one without never says `tool_calls`."""
    found = _FINISH.get(string(native), "stop")
    if found in ("stop", "tool_calls"):
        return "tool_calls" if has_calls else "stop"
    return found


def stop_reason(finish: JSON, has_calls: bool) -> str:
    """Anthropic's stop reason, with the same care."""
    found = _STOP.get(string(finish), "end_turn")
    if found in ("end_turn", "tool_use"):
        return "tool_use" if has_calls else "end_turn"
    return found


def chat_usage(found: Mapping[str, JSON]) -> dict[str, JSON]:
    """Anthropic's usage as OpenAI's: prompt tokens there include what the cache gave and took."""
    read, written = count(found.get("cache_read_input_tokens")), count(found.get("cache_creation_input_tokens"))
    prompt, completion = count(found.get("input_tokens")) + read + written, count(found.get("output_tokens"))
    thinking = count(record(found.get("output_tokens_details")).get("thinking_tokens"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read},
        "completion_tokens_details": {"reasoning_tokens": thinking},
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
    }


def messages_usage(found: Mapping[str, JSON]) -> dict[str, JSON]:
    """OpenAI's usage as Anthropic's."""
    details = record(found.get("prompt_tokens_details"))
    read = count(details.get("cached_tokens"))
    written = count(found.get("cache_creation_input_tokens")) or count(details.get("cache_write_tokens"))
    usage: dict[str, JSON] = {
        "input_tokens": max(0, count(found.get("prompt_tokens")) - read - written),
        "output_tokens": count(found.get("completion_tokens")),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
    }
    thinking = count(record(found.get("completion_tokens_details")).get("reasoning_tokens"))
    return usage | ({"output_tokens_details": {"thinking_tokens": thinking}} if thinking else {})


def chat_error(found: JSON) -> dict[str, JSON]:
    """Anthropic's error of a broken stream as OpenAI's. The status line is gone, so `code` carries the status."""
    error = record(found)
    status = _STATUS.get(string(error.get("type")), 502)
    message = string(error.get("message")) or "The provider ended the stream with an error."
    return {"message": message, "type": openai_type_of_status(status), "param": None, "code": str(status)}


def messages_error(found: JSON) -> dict[str, JSON]:
    """OpenAI's error of a broken stream as Anthropic's."""
    error = record(found)
    message = string(error.get("message")) or string(found) or "The provider ended the stream with an error."
    return {"type": type_of_status(_status(error)), "message": message}


def _status(error: Mapping[str, JSON]) -> int:
    code = error.get("code")
    text = str(code) if isinstance(code, int | str) and not isinstance(code, bool) else ""
    if len(text) == 3 and text.isascii() and text.isdecimal() and text >= "400":
        return int(text)
    return _STATUS.get(text) or _STATUS.get(string(error.get("type")), 500)
