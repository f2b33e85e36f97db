"""What is written down of a call at its end, in its path: facts, the bytes of the request and those of the answer.

It is as little work as possible: `payload.py` makes the record of it when it is delivered. What is redacted for all
destinations is not in it.

    facts    u32 length and JSON
    request  u32 length and the body as it went on, or the part of it that may be logged
    answer   the rest: the bytes that left, if they may be logged
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from tianji_mw import redact
from tianji_mw.apis.assemble import usage_in
from tianji_mw.apis.base import JSON, Usage
from tianji_mw.callbacks.record.base64_cut import DEFAULT_KEPT, holds_base64, shortened
from tianji_mw.callbacks.record.guardrail_info import guardrail_information
from tianji_mw.callbacks.record.trace_context import TraceContext
from tianji_mw.errors import TianjiError, UpstreamError
from tianji_mw.kept import Kept
from tianji_mw.redact import SECRET_HEADERS
from tianji_mw.runs import Runs

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt
    from tianji_mw.identity.base import Identity

_LENGTH: Final = struct.Struct("<I")
_OK: Final = frozenset({"ok", "cached"})
#: Beginnings of the headers that are logged; vendors have names of their own.
_LOGGED: Final = (b"x-", b"user-agent", b"traceparent", b"tracestate", b"helicone-", b"langfuse_", b"langfuse-")
_NOISE: Final = (b"x-stainless-",)
_SECRET: Final = frozenset(name.encode() for name in SECRET_HEADERS)
#: What headers of credentials are called, also those of an operator's own.
_SECRETIVE: Final = re.compile(rb"key|token|secret|auth|cookie|passw|credential")
#: Fields of a request that LiteLLM's clients put credentials and addresses into. They have no effect here.
_NEVER: Final = frozenset({"api_key", "api_base", "base_url", "extra_headers", "extra_body"})
_RATE_LIMIT: Final = b"llm_provider-x-ratelimit-"
#: Of a key's metadata: settings of ours, with credentials in them.
_SETTINGS: Final = frozenset({"logging", "guardrails", "disable_global_guardrails", "secret_manager_settings"})
#: Parts of a request that are what was asked.
SPEAKING: Final = frozenset(
    {
        "messages", "input", "prompt", "system", "instructions", "query", "documents", "texts", "suffix", "prediction",
        "tools", "functions", "response_format", "text", "stop", "stop_sequences", "prompt_variables",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRules:
    """What of the content is written down, for all destinations."""

    content: bool = True
    base64_kept: int = DEFAULT_KEPT
    #: Bytes of a request or an answer; of longer ones only their length.
    max_bytes: int = 1 << 20
    #: Headers that are logged besides those that always are, lower case.
    headers: tuple[str, ...] = ()


class Snapshot(NamedTuple):
    """What was written down, apart again."""

    facts: dict[str, Any]
    request: bytes
    answer: bytes


def snapshot(call: Call, rules: ContentRules, *, content: bool) -> bytes:
    """The bytes for the journal."""
    facts = _facts(call)
    for name in rules.headers:
        if name.encode() not in _SECRET and (value := call.headers.get(name)):
            facts["headers"][name] = value
    request = _asked(call, rules, facts) if content else _unsaid(call)
    answer = _answered(call.kept, rules, facts) if content and call.kept is not None else b""
    facts["content"] = content
    if not content and call.usage.source == "none" and call.kept is not None and call.kept.bodies:
        found = usage_in(call.api.name, b"".join(call.kept.bodies), events=call.kept.form == "sse")
        facts["usage"] = counted(found or call.usage)
    head = orjson.dumps(facts, default=str, option=orjson.OPT_NON_STR_KEYS)
    return b"".join((_LENGTH.pack(len(head)), head, _LENGTH.pack(len(request)), request, answer))


def apart(raw: bytes) -> Snapshot:
    """The three parts. Raises ValueError for anything else."""
    try:
        (size,) = _LENGTH.unpack_from(raw)
        (asked,) = _LENGTH.unpack_from(raw, 4 + size)
    except struct.error:
        raise ValueError("no snapshot of a call") from None
    return Snapshot(orjson.loads(raw[4 : 4 + size]), raw[8 + size : 8 + size + asked], raw[8 + size + asked :])


def _facts(call: Call) -> dict[str, JSON]:
    timings, usage, runtime = call.timings, call.usage, call.runtime
    facts: dict[str, JSON] = {
        "id": call.id,
        "api": call.api.name,
        "method": call.method,
        "path": call.path,
        "client": call.client,
        "outcome": call.outcome,
        "status": call.status,
        "complete": call.complete,
        "bytes_out": call.bytes_out,
        # Seconds since 1970 at the clock's zero; the times are nanoseconds of the clock.
        "zero": runtime.wall() - runtime.clock() / 1e9,
        "received": timings.received,
        "sent": timings.sent_upstream,
        "first": timings.first_client_byte,
        "end": timings.end,
        "usage": counted(usage),
        "headers": {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in call.headers.raw
            if name.startswith(_LOGGED) and not name.startswith(_NOISE) and not _SECRETIVE.search(name)
        },
        "attempts": [_attempt(call, attempt) for attempt in call.attempts],
    }  # fmt: skip
    if call.identity is not None:
        facts["identity"] = _identity(call.identity)
    if (use := call.cache) is not None:
        facts["cache"] = (
            use.status, use.kind, use.key, use.age_s, use.shared, use.similarity, use.reason, use.saved_tokens,
            use.saved_cost,
        )  # fmt: skip
    if call.outcome not in _OK:
        facts["error"] = _error(call)
    if Runs in call.notes:
        facts["guardrails"] = guardrail_information(call, facts["zero"])
    if applied := call.response_headers.get("x-litellm-applied-guardrails"):
        facts["applied"] = applied
    if TraceContext in call.notes:
        trace = call.note(TraceContext)
        facts["trace"] = (trace.trace_id, trace.span_id, trace.parent_id, trace.sampled, trace.state)
    kept = call.kept
    if kept is not None:
        facts["form"], facts["times"] = kept.form, kept.times
        if found := [pair for pair in kept.headers if pair[0].startswith(_RATE_LIMIT)]:
            facts["limits"] = {name.decode("latin-1"): value.decode("latin-1") for name, value in found}
    return facts


def counted(usage: Usage) -> tuple[JSON, ...]:
    """Input, output, read from and written to the cache, reasoning; and who counted."""
    return (
        usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens,
        usage.source,
    )  # fmt: skip


def _attempt(call: Call, attempt: Attempt) -> tuple[JSON, ...]:
    deployment, error = attempt.deployment, attempt.error
    provider = deployment.provider
    base = provider.base
    if "?" in base or "@" in base:
        base = redact.url(base)
    return (
        deployment.id, deployment.upstream_model(attempt.group or call.model), provider.name, base, attempt.started,
        attempt.status,
        None if error is None else type(error).__name__,
    )  # fmt: skip


def _identity(identity: Identity) -> dict[str, JSON]:
    metadata: Mapping[str, JSON] = identity.metadata
    if metadata and not _SETTINGS.isdisjoint(metadata):
        metadata = {key: value for key, value in metadata.items() if key not in _SETTINGS}
    return {
        "hash": identity.key_hash,
        "alias": identity.alias,
        "team": identity.team,
        "user": identity.user,
        "tags": identity.tags,
        "metadata": metadata,
    }


def _error(call: Call) -> dict[str, JSON]:
    error = call.error
    if isinstance(error, TianjiError):
        provider = error.provider if isinstance(error, UpstreamError) else ""
        return {
            "class": type(error).__name__, "status": error.status, "message": error.message, "code": error.code,
            "provider": provider,
        }  # fmt: skip
    kind = type(error).__name__ if error is not None else str(call.outcome)
    return {"class": kind, "status": call.status, "message": f"{call.outcome}: {kind}", "code": None, "provider": ""}


# --- content


def _asked(call: Call, rules: ContentRules, facts: dict[str, JSON]) -> bytes:
    """The request as it went on; without its base64, and without what was asked where that is too long."""
    request = call.request
    body = call.body if request else b""
    if not _NEVER.isdisjoint(request):
        request = {key: value for key, value in request.items() if key not in _NEVER}
        body = orjson.dumps(request)
    if holds_base64(body):
        body = orjson.dumps(shortened(dict(request), rules.base64_kept))
    if len(body) <= rules.max_bytes:
        return body
    facts["request_bytes"] = len(body)
    return _unsaid(call)


def _unsaid(call: Call) -> bytes:
    """The request without what was asked."""
    hidden = SPEAKING | _NEVER
    return orjson.dumps({key: value for key, value in call.request.items() if key not in hidden})


def _answered(kept: Kept, rules: ContentRules, facts: dict[str, JSON]) -> bytes:
    if kept.left_out:
        facts["answer_bytes"] = kept.size
        return b""
    return kept.bodies[0] if len(kept.bodies) == 1 else b"".join(kept.bodies)
