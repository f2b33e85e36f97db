"""What Helicone's log API is told of a record: request and answer as they were, the true address and status. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

#: Where a call of an API goes, and the field that holds what was asked.
_APIS: Final[Mapping[str, tuple[str, str]]] = {
    "chat_completions": ("chat/completions", "messages"),
    "completions": ("completions", "prompt"),
    "embeddings": ("embeddings", "input"),
    "messages": ("messages", "messages"),
    "moderations": ("moderations", "input"),
    "rerank": ("rerank", "query"),
    "responses": ("responses", "input"),
}
#: Providers that Helicone knows by their addresses, and whose APIs are the client's.
_KNOWN: Final = frozenset(
    {
        "openai", "anthropic", "azure", "groq", "together_ai", "openrouter", "fireworks_ai", "deepseek", "mistral",
        "perplexity", "xai", "deepinfra", "hyperbolic", "nebius", "novita",
    }
)  # fmt: skip
_UNKNOWN_URL: Final = "custom-model-nopath"
_VERSION: Final = re.compile(r"/v\d+[a-z0-9]*$")
_META: Final = re.compile(r"helicone[_-][a-z0-9_.-]+", re.IGNORECASE)
#: Never taken from a client: who we are.
_OURS: Final = frozenset({"helicone-auth", "helicone-api-key", "helicone-request-id"})
_MOST: Final = 1000


def log_of(record: Record) -> dict[str, Any]:
    """The body of `POST /custom/v1/log`."""
    start, end = content.times(record)
    timing: dict[str, Any] = {"startTime": _moment(start), "endTime": _moment(end)}
    if (first := content.time_to_first_token(record)) is not None:
        timing["timeToFirstToken"] = round(first * 1000)
    return {
        "providerRequest": {"url": _url(record), "json": _asked(record), "meta": _meta(record)},
        "providerResponse": {**_answered(record), "status": _status(record), "headers": _headers(record)},
        "timing": timing,
    }


def upstream_of(record: Record) -> str:
    """The base address that the call went to, the last one where there were several."""
    tried = content.attempts(record)
    base = tried[-1].get("api_base") if tried else None
    return content.word(base) or content.word(record.data.get("api_base")) or ""


def _url(record: Record) -> str:
    """The address that was asked."""
    base, provider = upstream_of(record).rstrip("/"), content.word(record.data.get("custom_llm_provider"))
    path, _ = _APIS.get(content.as_text(content.ours(record).get("api")), ("", ""))
    if provider not in _KNOWN or not path or not base.startswith(("https://", "http://")):
        return _UNKNOWN_URL
    if provider == "azure" and "/openai" not in base:
        return f"{base}/openai/deployments/{content.as_text(record.data.get('model'))}/{path}"
    return f"{base}/{path}" if _VERSION.search(base) else f"{base}/v1/{path}"


def _asked(record: Record) -> dict[str, Any]:
    data = record.data
    _, field = _APIS.get(content.as_text(content.ours(record).get("api")), ("", "messages"))
    asked = data.get("messages")
    held = asked if field == "query" and isinstance(asked, dict) else {field: asked}
    return {**content.model_parameters(record), **held, "model": content.as_text(data.get("model"))}


def _answered(record: Record) -> dict[str, Any]:
    answer = record.data.get("response")
    if isinstance(answer, dict):
        return {"json": answer}
    if isinstance(answer, str):
        return {"textBody": answer}
    failed = content.failure(record)
    if failed is None:
        return {"json": {"data": answer}}
    return {"json": {"error": {"message": failed.message, "type": failed.kind, "code": failed.status}}}


def _status(record: Record) -> int:
    """The provider's own status where there is one, else what the client got."""
    tried = content.attempts(record)
    failed = content.failure(record)
    own = [tried[-1].get("status_code") if tried else None, content.ours(record).get("status_code")]
    found = next((status for status in map(content.count, own) if 100 <= status <= 599), 0)
    return found or (200 if failed is None else failed.status or 500)


def _headers(record: Record) -> dict[str, str]:
    told = content.mapping(content.mapping(record.data.get("hidden_params")).get("additional_headers"))
    return {name.replace("_", "-"): content.as_text(value) for name, value in told.items() if value is not None}


def _moment(at: float) -> dict[str, int]:
    milliseconds = round(at * 1000)
    return {"seconds": milliseconds // 1000, "milliseconds": milliseconds % 1000}


def _meta(record: Record) -> dict[str, str]:
    """Texts alone. What the client says of its call goes before what we know."""
    data, who = record.data, content.mapping(record.data.get("metadata"))
    found: dict[str, JSON] = {
        "Helicone-User-Id": data.get("end_user") or who.get("user_api_key_user_id"),
        "Helicone-Session-Id": content.session_id(record),
        "Helicone-Property-team": who.get("user_api_key_team_alias") or who.get("user_api_key_team_id"),
        "Helicone-Property-key": who.get("user_api_key_alias"),
        "Helicone-Property-model-group": data.get("model_group"),
        "Helicone-Property-provider": data.get("custom_llm_provider"),
        "Helicone-Property-call-id": record.id,
    }
    for source in (content.requester_metadata(record), content.custom_headers(record)):
        for name, value in source.items():
            titled = _titled(name) if _META.fullmatch(name) else ""
            if titled and titled.lower() not in _OURS:
                found[titled] = value
    out = {name: _text(value)[:_MOST] for name, value in found.items() if value not in (None, "")}
    return {**out, "Helicone-Request-Id": record.id}


def _titled(name: str) -> str:
    """`helicone_user_id` as `Helicone-User-Id`; the name of a property stays as it is."""
    words = name.replace("_", "-").split("-")
    head = 2 if len(words) > 2 and words[1].lower() == "property" else len(words)
    rest = name[len("-".join(words[:head])) + 1 :]
    return "-".join([*(word.capitalize() for word in words[:head]), *([rest] if rest else [])])


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
