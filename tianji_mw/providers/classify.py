"""What a provider's error says: the facts in its body, and the code and status our clients get for it. Pure.

Status and structured codes decide; texts only refine a status of 400, 413 or 422, because a request's own words are
often quoted in the answer. Nothing here depends on one provider: the bodies are OpenAI's, Anthropic's, Azure's, vLLM's,
Mistral's and FastAPI's.

Source: OpenAI "Error codes"; Anthropic "Errors"; Azure OpenAI "Content filtering".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson

from tianji_mw.apis.base import JSON


class Reported(NamedTuple):
    """The facts of one error body; empty where it does not say."""

    message: str = ""
    code: str = ""
    type: str = ""
    param: str | None = None
    #: The code inside of the code (Azure), which decides even when the outer one is generic.
    inner: str = ""


#: Codes that clients act upon; they go through as they are.
_KEPT: Final = frozenset(
    {
        "context_length_exceeded", "content_filter", "content_policy_violation", "rate_limit_exceeded",
        "model_not_found", "invalid_api_key", "insufficient_quota",
    }
)  # fmt: skip
_SAME: Final[Mapping[str, str]] = {
    "DeploymentNotFound": "model_not_found",
    "ResponsibleAIPolicyViolation": "content_filter",
    "content_policy_violation_error": "content_policy_violation",
}
_CODE_OF_STATUS: Final[Mapping[int, str]] = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
#: Status for an error that came without one: inside of a 200, or in a stream.
_STATUS_OF: Final[Mapping[str, int]] = {
    "rate_limit_exceeded": 429, "rate_limit_error": 429, "insufficient_quota": 429, "too_many_requests": 429,
    "invalid_request_error": 400, "context_length_exceeded": 400, "content_filter": 400,
    "content_policy_violation": 400, "authentication_error": 401, "invalid_api_key": 401, "billing_error": 402,
    "permission_error": 403, "not_found_error": 404, "model_not_found": 404, "request_too_large": 413,
    "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip

_CONTEXT: Final = re.compile(
    r"maximum context length is|exceed context limit|model's maximum context limit"
    r"|is longer than the model's context length|input tokens exceed the configured limit"
    r"|`inputs` tokens \+ `max_new_tokens` must be|exceeds the available context size"
    r"|exceeds the maximum number of tokens allowed|prompt is too long|too many tokens|input is too long"
    r"|expected maxlength|request payload size exceeds|context_length_exceeded|current length is \S+ while limit is"
    r"|maximum input length is \S+ tokens|input text length should not exceed"
    r"|string too long\. expected a string with maximum length"
    r"|requested token count exceeds the model's maximum context length"
    r"|input too long: .{0,40}input tokens, limit is",
    re.IGNORECASE,
)
#: A single field was too long, not the conversation.
_NOT_CONTEXT: Final = re.compile(
    r"string_above_max_length|string too long.*invalid 'user'|invalid 'user'.*string too long",
    re.IGNORECASE | re.DOTALL,
)
_POLICY: Final = re.compile(
    r"content_policy_violation|violating our usage policy|rejected as a result of the safety system"
    r"|content filtering policy|response was blocked|content management policy|responsibleaipolicyviolation"
    r"|content_filter_policy|your task failed as a result of our safety system|the model produced invalid content",
    re.IGNORECASE,
)
_RATE: Final = re.compile(r"rate[ _-]?limit|service tier capacity exceeded|\b429\b", re.IGNORECASE)
#: Statuses whose reason the text may refine.
_REFINED: Final = frozenset({400, 413, 422})


def read(body: bytes) -> Reported:
    """The facts in an error body; none when it is no JSON."""
    try:
        return of(orjson.loads(body))
    except orjson.JSONDecodeError:
        return Reported()


def of(data: JSON) -> Reported:
    """The facts in a decoded error body. Total: any JSON gives a Reported."""
    if isinstance(data, list) and data:
        data = data[0]
    found = (data.get("error") or data) if isinstance(data, dict) else data
    if isinstance(found, str):
        return Reported(found)
    if not isinstance(found, dict):
        return Reported()
    message = next((found[k] for k in ("message", "detail", "msg", "Message") if isinstance(found.get(k), str)), "")
    code, kind, param = found.get("code"), found.get("type"), found.get("param")
    inner = found.get("innererror") or found.get("inner_error")
    inner_code = inner.get("code") if isinstance(inner, dict) else None
    return Reported(
        message,
        str(code) if isinstance(code, str | int) and not isinstance(code, bool) else "",
        kind if isinstance(kind, str) else "",
        param if isinstance(param, str) else None,
        inner_code if isinstance(inner_code, str) else "",
    )


def code_of(found: Reported, status: int) -> str | None:
    """The `error.code` for clients; None where nothing better than the status is known."""
    for given in (found.inner, found.code, found.type):
        code = _SAME.get(given, given)
        if code in _KEPT:
            return code
    own = found.code if not found.code.isdecimal() else ""
    if status in _REFINED:
        text = f"{own} {found.message}"
        if _CONTEXT.search(text) and not _NOT_CONTEXT.search(text):
            return "context_length_exceeded"
        if _POLICY.search(text):
            return "content_policy_violation"
    return own or _CODE_OF_STATUS.get(status)


def status_of(found: Reported) -> int:
    """The status for an error that came without one; 502 when nothing tells."""
    if found.code.isdecimal() and 400 <= int(found.code) <= 599:
        return int(found.code)
    for given in (found.inner, found.code, found.type):
        if status := _STATUS_OF.get(_SAME.get(given, given)):
            return status
    return 429 if _RATE.search(found.message) else 502


def is_error(data: JSON) -> bool:
    """Whether the body of a success is an error in disguise: it names one, and holds no answer."""
    if not isinstance(data, dict):
        return False
    if data.get("object") == "error" or data.get("type") == "error":
        return True
    # A response that failed names its error beside its output; that is an answer, and the client's to read.
    return bool(data.get("error")) and not any(key in data for key in ("choices", "output", "content", "data"))
