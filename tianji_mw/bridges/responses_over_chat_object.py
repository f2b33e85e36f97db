"""The parts of a response object that need no state: its head, usage, error, citations, token probabilities.

Source: OpenAI API reference, "The response object" (Responses) and "The chat completion object" (Chat).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.chat_completions import usage_of
from tianji_mw.bridges.base import Context
from tianji_mw.bridges.responses_over_chat_request import ECHO
from tianji_mw.bridges.shape import count, record, records, string

#: Error codes of a response; everything else is the server's error.
_CODES: Final[Mapping[str, str]] = {
    "rate_limit_error": "rate_limit_exceeded",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "invalid_request_error": "invalid_prompt",
}
_UNSET: Final = ("instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "user")


def response_object(context: Context, status: str) -> dict[str, JSON]:
    """The response without output, with the request's settings as the API repeats them."""
    echo = record(context.notes.get(ECHO))
    head: dict[str, JSON] = {"id": f"resp_{context.call_id}", "object": "response", "created_at": context.created}
    head |= {"status": status, "model": context.model, "output": [], "usage": None}
    head |= {"error": None, "incomplete_details": None, "background": False, "previous_response_id": None}
    head |= {
        "store": False,
        "truncation": "disabled",
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
    }
    return {
        **head,
        **dict.fromkeys(_UNSET),
        **echo,
        "reasoning": {"effort": None, "summary": None, **record(echo.get("reasoning"))},
        "text": {"format": {"type": "text"}, **record(echo.get("text"))},
        "tools": [_tool(tool) for tool in records(echo.get("tools"))],
    }


def _tool(tool: Mapping[str, JSON]) -> dict[str, JSON]:
    return {"parameters": None, "strict": None, **tool} if tool.get("type") == "function" else dict(tool)


def failure(error: JSON) -> dict[str, JSON]:
    """A response's `error` for an upstream's."""
    found = record(error)
    codes = [_CODES.get(string(found.get(key))) for key in ("code", "type")]
    message = string(found.get("message")) or string(error) or "The provider failed."
    return {"code": codes[0] or codes[1] or "server_error", "message": message}


def usage_object(found: Mapping[str, JSON]) -> dict[str, JSON] | None:
    """Chat's usage as the Responses API counts and names it; None when there is none."""
    usage = usage_of(found)
    if usage is None:
        return None
    cached = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens}
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": cached,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": count(found.get("total_tokens")) or usage.input_tokens + usage.output_tokens,
    }


def citation(found: Mapping[str, JSON]) -> dict[str, JSON]:
    """Chat nests what Responses keeps flat."""
    at = {key: count(found.get(key)) for key in ("start_index", "end_index")}
    return {"type": "url_citation", **at, "url": string(found.get("url")), "title": string(found.get("title"))}


def logprobs_of(found: JSON) -> list[JSON]:
    """Token probabilities with every field the Responses API promises."""
    return [
        {**_token(item), "top_logprobs": [_token(other) for other in records(item.get("top_logprobs"))]}
        for item in records(record(found).get("content"))
    ]


def _token(item: Mapping[str, JSON]) -> dict[str, JSON]:
    token, value, raw = string(item.get("token")), item.get("logprob"), item.get("bytes")
    value = value if isinstance(value, int | float) else 0.0
    return {
        "token": token,
        "logprob": value,
        "bytes": raw if isinstance(raw, list) else list(token.encode("utf-8", "replace")),
    }
